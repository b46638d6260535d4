"""Coil compression (Huang et al., Magn Reson Imaging 26:133-141, 2008)."""

from __future__ import annotations

import torch


def compression_matrix(kspace: torch.Tensor, *, energy: float, most: int) -> torch.Tensor:
    """Unitary rows ``(virtual coils, coils)``: the principal components that keep `energy`, at most `most` of them.

    `kspace` ``(batch, coils, rows, columns)``. A full set of components is a rotation: white noise stays white.
    """
    samples = kspace.transpose(0, 1).flatten(1).to(torch.complex128)
    values, vectors = torch.linalg.eigh(samples @ samples.mH)
    kept = values.flip(0).clamp_min(0).cumsum(0) / values.clamp_min(0).sum().clamp_min(1e-300)
    count = min(int((kept < energy).sum()) + 1, most, len(values))
    components: torch.Tensor = vectors.flip(1)[:, :count].mH
    return components.to(torch.complex64).contiguous()
