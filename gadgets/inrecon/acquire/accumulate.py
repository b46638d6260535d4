"""Acquisitions to frames: which readouts belong together, and when a frame is complete."""

from collections import Counter
from collections.abc import Iterable

import ismrmrd

from inrecon.acquire.buffers import Budget, CalibrationStore, Line, Memory, NoiseSum
from inrecon.acquire.kept_noise import NOT_AT_HAND, noise_for
from inrecon.acquire.pending import History, OpenFrame
from inrecon.acquire.readout import (
    CALIBRATION,
    ENDS,
    LAST_IN_MEASUREMENT,
    LAST_IN_REPETITION,
    LAST_IN_SLICE,
    NOISE,
    dwell_us,
    kept_samples,
    place,
    purpose,
)
from inrecon.acquire.scan import FRAME_BYTES_LIMIT, SAMPLE_BYTES, Encoding, NotCartesian, Scan
from inrecon.acquire.summary import Summary
from inrecon.errors import InvalidFrame
from inrecon.events import Warned, observe
from inrecon.frame import Key, Noise, Protocol, RawFrame


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
        self._scan = scan
        self._limit_bytes = limit_bytes
        self._budget = Budget(limit_bytes, memory=memory)
        self._open: dict[Key, OpenFrame] = {}
        self._current: Key | None = None
        self._history = History()
        self._averages: dict[int, int] = {}
        self._calibration = CalibrationStore(self._budget)
        self._noise = NoiseSum(scan.relative_bandwidth, coil_labels=scan.coil_labels)
        self._kept_noise = kept_noise if scan.noise_dependencies else None
        self._channels: int | None = None
        self._taken: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._warned: set[str] = set()

    @property
    def noise(self) -> Noise | None:
        """What the scan's own noise readouts so far told."""
        return self._noise.noise()

    def add(self, acquisition: ismrmrd.Acquisition) -> list[RawFrame]:
        """Take one readout; gives the frames that it completes.

        Raises `InvalidFrame` if the readout holds no samples, values that are not finite or more samples than the
        encoded matrix, refers to no Cartesian encoding space of the header, changes the number of channels, or needs
        more memory than is allowed. Such a readout is not part of any frame.
        """
        flags = int(acquisition.flags)
        key = _key(acquisition)
        done: list[RawFrame] = []
        if flags & NOISE:
            self._noise.add(kept_samples(acquisition), sample_time_us=dwell_us(acquisition))
            self._taken["noise"] += 1
        elif (reason := purpose(flags)) is not None:
            self._skip(reason, f"readouts marked as {reason} are not part of the image and are left out")
        else:
            done = self._add_line(acquisition, key, calibration=bool(flags & CALIBRATION))
        return done + self._end(self._flagged(flags, key, average=acquisition.idx.average))

    def finish(self) -> list[RawFrame]:
        """End of the stream: the frames that no flag ended."""
        done = self._end(self._open)
        if unused := self._calibration.unused():
            self._warn(
                "unused",
                f"{unused} calibration readouts are not used: they came after the images of their slice, or their "
                "slice was not imaged",
            )
        return done

    def close(self) -> None:
        """Give up what is not finished, and the memory that it holds."""
        self._budget.close()

    def summary(self) -> Summary:
        """Counts so far."""
        return Summary(
            imaging=self._taken["imaging"],
            calibration=self._taken["calibration"],
            noise=self._taken["noise"],
            skipped=dict(self._skipped),
            frames=self._taken["frames"],
        )

    def _add_line(self, acquisition: ismrmrd.Acquisition, key: Key, *, calibration: bool) -> list[RawFrame]:
        encoding = self._encoding(key.encoding_space)
        x, y, z = encoding.geometry.encoded_matrix
        placed = place(acquisition, x)
        self._check_channels(len(placed.samples), encoding)
        if placed.remark is not None:
            self._warn(placed.remark, placed.remark)
        step_1, step_2 = acquisition.idx.kspace_encode_step_1, acquisition.idx.kspace_encode_step_2
        if calibration and encoding.calibrates_apart:
            self._calibration.add(key, (step_2, step_1), placed, width=x)
            self._taken["calibration"] += 1
            return []
        if step_1 not in encoding.step_1 or (z > 1 and step_2 not in encoding.step_2):
            self._skip("outside the encoding limits", "lines outside the header's encoding limits are left out")
            return []
        line = _line(encoding, step_1, step_2)
        if not (0 <= line[0] < z and 0 <= line[1] < y):
            self._skip("outside the encoded matrix", "lines outside the header's encoded matrix are left out")
            return []
        if not placed.samples.any():
            # As files hold them that were filled up to a full matrix; no receiver gives exact zeros.
            self._skip("all zero", "readouts whose samples are all zero count as not acquired")
            return []
        done = self._end(self._superseded(key))
        frame = self._open.get(key) or self._begin(key, encoding, average=acquisition.idx.average)
        frame.add(acquisition, line, placed)
        self._open[key] = frame
        self._current = key
        self._taken["imaging"] += 1
        return done

    def _encoding(self, space: int) -> Encoding:
        if space >= len(self._scan.encodings):
            raise InvalidFrame(
                f"a readout refers to encoding space {space}; the header describes {len(self._scan.encodings)}, from 0"
            )
        encoding = self._scan.encodings[space]
        if isinstance(encoding, NotCartesian):
            raise InvalidFrame(
                f"a readout refers to encoding space {space} of trajectory {encoding.trajectory!r}; this version "
                "reconstructs 'cartesian' only"
            )
        return encoding

    def _check_channels(self, channels: int, encoding: Encoding) -> None:
        if self._channels is not None and channels != self._channels:
            raise InvalidFrame(f"a readout of {channels} channels in a scan of {self._channels}")
        x, y, z = encoding.geometry.encoded_matrix
        needed = x * y * z * channels * SAMPLE_BYTES
        if needed > self._limit_bytes:
            raise InvalidFrame(
                f"a frame of {x} x {y} x {z} samples and {channels} channels takes {needed / 2**30:.3g} GiB; "
                f"the limit is {self._limit_bytes / 2**30:.3g} GiB"
            )
        self._channels = channels

    def _begin(self, key: Key, encoding: Encoding, *, average: int) -> OpenFrame:
        follows = self._history.follows(key)
        if follows and average:
            self._averages[key.encoding_space] = max(self._averages.get(key.encoding_space, 1), average + 1)
            self._warn(
                "averages",
                "averages came after their frame had ended and become images of their own; encodingLimits in the "
                "header should count them, or only the last one carry LAST_IN_SLICE",
            )
        elif follows:
            self._warn("late", "readouts came after the end of their frame; they begin a new one of the same counters")
        return OpenFrame(encoding, budget=self._budget, follows=follows)

    def _superseded(self, key: Key) -> list[Key]:
        """Keys of the open frames that an imaging readout of `key` ends, whatever its flags."""
        ended = []
        for other, frame in self._open.items():
            if other.repetition < key.repetition or (other == key and frame.flagged):
                ended.append(other)
            elif other == self._current != key and not self._waits(other, frame):
                ended += [other] if frame.is_full or self._history.repeated(other, frame) else []
        return ended

    def _flagged(self, flags: int, key: Key, *, average: int) -> list[Key]:
        """Keys of the open frames that the flags of a readout, of any kind, end; marks those that now wait."""
        if not flags & ENDS:
            return []
        ended = []
        for other, frame in self._open.items():
            averages = max(frame.encoding.averages or 1, self._averages.get(other.encoding_space, 1))
            own_slice = (other.slice, other.encoding_space) == (key.slice, key.encoding_space)
            if (
                flags & LAST_IN_MEASUREMENT
                or (flags & LAST_IN_REPETITION and other.repetition == key.repetition)
                or (flags & LAST_IN_SLICE and other == key and average + 1 >= averages)
                or (own_slice and frame.flagged)
            ):
                waits = not flags & LAST_IN_MEASUREMENT and self._waits(other, frame)
                frame.flagged |= other == key or waits
                ended += [] if waits else [other]
        return ended

    def _waits(self, key: Key, frame: OpenFrame) -> bool:
        """Whether a frame that could end should wait for the calibration of its slice."""
        apart = frame.encoding.calibrates_apart
        return apart and not self._calibration.serves(key) and not self._history.imaged(key)

    def _end(self, keys: Iterable[Key]) -> list[RawFrame]:
        done = []
        for key in sorted(keys):
            frame = self._open.pop(key)
            self._history.add(key, frame)
            if frame.is_straggler:
                self._taken["imaging"] -= frame.lines.readouts
                self._skip(
                    "after the end of their frame",
                    f"{frame.lines.readouts} readouts came after the end of their frame and are left out",
                    count=frame.lines.readouts,
                )
            else:
                done.append(self._raw_frame(key, frame))
                self._taken["frames"] += 1
            frame.lines.release()
        return done

    def _raw_frame(self, key: Key, frame: OpenFrame) -> RawFrame:
        _, y, z = frame.encoding.geometry.encoded_matrix
        imaging = frame.lines.mean(frame.lines)
        calibration, outside = self._calibration.find(key, frame.encoding)
        if outside:
            self._warn("calibration", f"{outside} calibration lines outside the encoded matrix are left out")
        coils = len(imaging.kspace)
        return RawFrame(
            imaging=imaging,
            calibration=calibration,
            noise=self._noise_of(coils),
            sample_time_us=frame.sample_time_us,
            key=key,
            geometry=frame.encoding.geometry,
            protocol=self._protocol(frame.encoding, coils=coils, acceleration=y * z / len(frame.lines)),
            reference=frame.reference,
            average_count=frame.lines.readouts / len(frame.lines),
        )

    def _noise_of(self, coils: int) -> Noise | None:
        try:
            return noise_for(self.noise, self._kept_noise, self._scan.coil_labels, coils=coils)
        except InvalidFrame as error:
            self._warn("noise", f"{error}; noise is estimated from the data instead")
            return None

    def _protocol(self, encoding: Encoding, *, coils: int, acceleration: float) -> Protocol:
        return Protocol(
            name=self._scan.protocol_name,
            sequence=self._scan.sequence,
            anatomy=self._scan.anatomy,
            vendor=self._scan.vendor,
            field_strength_T=self._scan.field_strength_T,
            trajectory="cartesian",
            matrix=encoding.matrix,
            acceleration=acceleration,
            coils=coils,
        )

    def _skip(self, reason: str, text: str, *, count: int = 1) -> None:
        self._skipped[reason] += count
        self._warn(reason, text)

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            observe(Warned(text=text))


def _key(acquisition: ismrmrd.Acquisition) -> Key:
    idx = acquisition.idx
    return Key(
        slice=idx.slice,
        contrast=idx.contrast,
        phase=idx.phase,
        repetition=idx.repetition,
        set=idx.set,
        encoding_space=acquisition.encoding_space_ref,
    )


def _line(encoding: Encoding, step_1: int, step_2: int) -> Line:
    """Encoding steps to ``(kz, ky)``, the header's centers at ``n // 2``; a 2-D frame has one partition only."""
    _, y, z = encoding.geometry.encoded_matrix
    ky = step_1 + y // 2 - encoding.step_1.center
    if z == 1:
        return (0 if step_2 in (0, encoding.step_2.center) else -1), ky
    return step_2 + z // 2 - encoding.step_2.center, ky
