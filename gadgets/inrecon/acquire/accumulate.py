"""Acquisitions to frames: which readouts belong together, and when a frame is complete."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import ismrmrd

from inrecon.acquire.buffers import Budget, CalibrationStore, Line, LineBuffer, NoiseSum
from inrecon.acquire.readout import (
    CALIBRATION,
    LAST_IN_MEASUREMENT,
    LAST_IN_REPETITION,
    LAST_IN_SLICE,
    NOISE,
    Placed,
    dwell_us,
    kept_samples,
    place,
    purpose,
)
from inrecon.acquire.scan import FRAME_BYTES_LIMIT, SAMPLE_BYTES, Encoding, Scan
from inrecon.errors import InvalidFrame
from inrecon.events import Warned, observe
from inrecon.frame import Key, Noise, Protocol, RawFrame


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How many readouts were taken as what, or `skipped` by reason; `complete` if no frame waits for its end."""

    imaging: int
    calibration: int
    noise: int
    skipped: Mapping[str, int]
    frames: int
    complete: bool

    def __str__(self) -> str:
        skipped = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items())) or "none"
        return (
            f"{self.frames} frames of {self.imaging} imaging readouts; {self.calibration} calibration readouts, "
            f"{self.noise} noise readouts; skipped: {skipped}"
        )


class _OpenFrame:
    """Imaging readouts of one frame so far, and the header of the one nearest the centre of k-space."""

    def __init__(self, encoding: Encoding, *, budget: Budget, follows: int) -> None:
        x, y, z = encoding.geometry.encoded_matrix
        self.encoding = encoding
        self.lines = LineBuffer(x, budget=budget)
        self.follows = follows  # lines of the frame that ended before this one began under the same counters
        self.reference = b""
        self.sample_time_us = 0.0
        self._center = z // 2, y // 2
        self._nearest: tuple[int, ...] | None = None

    def add(self, acquisition: ismrmrd.Acquisition, line: Line, placed: Placed) -> None:
        self.lines.add(line, placed)
        distance = sum((at - center) ** 2 for at, center in zip(line, self._center, strict=True))
        rank = (distance, *line, acquisition.idx.average, acquisition.scan_counter)
        if self._nearest is None or rank < self._nearest:
            self._nearest = rank
            self.reference = bytes(acquisition.getHead())
            self.sample_time_us = dwell_us(acquisition)


