"""A short search on the very scan that is to be reconstructed, where its protocol has no hyperparameter file yet."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import optuna

from inrecon import __version__
from inrecon.errors import InreconError, first_line
from inrecon.events import Warned, observe
from inrecon.frame import RawFrame, Request
from inrecon.hyperparams import Entry, HyperparameterFiles, match_for, write_entry
from inrecon.hyperparams.match import Match
from inrecon.hyperparams.snapshot import read_folder
from inrecon.methods import methods, tunable_fields
from inrecon.methods.bilevel_inr import LARGEST_BATCH
from inrecon.methods.method import related
from inrecon.tuning.scans import NotTunable, Scans, judged_scans
from inrecon.tuning.search import make_sampler
from inrecon.tuning.study import Plan, compete

MOST_CANDIDATES = 100
"""Files in the folder of candidates: whoever can send a header can cause one."""


class _TimeUp(Exception):
    """The search has had its seconds."""


def tuned_for(
    raw: RawFrame, files: HyperparameterFiles, *, request: Request, device: str, seconds: float, folder: Path
) -> HyperparameterFiles:
    """`files` and, if none of them is about scans like `raw`, an entry tuned on it for so many `seconds` (and what is
    under way then: a rung, a second or a few).

    The entry is kept in `folder` as a candidate, for a person to look at and move to the others; one for the same scans
    is replaced. What has become of it is announced as `Warned`. Where the scan or the method cannot be tuned, memory
    does not suffice, or the folder cannot be written, it is that which is announced, and `files` are what comes back.
    """
    entry = files.look_up(raw.protocol)
    method = request.method or entry.method
    tunable = related(method, entry.method) and tunable_fields(methods[method])
    if entry.match.rank(raw.protocol) != (False, 0) or not tunable:
        return files
    try:
        started = time.monotonic()
        scans = judged_scans([raw], device=device)
        values, tried = _searched(scans, entry, method=method, end=started + seconds)
        written = _kept(raw, scans, entry, values, files=files, tried=tried, folder=folder)
    except (InreconError, OSError, RuntimeError, MemoryError) as error:  # RuntimeError is torch's, for device memory
        reason = first_line(error)
        observe(Warned(text=f"no hyperparameter file is about this protocol, and it cannot be tuned here: {reason}"))
        return files
    told = f"{tried} candidates in {time.monotonic() - started:.0f} s, kept as {written.name}"
    observe(Warned(text=f"no hyperparameter file is about this protocol: tuned on this scan, {told}"))
    return HyperparameterFiles(entries=(*files.entries, written))


def _searched(scans: Scans, entry: Entry, *, method: str, end: float) -> tuple[Mapping[str, float], int]:
    """The best values that are found in time, those of `entry` among the candidates, and how many were tried."""
    current = entry.resolve(Request(method=method)).values
    searched = tunable_fields(methods[method])
    pixels = sum(one.frame.maps.support.numel() for one in scans.judged)
    plan = Plan(
        method=method,
        trials=10_000,
        batch=min(max(LARGEST_BATCH // pixels, 2), Plan.batch),
        fixed={name: value for name, value in current.items() if name not in searched},  # type: ignore[misc]
    )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=make_sampler("quasi_random", seed=0))
    study.enqueue_trial({name: float(str(current[name])) for name in searched}, user_attrs={"origin": entry.name})

    def look() -> None:
        if time.monotonic() >= end:
            raise _TimeUp

    with suppress(_TimeUp):
        compete(study, plan, scans, worker="", on_rung=look)
    trials = study.get_trials(deepcopy=False)
    losses = [(trial, step, loss) for trial in trials for step, loss in trial.intermediate_values.items()]
    finite = [found for found in losses if math.isfinite(found[2])]
    if not finite:
        raise NotTunable("the loss of no candidate is a number")
    furthest = max(step for _, step, _ in finite)
    best, _, _ = min((found for found in finite if found[1] == furthest), key=lambda found: found[2])
    return best.params, len({trial.number for trial, _, _ in losses})


def _kept(
    raw: RawFrame,
    scans: Scans,
    entry: Entry,
    values: Mapping[str, float],
    *,
    files: HyperparameterFiles,
    tried: int,
    folder: Path,
) -> Entry:
    """The candidate file, in the place of those that would match as well."""
    wanted = match_for(raw.protocol, beside=files.entries)
    match = Match.model_validate(wanted)
    there = [] if not any(folder.glob("candidate_*.yaml")) else list(read_folder(folder)[0])
    replaced = [Path(other.file) for other in there if other.match.ties(match)]
    if len(there) - len(replaced) >= MOST_CANDIDATES:
        raise NotTunable(f"there are {len(there)} candidates already; look at them and remove them")
    for file in replaced:
        file.unlink()
    return write_entry(
        folder / f"candidate_{hashlib.sha256(repr(wanted).encode()).hexdigest()[:8]}.yaml",
        match=wanted,
        method=entry.method,
        values={**entry.values, **values},
        presets={str(name): dict(preset) for name, preset in entry.presets.items()},
        provenance={
            "from": "tuned",
            "source": "a short search on one scan while it was reconstructed",
            "date": datetime.now(UTC).date().isoformat(),
            "version": __version__,
            "data_sha256": scans.sha256,
            "trials": tried,
        },
        comment="A candidate, to be looked at before it is used for other scans.",
    )
