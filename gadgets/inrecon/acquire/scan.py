"""What the scan header says, checked: the nouns that `parse_header` gives and `Accumulator` works from."""

from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """One encoding space of the header.

    `averages` .. `sets` are how many values each counter takes (1 where the header does not say), `acceleration`
    the nominal factors along step 1 and 2.
    """

    geometry: Geometry
    step_1: Limits
    step_2: Limits
    averages: int = 1
    slices: int = 1
    contrasts: int = 1
    phases: int = 1
    repetitions: int = 1
    sets: int = 1
    trajectory: str = "cartesian"
    calibration_mode: CalibrationMode | None = None
    acceleration: tuple[int, int] = (1, 1)

    @property
    def calibrates_apart(self) -> bool:
        """Whether calibration readouts are a scan of their own, not lines of the image."""
        return self.calibration_mode in ("separate", "external")

    @property
    def matrix(self) -> tuple[int, int]:
        """Encoded ``(y, x)`` without readout oversampling, told by the ratio of the fields of view."""
        x, y, _ = self.geometry.encoded_matrix
        kept = round(x * self.geometry.recon_fov_mm[0] / self.geometry.encoded_fov_mm[0])
        return y, min(max(kept, 1), x)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One measurement as its ISMRMRD header describes it; None is 'the header does not say'.

    `relative_bandwidth` is the receiver's noise bandwidth over its sampling bandwidth; `noise_dependencies` are the
    IDs of measurements whose noise readouts serve this one.
    """

    encodings: tuple[Encoding, ...]
    measurement_id: str | None = None
    protocol_name: str | None = None
    sequence: str | None = None
    anatomy: str | None = None
    vendor: str | None = None
    field_strength_T: float | None = None
    receiver_channels: int | None = None
    relative_bandwidth: float = 0.793
    noise_dependencies: tuple[str, ...] = ()
