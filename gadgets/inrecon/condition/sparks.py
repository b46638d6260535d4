"""Sparks: single samples that something else than the object has made."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from inrecon.events import Warned, observe
from inrecon.frame import RawFrame, Readouts

STANDS_OUT = 10.0
"""By what factor, over the largest of three neighbours on either side. Of measured brains no sample comes to 3: what is
limited in space is smooth in k-space, and of noise seven samples hardly ever differ so much."""
REACH = 3
CENTRE = 2
"""Within so many samples and lines of the centre, which a large object fills alone, nothing is taken for a spark."""


def without_sparks(raw: RawFrame) -> RawFrame:
    """`raw`, its sparks replaced by the mean of the samples beside them, and the first of them announced (`Warned`).

    Samples without three acquired neighbours on either side are left alone. A grating as large as the field of view, as
    of tagged tissue, has peaks like sparks, unless readouts are oversampled.
    """
    imaging, count = _mended(raw.imaging, raw)
    calibration = raw.calibration
    if calibration is not None:
        calibration, more = _mended(calibration, raw)
        count += more
    if not count:
        return raw
    what = "1 sample is a spark" if count == 1 else f"{count} samples are sparks"
    text = f"{raw.key.in_words}: {what}, more than {STANDS_OUT:g} times what is beside it, and replaced by that"
    observe(Warned(text=text, topic="sparks"))
    return dataclasses.replace(raw, imaging=imaging, calibration=calibration)


def _mended(readouts: Readouts, raw: RawFrame) -> tuple[Readouts, int]:
    line, sample = np.nonzero(_sparks(readouts, raw))
    if not len(line):
        return readouts, 0
    kspace = readouts.kspace.copy()
    kspace[:, line, sample] = (kspace[:, line, sample - 1] + kspace[:, line, sample + 1]) / 2
    return dataclasses.replace(readouts, kspace=kspace), len(line)


def _sparks(readouts: Readouts, raw: RawFrame) -> NDArray[np.bool_]:
    """``(readouts, samples)``: where all coils together stand out from what is beside it."""
    energy = np.zeros(readouts.acquired.shape, np.float32)
    with np.errstate(over="ignore"):  # infinite is large enough
        for coil in readouts.kspace:
            energy += coil.real**2 + coil.imag**2
    around, surrounded = np.zeros_like(energy), readouts.acquired.copy()
    surrounded[:, :REACH] = surrounded[:, -REACH:] = False
    for step in range(1, REACH + 1):
        for here, beside in ((slice(step, None), slice(None, -step)), (slice(None, -step), slice(step, None))):
            np.maximum(around[:, here], energy[:, beside], out=around[:, here])
            surrounded[:, here] &= readouts.acquired[:, beside]
    # A sample among nothing but zeros is one of a simulation.
    found: NDArray[np.bool_] = surrounded & (energy / STANDS_OUT**2 > around) & (around > 0)
    if found.any():
        _, y, z = raw.geometry.encoded_matrix
        x = readouts.acquired.shape[1]
        near_lines = (np.abs(readouts.lines - (z // 2, y // 2)) <= CENTRE).all(1)
        near_samples = np.abs(np.arange(x) - x // 2) <= CENTRE
        found &= ~(near_lines[:, None] & near_samples)
    return found
