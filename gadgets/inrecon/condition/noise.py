"""The noise of a scan and the matrix that whitens it. Small numbers of coils: numpy, complex128."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from inrecon.events import Warned, observe
from inrecon.frame import Noise, RawFrame, Readouts

_DEAD = 1e-12
_CORNER_SAMPLES = 20
_CORNER_FRACTION = 0.02
_SHRINKAGE = 0.1
_WORST_CONDITION = 1e6


@dataclass(frozen=True, kw_only=True)
class Whitening:
    """`matrix` ``(coils kept, coils)`` to be multiplied to the data; what results has noise of covariance
    ``noise_level**2`` times identity. Coils whose noise variance is zero are dead and not kept."""

    matrix: NDArray[np.complex128]
    noise_level: float | None
    by: Literal["noise readouts", "corners", "none"]


def whitening(raw: RawFrame) -> Whitening:
    """The prewhitening of `raw`: from its noise readouts, else from the corners of its k-space, else none at all.

    By noise readouts, real and imaginary parts come out with standard deviation 1 for a single average, as Gadgetron
    has it (Kellman and McVeigh, Magn Reson Med 54:1439-1447, 2005), so `noise_level` is ``sqrt(2 / averages)``. By
    corners it is an upper estimate, as the corners hold signal too.
    """
    if raw.noise is not None:
        covariance = _at_imaging_bandwidth(raw.noise, raw.sample_time_us)
        factor = _whitening_factor(covariance, samples=raw.noise.samples, source="the noise readouts")
        if factor is not None:
            return Whitening(matrix=sqrt(2) * factor, noise_level=sqrt(2 / raw.average_count), by="noise readouts")
        observe(Warned(text="the noise readouts are all zero; noise is estimated from the corners of k-space"))
    corners = _outermost_samples(raw.imaging, raw.geometry.encoded_matrix)
    covariance = corners @ corners.conj().T / corners.shape[1]
    factor = _whitening_factor(covariance, samples=None, source="the corners of k-space")
    if factor is None:
        observe(Warned(text="the corners of k-space are zero: noise cannot be told, coils are not prewhitened"))
        return Whitening(matrix=np.eye(raw.coils, dtype=np.complex128), noise_level=None, by="none")
    return Whitening(matrix=sqrt(2) * factor, noise_level=sqrt(2), by="corners")


def _at_imaging_bandwidth(noise: Noise, sample_time_us: float) -> NDArray[np.complex128]:
    """Noise covariance as the imaging readouts have it: variance goes with the bandwidth of a sample.

    A dwell time of 0 says that it is not known; the noise readouts are then taken to be like the imaging ones.
    """
    known = noise.sample_time_us > 0 and sample_time_us > 0 and noise.relative_bandwidth > 0
    ratio = noise.sample_time_us / (sample_time_us * noise.relative_bandwidth) if known else 1.0
    return noise.covariance * ratio


def _whitening_factor(
    covariance: NDArray[np.complex128], *, samples: int | None, source: str
) -> NDArray[np.complex128] | None:
    """Inverse Cholesky factor ``(coils kept, coils)`` of `covariance`, or None if no coil has any noise.

    Worked out on the correlation matrix, so gains of the coils do not matter. With fewer `samples` than twice the
    coils, or close to singular, or with `samples` None for an estimate that holds signal, correlations are shrunk by a
    tenth: the condition number is then at most ten times the number of coils.
    """
    variance = covariance.diagonal().real
    alive = np.flatnonzero(variance > _DEAD * variance.max())
    if not len(alive):
        return None
    if len(alive) < len(variance):
        dead = len(variance) - len(alive)
        observe(Warned(text=f"{dead} of {len(variance)} coils have no noise in {source} and are left out as dead"))
    deviation = np.sqrt(variance[alive])
    correlation = covariance[np.ix_(alive, alive)] / np.outer(deviation, deviation)
    singular = samples is not None and (
        samples < 2 * len(alive) or bool(np.linalg.cond(correlation) > _WORST_CONDITION)
    )
    if singular:
        observe(Warned(text=f"the noise covariance of {samples} samples is close to singular and was regularised"))
    if singular or samples is None:
        correlation = (1 - _SHRINKAGE) * correlation + _SHRINKAGE * np.eye(len(alive))
    factor = np.zeros((len(alive), len(variance)), dtype=np.complex128)
    factor[:, alive] = np.linalg.inv(np.linalg.cholesky(correlation)) / deviation
    return factor


def _outermost_samples(readouts: Readouts, matrix: tuple[int, int, int]) -> NDArray[np.complex128]:
    """The acquired samples ``(coils, samples)`` at the largest k-space radius, at least 20 a coil if there are.

    `matrix` is the encoded ``(x, y, z)``; the radius counts each encoded axis from 0 to 1.
    """
    coils = len(readouts.kspace)
    x, y, z = matrix
    radius = (
        _from_centre(np.arange(x), x)[None]
        + _from_centre(readouts.lines[:, 1], y)[:, None]
        + _from_centre(readouts.lines[:, 0], z)[:, None]
    )
    acquired = np.flatnonzero(readouts.acquired)
    count = min(len(acquired), max(_CORNER_SAMPLES * coils, round(_CORNER_FRACTION * len(acquired))))
    outermost = acquired[np.argpartition(radius.ravel()[acquired], -count)[-count:]]
    samples: NDArray[np.complex128] = readouts.kspace.reshape(coils, -1)[:, outermost].astype(np.complex128)
    return samples


def _from_centre(position: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Squared distance from the centre of k-space, 1 at its edge."""
    return ((position - size // 2) / max(size / 2, 1)) ** 2
