"""What the scan header says, checked: the nouns that `parse_header` gives and `Accumulator` works from."""

from dataclasses import dataclass, field, replace
from typing import Literal

from inrecon.frame import Geometry

CalibrationMode = Literal["embedded", "interleaved", "separate", "external", "other"]
CALIBRATION_MODES: tuple[CalibrationMode, ...] = ("embedded", "interleaved", "separate", "external", "other")

FRAME_BYTES_LIMIT = 8 * 2**30
"""The largest encoded matrix, all coils, that is taken on; also what unfinished frames may hold together."""

SAMPLE_BYTES = 8
"""Size of one complex64 sample."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Range of a phase-encoding counter, both ends included; `center` is the step at the centre of k-space."""

    minimum: int
    maximum: int
    center: int

    def __contains__(self, step: int) -> bool:
        return self.minimum <= step <= self.maximum

    def inside(self, size: int) -> int:
        """How many of the steps fall on a matrix of `size` with the centre of k-space at ``size // 2``."""
        first = self.center - size // 2
        return max(min(self.maximum, first + size - 1) - max(self.minimum, first) + 1, 0)


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """One Cartesian encoding space of the header; `averages` is None where the header does not count them."""

    geometry: Geometry
    step_1: Limits
    step_2: Limits
    averages: int | None = None
    calibration_mode: CalibrationMode | None = None

    @property
    def calibrates_apart(self) -> bool:
        """Whether calibration readouts are a scan of their own, not lines of the image."""
        return self.calibration_mode in ("separate", "external")

    @property
    def lines(self) -> int:
        """Lines of a frame that is sampled wherever the limits and the matrix allow."""
        _, y, z = self.geometry.encoded_matrix
        return self.step_1.inside(y) * (self.step_2.inside(z) if z > 1 else 1)

    @property
    def matrix(self) -> tuple[int, int]:
        """Encoded ``(y, x)`` without readout oversampling."""
        return self.geometry.encoded_matrix[1], self.geometry.readout_size


@dataclass(frozen=True, kw_only=True)
class NotCartesian:
    """An encoding space that keeps its number and no more, since no readout of an image can refer to it."""

    trajectory: str


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One measurement as its ISMRMRD header describes it; None is 'the header does not say'.

    `relative_bandwidth` is the receiver's noise bandwidth over its sampling bandwidth; `coil_labels` names the coils in
    the order of the channels; `noise_dependencies` are the measurement IDs of the noise scans that belong to this one.
    Identifiers may be those of a patient, or hold them: they are left out of `repr`.
    """

    encodings: tuple[Encoding | NotCartesian, ...]
    protocol_name: str | None = None
    sequence: str | None = None
    anatomy: str | None = None
    vendor: str | None = None
    field_strength_T: float | None = None
    relative_bandwidth: float = 0.793
    coil_labels: tuple[str, ...] = ()
    measurement_id: str | None = field(default=None, repr=False)
    device_id: str | None = field(default=None, repr=False)
    subject_id: str | None = field(default=None, repr=False)
    study_id: str | None = field(default=None, repr=False)
    noise_dependencies: tuple[str, ...] = field(default=(), repr=False)

    def without_oversampling(self) -> "Scan":
        """The scan of the same readouts once their oversampling has been removed."""
        encodings = tuple(
            replace(encoding, geometry=encoding.geometry.without_oversampling())
            if isinstance(encoding, Encoding)
            else encoding
            for encoding in self.encodings
        )
        return replace(self, encodings=encodings)
