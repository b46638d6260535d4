"""The cases of a benchmark: a YAML file, checked before anything runs."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from inrecon.errors import InreconError
from inrecon.registry import did_you_mean

Model = TypeVar("Model", bound=BaseModel)

CASES = Path(__file__).with_name("cases.yaml")


class InvalidCases(InreconError):
    """A file of cases or of an ablation cannot be used; the text says what would be right."""


Fields = dict[str, bool | int | float | str]


class Strict(BaseModel):
    """Plain data without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Generated(Strict):
    """A head of `inrecon.simulate`: texture of several scales, smooth phase, loops around it, white noise."""

    matrix: tuple[Annotated[int, Field(ge=16)], Annotated[int, Field(ge=16)]]
    coils: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0)] = 0


class Case(Strict):
    """One undersampled scan.

    `data` names an array file in the data folder, ``kspace`` ``(coils, rows, columns)`` centred; with `line_axis` "y"
    its rows are the phase-encoding lines, with "x" its columns. `centre` is the number of fully sampled centre lines,
    or the side of the centre square of a "poisson" pattern, which undersamples both axes, as "own" does: the mask
    that the file brings. `noise` is the standard deviation of a complex sample, added to the data's own, over the
    largest magnitude of k-space. `partial_fourier` leaves the first lines out. `field_of_view` is the part of the
    data's own that the scan spans across the lines: an object that is larger folds, and the reference is made of the
    folded coil images and two sets of maps. `held_out` leaves out that part of the samples beyond the
    centre and judges by them, where there is no reference. `regions` are boxes of image pixels, ``[first row, end row,
    first column, end column]``, in which errors are measured on their own.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    data: str | None = None
    generated: Generated | None = None
    line_axis: Literal["y", "x"] = "y"
    pattern: Literal["uniform", "random", "poisson", "full", "own"]
    acceleration: Annotated[float, Field(ge=1)] = 1
    centre: Annotated[int, Field(ge=0)]
    partial_fourier: Annotated[float, Field(gt=0.5, le=1)] = 1
    field_of_view: Annotated[float, Field(ge=0.5, le=1)] = 1
    noise: Annotated[float, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0)] = 0
    held_out: Annotated[float, Field(ge=0, lt=0.5)] = 0
    regions: dict[str, tuple[int, int, int, int]] = {}

    @model_validator(mode="after")
    def _whole(self) -> Case:
        if (self.data is None) == (self.generated is None):
            raise ValueError("give one source: either data or generated")
        if (self.pattern == "own") != (self.held_out > 0):
            raise ValueError("pattern own, which has no reference, and held_out go together")
        if self.pattern == "own" and self.generated is not None:
            raise ValueError("pattern own is that of a data file")
        if self.planar and self.partial_fourier < 1:
            raise ValueError(f"partial_fourier leaves out lines; pattern {self.pattern} has none")
        if self.planar and self.folds:
            raise ValueError(f"a smaller field_of_view leaves out lines; pattern {self.pattern} has none")
        if self.pattern == "uniform" and self.acceleration != int(self.acceleration):
            raise ValueError("a uniform pattern takes every n-th line: acceleration must be whole")
        return self

    @property
    def folds(self) -> bool:
        """Whether the field of view is smaller than the data's own."""
        return self.field_of_view < 1

    @property
    def planar(self) -> bool:
        """Whether points of a plane are sampled rather than whole lines."""
        return self.pattern in ("poisson", "own")


class Goals(Strict):
    """What a method must reach over the best of BART on every case, and on average, to count as better."""

    psnr_margin_each: float = 0.0
    psnr_margin_mean: float = 0.0
    ssim_margin_each: float = 0.0


class Benchmark(Strict):
    """All cases of a file and the goals for them."""

    goals: Goals = Goals()
    cases: Annotated[list[Case], Field(min_length=1)]

    @model_validator(mode="after")
    def _named_once(self) -> Benchmark:
        names = [case.name for case in self.cases]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"case names stand twice: {', '.join(twice)}")
        return self


def chosen(benchmark: Benchmark, patterns: str) -> list[Case]:
    """The cases whose names match one of `patterns`, with commas between; raises `InvalidCases` if none does."""
    found = [case for case in benchmark.cases if any(fnmatch(case.name, p.strip()) for p in patterns.split(","))]
    if not found:
        known = ", ".join(case.name for case in benchmark.cases)
        raise InvalidCases(f"no case is called {patterns!r}: there are {known}")
    return found


def load(path: Path) -> Benchmark:
    """The benchmark in a YAML file; raises `InvalidCases`, listing the right keys where one is wrong."""
    return checked(Benchmark, read_yaml(path), where=str(path))


def read_yaml(path: Path) -> object:
    """What a YAML file holds; raises `InvalidCases`."""
    try:
        return yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise InvalidCases(f"{path} is not valid YAML: {error}") from error


def checked(model: type[Model], values: object, *, where: str) -> Model:
    """`values` as `model`; raises `InvalidCases` with all that is wrong, and with the right keys for a wrong one."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = [_fault(model, fault["loc"], fault["type"], fault["msg"]) for fault in error.errors()]
        raise InvalidCases(f"{where}: {'; '.join(faults)}") from error


def _fault(model: type[BaseModel], loc: tuple[int | str, ...], kind: str, message: str) -> str:
    place = ".".join(str(part + 1 if isinstance(part, int) else part) for part in loc)
    if kind == "extra_forbidden":
        keys = sorted(_model_at(model, loc[:-1]).model_fields)
        return f"unknown key {place}: {did_you_mean(str(loc[-1]), keys)}known are {', '.join(keys)}"
    return f"{place}: {message.removeprefix('Value error, ')}" if place else message.removeprefix("Value error, ")


def _model_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel]:
    """The model inside `model` that a place of an error lies in."""
    for part in loc:
        field = model.model_fields.get(str(part))
        inner = field and next((kind for kind in _kinds(field.annotation) if issubclass(kind, BaseModel)), None)
        model = inner or model
    return model


def _kinds(annotation: object) -> list[type]:
    """The classes that an annotation such as ``list[Case]`` or ``Generated | None`` is made of."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _kinds(part)]
