"""Cartesian SENSE of whole readouts, column by column of the image."""

from __future__ import annotations

from functools import cached_property

import torch

from inrecon.operators.cartesian import CartesianSense, Offset

PIECE = 32
"""How many columns are inverted at a time."""


class ColumnSense(CartesianSense):
    """`CartesianSense` with readouts in image space: their unitary transform is done once, in `arrange`.

    What is sampled, ``(lines, columns)``, then means lines at columns of the image. The columns are problems of their
    own: `gram` is a matrix of rows by rows in each (times the sets of maps), so Tikhonov's problem has a closed form.
    """

    @classmethod
    def of(cls, operator: CartesianSense) -> ColumnSense:
        """The operator to the same samples; raises ValueError unless `operator` samples whole readouts."""
        if not operator.samples_whole_lines:
            raise ValueError("columns are problems of their own only where readouts are whole")
        return cls(operator.csm, operator.mask)

    def arrange(self, kspace: torch.Tensor) -> torch.Tensor:
        """Centred k-space ``(coils, rows, columns)`` into this operator's range."""
        rows, columns = self.grid
        whole = self._take(torch.fft.ifftshift(kspace, dim=(-2, -1))) * self._ramp((-(rows // 2), -(columns // 2)))
        return torch.fft.ifft(whole, dim=-1, norm="ortho") * self._sampled

    def centred(self, kspace: torch.Tensor) -> torch.Tensor:
        """The inverse of `arrange`: centred k-space ``(..., coils, rows, columns)``."""
        return super().centred(torch.fft.fft(kspace * self._sampled, dim=-1, norm="ortho"))

    def displace(self, kspace: torch.Tensor, offset: Offset) -> torch.Tensor:
        """The data (arranged) of the same object on pixel centres moved by `offset` ``(rows, columns)`` in pixels."""
        moved = super().displace(torch.fft.fft(kspace, dim=-1, norm="ortho"), offset)
        return torch.fft.ifft(moved, dim=-1, norm="ortho")

    def central(self, reach: int) -> torch.Tensor:
        """Boolean ``(lines, columns)``: the lines up to `reach` from the centre."""
        rows, columns = self.grid
        distance = torch.minimum(self._lines, rows - self._lines)
        return (distance <= reach)[:, None].expand(-1, columns)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """``(..., *domain_shape)`` to ``(..., *range_shape)``."""
        return self._kept(self._take(torch.fft.fft(self._coil_images(image), dim=-2, norm="ortho")))

    def adjoint(self, kspace: torch.Tensor) -> torch.Tensor:
        """``(..., *range_shape)`` to ``(..., *domain_shape)``."""
        return self._combined(self._placed(self._kept(kspace)))

    def _set(self, csm: torch.Tensor, lines: torch.Tensor, sampled: torch.Tensor) -> None:
        super()._set(csm, lines, sampled)
        self.__dict__.pop("box", None)  # of other maps

    @cached_property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns between which coil maps are not zero: beyond them A^H A is."""
        seen = self.csm.reshape(-1, *self.grid).any(0)
        both = (seen.any(axis).nonzero()[:, 0].tolist() or [0] for axis in (1, 0))
        down, across = (slice(found[0], found[-1] + 1) for found in both)
        return down, across

    def grams(self) -> torch.Tensor:
        """A^H A of each column of the `box`, ``(columns, n, n)`` with n = sets times rows.

        The Fourier part is a Gram matrix of sampled waves, the same for all coils; the maps' part, a correlation of
        rows, is the same for all samples; this is their elementwise product.
        """
        return self._grams(self.box[1])

    def _grams(self, across: slice) -> torch.Tensor:
        rows, down = self.grid[0], self.box[0]
        place = torch.arange(rows, device=self.csm.device)[down]
        angle = torch.outer(self._lines, place) % rows * (-2 * torch.pi / rows)
        waves = torch.polar(torch.full_like(angle, rows**-0.5), angle).to(self.csm.dtype)
        kept = self._sampled[:, :1] if self._whole_lines else self._sampled[:, across]
        fourier = torch.einsum("ly,lx,lz->xyz", waves.conj(), kept.to(waves.dtype), waves)
        maps = self.csm.reshape(-1, *self.csm.shape[-3:])[..., down, across].permute(3, 1, 0, 2).flatten(2)
        correlation = torch.einsum("xcy,xcz->xyz", maps.conj(), maps)
        return fourier.repeat(1, self.sets, self.sets) * correlation

    def _inside(self, matrices: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """`matrices` ``(columns, n, n)`` of the `box` times the columns of `images` ``(..., *domain_shape)``, in the
        box."""
        inside = images[..., *self.box]
        stacked = inside.reshape(-1, matrices.shape[-1], inside.shape[-1])
        return torch.einsum("xyz,bzx->byx", matrices, stacked).reshape(inside.shape)

    def inverses(self, weight: float) -> torch.Tensor:
        """(A^H A + weight)^-1 of each column of the `box`, ``(columns, n, n)``; beyond it, it is 1 / weight."""
        first, last = self.box[1].start, self.box[1].stop
        # In pieces, for the factors on the way are as large as the inverses.
        pieces = (self._grams(slice(at, min(at + PIECE, last))) for at in range(first, last, PIECE))
        return torch.cat([_inverse(grams, weight) for grams in pieces])

    def solve(self, inverses: torch.Tensor, right_hand_side: torch.Tensor, *, weight: float) -> torch.Tensor:
        """(A^H A + weight)^-1 b, by the `inverses` of that weight."""
        solution = right_hand_side / weight
        solution[..., *self.box] = self._inside(inverses, right_hand_side)
        return solution


def _inverse(grams: torch.Tensor, weight: float) -> torch.Tensor:
    grams.diagonal(dim1=-2, dim2=-1).add_(weight)
    return torch.cholesky_inverse(torch.linalg.cholesky(grams))
