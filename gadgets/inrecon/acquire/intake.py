"""What each readout is, whichever frame it becomes part of: noise, calibration, a line, or nothing that is wanted."""

from collections import Counter
from dataclasses import dataclass

import ismrmrd

from inrecon.acquire.buffers import Budget, CalibrationStore, Line, Memory, NoiseSum
from inrecon.acquire.kept_noise import noise_for
from inrecon.acquire.pending import OpenFrame
from inrecon.acquire.readout import CALIBRATION, NOISE, Placed, dwell_us, kept_samples, place, purpose
from inrecon.acquire.scan import SAMPLE_BYTES, Encoding, NotCartesian, Scan
from inrecon.acquire.summary import Summary
from inrecon.errors import InvalidFrame
from inrecon.events import Warned, observe
from inrecon.frame import Key, Noise, Protocol, RawFrame


@dataclass(frozen=True, kw_only=True)
class Imaging:
    """A readout that is line `line` ``(kz, ky)`` of the frame `key`."""

    acquisition: ismrmrd.Acquisition
    key: Key
    encoding: Encoding
    line: Line
    placed: Placed

    @property
    def size(self) -> int:
        """Bytes that its samples take as they came."""
        return len(self.placed.samples) * self.acquisition.number_of_samples * SAMPLE_BYTES


class Intake:
    """Sorts the readouts of a scan and makes `RawFrame` of the frames that an accumulator has collected.

    `budget` is for all buffers, `calibration` holds what is a scan of its own, `taken` counts readouts and frames by
    kind; imaging readouts and frames are counted by who collects them.
    """

    def __init__(self, scan: Scan, *, kept_noise: Noise | str, limit_bytes: int, memory: Memory | None) -> None:
        self._scan = scan
        self._limit_bytes = limit_bytes
        self.budget = Budget(limit_bytes, memory=memory)
        self.calibration = CalibrationStore(self.budget)
        self._noise = NoiseSum(scan.relative_bandwidth, coil_labels=scan.coil_labels)
        self._kept_noise = kept_noise if scan.noise_dependencies else None
        self._channels: int | None = None
        self.taken: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._warned: set[str] = set()

    @property
    def noise(self) -> Noise | None:
        """What the scan's own noise readouts so far told."""
        return self._noise.noise()

    def take(self, acquisition: ismrmrd.Acquisition) -> Imaging | None:
        """Where a readout goes in its frame; None for one that is no part of any, and has been seen to.

        Raises `InvalidFrame` as `Accumulator.add` does.
        """
        flags = int(acquisition.flags)
        if flags & NOISE:
            self._noise.add(kept_samples(acquisition), sample_time_us=dwell_us(acquisition))
            self.taken["noise"] += 1
            return None
        if (reason := purpose(flags)) is not None:
            self.skip(reason, f"readouts marked as {reason} are not part of the image and are left out")
            return None
        return self._line_of(acquisition, key_of(acquisition), calibration=bool(flags & CALIBRATION))

    def _line_of(self, acquisition: ismrmrd.Acquisition, key: Key, *, calibration: bool) -> Imaging | None:
        encoding = self._encoding(key.encoding_space)
        x, y, z = encoding.geometry.encoded_matrix
        placed = place(acquisition, x)
        self._check_channels(len(placed.samples), encoding)
        if placed.remark is not None:
            self.warn(placed.remark, placed.remark)
        step_1, step_2 = acquisition.idx.kspace_encode_step_1, acquisition.idx.kspace_encode_step_2
        if calibration and encoding.calibrates_apart:
            self.calibration.add(key, (step_2, step_1), placed, width=x)
            self.taken["calibration"] += 1
            return None
        if step_1 not in encoding.step_1 or (z > 1 and step_2 not in encoding.step_2):
            self.skip("outside the encoding limits", "lines outside the header's encoding limits are left out")
            return None
        line = _line(encoding, step_1, step_2)
        if not (0 <= line[0] < z and 0 <= line[1] < y):
            self.skip("outside the encoded matrix", "lines outside the header's encoded matrix are left out")
            return None
        if not placed.samples.any():
            # As files hold them that were filled up to a full matrix; no receiver gives exact zeros.
            self.skip("all zero", "readouts whose samples are all zero count as not acquired")
            return None
        return Imaging(acquisition=acquisition, key=key, encoding=encoding, line=line, placed=placed)

    def raw_frame(self, key: Key, frame: OpenFrame) -> RawFrame:
        """What `frame` holds, with the calibration and the noise that belong to it; raises `InvalidFrame`."""
        _, y, z = frame.encoding.geometry.encoded_matrix
        imaging = frame.lines.mean(frame.lines)
        calibration, outside = self.calibration.find(key, frame.encoding)
        if outside:
            self.warn("calibration", f"{outside} calibration lines outside the encoded matrix are left out")
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
            self.warn("noise", f"{error}; noise is estimated from the data instead")
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

    def forget_channels(self) -> int | None:
        """Let the next readout say anew how many channels the scan has; gives the number until now."""
        known, self._channels = self._channels, None
        return known

    def expect_channels(self, channels: int | None) -> None:
        """Refuse readouts of other numbers of channels; None: as the next readout says."""
        self._channels = channels

    def tell_unused(self) -> None:
        """At the end of a scan: announce calibration that was of no use."""
        if unused := self.calibration.unused():
            self.warn(
                "unused",
                f"{unused} calibration readouts are not used: they came after the images of their slice, or their "
                "slice was not imaged",
            )

    def summary(self) -> Summary:
        """Counts so far."""
        return Summary(
            imaging=self.taken["imaging"],
            calibration=self.taken["calibration"],
            noise=self.taken["noise"],
            skipped=dict(self._skipped),
            frames=self.taken["frames"],
        )

    def close(self) -> None:
        """Give back the memory that everything holds."""
        self.budget.close()

    def skip(self, reason: str, text: str, *, count: int = 1) -> None:
        """Count readouts that are left out, and announce the first of each reason."""
        self.count_skipped(reason, count=count)
        self.warn(reason, text)

    def count_skipped(self, reason: str, *, count: int = 1) -> None:
        """Count readouts that are left out."""
        self._skipped[reason] += count

    def warn(self, kind: str, text: str) -> None:
        """Announce `text`, the first of its kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            observe(Warned(text=text))

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


def key_of(acquisition: ismrmrd.Acquisition) -> Key:
    """The counters of the image that a readout is part of."""
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
