"""Frames of one connection that wait for their turn: all of them, or of an interventional stream the newest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from inrecon.frame import Key, Live, RawFrame
from inrecon_server.notices import Notice

_FULLY_SAMPLED = 1.4
"""Accelerations below this are those of fully sampled frames, partial Fourier included."""
_MOST_WAITING = 256
"""Frames of an interventional stream, of that many slices or of those that are never skipped."""
_TOLD_EVERY_S = 10.0
_SLICES_TOLD = 8


@dataclass(frozen=True, kw_only=True)
class NewPrior:
    """What an interventional stream was told between two frames: those from here on have a prior of their own."""


@dataclass(kw_only=True)
class _Waiting:
    what: RawFrame | NewPrior
    complete_at: float
    may_be_prior: bool = False

    def gives_way_to(self, raw: RawFrame) -> bool:
        """Whether a newer frame of the same slice does for this one as well: of those that others may be compared with,
        a fully sampled one for another."""
        return not self.may_be_prior or (isinstance(self.what, RawFrame) and _is_full(self.what) and _is_full(raw))


@dataclass(kw_only=True)
class _Slice:
    """What came of a slice before: how many frames, and whether any, and the last, were fully sampled."""

    frames: int = 0
    had_full: bool = False
    was_full: bool = False

    def may_be_prior(self, raw: RawFrame, live: Live) -> bool:
        """Whether others may be compared with this frame: the first that is fully sampled, and each that is after
        accelerated ones; until then the first few."""
        full = _is_full(raw)
        found = (full and not self.was_full) or (not self.had_full and self.frames < live.prior_frames)
        self.frames += 1
        self.had_full, self.was_full = self.had_full or full, full
        return found


@dataclass(kw_only=True)
class _Skipped:
    first: int
    last: int = 0
    frames: int = 0


@dataclass(kw_only=True)
class FrameQueue:
    """A queue between one task that puts frames and one that gets them.

    Of a scan, and of a stream with the policy "all", `size` frames may wait and `put` waits for room. With the policy
    "latest" a frame that waits gives its place to a newer one of its slice (contrast, phase, set and encoding space
    counted), unless others may be compared with it and not as well with the newer one; each slice waits its turn. `put`
    then waits only where very many slices do. `NewPrior` is never skipped, and no frame overtakes it.
    """

    size: int
    clock: Callable[[], float] = time.monotonic
    _waiting: list[_Waiting] = field(default_factory=list)
    _slices: dict[Key, _Slice] = field(default_factory=dict)
    _skipped: dict[int, _Skipped] = field(default_factory=dict)
    _told_at: float = float("-inf")
    _ended: bool = False
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def put(self, what: RawFrame | NewPrior, complete_at: float, *, live: Live | None) -> int:
        """Let a frame wait, the last readout of which came at `complete_at`; gives how many are skipped for it.

        `live` is what is asked for of an interventional stream, None of a scan.
        """
        latest = live is not None and live.policy == "latest"
        waiting = _Waiting(what=what, complete_at=complete_at)
        skipped: list[int] = []
        async with self._changed:
            if isinstance(what, NewPrior):
                self._slices.clear()
            elif live is not None and latest:
                waiting.may_be_prior = self._slice(what).may_be_prior(what, live)
                skipped, turn = self._skipped_for(what)
                # What is compared with a fully sampled frame can be with the one that takes its place.
                waiting.may_be_prior |= any(self._waiting[at].may_be_prior for at in skipped)
                if turn is not None:
                    self._waiting[turn] = waiting
                self._waiting = [one for at, one in enumerate(self._waiting) if at == turn or at not in skipped]
                if turn is not None:
                    return len(skipped)
            room = _MOST_WAITING if latest else self.size
            await self._changed.wait_for(lambda: len(self._waiting) < room)
            self._waiting.append(waiting)
            self._changed.notify_all()
        return len(skipped)

    async def end(self) -> None:
        """Let `get` give None once nothing waits any more."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def get(self) -> tuple[RawFrame | NewPrior, float] | None:
        """What has waited longest and its `complete_at`; None after the last."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._waiting or self._ended)
            if not self._waiting:
                return None
            waiting = self._waiting.pop(0)
            self._changed.notify_all()
        return waiting.what, waiting.complete_at

    def news(self, *, at_end: bool = False) -> Iterator[Notice]:
        """What was skipped since this was told last: from time to time, and `at_end` in any case."""
        now = self.clock()
        if not self._skipped or (now < self._told_at + _TOLD_EVERY_S and not at_end):
            return
        told = [_in_words(number, skipped) for number, skipped in sorted(self._skipped.items())]
        more = f" and of {len(told) - _SLICES_TOLD} more slices" if len(told) > _SLICES_TOLD else ""
        self._skipped.clear()
        self._told_at = now
        yield Notice(level="WARNING", text=f"skipped for newer frames: {', '.join(told[:_SLICES_TOLD])}{more}")

    def _slice(self, raw: RawFrame) -> _Slice:
        return self._slices.setdefault(raw.key.of_any_repetition, _Slice())

    def _skipped_for(self, raw: RawFrame) -> tuple[list[int], int | None]:
        """Which of those that wait are skipped for `raw`, now that it is there, and whose turn it takes over: no
        `NewPrior` and no frame of the slice that stays may be behind that."""
        of = raw.key.of_any_repetition
        skipped: list[int] = []
        turn = None
        for at, one in enumerate(self._waiting):
            if isinstance(one.what, NewPrior):
                turn = None
            elif one.what.key.of_any_repetition != of:
                continue
            elif not one.gives_way_to(raw):
                turn = None
            else:
                self._note_skipped(one.what.key)
                skipped.append(at)
                turn = at if turn is None else turn
        return skipped, turn

    def _note_skipped(self, key: Key) -> None:
        skipped = self._skipped.setdefault(key.slice, _Skipped(first=key.repetition))
        skipped.last = key.repetition
        skipped.frames += 1


def _is_full(raw: RawFrame) -> bool:
    return raw.protocol.acceleration < _FULLY_SAMPLED


def _in_words(number: int, skipped: _Skipped) -> str:
    frames = f"{skipped.frames} frame{'s' if skipped.frames > 1 else ''} of slice {number}"
    if skipped.first == skipped.last:
        return f"{frames} (repetition {skipped.first})"
    return f"{frames} (repetitions {skipped.first} to {skipped.last})"
