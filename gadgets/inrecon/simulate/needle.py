"""A needle in tissue: a void, and what its susceptibility does to the signal around it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float64]
Place = tuple[float, float]

RADIUS_MM = 1.25
EDGE_MM = 0.4
ARRIVES = 0.6  # the part of the stream after which the target is reached


@dataclass(frozen=True, kw_only=True)
class Needle:
    """A straight needle from `entry`, at the skin, towards `target`: places of tissue at rest, in units of `unit_mm`.

    It has not entered at frame 0, and a new piece is in at each frame until the target is reached after 60 % of
    `frames`.
    """

    entry: Place
    target: Place
    frames: int
    unit_mm: float

    def tip(self, frame: int) -> Place | None:
        """Rest position of the tip, None while it is outside."""
        progress = min(frame / max(ARRIVES * (self.frames - 1), 1), 1)
        if progress == 0:
            return None
        along = np.subtract(self.target, self.entry) * progress
        return float(self.entry[0] + along[0]), float(self.entry[1] + along[1])

    def void(self, u: Real, v: Real, frame: int) -> NDArray[np.bool_]:
        """Which of the rest positions lie in the needle."""
        tip = self.tip(frame)
        if tip is None:
            return np.zeros(np.broadcast(u, v).shape, bool)
        across, beyond = self._distances(u, v, tip)
        return np.hypot(across, beyond) < RADIUS_MM

    def factor(self, u: Real, v: Real, frame: int) -> NDArray[np.complex128] | None:
        """What the signal of tissue at rest positions is multiplied by: the void, a halo of lost signal, brighter on
        one side, where that signal has gone, and a phase; None while the needle is outside."""
        tip = self.tip(frame)
        if tip is None:
            return None
        across, beyond = self._distances(u, v, tip)
        distance = np.hypot(across, beyond)
        signal = np.clip(0.5 + (distance - RADIUS_MM) / (2 * EDGE_MM), 0, 1)
        signal *= 1 - 0.5 * np.exp(-((distance / 2.2) ** 2)) + 0.3 * np.exp(-((across - 3.0) ** 2) - beyond**2)
        phase = 0.7 * np.tanh(across / 1.5) * np.exp(-distance / 5)
        return signal * np.exp(1j * phase)

    def _distances(self, u: Real, v: Real, tip: Place) -> tuple[Real, Real]:
        """mm to the needle's line, signed, and mm beyond either of its ends."""
        along = np.subtract(self.target, self.entry)
        x, y = along / np.hypot(*along)
        du, dv = (u - self.entry[0]) * self.unit_mm, (v - self.entry[1]) * self.unit_mm
        length = np.hypot(tip[0] - self.entry[0], tip[1] - self.entry[1]) * self.unit_mm
        depth = du * x + dv * y
        beyond = np.maximum(np.maximum(depth - length, -depth), 0)
        return dv * x - du * y, beyond
