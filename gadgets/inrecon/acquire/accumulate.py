"""Acquisitions to frames: which readouts belong together, and when a frame is complete."""

from collections.abc import Iterable

import ismrmrd

from inrecon.acquire.buffers import Memory
from inrecon.acquire.intake import Imaging, Intake, key_of
from inrecon.acquire.kept_noise import NOT_AT_HAND
from inrecon.acquire.pending import Flags, History, OpenFrame
from inrecon.acquire.scan import FRAME_BYTES_LIMIT, Encoding, Scan
from inrecon.acquire.summary import Summary
from inrecon.frame import Key, Noise, RawFrame


class Accumulator:
    """Collects the readouts of a scan into frames.

    Readouts of one frame share slice, contrast, phase, repetition, set and encoding space; lines acquired more than
    once are averaged. A frame ends with LAST_IN_SLICE (of the last average, where several are known of),
    LAST_IN_REPETITION, LAST_IN_MEASUREMENT, the first imaging readout of a later repetition, or `finish`.

    It also ends when readouts of other counters follow and nothing can be missing: it holds every line inside the
    header's limits in all averages that the header counts, or every line, as often, that the frames of earlier
    repetitions held, of those that no flag ended. A change of counters alone tells nothing: interleaved slices change
    with every readout, and a header does not say which lines an accelerated scan will leave out. Slices of one such
    repetition that carry no flags come with `finish`.

    Where calibration is a scan of its own, the first frames of a slice that has none yet wait for it beyond their own
    flags: until a flag after it, LAST_IN_MEASUREMENT, a later repetition, further imaging readouts, or `finish`.

    Readouts that come after the end of their frame begin a new frame with the same counters, as real-time streams
    that count nothing want it. Unless a flag of its own ends it, a new frame of fewer than half the lines of the one
    before is taken to be stragglers of that one and left out. Averages that come late are images of their own; frames
    after them wait for as many. All this is announced (`Warned`), as is everything else that is left out, once a
    kind; `summary` counts them. Its buffers hold at most `limit_bytes`, and what `memory` lends, which all scans of a
    process may share.

    `kept_noise` is the noise of an earlier measurement that the header names, for a scan that has no noise readouts of
    its own; or a text that says why it is missing.
    """

    def __init__(
        self,
        scan: Scan,
        *,
        kept_noise: Noise | str = NOT_AT_HAND,
        limit_bytes: int = FRAME_BYTES_LIMIT,
        memory: Memory | None = None,
    ) -> None:
        self._intake = Intake(scan, kept_noise=kept_noise, limit_bytes=limit_bytes, memory=memory)
        self._open: dict[Key, OpenFrame] = {}
        self._current: Key | None = None
        self._history = History()
        self._flags = Flags(self._intake.calibration)

    @property
    def noise(self) -> Noise | None:
        """What the scan's own noise readouts so far told."""
        return self._intake.noise

    def add(self, acquisition: ismrmrd.Acquisition) -> list[RawFrame]:
        """Take one readout; gives the frames that it completes.

        Raises `InvalidFrame` if the readout holds no samples, values that are not finite or more samples than the
        encoded matrix, refers to no Cartesian encoding space of the header, changes the number of channels, or needs
        more memory than is allowed. Such a readout is not part of any frame.
        """
        imaging = self._intake.take(acquisition)
        done = [] if imaging is None else self._add_line(imaging)
        flags, average = int(acquisition.flags), acquisition.idx.average
        return done + self._end(self._flags.end(flags, key_of(acquisition), average=average, frames=self._open.items()))

    def finish(self) -> list[RawFrame]:
        """End of the stream: the frames that no flag ended."""
        done = self._end(self._open)
        self._intake.tell_unused()
        return done

    def close(self) -> None:
        """Give up what is not finished, and the memory that it holds."""
        self._intake.close()

    def summary(self) -> Summary:
        """Counts so far."""
        return self._intake.summary()

    def _add_line(self, imaging: Imaging) -> list[RawFrame]:
        key, encoding = imaging.key, imaging.encoding
        done = self._end(self._superseded(key))
        frame = self._open.get(key) or self._begin(key, encoding, average=imaging.acquisition.idx.average)
        frame.add(imaging.acquisition, imaging.line, imaging.placed)
        self._open[key] = frame
        self._current = key
        self._intake.taken["imaging"] += 1
        return done

    def _begin(self, key: Key, encoding: Encoding, *, average: int) -> OpenFrame:
        follows = self._history.follows(key)
        if follows and average:
            self._flags.note_average(key, average)
            self._intake.warn(
                "averages",
                "averages came after their frame had ended and become images of their own; encodingLimits in the "
                "header should count them, or only the last one carry LAST_IN_SLICE",
            )
        elif follows:
            self._intake.warn(
                "late", "readouts came after the end of their frame; they begin a new one of the same counters"
            )
        return OpenFrame(encoding, budget=self._intake.budget, follows=follows)

    def _superseded(self, key: Key) -> list[Key]:
        """Keys of the open frames that an imaging readout of `key` ends, whatever its flags."""
        ended = []
        for other, frame in self._open.items():
            if other.repetition < key.repetition or (other == key and frame.flagged):
                ended.append(other)
            elif other == self._current != key and not self._flags.waits(other, frame):
                ended += [other] if frame.is_full or self._history.repeated(other, frame) else []
        return ended

    def _end(self, keys: Iterable[Key]) -> list[RawFrame]:
        done = []
        for key in sorted(keys):
            frame = self._open.pop(key)
            self._history.add(key, frame)
            if frame.is_straggler:
                self._intake.taken["imaging"] -= frame.lines.readouts
                self._intake.skip(
                    "after the end of their frame",
                    f"{frame.lines.readouts} readouts came after the end of their frame and are left out",
                    count=frame.lines.readouts,
                )
            else:
                self._flags.note_imaged(key)
                done.append(self._intake.raw_frame(key, frame))
                self._intake.taken["frames"] += 1
            frame.lines.release()
        return done
