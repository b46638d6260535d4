"""l1-wavelet regularised SENSE (Lustig, Donoho, Pauly, MRM 2007), invariant to shifts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import ClassVar

import torch

from inrecon.frame import Frame
from inrecon.methods.method import bounded, methods, tunable
from inrecon.methods.sparse import SparseMethod, shrunk

# Daubechies 1988: the orthogonal filter of four taps (two vanishing moments), which has a closed form.
LOW_PASS = tuple(a / (4 * math.sqrt(2)) for a in (1 + 3**0.5, 3 + 3**0.5, 3 - 3**0.5, 1 - 3**0.5))
HIGH_PASS = tuple((-1) ** i * a for i, a in enumerate(reversed(LOW_PASS)))
LEVELS = 3


@methods.register("l1_wavelet")
@dataclasses.dataclass(frozen=True, kw_only=True)
class L1Wavelet(SparseMethod):
    """argmin |A x - y|^2 / 2 + weight |W x|_1 by FISTA with adaptive restart; weight as in `SparseMethod`.

    W is the Daubechies wavelet with four taps, over three levels, cycle-spun over all shifts (`StationaryWavelet`).
    Each iteration is a gradient step and a shrinkage of the coefficients of every shift, then their mean (Coifman and
    Donoho 1995). With one random shift an iteration, the usual short cut, the iterates wander and momentum amplifies
    that (1 to 3 % of the image); with the mean they converge, for the mean of proximal maps is the proximal map of
    another convex function (Yu, NIPS 2013), near the mean of the norms. Momentum by Beck and Teboulle (SIAM J Imaging
    Sci 2009), Eqs. (4.1)-(4.3), restarted when it points uphill (O'Donoghue and Candes, Found Comput Math 2015). The
    step is 1 / L, with L the largest sum of squares of a set of coil maps: no eigenvalue of A^H A is above that, for
    sets are orthogonal.
    """

    name: ClassVar[str] = "l1_wavelet"
    regularisation: float = tunable(1e-4, low=1e-6, high=1e-1, log=True, symbol="lambda")
    noise_factor: float = bounded(0.15, low=0.0, high=100.0)
    iterations: int = bounded(200, low=1, high=10_000)
    tolerance: float = bounded(5e-4, low=0.0, high=1e-1)

    def iterates(self, frame: Frame, *, back_projection: torch.Tensor, weight: float) -> Iterator[torch.Tensor]:
        """The iterates of FISTA from zero."""
        wavelet = StationaryWavelet(frame.operator.grid, back_projection.device)
        step = 1 / frame.maps.csm.abs().square().sum(-3).max()
        thresholds = step * weight * wavelet.weights
        image = ahead = torch.zeros_like(back_projection)
        momentum = torch.ones((), device=image.device)
        while True:
            coefficients = wavelet.forward(ahead - step * (frame.operator.gram(ahead) - back_projection))
            shrinkage = shrunk(coefficients, thresholds, magnitude=coefficients.abs())
            last, image = image, wavelet.adjoint(shrinkage)
            uphill = torch.linalg.vecdot((ahead - image).flatten(), (image - last).flatten()).real > 0
            momentum = torch.where(uphill, 1.0, momentum)
            following = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
            ahead = image + (momentum - 1) / following * (image - last)
            momentum = following
            yield image


class StationaryWavelet:
    """The orthogonal wavelet transforms of all shifts of an image at once, periodic, for any number of rows and
    columns (Nason and Silverman 1995).

    A tight frame: ``adjoint(forward(x)) == x`` and norms are kept. `weights` ``(bands, 1, 1)`` makes ``sum(weights *
    |forward(x)|)`` the mean over shifts of the l1 norm of the orthogonal transform's details; the approximation has
    weight 0, so that brightness is not shrunk.
    """

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        approximation = torch.ones(shape, dtype=torch.complex128)
        bands: list[torch.Tensor] = []
        for level in range(LEVELS):
            (low_y, high_y), (low_x, high_x) = (_responses(n, 2**level) for n in shape)
            details = ((low_y, high_x), (high_y, low_x), (high_y, high_x))
            bands += [approximation * torch.outer(y, x) for y, x in details]
            approximation = approximation * torch.outer(low_y, low_x)
        self._responses = torch.stack([*bands, approximation]).to(device, torch.complex64)
        self._conj = self._responses.conj().resolve_conj()
        weights = [0.5 ** (level + 1) for level in range(LEVELS) for _ in range(3)]
        self.weights = torch.tensor([*weights, 0.0], device=device)[:, None, None]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """``(..., rows, columns)`` to ``(..., bands, rows, columns)``: three details a level, fine to coarse, then the
        rest."""
        return torch.fft.ifft2(self._responses * torch.fft.fft2(image).unsqueeze(-3))

    def adjoint(self, coefficients: torch.Tensor) -> torch.Tensor:
        """``(..., bands, rows, columns)`` to ``(..., rows, columns)``."""
        return torch.fft.ifft2((self._conj * torch.fft.fft2(coefficients)).sum(-3))


def _responses(size: int, dilation: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Frequency responses of correlation with the two filters, their taps `dilation` apart, on a torus of `size`.

    Scaled so that their squared magnitudes add to 1.
    """
    cycles = torch.arange(size, dtype=torch.float64) * dilation / size
    taps = torch.polar(torch.ones(()).double(), 2 * math.pi * torch.outer(cycles, torch.arange(4).double()))
    low, high = (taps @ torch.tensor(f, dtype=torch.complex128) / math.sqrt(2) for f in (LOW_PASS, HIGH_PASS))
    return low, high
