"""One search by one worker, by several processes and on a Ray cluster: what their number is worth."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from inrecon.simulate import simulate_scan, write_ismrmrd
from inrecon.tuning import Plan
from inrecon_server.tasks import Tasks, tasks_on
from inrecon_server.tune import Data, Search, open_study, search_with
from inrecon_server.tuned import outcome
from tuning.bed import METHOD


def timed(name: str, tasks: Tasks | None, *, size: int, trials: int, device: str) -> dict[str, Any]:
    """A search on a simulated head of ``(size, size)`` and 8 coils: seconds, iterations, and the least loss.

    The seconds are of all that a command does from the data on: processes that start, read and calibrate.
    """
    with TemporaryDirectory() as folder:
        raw = Path(folder) / "head.h5"
        write_ismrmrd(raw, simulate_scan(shape=(size, size), coils=8, acceleration=4, acs=16))
        search = Search(
            data=Data(files=(raw,), group="dataset", oracle=None, device=device, folds=1, slices=1),
            plan=Plan(method=METHOD, trials=trials),
            storage=f"sqlite:///{folder}/head.db",
            study="head",
            sampler="quasi_random",
            seed=0,
        )
        scans = search.data.load()
        study = open_study(search, sha256=scans.sha256, candidates={})
        started = time.perf_counter()
        search_with(search, study, scans, tasks=tasks)
        found = outcome(study)
    return {
        "workers": name,
        "trials": found.finished + found.dropped,
        "iterations": found.iterations,
        "seconds": time.perf_counter() - started,
        "loss": found.loss,
    }


def crews(jobs: int, ray: str | None, device: str) -> dict[str, Tasks | None]:
    """By name: this process, `jobs` processes, and the cluster at `ray` if there is one."""
    found: dict[str, Tasks | None] = {
        "this process": None,
        f"{jobs} processes": tasks_on(None, size=jobs, device=device),
    }
    if ray is not None:
        cluster = tasks_on(ray, size=None, device=device)
        found[f"Ray, {cluster.size} tasks"] = cluster
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each; speed-up by iterations a second, for searches side by side may spend a few more."""
    first = rows[0]["iterations"] / rows[0]["seconds"]
    lines = ["| workers | trials | iterations | s | speed-up | loss |", "|---|---|---|---|---|---|"]
    for row in rows:
        faster = row["iterations"] / row["seconds"] / first
        lines.append(
            f"| {row['workers']} | {row['trials']} | {row['iterations']:,} | {row['seconds']:.0f} | {faster:.2f} | "
            f"{row['loss']:.4f} |"
        )
    return "\n".join(lines) + "\n"
