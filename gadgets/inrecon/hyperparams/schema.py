"""What a hyperparameter file may say, and in which words it is told what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from reprlib import repr as short_repr
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, field_validator
from pydantic_core import ErrorDetails

from inrecon.errors import InvalidProtocolFile, UnknownName
from inrecon.frame import Preset
from inrecon.hyperparams import strict_yaml
from inrecon.hyperparams.match import Match, Matrix
from inrecon.methods import build, methods
from inrecon.methods.method import InvalidHyperparameter
from inrecon.registry import did_you_mean

Value = bool | int | float | str
EMPTY = "is empty: give a value or delete the line"


def _value(value: object) -> Value:
    if not isinstance(value, bool | int | float | str):
        raise ValueError(EMPTY if value is None else _not_one(value))
    return value


def _fact(value: object) -> Value:
    return value.isoformat() if isinstance(value, date) else _value(value)


def _not_one(value: object) -> str:
    return f"must be one number, text or true/false, not {short_repr(value)}"


Values = dict[str, Annotated[Value, PlainValidator(_value)]]
Fact = Annotated[Value, PlainValidator(_fact)]


class Provenance(BaseModel):
    """Where the values come from: two fields that every file has, and whatever else its author wants known."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    __pydantic_extra__: dict[str, Fact]

    origin: Literal["paper table II", "method notes", "tuned", "by hand"] = Field(alias="from")
    source: Annotated[str, Field(min_length=1)]


class LiveSection(BaseModel):
    """For frames of interventional streams: in place of the file's `method`, `values` and `presets`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    method: str = "residual_inr"
    values: Values = {}


class Document(BaseModel):
    """One hyperparameter file, version 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1]
    match: Match = Match()
    method: str
    normalisation: Literal["kspace_max"]
    values: Values = {}
    presets: dict[Preset, Values] = {}
    live: LiveSection | None = None
    provenance: Provenance

    @field_validator("live", mode="before")
    @classmethod
    def _not_empty(cls, section: object) -> object:
        if section is None:
            raise ValueError(EMPTY)
        return section


class FileProblems(InvalidProtocolFile):
    """All that is wrong with one file: `problems` are pairs of a dotted field ("" for the whole file) and a text."""

    def __init__(self, file: str, problems: tuple[tuple[str, str], ...]) -> None:
        super().__init__(file, problems)
        self.file = file
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(": ".join(filter(None, (self.file, field, text))) for field, text in self.problems)


def parse(data: bytes, file: Path) -> Document:
    """The document in `data`, the content of `file`, its values checked and converted by its method.

    Raises `FileProblems` with everything that is wrong, not only the first.
    """
    try:
        content = strict_yaml.load(data)
    except strict_yaml.InvalidYamlError as error:
        raise FileProblems(str(file), (("", str(error)),)) from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else short_repr(content)
        raise FileProblems(str(file), (("", f"must hold lines of `field: value`, not {found}"),))
    try:
        document = Document.model_validate(content)
    except ValidationError as error:
        raise FileProblems(str(file), tuple(map(_in_words, error.errors()))) from error
    problems = [*_match_problems(document.match, file), *_method_problems(document), *_live_problems(document.live)]
    if problems:
        raise FileProblems(str(file), tuple(problems))
    values = _converted(document.method, document.values, below={})
    presets = {name: _converted(document.method, preset, below=values) for name, preset in document.presets.items()}
    live = document.live and document.live.model_copy(
        update={"values": _converted(document.live.method, document.live.values, below={})}
    )
    return document.model_copy(update={"values": values, "presets": presets, "live": live})


def _match_problems(match: Match, file: Path) -> Iterable[tuple[str, str]]:
    if file.stem == "default" and match.constrained:
        yield "match", "must not stand in the default file, which is for every scan"
    if file.stem != "default" and not match.constrained:
        yield "match", "needs at least one field: only the file default.yaml may be for every scan"


def _method_problems(document: Document) -> Iterable[tuple[str, str]]:
    try:
        methods[document.method]
    except UnknownName as error:
        yield "method", str(error)
        return
    problems = list(_value_problems(document.method, "values", document.values, below={}))
    yield from problems
    below = {} if problems else document.values
    for preset, values in document.presets.items():
        yield from _value_problems(document.method, f"presets.{preset}", values, below=below)


def _live_problems(live: LiveSection | None) -> Iterable[tuple[str, str]]:
    if live is None:
        return
    try:
        methods[live.method]
    except UnknownName as error:
        yield "live.method", str(error)
        return
    yield from _value_problems(live.method, "live.values", live.values, below={})


def _value_problems(
    method: str, where: str, values: Mapping[str, Value], *, below: Mapping[str, Value]
) -> Iterable[tuple[str, str]]:
    """What the method has to say against `values` laid over those `below`, field by field where it can be told."""
    names = list(methods[method].__dataclass_fields__)
    known = {name: value for name, value in values.items() if name in names}
    for name in (name for name in values if name not in known):
        yield f"{where}.{name}", f"unknown field of method {method!r}; {_right_names(name, names)}"
    together = _refusal(method, {**below, **known})
    if together:
        alone = [(f"{where}.{name}", _refusal(method, {name: value})) for name, value in known.items()]
        yield from [problem for problem in alone if problem[1]] or [(where, together)]


def _refusal(method: str, values: Mapping[str, Value]) -> str:
    try:
        build(method, values)
    except InvalidHyperparameter as error:
        return str(error)
    return ""


def _converted(method: str, values: Mapping[str, Value], *, below: Mapping[str, Value]) -> dict[str, Value]:
    built = build(method, {**below, **values})
    return {name: getattr(built, name) for name in values}


# The fields that may stand at each place, for the errors about those that may not.
_FIELDS = {
    (): Document.model_fields,
    ("match",): Match.model_fields,
    ("match", "matrix"): Matrix.model_fields,
    ("live",): LiveSection.model_fields,
}


def _in_words(error: ErrorDetails) -> tuple[str, str]:
    """One of pydantic's errors as (dotted field, text)."""
    path = tuple(str(part) for part in error["loc"] if part != "[key]")
    field, value = ".".join(path), error["input"]
    match error["type"]:
        case "extra_forbidden":
            return field, f"unknown field; {_right_names(path[-1], _FIELDS[path[:-1]])}"
        case "missing":
            return field, "is missing"
        case "value_error":
            return field, str(error["ctx"]["error"])
        case "literal_error":
            expected = error["ctx"]["expected"]
            hint = did_you_mean(str(value), re.findall(r"'([^']*)'", expected)).rstrip()
            return field, "; ".join(filter(None, (f"must be {expected}, not {short_repr(value)}", hint)))
        case _ if value is None:
            return field, EMPTY
        case "string_type":
            return field, f"must be a text (numbers in quotes), not {short_repr(value)}"
        case "dict_type" | "model_type":
            return field, f"must hold indented lines of `field: value`, not {short_repr(value)}"
        case _:
            return field, f"{error['msg']}, not {short_repr(value)}"


def _right_names(name: str, names: Iterable[str]) -> str:
    return f"{did_you_mean(name, names)}the fields are {', '.join(sorted(names))}"
