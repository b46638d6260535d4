"""Coil maps without a calibration block: low-resolution coil images over their root sum of squares."""

from __future__ import annotations

import torch

from inrecon.calibrate.fourier import image_on_grid
from inrecon.errors import CalibrationFailed
from inrecon.frame import CoilMaps

_NARROWEST, _WIDEST = 4, 16
_SUPPORT = 0.05


def smooth_sum_of_squares(kspace: torch.Tensor, mask: torch.Tensor) -> CoilMaps:
    """Maps from the central k-space that is there; a fall-back that needs no fully sampled block.

    `kspace` ``(coils, rows, columns)`` complex, centred, zero where `mask` ``(rows, columns)`` is False. A Hann window
    as wide as the samples around the centre are contiguous (between 4 and 16 to each side) makes the coil images
    smooth; the support is where their root sum of squares exceeds 5 % of its maximum (Roemer et al., Magn Reson Med
    16:192-225, 1990, with the low-resolution images for the sensitivities). Raises `CalibrationFailed` if k-space is
    zero everywhere or not finite.
    """
    largest = float(kspace.abs().max()) if kspace.ndim == 3 and kspace.numel() else 0.0
    if not 0 < largest < float("inf"):
        raise CalibrationFailed(f"k-space is zero or not finite: its largest magnitude is {largest}")
    normalised = kspace.to(torch.complex64) / largest
    smooth = normalised * _window(mask).to(kspace.device)
    if not bool(smooth.any()):
        smooth = normalised
    images = image_on_grid(smooth, (kspace.shape[1], kspace.shape[2]))
    root_sum_of_squares = torch.linalg.vector_norm(images, dim=0)
    support = root_sum_of_squares > _SUPPORT * root_sum_of_squares.max()
    csm = images / root_sum_of_squares.clamp_min(1e-30)
    return CoilMaps(csm=csm * support, support=support, estimated_by="smooth sum of squares")


def _window(mask: torch.Tensor) -> torch.Tensor:
    """Separable Hann window ``(rows, columns)`` over the contiguous samples around the centre of `mask`."""
    rows, columns = mask.shape
    down = _hann(mask[:, columns // 2])
    across = _hann(mask[rows // 2])
    return down[:, None] * across


def _hann(sampled: torch.Tensor) -> torch.Tensor:
    """Hann window ``(n,)`` around ``n // 2``, zero from the first sample on that is missing to either side."""
    n = len(sampled)
    distance = (torch.arange(n, device=sampled.device) - n // 2).abs()
    missing = distance[~sampled]
    reach = int(missing.min()) if len(missing) else _WIDEST
    half_width = min(max(reach, _NARROWEST), _WIDEST)
    window = torch.cos(distance * (torch.pi / 2 / half_width)) ** 2
    return window * (distance < half_width)
