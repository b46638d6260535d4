"""What a contestant did on a stream, what that comes to, and all of it as a table."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NOTHING = "-"
RECOVERED_DB = 1.0
MEASURES = {"psnr": ".2f", "changed": ".3f", "needle": ".3f", "contrast": ".2f", "tip": ".2f"}


@dataclass(kw_only=True)
class Row:
    """One contestant on one stream: numbers and scores of the frames that it gave an image of, seconds for each, how
    many images are not what was asked for, and why it ended, if it did."""

    case: str
    seed: int
    label: str
    shift_at: int | None
    frames: list[int] = field(default_factory=list)
    scores: list[dict[str, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    others: int = 0
    failure: str | None = None

    def mean(self, measure: str, frames: Set[int] | None = None) -> float | None:
        """Over the frames that have it, or those of `frames` that do."""
        both = zip(self.frames, self.scores, strict=True)
        values = [scores[measure] for f, scores in both if measure in scores and (frames is None or f in frames)]
        return float(np.mean(values)) if values else None

    @property
    def recovery(self) -> int | None:
        """After how many frames from the shift on the PSNR is within 1 dB of its median before; 0 if it never fell,
        None if it never came back, or there was no shift."""
        if self.shift_at is None:
            return None
        course = list(zip(self.frames, (scores["psnr"] for scores in self.scores), strict=True))
        before = [psnr for frame, psnr in course if frame < self.shift_at]
        after = (f for f, psnr in course if f >= self.shift_at and before and psnr > np.median(before) - RECOVERED_DB)
        first = next(after, None)
        return None if first is None else first - self.shift_at

    def facts(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        means = {measure: self.mean(measure) for measure in MEASURES}
        timing = {"seconds median": self.percentile(50), "seconds p95": self.percentile(95)}
        return vars(self) | {"mean": means | timing, "recovery": self.recovery}

    def percentile(self, percent: float) -> float | None:
        """Of the seconds a frame."""
        return float(np.percentile(self.seconds, percent)) if self.seconds else None


def table(rows: Sequence[Row], remarks: Sequence[str]) -> str:
    """A line for each case and contestant: means over frames, the least and the largest of seeds in brackets.

    Of a case in which some methods have left out frames, PSNR and error in the changed region are given once more, over
    the frames that all have an image of.
    """
    heads = ["stream", "method", "PSNR (dB)", "error in changed region", "needle error", "needle shown", "tip shown"]
    heads += ["s a frame: median", "p95", "frames", "in frames of all", "note"]
    lines = [heads, ["---"] * len(heads)]
    for case, label in dict.fromkeys((row.case, row.label) for row in rows):
        runs = [row for row in rows if (row.case, row.label) == (case, label)]
        cells = [_spread([run.mean(measure) for run in runs], form) for measure, form in MEASURES.items()]
        timing = [_spread([run.percentile(p) for run in runs], ".2f", brackets=False) for p in (50, 95)]
        counted = str(sum(len(run.frames) for run in runs))
        shared = _in_frames_of_all(runs, [row for row in rows if row.case == case])
        lines.append([case, label, *cells, *timing, counted, shared, _note(runs)])
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return text + "\n" + "".join(f"\n- {remark}" for remark in remarks) + ("\n" if remarks else "")


def _in_frames_of_all(runs: Sequence[Row], rows: Sequence[Row]) -> str:
    """PSNR / error in the changed region over the frames that every row has, where some rows have more."""
    frames = [set(row.frames) for row in rows if row.frames]
    shared = set.intersection(*frames) if frames else set()
    if all(shared == own for own in frames):
        return NOTHING
    cells = [_spread([run.mean(name, shared) for run in runs], MEASURES[name]) for name in ("psnr", "changed")]
    return " / ".join(cells)


def _note(runs: Sequence[Row]) -> str:
    said = [run.failure.replace("|", "/") for run in runs if run.failure]
    if others := sum(run.others for run in runs):
        said.append(f"{others} images by a fall-back")
    for run in runs:
        if run.shift_at is not None and not run.failure:
            said.append("not recovered" if run.recovery is None else f"recovered after {run.recovery} frames")
    return "; ".join(said) or NOTHING


def _spread(values: Sequence[float | None], form: str, *, brackets: bool = True) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    mean = format(np.mean(known), form)
    return mean if len(known) == 1 or not brackets else f"{mean} ({min(known):{form}} .. {max(known):{form}})"
