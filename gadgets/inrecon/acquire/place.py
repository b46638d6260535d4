"""Where in the patient a frame lies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ismrmrd

from inrecon.frame import RawFrame

MOVED_MM = 0.5
TURNED = 1e-3


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Position of the centre; directions of readout, phase and slice one after the other."""

    position_mm: tuple[float, ...]
    directions: tuple[float, ...]

    @classmethod
    def of(cls, head: ismrmrd.AcquisitionHeader | ismrmrd.Acquisition) -> Pose:
        """That of a readout."""
        return cls(position_mm=tuple(head.position), directions=(*head.read_dir, *head.phase_dir, *head.slice_dir))

    @property
    def is_told(self) -> bool:
        """Whether the header says where it is."""
        return all(map(math.isfinite, (*self.position_mm, *self.directions)))

    def is_near(self, other: Pose) -> bool:
        """Whether both are the same but for half a millimetre and a milliradian, as headers are rounded.

        What is not a number is near to everything: a header that does not say where it is says of no movement.
        """
        # The first test is the fast one, and windows ask at every readout.
        return self == other or not (
            _differ(self.position_mm, other.position_mm, by=MOVED_MM)
            or _differ(self.directions, other.directions, by=TURNED)
        )


def _differ(one: tuple[float, ...], other: tuple[float, ...], *, by: float) -> bool:
    return any(abs(a - b) > by for a, b in zip(one, other, strict=True))


@dataclass(frozen=True, kw_only=True)
class Place:
    """The pose, and the encoded matrix and field of view ``(x, y, z)``."""

    pose: Pose
    matrix: tuple[int, int, int]
    fov_mm: tuple[float, float, float]

    @classmethod
    def of(cls, raw: RawFrame) -> Place:
        """That of `raw`."""
        head = ismrmrd.AcquisitionHeader.from_buffer_copy(raw.reference)
        geometry = raw.geometry
        return cls(pose=Pose.of(head), matrix=geometry.encoded_matrix, fov_mm=geometry.encoded_fov_mm)

    def is_near(self, other: Place) -> bool:
        """Whether both are the same, but for what a pose may differ by."""
        return (self.matrix, self.fov_mm) == (other.matrix, other.fov_mm) and self.pose.is_near(other.pose)
