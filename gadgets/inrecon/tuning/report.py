"""What a search found, as one HTML page that needs no network."""

from __future__ import annotations

import base64
import html
import io
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import optuna
import plotly.graph_objects as go
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial
from PIL import Image as Picture
from plotly.offline import get_plotlyjs

from inrecon.errors import InvalidFrame
from inrecon.methods import methods, tunable_fields
from inrecon.replace_file import replace_file

STATES = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "dropped", TrialState.FAIL: "failed"}
COLOURS = {"finished": "#2166ac", "dropped": "#d9a25f", "failed": "#8a8f98", "under way": "#5aae61"}
BEST, INK, RULE = "#b2182b", "#24292f", "#d8dce1"

FEW = 5
"""The best trials that importance sets against the rest, at least; they are a fourth of all at most."""

# The policy has a browser refuse whatever would be fetched. 44rem fit on A4: figures keep their size when printed.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #24292f; max-width: 44rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; line-height: 1.2; }} h2 {{ font-size: 1.15rem; margin: 2rem 0 .2rem; break-after: avoid; }}
h2 + p, figcaption {{ color: #57606a; font-size: .9rem; margin: 0 0 .5rem; break-after: avoid; }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; vertical-align: top; padding: .25rem 1.5rem .25rem 0; border-bottom: 1px solid #d8dce1; }}
h1, p, td, th, figcaption {{ overflow-wrap: break-word; }} tbody th {{ font-weight: normal; }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); gap: .5rem; }}
.grid > *, figure, tr, .plotly-graph-div {{ min-width: 0; break-inside: avoid; }}
.images {{ display: flex; gap: .75rem; }} figure {{ flex: 1; margin: 0; }} img {{ width: 100%; }}
@media print {{ body {{ margin: 0 auto; padding: 0; }} }}
</style>
<script>{plotly}</script>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""

Row = tuple[float | None, float | None, int]


