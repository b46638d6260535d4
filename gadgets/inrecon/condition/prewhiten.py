"""Noise covariance and the matrix that makes noise white."""

from __future__ import annotations

import torch

from inrecon.events import Warned, observe
from inrecon.frame import Noise

SAMPLES_A_COIL = 20
OUTERMOST = 0.02


def imaging_covariance(noise: Noise, sample_time_us: float) -> torch.Tensor:
    """Covariance ``(coils, coils)`` of a complex imaging sample, complex128 on the CPU.

    Noise variance goes with the receiver bandwidth, 1 / sample time; the noise readouts' effective bandwidth is
    `relative_bandwidth` of the nominal one. A sample time of 0 is 'not stated': no scaling. (Kellman and McVeigh 2005.)
    """
    covariance = torch.from_numpy(noise.covariance)
    if sample_time_us > 0 and noise.sample_time_us > 0:
        covariance = covariance * (noise.sample_time_us / (sample_time_us * noise.relative_bandwidth))
    return _well_conditioned(covariance, noise.samples)


def corner_covariance(kspace: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Covariance ``(coils, coils)`` of the outermost acquired samples, of least signal: an upper estimate of noise.

    `kspace` ``(batch, coils, rows, columns)``, `mask` ``(rows, columns)``. Two per cent of the samples, at least 20 a
    coil if there are as many.
    """
    rows, columns = mask.shape
    down = (torch.arange(rows, device=mask.device) - rows // 2) / rows
    across = (torch.arange(columns, device=mask.device) - columns // 2) / columns
    radius = (down[:, None].square() + across.square())[mask]
    coils = kspace.shape[1]
    count = min(max(round(OUTERMOST * len(radius)), SAMPLES_A_COIL * coils), len(radius))
    outermost = radius.argsort(descending=True, stable=True)[:count]
    samples = kspace[:, :, mask][:, :, outermost].permute(1, 0, 2).flatten(1).to(torch.complex128)
    return _well_conditioned(samples @ samples.mH / samples.shape[1], samples.shape[1])


def whitening_matrix(covariance: torch.Tensor) -> torch.Tensor:
    """W with W covariance W^H = I, complex64: the inverse of the lower Cholesky factor."""
    factor = torch.linalg.cholesky(covariance.to(torch.complex128))
    identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, identity, upper=False).to(torch.complex64)


def _well_conditioned(covariance: torch.Tensor, samples: int) -> torch.Tensor:
    """A covariance that can be inverted: silent coils get the mean variance, correlations of few data are shrunk."""
    coils = len(covariance)
    variance = covariance.diagonal().real
    mean = variance.mean()
    if not mean > 0:
        observe(Warned(text="the noise samples are all zero: k-space is not prewhitened"))
        return torch.eye(coils, dtype=torch.complex128, device=covariance.device)
    silent = variance < 1e-8 * mean
    if silent.any():
        observe(Warned(text=f"{int(silent.sum())} of {coils} coils have no noise at all: are they connected?"))
        active = (~silent).to(covariance.dtype)
        covariance = covariance * torch.outer(active, active) + torch.diag(silent * mean)
    trust = min(1.0, samples / (SAMPLES_A_COIL * coils))
    diagonal = torch.diag(covariance.diagonal())
    if trust < 1:
        observe(Warned(text=f"only {samples} noise samples for {coils} coils: their correlations are taken in part"))
    return trust * covariance + (1 - trust) * diagonal + 1e-9 * mean * torch.eye(coils, device=covariance.device)
