"""Candidates fitted side by side, the worse ones dropped on the way."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from inrecon.errors import FitDiverged, InreconError
from inrecon.methods import BilevelINR, Method
from inrecon.methods.lower_level import OWN, LowerLevel
from inrecon.methods.method import or_error
from inrecon.tuning.scans import Judged

Groups = Sequence[Sequence[Judged]]


class Race(ABC):
    """`methods` on `groups` of judged frames; `spent` counts the iterations of all candidates so far."""

    spent = 0

    @abstractmethod
    def advance(self, iterations: int) -> None:
        """Bring every candidate to so many iterations in all."""

    @abstractmethod
    def losses(self) -> list[float]:
        """Of each candidate, the mean over frames of the loss on held-out samples; infinite if it failed."""

    @abstractmethod
    def keep(self, candidates: Sequence[int]) -> None:
        """Go on with these alone, in this order."""


def race(methods: Sequence[Method], groups: Groups) -> Race:
    """Networks of `BilevelINR` go on where they stopped; any other method begins anew each time."""
    networks = [method for method in methods if isinstance(method, BilevelINR)]
    return _Networks(networks, groups) if len(networks) == len(methods) else _Refits(methods, groups)


class _Networks(Race):
    """One batched fit for all candidates that differ in what may differ within one."""

    def __init__(self, methods: Sequence[BilevelINR], groups: Groups) -> None:
        self._groups = groups
        batches: dict[BilevelINR, list[int]] = {}
        for number, method in enumerate(methods):
            batches.setdefault(_shape(method), []).append(number)
        self._numbers = list(batches.values())
        self._fits = [
            [LowerLevel([methods[number] for number in numbers], [one.frame for one in group]) for group in groups]
            for numbers in self._numbers
        ]
        self._done = 0

    def advance(self, iterations: int) -> None:
        """See `Race`; of a batch of which nothing is finite any more no fit is left."""
        for numbers, fits in zip(self._numbers, self._fits, strict=True):
            try:
                for fit in fits:
                    for _ in fit.iterate(iterations - self._done):
                        pass
            except FitDiverged:
                fits.clear()
            self.spent += len(numbers) * (iterations - self._done)
        self._done = iterations

    def losses(self) -> list[float]:
        """See `Race`."""
        found: dict[int, float] = {}
        for numbers, fits in zip(self._numbers, self._fits, strict=True):
            if not fits:
                found |= dict.fromkeys(numbers, math.inf)
                continue
            images = [fit.images() for fit in fits]
            for member, number in enumerate(numbers):
                values = [
                    one.loss(image)
                    for group, stack in zip(self._groups, images, strict=True)
                    for one, image in zip(group, stack[:, member], strict=True)
                ]
                found[number] = _mean(values)
        return [found[number] for number in sorted(found)]

    def keep(self, candidates: Sequence[int]) -> None:
        """See `Race`."""
        place = {number: position for position, number in enumerate(candidates)}
        remaining, kept_fits = [], []
        for numbers, fits in zip(self._numbers, self._fits, strict=True):
            members = [member for member, number in enumerate(numbers) if number in place]
            if not members:
                continue
            for fit in fits:
                fit.keep(members)
            remaining.append([place[numbers[member]] for member in members])
            kept_fits.append(fits)
        self._numbers, self._fits = remaining, kept_fits


class _Refits(Race):
    """Fits from the beginning, cut off by the field `iterations` where the method has one."""

    def __init__(self, methods: Sequence[Method], groups: Groups) -> None:
        self._methods = list(methods)
        self._judged = [one for group in groups for one in group]
        self._losses = [math.inf] * len(methods)

    def advance(self, iterations: int) -> None:
        """See `Race`."""
        self._losses = [self._loss(method, iterations) for method in self._methods]
        self.spent += iterations * len(self._methods)

    def losses(self) -> list[float]:
        """See `Race`."""
        return self._losses

    def keep(self, candidates: Sequence[int]) -> None:
        """See `Race`."""
        self._methods = [self._methods[number] for number in candidates]
        self._losses = [self._losses[number] for number in candidates]

    def _loss(self, method: Method, iterations: int) -> float:
        if any(field.name == "iterations" for field in dataclasses.fields(method)):
            method = dataclasses.replace(method, iterations=iterations)  # type: ignore[call-arg]
        losses: list[float | None] = []
        for one in self._judged:
            fit = or_error(method.judged, one.frame)
            if isinstance(fit, InreconError):
                return math.inf
            losses.append(one.loss(fit.image if fit.trial is None else fit.trial))
        return _mean(losses)


def _shape(method: BilevelINR) -> BilevelINR:
    """`method` with its own values put to the defaults: equal for those that fit into one batch."""
    return dataclasses.replace(method, **{name: getattr(type(method)(), name) for name in OWN})


def _mean(losses: Sequence[float | None]) -> float:
    """Infinite if one of them is not a number: a method that fails on one scan is no method for the protocol."""
    values = [loss if loss is not None and math.isfinite(loss) else math.inf for loss in losses]
    return sum(values) / len(values)
