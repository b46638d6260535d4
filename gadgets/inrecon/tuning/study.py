"""The search: batches of candidates that Optuna proposes, raced, all of them kept in its study."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from inrecon.events import Event, listening
from inrecon.hyperparams.schema import Value
from inrecon.methods import build, methods
from inrecon.tuning.race import race
from inrecon.tuning.scans import NotTunable, Scans
from inrecon.tuning.search import search_space

BEGUN = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
RUNGS = (20, 60, 400)
RETRIES = 2
MOST_BARREN = 3
"""Batches in a row without a finite loss, after which a search gives up."""

BEAT_S = 15.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is searched and how: `trials` candidates of `method`, in batches of `batch`.

    `fixed` are fields that are not searched for. A batch is judged after each of `rungs` iterations, and one part in
    `reduction` goes on to the next (successive halving: Jamieson and Talwalkar, AISTATS 2016). Candidates with an
    `origin`, values that are in use, are never dropped: early losses favour what starts fast. With one rung every
    candidate is fitted to the end, as in the paper.
    """

    method: str
    trials: int = 60
    batch: int = 15
    rungs: tuple[int, ...] = RUNGS
    reduction: int = 4
    fixed: Mapping[str, Value] = field(default_factory=dict)


def compete(
    study: Study,
    plan: Plan,
    scans: Scans,
    *,
    worker: str,
    beat: Callable[[Trial], None] = lambda _: None,
    on_rung: Callable[[], None] = lambda: None,
) -> int:
    """Ask, race and tell until the study has as many trials as planned; returns the iterations spent here.

    Any number of processes may do so on one study, each under a `worker` name of its own that its trials carry: what is
    counted is the trials of all (of two that ask at the same time, both get the last one). A trial's value is the loss
    at its last rung; one that was dropped before the last is told as pruned. `beat` is called with each running trial
    every few seconds while it is fitted. Raises `NotTunable` if the loss of no candidate is a number.
    """
    spent, barren, batch = 0, 0, list[Trial]()
    try:
        while _ask(study, plan, worker, batch):
            with listening(_Pulse(batch, beat)):
                spent += _race(study, plan, scans, batch, on_rung)
            numbers = {trial.number for trial in batch}
            states = {trial.state for trial in study.get_trials(deepcopy=False) if trial.number in numbers}
            barren = barren + 1 if states == {TrialState.FAIL} else 0
            if barren == MOST_BARREN:
                raise NotTunable(f"no candidate of {plan.method!r} could be fitted: the loss of none was a number")
    except BaseException:
        study._storage.remove_session()  # an interrupt amid a transaction would leave it locked
        for trial in batch:
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        raise
    return spent


def begun_trials(study: Study) -> int:
    """The number of trials that count towards a plan: those that wait or have failed do not."""
    return len(study.get_trials(deepcopy=False, states=BEGUN))


def retry(study: Study, lost: Sequence[FrozenTrial]) -> None:
    """Tell running trials whose worker is gone as failed; their candidates come again, but not for ever."""
    for trial in lost:
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        again(study, trial)


def again(study: Study, trial: FrozenTrial) -> None:
    """Put the candidate of a trial that was lost into the queue, unless it has come often enough."""
    times = trial.user_attrs.get("retried", 0)
    if times < RETRIES:
        attributes = {name: value for name, value in trial.user_attrs.items() if name != "worker"}
        study.enqueue_trial(trial.params, user_attrs={**attributes, "retried": times + 1})


class _Pulse:
    """Calls `beat` for every trial, at most once in `BEAT_S`, whenever something is heard of a fit."""

    def __init__(self, batch: Sequence[Trial], beat: Callable[[Trial], None]) -> None:
        self._batch = batch
        self._beat = beat
        self._last = -BEAT_S

    def __call__(self, event: Event) -> None:
        del event
        if time.monotonic() - self._last >= BEAT_S:
            self._last = time.monotonic()
            for trial in self._batch:
                self._beat(trial)


def _ask(study: Study, plan: Plan, worker: str, batch: list[Trial]) -> list[Trial]:
    """Fill `batch` with the next candidates; with none if all are under way."""
    space = search_space(methods[plan.method])
    batch.clear()
    while len(batch) < plan.batch and begun_trials(study) < plan.trials:
        with warnings.catch_warnings():
            # Heartbeats are sent here as well as Study.optimize would send them.
            warnings.filterwarnings("ignore", message="Heartbeat of storage", category=UserWarning)
            trial = study.ask()
        batch.append(trial)
        # At once: a trial that says nothing of its worker is taken to be lost.
        trial.set_user_attr("worker", worker)
        for name, span in space.items():
            trial.suggest_float(name, span.low, span.high, log=span.log)
    return batch


def _race(study: Study, plan: Plan, scans: Scans, batch: Sequence[Trial], on_rung: Callable[[], None]) -> int:
    running = list(batch)
    candidates = race([build(plan.method, {**plan.fixed, **trial.params}) for trial in batch], scans.groups)
    for rung in plan.rungs:
        candidates.advance(rung)
        losses = candidates.losses()
        for trial, loss in zip(running, losses, strict=True):
            trial.report(loss, rung)
        order = sorted(range(len(running)), key=losses.__getitem__)
        count = 0 if rung == plan.rungs[-1] else math.ceil(len(running) / plan.reduction)
        kept = {*order[:count], *(place for place in order if count and "origin" in running[place].user_attrs)}
        going_on = [place for place in order if place in kept and math.isfinite(losses[place])]
        for place in order:
            if place not in going_on:
                _finish(study, running[place], losses[place], complete=rung == plan.rungs[-1])
        on_rung()
        if not going_on:
            break
        running = [running[place] for place in going_on]
        candidates.keep(going_on)
    return candidates.spent


def _finish(study: Study, trial: Trial, loss: float, *, complete: bool) -> None:
    """Tell the trial's end: complete, dropped on the way, or failed if its loss is not a number."""
    if not math.isfinite(loss):
        study.tell(trial, state=TrialState.FAIL)
    elif complete:
        study.tell(trial, loss)
    else:
        study.tell(trial, state=TrialState.PRUNED)
