"""IMJENSE (Feng et al., IEEE Trans Med Imaging 2024, arXiv:2311.12892): image and coil maps fitted jointly."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import torch

from inrecon.deadline import DEADLINE, time_left
from inrecon.encoders import pixel_centres
from inrecon.errors import FitDiverged
from inrecon.events import FitProgressed, observe
from inrecon.frame import Frame, Reconstruction
from inrecon.methods.closing import closed
from inrecon.methods.method import Method, announced, bounded, divergence, methods, tunable
from inrecon.methods.network import surrounded

CHECK_EVERY = 25


@methods.register("imjense")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Imjense(Method):
    """x = SIREN(r), s_c = polynomial of r, both fitted by Adam to min |P F (s x) - y|^2 / N + tv_weight TV(x) / N.

    N is the number of pixels, TV the sum of |differences| along rows and columns of the complex image, and y is scaled
    so that the root-sum-of-squares of the zero-filled coil images is at most 1, as in the authors' demonstration
    (github.com/AMRI-Lab/IMJENSE). Its network has sines for activations, sin(omega (W h + b)), and the initial values
    of Sitzmann et al. (NeurIPS 2020). The map of each coil is a sum of x^p y^q with complex coefficients and p, q up
    to `order` (the form of JSENSE: Ying and Sheng, Magn Reson Med 57:1196, 2007), written in Legendre polynomials, so
    that Adam sees coefficients of like effect, and zero at first.

    From the demonstration are order 15 and omega_0 30, there with 1500 iterations at rates of 1e-4 and 0.1 and a TV
    weight of 3 in units of its own. The other defaults, and the size of the network, give the best images found in a
    minute on one CPU core (two real brains, uniform and random lines). `closing_weight` > 0 ends with
    min |A x - y|^2 + closing_weight |x - x_INR|^2, A with the fitted maps, which is not in the paper.

    The ESPIRiT maps of the frame do not enter the fit. They say where the image is (their support) and, since a pair
    of image and maps is only determined up to a common factor at each pixel, which of those images to give: that for
    maps of unit root-sum-of-squares, in phase with the frame's. Where the frame has several sets of maps the fit still
    has one: its coil images are shared out among the sets, and the remark says so.
    """

    learning_rate: float = tunable(1.5e-3, low=1e-5, high=1e-2, log=True)
    learning_rate_maps: float = tunable(1e-2, low=1e-4, high=1.0, log=True)
    tv_weight: float = tunable(1e-2, low=1e-5, high=1.0, log=True, symbol="lambda")
    omega: float = tunable(30.0, low=5.0, high=100.0, log=True, symbol="omega_0")
    order: int = bounded(15, low=0, high=30)
    hidden_layers: int = bounded(3, low=1, high=16)
    width: int = bounded(64, low=1, high=1024)
    iterations: int = bounded(450, low=1, high=100_000)
    closing_weight: float = bounded(0.1, low=0.0, high=100.0)
    seed: int = bounded(0, low=0, high=2**31 - 1)

    def fit(self, frame: Frame) -> Reconstruction:
        """Fit `frame`; raises `FitDiverged` when loss or image are not finite, or the fit ends worse than it began."""
        started = time.perf_counter()
        several, frame = frame, frame.with_first_set()
        fit = _Fit(self, frame)
        losses = fit.run()
        image, maps = fit.result()
        if (error := divergence("imjense", image, losses)) is not None:
            raise error
        if self.closing_weight > 0:
            fitted = dataclasses.replace(frame, operator=frame.operator.with_maps(maps))
            image, _ = closed(fitted, image, None, weights=[self.closing_weight])
        result = Reconstruction(
            image=shared_out(image, maps, several.maps.csm),
            iterations=len(losses),
            stopped_by="iterations" if len(losses) == self.iterations else DEADLINE,
            losses=tuple(losses),
            remark="" if several.maps.sets == 1 else "one set of coil maps of its own, though the field of view folds",
        )
        return announced(result, method="imjense", started=started)


class _Sine(torch.nn.Linear):
    """sin(omega (W h + b)); omega multiplies the few weights rather than the many values."""

    def __init__(self, inputs: int, outputs: int, *, omega: float) -> None:
        super().__init__(inputs, outputs)
        self._omega = omega

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """``(points, inputs)`` to ``(points, outputs)``."""
        return torch.sin(torch.nn.functional.linear(values, self._omega * self.weight, self._omega * self.bias))


def siren(*, hidden_layers: int, width: int, omega: float, generator: torch.Generator) -> torch.nn.Sequential:
    """Sines of linear layers (Sitzmann et al. 2020) from coordinates ``(points, 2)`` in -1 .. 1 to ``(points, 2)``."""
    layers: list[torch.nn.Linear] = []
    for hidden in range(hidden_layers):
        layers.append(_Sine(width if hidden else 2, width, omega=omega))
    layers.append(torch.nn.Linear(width, 2))
    for number, layer in enumerate(layers):
        inputs = layer.in_features
        bound = math.sqrt(6 / inputs) / omega if number else 1 / inputs
        torch.nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        torch.nn.init.uniform_(layer.bias, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)
    return torch.nn.Sequential(*layers)


class PolynomialMaps(torch.nn.Module):
    """s_c(x, y) = sum over p, q <= `order` of a_cpq P_p(y) P_q(x), P the Legendre polynomials on -1 .. 1."""

    def __init__(self, coils: int, shape: tuple[int, ...], *, order: int) -> None:
        super().__init__()
        for axis, size in zip(("rows", "columns"), shape, strict=True):
            values = np.polynomial.legendre.legvander(_centres(size), order)
            self.register_buffer(axis, torch.from_numpy(values).to(torch.complex64))
        self.coefficients = torch.nn.Parameter(torch.zeros(coils, order + 1, order + 1, dtype=torch.complex64))

    def forward(self) -> torch.Tensor:
        """``(coils, rows, columns)`` complex64."""
        return self.get_buffer("rows") @ self.coefficients @ self.get_buffer("columns").T


class _Fit:
    """One run: network, polynomials, and the transform that takes coil images to the acquired samples."""

    def __init__(self, method: Imjense, frame: Frame) -> None:
        self.method = method
        self.frame = frame
        operator, csm = frame.operator, frame.maps.csm
        # One flat map serves every coil image, the coils a batch: nothing but transform and sampling.
        self.transform = operator.with_maps(torch.ones_like(csm[:1]))
        zero_filled = self.transform.adjoint(frame.kspace[:, None])
        self.scale = float(torch.linalg.vector_norm(zero_filled, dim=0).max()) or 1.0
        self.kspace = frame.kspace[:, None] / self.scale
        # Two pixels around the support: further out the image has no part in what is given back.
        self.pixels = surrounded(frame.maps.support).flatten().nonzero()[:, 0]
        self.coordinates = 2 * pixel_centres(operator.grid, csm.device)[self.pixels] - 1
        self.network = siren(
            hidden_layers=method.hidden_layers,
            width=method.width,
            omega=method.omega,
            generator=torch.Generator().manual_seed(method.seed),
        ).to(csm.device)
        self.maps = PolynomialMaps(len(csm), operator.grid, order=method.order).to(csm.device)
        self.optimizer = torch.optim.Adam(
            [
                {"params": self.network.parameters(), "lr": method.learning_rate},
                {"params": self.maps.parameters(), "lr": method.learning_rate_maps},
            ]
        )

    def run(self) -> list[float]:
        """Iterate; returns the training losses."""
        losses: list[torch.Tensor] = []
        for iteration in range(1, self.method.iterations + 1):
            losses.append(self._step())
            late = time_left() <= 0
            if iteration % CHECK_EVERY and iteration != self.method.iterations and not late:
                continue
            observe(FitProgressed(iteration=iteration, iterations=self.method.iterations))
            if not torch.isfinite(losses[-1]):
                raise FitDiverged(f"imjense diverged: its loss is not finite after {iteration} iterations")
            if late:
                break
        return [float(loss) for loss in losses]

    @torch.no_grad()
    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and maps, in the scale of the frame and the convention of its maps."""
        maps, common = in_convention_of(self.frame.maps.csm, self.maps())
        return self._image() * common * self.scale * self.frame.maps.support, maps * self.frame.maps.support

    def _image(self) -> torch.Tensor:
        """The network's image, ``(rows, columns)``, zero outside the region."""
        values = torch.view_as_complex(self.network(self.coordinates))
        shape = self.frame.operator.grid
        return values.new_zeros(math.prod(shape)).index_copy(0, self.pixels, values).view(shape)

    def _step(self) -> torch.Tensor:
        """One iteration of Adam on image and maps; returns the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        image = self._image()
        residual = torch.view_as_real(self.transform.forward(self.maps() * image) - self.kspace)
        variation = image.diff(dim=0).abs().sum() + image.diff(dim=1).abs().sum()
        loss = (residual.square().sum() + self.method.tv_weight * variation) / image.numel()
        torch.autograd.backward(loss)
        self.optimizer.step()
        return loss.detach()


def in_convention_of(csm: torch.Tensor, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`maps` divided by the one factor at each pixel that gives them unit root-sum-of-squares and the phase of `csm`.

    Both ``(coils, rows, columns)``. Returns them and the factor ``(rows, columns)`` by which an image that goes with
    `maps` is to be multiplied: their root-sum-of-squares, with the phase of sum_c conj(csm_c) maps_c.
    """
    size = torch.linalg.vector_norm(maps, dim=0).clamp_min(torch.finfo(torch.float32).tiny)
    factor = torch.polar(size, (csm.conj() * maps).sum(0).angle())
    return maps / factor, factor


def shared_out(image: torch.Tensor, maps: torch.Tensor, csm: torch.Tensor) -> torch.Tensor:
    """`image` ``(rows, columns)`` with unit `maps` as images of the sets of `csm`: their best fit to the coil images,
    stretched to the same root sum of squares; `image` itself if there is one set."""
    if csm.ndim == 3:
        return image
    shares = (csm.conj() * maps).sum(-3)
    norm = torch.linalg.vector_norm(shares, dim=0).clamp_min(torch.finfo(torch.float32).tiny)
    return image * shares / norm


def _centres(size: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Pixel centres in -1 .. 1."""
    return (2 * np.arange(size) + 1) / size - 1
