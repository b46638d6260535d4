"""Readouts of an interventional stream to frames: whatever comes in between, the stream goes on."""

from dataclasses import replace

import ismrmrd

from inrecon.acquire.accumulate import Accumulator
from inrecon.acquire.buffers import Memory
from inrecon.acquire.intake import Imaging, Intake, key_of
from inrecon.acquire.kept_noise import NOT_AT_HAND
from inrecon.acquire.live_slice import LiveSlice
from inrecon.acquire.pending import Flags, OpenFrame
from inrecon.acquire.readout import ENDS, NOISE
from inrecon.acquire.scan import FRAME_BYTES_LIMIT, Encoding, Scan
from inrecon.acquire.summary import Summary
from inrecon.acquire.window import Window
from inrecon.errors import InvalidFrame
from inrecon.events import Warned, observe
from inrecon.frame import Key, Live, Noise, RawFrame

_MOST_HELD = 4
_MOST_SLICES = 4096
"""Counters that make no sense would else make memory grow for as long as a stream lasts."""


class LiveAccumulator:
    """Collects the readouts of an interventional stream into frames, as `Accumulator` does those of a scan.

    Of a stream in which nothing is wrong the frames are those of `Accumulator`. What is wrong costs what it concerns
    and is named (`Warned`) with where it was:

    - A readout that makes no sense is left out. The first of a stream is refused instead, as is a 3-D encoding.
    - A repetition is believed once a second readout of it comes, so that a wrong counter costs one readout. The frame
      before it ends then, if no flag has ended it.
    - An image is never followed by an older one of its slice: readouts of earlier repetitions, and those that come
      after the end of their frame, are left out where repetitions are counted. Repetitions wrap around; a lower number
      that was acquired later (acquisition_time_stamp) begins to count anew, and without time stamps one that has come
      for more than three frames, when nothing else has.
    - A frame that lacks lines is given all the same, one that cannot be made is not.

    In a stream that counts nothing (repetition always 0) a frame also ends when a line comes again. Without flags,
    frames that nothing can be missing from are given at once if they hold all lines of the limits, or else when
    readouts of another slice follow. Each slice goes on by itself.

    With `live.window` a frame is the newest sample of each line in the last `window` readouts of its slice, after every
    `step` of them, under the counters and the header of the newest readout: several frames may have the same counters,
    and image indices tell them apart. The first fully sampled frame, all lines of the limits within one repetition, is
    given by itself as well, since later ones are compared with it. Windows begin when the first frame of their slice
    ends, be it fully sampled or not: half of it would be no image.
    """

    def __init__(
        self,
        scan: Scan,
        *,
        live: Live,
        kept_noise: Noise | str = NOT_AT_HAND,
        limit_bytes: int = FRAME_BYTES_LIMIT,
        memory: Memory | None = None,
    ) -> None:
        self._scan = scan
        self._live = live
        self._intake = Intake(scan, kept_noise=kept_noise, limit_bytes=limit_bytes, memory=memory)
        self._slices: dict[Key, LiveSlice] = {}
        self._current: Key | None = None
        self._flags = Flags(self._intake.calibration)
        self._begun = False
        self._counts = False

    @property
    def noise(self) -> Noise | None:
        """What the stream's own noise readouts so far told."""
        return self._intake.noise

    def add(self, acquisition: ismrmrd.Acquisition) -> list[RawFrame]:
        """Take one readout; gives the frames that it completes.

        Raises `InvalidFrame` as `Accumulator.add` does, but only as long as no readout was good; for want of memory,
        as long as there was no frame.
        """
        imaging = self._taken(acquisition)
        if imaging is not None:
            return self._place(imaging)
        return self._flagged(int(acquisition.flags), key_of(acquisition), average=acquisition.idx.average)

    def finish(self) -> list[RawFrame]:
        """End of the stream: the frames that no flag ended."""
        done = []
        for key in sorted(self._slices):
            self._drop_held(key)
            done += self._end(key)
            window, frames = self._slices[key].window, self._slices[key].frames
            if window is not None and frames and window.lacking:
                text = f"slice {key.slice}: {window.lacking} readouts were missing to the window at the end"
                observe(Warned(text=f"{text}: a window that is not full gives no frame"))
        self._intake.tell_unused()
        return done

    def close(self) -> None:
        """Give up what is not finished, and the memory that it holds."""
        self._intake.close()

    def summary(self) -> Summary:
        """Counts so far."""
        return self._intake.summary()

    def _taken(self, acquisition: ismrmrd.Acquisition) -> Imaging | None:
        """The readout if it is imaging and makes sense; raises `InvalidFrame` if no other did before."""
        try:
            self._check_is_flat(acquisition)
            imaging = self._intake.take(acquisition)
        except InvalidFrame as error:
            if not self._begun:
                raise
            if (imaging := self._of_other_channels(acquisition)) is None:
                key = key_of(acquisition)
                kind = f"making no sense {key.repetition}"  # of a frame of nothing else, which never begins, too
                self._leave_out("making no sense", key, f"a readout is left out: {error}", kind=kind)
        self._begun = self._begun or imaging is not None or self._intake.taken["calibration"] > 0
        return imaging

    def _check_is_flat(self, acquisition: ismrmrd.Acquisition) -> None:
        space = acquisition.encoding_space_ref
        encoding = self._scan.encodings[space] if space < len(self._scan.encodings) else None
        if isinstance(encoding, Encoding) and encoding.geometry.encoded_matrix[2] > 1 and not acquisition.flags & NOISE:
            x, y, z = encoding.geometry.encoded_matrix
            raise InvalidFrame(
                f"an interventional stream of 3-D frames ({x} x {y} x {z}): this version takes 2-D slices, one or more"
            )

    def _of_other_channels(self, acquisition: ismrmrd.Acquisition) -> Imaging | None:
        """The readout if it is only at odds with the channels of first ones that nothing has confirmed yet."""
        if any(state.repetition is not None for state in self._slices.values()):
            return None
        known = self._intake.forget_channels()
        try:
            imaging = self._intake.take(acquisition)
        except InvalidFrame:
            self._intake.expect_channels(known)
            return None
        self._drop_all_held()
        return imaging

    def _place(self, imaging: Imaging) -> list[RawFrame]:
        """Add an imaging readout to the frame that it is of, if that is believed in."""
        of = imaging.key.of_any_repetition
        if of not in self._slices and len(self._slices) >= _MOST_SLICES:
            text = f"slices beyond the first {_MOST_SLICES} (contrasts, phases and sets counted) are left out"
            self._intake.skip("of too many slices", text)
            return []
        state = self._slices.get(of) or self._slices.setdefault(of, self._new_slice())
        done = self._completed_before(of)
        if imaging.key.repetition == state.repetition:
            self._drop_held(of)
            return done + self._put(imaging)
        if state.is_outdated(imaging):
            text = f"came again, or late, after repetition {state.repetition}, and is left out"
            self._leave_out("older than the newest", imaging.key, text, kind=f"old {imaging.key.repetition}")
            return done
        held = state.held.pop(imaging.key.repetition, None)
        if held is None:
            self._hold(imaging)
            return done
        self._intake.budget.give_back(held.size)
        done += self._begin(imaging.key)
        self._drop_held(of)
        # A first readout that ends its frame would not be followed by a second.
        return [*done, *self._put(held, ends=False), *self._put(imaging)]

    def _new_slice(self) -> LiveSlice:
        size = self._live.window
        if size is None:
            return LiveSlice()
        return LiveSlice(window=Window(size=size, step=self._live.step or size, budget=self._intake.budget))

    def _completed_before(self, of: Key) -> list[RawFrame]:
        """The frame of the slice that the readout before was of, if another one follows and nothing can be missing."""
        before, self._current = self._current, of
        if before is None or before == of:
            return []
        state = self._slices[before]
        waits = state.frame is not None and self._flags.waits(before, state.frame)
        return self._end(before) if state.is_complete and not state.ends_by_flags and not waits else []

    def _begin(self, key: Key) -> list[RawFrame]:
        """Go on to the repetition of `key`; gives the frame that this ends."""
        of = key.of_any_repetition
        state = self._slices[of]
        done = self._end(of)
        jump, before = state.jump_to(key.repetition), state.repetition
        state.repetition, state.ended = key.repetition, False
        state.told.clear()
        self._counts = self._counts or key.repetition > 0
        if jump < 0:
            self._tell(key, f"the count begins anew after repetition {before}")
        elif jump > (state.stride or 1) and before is not None:
            first, last = (before + 1) % (1 << 16), (key.repetition - 1) % (1 << 16)
            lost = f"repetition {first}" if first == last else f"repetitions {first} to {last}"
            observe(Warned(text=f"{lost} of slice {key.slice} did not come"))
        if jump > 0:
            # Slices that take turns skip repetitions all the time.
            state.stride = min(state.stride or jump, jump)
        return done

    def _put(self, imaging: Imaging, *, ends: bool = True) -> list[RawFrame]:
        """Add a readout of the repetition that its slice is at; gives the frames that it, or its flags if it `ends` by
        them, completes."""
        key, of = imaging.key, imaging.key.of_any_repetition
        state = self._slices[of]
        average = imaging.acquisition.idx.average
        if state.ended and state.frame is None and average:
            self._flags.note_average(key, average)
        if self._counts and (state.ended if state.frame is None else state.frame.flagged):
            self._leave_out("after the end of their frame", key, "what comes again, or after its end, is left out")
            return []
        if state.is_double(imaging):
            self._leave_out("that came twice", key, "a readout came twice and is left out once")
            return []
        done = []
        if state.frame is not None and not self._counts and (state.frame.flagged or state.begins_anew(imaging)):
            done = self._end(of)
        if not self._collect(imaging):
            return done
        flags = int(imaging.acquisition.flags) if ends else 0
        ended = self._flagged(flags, key, average=average)
        if state.frame is not None and state.frame.is_full and not state.ends_by_flags:
            ended += [] if self._flags.waits(of, state.frame) else self._end(of)
        return [*done, *ended, *self._windowed(key)]

    def _collect(self, imaging: Imaging) -> bool:
        """Add a readout to frame and window; if there is no room for it the frame is lost."""
        state = self._slices[imaging.key.of_any_repetition]
        if state.frame is None:
            follows = state.lines if state.ended else 0
            state.frames += 1
            if state.ended:
                state.told.clear()
            state.frame = OpenFrame(imaging.encoding, budget=self._intake.budget, follows=follows)
        try:
            state.frame.add(imaging.acquisition, imaging.line, imaging.placed)
            if state.window is not None and state.window.add(imaging):
                self._tell(imaging.key, "the slice has moved: its window is filled anew")
        except (InvalidFrame, MemoryError) as error:
            lost = state.frame.lines.readouts
            state.frame.lines.release()
            state.frame = None
            if not self._intake.taken["frames"] and isinstance(error, InvalidFrame):
                raise
            # Of a stream that counts nothing, the rest may become a frame.
            state.ended = self._counts
            self._intake.taken["imaging"] -= lost
            self._leave_out("of frames that were lost", imaging.key, f"this frame is lost: {error}", count=lost + 1)
            state.told.add("after the end of their frame")
            self._drop_all_held()
            return False
        state.note(imaging)
        self._intake.taken["imaging"] += 1
        return True

    def _flagged(self, flags: int, key: Key, *, average: int) -> list[RawFrame]:
        """The frames that the flags of a readout, of any kind, end."""
        if not flags & ENDS:  # nearly all: not one of many slices is looked at
            return []
        frames = [
            (replace(of, repetition=state.repetition), state.frame)
            for of, state in self._slices.items()
            if state.frame is not None and state.repetition is not None
        ]
        ended = self._flags.end(flags, key, average=average, frames=frames)
        for other, frame in frames:
            self._slices[other.of_any_repetition].ends_by_flags |= other == key and frame.flagged
        return [frame for of in sorted(other.of_any_repetition for other in ended) for frame in self._end(of)]

    def _end(self, of: Key) -> list[RawFrame]:
        """End the frame of a slice; gives it, if it is wanted and can be made."""
        state = self._slices[of]
        frame, state.frame = state.frame, None
        if frame is None or state.repetition is None:
            return []
        key, lines = replace(of, repetition=state.repetition), len(frame.lines)
        state.ended, state.lines = True, lines
        if frame.is_straggler:
            self._intake.taken["imaging"] -= frame.lines.readouts
            text = "readouts came after the end of their frame and are left out"
            self._leave_out("after the end of their frame", key, text, count=frame.lines.readouts)
            frame.lines.release()
            return []
        self._flags.note_imaged(of)
        usual = state.usual
        if state.lacking(lines):
            self._tell(key, f"{lines} of {usual} lines came")
        is_full = lines >= frame.encoding.lines
        if state.window is not None:
            if state.has_full or not is_full:
                frame.lines.release()
                return []
            state.window.restart()
        state.has_full |= is_full
        return self._made(key, frame)

    def _windowed(self, key: Key) -> list[RawFrame]:
        """The frame of the last readouts of a slice, if it is time for one."""
        state = self._slices[key.of_any_repetition]
        if state.window is None or not state.lines or not state.window.due:
            return []
        try:
            key, frame = state.window.frame()
        except (InvalidFrame, MemoryError) as error:
            self._tell(key, f"a frame is lost: {error}")
            return []
        return self._made(key, frame)

    def _made(self, key: Key, frame: OpenFrame) -> list[RawFrame]:
        try:
            made = [self._intake.raw_frame(key, frame)]
        except (InvalidFrame, MemoryError) as error:
            self._tell(key, f"this frame is lost: {error}")
            return []
        finally:
            frame.lines.release()
        self._intake.taken["frames"] += 1
        return made

    def _hold(self, imaging: Imaging) -> None:
        """Let a readout wait until a second one confirms its repetition, if there is room for it."""
        of = imaging.key.of_any_repetition
        if len(self._slices[of].held) == _MOST_HELD:
            self._drop_held(of)
        try:
            self._intake.budget.take(imaging.size)
        except InvalidFrame as error:
            if not self._intake.taken["frames"]:
                raise
            # Wrong counters can leave one in each of many slices, for ever.
            self._drop_all_held()
            self._leave_out("for want of memory", imaging.key, f"a readout is left out: {error}")
            return
        self._slices[of].held[imaging.key.repetition] = imaging

    def _drop_all_held(self) -> None:
        for of in self._slices:
            self._drop_held(of)

    def _drop_held(self, of: Key) -> None:
        """Leave out readouts of repetitions that nothing else was of."""
        held, self._slices[of].held = self._slices[of].held, {}
        for repetition, imaging in held.items():
            self._intake.budget.give_back(imaging.size)
            text = "a readout that is alone in its repetition is left out"
            self._leave_out("alone in their repetition", imaging.key, text, kind=f"alone {repetition}")

    def _leave_out(self, reason: str, key: Key, text: str, *, kind: str | None = None, count: int = 1) -> None:
        """Count readouts that are left out, and name the first of each `kind` (None: `reason`) in a frame."""
        self._intake.count_skipped(reason, count=count)
        state = self._slices.get(key.of_any_repetition)
        if state is not None:
            if (kind or reason) in state.told:
                return
            state.told.add(kind or reason)
        self._tell(key, text)

    def _tell(self, key: Key, text: str) -> None:
        """Say `text` of the frame `key`; by its number where nothing is counted."""
        state = self._slices.get(key.of_any_repetition)
        where = f"repetition {key.repetition}" if self._counts or state is None else f"frame {state.frames}"
        observe(Warned(text=f"{where}, slice {key.slice}: {text}"))


def collector(
    scan: Scan, *, live: Live | None, kept_noise: Noise | str = NOT_AT_HAND, memory: Memory | None = None
) -> Accumulator | LiveAccumulator:
    """Who collects the readouts of a scan (`live` None), or of an interventional stream."""
    if live is None:
        return Accumulator(scan, kept_noise=kept_noise, memory=memory)
    return LiveAccumulator(scan, live=live, kept_noise=kept_noise, memory=memory)
