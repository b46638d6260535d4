"""Noise and the ISMRMRD acquisitions that carry it."""

from __future__ import annotations

from collections.abc import Iterator

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from inrecon.simulate.header import RELATIVE_NOISE_BANDWIDTH

Array = NDArray[np.complex128]
KSpace = NDArray[np.complex64] | NDArray[np.complex128]

NOISE_DWELL_US = 4.0


def noise_colour(coils: int, rng: np.random.Generator) -> Array:
    """A triangular ``(coils, coils)`` matrix that makes white samples correlated, their mean variance 1.

    The covariance is that of sources of unequal power, one a coil, of which every coil hears a random part.
    """
    # A random matrix's eigenvalues grow with the square root of its size, and 1 would make the mixing singular.
    mixing = np.eye(coils) + 0.15 * np.sqrt(8 / max(coils, 8)) * _white((coils, coils), rng)
    covariance = (mixing * rng.uniform(0.8, 1.2, coils)) @ mixing.conj().T
    colour: Array = np.linalg.cholesky(covariance / np.trace(covariance).real * coils)
    return colour


def _white(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Complex Gaussian noise of unit variance."""
    samples: Array = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)
    return samples


def noise_readouts(
    count: int, *, samples: int, colour: Array, dwell_us: float, rng: np.random.Generator
) -> Iterator[ismrmrd.Acquisition]:
    """`count` readouts of noise alone that fit imaging readouts of `dwell_us` with noise `colour`.

    Noise power goes with the receiver's bandwidth, one over the dwell time, and the flanks of the receiver's filter
    leave a noise readout the part `RELATIVE_NOISE_BANDWIDTH` of it: Gadgetron's NoiseAdjustGadget undoes just that.
    """
    factor = np.sqrt(dwell_us / NOISE_DWELL_US * RELATIVE_NOISE_BANDWIDTH)
    for _ in range(count):
        acquisition = _acquisition(factor * colour @ _white((len(colour), samples), rng), dwell_us=NOISE_DWELL_US)
        acquisition.setFlag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        yield acquisition


def slice_readouts(
    kspace: KSpace,
    mask: NDArray[np.bool_],
    *,
    calibration: NDArray[np.bool_],
    colour: Array,
    dwell_us: float,
    rng: np.random.Generator,
) -> Iterator[ismrmrd.Acquisition]:
    """The lines of one slice that `mask` picks, with noise and flags.

    `kspace` ``(coils, lines, samples)`` free of noise; encoding step 1 counts lines of it; those in `calibration` are
    flagged as calibration and imaging.
    """
    lines = np.flatnonzero(mask)
    coils, _, samples = kspace.shape
    for line in lines:
        acquisition = _acquisition(kspace[:, line] + colour @ _white((coils, samples), rng), dwell_us=dwell_us)
        acquisition.idx.kspace_encode_step_1 = int(line)
        if calibration[line]:
            acquisition.setFlag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
        if line == lines[0]:
            acquisition.setFlag(ismrmrd.ACQ_FIRST_IN_SLICE)
        if line == lines[-1]:
            acquisition.setFlag(ismrmrd.ACQ_LAST_IN_SLICE)
        yield acquisition


def _acquisition(data: Array, *, dwell_us: float) -> ismrmrd.Acquisition:
    """A readout ``(coils, samples)`` of an axial slice, its centre in the middle."""
    acquisition = ismrmrd.Acquisition.from_array(data.astype(np.complex64))
    acquisition.version = 1
    acquisition.sample_time_us = dwell_us
    acquisition.available_channels = len(data)
    acquisition.center_sample = data.shape[1] // 2
    acquisition.read_dir[0] = acquisition.phase_dir[1] = acquisition.slice_dir[2] = 1.0
    return acquisition
