"""What a search has found: the hyperparameter file, the report, and what a person is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from inrecon import __version__
from inrecon.errors import InreconError
from inrecon.frame import Request
from inrecon.hyperparams import Entry, HyperparameterFiles, match_for, write_entry
from inrecon.hyperparams.schema import Value
from inrecon.methods import CGSense, build, methods, tunable_fields
from inrecon.methods.method import or_error
from inrecon.tuning import Scans
from inrecon.tuning.report import write_report
from inrecon.tuning.scans import magnitude
from inrecon_server.tune import Search, SearchFailed

TOP = 5
"""Trials whose spread says how sharply the best values are known."""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The best trial of a study, in numbers that a file holds: `values` to three digits, their `spread` over the best
    trials; `loss` and those `before`, of the entries that were tried first, by name; `origin` is the one of these whose
    values nothing has beaten, if so."""

    values: Mapping[str, float]
    spread: Mapping[str, tuple[float, float]]
    loss: float
    before: Mapping[str, float]
    origin: str | None
    finished: int
    dropped: int
    failed: int
    iterations: int


def current_values(
    files: HyperparameterFiles, method: str, *, first: Entry | None = None
) -> dict[str, dict[str, float]]:
    """By entry, the values of the tunable fields of `method` that the entry asks for; of equal ones the first: that of
    `first`, then of the default."""
    found: dict[str, dict[str, float]] = {}
    for entry in sorted(files.entries, key=lambda entry: (entry != first, entry.name != "default")):
        values = entry.resolve(Request(method=method)).values
        searched = {name: float(str(values[name])) for name in tunable_fields(methods[method])}
        if searched not in found.values():
            found[entry.name] = searched
    return found


def fixed_values(entry: Entry, method: str) -> dict[str, Value]:
    """What `entry` asks of `method` besides the fields that are searched for and those that its presets set.

    Raises `InreconError` if nothing is searched for.
    """
    searched = tunable_fields(methods[method])
    if not searched:
        raise InreconError(f"method {method!r} has no field to tune")
    sources = entry.resolve(Request(method=method)).sources
    elsewhere = {*searched, *(name for preset in entry.presets.values() for name in preset)}
    return {
        name: value for name, value in entry.values.items() if sources.get(name) == "entry" and name not in elsewhere
    }


def outcome(study: Study) -> Tuned:
    """What `study` has come to; raises `SearchFailed` if no trial has been fitted to the end."""
    trials = study.get_trials(deepcopy=False)
    complete = sorted(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]), key=_loss)
    if not complete:
        raise SearchFailed("no candidate was fitted to the end: the loss of none was a number")
    best, spread = complete[0], {}
    for name in best.params:
        values = [trial.params[name] for trial in complete[:TOP]]
        spread[name] = (_rounded(min(values)), _rounded(max(values)))
    states = [trial.state for trial in trials]
    return Tuned(
        values={name: _rounded(value) for name, value in best.params.items()},
        spread=spread,
        loss=_loss(best),
        before={str(t.user_attrs["origin"]): t.intermediate_values[max(t.intermediate_values)] for t in _tried(trials)},
        origin=best.user_attrs.get("origin"),
        finished=len(complete),
        dropped=states.count(TrialState.PRUNED),
        failed=states.count(TrialState.FAIL),
        iterations=sum(max(trial.intermediate_values, default=0) for trial in trials),
    )


def write_results(
    search: Search,
    study: Study,
    scans: Scans,
    *,
    entry: Entry,
    files: HyperparameterFiles,
    output: Path,
    folder: Path | None,
) -> list[str]:
    """The hyperparameter file at `output`, the report beside it, and both in lines for a terminal.

    `folder` is the one of `files`: what the server loads, if `output` lies in it.

    The file is the `entry` that the scan had until now with the values found. Raises what `write_entry` does.
    """
    tuned = outcome(study)
    presets: Mapping[str, Mapping[str, Value]] = {}
    if issubclass(methods[search.plan.method], methods[entry.method]):
        presets = {str(name): values for name, values in entry.presets.items()}
    others = [other for other in files.entries if Path(other.file).resolve() != output.resolve()]
    facts: dict[str, Value] = {
        "from": "tuned",
        "source": "inrecon tune: " + ("image error" if search.data.oracle else "loss on held-out samples"),
        "date": datetime.now(UTC).date().isoformat(),
        "version": __version__,
        "data_sha256": scans.sha256,
        "frames": len(scans.judged),
        "trials": tuned.finished + tuned.dropped,
        "iterations": tuned.iterations,
        "sampler": search.sampler,
        "loss": _rounded(tuned.loss),
        **{f"loss_of_{name}": _rounded(loss) for name, loss in tuned.before.items()},
        **{f"best_{TOP}_{name}": f"{low:g} .. {high:g}" for name, (low, high) in tuned.spread.items()},
    }
    written = write_entry(
        output,
        match=match_for(scans.protocol, beside=others),
        method=search.plan.method,
        values={**search.plan.fixed, **tuned.values},
        presets=presets,
        provenance=facts,
        comment="Found by inrecon tune.",
        folder=folder if folder is not None and output.is_relative_to(folder.resolve()) else None,
    )
    page = output.with_suffix(".html")
    write_report(
        page,
        study,
        title=f"Hyperparameters of {written.name}",
        facts={name: str(value) for name, value in facts.items()},
        images=_images(search, scans, {entry.name: entry, "tuned": written}),
        transfer=[{"values of": name, "loss": f"{loss:.4g}"} for name, loss in _ranked(tuned)],
    )
    return [*_summary(tuned), f"written: {output}, {page}"]


def _summary(tuned: Tuned) -> list[str]:
    counts = f"{tuned.finished} trials to the end, {tuned.dropped} dropped on the way, {tuned.failed} failed"
    lines = [f"{counts}; {tuned.iterations} iterations", *(f"{loss:10.4g}  {name}" for name, loss in _ranked(tuned))]
    width = max(map(len, tuned.values))
    for name, value in tuned.values.items():
        low, high = tuned.spread[name]
        lines.append(f"{name:<{width}}  {value:<10g} best {TOP}: {low:g} .. {high:g}")
    if tuned.origin:
        lines.append(f"nothing better than the values of {tuned.origin} was found: they stay")
    return lines


def _ranked(tuned: Tuned) -> list[tuple[str, float]]:
    return sorted({**tuned.before, "tuned": tuned.loss}.items(), key=lambda pair: pair[1])


def _images(search: Search, scans: Scans, entries: Mapping[str, Entry]) -> dict[str, NDArray[np.floating]]:
    """Magnitudes of the first frame by CG-SENSE and by each entry, fitted as long as the best candidates were."""
    frame = scans.judged[0].frame
    found = {"CG-SENSE": CGSense().fit(frame).image}
    for name, entry in entries.items():
        values = dict(entry.resolve(Request(method=search.plan.method)).values)
        if "iterations" in values:
            values["iterations"] = search.plan.rungs[-1]
        fit = or_error(build(search.plan.method, values).fit, frame)
        if not isinstance(fit, Exception):
            found[name] = fit.image
    return {name: magnitude(image).cpu().numpy() for name, image in found.items()}


def _tried(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if "origin" in trial.user_attrs and trial.intermediate_values]


def _loss(trial: FrozenTrial) -> float:
    return float("inf") if trial.value is None else trial.value


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
