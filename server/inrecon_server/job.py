"""One frame as a job: what a worker process is told, what it does, and what it gives back.

Jobs go over as numpy arrays and images come back as bytes for the wire, so that the front never imports torch.
"""

from __future__ import annotations

import logging
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inrecon.errors import DeviceBroken, InreconError, InvalidProtocolFile, NoHyperparameters, first_line
from inrecon.events import Event, FallBack, Warned, listening, observe
from inrecon.frame import Key, RawFrame, Request, SeriesBySpace
from inrecon_server.notices import News, Notice, notice_of
from inrecon_server.protocol import serialise

if TYPE_CHECKING:
    from inrecon.hyperparams import HyperparameterFiles
    from inrecon.hyperparams.snapshot import State
    from inrecon.live import Stream

log = logging.getLogger(__name__)

STREAMS = 4
"""Of how many streams, the last that a process was at, it and the front keep the priors."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the next job of a scan takes over from the last one.

    `hyperparameters` is a pickled `HyperparameterFiles`, which the front cannot open without torch; None before
    the first job has read the files. `tuned` are the encoding spaces for which inline tuning has had its time. `priors`
    are what frames of a stream are compared with, by key with repetition 0, in a form that the worker alone reads; of a
    result, at least those that its job has made, and no bytes for one that is of no use any more.
    """

    series: SeriesBySpace = field(default_factory=dict)
    hyperparameters: bytes | None = None
    tuned: frozenset[int] = frozenset()
    priors: Mapping[Key, bytes] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class InlineTuning:
    """How long to search on a scan of a protocol that no hyperparameter file is about, and the folder of candidates."""

    seconds: float
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Job:
    """One frame to reconstruct; `hyperparameters` is the folder of files (None: the shipped ones).

    `due` is the time of this machine's monotonic clock at which the image is wanted, None for when it is done. `no_fit`
    says why CG-SENSE shall stand in for the fit. `last_good` are the pickled files of the folder as they were when all
    of them could be used. `stream` tells frames of one interventional stream from those of others, None for a scan's.
    """

    raw: RawFrame
    request: Request
    progress: Progress
    hyperparameters: Path | None
    device: str
    inline_tuning: InlineTuning | None = None
    due: float | None = None
    no_fit: str | None = None
    last_good: bytes | None = None
    stream: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What became of a job: `images` as messages for the wire, a report for each, and the `progress` to go on with.

    A job that failed has no images and a notice of level ERROR. `fallbacks` are the rooms that took another way, each
    once. `last_good` are the files of the job's folder, if all of them could be used.
    """

    progress: Progress
    images: tuple[bytes, ...] = ()
    reports: tuple[Mapping[str, Any], ...] = ()
    notices: tuple[Notice, ...] = ()
    fallbacks: tuple[str, ...] = ()
    last_good: bytes | None = None


def run_job(job: Job) -> JobResult:
    """Reconstruct one frame, in the worker process; what can go wrong with it becomes a notice.

    Raises `DeviceBroken`, for which this process is the wrong one to try again.
    """
    from inrecon.attempts import reconstruct  # torch is imported in the worker process only

    notices: list[Notice] = []
    fallbacks: dict[str, None] = {}
    news = News()

    def hear(event: Event) -> None:
        if isinstance(event, FallBack):
            fallbacks[event.room] = None
        if (notice := notice_of(event)) is not None:
            notices.extend(news.of(notice))

    progress, last_good = job.progress, None
    try:
        with listening(hear):
            files, progress, last_good = _hyperparameters(job)
            live = _stream(job)
            result = reconstruct(
                job.raw,
                request=job.request,
                hyperparameters=files,
                device=job.device,
                series=progress.series,
                due=job.due,
                no_fit=job.no_fit,
                live=live,
            )
            if live is not None:
                progress = replace(progress, priors=dict(live.priors))
    except DeviceBroken:
        raise
    except InreconError as error:
        place = "" if job.stream is None else f"{job.raw.key.in_words}: "
        notices.append(Notice(level="ERROR", text=f"{place}{error}"))
    except Exception as error:  # the boundary: what is wrong with one frame must not end the scan
        log.exception("internal error")
        notices.append(Notice(level="ERROR", text=f"internal error in this frame: {type(error).__name__}"))
    else:
        return JobResult(
            progress=replace(progress, series=result.series),
            images=tuple(serialise(image) for image in result.images),
            reports=result.reports,
            notices=tuple(notices),
            fallbacks=tuple(fallbacks),
            last_good=last_good,
        )
    return JobResult(progress=progress, notices=tuple(notices), last_good=last_good)


_streams: OrderedDict[str, Stream] = OrderedDict()
"""The interventional streams that this process was at last; what must not be lost with it is in the jobs' priors."""


