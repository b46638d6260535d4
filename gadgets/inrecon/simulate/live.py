"""A stream of frames and the truth behind them, made when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from inrecon.errors import InvalidFrame
from inrecon.simulate.header import SLICE_MM
from inrecon.simulate.moving import Array, Mask, MovingObject
from inrecon.simulate.readouts import noise_readouts, slice_readouts
from inrecon.simulate.transforms import combined, measured

READOUT_US = 2560.0  # one imaging readout, shared out among its samples
TICK_MS = 2.5  # of time stamps
BRIGHT = 99.0  # percentile of the magnitude in the object: its bright end
CHANGED = 0.05  # of that


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """A stream and the truth behind it, both made when asked for: the same whenever and in whatever order that is.

    `header` is ISMRMRD XML; a frame is a repetition. `csm` ``(coils, y, x)`` complex64 are the coil maps, which stay
    where they are. `lines` ``(frames, y)`` bool are the acquired lines, `calibration` ``(y,)`` bool those that are
    flagged as calibration and imaging. The rest is the simulation's own: `scene` what moves, `maps` the coil maps at
    twice the resolution, `samples` of a readout, `colour` ``(coils, coils)`` of the noise (zeros for none), how many
    `noise_readouts` begin the stream, the repetition time and the `seed`.

    Methods raise `InvalidFrame` for a frame or slice that the stream does not have.
    """

    header: bytes
    csm: Array
    lines: Mask
    calibration: Mask
    scene: MovingObject
    maps: Array
    samples: int
    colour: NDArray[np.complex128]
    noise_readouts: int
    repetition_time_ms: float
    seed: int

    @property
    def frames(self) -> int:
        """Number of frames (repetitions)."""
        return len(self.lines)

    @property
    def slices(self) -> int:
        """Number of slices of a frame."""
        return len(self.scene.rest)

    def truth(self, frame: int, slice_index: int = 0) -> Array:
        """``(y, x)``: what the full matrix free of noise gives through `csm`."""
        self._check(frame, slice_index)
        return combined(self.scene.picture(frame, slice_index), self.maps, self.csm, self.samples)

    def support(self, frame: int = 0, slice_index: int = 0) -> Mask:
        """``(y, x)``: where the object is in a frame."""
        self._check(frame, slice_index)
        return self.scene.support(frame, slice_index)

    def changed(self, frame: int, slice_index: int = 0) -> Mask:
        """``(y, x)``: where the magnitude differs from the first frame's by more than 5 % of the object's bright end
        (the 99th percentile of the first frame's)."""
        self._check(frame, slice_index)
        first, bright = self._first[slice_index]
        return np.abs(np.abs(self.truth(frame, slice_index)) - first) > CHANGED * bright

    def needle(self, frame: int, slice_index: int = 0) -> Mask:
        """``(y, x)``: pixels whose centre the needle's void covers."""
        self._check(frame, slice_index)
        return self.scene.void(frame, slice_index)

    def tip(self, frame: int) -> tuple[float, float] | None:
        """Place ``(y, x)`` of the needle's tip in pixels, in slice ``slices // 2``; None while there is no needle."""
        self._check(frame, 0)
        return self.scene.tip(frame)

    def acquisitions(self, frame: int) -> list[ismrmrd.Acquisition]:
        """The readouts of a frame in the order of their acquisition: slice by slice, line by line; those of the noise
        come before those of frame 0."""
        self._check(frame, 0)
        dwell_us = READOUT_US / self.samples
        found: list[ismrmrd.Acquisition] = []
        if frame == 0:
            rng = np.random.default_rng((self.seed, 2))
            found += noise_readouts(
                self.noise_readouts, samples=self.samples, colour=self.colour, dwell_us=dwell_us, rng=rng
            )
        mask = self.lines[frame]
        for index in range(self.slices):
            full = np.zeros((len(self.maps), len(mask), self.samples), np.complex64)
            full[:, mask] = measured(self.scene.picture(frame, index), self.maps, mask, self.samples)
            rng = np.random.default_rng((self.seed, 2, frame + 1, index))
            for acquisition in slice_readouts(
                full, mask, calibration=self.calibration, colour=self.colour, dwell_us=dwell_us, rng=rng
            ):
                acquisition.idx.slice, acquisition.idx.repetition = index, frame
                acquisition.position[2] = SLICE_MM * (index - (self.slices - 1) / 2)
                found.append(acquisition)
        found[-1].setFlag(ismrmrd.ACQ_LAST_IN_REPETITION)
        if frame == self.frames - 1:
            found[-1].setFlag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
        before = self.noise_readouts * (frame > 0) + self.slices * int(self.lines[:frame].sum())
        for counter, acquisition in enumerate(found, start=before):
            acquisition.scan_counter = counter
            acquisition.acquisition_time_stamp = int(counter * self.repetition_time_ms / TICK_MS)
        return found

    def all_acquisitions(self) -> Iterator[ismrmrd.Acquisition]:
        """Those of all frames, a frame at a time."""
        for frame in range(self.frames):
            yield from self.acquisitions(frame)

    @cached_property
    def _first(self) -> list[tuple[NDArray[np.float32], float]]:
        """Magnitude and bright end of the first frame's slices."""
        images = [np.abs(self.truth(0, index)) for index in range(self.slices)]
        return [(image, float(np.percentile(image[self.support(0, i)], BRIGHT))) for i, image in enumerate(images)]

    def _check(self, frame: int, index: int) -> None:
        if not (0 <= frame < self.frames and 0 <= index < self.slices):
            raise InvalidFrame(
                f"a stream of {self.frames} frames of {self.slices} slices has no slice {index} of frame {frame}"
            )
