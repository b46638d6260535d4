"""One acquisition: what kind it is, and where its samples lie along the encoded readout."""

import math
from dataclasses import dataclass
from types import MappingProxyType

import ismrmrd
import numpy as np

from inrecon.errors import InvalidFrame
from inrecon.frame import Complex


def mask(flag: int) -> int:
    """The bit of an ISMRMRD acquisition flag, which are numbered from 1."""
    return 1 << (flag - 1)


NOISE = mask(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
CALIBRATION = mask(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
REVERSE = mask(ismrmrd.ACQ_IS_REVERSE)
LAST_IN_SLICE = mask(ismrmrd.ACQ_LAST_IN_SLICE)
LAST_IN_REPETITION = mask(ismrmrd.ACQ_LAST_IN_REPETITION)
LAST_IN_MEASUREMENT = mask(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
ENDS = LAST_IN_SLICE | LAST_IN_REPETITION | LAST_IN_MEASUREMENT
"""The flags that may end frames."""

NOT_IMAGING = MappingProxyType(
    {
        mask(ismrmrd.ACQ_IS_NAVIGATION_DATA): "navigation",
        mask(ismrmrd.ACQ_IS_PHASECORR_DATA): "phase correction",
        mask(ismrmrd.ACQ_IS_HPFEEDBACK_DATA): "high-priority feedback",
        mask(ismrmrd.ACQ_IS_DUMMYSCAN_DATA): "dummy scan",
        mask(ismrmrd.ACQ_IS_RTFEEDBACK_DATA): "real-time feedback",
        mask(ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA): "surface coil correction",
        mask(ismrmrd.ACQ_IS_PHASE_STABILIZATION_REFERENCE): "phase stabilisation reference",
        mask(ismrmrd.ACQ_IS_PHASE_STABILIZATION): "phase stabilisation",
    }
)
_NOT_IMAGING_MASK = sum(NOT_IMAGING)


def purpose(flags: int) -> str | None:
    """What a readout that is not part of an image is for, or None for one that is."""
    if not flags & _NOT_IMAGING_MASK:
        return None
    return next(name for bit, name in NOT_IMAGING.items() if flags & bit)


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Samples ``(coils, count)`` in order of rising kx; the first lies at `start` of the encoded readout.

    `remark` says what had to be assumed or left out to place them.
    """

    samples: Complex
    start: int
    remark: str | None = None


def kept_samples(acquisition: ismrmrd.Acquisition) -> Complex:
    """Data ``(coils, samples)`` less `discard_pre` and `discard_post`; raises `InvalidFrame` if none or not finite."""
    data: Complex = acquisition.data
    channels, count = data.shape
    if not channels or not count:
        raise InvalidFrame(f"a readout of {channels} channels and {count} samples holds no data")
    pre, post = acquisition.discard_pre, acquisition.discard_post
    if pre + post >= count:
        raise InvalidFrame(f"discard_pre {pre} and discard_post {post} leave nothing of a readout of {count} samples")
    kept = data[:, pre : count - post] if pre or post else data
    if not np.isfinite(kept).all():
        idx = acquisition.idx
        place = f"line {idx.kspace_encode_step_1}, slice {idx.slice}, repetition {idx.repetition}"
        raise InvalidFrame(f"the readout of {place} holds values that are not finite (NaN or infinity)")
    return kept


def dwell_us(acquisition: ismrmrd.Acquisition) -> float:
    """Sample time in microseconds, 0 where the header does not tell a sensible one."""
    time = float(acquisition.sample_time_us)
    return time if 0 < time < math.inf else 0.0


def place(acquisition: ismrmrd.Acquisition, width: int) -> Placed:
    """The samples of a Cartesian readout, `center_sample` at ``width // 2`` of an encoded readout of `width`.

    A reversed readout is turned, `center_sample` with it. A `center_sample` outside the readout, or 0 where the
    readout would then not fit (nobody filled it in), counts as the middle. Samples that then lie outside are left out.
    Raises `InvalidFrame` if there are no samples, more than `width`, none inside, or values that are not finite.
    """
    samples = kept_samples(acquisition)
    count = samples.shape[1]
    if count > width:
        raise InvalidFrame(f"a readout of {count} samples does not fit the encoded matrix of {width} along the readout")
    given = acquisition.center_sample
    remark = None
    center = given - acquisition.discard_pre
    reverse = bool(acquisition.flags & REVERSE)
    if reverse:
        samples, center = samples[:, ::-1], count - 1 - center
    if given >= acquisition.data.shape[1] or (given == 0 and count > width - width // 2):
        center = count // 2
        remark = "center_sample does not lie inside its readout and is taken to be the middle"
    start = width // 2 - center
    low, high = max(-start, 0), min(count, width - start)
    if low >= high:
        raise InvalidFrame(f"a readout with center_sample {given} has no sample inside the encoded matrix of {width}")
    if high - low < count:
        remark = f"samples outside the encoded matrix of {width} along the readout are left out"
    return Placed(samples=samples[:, low:high], start=start + low, remark=remark)
