"""How an object moves under its coils: breath, pulse, bowel, and a patient who shifts.

Everything is a pull-back: for each place of the picture, where the tissue that is there now lies at rest. Places are
``(u, v)`` in halves of the field of view along x, so that both axes have one unit; times count frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inrecon.simulate.abdomen import AORTA, LIVER_CENTRE

Real = NDArray[np.float64]
Places = tuple[Real, Real]

WALL_MM, LIVER_MM, PULSE_MM, BOWEL_MM = 7.0, 5.0, 0.5, 2.0
SHIFT_MM, SHIFT_DEGREES = (6.0, 5.3), 3.0  # 8 mm
FRAMES_A_BEAT, FRAMES_A_WAVE = 2.6, 23.0


@dataclass(frozen=True, kw_only=True)
class Motion:
    """A course of motion drawn from `seed`, still at time 0.

    `amount` 0 is no motion and 1 a quiet one: the front of the body rises by about 7 mm a breath. `breath` is the
    number of frames a breath takes, each deeper or shallower, longer or shorter than the last. From frame `shift_at` on
    the whole object is shifted by 8 mm and turned by 3 degrees. `half_mm` is half the width of the field of view.
    """

    amount: float
    breath: float
    shift_at: int | None
    half_mm: float
    seed: int

    def shifted(self, frame: int) -> bool:
        """Whether the patient has shifted."""
        return self.shift_at is not None and frame >= self.shift_at

    def breathing(self, time: float) -> float:
        """0 at the end of a breath out, about 1 at the end of one in."""
        drift, depth = np.random.default_rng((self.seed, 4)).uniform(0, 2 * np.pi, 2)
        cycles = time / self.breath
        cycles += 0.10 * (np.sin(2 * np.pi * 0.31 * cycles + drift) - np.sin(drift))
        return float((1 + 0.25 * np.sin(2 * np.pi * 0.23 * cycles + depth)) * np.sin(np.pi * cycles) ** 4)

    def pulse(self, time: float) -> float:
        """-1 to 1."""
        return float(np.sin(2 * np.pi * time / FRAMES_A_BEAT))

    def amplitudes(self, time: float) -> Real:
        """How far each of `modes` is gone, in halves of the field of view."""
        breath, bowel = self.breathing(time), np.sin(2 * np.pi * time / FRAMES_A_WAVE)
        course = (WALL_MM * breath, LIVER_MM * breath, PULSE_MM * self.pulse(time), BOWEL_MM * bowel)
        return np.array(course) * (self.amount / self.half_mm)

    def unshifted(self, places: Places) -> Places:
        """Where what is at `places` after the shift was before it."""
        u, v = (one - by / self.half_mm for one, by in zip(places, SHIFT_MM, strict=True))
        turn = np.deg2rad(SHIFT_DEGREES)
        return u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)

    def ahead(self, place: tuple[float, float], frame: int, time: float) -> tuple[float, float]:
        """Where the tissue of rest position `place` is: the inverse of the pull-back, in one place."""
        far, (u, v) = self.amplitudes(time), place
        for _ in range(50):  # displacements vary by less than half of a distance (up to 3), so this converges
            du, dv = np.tensordot(far, modes(np.array([u]), np.array([v])), 1)[:, 0]
            u, v = place[0] + du, place[1] + dv
        if self.shifted(frame):
            cosine, sine = np.cos(np.deg2rad(SHIFT_DEGREES)), np.sin(np.deg2rad(SHIFT_DEGREES))
            u, v = u * cosine - v * sine, v * cosine + u * sine
            u, v = u + SHIFT_MM[0] / self.half_mm, v + SHIFT_MM[1] / self.half_mm
        return float(u), float(v)


def modes(u: Real, v: Real) -> Real:
    """Ways to move ``(mode, 2, *places)``, their largest displacement about 1: the front of the body, the liver, around
    the aorta, the bowel."""
    front = np.clip((0.35 - v) / 1.0, 0, 1)
    rise = front**2 * (3 - 2 * front)
    liver = _bump(u, v, LIVER_CENTRE, 0.40)
    aorta, bowel = 28 * _bump(u, v, AORTA, 0.06), _bump(u, v, (0.25, -0.05), 0.22)
    return np.stack(
        [
            np.stack(np.broadcast_arrays(0.25 * u * rise, -rise)),
            np.stack(np.broadcast_arrays(-0.35 * liver, 0.94 * liver)),
            np.stack(np.broadcast_arrays((u - AORTA[0]) * aorta, (v - AORTA[1]) * aorta)),
            np.stack(np.broadcast_arrays(0.8 * bowel, 0.6 * bowel)),
        ]
    )


def vessels(u: Real, v: Real) -> Real:
    """Where the signal goes with the pulse, 1 at most."""
    return _bump(u, v, AORTA, 0.08) + 0.4 * _bump(u, v, (-0.14, -0.02), 0.20)


def _bump(u: Real, v: Real, centre: tuple[float, float], width: float) -> Real:
    return np.exp(-((u - centre[0]) ** 2 + (v - centre[1]) ** 2) / width**2)
