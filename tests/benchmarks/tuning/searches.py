"""Searches side by side: what the best candidate so far is worth, by iterations and by seconds spent."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study

from inrecon.methods import build, methods, tunable_fields
from inrecon.tuning import RUNGS, Plan, compete, make_sampler, race, search_space
from tuning.bed import JUDGED_AT, METHOD, Bed, Values

PAPER_STARTUP = 20
FIELDS = {"iterations": ",.0f", "seconds": ".0f", "loss": ".4f", "psnr": ".2f"}


@dataclass(frozen=True, kw_only=True)
class Step:
    """A new best candidate: what had been spent when it was found, and its values."""

    iterations: int
    seconds: float
    values: Values


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One search: its new bests in order, and all that it has spent."""

    steps: tuple[Step, ...]
    iterations: int
    seconds: float


def halving(sampler: str) -> Callable[[Bed, int, int], Trace]:
    """What `inrecon tune --sampler` does, but for the values in use, which it is not told here."""

    def search(bed: Bed, trials: int, seed: int) -> Trace:
        study = optuna.create_study(sampler=make_sampler(sampler, seed=seed))
        started, steps = time.perf_counter(), list[Step]()

        def note() -> None:
            best = _best(study)
            if best and (not steps or best != steps[-1].values):
                spent = sum(trial.last_step or 0 for trial in study.get_trials(deepcopy=False))
                steps.append(Step(iterations=spent, seconds=time.perf_counter() - started, values=best))

        plan = Plan(method=METHOD, trials=trials, rungs=RUNGS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            spent = compete(study, plan, bed.scans, worker="bench", on_rung=note)
        return Trace(steps=tuple(steps), iterations=spent, seconds=time.perf_counter() - started)

    return search


def paper(bed: Bed, trials: int, seed: int) -> Trace:
    """The paper's way with the paper's library: every candidate by itself and to the end, 20 random, then GP-UCB."""
    from bayes_opt import BayesianOptimization
    from bayes_opt.acquisition import UpperConfidenceBound

    space = search_space(methods[METHOD])
    bounds = {n: (math.log(s.low), math.log(s.high)) if s.log else (s.low, s.high) for n, s in space.items()}
    optimiser = BayesianOptimization(
        f=None, pbounds=bounds, acquisition_function=UpperConfidenceBound(), random_state=seed, verbose=0
    )
    drawn = optimiser.space.random_sample(PAPER_STARTUP, random_state=seed)
    started, steps, least = time.perf_counter(), list[Step](), math.inf
    for number in range(trials):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Gaussian processes that do not converge
            point = optimiser.space.array_to_params(drawn[number]) if number < PAPER_STARTUP else optimiser.suggest()
        values = {name: _value(point[name], span) for name, span in space.items()}
        candidate = race([build(METHOD, values)], bed.scans.groups)
        candidate.advance(JUDGED_AT)
        (loss,) = candidate.losses()
        # A rate that diverges has no number; the worst that an image can be expected to be stands for it.
        optimiser.register(params=point, target=-min(loss, 2.0))
        if loss < least:
            least = loss
            steps.append(
                Step(iterations=(number + 1) * JUDGED_AT, seconds=time.perf_counter() - started, values=values)
            )
    return Trace(steps=tuple(steps), iterations=trials * JUDGED_AT, seconds=time.perf_counter() - started)


SEARCHES: dict[str, Callable[[Bed, int, int], Trace]] = {
    "gp_ucb": halving("gp_ucb"),
    "quasi_random": halving("quasi_random"),
    "gp": halving("gp"),
    "tpe": halving("tpe"),
    "random": halving("random"),
    "paper": paper,
}


def shipped() -> Values:
    """The defaults of the method, which no search is told."""
    return {name: float(getattr(methods[METHOD](), name)) for name in tunable_fields(methods[METHOD])}


def _best(study: Study) -> Values:
    complete = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    if not complete:
        return {}
    return dict(min(complete, key=lambda trial: math.inf if trial.value is None else trial.value).params)


def _value(point: float, span: FloatDistribution) -> float:
    """A point on the scale that is searched, as a value that rounding has not taken out of its range."""
    return min(max(math.exp(point) if span.log else point, span.low), span.high)


def shipped_row(bed: Bed) -> dict[str, Any]:
    """The method's defaults, for comparison."""
    return {"case": bed.name, "search": "defaults", "seed": 0, "loss": bed.loss(shipped()), "psnr": bed.psnr(shipped())}


def row(bed: Bed, name: str, *, trials: int, seed: int) -> dict[str, Any]:
    """One search: what it has spent, and what its best is worth; `curve` has ``(iterations, seconds, loss)``."""
    trace = SEARCHES[name](bed, trials, seed)
    best = trace.steps[-1].values
    return {
        "case": bed.name,
        "search": name,
        "seed": seed,
        "iterations": trace.iterations,
        "seconds": trace.seconds,
        "loss": bed.loss(best),
        "psnr": bed.psnr(best),
        "values": dict(best),
        "curve": [(step.iterations, step.seconds, bed.loss(step.values)) for step in trace.steps],
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each case and search: means over seeds, the least and the largest in brackets."""
    lines = ["| scan | search | iterations | s | loss | PSNR |", "|---|---|---|---|---|---|"]
    for case, name in dict.fromkeys((row["case"], row["search"]) for row in rows):
        runs = [row for row in rows if (row["case"], row["search"]) == (case, name)]
        cells = [_spread(runs, field, form) for field, form in FIELDS.items()]
        lines.append(f"| {case} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The loss of the best so far by iterations spent, a line for each run, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(SEARCHES):
        for run in (row for row in rows if row["search"] == name):
            spent, _, found = zip(*run["curve"], strict=True)
            axes.step(
                [*spent, run["iterations"]],
                [*found, found[-1]],
                where="post",
                color=f"C{number}",
                label=name if run["seed"] == 0 else None,
            )
    axes.set(xscale="log", yscale="log", xlabel="iterations spent", ylabel=f"loss after {JUDGED_AT} iterations")
    axes.legend()
    figure.savefig(path, dpi=120)


def _spread(runs: Sequence[Mapping[str, Any]], field: str, form: str) -> str:
    values = [run[field] for run in runs if field in run]
    if not values:
        return ""
    mean = f"{sum(values) / len(values):{form}}"
    return mean if max(values) == min(values) else f"{mean} ({min(values):{form}} .. {max(values):{form}})"
