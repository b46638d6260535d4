"""Cartesian SENSE: coil maps, Fourier transform, sampling."""

import math

import torch

from inrecon.operators.operator import LinearOperator

Offset = tuple[float, float]


class CartesianSense(LinearOperator):
    """A = P F C of the bilevel paper, Eq. (2), for one 2-D problem, without a shift in any call.

    `csm` ``(coils, rows, columns)``, `mask` ``(rows, columns)`` centred. The transform is unitary and centred, but its
    shifts are done once, in `arrange`: k-space is kept in the transform's own order with the phase ramp of the centred
    image origin divided out, which changes no magnitude.

    Where every sampled row is fully sampled (the usual Cartesian scan) the range is ``(coils, lines, columns)``: only
    the sampled lines exist, the readout transform runs on them alone, and `gram`, in which it cancels, leaves it out.
    Otherwise the range is ``(coils, rows, columns)``, zero where not sampled.
    """

    def __init__(self, csm: torch.Tensor, mask: torch.Tensor) -> None:
        coils, rows, columns = csm.shape
        if mask.shape != (rows, columns):
            raise ValueError(f"mask {tuple(mask.shape)} for coil maps of {rows} x {columns}")
        self.csm = csm
        self._conj = csm.conj().resolve_conj()
        self._mask = mask
        self.domain_shape = (rows, columns)
        mask = torch.fft.ifftshift(mask)
        self._lines = mask[:, 0].nonzero()[:, 0] if bool((mask.any(1) == mask.all(1)).all()) else None
        if self._lines is None:
            self.range_shape = (coils, rows, columns)
            self._sampled = mask
        else:
            self.range_shape = (coils, len(self._lines), columns)
            self._sampled = mask[self._lines]
            self._sampled_rows = mask[:, :1]

    @property
    def sampled(self) -> torch.Tensor:
        """Boolean, broadcastable to `range_shape`."""
        return self._sampled

    @property
    def positions(self) -> int:
        """Coils times pixels."""
        return self.csm.numel()

    def arrange(self, kspace: torch.Tensor) -> torch.Tensor:
        """Centred k-space ``(coils, rows, columns)`` into this operator's range."""
        rows, columns = self.domain_shape
        centre = self._ramp((-(rows // 2), -(columns // 2)))
        return self._take(torch.fft.ifftshift(kspace, dim=(-2, -1))) * self._sampled * centre

    def displace(self, kspace: torch.Tensor, offset: Offset) -> torch.Tensor:
        """k-space (arranged) of the same object on pixel centres moved by `offset` ``(rows, columns)`` in pixels."""
        return kspace * self._ramp(offset)

    def displaced(self, offset: Offset) -> "CartesianSense":
        """The operator on images sampled at pixel centres moved by `offset`, its coil maps interpolated there."""
        csm = self.csm
        for axis, step in zip((-2, -1), offset, strict=True):
            neighbour = csm.roll(-1 if step > 0 else 1, axis)
            csm = torch.lerp(csm, neighbour, abs(step))
        return CartesianSense(csm, self._mask)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """``(rows, columns)`` to `range_shape`."""
        rows_transformed = torch.fft.fft(self.csm * image, dim=-2, norm="ortho")
        kspace = torch.fft.fft(self._take(rows_transformed), dim=-1, norm="ortho")
        return kspace if self._lines is not None else kspace * self._sampled

    def adjoint(self, kspace: torch.Tensor) -> torch.Tensor:
        """`range_shape` to ``(rows, columns)``."""
        sampled = kspace if self._lines is not None else kspace * self._sampled
        rows_transformed = torch.fft.ifft(sampled, dim=-1, norm="ortho")
        if self._lines is not None:
            rows_transformed = torch.zeros_like(self.csm).index_copy_(-2, self._lines, rows_transformed)
        return (self._conj * torch.fft.ifft(rows_transformed, dim=-2, norm="ortho")).sum(0)

    def gram(self, image: torch.Tensor) -> torch.Tensor:
        """``adjoint(forward(image))``; of fully sampled lines, without the readout transform."""
        if self._lines is None:
            return self.adjoint(self.forward(image))
        rows_transformed = torch.fft.fft(self.csm * image, dim=-2, norm="ortho") * self._sampled_rows
        return (self._conj * torch.fft.ifft(rows_transformed, dim=-2, norm="ortho")).sum(0)

    def _take(self, full: torch.Tensor) -> torch.Tensor:
        """The rows that the range has."""
        return full if self._lines is None else full.index_select(-2, self._lines)

    def _ramp(self, offset: Offset) -> torch.Tensor:
        """exp(2 pi i k.offset), k in cycles per pixel: what moving the pixel centres by `offset` does to k-space."""
        cycles = [torch.fft.fftfreq(n, dtype=torch.float64, device=self.csm.device) for n in self.domain_shape]
        phase = (2 * math.pi * offset[0] * cycles[0])[:, None] + 2 * math.pi * offset[1] * cycles[1]
        return self._take(torch.polar(torch.ones_like(phase), phase).to(torch.complex64))


def displace_image(image: torch.Tensor, offset: Offset) -> torch.Tensor:
    """`image` ``(rows, columns)``, Fourier-interpolated at pixel centres moved by `offset` ``(rows, columns)``."""
    kspace = torch.fft.fft2(image)
    for axis, step in zip((-2, -1), offset, strict=True):
        cycles = torch.fft.fftfreq(image.shape[axis], dtype=torch.float64, device=image.device)
        ramp = torch.polar(torch.ones_like(cycles), 2 * math.pi * step * cycles).to(torch.complex64)
        kspace = kspace * (ramp[:, None] if axis == -2 else ramp)
    return torch.fft.ifft2(kspace)
