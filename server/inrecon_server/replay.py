"""A raw file through the rooms, without a socket: what the server does with the same readouts, and a report of it."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ismrmrd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from inrecon import stream
from inrecon.acquire import collector, parse_header
from inrecon.attempts import FRAME_ERRORS, reconstruct
from inrecon.errors import InvalidFrame
from inrecon.events import Event, FitFinished, FitProgressed, listening
from inrecon.frame import NO_PRIOR_HERE, RawFrame, Request, SeriesBySpace
from inrecon.hyperparams import HyperparameterFiles
from inrecon.live import Stream
from inrecon.methods import build
from inrecon_server.files import RawFile, UnreadableFile
from inrecon_server.notices import News, Notice, notice_of

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Replayed:
    """What became of a raw file: `images` in order, a report for each, the frames that failed, and `summary`.

    `ended_by` is why reading stopped before the end of the file, if it did; `told` what a user should know.
    """

    images: list[ismrmrd.Image] = field(default_factory=list)
    reports: list[Mapping[str, Any]] = field(default_factory=list)
    failed: int = 0
    ended_by: str | None = None
    told: list[str] = field(default_factory=list)
    summary: str = ""

    @property
    def problem(self) -> str:
        """Why images are missing, or nothing if none are."""
        failed = f"{self.failed} frames failed" if self.failed else ""
        return "; ".join(filter(None, (failed, self.ended_by)))


def replay(
    raw: RawFile,
    *,
    request: Request,
    hyperparameters: Path | None,
    device: str,
    notices: Iterable[Notice] = (),
    quiet: bool = False,
) -> Replayed:
    """Reconstruct everything in `raw`, on `device` (``auto``, ``cpu`` or ``cuda``).

    `hyperparameters` is a folder of files (None: the shipped ones). What a user should know, `notices` first, goes to
    stderr, with a progress bar if that is a terminal, unless `quiet`. As in the server, a frame that cannot be
    reconstructed is left out, and a readout that makes no sense, or cannot be read, ends the scan with the frames
    complete before it. Raises `InreconError` for what no frame could overcome: header, method, hyperparameters, device.
    """
    if request.method is not None:
        build(request.method, request.overrides)
    chosen = stream.choose_device(device)
    files = HyperparameterFiles.load(hyperparameters)
    accumulator = collector(parse_header(raw.header), live=request.live)
    with _Screen(quiet=quiet) as screen, listening(screen.hear):
        for notice in notices:
            screen.tell(notice)
        if request.live is not None and request.live.prior is not None:
            screen.tell(Notice(level="WARNING", text=NO_PRIOR_HERE))
        live = None if request.live is None else Stream(chosen)
        run = _Run(request=request, files=files, device=chosen, screen=screen, live=live)
        try:
            for acquisition in screen.counted(raw.acquisitions(), total=raw.readouts):
                run.take(accumulator.add(acquisition))
            run.take(accumulator.finish())
        except (InvalidFrame, UnreadableFile) as error:
            run.outcome.ended_by = str(error)
    seconds = time.perf_counter() - run.started
    run.outcome.told = screen.told
    run.outcome.summary = f"{len(run.outcome.images)} images in {seconds:.1f} s; {accumulator.summary()}"
    return run.outcome


def write_report(path: Path, reports: Iterable[Mapping[str, Any]]) -> None:
    """Write `reports` as a JSON list; numbers that are not finite, which JSON does not know, become null."""
    text = json.dumps([_strict(report) for report in reports], indent=2, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _strict(value: Any) -> Any:
    match value:
        case Mapping():
            return {str(key): _strict(item) for key, item in value.items()}
        case list() | tuple():
            return [_strict(item) for item in value]
        case float() if not math.isfinite(value):
            return None
    return value


class _Screen:
    """What a person sees meanwhile: warnings, each once, and on a terminal how far the file and the fit are."""

    def __init__(self, *, quiet: bool) -> None:
        self.told: list[str] = []
        self._console = Console(stderr=True, quiet=quiet)
        self._progress = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._fit = self._progress.add_task("iterations", visible=False)
        self._news = News()

    def __enter__(self) -> _Screen:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def counted(self, acquisitions: Iterable[ismrmrd.Acquisition], *, total: int) -> Iterable[ismrmrd.Acquisition]:
        return self._progress.track(acquisitions, total=total, description="readouts")

    def hear(self, event: Event) -> None:
        match event:
            case FitProgressed():
                self._progress.update(self._fit, completed=event.iteration, total=event.iterations, visible=True)
            case FitFinished():
                self._progress.update(self._fit, visible=False)
        if (notice := notice_of(event)) is not None:
            self.tell(notice)

    def tell(self, notice: Notice) -> None:
        for told in self._news.of(notice):
            self.told.append(f"{told.level.lower()}: {told.text}")
            self._console.print(f"inrecon: {self.told[-1]}", soft_wrap=True, markup=False, highlight=False)


@dataclass(kw_only=True)
class _Run:
    """The frames of one file, one after the other, in one series."""

    request: Request
    files: HyperparameterFiles
    device: str
    screen: _Screen
    live: Stream | None
    series: SeriesBySpace = field(default_factory=dict)
    outcome: Replayed = field(default_factory=Replayed)
    started: float = field(default_factory=time.perf_counter)

    def take(self, frames: Iterable[RawFrame]) -> None:
        for raw in frames:
            try:
                self._reconstruct(raw)
            except FRAME_ERRORS as error:
                self.outcome.failed += 1
                place = f"slice {raw.key.slice}, repetition {raw.key.repetition}"
                self.screen.tell(Notice(level="ERROR", text=f"{place}: {error}"))

    def _reconstruct(self, raw: RawFrame) -> None:
        result = reconstruct(
            raw,
            request=self.request,
            hyperparameters=self.files,
            device=self.device,
            series=self.series,
            live=self.live,
        )
        self.series = result.series
        self.outcome.images.extend(result.images)
        self.outcome.reports.extend(result.reports)