def write_report(
    path: Path,
    study: optuna.Study,
    *,
    title: str,
    facts: Mapping[str, str],
    images: Mapping[str, NDArray[np.floating]],
    transfer: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write the page on `study`, with `images` ``(rows, columns)`` by caption in one grey window, to `path`.

    The rows of `transfer` have equal keys, its columns. A file at `path` is replaced as a whole or not at all. Raises
    `InvalidFrame` for an image that is not two-dimensional, ValueError for rows of unequal keys.
    """
    trials = study.get_trials(deepcopy=False)
    body = [*_summary(trials), *_search(trials)]
    if images:
        body += ["<h2>Images</h2><p>Magnitudes, all in one grey window.</p>", _side_by_side(images)]
    if transfer:
        head = list(transfer[0])
        if any(row.keys() != transfer[0].keys() for row in transfer):
            raise ValueError("the rows of the transfer table must have equal keys")
        body += ["<h2>Transfer</h2>", _table([[row[key] for key in head] for row in transfer], head=head)]
    if facts:
        body += ["<h2>Provenance</h2>", _table(list(facts.items()))]
    page = PAGE.format(title=html.escape(title), plotly=get_plotlyjs(), body="\n".join(body))
    replace_file(path, page.encode())


def _losses(trial: FrozenTrial) -> dict[int, float]:
    """The finite ones, by iterations."""
    return {step: loss for step, loss in sorted(trial.intermediate_values.items()) if math.isfinite(loss)}


def _ends(trials: Sequence[FrozenTrial]) -> list[tuple[FrozenTrial, int, float]]:
    """Trials with a finite loss at their last rung, the iterations spent on all trials by then, and that loss."""
    spent = accumulate(trial.last_step or 0 for trial in trials)
    losses = (_losses(trial).get(trial.last_step or 0) for trial in trials)
    ends = zip(trials, spent, losses, strict=True)
    return [(trial, so_far, loss) for trial, so_far, loss in ends if loss is not None]


def _comparable(trials: Sequence[FrozenTrial]) -> list[tuple[FrozenTrial, int, float]]:
    """Those of `_ends` that are finished, or as long as there is none, those that got furthest."""
    ends = _ends(trials)
    furthest = max((trial.last_step or 0 for trial, *_ in ends), default=0)
    finished = [end for end in ends if end[0].state == TrialState.COMPLETE]
    return finished or [end for end in ends if end[0].last_step == furthest]


def _summary(trials: Sequence[FrozenTrial]) -> list[str]:
    counts = Counter(_state(trial) for trial in trials)
    states = [f"{counts[state]:,} {state}" for state in COLOURS if counts[state] or state != "under way"]
    spent = sum(trial.last_step or 0 for trial in trials)
    text = f"{len(trials):,} trials: {', '.join(states)}. {spent:,} iterations were spent in all. "
    if not (comparable := _comparable(trials)):
        return [f"<p>{text}No trial has a finite loss at its last rung: there is nothing to draw.</p>"]
    best, _, loss = min(comparable, key=lambda end: end[2])
    which = "finished trials" if best.state == TrialState.COMPLETE else "trials that got furthest"
    text += f"Of the {which}, trial {best.number} has the best loss on held-out samples, {loss:.4g} after "
    symbols, ranges = _symbols(best.params.keys()), best.distributions
    rows = [[name, symbols[name], f"{value:.4g}", _range(ranges[name])] for name, value in best.params.items()]
    table = _table(rows, head=["field", "symbol", "best value", "range searched"])
    return [f"<p>{text}{best.last_step:,} iterations, with these values:</p>", table]


def _search(trials: Sequence[FrozenTrial]) -> list[str]:
    """Everything that is drawn of the losses."""
    if not (comparable := _comparable(trials)):
        return []
    best, _, least = min(comparable, key=lambda end: end[2])
    ends = {trial.number: (so_far, loss, trial.number) for trial, so_far, loss in _ends(trials)}
    history = _by_state(trials, lambda t: [ends[t.number]] if t.number in ends else [])
    bests = accumulate((loss for *_, loss in comparable), min)
    steps: list[Row] = [(so_far, loss, t.number) for (t, so_far, _), loss in zip(comparable, bests, strict=True)]
    history["best so far"] = [*steps, (sum(trial.last_step or 0 for trial in trials), least, best.number)]
    curves = _by_state(trials, lambda t: [*((s, loss, t.number) for s, loss in _losses(t).items()), (None, None, 0)])
    curves["best"] = [(step, loss, best.number) for step, loss in _losses(best).items()]
    reached = Counter(step for trial in trials for step in _losses(trial))
    rung = max(step for step, count in reached.items() if 2 * count >= max(reached.values()))
    there = [trial for trial in trials if rung in _losses(trial)]
    unseen = len(trials) - len(ends)
    note = f" Left out: {unseen:,} without a finite loss." if unseen else ""
    at = f"after {rung:,} iterations, the last rung that most trials reached ({len(there):,} of {len(trials):,})"
    return [
        f"<h2>Search history</h2><p>The loss of each trial at its last rung, in the order of trials.{note}</p>",
        _plot(history, "history", x="iterations spent so far"),
        "<h2>Learning curves</h2><p>The loss on held-out samples on the way, one line a trial.</p>",
        _plot(curves, "curves", x="iterations", log=True, lines=True),
        f'<h2>Each field by itself</h2><p>The loss {at}; a star marks the best trial.</p><div class="grid">',
        *(_marginal(there, best, field, rung) for field in best.params),
        f"</div><h2>Importance of the fields</h2>{_importance(there, best, rung)}",
    ]


def _state(trial: FrozenTrial) -> str:
    return STATES.get(trial.state, "under way")


def _by_state(trials: Sequence[FrozenTrial], rows: Callable[[FrozenTrial], Sequence[Row]]) -> dict[str, Sequence[Row]]:
    """Of each state, the rows of all its trials; the finished ones come last, to be drawn on top."""
    return {state: [row for t in trials if _state(t) == state for row in rows(t)] for state in reversed(COLOURS)}


def _marginal(trials: Sequence[FrozenTrial], best: FrozenTrial, field: str, rung: int) -> str:
    trials = [trial for trial in trials if field in trial.params]
    series = _by_state(trials, lambda t: [(t.params[field], _losses(t)[rung], t.number)])
    series["best"] = [(best.params[field], _losses(best).get(rung), best.number)]
    label = f"{field} {_symbols(best.params.keys())[field]}"
    return _plot(series, f"field-{list(best.params).index(field)}", x=label, log=_log(best.distributions[field]))


def _plot(series: Mapping[str, Sequence[Row]], name: str, *, x: str, log: bool = False, lines: bool = False) -> str:
    """Loss against `x`. Trials of a state share a trace: a browser takes minutes to draw thousands of traces."""
    small, figure = name.startswith("field"), go.Figure()
    kinds: dict[str, dict[str, object]] = {
        "best so far": {"mode": "lines", "line_shape": "hv"},
        "best": {"mode": "lines+markers", "line_width": 3, "marker_size": 8}
        if lines
        else {"mode": "markers", "marker_size": 13, "marker_symbol": "star"},
        "trials": {"mode": "markers", "marker_size": 6, "opacity": 0.8},
        "lines": {"mode": "lines+markers", "marker_size": 4, "line_width": 1, "opacity": 0.6},
    }
    for trace, rows in series.items():
        style = kinds.get(trace, kinds["lines" if lines else "trials"])
        xs, losses, numbers = zip(*(rows or [(None, None, 0)]), strict=True)
        if any(loss is not None for loss in losses):
            hover = "trial %{customdata}<br>%{x:.4~g}: loss %{y:.4~g}<extra></extra>"
            figure.add_scatter(x=xs, y=losses, customdata=numbers, name=trace, hovertemplate=hover, **style)
            figure.data[-1].update(line_color=COLOURS.get(trace, BEST))
    positive = all(loss is None or loss > 0 for rows in series.values() for _, loss, _ in rows)
    axes = {"gridcolor": RULE, "linecolor": INK, "zeroline": False, "automargin": True}
    kind = {True: "log", False: "linear"}
    figure.update_xaxes(axes, title=html.escape(x, quote=False), type=kind[log], exponentformat="power")
    figure.update_yaxes(axes, title="loss", type=kind[positive], tickformat="~g", nticks=3 if small else 4)
    steps = {step for rows in series.values() for step, *_ in rows if step is not None}
    if lines and len(steps) <= 8:
        figure.update_xaxes(tickvals=sorted(steps), tickformat="~g")
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "reversed"}
    figure.update_layout(template="none", legend=legend, showlegend=not small, margin=dict.fromkeys("lrtb", 10))
    figure.update_layout(font={"family": "system-ui, sans-serif", "size": 13, "color": INK})
    config = {"displayModeBar": False, "responsive": True}
    height = "250px" if small else "340px"
    return figure.to_html(config, full_html=False, include_plotlyjs=False, div_id=name, default_height=height)


def _importance(trials: Sequence[FrozenTrial], best: FrozenTrial, rung: int) -> str:
    """A table, or why there is none."""
    alike = [trial for trial in trials if trial.distributions == best.distributions]
    if len(alike) < 4 * FEW:
        return f"<p>Not told: it takes {4 * FEW} trials with a loss at the same rung, and there are {len(alike)}.</p>"
    losses = [_losses(trial)[rung] for trial in alike]
    few = max(FEW, math.ceil(0.1 * len(alike)))
    if sorted(losses)[few - 1] == max(losses):
        return "<p>Not told: the losses of nearly all trials are equal.</p>"
    # Optuna looks at finished trials alone, of which a race leaves few: to it, all of these end at the common rung.
    ended = optuna.create_study()
    for trial, loss in zip(alike, losses, strict=True):
        ended.add_trial(create_trial(params=trial.params, distributions=trial.distributions, value=loss))
    shares = get_param_importances(ended, evaluator=PedAnovaImportanceEvaluator(target_quantile=few / len(alike)))
    words = f"How far each field sets the {few} best of {len(alike):,} trials apart, after {rung:,} iterations"
    return f"<p>{words} (PED-ANOVA).</p>{_table([[field, f'{share:.0%}'] for field, share in shares.items()])}"


def _symbols(fields: Collection[str]) -> dict[str, str]:
    """The papers' symbols, where all methods that have these `fields` agree, else nothing."""
    known = [spans for name in methods.names() if set(fields) <= (spans := tunable_fields(methods[name])).keys()]
    found = {field: {_greek(spans[field].symbol) for spans in known} for field in fields}
    return {field: symbols.pop() if len(symbols) == 1 else "" for field, symbols in found.items()}


def _greek(symbol: str) -> str:
    name, *index = symbol.split("_", 1)
    letter = html.unescape(f"&{name};")
    return "_".join([letter if len(letter) == 1 else name, *index])


def _log(span: BaseDistribution) -> bool:
    return getattr(span, "log", False)


def _range(span: BaseDistribution) -> str:
    low, high = getattr(span, "low", math.nan), getattr(span, "high", math.nan)
    return f"{low:g} to {high:g}{', logarithmic' if _log(span) else ''}"


def _side_by_side(images: Mapping[str, NDArray[np.floating]]) -> str:
    if any(image.ndim != 2 or not image.size for image in images.values()):
        raise InvalidFrame("a report shows two-dimensional images")
    shown = {name: np.nan_to_num(np.abs(image), posinf=0.0) for name, image in images.items()}
    # A few bright pixels must not darken the picture.
    white = float(np.percentile(np.concatenate([image.ravel() for image in shown.values()]), 99.7)) or 1.0
    figures = []
    for name, image in shown.items():
        png, caption = io.BytesIO(), html.escape(name)
        Picture.fromarray(np.rint(255 * np.clip(image / white, 0, 1)).astype(np.uint8)).save(png, format="PNG")
        source = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
        figures.append(f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>')
    return f'<div class="images">{"".join(figures)}</div>'


def _table(rows: Sequence[Sequence[str]], *, head: Sequence[str] = ()) -> str:
    """Texts, escaped here; the first of a row is its name."""
    top = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in head)
    lines = [
        f'<tr><th scope="row">{html.escape(name)}</th>{"".join(f"<td>{html.escape(text)}</td>" for text in texts)}</tr>'
        for name, *texts in rows
    ]
    return f"<table>{f'<thead><tr>{top}</tr></thead>' if top else ''}<tbody>{''.join(lines)}</tbody></table>"
