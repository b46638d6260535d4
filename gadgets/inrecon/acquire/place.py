"""Where in the patient a frame lies."""

from __future__ import annotations

from dataclasses import dataclass

import ismrmrd
import numpy as np

from inrecon.frame import RawFrame

MOVED_MM = 0.5
TURNED = 1e-3


@dataclass(frozen=True, kw_only=True)
class Place:
    """Position of the centre; directions of readout, phase and slice one after the other; encoded matrix and field of
    view ``(x, y, z)``."""

    position_mm: tuple[float, float, float]
    directions: tuple[float, ...]
    matrix: tuple[int, int, int]
    fov_mm: tuple[float, float, float]

    @classmethod
    def of(cls, raw: RawFrame) -> Place:
        """That of `raw`."""
        head = ismrmrd.AcquisitionHeader.from_buffer_copy(raw.reference)
        geometry = raw.geometry
        return cls(
            position_mm=tuple(head.position),
            directions=(*head.read_dir, *head.phase_dir, *head.slice_dir),
            matrix=geometry.encoded_matrix,
            fov_mm=geometry.encoded_fov_mm,
        )

    def is_near(self, other: Place) -> bool:
        """Whether both are the same but for half a millimetre and a milliradian, as headers are rounded."""
        return (
            (self.matrix, self.fov_mm) == (other.matrix, other.fov_mm)
            and np.allclose(self.position_mm, other.position_mm, rtol=0, atol=MOVED_MM)
            and np.allclose(self.directions, other.directions, rtol=0, atol=TURNED)
        )
