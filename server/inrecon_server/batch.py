"""Raw files in, image files out: one here, or many side by side."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inrecon.errors import InreconError
from inrecon.frame import Request
from inrecon_server.files import UnwritableFile, open_raw, replacing, write_images, write_pngs
from inrecon_server.tasks import Ended, Tasks


class NoImage(InreconError):
    """A raw file of which no image could be made."""


@dataclass(frozen=True, kw_only=True)
class FileJob:
    """A raw file, what is asked for, and where images, report and pictures go."""

    raw: Path
    group: str
    request: Request
    hyperparameters: Path | None
    device: str
    output: Path
    report: Path | None
    png: Path | None


@dataclass(frozen=True, kw_only=True)
class Done:
    """What became of a job: a `summary` in a line, the `problem` if images are missing, `told`: what a user should
    know, and the methods `without_preset` for which there were no hyperparameters, so that a preset meant nothing."""

    summary: str
    problem: str
    told: tuple[str, ...]
    without_preset: tuple[str, ...]


def reconstruct_file(job: FileJob, *, quiet: bool = False) -> Done:
    """Do `job`; unless `quiet`, what a user should know goes to stderr as it comes.

    Each output is written whole or not at all. Raises `NoImage`, `UnreadableFile`, `UnwritableFile`, and what `replay`
    does.
    """
    if job.report and job.report.resolve() == job.output.resolve():
        raise UnwritableFile(f"{job.report} cannot hold both the images and the report")
    with open_raw(job.raw, group=job.group) as raw, ExitStack() as outputs:
        images = outputs.enter_context(replacing(job.output, source=job.raw))
        report = job.report and outputs.enter_context(replacing(job.report, source=job.raw))
        if job.png:
            job.png.mkdir(parents=True, exist_ok=True)

        from inrecon_server.replay import replay, write_report  # only now: torch takes seconds

        outcome = replay(raw, request=job.request, hyperparameters=job.hyperparameters, device=job.device, quiet=quiet)
        if not outcome.images:
            raise NoImage(f"no image: {outcome.problem or outcome.summary}")
        write_images(images, outcome.images)
        if report:
            write_report(report, outcome.reports)
        if job.png:
            write_pngs(job.png, outcome.images)
    return Done(
        summary=outcome.summary,
        problem=outcome.problem and f"{job.output} is not complete: {outcome.problem}",
        told=tuple(outcome.told),
        without_preset=_without_preset(outcome.reports),
    )


def reconstruct_files(jobs: Iterable[FileJob], tasks: Tasks) -> Iterator[tuple[FileJob, Ended]]:
    """Do `jobs` side by side; gives each as soon as it is over, `Done` its answer."""
    waiting, running = list(jobs), dict[int, FileJob]()
    with tasks:
        while waiting or running:
            while waiting and tasks.running < tasks.size:
                job = waiting.pop(0)
                running[tasks.start(functools.partial(reconstruct_file, quiet=True), job)] = job
            for ended in tasks.ended(timeout_s=1.0):
                yield running.pop(ended.number), ended


def _without_preset(reports: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The methods for which the scan's hyperparameter file has no values, and so no preset either."""
    found = {
        str(report["method"])
        for report in reports
        if not any(source == "entry" or source.startswith("preset ") for source in report["sources"].values())
    }
    return tuple(sorted(found))
