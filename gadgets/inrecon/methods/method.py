"""What a method is: a frozen dataclass whose fields are its hyperparameters, and a ``fit``."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_origin, get_type_hints

import torch

from inrecon.deadline import time_left, time_limit
from inrecon.errors import CalibrationFailed, FitDiverged, InreconError
from inrecon.events import FitFinished, observe
from inrecon.frame import Frame, Reconstruction
from inrecon.registry import Registry


class InvalidHyperparameter(InreconError):
    """A method has no such field, or the value is of the wrong kind or out of its range."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tunable:
    """The range in which a field is searched for, `log` on a logarithmic scale; `symbol` is the paper's."""

    low: float
    high: float
    log: bool = False
    symbol: str = ""


def tunable(default: float, *, low: float, high: float, log: bool = False, symbol: str = "") -> Any:
    """A dataclass field with a default value and a search range; values outside the range are refused."""
    return dataclasses.field(default=default, metadata={"tunable": Tunable(low=low, high=high, log=log, symbol=symbol)})


def bounded(default: float, *, low: float, high: float) -> Any:
    """A dataclass field that is not searched for, but must lie in ``low .. high``."""
    return dataclasses.field(default=default, metadata={"bounds": (low, high)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Base of all methods. Subclasses are frozen keyword-only dataclasses, made once and used for many frames."""

    @abstractmethod
    def fit(self, frame: Frame) -> Reconstruction:
        """Reconstruct one frame from all its samples; raises `FitDiverged`, or
        `CalibrationFailed` where it calibrates by itself and cannot, if no image is worth sending."""

    def fit_slices(self, frames: Sequence[Frame]) -> list[Reconstruction | InreconError]:
        """Each of `frames`, slices of one scan with the same samples: the images, and the errors in their places."""
        return [or_error(self.fit, frame) for frame in frames]

    def judged(self, frame: Frame) -> Reconstruction:
        """`fit`, with its loss on the samples that are held out: by a second fit without them, unless fits do it."""
        if frame.held_out is None:
            return self.fit(frame)
        with time_limit(time_left() / 2):
            result = self.fit(frame)
        if result.trial is not None:
            return result
        trial = self.fit(frame.training).image
        return dataclasses.replace(result, trial=trial, validation_loss=frame.loss(trial))


def synchronise(device: torch.device) -> None:
    """Wait for what a GPU still has to do, so that the clock tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def or_error(fit: Callable[[Frame], Reconstruction], frame: Frame) -> Reconstruction | InreconError:
    """What `fit` makes of `frame`, or the error that says why no image is worth sending."""
    try:
        return fit(frame)
    except (FitDiverged, CalibrationFailed) as error:
        return error


def announced(result: Reconstruction, *, method: str, started: float) -> Reconstruction:
    """`result`, told as finished; `started` is the time of the performance counter when the fit began."""
    observe(
        FitFinished(
            method=method,
            iterations=result.iterations,
            stopped_by=result.stopped_by,
            seconds=time.perf_counter() - started,
            validation_loss=result.validation_loss,
        )
    )
    return result


def divergence(method: str, image: torch.Tensor, losses: Sequence[float]) -> FitDiverged | None:
    """What is wrong with a fit whose image is not finite or which ended worse than it began, or None."""
    if torch.isfinite(torch.view_as_real(image)).all() and losses[-1] <= losses[0]:
        return None
    return FitDiverged(f"{method} diverged: training loss {losses[0]:.3g} at first, {losses[-1]:.3g} at last")


methods: Registry[type[Method]] = Registry("method", group="inrecon.methods")


def tunable_fields(method: type[Method]) -> dict[str, Tunable]:
    """The fields of `method` that have a search range."""
    return {f.name: f.metadata["tunable"] for f in dataclasses.fields(method) if "tunable" in f.metadata}


def related(one: str, other: str) -> bool:
    """Whether one of the two methods is or extends the other, so that values of one mean the same to the other."""
    return issubclass(methods[one], methods[other]) or issubclass(methods[other], methods[one])


def build(name: str, values: Mapping[str, Any]) -> Method:
    """The method `name` with its fields set to `values`, each checked for name, kind and range.

    Texts that spell a number (from a command line or a wire) are taken as numbers. Raises `UnknownName` or
    `InvalidHyperparameter`.
    """
    cls = methods[name]
    hints = get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise InvalidHyperparameter(
                f"method {name!r} has no field {key!r}; its fields are {', '.join(sorted(fields))}"
            )
        checked[key] = _check(f"{name}.{key}", value, hints[key], fields[key].metadata)
    return cls(**checked)


def _check(where: str, value: Any, kind: Any, metadata: Mapping[str, Any]) -> Any:
    """`value` as `kind`, inside the bounds that `metadata` gives, or `InvalidHyperparameter`."""
    choices = get_args(kind) if get_origin(kind) is not None else ()
    if choices:
        if value not in choices:
            raise InvalidHyperparameter(f"{where} must be one of {', '.join(map(repr, choices))}, not {value!r}")
        return value
    try:
        if isinstance(value, bool) != (kind is bool) or (kind is int and float(value) != int(float(value))):
            raise ValueError
        converted = kind(float(value)) if kind in (int, float) else kind(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidHyperparameter(f"{where} must be {kind.__name__}, not {value!r}") from error
    span: Tunable | None = metadata.get("tunable")
    low, high = (span.low, span.high) if span else metadata.get("bounds", (None, None))
    if low is not None and not low <= converted <= high:
        raise InvalidHyperparameter(f"{where} must lie in {low:g} .. {high:g}, not {converted:g}")
    return converted
