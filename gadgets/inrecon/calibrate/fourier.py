"""Fourier transforms from a few k-space samples to an image grid, as products with small matrices.

A calibration block or a kernel has some ten samples a side: a matrix product costs less than a zero-padded FFT.
"""

from __future__ import annotations

from math import pi

import torch


def fourier_matrix(samples: int, pixels: int, *, sign: int, like: torch.Tensor) -> torch.Tensor:
    """``(pixels, samples)`` of ``exp(sign 2 pi i r k / pixels)``, `r` and `k` counted from the centre ``n // 2``."""
    k = torch.arange(samples, dtype=torch.float64, device=like.device) - samples // 2
    r = torch.arange(pixels, dtype=torch.float64, device=like.device) - pixels // 2
    angle = (sign * 2 * pi / pixels) * r[:, None] * k
    return torch.polar(torch.ones_like(angle), angle).to(like.dtype)


def image_on_grid(kspace: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Images ``(coils, *shape)`` of centred k-space blocks ``(coils, rows, columns)``, up to a constant factor."""
    rows, columns = (
        fourier_matrix(n, pixels, sign=1, like=kspace) for n, pixels in zip(kspace.shape[1:], shape, strict=True)
    )
    return rows @ (kspace @ columns.mT)
