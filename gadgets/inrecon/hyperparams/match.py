"""Which scans an entry is for: the `match:` part of a hyperparameter file.

Texts are globs, ``*`` for any text and ``?`` for any one character, upper and lower case alike; all other
characters, brackets too, stand for themselves. Numbers are closed ranges ``[low, high]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import product
from math import inf
from reprlib import repr as short_repr
from typing import Annotated

from pydantic import BaseModel, ConfigDict, PlainValidator, model_validator

from inrecon.frame import Protocol
from inrecon.registry import did_you_mean

# ISMRMRD's trajectoryType.
TRAJECTORIES = ("cartesian", "epi", "radial", "goldenangle", "spiral", "other")

MAX_GLOB = 200

_TEXT_FIELDS = ("protocol", "sequence", "anatomy", "vendor", "trajectory")
_RANGE_FIELDS = ("field_strength_T", "matrix.y", "matrix.x", "acceleration", "coils")

# Whether the protocol is named letter for letter, then how many fields are constrained: compared in this order.
Rank = tuple[bool, int]


def _globs(value: object) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if value is None:
        raise ValueError("is empty: give a value or delete the line")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"must be a text or a list of texts (numbers in quotes), not {short_repr(value)}")
    if max(map(len, names)) > MAX_GLOB:
        raise ValueError(f"must be shorter than {MAX_GLOB} characters")
    return tuple(name.casefold() for name in names)


def _trajectories(value: object) -> tuple[str, ...]:
    names = _globs(value)
    for name in names:
        if name not in TRAJECTORIES:
            hint = did_you_mean(name, TRAJECTORIES)
            raise ValueError(f"unknown trajectory {name!r}: {hint}known are {', '.join(TRAJECTORIES)}")
    return names


def _range(value: object) -> tuple[float, float]:
    if value is None:
        raise ValueError("is empty: give a value or delete the line")
    numbers = [float(v) for v in value if type(v) in (int, float)] if isinstance(value, list) else []
    if not isinstance(value, list) or not len(numbers) == len(value) == 2:
        raise ValueError(f"must be a range of two numbers, [low, high], not {short_repr(value)}")
    low, high = numbers
    if not 0 <= low <= high or low == inf:
        raise ValueError(f"must be a range [low, high] with 0 <= low <= high, not {value!r}")
    return low, high


Globs = Annotated[tuple[str, ...] | None, PlainValidator(_globs)]
Trajectories = Annotated[tuple[str, ...] | None, PlainValidator(_trajectories)]
Range = Annotated[tuple[float, float] | None, PlainValidator(_range)]


class Matrix(BaseModel):
    """Ranges of the encoded matrix after readout oversampling is removed: `y` phase encoding, `x` readout."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    y: Range = None
    x: Range = None

    @model_validator(mode="after")
    def _not_empty(self) -> Matrix:
        if self.y is None and self.x is None:
            raise ValueError("needs a range for y, for x, or for both")
        return self


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One constrained field, dotted, against a scan: `found` is None where the header does not say."""

    field: str
    wanted: tuple[str, ...] | tuple[float, float]
    found: str | float | None
    fits: bool


class Match(BaseModel):
    """Constraints on a scan protocol; a field left out (None) constrains nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    protocol: Globs = None
    sequence: Globs = None
    anatomy: Globs = None
    vendor: Globs = None
    field_strength_T: Range = None
    trajectory: Trajectories = None
    matrix: Matrix | None = None
    acceleration: Range = None
    coils: Range = None

    @property
    def constrained(self) -> int:
        """How many fields are constrained (the matrix is one)."""
        return sum(getattr(self, name) is not None for name in type(self).model_fields)

    def rank(self, protocol: Protocol) -> Rank | None:
        """How specifically this matches `protocol`, or None if it does not; what the header does not say
        (None) matches no constraint."""
        if not all(one.fits for one in self.compare(protocol)):
            return None
        exact = protocol.name is not None and protocol.name.casefold() in filter(_is_exact, self.protocol or ())
        return exact, self.constrained

    def compare(self, protocol: Protocol) -> Iterator[Comparison]:
        """Each constrained field against `protocol`, those that hold texts first."""
        told = (protocol.name, protocol.sequence, protocol.anatomy, protocol.vendor, protocol.trajectory)
        for name, globs, text in zip(_TEXT_FIELDS, self._texts, told, strict=True):
            if globs is not None:
                yield Comparison(field=name, wanted=globs, found=text, fits=_text_matches(globs, text))
        measured = (protocol.field_strength_T, *protocol.matrix, protocol.acceleration, protocol.coils)
        for name, span, number in zip(_RANGE_FIELDS, self._ranges, measured, strict=True):
            if span is not None:
                yield Comparison(field=name, wanted=span, found=number, fits=_in_range(span, number))

    def ties(self, other: Match) -> bool:
        """Whether some protocol would be matched by both with the same rank."""
        names = any(
            _is_exact(mine) == _is_exact(theirs) and globs_meet(mine, theirs)
            for mine, theirs in product(self.protocol or ("*",), other.protocol or ("*",))
        )
        return (
            self.constrained == other.constrained
            and names
            and all(_texts_meet(a, b) for a, b in zip(self._texts, other._texts, strict=True))
            and all(_ranges_meet(a, b) for a, b in zip(self._ranges, other._ranges, strict=True))
        )

    @property
    def _texts(self) -> tuple[tuple[str, ...] | None, ...]:
        return self.protocol, self.sequence, self.anatomy, self.vendor, self.trajectory

    @property
    def _ranges(self) -> tuple[tuple[float, float] | None, ...]:
        y, x = (self.matrix.y, self.matrix.x) if self.matrix else (None, None)
        return self.field_strength_T, y, x, self.acceleration, self.coils


def _is_exact(glob: str) -> bool:
    return not set("*?") & set(glob)


def _text_matches(globs: tuple[str, ...], text: str | None) -> bool:
    return text is not None and any(fnmatchcase(text.casefold(), glob.replace("[", "[[]")) for glob in globs)


def _in_range(span: tuple[float, float], number: float | None) -> bool:
    return number is not None and span[0] <= number <= span[1]


def _texts_meet(a: tuple[str, ...] | None, b: tuple[str, ...] | None) -> bool:
    return a is None or b is None or any(globs_meet(mine, theirs) for mine, theirs in product(a, b))


def _ranges_meet(a: tuple[float, float] | None, b: tuple[float, float] | None) -> bool:
    return a is None or b is None or max(a[0], b[0]) <= min(a[1], b[1])


@lru_cache(maxsize=4096)
def globs_meet(a: str, b: str) -> bool:
    """Whether some text matches both globs."""
    if b.startswith("*") and not a.startswith("*"):
        return globs_meet(b, a)
    if a.startswith("*"):
        return globs_meet(a[1:], b) or (b != "" and globs_meet(a, b[1:]))
    if not a or not b:
        return a == b
    return (a[0] == b[0] or "?" in (a[0], b[0])) and globs_meet(a[1:], b[1:])
