"""Where the stream of one slice is: which repetition it has come to, and what its frames were like."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TypeAlias

from inrecon.acquire.buffers import Line
from inrecon.acquire.intake import Imaging
from inrecon.acquire.pending import OpenFrame
from inrecon.acquire.window import Window

_REPETITIONS = 1 << 16
_TICKS = 1 << 32
_RECENT = 16
_LATE_FRAMES = 3
_Slot: TypeAlias = tuple[Line, int, int]


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What is remembered of a readout, whose samples would be too much to keep for every slice."""

    slot: _Slot
    time_stamp: int
    start: int
    samples: int

    @classmethod
    def of(cls, imaging: Imaging) -> _Seen:
        return cls(
            slot=_slot(imaging),
            time_stamp=int(imaging.acquisition.acquisition_time_stamp),
            start=imaging.placed.start,
            samples=hash(imaging.placed.samples.tobytes()),
        )


@dataclass(kw_only=True)
class LiveSlice:
    """One slice (of one contrast, phase, set and encoding space) of a stream.

    `repetition` is the newest that is believed in, `held` has a readout each of others, until a second one confirms
    theirs. `frame` is what is being collected, None between frames, and `frames` how many have begun; `ended` tells
    whether one of this repetition has ended, `lines` how many lines the last one had, `ends_by_flags` whether flags on
    its own readouts ended it. `stride` is the smallest step from one repetition to the next; `has_full` whether a fully
    sampled frame was given. `told` are the kinds of faults of this frame that were named.
    """

    repetition: int | None = None
    held: dict[int, Imaging] = field(default_factory=dict)
    frame: OpenFrame | None = None
    ended: bool = False
    lines: int = 0
    frames: int = 0
    ends_by_flags: bool = False
    stride: int | None = None
    has_full: bool = False
    window: Window | None = None
    told: set[str] = field(default_factory=set)
    _recent: deque[int] = field(default_factory=lambda: deque(maxlen=_RECENT))
    _last: _Seen | None = None
    _first: Line | None = None
    _behind: int = 0
    _slots: set[_Slot] = field(default_factory=set)

    def jump_to(self, repetition: int) -> int:
        """How far it is on to `repetition`, whose counter wraps around; negative if that is an earlier one."""
        if self.repetition is None:
            return 0
        jump = (repetition - self.repetition) % _REPETITIONS
        return jump if jump < _REPETITIONS // 2 else jump - _REPETITIONS

    def is_outdated(self, imaging: Imaging) -> bool:
        """Whether a readout of another repetition is of an earlier one.

        Of a lower number, that is, unless it was acquired later, or, where nothing tells the time, more such readouts
        have followed one another than three frames have: then somebody has begun to count anew.
        """
        if self.jump_to(imaging.key.repetition) >= 0:
            return False
        now = int(imaging.acquisition.acquisition_time_stamp)
        before = 0 if self._last is None else self._last.time_stamp
        if now and before:
            return not 0 < (now - before) % _TICKS < _TICKS // 2
        self._behind += 1
        return self._behind <= _LATE_FRAMES * (self._expected or imaging.encoding.lines)

    def is_double(self, imaging: Imaging) -> bool:
        """Whether this is the readout before once more: noise is never the same twice."""
        return self._last is not None and self._last.slot == _slot(imaging) and self._last == _Seen.of(imaging)

    def begins_anew(self, imaging: Imaging) -> bool:
        """Whether a line that the frame holds already is one of the next frame, in a stream that counts nothing."""
        if self.frame is None or _slot(imaging) not in self._slots:
            return False
        repeats = self.frame.lines.repeats[imaging.line]
        late = imaging.line == self._first or 0 < self._expected <= 2 * len(self.frame.lines)
        return late and repeats >= (imaging.encoding.averages or 1)

    def note(self, imaging: Imaging) -> None:
        """Remember a readout that has been added to the frame."""
        if self.frame is not None and self.frame.lines.readouts == 1:
            self._slots.clear()
            self._first = imaging.line
        self._slots.add(_slot(imaging))
        self._behind = 0
        self._last = _Seen.of(imaging)

    @property
    def usual(self) -> int:
        """The number of lines that most of the last frames had, two at least; 0 if there is none."""
        ((lines, times),) = Counter(self._recent).most_common(1) or ((0, 0),)
        return lines if times > 1 else 0

    @property
    def _expected(self) -> int:
        return self.usual or self.lines

    @property
    def is_complete(self) -> bool:
        """Whether nothing can be missing from the frame: every line of the limits, or as many as usual."""
        return self.frame is not None and (self.frame.is_full or 0 < self._expected <= len(self.frame.lines))

    def lacking(self, lines: int) -> bool:
        """Whether a frame of so few lines is not one of a kind that comes again and again; remembers it."""
        short = lines < self.usual and self._recent.count(lines) < 2
        self._recent.append(lines)
        return short


def _slot(imaging: Imaging) -> _Slot:
    return imaging.line, imaging.acquisition.idx.average, imaging.acquisition.idx.segment
