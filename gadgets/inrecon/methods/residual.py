"""Frames told by how they differ from a prior image: what has moved, and what is new.

x(r) = prior(r + u(r)) + d(r). The displacement u is smooth (`Displacement`); the difference d is what the methods here
differ in. Without a prior it is the whole image.
"""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from functools import cached_property
from typing import ClassVar

import torch

from inrecon.deadline import DEADLINE, time_left
from inrecon.errors import FitDiverged
from inrecon.frame import CoilMaps, Frame, Reconstruction
from inrecon.methods.displacement import Displacement
from inrecon.methods.held_out import HELD_OUT, hold_out
from inrecon.methods.method import Method, announced, bounded, methods, tunable
from inrecon.methods.total_variation import differences, differences_adjoint
from inrecon.operators import ColumnSense

PREPARED_BYTES = 512 << 20
"""How much of what depends on patterns of samples alone is kept in a process, the least recently used of it going."""
UNKNOWN_NOISE = 0.01
"""What is taken for the noise where it is not known, as a part of the root mean square of the samples."""
STEP = 10.0
"""Of the primal-dual iteration, over the largest eigenvalue of A^H A, which is 1: the best of 1, 3 and 10."""
FULL_SHARE = 0.25
"""Of the iterations, how many come once the held-out samples have judged, and see them."""


class Prepared:
    """What depends on the samples of an operator, and its coil maps, alone: its columns' matrices."""

    def __init__(self, operator: ColumnSense, maps: CoilMaps) -> None:
        self.operator = operator
        self.maps = maps
        self._inverses: dict[float, torch.Tensor] = {}

    @cached_property
    def grams(self) -> torch.Tensor:
        """A^H A of each column."""
        return self.operator.grams()

    @property
    def bytes(self) -> int:
        """What it holds."""
        own = [self.grams] if "grams" in self.__dict__ else []
        return sum(matrices.nbytes for matrices in [*own, *self._inverses.values()])

    def solve(self, right_hand_side: torch.Tensor, *, weight: float) -> torch.Tensor:
        """(A^H A + weight)^-1 b."""
        if weight not in self._inverses:
            self._inverses[weight] = self.operator.inverses(weight)
        return self.operator.solve(self._inverses[weight], right_hand_side, weight=weight)


_prepared: OrderedDict[tuple[int, bytes], Prepared] = OrderedDict()


def prepared(frame: Frame) -> Prepared:
    """What is known of the samples of `frame`, arranged by columns: all fits of a process share it."""
    operator = frame.operator
    if not isinstance(operator, ColumnSense):
        raise TypeError("a frame that is not arranged by columns")
    # The maps are held as long as the entry: no others can have their address meanwhile.
    key = id(frame.maps), operator.mask.cpu().numpy().tobytes()
    if key not in _prepared:
        held = sum(one.bytes for one in _prepared.values())
        while _prepared and held > PREPARED_BYTES:
            held -= _prepared.popitem(last=False)[1].bytes
        _prepared[key] = Prepared(operator, frame.maps)
    _prepared.move_to_end(key)
    return _prepared[key]


