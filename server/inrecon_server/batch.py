"""Raw files in, image files out: one here, or many side by side."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import KW_ONLY, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ismrmrd

from inrecon.acquire import parse_header
from inrecon.errors import ConfigError, InreconError
from inrecon.frame import Request
from inrecon_server.config import DEFAULT, Wishes, recorded, requested
from inrecon_server.files import NoVideo, RawFile, UnwritableFile, open_raw, replacing, write_images, write_pngs
from inrecon_server.notices import Notice
from inrecon_server.tasks import Ended, Tasks

if TYPE_CHECKING:
    from inrecon_server.video import Kind

_KINDS: dict[str, Kind] = {".gif": "gif", ".mp4": "mp4"}
GIF_RATE_MAX = 50.0
"""Frames a second: what shows GIFs takes anything shorter than 20 ms for 100 ms."""


class NoImage(InreconError):
    """A raw file of which no image could be made."""


@dataclass(frozen=True)
class Place:
    """A raw file, and where its images, report, pictures and video go."""

    raw: Path
    output: Path
    report: Path | None = None
    png: Path | None = None
    video: Path | None = None


@dataclass(frozen=True)
class FileJob:
    """A raw file and the places of its outputs, and what is asked for: `config` (None: the file's own) and `wishes`.

    A video has `fps` frames a second (None: those of the scan, if they are known), with repetitions if `counter`.
    """

    place: Place
    _: KW_ONLY
    group: str
    config: str | None
    wishes: Wishes
    hyperparameters: Path | None
    device: str
    fps: float | None = None
    counter: bool = False


@dataclass(frozen=True, kw_only=True)
class Done:
    """What became of a job: a `summary` in a line, the `problem` if images are missing, `told`: what a user should
    know, and the methods `without_preset` for which there were no hyperparameters, so that a preset meant nothing."""

    summary: str
    problem: str
    told: tuple[str, ...]
    without_preset: tuple[str, ...]


def places(
    raws: Sequence[Path],
    output: str,
    report: Path | None,
    png: Path | None,
    video: Path | None = None,
    *,
    elsewhere: bool = False,
) -> list[Place]:
    """For each of `raws` a place: `output` itself and so on, or in folders of these names, which are made.

    They are folders if there are several files, or if `output` is one already or ends as one does. `elsewhere`: for a
    process that may run in another folder. Raises `InreconError` where two files' images would have one name, and for
    the name of one video where there are several.
    """
    folder = Path(output)
    if elsewhere:
        raws, folder = [raw.resolve() for raw in raws], folder.resolve()
        report, png, video = report and report.resolve(), png and png.resolve(), video and video.resolve()
    if len(raws) == 1 and not output.endswith(os.sep) and not folder.is_dir():
        return [Place(raws[0], folder, report, png, video)]
    if video is not None and video.suffix.lower() in _KINDS:
        raise InreconError(f"where the images go to a folder, so do videos: {video} is the name of one")
    names = [raw.stem for raw in raws]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InreconError(f"several raw files are called {', '.join(twice)}: their images would have the same name")
    for made in filter(None, (folder, report, png, video)):
        made.mkdir(parents=True, exist_ok=True)
    return [
        Place(
            raw,
            folder / f"{raw.stem}.h5",
            report and report / f"{raw.stem}.json",
            png and png / raw.stem,
            video and video / f"{raw.stem}.gif",
        )
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
    kind = place.video and _kind_of(place.video, fps=job.fps)
    written = {"the images": place.output, "the report": place.report, "the video": place.video}
    by_path = {path.resolve(): what for what, path in written.items() if path is not None}
    for what, path in written.items():
        if path is not None and (other := by_path[path.resolve()]) != what:
            raise UnwritableFile(f"{path} cannot hold both {what} and {other}")
    with open_raw(place.raw, group=job.group) as raw, ExitStack() as outputs:
        request, notices = request_for(raw, job.config, job.wishes)
        images = outputs.enter_context(replacing(place.output, source=place.raw))
        report = place.report and outputs.enter_context(replacing(place.report, source=place.raw))
        if place.png:
            place.png.mkdir(parents=True, exist_ok=True)
        filmed = no_video = ""
        try:
            with replacing(place.video, source=place.raw) if place.video else nullcontext() as video:
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
                if video and kind:
                    filmed = _film(video, outcome.images, raw.header, kind=kind, job=job)
        except NoVideo as error:  # the other outputs are whole, and kept
            no_video = f"{place.video} is not written: {error}"
    incomplete = outcome.problem and f"{place.output} is not complete: {outcome.problem}"
    return Done(
        summary="; ".join(filter(None, (outcome.summary, filmed))),
        problem="; ".join(filter(None, (incomplete, no_video))),
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


def _kind_of(video: Path, *, fps: float | None) -> Kind:
    """The kind that the name says; raises `UnwritableFile` if that cannot be written here."""
    kind = _KINDS.get(video.suffix.lower())
    if kind is None:
        raise UnwritableFile(f"{video}: the name of a video ends in {' or '.join(_KINDS)}")
    if kind == "mp4" and find_spec("av") is None:
        raise UnwritableFile(f"{video}: MP4 needs the package av: pip install 'inrecon[video]'; GIF needs nothing")
    if kind == "gif" and fps is not None and fps > GIF_RATE_MAX:
        raise UnwritableFile(f"{video}: a GIF has {GIF_RATE_MAX:g} frames a second at most, not {fps:g}")
    return kind


def _film(path: Path, images: Sequence[ismrmrd.Image], header: bytes, *, kind: Kind, job: FileJob) -> str:
    """Write the video of `images`; gives what it is in words."""
    from inrecon_server.video import USUAL_RATE, Film, write_video  # which stands on torch

    film = Film.of(images)
    of_scan = film.rate(parse_header(header).vendor)
    rate = job.fps or min(of_scan or USUAL_RATE, GIF_RATE_MAX if kind == "gif" else math.inf)
    write_video(path, film, kind=kind, rate=rate, counter=job.counter)
    told = ", as they were acquired" if rate == of_scan else ""
    return f"a video of {len(film.times)} frames, {rate:.3g} a second{told}"


def _without_preset(reports: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The methods for which the scan's hyperparameter file has no values, and so no preset either."""
    found = {
        str(report["method"])
        for report in reports
        if not any(source == "entry" or source.startswith("preset ") for source in report["sources"].values())
    }
    return tuple(sorted(found))