class Accumulator:
    """Collects the readouts of a scan into frames.

    Readouts of one frame share slice, contrast, phase, repetition, set and encoding space; lines acquired more than
    once are averaged. A frame ends with LAST_IN_SLICE (of the last average, where the header counts several),
    LAST_IN_REPETITION, LAST_IN_MEASUREMENT, the first imaging readout of a later repetition, or `finish`.

    Readouts that come after the end of their frame begin a new frame with the same counters, as real-time streams
    that count nothing want it; a new frame that ends with fewer than half the lines of the one before is taken to be
    stragglers of that one and left out. Both are announced (`Warned`), as is everything else that is left out, once
    a kind; `summary` counts them.
    """

    def __init__(self, scan: Scan, *, limit_bytes: int = FRAME_BYTES_LIMIT) -> None:
        self._scan = scan
        self._limit_bytes = limit_bytes
        self._budget = Budget(limit_bytes)
        self._open: dict[Key, _OpenFrame] = {}
        self._ended: dict[Key, tuple[int, int]] = {}
        self._calibration = CalibrationStore(self._budget)
        self._noise = NoiseSum(scan.relative_bandwidth)
        self._channels: int | None = None
        self._taken: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._warned: set[str] = set()

    @property
    def noise(self) -> Noise | None:
        """What the noise readouts so far told."""
        return self._noise.noise()

    def add(self, acquisition: ismrmrd.Acquisition) -> list[RawFrame]:
        """Take one readout; gives the frames that it completes.

        Raises `InvalidFrame` if the readout holds no samples, values that are not finite or more samples than the
        encoded matrix, refers to no encoding space of the header, changes the number of channels, or needs more memory
        than is allowed. Such a readout is not part of any frame.
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
        return done + self._end(self._ended_by(flags, key, average=acquisition.idx.average))

    def finish(self) -> list[RawFrame]:
        """End of the stream: the frames that no flag ended."""
        done = self._end(self._open)
        if unused := self._calibration.unused():
            self._warn("unused", f"{unused} calibration readouts belong to no slice that was imaged, and are not used")
        return done

    def summary(self) -> Summary:
        """Counts so far."""
        return Summary(
            imaging=self._taken["imaging"],
            calibration=self._taken["calibration"],
            noise=self._taken["noise"],
            skipped=dict(self._skipped),
            frames=self._taken["frames"],
            complete=not self._open,
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
        done = self._end([earlier for earlier in self._open if earlier.repetition < key.repetition])
        frame = self._open.get(key) or self._begin(key, encoding)
        frame.add(acquisition, line, placed)
        self._open[key] = frame
        self._taken["imaging"] += 1
        return done

    def _encoding(self, space: int) -> Encoding:
        if space >= len(self._scan.encodings):
            raise InvalidFrame(
                f"a readout refers to encoding space {space}; the header describes {len(self._scan.encodings)}, from 0"
            )
        return self._scan.encodings[space]

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

    def _begin(self, key: Key, encoding: Encoding) -> _OpenFrame:
        repetition, lines = self._ended.get(replace(key, repetition=0), (-1, 0))
        follows = lines if key.repetition <= repetition else 0
        if follows:
            self._warn("late", "readouts came after the end of their frame; they begin a new one of the same counters")
        return _OpenFrame(encoding, budget=self._budget, follows=follows)

    def _ended_by(self, flags: int, key: Key, *, average: int) -> list[Key]:
        """Keys of the frames that the flags of a readout, of any kind, end."""
        if flags & LAST_IN_MEASUREMENT:
            return list(self._open)
        if flags & LAST_IN_REPETITION:
            return [open_ for open_ in self._open if open_.repetition == key.repetition]
        if flags & LAST_IN_SLICE and key in self._open and average + 1 >= self._open[key].encoding.averages:
            return [key]
        return []

    def _end(self, keys: Iterable[Key]) -> list[RawFrame]:
        done = []
        for key in sorted(keys):
            frame = self._open.pop(key)
            if 2 * len(frame.lines) < frame.follows:
                self._taken["imaging"] -= frame.lines.readouts
                self._skip(
                    "after the end of their frame",
                    f"{frame.lines.readouts} readouts came after the end of their frame and are left out",
                    count=frame.lines.readouts,
                )
            else:
                self._ended[replace(key, repetition=0)] = key.repetition, len(frame.lines)
                done.append(self._raw_frame(key, frame))
                self._taken["frames"] += 1
            frame.lines.release()
        return done

    def _raw_frame(self, key: Key, frame: _OpenFrame) -> RawFrame:
        _, y, z = frame.encoding.geometry.encoded_matrix
        imaging = frame.lines.mean(frame.lines)
        calibration, outside = self._calibration.find(key, frame.encoding)
        if outside:
            self._warn("calibration", f"{outside} calibration lines outside the encoded matrix are left out")
        coils = len(imaging.kspace)
        noise = self.noise
        if noise is not None and len(noise.covariance) != coils:
            self._warn(
                "noise", f"noise readouts of {len(noise.covariance)} channels do not fit data of {coils}; not used"
            )
            noise = None
        return RawFrame(
            imaging=imaging,
            calibration=calibration,
            noise=noise,
            sample_time_us=frame.sample_time_us,
            key=key,
            geometry=frame.encoding.geometry,
            protocol=self._protocol(frame.encoding, coils=coils, acceleration=y * z / len(frame.lines)),
            reference=frame.reference,
            average_count=frame.lines.readouts / len(frame.lines),
        )

    def _protocol(self, encoding: Encoding, *, coils: int, acceleration: float) -> Protocol:
        return Protocol(
            name=self._scan.protocol_name,
            sequence=self._scan.sequence,
            anatomy=self._scan.anatomy,
            vendor=self._scan.vendor,
            field_strength_T=self._scan.field_strength_T,
            trajectory=encoding.trajectory,
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
