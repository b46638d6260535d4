"""What is compared: methods of inrecon with preset and overrides, and BART's, as named on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from pydantic import Field

from inrecon.frame import PRESETS, Preset
from inrecon.methods import build, methods
from quality.cases import Fields, InvalidCases, Strict, checked, read_yaml
from quality.opponents import SOLVERS

BART_NAMES = (*SOLVERS, *(f"{name}_fixed" for name in SOLVERS))


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One way to reconstruct: `label` names it in tables, `method` is inrecon's or one of `BART_NAMES`."""

    label: str
    method: str
    preset: Preset = "standard"
    overrides: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises `InvalidCases` for an unknown method, and what `inrecon.methods.build` raises for a wrong field."""
        known = (*methods.names(), *BART_NAMES)
        if self.method not in known:
            raise InvalidCases(f"unknown method {self.method!r}: known are {', '.join(known)}")
        if self.is_bart and (self.overrides or self.preset != "standard"):
            raise InvalidCases(f"{self.method} chooses its own settings: leave preset and fields out")
        if not self.is_bart:
            build(self.method, self.overrides)  # a wrong field is told before anything runs

    @property
    def is_bart(self) -> bool:
        """Whether BART runs it."""
        return self.method in BART_NAMES


class Ablation(Strict):
    """One line of an ablation file."""

    method: str
    preset: Preset = "standard"
    overrides: Fields = Field(default_factory=dict)


def parse(text: str) -> list[Entrant]:
    """Entrants of a list such as ``cg_sense,bilevel_inr:fast,bilevel_inr:quality:seed=1:iterations=300``.

    Raises `InvalidCases` for unknown methods and presets.
    """
    return [_entrant(part) for part in text.split(",") if part.strip()]


def read_ablation(path: Path) -> list[Entrant]:
    """Entrants of a YAML file of ``name: {method, preset, overrides: {field: value}}``; raises `InvalidCases`."""
    found = read_yaml(path)
    if not isinstance(found, dict):
        raise InvalidCases(f"{path}: must map names to method, preset and overrides")
    entrants = []
    for name, values in found.items():
        line = checked(Ablation, values, where=f"{path}: {name}")
        entrants.append(Entrant(label=str(name), method=line.method, preset=line.preset, overrides=line.overrides))
    return entrants


def _entrant(text: str) -> Entrant:
    method, *rest = text.strip().split(":")
    preset: Preset = "standard"
    overrides: dict[str, object] = {}
    for part in rest:
        name, equals, value = part.partition("=")
        if equals and name and value:
            overrides[name] = value
        elif part in PRESETS:
            preset = next(known for known in get_args(Preset) if known == part)
        else:
            raise InvalidCases(f"{text}: {part!r} is neither a preset ({', '.join(PRESETS)}) nor field=value")
    return Entrant(label=text.strip(), method=method, preset=preset, overrides=overrides)
