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
class NoiseOfFrame:
    """`covariance` ``(coils, coils)`` of a complex imaging sample, and what it is known by; `level` is the standard
    deviation that whitened noise has, by corners at most; None if nothing is known."""

    covariance: NDArray[np.complex128]
    level: float | None
    known_by: Literal["noise readouts", "corners", "none"]

    @property
    def gains(self) -> NDArray[np.float64]:
        """Diagonal ``(coils kept, coils)`` that brings each coil to noise of variance 1 and drops dead coils.

        By corners coils stay as they are: their signal would count as noise, and strong coils for weak ones.
        """
        deviation = np.sqrt(self.covariance.diagonal().real)
        alive = deviation > 0
        gain = np.divide(1, deviation, out=np.zeros_like(deviation), where=alive)
        if self.known_by != "noise readouts":
            gain = alive.astype(np.float64)
        return np.diag(gain)[alive]

    def whitening(self, mixing: NDArray[np.complex128]) -> NDArray[np.complex128]:
        """Inverse Cholesky factor that makes the noise of coils mixed by `mixing` ``(coils out, coils)`` white, with
        standard deviation sqrt(2): 1 for the real and for the imaginary part, as Gadgetron has it."""
        factor = np.linalg.cholesky(mixing @ self.covariance @ mixing.conj().T)
        return (sqrt(2) * np.linalg.inv(factor)).astype(np.complex128)


def noise_of(raw: RawFrame) -> NoiseOfFrame:
    """The noise of `raw`: by its noise readouts, else by the corners of its k-space, else taken as white.

    Corners hold signal too: what they give is an upper estimate. (Kellman and McVeigh, Magn Reson Med 54:1439-1447,
    2005.)
    """
    if raw.noise is not None:
        covariance = _at_imaging_bandwidth(raw.noise, raw.sample_time_us)
        regular = _regular(covariance, samples=raw.noise.samples, source="the noise readouts")
        if regular is not None:
            return NoiseOfFrame(covariance=regular, level=sqrt(2 / raw.average_count), known_by="noise readouts")
        observe(Warned(text="the noise readouts are all zero; noise is estimated from the corners of k-space"))
    corners = _outermost_samples(raw.imaging, raw.geometry.encoded_matrix)
    regular = _regular(corners @ corners.conj().T / corners.shape[1], samples=None, source="the corners of k-space")
    if regular is not None:
        return NoiseOfFrame(covariance=regular, level=sqrt(2), known_by="corners")
    observe(Warned(text="the corners of k-space are zero: noise cannot be told, coils are not prewhitened"))
    return NoiseOfFrame(covariance=np.eye(raw.coils, dtype=np.complex128), level=None, known_by="none")


def _at_imaging_bandwidth(noise: Noise, sample_time_us: float) -> NDArray[np.complex128]:
    """Noise covariance as the imaging readouts have it: variance goes with the bandwidth of a sample.

    A dwell time of 0 says that it is not known; the noise readouts are then taken to be like the imaging ones.
    """
    known = noise.sample_time_us > 0 and sample_time_us > 0 and noise.relative_bandwidth > 0
    ratio = noise.sample_time_us / (sample_time_us * noise.relative_bandwidth) if known else 1.0
    return noise.covariance * ratio


def _regular(covariance: NDArray[np.complex128], *, samples: int | None, source: str) -> NDArray[np.complex128] | None:
    """`covariance` with dead coils zeroed, safe to invert on the others; None if no coil has any noise.

    Worked out on the correlation matrix, so gains of the coils do not matter. With fewer `samples` than twice the
    coils, or close to singular, or with `samples` None for an estimate that holds signal, correlations are shrunk by a
    tenth: the condition number is then at most ten times the number of coils.
    """
    variance = covariance.diagonal().real
    alive = variance > _DEAD * variance.max()
    coils = int(alive.sum())
    if coils == 0:
        return None
    if coils < len(variance):
        dead = len(variance) - coils
        observe(Warned(text=f"{dead} of {len(variance)} coils have no noise in {source} and are left out as dead"))
    deviation = np.sqrt(np.where(alive, variance, 0))
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=alive)
    correlation = covariance * np.outer(scale, scale)
    living = correlation[np.ix_(alive, alive)]
    singular = samples is not None and (samples < 2 * coils or bool(np.linalg.cond(living) > _WORST_CONDITION))
    if singular:
        observe(Warned(text=f"the noise covariance of {samples} samples is close to singular and was regularised"))
    if singular or samples is None:
        correlation = (1 - _SHRINKAGE) * correlation + _SHRINKAGE * np.diag(alive.astype(np.float64))
    return correlation * np.outer(deviation, deviation)


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
