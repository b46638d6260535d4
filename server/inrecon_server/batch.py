"""Raw files in, image files out: one here, or many side by side."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from inrecon.errors import ConfigError, InreconError
from inrecon.frame import Request
from inrecon_server.config import DEFAULT, Wishes, recorded, requested
from inrecon_server.files import RawFile, UnwritableFile, open_raw, replacing, write_images, write_pngs
from inrecon_server.notices import Notice
from inrecon_server.tasks import Ended, Tasks


class NoImage(InreconError):
    """A raw file of which no image could be made."""


@dataclass(frozen=True)
class Place:
    """A raw file, and where its images, report and pictures go."""

    raw: Path
    output: Path
    report: Path | None = None
    png: Path | None = None


@dataclass(frozen=True)
class FileJob:
    """A raw file and the places of its outputs, and what is asked for: `config` (None: the file's own) and `wishes`."""

    place: Place
    _: KW_ONLY
    group: str
    config: str | None
    wishes: Wishes
    hyperparameters: Path | None
    device: str


@dataclass(frozen=True, kw_only=True)
class Done:
    """What became of a job: a `summary` in a line, the `problem` if images are missing, `told`: what a user should
    know, and the methods `without_preset` for which there were no hyperparameters, so that a preset meant nothing."""

    summary: str
    problem: str
    told: tuple[str, ...]
    without_preset: tuple[str, ...]


def places(
    raws: Sequence[Path], output: str, report: Path | None, png: Path | None, *, elsewhere: bool = False
) -> list[Place]:
    """For each of `raws` a place: `output` itself and so on, or in folders of these names, which are made.

    They are folders if there are several files, or if `output` is one already or ends as one does. `elsewhere`: for a
    process that may run in another folder. Raises `InreconError` where two files' images would have one name.
    """
    folder = Path(output)
    if elsewhere:
        raws, folder = [raw.resolve() for raw in raws], folder.resolve()
        report, png = report and report.resolve(), png and png.resolve()
    if len(raws) == 1 and not output.endswith(os.sep) and not folder.is_dir():
        return [Place(raws[0], folder, report, png)]
    names = [raw.stem for raw in raws]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InreconError(f"several raw files are called {', '.join(twice)}: their images would have the same name")
    for made in filter(None, (folder, report, png)):
        made.mkdir(parents=True, exist_ok=True)
    return [
        Place(raw, folder / f"{raw.stem}.h5", report and report / f"{raw.stem}.json", png and png / raw.stem)
        for raw in raws
    ]


def request_for(raw: RawFile, config: str | None, wishes: Wishes) -> tuple[Request, tuple[Notice, ...]]:
    """What is asked of `raw` by `config`, or else by the configuration recorded in it, or else by ``inr``.

    `wishes` go over it. Gives also what a user should know of the choice; raises `ConfigError`.
    """
    if config is not None or raw.config is None:
        return requested(config or DEFAULT, wishes), ()
    try:
        configuration = wishes.over(recorded(raw.config, raw.parameters))
    except ConfigError as error:
        text = f"{raw.path} was recorded with a configuration that cannot be used here: {error}; give another one (-c)"
        raise ConfigError(text) from error
    if not configuration.makes_images:
        raise ConfigError(
            f"{raw.path} was recorded with the configuration {configuration.name!r}, which makes no images; "
            "give another one (-c)"
        )
    told = f"configuration {configuration.name!r}, as recorded in {raw.path} (-c chooses another)"
    return configuration.request, (Notice(level="INFO", text=told),)


def reconstruct_file(job: FileJob, *, quiet: bool = False) -> Done:
    """Do `job`; unless `quiet`, what a user should know goes to stderr as it comes.

    Each output is written whole or not at all. Raises `NoImage`, `UnreadableFile`, `UnwritableFile`, and what `replay`
    does.
    """
    place = job.place
    if place.report and place.report.resolve() == place.output.resolve():
        raise UnwritableFile(f"{place.report} cannot hold both the images and the report")
    with open_raw(place.raw, group=job.group) as raw, ExitStack() as outputs:
        request, notices = request_for(raw, job.config, job.wishes)
        images = outputs.enter_context(replacing(place.output, source=place.raw))
        report = place.report and outputs.enter_context(replacing(place.report, source=place.raw))
        if place.png:
            place.png.mkdir(parents=True, exist_ok=True)

        from inrecon_server.replay import replay, write_report  # only now: torch takes seconds

        outcome = replay(
            raw,
            request=request,
            hyperparameters=job.hyperparameters,
            device=job.device,
            notices=notices,
            quiet=quiet,
        )
        if not outcome.images:
            raise NoImage(f"no image: {outcome.problem or outcome.summary}")
        write_images(images, outcome.images)
        if report:
            write_report(report, outcome.reports)
        if place.png:
            write_pngs(place.png, outcome.images)
    return Done(
        summary=outcome.summary,
        problem=outcome.problem and f"{place.output} is not complete: {outcome.problem}",
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
