"""An object that moves: painted once at rest, finely, and pulled to where it is in a frame."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from inrecon.simulate.motion import Motion, Places, Real, modes, vessels
from inrecon.simulate.needle import Needle
from inrecon.simulate.phantom import positions, random_fields

Array = NDArray[np.complex64]
Mask = NDArray[np.bool_]

PULSATION = 0.08  # of the signal of vessels
FIELD_SHIFT = 0.15  # radians that a breath turns the phase by: air that comes and goes


@dataclass(frozen=True, kw_only=True)
class MovingObject:
    """Slices in motion, their needle, and pictures of them.

    `rest` ``(slices, 4 y, 4 x)`` complex64: the object at rest at four times the resolution of the matrix, since linear
    interpolation there costs its finest details 8 % at most. Pictures ``(2 y, 2 x)`` have twice that resolution, masks
    that of the matrix. `aspect` is the field of view's height over its width. `needle` is in slice ``slices // 2``,
    None for none. Slices follow each other within a frame.
    """

    rest: Array
    motion: Motion
    needle: Needle | None
    aspect: float = 1.0

    def time(self, frame: int, index: int) -> float:
        """When slice `index` of `frame` is taken, in frames."""
        return frame + index / len(self.rest)

    def picture(self, frame: int, index: int) -> Array:
        """The object in slice `index` of `frame`; all of one frame is one moment."""
        time, still = self.time(frame, index), self._still[self.motion.shifted(frame)]
        u, v = self._pulled(frame, index)
        signal: NDArray[np.complex128] = self._interpolated(index, u, v).astype(np.complex128)
        pulse = PULSATION * self.motion.amount * self.motion.pulse(time)
        turn = FIELD_SHIFT * self.motion.amount * self.motion.breathing(time)
        if pulse:
            signal *= 1 + pulse * still.vessels
        if turn:
            signal *= np.exp(1j * turn * self._field)
        if self.needle is not None and self.has_needle(index):
            factor = self.needle.factor(u, v, frame)
            if factor is not None:
                signal *= factor
        return signal.astype(np.complex64)

    def support(self, frame: int, index: int) -> Mask:
        """Where the object is: the nearest place at rest is not exactly zero."""
        rows, columns = self._indices(*(one[self._aligned] for one in self._pulled(frame, index)))
        found: Mask = self.rest[index, np.rint(rows).astype(int), np.rint(columns).astype(int)] != 0
        return found

    def void(self, frame: int, index: int) -> Mask:
        """Where the needle is."""
        u, v = (one[self._aligned] for one in self._pulled(frame, index))
        if self.needle is None or not self.has_needle(index):
            return np.zeros(u.shape, bool)
        return self.needle.void(u, v, frame)

    def tip(self, frame: int) -> tuple[float, float] | None:
        """The needle's tip ``(y, x)`` in pixels of the matrix, None where none has entered."""
        rest = None if self.needle is None else self.needle.tip(frame)
        if rest is None:
            return None
        u, v = self.motion.ahead(rest, frame, self.time(frame, len(self.rest) // 2))
        rows, columns = (n // 4 for n in self.rest.shape[1:])
        return v / self.aspect * rows / 2 + rows // 2, u * columns / 2 + columns // 2

    def has_needle(self, index: int) -> bool:
        """Whether the needle goes through slice `index`."""
        return self.needle is not None and index == len(self.rest) // 2

    def _pulled(self, frame: int, index: int) -> Places:
        still = self._still[self.motion.shifted(frame)]
        far = self.motion.amplitudes(self.time(frame, index))
        if not far.any():
            return still.u, still.v
        du, dv = np.tensordot(far, still.modes, 1)
        return still.u - du, still.v - dv

    def _indices(self, u: Real, v: Real) -> tuple[Real, Real]:
        height, width = self.rest.shape[1:]
        rows, columns = v / self.aspect * height / 2 + height // 2, u * width / 2 + width // 2
        return np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)  # beyond the edge is what is there

    def _interpolated(self, index: int, u: Real, v: Real) -> Array:
        rows, columns = self._indices(u, v)
        height, width = self.rest.shape[1:]
        top, left = (np.minimum(at.astype(np.intp), n - 2) for at, n in ((rows, height), (columns, width)))
        below, right = (rows - top).astype(np.float32), (columns - left).astype(np.float32)
        flat, at = self.rest[index].reshape(-1), top * width + left
        upper = flat[at] * (1 - right) + flat[at + 1] * right
        lower = flat[at + width] * (1 - right) + flat[at + width + 1] * right
        values: Array = upper * (1 - below) + lower * below
        return values

    @cached_property
    def _aligned(self) -> tuple[slice, slice]:
        """Places of pictures that are places of the matrix, too."""
        rows, columns = (n // 4 for n in self.rest.shape[1:])
        return np.s_[rows % 2 :: 2, columns % 2 :: 2]

    @cached_property
    def _places(self) -> Places:
        height, width = (n // 2 for n in self.rest.shape[1:])
        u, v = np.broadcast_arrays(*positions((height, width)))
        return u, v * self.aspect

    @cached_property
    def _still(self) -> tuple[_Still, ...]:
        """Before the patient has shifted and, if ever, after."""
        places = [self._places]
        if self.motion.shift_at is not None:
            places.append(self.motion.unshifted(self._places))
        return tuple(_Still(u=u, v=v, modes=modes(u, v), vessels=vessels(u, v)) for u, v in places)

    @cached_property
    def _field(self) -> Real:
        rng = np.random.default_rng((self.motion.seed, 5))
        return random_fields(rng, self._places[0].shape)(1.5)


@dataclass(frozen=True, kw_only=True)
class _Still:
    """What of a motion is the same in many frames: places in the body, how they move, where the pulse shows."""

    u: Real
    v: Real
    modes: Real
    vessels: Real


def way_in(
    rest: Array, target: tuple[float, float], towards: tuple[float, float], *, aspect: float = 1.0
) -> tuple[float, float]:
    """Where a straight line from `target`, going `towards` the outside, leaves the object ``(4 y, 4 x)`` for good."""
    height, width = rest.shape
    direction = np.array(towards) / np.hypot(*towards)
    inside = target
    for distance in np.arange(0, 3, 1 / width):
        u, v = target + distance * direction
        row, column = round(v / aspect * height / 2 + height // 2), round(u * width / 2 + width // 2)
        if not (0 <= row < height and 0 <= column < width):
            break
        if rest[row, column]:
            inside = (float(u), float(v))
    return inside
