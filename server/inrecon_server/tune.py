"""The search for a protocol's hyperparameters: raw files in, a hyperparameter file out, workers in between.

The study lives in a storage of Optuna's (a file of SQLite unless a URL is given), so that a search can be broken off at
any time, go on later, and be shared by processes and machines. A worker is a process that asks it for candidates, fits
them, and tells it the losses.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from sqlalchemy.exc import SQLAlchemyError

from inrecon import stream
from inrecon.acquire import raw_frames
from inrecon.errors import InreconError, first_line
from inrecon.frame import RawFrame
from inrecon.tuning import Plan, Scans, compete, judged_scans, make_sampler
from inrecon.tuning.study import again, begun_trials, retry
from inrecon_server.files import open_raw
from inrecon_server.tasks import Tasks

log = logging.getLogger(__name__)

GRACE_S = 180
"""A running trial of which nothing has been heard for so long is lost."""

SIGNING_S = 5
"""What a worker takes at most from asking for a trial to putting its name there."""

MOST_LOST = 5
"""Workers that may be lost before the search gives up."""


class SearchFailed(InreconError):
    """The storage cannot be used, belongs to another search, or no candidate could be fitted."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """The raw files that judge: of each frame `slices` at most, `folds` times; `oracle`: fully sampled, or None."""

    files: tuple[Path, ...]
    group: str
    oracle: Path | None
    device: str
    folds: int
    slices: int

    def load(self) -> Scans:
        """Read, condition and calibrate; raises `InreconError` kinds."""
        raws = [raw for file in self.files for raw in _frames(file, self.group)]
        full = None if self.oracle is None else _frames(self.oracle, self.group)
        return judged_scans(
            raws, device=stream.choose_device(self.device), folds=self.folds, slices=self.slices, full=full
        )


@dataclass(frozen=True, kw_only=True)
class Search:
    """One search, as every worker needs to know it."""

    data: Data
    plan: Plan
    storage: str
    study: str
    sampler: str
    seed: int


def open_study(search: Search, *, sha256: str, candidates: Mapping[str, Mapping[str, float]]) -> Study:
    """The study of `search`, begun now or some time ago, with `candidates` by origin to be tried first.

    Raises `SearchFailed` if the storage cannot be used, or holds a search of other data, method or rungs by that name.
    """
    study = _study(search, seed=search.seed)
    belongs = {"data": sha256, "method": search.plan.method, "rungs": list(search.plan.rungs)}
    known = study.user_attrs.get("belongs")
    if known not in (None, belongs):
        what = ", ".join(name for name, value in belongs.items() if known.get(name) != value)
        raise SearchFailed(f"the study {search.study!r} in {search.storage} is of other {what}: give another --study")
    study.set_user_attr("belongs", belongs)
    retry(study, _lost(study))
    for origin, values in candidates.items():
        study.enqueue_trial(dict(values), user_attrs={"origin": origin}, skip_if_exists=True)
    return study


def search_with(search: Search, study: Study, scans: Scans, *, tasks: Tasks | None) -> None:
    """Run workers until all trials are done, by `tasks` or, without, here.

    A worker that is lost is replaced and its trials are tried again. Raises `SearchFailed` if that happens again and
    again.
    """
    with _Screen(study, search.plan.trials) as screen:
        if tasks is None:
            work(search, seed=search.seed, scans=scans, on_rung=screen.show)
            # A worker that was killed before it could sign its trial was not known to be lost at the beginning.
            while lost := _lost(study):
                retry(study, lost)
                work(search, seed=search.seed + 1000, scans=scans, on_rung=screen.show)
        else:
            _side_by_side(search, study, tasks, screen)


def work(
    search: Search,
    *,
    seed: int,
    call: str = "",
    scans: Scans | None = None,
    on_rung: Callable[[], None] = lambda: None,
) -> int:
    """One worker: join the study and compete; returns the iterations that it spent."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _study(search, seed=seed, begun=True)
    storage = study._storage
    beat = storage.record_heartbeat if isinstance(storage, RDBStorage) else lambda _: None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        fail_stale_trials(study)
    return compete(
        study,
        search.plan,
        search.data.load() if scans is None else scans,
        worker=f"{_me()} {call}".rstrip(),
        beat=lambda trial: beat(trial._trial_id),
        on_rung=on_rung,
    )