def forget_prepared() -> None:
    """Give back the memory that is held for frames to come."""
    _prepared.clear()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A frame with the prior taken off: `missing` is y - A base, of the samples that `prepared` knows."""

    prepared: Prepared
    missing: torch.Tensor
    noise: float

    @property
    def operator(self) -> ColumnSense:
        """A."""
        return self.prepared.operator

    @cached_property
    def back_projection(self) -> torch.Tensor:
        """A^H (y - A base)."""
        return self.operator.adjoint(self.missing)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
    """What the next frame goes on from: control points of the displacement ``(2, points, points)`` in pixels, if there
    is one, and the `Difference.state`."""

    control: torch.Tensor | None
    state: tuple[torch.Tensor, ...]


class Tracker:
    """Frames of one slice that have one prior, one after the other: what does not change is made once, and each fit
    goes on from the last one. Frames may have different samples."""

    def __init__(self, method: ResidualMethod, frame: Frame) -> None:
        self._method = method
        self._prior = frame.prior
        self._displacement: Displacement | None = None
        if frame.prior is not None and method.displacement > 0:
            self._displacement = Displacement(frame.prior, method.displacement)
        self._difference = method.difference(columnwise(frame))

    def follow(self, frame: Frame) -> Reconstruction:
        """The next frame; its prior is that of the first one. Raises `FitDiverged`.

        A frame that is not by columns gets no trial: what is held out of it is not what can be held out here.
        """
        started, given = time.perf_counter(), frame
        frame = columnwise(frame)
        seen, everything = prepared(frame.training), prepared(frame)
        base = self._base(seen, frame)
        result = self._difference.fit(
            frame, base, seen=_problem(seen, frame.training, base), everything=_problem(everything, frame, base)
        )
        if not torch.isfinite(torch.view_as_real(result.image)).all():
            raise FitDiverged(f"{self._method.name} diverged: its image is not finite")
        if frame is not given:
            result = dataclasses.replace(result, trial=None, validation_loss=None)
        if self._displacement is not None:
            remark = f"tissue moved by up to {self._displacement.largest:.1f} pixels"
            result = dataclasses.replace(result, remark="; ".join(filter(None, (result.remark, remark))))
        return announced(result, method=self._method.name, started=started)

    def realigned(self, frame: Frame, image: torch.Tensor) -> Tracker:
        """Another tracker, that begins where the prior, moved as a whole, is nearest to `image` of this frame."""
        other = self._another(frame)
        if other._displacement is not None:
            other._displacement.realign(image)
        return other

    def _another(self, frame: Frame) -> Tracker:
        """One with the same prior that has followed nothing yet."""
        return Tracker(self._method, dataclasses.replace(frame, prior=self._prior))

    @property
    def kept(self) -> Kept:
        """What the next frame goes on from; it is not changed by what follows."""
        control = None if self._displacement is None else self._displacement.control
        return Kept(control=control, state=self._difference.state)

    def resumed(self, frame: Frame, kept: Kept) -> Tracker:
        """Another tracker, that goes on from `kept`: frames since then have left no trace in it."""
        other = self._another(frame)
        if other._displacement is not None and kept.control is not None:
            other._displacement.control = kept.control
        other._difference.resume(kept.state)
        return other

    def linear(self, frame: Frame, *, weight: float) -> torch.Tensor:
        """argmin |A x - y|^2 + weight |x|^2 of the samples of `frame`, in closed form."""
        frame = columnwise(frame)
        known = prepared(frame)
        return known.solve(known.operator.adjoint(frame.kspace), weight=weight)

    def _base(self, seen: Prepared, frame: Frame) -> torch.Tensor:
        """The prior as it would look now."""
        if self._prior is None:
            return nothing(frame)
        if self._displacement is None:
            return self._prior
        known = frame.training.kspace - seen.operator.forward(self._difference.image)
        self._displacement.follow(seen.operator, known, grams=seen.grams, noise=noise_of(frame))
        return self._displacement.image()


def _problem(known: Prepared, frame: Frame, base: torch.Tensor) -> Problem:
    missing = frame.kspace - known.operator.forward(base)
    return Problem(prepared=known, missing=missing, noise=noise_of(frame))


def noise_of(frame: Frame) -> float:
    """Standard deviation of a sample; a part of what the samples themselves are, where it is not known."""
    return frame.noise_level or UNKNOWN_NOISE * frame.power**0.5 or 1.0


def columnwise(frame: Frame) -> Frame:
    """`frame` with its readouts in image space, and samples held out there; raises `FitDiverged` if they have gaps."""
    if isinstance(frame.operator, ColumnSense):
        return frame
    if not frame.operator.samples_whole_lines:
        raise FitDiverged("frames are told by their difference from a prior only where readouts are whole")
    kspace = torch.fft.ifft(frame.kspace, dim=-1, norm="ortho")
    judged = frame.held_out is not None
    frame = dataclasses.replace(frame, kspace=kspace, operator=ColumnSense.of(frame.operator), held_out=None)
    return hold_out(frame, HELD_OUT, seed=0) if judged else frame


def nothing(frame: Frame) -> torch.Tensor:
    """An image of zeros."""
    return torch.zeros(frame.operator.domain_shape, dtype=frame.kspace.dtype, device=frame.kspace.device)


class Difference(ABC):
    """The part of an image that its prior does not have, from frame to frame; `image` is the last one."""

    def __init__(self, frame: Frame) -> None:
        self.image = nothing(frame)

    @property
    def state(self) -> tuple[torch.Tensor, ...]:
        """What the next frame goes on from; nobody changes these tensors."""
        return (self.image,)

    def resume(self, state: tuple[torch.Tensor, ...]) -> None:
        """Go on from the `state` of another one, whose image was like this one's."""
        (self.image,) = state

    @abstractmethod
    def fit(self, frame: Frame, base: torch.Tensor, *, seen: Problem, everything: Problem) -> Reconstruction:
        """The image `base` and what it lacks: `seen` is the problem without the samples held out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualMethod(Method):
    """What methods for frames that have a prior share: the number of control points a side of what has moved, 0 for
    none."""

    name: ClassVar[str] = ""
    displacement: int = bounded(8, low=0, high=32)

    @abstractmethod
    def difference(self, frame: Frame) -> Difference:
        """A difference of nothing, for frames like this one."""

    def tracker(self, frame: Frame) -> Tracker:
        """Follows frames like this one."""
        return Tracker(self, frame)

    def fit(self, frame: Frame) -> Reconstruction:
        """The frame by itself, told by its prior if it has one."""
        return self.tracker(frame).follow(frame)

    def judged(self, frame: Frame) -> Reconstruction:
        """`fit`, which judges itself where the frame is by columns, and cannot be judged where it is not."""
        return self.fit(frame)


@methods.register("residual_tikhonov")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualTikhonov(ResidualMethod):
    """argmin |A x - y|^2 + weight |x - prior|^2: a closed form."""

    name: ClassVar[str] = "residual_tikhonov"
    regularisation: float = tunable(0.03, low=1e-4, high=10.0, log=True, symbol="lambda")

    def difference(self, frame: Frame) -> Difference:
        """Nothing is kept from frame to frame."""
        return _TikhonovDifference(self.regularisation, frame)


class _TikhonovDifference(Difference):
    def __init__(self, weight: float, frame: Frame) -> None:
        super().__init__(frame)
        self._weight = weight

    def fit(self, frame: Frame, base: torch.Tensor, *, seen: Problem, everything: Problem) -> Reconstruction:
        trial, image = (
            base + problem.prepared.solve(problem.back_projection, weight=self._weight)
            for problem in (seen, everything)
        )
        return _judged(frame, Reconstruction(image=image, trial=trial, iterations=1, stopped_by="closed form"))


@methods.register("residual_tv")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualTV(ResidualMethod):
    """argmin |A x - y|^2 / 2 + weight sum |D (x - prior)|, the weight `tv_weight` standard deviations of a sample.

    By the primal-dual iteration of Chambolle and Pock (J Math Imaging Vis 40:120-145, 2011, algorithm 1), whose step on
    the data is exact, column by column; it goes on from the difference, and the dual field, of the last frame.
    """

    name: ClassVar[str] = "residual_tv"
    tv_weight: float = tunable(0.2, low=0.01, high=5.0, log=True, symbol="lambda_s")
    iterations: int = bounded(30, low=1, high=10_000)

    def difference(self, frame: Frame) -> Difference:
        """Kept from frame to frame with its dual field."""
        return TVDifference(self, frame)


class TVDifference(Difference):
    """The difference of least total variation."""

    def __init__(self, method: ResidualTV, frame: Frame) -> None:
        super().__init__(frame)
        self._method = method
        self._dual = differences(self.image)

    @property
    def state(self) -> tuple[torch.Tensor, ...]:
        """With the dual field."""
        return self.image, self._dual

    def resume(self, state: tuple[torch.Tensor, ...]) -> None:
        """With the dual field."""
        self.image, self._dual = state

    def fit(self, frame: Frame, base: torch.Tensor, *, seen: Problem, everything: Problem) -> Reconstruction:
        """First without the samples held out; then a part of the iterations with them."""
        last = self._method.iterations
        judged_at = last - round(FULL_SHARE * last) if frame.held_out is not None else last
        trial, done = base, 0
        for problem, goal in ((seen, judged_at), (everything, last)):
            done = self.follow(problem, done, goal)
            trial = base + self.image if problem is seen else trial
        stopped_by = "iterations" if done == last else DEADLINE
        image = base + self.image
        return _judged(frame, Reconstruction(image=image, trial=trial, iterations=max(done, 1), stopped_by=stopped_by))

    def follow(self, problem: Problem, done: int, goal: int) -> int:
        """Iterations from number `done` to `goal`, as long as there is time; gives how many are done then."""
        weight = self._method.tv_weight * problem.noise
        back_projection, leading = problem.back_projection, self.image
        ascent = 1 / (8 * STEP)  # |D|^2 is at most 8
        while done < goal and (time_left() > 0 or done == 0):
            self._dual = _clipped(self._dual + ascent * differences(leading), weight)
            target = back_projection + (self.image - STEP * differences_adjoint(self._dual)) / STEP
            image = problem.prepared.solve(target, weight=1 / STEP)
            leading, self.image = 2 * image - self.image, image
            done += 1
        return done


def _clipped(field: torch.Tensor, weight: float) -> torch.Tensor:
    """Each vector of `field` ``(2, ...)`` with a length of at most `weight`."""
    return field / (energies(field).sqrt() / weight).clamp(min=1)


def energies(field: torch.Tensor) -> torch.Tensor:
    """Squared length of each vector of `field` ``(2, ...)``: several times faster than the norm of complex numbers."""
    return torch.view_as_real(field).square().sum((0, -1))


def _judged(frame: Frame, result: Reconstruction) -> Reconstruction:
    """`result` with its trial's loss; without a trial where nothing judges."""
    loss = None if result.trial is None else frame.loss(result.trial)
    return dataclasses.replace(result, validation_loss=loss, trial=None if loss is None else result.trial)
