"""Frames that wait for their end, and what those that have ended tell of them."""

from collections import Counter
from collections.abc import Iterable

import ismrmrd

from inrecon.acquire.buffers import Budget, CalibrationStore, Line, LineBuffer
from inrecon.acquire.readout import ENDS, LAST_IN_MEASUREMENT, LAST_IN_REPETITION, LAST_IN_SLICE, Placed, dwell_us
from inrecon.acquire.scan import Encoding
from inrecon.frame import Key


class OpenFrame:
    """Imaging readouts of one frame so far, and the header of the one nearest the centre of k-space.

    `follows` is the number of lines of the frame that ended before this one began under the same counters, 0 if none
    did; `flagged` whether its end was flagged, so that it waits for calibration at most.
    """

    def __init__(self, encoding: Encoding, *, budget: Budget, follows: int) -> None:
        x, y, z = encoding.geometry.encoded_matrix
        self.encoding = encoding
        self.lines = LineBuffer(x, budget=budget)
        self.follows = follows
        self.flagged = False
        self.reference = b""
        self.sample_time_us = 0.0
        self._center = z // 2, y // 2
        self._nearest: tuple[int, ...] | None = None

    def add(self, acquisition: ismrmrd.Acquisition, line: Line, placed: Placed) -> None:
        """Add a readout to a line; raises `InvalidFrame` if the memory budget is spent."""
        self.lines.add(line, placed)
        distance = sum((at - center) ** 2 for at, center in zip(line, self._center, strict=True))
        rank = (distance, *line, acquisition.idx.average, acquisition.scan_counter)
        if self._nearest is None or rank < self._nearest:
            self._nearest = rank
            self.reference = bytes(acquisition.getHead())
            self.sample_time_us = dwell_us(acquisition)

    @property
    def is_straggler(self) -> bool:
        """Whether it is rather what a frame that ended too early left behind than a frame."""
        return not self.flagged and 2 * len(self.lines) < self.follows

    @property
    def is_full(self) -> bool:
        """Whether it holds every line that the header leaves room for, in all averages that the header counts."""
        averages, lines = self.encoding.averages, self.encoding.lines
        # The last test is the slow one, and this is asked at every change of slice.
        return (
            averages is not None
            and len(self.lines) == lines
            and self.lines.readouts >= averages * lines
            and min(self.lines.repeats.values()) >= averages
        )


class Flags:
    """What flags on readouts say of the ends of frames, in all slices alike.

    Where calibration is a scan of its own, a frame that could end waits for it, unless one of its slice has not waited
    before.
    """

    def __init__(self, calibration: CalibrationStore) -> None:
        self._calibration = calibration
        self._averages: dict[int, int] = {}
        self._imaged: set[tuple[int, int]] = set()

    def note_average(self, key: Key, average: int) -> None:
        """An average has come after the end of its frame: frames after it wait for as many."""
        self._averages[key.encoding_space] = max(self._averages.get(key.encoding_space, 1), average + 1)

    def note_imaged(self, key: Key) -> None:
        """A frame of this slice has ended."""
        self._imaged.add(_slice_of(key))

    def end(self, flags: int, key: Key, *, average: int, frames: Iterable[tuple[Key, OpenFrame]]) -> list[Key]:
        """Keys of those of the open `frames` that the `flags` of a readout of `key`, of any kind, end; marks those that
        now wait."""
        if not flags & ENDS:
            return []
        ended = []
        for other, frame in frames:
            averages = max(frame.encoding.averages or 1, self._averages.get(other.encoding_space, 1))
            if (
                flags & LAST_IN_MEASUREMENT
                or (flags & LAST_IN_REPETITION and other.repetition == key.repetition)
                or (flags & LAST_IN_SLICE and other == key and average + 1 >= averages)
                or (frame.flagged and _slice_of(other) == _slice_of(key))
            ):
                waits = not flags & LAST_IN_MEASUREMENT and self.waits(other, frame)
                frame.flagged |= other == key or waits
                ended += [] if waits else [other]
        return ended

    def waits(self, key: Key, frame: OpenFrame) -> bool:
        """Whether a frame that could end should wait for the calibration of its slice."""
        apart = frame.encoding.calibrates_apart
        return apart and _slice_of(key) not in self._imaged and not self._calibration.serves(key)


class History:
    """Frames that have ended, by their counters but the repetition."""

    def __init__(self) -> None:
        self._latest: dict[Key, tuple[int, int]] = {}
        self._unflagged: dict[Key, Counter[Line]] = {}

    def follows(self, key: Key) -> int:
        """Lines of the latest frame if `key` is not of a later repetition, else 0."""
        repetition, lines = self._latest.get(key.of_any_repetition, (-1, 0))
        return lines if key.repetition <= repetition else 0

    def repeated(self, key: Key, frame: OpenFrame) -> bool:
        """Whether `frame` holds all that any earlier one did whose end no flag told; False if there was none."""
        before = self._unflagged.get(key.of_any_repetition)
        return (
            before is not None
            and len(before) <= len(frame.lines)
            and before.total() <= frame.lines.readouts
            and before <= frame.lines.repeats
        )

    def add(self, key: Key, frame: OpenFrame) -> None:
        """Remember a frame, or stragglers, that ended."""
        of_any_repetition = key.of_any_repetition
        if frame.is_straggler:
            latest, _ = self._latest[of_any_repetition]
            self._latest[of_any_repetition] = latest, len(frame.lines)
            return
        self._latest[of_any_repetition] = key.repetition, len(frame.lines)
        if not frame.flagged:
            before = self._unflagged.get(of_any_repetition, Counter())
            self._unflagged[of_any_repetition] = before | frame.lines.repeats


def _slice_of(key: Key) -> tuple[int, int]:
    return key.slice, key.encoding_space
