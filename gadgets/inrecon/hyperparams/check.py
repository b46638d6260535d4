"""What a person should know of a folder of hyperparameter files before a scanner uses it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from math import log
from pathlib import Path
from typing import Literal

from inrecon import __version__
from inrecon.errors import NoHyperparameters
from inrecon.hyperparams.entry import Entry
from inrecon.hyperparams.schema import Value
from inrecon.hyperparams.snapshot import read_folder, shipped_folder
from inrecon.methods import Tunable, methods, tunable_fields

# A value nearer to an end of its search range than this part of the range counts as lying at its edge.
EDGE = 0.02


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing about one file. `field` is dotted, "" for the whole file.

    An ``error`` keeps the whole folder from being used; an ``overlap`` leaves a choice between two files to their
    names; without a ``default`` some scans find no hyperparameters; a value at the ``edge`` of its search range may
    have its optimum outside; ``stale`` values were tuned with an earlier minor release, whose methods differ.
    """

    kind: Literal["error", "overlap", "default", "edge", "stale"]
    file: str
    field: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: " + ": ".join(filter(None, (self.file, self.field, self.text)))


def check(folder: Path | None = None) -> list[Finding]:
    """Everything worth knowing of the files in `folder` (None: those that come with inrecon), errors first."""
    folder = folder or shipped_folder()
    try:
        entries, problems = read_folder(folder)
    except NoHyperparameters as error:
        return [Finding(kind="error", file=str(folder), field="", text=str(error))]
    errors = [
        Finding(kind="error", file=problem.file, field=field, text=text)
        for problem in problems
        for field, text in problem.problems
    ]
    files = [*(entry.file for entry in entries), *(problem.file for problem in problems)]
    missing = [] if any(Path(file).stem == "default" for file in files) else [_no_default(folder)]
    hints = (hint for entry in entries for hint in (*_edges(entry), *_stale(entry)))
    return [*errors, *overlaps(entries), *missing, *hints]


def _no_default(folder: Path) -> Finding:
    text = "there is no default.yaml: scans that match no other file find no hyperparameters"
    return Finding(kind="default", file=str(folder), field="", text=text)


def overlaps(entries: Iterable[Entry]) -> Iterable[Finding]:
    """The pairs of `entries` between which some scan would have only the names to choose by."""
    for one, other in combinations(entries, 2):
        if one.match.ties(other.match):
            text = f"can match the same scan as {other.file}, equally well: constrain one of them further"
            yield Finding(kind="overlap", file=one.file, field="match", text=text)


def _edges(entry: Entry) -> Iterable[Finding]:
    layers: list[tuple[str, str, Mapping[str, Value]]] = [("values", entry.method, entry.values)]
    layers += [(f"presets.{preset}", entry.method, values) for preset, values in entry.presets.items()]
    if entry.live is not None:
        layers.append(("live.values", entry.live.method, entry.live.values))
    for where, method, values in layers:
        spans = tunable_fields(methods[method])
        for field, value in values.items():
            if field in spans and _at_edge(float(value), spans[field]):
                low, high = spans[field].low, spans[field].high
                text = f"{value:g} is at the edge of its search range {low:g} .. {high:g}: the best may lie outside"
                yield Finding(kind="edge", file=entry.file, field=f"{where}.{field}", text=text)


def _at_edge(value: float, span: Tunable) -> bool:
    low, high, at = (log(v) for v in (span.low, span.high, value)) if span.log else (span.low, span.high, value)
    return not EDGE <= (at - low) / (high - low) <= 1 - EDGE


def _stale(entry: Entry) -> Iterable[Finding]:
    """Values written by hand or carried over have no such date: nobody can search for them anew."""
    tuned_with, running = _minor_release(entry.provenance.get("version")), _minor_release(__version__)
    if entry.provenance["from"] == "tuned" and tuned_with and running and tuned_with < running:
        text = f"tuned with inrecon {entry.provenance['version']}, this is {__version__}: tuning anew may be worth it"
        yield Finding(kind="stale", file=entry.file, field="provenance.version", text=text)


def _minor_release(version: object) -> tuple[int, int] | None:
    """Major and minor number of `version`, or None if that does not begin with them."""
    numbers = re.match(r"(\d{1,9})\.(\d{1,9})", str(version))
    return (int(numbers[1]), int(numbers[2])) if numbers else None
