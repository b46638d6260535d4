"""Rows of the table, and what they come to: margins over the best of BART, goals reached or not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quality.cases import Goals

HELD_OUT = "held-out error"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One entrant on one case; without `image` and `scores` if it failed, `note` then says why.

    `merit` in dB is PSNR, or the held-out error with its sign turned. `details` is kept in the JSON only.
    """

    case: str
    acceleration: float
    label: str
    is_bart: bool
    scores: dict[str, float] = field(default_factory=dict)
    merit: float | None = None
    seconds: float | None = None
    peak_mib: float | None = None
    validation_loss: float | None = None
    iterations: int | None = None
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    image: NDArray[np.complex64] | None = None


@dataclass(frozen=True, kw_only=True)
class Margin:
    """One of our methods over the best of BART on one case; `ssim` None where there is no reference."""

    case: str
    label: str
    opponent: str
    merit: float
    ssim: float | None


def margins(rows: list[Row]) -> list[Margin]:
    """Of every row of ours on a case that has BART's: over the largest merit in dB, and over the largest SSIM."""
    found = []
    for row in rows:
        opponents = [other for other in rows if other.case == row.case and other.is_bart and other.merit is not None]
        if row.is_bart or row.merit is None or not opponents:
            continue
        best = max(opponents, key=lambda other: other.merit or -np.inf)
        ssims = [other.scores["ssim"] for other in opponents if "ssim" in other.scores]
        found.append(
            Margin(
                case=row.case,
                label=row.label,
                opponent=best.label,
                merit=row.merit - (best.merit or 0.0),
                ssim=row.scores["ssim"] - max(ssims) if ssims else None,
            )
        )
    return found


def mean_psnr(found: list[Margin]) -> float | None:
    """The mean margin in PSNR: dB of held-out error are others, and do not count. None if there is no reference."""
    decibels = [margin.merit for margin in found if margin.ssim is not None]
    return float(np.mean(decibels)) if decibels else None


def failing(found: list[Margin], goals: Goals) -> list[str]:
    """The goals that are not reached, a sentence each."""
    said = []
    for label in dict.fromkeys(margin.label for margin in found):
        own = [margin for margin in found if margin.label == label]
        for margin in own:
            if margin.merit < goals.psnr_margin_each:
                said.append(
                    f"{label} on {margin.case}: {margin.merit:+.2f} dB over {margin.opponent},"
                    f" goal {goals.psnr_margin_each:+.2f}"
                )
            if margin.ssim is not None and margin.ssim < goals.ssim_margin_each:
                said.append(f"{label} on {margin.case}: SSIM {margin.ssim:+.3f}, goal {goals.ssim_margin_each:+.3f}")
        mean = mean_psnr(own)
        if mean is not None and mean < goals.psnr_margin_mean:
            said.append(f"{label}: {mean:+.2f} dB on average, goal {goals.psnr_margin_mean:+.2f}")
    return said
