"""One frame as a job: what a worker process is told, what it does, and what it gives back.

Jobs go over as numpy arrays and images come back as bytes for the wire, so that the front never imports torch.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inrecon.errors import InreconError, InvalidProtocolFile, NoHyperparameters
from inrecon.events import Event, FallBack, Warned, listening, observe
from inrecon.frame import RawFrame, Request, SeriesBySpace
from inrecon_server.notices import News, Notice, notice_of
from inrecon_server.protocol import serialise

if TYPE_CHECKING:
    from inrecon.hyperparams import HyperparameterFiles
    from inrecon.hyperparams.snapshot import State
    from inrecon.stream import Result

log = logging.getLogger(__name__)

FEW_COILS = 6
"""To how many coils a frame is compressed that did not fit into memory."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the next job of a scan takes over from the last one.

    `hyperparameters` is a pickled `HyperparameterFiles`, which the front cannot open without torch; None before
    the first job has read the files. `tuned` are the encoding spaces for which inline tuning has had its time.
    """

    series: SeriesBySpace = field(default_factory=dict)
    hyperparameters: bytes | None = None
    tuned: frozenset[int] = frozenset()


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
    of them could be used.
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


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What became of a job: `images` as messages for the wire, a report for each, and the `progress` to go on with.

    A job that failed has no images and a notice of level ERROR. `fallbacks` are the rooms that took another way, each
    once. `last_good` are the files of the job's folder, if all
    of them could be used.
    """

    progress: Progress
    images: tuple[bytes, ...] = ()
    reports: tuple[Mapping[str, Any], ...] = ()
    notices: tuple[Notice, ...] = ()
    fallbacks: tuple[str, ...] = ()
    last_good: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """A way to do a job: where, with how many coils (None for the usual number), and why without a fit, if so."""

    device: str
    max_coils: int | None = None
    no_fit: str | None = None


def run_job(job: Job) -> JobResult:
    """Reconstruct one frame, in the worker process; what can go wrong with it becomes a notice.

    What does not fit into memory is tried with fewer coils, then on the CPU. Where that does not help, or the
    fit fails in a way that nobody thought of, CG-SENSE's image is made instead, and marked.
    """
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
            result = _reconstructed(job, files, progress.series)
    except InreconError as error:
        notices.append(Notice(level="ERROR", text=str(error)))
    except Exception as error:  # the boundary: what is wrong with one frame must not end the scan
        log.exception("a reconstruction failed")
        notices.append(Notice(level="ERROR", text=f"the reconstruction failed: {_in_words(error)}"))
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


def _reconstructed(job: Job, files: HyperparameterFiles, series: SeriesBySpace) -> Result:
    """The first of all attempts that succeeds; raises what the last of them did."""
    from inrecon import stream  # torch is imported in the worker process only
    from inrecon.condition import MOST_COILS

    device = stream.choose_device(job.device)
    attempts = _attempts(device, job.no_fit)
    attempt = next(attempts)
    while True:
        try:
            return stream.reconstruct(
                job.raw,
                request=job.request,
                hyperparameters=files,
                device=attempt.device,
                series=series,
                seconds=None if job.due is None else job.due - time.monotonic(),
                max_coils=attempt.max_coils or MOST_COILS,
                no_fit=attempt.no_fit,
            )
        except InreconError:
            raise
        except Exception as error:
            log.exception("an attempt at a reconstruction failed")
            failure = error
        give_back_memory()
        following = next((a for a in attempts if a.no_fit or out_of_memory(failure)), None)
        if following is None:
            raise failure
        attempt = replace(
            following, no_fit=following.no_fit and (job.no_fit or f"the fit failed: {_in_words(failure)}")
        )
        if attempt.no_fit is None:
            how = "on the CPU" if attempt.device != device else f"with {attempt.max_coils} coils"
            observe(Warned(text=f"the frame does not fit into memory: it is tried again {how}"))


def _attempts(device: str, no_fit: str | None) -> Iterator[_Attempt]:
    """All ways, the best first; the last one is without a fit."""
    yield _Attempt(device=device, no_fit=no_fit)
    if no_fit is None:
        yield _Attempt(device=device, max_coils=FEW_COILS)
        if device != "cpu":
            yield _Attempt(device="cpu")
    yield _Attempt(device="cpu", max_coils=FEW_COILS, no_fit=no_fit or "the fit failed")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory, of a device or of the machine, was not enough."""
    import torch

    told = str(error).lower()
    memory = "out of memory" in told or "allocate memory" in told or "not enough memory" in told
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and memory)


def give_back_memory() -> None:
    """What torch keeps of the device's memory for itself."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _hyperparameters(job: Job) -> tuple[HyperparameterFiles, Progress, bytes | None]:
    """The files as they were at the scan's first job, whatever has become of them since, and what was tuned then; and
    the files by themselves, if they were read just now and can be used."""
    # The check of the methods' fields imports torch.
    from inrecon.hyperparams.snapshot import shipped_folder, state_of

    known, space = job.progress, job.raw.key.encoding_space
    last_good: bytes | None = None
    if known.hyperparameters is not None:
        files = pickle.loads(known.hyperparameters)  # noqa: S301  pickled here, in our own process
    else:
        try:
            folder = job.hyperparameters or shipped_folder()
            files, last_good = _loaded(folder, state_of(folder))
        except (InvalidProtocolFile, NoHyperparameters) as error:
            if job.last_good is None:
                raise
            reason = str(error).splitlines()[0]
            observe(Warned(text=f"the hyperparameter files cannot be used, those from before are: {reason}"))
            files = pickle.loads(job.last_good)  # noqa: S301  pickled here, in our own process
    tuned = known.tuned
    if job.inline_tuning is not None and space not in tuned:
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


@lru_cache(maxsize=4)
def _loaded(folder: Path, state: State) -> tuple[HyperparameterFiles, bytes]:
    """The files of `folder`, and the same pickled: read once for each of its states."""
    from inrecon.hyperparams import HyperparameterFiles

    del state
    files = HyperparameterFiles.load(folder)
    return files, pickle.dumps(files)


def _in_words(error: BaseException) -> str:
    """An error that is none of inrecon's own: torch's and the system's say what is wrong, others are bugs."""
    if isinstance(error, RuntimeError | MemoryError | OSError):
        return (str(error).splitlines() or [""])[0][:300] or type(error).__name__
    return f"internal error ({type(error).__name__}); the server's log says more"
