"""Cartesian SENSE: coil maps, Fourier transform, sampling."""

import copy
import math
from collections.abc import Sequence
from typing import Self

import torch

from inrecon.operators.operator import LinearOperator

Offset = tuple[float, float]


class CartesianSense(LinearOperator):
    """A = P F C of the bilevel paper, Eq. (2), without a shift in any call.

    `csm` ``(coils, rows, columns)``, `mask` ``(rows, columns)`` centred. With several sets of maps, `csm`
    ``(sets, coils, rows, columns)``, an image is ``(sets, rows, columns)``, and C x is the sum over sets of each one's
    maps times its image (soft SENSE: Uecker et al., Magn Reson Med 71:990-1001, 2014).

    The transform is unitary and centred, but its shifts are done once, in `arrange`: k-space is kept in the transform's
    own order with the phase ramp of the centred image origin divided out, which changes no magnitude.

    The range is ``(coils, lines, columns)``: only rows with a sample exist, and a sample that is missing in them is
    zero. Where every line is whole (the usual Cartesian scan) `gram`, in which the readout transform cancels, leaves it
    out. Images and k-space may have leading batch axes.
    """

    def __init__(self, csm: torch.Tensor, mask: torch.Tensor) -> None:
        *sets, coils, rows, columns = csm.shape
        if mask.shape != (rows, columns):
            raise ValueError(f"mask {tuple(mask.shape)} for coil maps of {rows} x {columns}")
        shifted = torch.fft.ifftshift(mask)
        self._set(csm, shifted.any(1).nonzero()[:, 0], shifted[shifted.any(1)])
        self.domain_shape = (*sets, rows, columns)
        self.range_shape = (coils, len(self._lines), columns)

    def _set(self, csm: torch.Tensor, lines: torch.Tensor, sampled: torch.Tensor) -> None:
        self.csm = csm
        self._conj = csm.conj().resolve_conj()
        self._lines = lines
        self._sampled = sampled
        self._whole_lines = bool(sampled.all())
        self._sampled_rows = torch.zeros(csm.shape[-2], 1, device=csm.device).index_fill_(0, lines, 1.0)

    @property
    def samples_whole_lines(self) -> bool:
        """Whether each line that is sampled is sampled from end to end."""
        return self._whole_lines

    @property
    def sets(self) -> int:
        """Sets of coil maps."""
        return math.prod(self.domain_shape[:-2])

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image and k-space."""
        return self.domain_shape[-2], self.domain_shape[-1]

    @property
    def sampled(self) -> torch.Tensor:
        """Boolean ``(lines, columns)``, broadcastable to `range_shape`."""
        return self._sampled

    @property
    def mask(self) -> torch.Tensor:
        """Boolean ``(rows, columns)``, centred."""
        return torch.fft.fftshift(self._placed(self._sampled))

    @property
    def positions(self) -> int:
        """Coils times pixels."""
        return self.csm.shape[-3:].numel()

    def arrange(self, kspace: torch.Tensor) -> torch.Tensor:
        """Centred k-space ``(coils, rows, columns)`` into this operator's range."""
        rows, columns = self.grid
        centre = self._ramp((-(rows // 2), -(columns // 2)))
        return self._take(torch.fft.ifftshift(kspace, dim=(-2, -1))) * self._sampled * centre

    def centred(self, kspace: torch.Tensor) -> torch.Tensor:
        """The inverse of `arrange`: centred k-space ``(..., coils, rows, columns)``, zero where not sampled."""
        rows, columns = self.grid
        return torch.fft.fftshift(self._placed(kspace * self._ramp((rows // 2, columns // 2))), dim=(-2, -1))

    def central(self, reach: int) -> torch.Tensor:
        """Boolean ``(lines, columns)``: the samples up to `reach` from the centre of k-space along both axes."""
        rows, columns = self.grid
        near = [torch.arange(n, device=self.csm.device) for n in (rows, columns)]
        down, across = (torch.minimum(k, n - k) <= reach for k, n in zip(near, (rows, columns), strict=True))
        return self._take(down[:, None] & across) & self._sampled

    def displace(self, kspace: torch.Tensor, offset: Offset) -> torch.Tensor:
        """k-space (arranged) of the same object on pixel centres moved by `offset` ``(rows, columns)`` in pixels."""
        return kspace * self._ramp(offset)

    def displaced(self, offset: Offset) -> Self:
        """The operator on images sampled at pixel centres moved by `offset`, its coil maps interpolated there."""
        csm = self.csm
        for axis, step in zip((-2, -1), offset, strict=True):
            neighbour = csm.roll(-1 if step > 0 else 1, axis)
            csm = torch.lerp(csm, neighbour, abs(step))
        return self._like(csm, self._sampled)

    def restricted(self, kept: torch.Tensor) -> Self:
        """The operator to those samples that are in `kept` ``(lines, columns)``; the range has the same shape."""
        return self._like(self.csm, self._sampled & kept)

    def with_maps(self, csm: torch.Tensor) -> Self:
        """The operator to the same samples with other coil maps, of any number of coils and sets."""
        other = self._like(csm, self._sampled)
        other.domain_shape = (*csm.shape[:-3], *self.grid)
        other.range_shape = (csm.shape[-3], *self.range_shape[1:])
        return other

    @staticmethod
    def stacked(operators: Sequence["CartesianSense"]) -> "CartesianSense":
        """One operator for several slices: images ``(slices, n, *domain_shape)``, any n, each slice with its own maps.

        Raises ValueError unless all have the same samples and as many sets of maps.
        """
        first = operators[0]
        if any(not torch.equal(first.mask, other.mask) for other in operators):
            raise ValueError("slices in one operator must have the same samples")
        if any(first.domain_shape != other.domain_shape for other in operators):
            raise ValueError("slices in one operator must have as many sets of coil maps")
        return first._like(torch.stack([operator.csm for operator in operators])[:, None], first._sampled)

    def _like(self, csm: torch.Tensor, sampled: torch.Tensor) -> Self:
        other = copy.copy(self)
        other._set(csm, self._lines, sampled)
        return other

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """``(..., *domain_shape)`` to ``(..., *range_shape)``."""
        rows_transformed = torch.fft.fft(self._coil_images(image), dim=-2, norm="ortho")
        return self._kept(torch.fft.fft(self._take(rows_transformed), dim=-1, norm="ortho"))

    def adjoint(self, kspace: torch.Tensor) -> torch.Tensor:
        """``(..., *range_shape)`` to ``(..., *domain_shape)``."""
        lines = torch.fft.ifft(self._kept(kspace), dim=-1, norm="ortho")
        return self._combined(self._placed(lines))

    def gram(self, image: torch.Tensor) -> torch.Tensor:
        """``adjoint(forward(image))``; of whole lines, without the readout transform."""
        if not self._whole_lines:
            return self.adjoint(self.forward(image))
        return self._combined(torch.fft.fft(self._coil_images(image), dim=-2, norm="ortho") * self._sampled_rows)

    def _coil_images(self, image: torch.Tensor) -> torch.Tensor:
        """C x, ``(..., coils, rows, columns)``."""
        parts = self.csm * image.unsqueeze(-3)
        return parts if len(self.domain_shape) == 2 else parts.sum(-4)

    def _combined(self, rows_transformed: torch.Tensor) -> torch.Tensor:
        """C^H of the coil images whose rows are transformed."""
        images = torch.fft.ifft(rows_transformed, dim=-2, norm="ortho")
        return (self._conj * (images if len(self.domain_shape) == 2 else images.unsqueeze(-4))).sum(-3)

    def _take(self, full: torch.Tensor) -> torch.Tensor:
        """The rows that the range has."""
        return full.index_select(-2, self._lines)

    def _placed(self, lines: torch.Tensor) -> torch.Tensor:
        """The range's lines ``(..., lines, columns)`` among all rows; the others are zero."""
        return lines.new_zeros(*lines.shape[:-2], *self.grid).index_copy_(-2, self._lines, lines)

    def _kept(self, kspace: torch.Tensor) -> torch.Tensor:
        return kspace if self._whole_lines else kspace * self._sampled

    def _ramp(self, offset: Offset) -> torch.Tensor:
        """exp(2 pi i k.offset), k in cycles per pixel: what moving the pixel centres by `offset` does to k-space."""
        cycles = [torch.fft.fftfreq(n, dtype=torch.float64, device=self.csm.device) for n in self.grid]
        phase = (2 * math.pi * offset[0] * cycles[0])[:, None] + 2 * math.pi * offset[1] * cycles[1]
        return self._take(torch.polar(torch.ones_like(phase), phase).to(torch.complex64))


def displace_image(image: torch.Tensor, offset: Offset) -> torch.Tensor:
    """`image` ``(..., rows, columns)``, Fourier-interpolated at pixel centres moved by `offset` ``(rows, columns)``."""
    kspace = torch.fft.fft2(image)
    for axis, step in zip((-2, -1), offset, strict=True):
        cycles = torch.fft.fftfreq(image.shape[axis], dtype=torch.float64, device=image.device)
        ramp = torch.polar(torch.ones_like(cycles), 2 * math.pi * step * cycles).to(image.dtype)
        kspace = kspace * (ramp[:, None] if axis == -2 else ramp)
    return torch.fft.ifft2(kspace)
