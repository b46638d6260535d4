"""How near the image of a frame is to the truth, where it counts.

PSNR of the whole image hides the point of an intervention: most of it is as it was. So errors are taken where the
object has changed, too, and around the needle, relative to those of an image that lacks the change, or the needle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from inrecon.acquire import Accumulator, parse_header
from inrecon.frame import RawFrame
from inrecon.methods.network import surrounded
from inrecon.quality import change_error, psnr, scale_to
from inrecon.simulate import Intervention

Real = NDArray[np.float64]
Mask = NDArray[np.bool_]

NEWEST = 3
"""Frames: the piece of the needle that has come in since is its tip."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A frame as it is: its readouts, and magnitudes ``(rows, columns)`` of what is true.

    `first` is the truth of the first frame, `bare` that of this frame if there were no needle. `changed` is where this
    frame differs from the first one, `needle` the void and two pixels around it, `tip` the part of the void that has
    come in within the last three frames.
    """

    number: int
    raw: RawFrame
    truth: Real
    first: Real
    bare: Real
    support: Mask
    changed: Mask
    needle: Mask
    tip: Mask

    def scores(self, image: Real) -> dict[str, float]:
        """Of the magnitude `image`, scaled to the truth by least squares in the support.

        `psnr` in dB in the support. `changed`: the error where the object has changed over that of the first frame's
        truth there. `needle`: the error around the needle over that of the truth without it. `contrast` and `tip`: the
        part of what the needle takes from the signal, around it and at its tip, that the image shows. Those that there
        is nothing to measure by are left out.
        """
        fitted = np.abs(image) * scale_to(image, self.truth, self.support)
        found = {"psnr": psnr(image, self.truth, self.support)}
        for name, before, where in (("changed", self.first, self.changed), ("needle", self.bare, self.needle)):
            if where.any():
                found[name] = change_error(image, self.truth, before, support=self.support, changed=where)
        if self.needle.any():
            found["contrast"] = self._shown(fitted, self.needle)
        if self.tip.any():
            found["tip"] = self._shown(fitted, self.tip)
        return found

    def _shown(self, fitted: Real, where: Mask) -> float:
        """How much of the needle's shadow `fitted` has, by its projection on the true one."""
        shadow = (self.bare - self.truth)[where]
        return float(np.vdot(shadow, (self.bare - fitted)[where]) / np.vdot(shadow, shadow))


@dataclass(frozen=True)
class Course:
    """The moments of a stream, one after the other."""

    stream: Intervention

    def __iter__(self) -> Iterator[Moment]:
        accumulator = Accumulator(parse_header(self.stream.header))
        for number in range(self.stream.frames):
            raws = [raw for a in self.stream.acquisitions(number) for raw in accumulator.add(a)]
            (raw,) = raws or accumulator.finish()
            yield self._moment(number, raw)

    def _moment(self, number: int, raw: RawFrame) -> Moment:
        truth, void = self._truth(self.stream, number), self.stream.needle(number)
        return Moment(
            number=number,
            raw=raw,
            truth=truth,
            first=self._first,
            bare=self._truth(self._bare, number) if void.any() else truth,
            support=self.stream.support(number),
            changed=self.stream.changed(number),
            needle=surrounded(torch.from_numpy(void)).numpy(),
            tip=void & ~self.stream.needle(max(number - NEWEST, 0)),
        )

    @cached_property
    def _first(self) -> Real:
        return self._truth(self.stream, 0)

    @cached_property
    def _bare(self) -> Intervention:
        return replace(self.stream, scene=replace(self.stream.scene, needle=None))

    @staticmethod
    def _truth(stream: Intervention, number: int) -> Real:
        return np.abs(stream.truth(number)).astype(np.float64)
