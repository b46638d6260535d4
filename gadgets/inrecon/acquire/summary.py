"""What became of the readouts of a scan."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How many readouts were taken as what, or `skipped` by reason, and how many `frames` they made."""

    imaging: int
    calibration: int
    noise: int
    skipped: Mapping[str, int]
    frames: int

    def __str__(self) -> str:
        skipped = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items())) or "none"
        return (
            f"{self.frames} frames of {self.imaging} imaging readouts; {self.calibration} calibration readouts, "
            f"{self.noise} noise readouts; skipped: {skipped}"
        )
