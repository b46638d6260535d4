"""Why a scan gets the hyperparameters that it gets, in lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from inrecon.errors import NoHyperparameters
from inrecon.frame import Protocol, Request
from inrecon.hyperparams.entry import Entry, Resolved
from inrecon.hyperparams.match import Comparison
from inrecon.hyperparams.snapshot import HyperparameterFiles

_LONGEST = 80
_SOURCES = {"default": "default of the method", "entry": "the file", "request": "asked for"}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One entry against a scan: `comparisons` are its constrained fields; `exact` says that it matches and names the
    protocol in full."""

    entry: Entry
    exact: bool
    comparisons: tuple[Comparison, ...]

    @property
    def misfit(self) -> Comparison | None:
        """The first field that does not fit the scan; None if the entry matches."""
        return next((one for one in self.comparisons if not one.fits), None)

    @property
    def rank(self) -> tuple[bool, int]:
        """How specific it is, as `Match.rank` counts it."""
        return self.exact, self.entry.match.constrained


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What `HyperparameterFiles.look_up` finds for `protocol`, and why.

    `chosen`, and `resolved` with it, is None if no entry matches. `runners_up` match, too, and are in the order in
    which they would take its place; `refused` do not match, by name.
    """

    protocol: Protocol
    request: Request
    chosen: Candidate | None
    resolved: Resolved | None
    runners_up: tuple[Candidate, ...]
    refused: tuple[Candidate, ...]

    def lines(self) -> list[str]:
        """The explanation in plain text, in aligned columns.

        Of the scan it holds what `protocol` does, its name among it. What would steer a terminal is replaced.
        """
        parts = (self._scan(), self._choice(), self._others(), self._values())
        lines = [line for part in parts if part for line in (*part, "")]
        return ["".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line) for line in lines[:-1]]

    def _scan(self) -> list[str]:
        scan = self.protocol
        y, x = scan.matrix
        rows = {
            "protocol": scan.name,
            "sequence": scan.sequence,
            "anatomy": scan.anatomy,
            "vendor": scan.vendor,
            "field_strength_T": scan.field_strength_T,
            "trajectory": scan.trajectory,
            "matrix": f"{y} x {x}",
            "acceleration": scan.acceleration,
            "coils": scan.coils,
        }
        return ["The scan", *_table([(name, _found(value)) for name, value in rows.items()])]

    def _choice(self) -> list[str]:
        if self.chosen is None:
            return ["No file matches it; a file default.yaml would."]
        rows = [(one.field, _found(one.found), f"fits {_wanted(one)}") for one in self.chosen.comparisons]
        fields = _table(rows) or ["  which is for every scan that no other file matches"]
        return [f"It takes {self.chosen.entry.name} ({self.chosen.entry.file})", *fields]

    def _others(self) -> list[str]:
        rows = []
        for one in (*self.runners_up, *self.refused):
            if misfit := one.misfit:
                rows.append((one.entry.name, f"{misfit.field}: {_found(misfit.found)}, not {_wanted(misfit)}"))
            elif self.chosen:
                rows.append((one.entry.name, f"matches, too, but {_behind(one, self.chosen)}"))
        return ["Not taken", *_table(rows)] if rows else []

    def _values(self) -> list[str]:
        if self.resolved is None:
            return []
        sources = self.resolved.sources
        rows = [
            (name, _short(str(value)), _SOURCES.get(sources[name], sources[name]))
            for name, value in self.resolved.values.items()
        ]
        stream = "" if self.request.live is None else ", as a frame of an interventional stream"
        title = f"Method {self.resolved.name}, preset {self.request.preset}{stream}"
        return [title, *(_table(rows) or ["  which has no fields"])]


def explain(protocol: Protocol, files: HyperparameterFiles, request: Request) -> Explanation:
    """Which of `files` a scan of `protocol` gets and why, and what becomes of it for `request`.

    That no entry matches is an explanation, too. Raises what `Entry.resolve` does for a request that asks for what
    there is not.
    """
    try:
        taken = files.look_up(protocol)
    except NoHyperparameters:
        taken = None
    by_name = sorted(files.entries, key=lambda entry: (entry.name, entry.file))
    candidates = [_candidate(entry, protocol) for entry in by_name]
    matching = sorted((one for one in candidates if not one.misfit), key=lambda one: one.rank, reverse=True)
    return Explanation(
        protocol=protocol,
        request=request,
        chosen=next((one for one in matching if one.entry is taken), None),
        resolved=taken.resolve(request) if taken else None,
        runners_up=tuple(one for one in matching if one.entry is not taken),
        refused=tuple(one for one in candidates if one.misfit),
    )


def _candidate(entry: Entry, protocol: Protocol) -> Candidate:
    exact, _ = entry.match.rank(protocol) or (False, 0)
    return Candidate(entry=entry, exact=exact, comparisons=tuple(entry.match.compare(protocol)))


def _behind(runner_up: Candidate, chosen: Candidate) -> str:
    """Why `runner_up` comes after `chosen`."""
    if runner_up.exact != chosen.exact:
        return "does not name the protocol in full"
    if runner_up.rank != chosen.rank:
        return f"constrains {runner_up.rank[1]} fields, not {chosen.rank[1]}"
    return f"no better than {chosen.entry.name}, the first by name"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """`rows` as lines, their cells in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _found(value: str | float | None) -> str:
    if value is None:
        return "(the header does not say)"
    return _short(value) if isinstance(value, str) else f"{value:.6g}"


def _wanted(one: Comparison) -> str:
    low, *more = one.wanted
    if isinstance(low, str):
        return _short(" or ".join(map(str, one.wanted)))
    return f"{low:g} or more" if more == [inf] else f"{low:g} .. {more[0]:g}"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"