def _stream(job: Job) -> Stream | None:
    """The interventional stream that the frame belongs to, as far as this process knows it; None for a scan's."""
    if job.stream is None:
        return None
    from inrecon.live import Stream
    from inrecon.stream import choose_device

    device = choose_device(job.device)
    found = _streams.get(job.stream)
    if found is None or found.device != device:  # by a process that was lost to a GPU it is gone on with on the CPU
        found = _streams[job.stream] = Stream(device, name=job.stream)
    _streams.move_to_end(job.stream)
    while len(_streams) > STREAMS:
        _streams.popitem(last=False)
    found.restore(job.progress.priors)
    return found


def _hyperparameters(job: Job) -> tuple[HyperparameterFiles, Progress, bytes | None]:
    """The files as they were at the scan's first job, whatever has become of them since, and what was tuned then; and
    the files by themselves, if they were read just now and can be used."""
    known, space = job.progress, job.raw.key.encoding_space
    last_good: bytes | None = None
    if known.hyperparameters is not None:
        files = pickle.loads(known.hyperparameters)  # noqa: S301  pickled here, in our own process
    else:
        try:
            files, last_good = read_files(job.hyperparameters)
        except (InvalidProtocolFile, NoHyperparameters) as error:
            if job.last_good is None:
                raise
            observe(Warned(text=f"the hyperparameter files cannot be used, those from before are: {first_line(error)}"))
            files = pickle.loads(job.last_good)  # noqa: S301  pickled here, in our own process
    tuned = known.tuned
    # A search takes its time whatever the deadline is; and where the fit is what failed, it would fail again.
    live = job.stream is not None
    if job.inline_tuning is not None and space not in tuned and job.due is None and job.no_fit is None and not live:
        from inrecon import stream
        from inrecon.tuning import tuned_for

        files = tuned_for(
            job.raw,
            files,
            request=job.request,
            device=stream.choose_device(job.device),
            seconds=job.inline_tuning.seconds,
            folder=job.inline_tuning.folder,
        )
        tuned |= {space}
    elif known.hyperparameters is not None:
        return files, known, last_good
    return files, replace(known, hyperparameters=pickle.dumps(files), tuned=tuned), last_good


def read_files(folder: Path | None) -> tuple[HyperparameterFiles, bytes]:
    """The files of `folder` (None: the shipped ones), and the same pickled; read again where one of them has changed.

    Raises what `HyperparameterFiles.load` does.
    """
    from inrecon.hyperparams.snapshot import shipped_folder, state_of  # its check of the methods' fields imports torch

    chosen = folder or shipped_folder()
    return _loaded(chosen, state_of(chosen))


@lru_cache(maxsize=4)
def _loaded(folder: Path, state: State) -> tuple[HyperparameterFiles, bytes]:
    """The files of `folder`, and the same pickled: read once for each of its states."""
    from inrecon.hyperparams import HyperparameterFiles

    del state
    files = HyperparameterFiles.load(folder)
    return files, pickle.dumps(files)