def _side_by_side(search: Search, study: Study, tasks: Tasks, screen: _Screen) -> None:
    """As many workers as `tasks` has room for, as long as there are trials to begin."""
    calls: dict[int, str] = {}
    started = lost_workers = 0
    try:
        with tasks:
            while True:
                while tasks.running < tasks.size and begun_trials(study) < search.plan.trials:
                    call, seed = f"{_me()}#{started}", search.seed + 1000 * started
                    calls[tasks.start(functools.partial(work, search, seed=seed, call=call))] = call
                    started += 1
                if not tasks.running:
                    if not (lost := _lost(study)):
                        return
                    retry(study, lost)
                    continue
                for ended in tasks.ended(timeout_s=1.0):
                    call = calls.pop(ended.number)
                    if ended.problem is None:
                        continue
                    lost = _lost(study, call=call)
                    log.warning("a worker is lost: %s; %s trials are tried again", ended.problem, len(lost))
                    retry(study, lost)
                    lost_workers += 1
                    if lost_workers > MOST_LOST:
                        raise SearchFailed(f"{lost_workers} workers were lost; the last: {ended.problem}")
                screen.show()
    finally:
        for call in calls.values():  # ended by force: on another machine nobody else would know
            retry(study, _lost(study, call=call))


def _lost(study: Study, *, call: str | None = None) -> list[FrozenTrial]:
    """Trials that some worker has begun and not ended, and will not: that of `call` is known to be gone."""
    running = study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
    return [trial for trial in running if _call(trial) == call is not None or not _alive(trial)]


def _study(search: Search, *, seed: int, begun: bool = False) -> Study:
    """The study in the storage, made if there is none and it has not `begun` elsewhere; raises `SearchFailed`."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats call themselves that
            storage = RDBStorage(
                search.storage, heartbeat_interval=60, grace_period=GRACE_S, heartbeat_stale_trial_callback=again
            )
            sampler = make_sampler(search.sampler, seed=seed)
            if begun:
                return optuna.load_study(storage=storage, study_name=search.study, sampler=sampler)
            return optuna.create_study(storage=storage, study_name=search.study, sampler=sampler, load_if_exists=True)
    except KeyError as error:
        raise SearchFailed(f"the storage {search.storage} is another one seen from {socket.gethostname()}") from error
    except (StorageInternalError, SQLAlchemyError, ImportError, ValueError) as error:
        raise SearchFailed(f"the storage {search.storage} cannot be used: {first_line(error)}") from error


def _frames(file: Path, group: str) -> list[RawFrame]:
    """The frames of a raw file."""
    with open_raw(file, group=group) as raw:
        return raw_frames(raw.header, raw.acquisitions())


def _me() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _call(trial: FrozenTrial) -> str:
    """Which call of `_side_by_side` a trial's worker was; nothing if it was none."""
    return str(trial.user_attrs.get("worker", "")).partition(" ")[2]


def _alive(trial: FrozenTrial) -> bool:
    """Whether the trial's worker may still be at work: one of another machine is taken to be."""
    if "worker" not in trial.user_attrs:  # broken off before it could say
        begun = trial.datetime_start
        return begun is not None and (datetime.now() - begun).total_seconds() < SIGNING_S
    host, _, process = str(trial.user_attrs["worker"]).partition(" ")[0].rpartition(":")
    if host != socket.gethostname() or not process.isdecimal():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class _Screen:
    """On a terminal: how many trials are over, the best loss, the time left."""

    def __init__(self, study: Study, trials: int) -> None:
        console = Console(stderr=True)
        self._study = study
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("trials", total=trials)

    def __enter__(self) -> _Screen:
        self._progress.start()
        self.show()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self) -> None:
        """Bring the line up to date."""
        trials = self._study.get_trials(deepcopy=False)
        over = sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
        values = [trial.value for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None]
        best = f"best loss {min(values):.4g}" if values else "trials"
        self._progress.update(self._task, completed=over, description=best)
