"""Readouts onto a grid of 2-D problems, without readout oversampling; the fully sampled centre of such a grid."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

from inrecon.frame import Geometry, RawFrame, Readouts

# Coil maps are smooth: a wider block costs time and tells nothing more about them.
WIDEST_BLOCK = 48
NARROWEST_BLOCK = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """`kspace` ``(batch, coils, rows, columns)``, centred, zero where `mask` ``(rows, columns)`` is False."""

    kspace: torch.Tensor
    mask: torch.Tensor
    axes: Literal["yx", "zy"]

    def mixed(self, matrix: torch.Tensor) -> Grid:
        """The grid with its coils mixed by `matrix` ``(coils out, coils in)``."""
        return dataclasses.replace(self, kspace=torch.einsum("vc,bcrk->bvrk", matrix, self.kspace))


def width(frame: RawFrame) -> int:
    """Pixels along x: those of the recon field of view, unless a 2-D scan has partial echoes.

    Cropping such readouts would spread the missing samples over those beside them: their oversampling stays.
    """
    parts = [frame.imaging] if frame.calibration is None else [frame.imaging, frame.calibration]
    whole = frame.geometry.encoded_matrix[2] > 1 or all(part.acquired.all() for part in parts)
    return frame.geometry.readout_size if whole else frame.geometry.encoded_matrix[0]


def gridded(
    readouts: Readouts,
    geometry: Geometry,
    *,
    x: int,
    device: torch.device | str,
    mixing: torch.Tensor | None = None,
) -> Grid:
    """One problem in ``(y, x)`` for a 2-D scan, one in ``(z, y)`` for each of `x` pixels of a 3-D scan.

    The readout is cropped to the central `x` pixels in image space; a 3-D scan's stays there. The coils are mixed by
    `mixing` ``(coils out, coils in)`` first, if that is given.
    """
    encoded_x, y, z = geometry.encoded_matrix
    kspace = torch.from_numpy(readouts.kspace).to(device)
    if mixing is not None:
        kspace = torch.einsum("vc,crk->vrk", mixing, kspace)
    acquired = torch.from_numpy(readouts.acquired).to(device)
    lines = torch.from_numpy(readouts.lines).to(device)
    if z == 1:
        samples = kspace * acquired if x == encoded_x else _fft(_crop(_ifft(kspace), x))
        grid = samples.new_zeros(len(kspace), y, x)
        grid[:, lines[:, 1]] = samples
        mask = torch.zeros(y, x, dtype=torch.bool, device=grid.device)
        mask[lines[:, 1]] = acquired[:, :x]
        return Grid(kspace=grid[None], mask=mask, axes="yx")
    samples = _crop(_ifft(kspace), x)
    volume = samples.new_zeros(len(kspace), z, y, x)
    volume[:, lines[:, 0], lines[:, 1]] = samples
    mask = torch.zeros(z, y, dtype=torch.bool, device=volume.device)
    mask[lines[:, 0], lines[:, 1]] = True
    return Grid(kspace=volume.permute(3, 0, 1, 2).contiguous(), mask=mask, axes="zy")


def centre_block(grid: Grid) -> Grid | None:
    """The largest fully sampled rectangle around the centre, at most 48 a side; None if it is narrower than 6.

    Its own centre, ``n // 2`` of its size, is the centre of k-space.
    """
    rows, columns = grid.mask.shape
    best: tuple[slice, slice] | None = None
    area = 0
    for height in range(NARROWEST_BLOCK, min(rows, WIDEST_BLOCK) + 1):
        down = _around_centre(rows, height)
        width = _widest_run(grid.mask[down].all(0))
        if width >= NARROWEST_BLOCK and height * width > area:
            area, best = height * width, (down, _around_centre(columns, width))
    if best is None:
        return None
    down, across = best
    return dataclasses.replace(grid, kspace=grid.kspace[:, :, down, across], mask=grid.mask[down, across])


def _around_centre(n: int, size: int) -> slice:
    start = n // 2 - size // 2
    return slice(start, start + size)


def _widest_run(sampled: torch.Tensor) -> int:
    """The largest size, up to 48, of an unbroken run of `sampled` ``(n,)`` whose centre is that of k-space."""
    n = len(sampled)
    for size in range(min(n, WIDEST_BLOCK), 0, -1):
        if bool(sampled[_around_centre(n, size)].all()):
            return size
    return 0


def _crop(image: torch.Tensor, x: int) -> torch.Tensor:
    """The central `x` samples of the last axis."""
    return image[..., _around_centre(image.shape[-1], x)]


def _ifft(kspace: torch.Tensor) -> torch.Tensor:
    """Centred unitary transform of the last axis."""
    image = torch.fft.ifft(torch.fft.ifftshift(kspace, dim=-1), norm="ortho")
    centred: torch.Tensor = torch.fft.fftshift(image, dim=-1)
    return centred


def _fft(image: torch.Tensor) -> torch.Tensor:
    kspace = torch.fft.fft(torch.fft.ifftshift(image, dim=-1), norm="ortho")
    centred: torch.Tensor = torch.fft.fftshift(kspace, dim=-1)
    return centred
