"""Scores by frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from live.results import Row

DRAWN = {"psnr": "PSNR (dB)", "changed": "error in changed region", "tip": "needle's tip shown"}
MOST = 1.5
"""Of errors and parts: what forgets the first frame may be off by more."""


def draw(rows: Sequence[Row], path: Path) -> None:
    """PSNR, error in the changed region and the needle's tip by frame, a line for each method, as PNG; of several
    seeds the first. The shift is marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    panels = figure.subplots(len(DRAWN), sharex=True)
    for axes, (measure, title) in zip(panels, DRAWN.items(), strict=True):
        for number, row in enumerate(row for row in rows if row.seed == rows[0].seed):
            places = [(f, s[measure]) for f, s in zip(row.frames, row.scores, strict=True) if measure in s]
            if places:
                sparse = len(row.frames) < max(row.frames) / 2
                axes.plot(*zip(*places, strict=True), "o" if sparse else "-", color=f"C{number}", label=row.label)
        if rows[0].shift_at is not None:
            axes.axvline(rows[0].shift_at - 0.5, color="grey", linestyle=":")
        axes.set(ylabel=title)
        if measure != "psnr":
            axes.set_ylim(0, MOST)
    panels[-1].set(xlabel="frame")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    figure.suptitle(rows[0].case)
    figure.savefig(path, dpi=120)
