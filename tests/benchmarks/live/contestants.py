"""What is compared on a stream: methods that follow it, methods that know nothing but the frame, and a copy."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from quality.cases import InvalidCases

from inrecon import live
from inrecon.frame import RawFrame
from inrecon.methods import BilevelINR, Method, build, methods
from inrecon.methods.residual import ResidualMethod
from inrecon.stream import combined
from live.fine_tuning import PUBLISHED, FineTuning, Tuned, whole
from live.judge import Moment

COPY, FINE_TUNED = "copy", "fine_tuned"
PRIOR_FRAMES = 4

Answer = tuple[torch.Tensor, bool]
"""The image in the intensity of the coils as acquired, and whether it is something else than was asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opening:
    """How a stream begins: the frame that the prior is made of, the prior, and the networks that were trained on that
    frame, shared by the contestants of the stream."""

    raw: RawFrame
    prior: live.Prior
    device: str
    pretrained: dict[tuple[BilevelINR, int], Tuned] = dataclasses.field(default_factory=dict)

    def network(self, how: FineTuning) -> Tuned:
        """Pre-trained as `how` says."""
        key = how.network, how.pretraining
        if key not in self.pretrained:
            frame = whole(self.prior.conditioning.apply(self.raw), self.prior.maps)
            self.pretrained[key] = Tuned(how.network, frame, iterations=how.pretraining)
        return self.pretrained[key]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to reconstruct frames: `label` names it in tables; `how` None is the first frame's image again."""

    label: str
    how: Method | FineTuning | None

    def on(self, opening: Opening) -> Run:
        """Begin a stream."""
        if isinstance(self.how, ResidualMethod):
            return Following(self.how, opening.device)
        if isinstance(self.how, FineTuning):
            return Tuning(self.how, opening)
        return Alone(self.how, opening.prior)


class Run(ABC):
    """A contestant on a stream."""

    def begin(self, moment: Moment) -> None:  # noqa: B027  nothing to do for those who know the frame alone
        """Take a frame that the prior is made of, whose image nobody judges."""

    @abstractmethod
    def next(self, moment: Moment) -> Answer | None:
        """The image of a frame; None where it is left out."""


class Following(Run):
    """Frame after frame as a server does it."""

    def __init__(self, method: ResidualMethod, device: str) -> None:
        self._slice = live.Slice(method=method, prior_frames=PRIOR_FRAMES, device=device)

    def begin(self, moment: Moment) -> None:
        self._slice.next(moment.raw)

    def next(self, moment: Moment) -> Answer:
        followed = self._slice.next(moment.raw)
        image = combined(followed.measurement, followed.prior.maps.csm, followed.fit.image)
        return image, len(followed.fallbacks) > len(followed.prior.fallbacks)


class Alone(Run):
    """Each frame by itself, with all its samples, but with the first frame's coil maps and scale: better maps than the
    few lines of its own centre would give. Without a method the first frame's image."""

    def __init__(self, method: Method | None, prior: live.Prior) -> None:
        self._method, self._prior = method, prior

    def next(self, moment: Moment) -> Answer:
        measurement, frame = live.problem(moment.raw, self._prior)
        image = self._prior.image
        if self._method is not None:
            image = self._method.fit(dataclasses.replace(frame, held_out=None, prior=None)).image
        return combined(measurement, self._prior.maps.csm, image), False


class Tuning(Run):
    """Each frame from the weights of the first one."""

    def __init__(self, how: FineTuning, opening: Opening) -> None:
        self._how, self._prior, self._tuned = how, opening.prior, opening.network(how)

    def next(self, moment: Moment) -> Answer | None:
        if moment.number % self._how.every:
            return None
        measurement = self._prior.conditioning.apply(moment.raw)
        frame = whole(measurement, self._prior.maps)
        image = self._tuned.tuned(frame, iterations=self._how.iterations, towards=self._how.towards)
        return combined(measurement, self._prior.maps.csm, image), False


def parse(text: str) -> list[Contestant]:
    """Contestants of a list such as ``copy,cg_sense,residual_tv:displacement=0,fine_tuned:iterations=40``.

    Raises `InvalidCases` for what is unknown, and what `inrecon.methods.build` raises for a wrong field.
    """
    found = [_contestant(part.strip()) for part in text.split(",") if part.strip()]
    labels = [one.label for one in found]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice or not found:
        raise InvalidCases(f"methods stand twice: {', '.join(twice)}" if twice else "no method is named")
    return found


def _contestant(text: str) -> Contestant:
    name, *parts = text.split(":")
    values = dict(part.partition("=")[::2] for part in parts)
    if not all(values.values()):
        raise InvalidCases(f"{text}: methods have fields as in residual_tv:displacement=0")
    if name == COPY:
        return Contestant(label=text, how=None)
    if name == FINE_TUNED:
        return Contestant(label=text, how=_fine_tuning(values))
    if name not in methods.names():
        known = ", ".join((COPY, FINE_TUNED, *methods.names()))
        raise InvalidCases(f"unknown method {name!r}: known are {known}")
    return Contestant(label=text, how=build(name, values))


def _fine_tuning(values: Mapping[str, str]) -> FineTuning:
    own = {"pretraining": int, "iterations": int, "towards": float, "every": int}
    try:
        asked = {name: kind(values[name]) for name, kind in own.items() if name in values}
    except ValueError as error:
        raise InvalidCases(f"{FINE_TUNED}: {error}") from error
    network = build("bilevel_inr", PUBLISHED | {n: v for n, v in values.items() if n not in own})
    assert isinstance(network, BilevelINR)
    return FineTuning(network=network, **asked)
