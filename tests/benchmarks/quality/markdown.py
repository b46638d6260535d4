"""The results as Markdown."""

from __future__ import annotations

import numpy as np

from quality.cases import Goals
from quality.results import HELD_OUT, Margin, Row, failing, margins, mean_psnr

NOTHING = "-"


def document(rows: list[Row], *, goals: Goals, remarks: list[str]) -> str:
    """Every row, then the margins over BART, the goals that are not reached, and `remarks`."""
    found = margins(rows)
    parts = [_table(rows)]
    if found:
        parts += [_margins(rows, found), _goals(found, goals)]
    if remarks:
        parts.append("\n".join(f"- {remark}" for remark in remarks))
    return "\n\n".join(parts) + "\n"


def _table(rows: list[Row]) -> str:
    heads = ["scan (true R)", "method", "PSNR (dB)", "SSIM", "NRMSE", "NRMSE in regions", "held-out error", "s", "MiB"]
    heads += ["validation loss", "iterations", "note"]
    lines = []
    for row in rows:
        regions = {name.removeprefix("nrmse "): v for name, v in row.scores.items() if name.startswith("nrmse ")}
        lines.append(
            [
                f"{row.case} ({row.acceleration:.1f})",
                row.label,
                _number(row.scores.get("psnr"), ".2f"),
                _number(row.scores.get("ssim"), ".4f"),
                _number(row.scores.get("nrmse"), ".4f"),
                ", ".join(f"{name} {value:.4f}" for name, value in regions.items()) or NOTHING,
                _number(row.scores.get(HELD_OUT), ".3e"),
                _number(row.seconds, ".1f"),
                _number(row.peak_mib, ".0f"),
                _number(row.validation_loss, ".3e"),
                _number(row.iterations, "d"),
                row.note.replace("|", "/") or NOTHING,
            ]
        )
    return _markdown(heads, lines)


def _margins(rows: list[Row], found: list[Margin]) -> str:
    """By case the best of BART and, for each of ours, dB (and SSIM) over it."""
    labels = list(dict.fromkeys(margin.label for margin in found))
    by_place = {(margin.case, margin.label): margin for margin in found}
    lines = []
    for case in dict.fromkeys(margin.case for margin in found):
        opponent = next(margin.opponent for margin in found if margin.case == case)
        best = next(row for row in rows if row.case == case and row.label == opponent)
        cells = [_margin(by_place.get((case, label))) for label in labels]
        lines.append([case, f"{opponent}: {_number(best.merit, '.2f')}", *cells])
    means = [[margin for margin in found if margin.label == label] for label in labels]
    lines.append(["**mean, PSNR**", "", *(_mean(own) for own in means)])
    return "Margins over the best of BART, dB (SSIM):\n\n" + _markdown(["scan", "best of BART", *labels], lines)


def _margin(margin: Margin | None) -> str:
    if margin is None:
        return NOTHING
    return f"{margin.merit:+.2f}" + ("" if margin.ssim is None else f" ({margin.ssim:+.4f})")


def _mean(own: list[Margin]) -> str:
    mean = mean_psnr(own)
    if mean is None:
        return NOTHING
    return f"**{mean:+.2f}** ({np.mean([margin.ssim for margin in own if margin.ssim is not None]):+.4f})"


def _goals(found: list[Margin], goals: Goals) -> str:
    said = failing(found, goals)
    if not said:
        return "All goals are reached."
    return "Goals not reached:\n\n" + "\n".join(f"- {sentence}" for sentence in said)


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _markdown(heads: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] * len(heads)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *lines))
