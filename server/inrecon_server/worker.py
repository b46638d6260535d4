"""The process that owns torch and a device, and the front's handle on it.

The front process never imports torch: jobs go over as numpy arrays, images come back as bytes for the wire.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import pickle
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from inrecon.errors import InreconError
from inrecon.events import Event, listening
from inrecon.frame import RawFrame, Request, SeriesBySpace
from inrecon_server.notices import News, Notice, notice_of
from inrecon_server.protocol import serialise

if TYPE_CHECKING:
    from inrecon.hyperparams import HyperparameterFiles

log = logging.getLogger(__name__)


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
    """One frame to reconstruct; `hyperparameters` is the folder of files (None: the shipped ones)."""

    raw: RawFrame
    request: Request
    progress: Progress
    hyperparameters: Path | None
    device: str
    inline_tuning: InlineTuning | None = None


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What became of a job: `images` as messages for the wire, and the `progress` to go on with.

    A job that failed has no images and a notice of level ERROR.
    """

    progress: Progress
    images: tuple[bytes, ...] = ()
    notices: tuple[Notice, ...] = ()


def run_job(job: Job) -> JobResult:
    """Reconstruct one frame, in the worker process; what can go wrong with it becomes a notice."""
    from inrecon import stream  # torch is imported in the worker process only

    notices: list[Notice] = []
    news = News()

    def hear(event: Event) -> None:
        if (notice := notice_of(event)) is not None:
            notices.extend(news.of(notice))

    progress = job.progress
    images: tuple[bytes, ...] = ()
    try:
        with listening(hear):
            files, progress = _hyperparameters(job)
            result = stream.reconstruct(
                job.raw,
                request=job.request,
                hyperparameters=files,
                device=stream.choose_device(job.device),
                series=progress.series,
            )
        images = tuple(serialise(image) for image in result.images)
        progress = replace(progress, series=result.series)
    except InreconError as error:
        notices.append(Notice(level="ERROR", text=str(error)))
    except (RuntimeError, MemoryError) as error:
        # torch's errors (out of device memory and the like); the front could not even unpickle them without torch.
        log.exception("a reconstruction failed")
        notices.append(Notice(level="ERROR", text=f"the reconstruction failed: {_first_line(error)}"))
    except Exception as error:  # the boundary: what is wrong with one frame must not end the scan
        log.exception("internal error in a reconstruction")
        notices.append(Notice(level="ERROR", text=f"internal error in this frame: {type(error).__name__}"))
    return JobResult(progress=progress, images=images, notices=tuple(notices))


def _hyperparameters(job: Job) -> tuple[HyperparameterFiles, Progress]:
    """The files as they were at the scan's first job, whatever has become of them since, and what was tuned then."""
    from inrecon.hyperparams import HyperparameterFiles  # its check of the methods' fields imports torch

    known, space = job.progress, job.raw.key.encoding_space
    if known.hyperparameters is None:
        files = HyperparameterFiles.load(job.hyperparameters)
    else:
        files = pickle.loads(known.hyperparameters)  # noqa: S301  pickled here, in our own process
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
        return files, known
    return files, replace(known, hyperparameters=pickle.dumps(files), tuned=tuned)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _initialise(log_level: int) -> None:
    logging.basicConfig(level=log_level, format="%(asctime)s %(levelname)-8s %(name)s: %(message)s")
    follow_parent()


def follow_parent() -> None:
    """Make this process follow its parent: out of reach of Ctrl-C, and gone when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    # The pool's own pipe gives no end of file, for the worker holds both of its ends.
    parent.join()
    os._exit(1)


def _warm_up(device: str) -> str:
    from inrecon import stream  # torch is imported in the worker process only

    chosen = stream.choose_device(device)
    try:
        stream.warm_up(chosen)
    except RuntimeError as error:
        raise InreconError(f"the device {chosen!r} cannot be used: {_first_line(error)}") from error
    return chosen


class Worker:
    """A worker process that is there when needed: started and warmed up ahead, replaced when it dies.

    One job at a time is in the process: what ends the process takes no other job along.
    """

    def __init__(self, *, device: str) -> None:
        self.device = device
        self._turn = asyncio.Lock()
        self._retired = False
        self._pool: ProcessPoolExecutor | None = None
        self._warm: Future[str] | None = None
        self._processes: list[multiprocessing.process.BaseProcess] = []

    def start(self) -> None:
        """Start the process and its warming up; returns at once."""
        before = set(multiprocessing.active_children())
        self._pool = ProcessPoolExecutor(
            max_workers=1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_initialise,
            initargs=(logging.getLogger().getEffectiveLevel(),),
        )
        self._warm = self._pool.submit(_warm_up, self.device)
        self._processes = [child for child in multiprocessing.active_children() if child not in before]

    async def warmed_up(self) -> str:
        """The device chosen, once the process is ready; raises `InreconError` if there is no such device."""
        if self._warm is None:
            raise RuntimeError("the worker is not running")
        # Shielded: several may wait for it, and one that gives up must not cancel it.
        return await asyncio.shield(asyncio.wrap_future(self._warm))

    async def run(self, job: Job) -> JobResult:
        """The result of `job`. If the process dies of it, it is replaced and the result says so.

        Cancelling drops a job that waits for its turn; if it is running already, its process is ended and replaced.
        """
        async with self._turn:
            try:
                return await self._run_alone(job)
            except BrokenProcessPool:
                log.error("the worker process died; starting another")
                self._replace()
                text = "the reconstruction process died before this frame was done (out of memory?); another is started"
                return JobResult(progress=job.progress, notices=(Notice(level="ERROR", text=text),))

    async def _run_alone(self, job: Job) -> JobResult:
        try:
            submitted = await self._submit(job)
        except BrokenProcessPool:  # it died idle, or while it started: nothing is lost
            log.error("the worker process died; starting another")
            self._replace()
            submitted = await self._submit(job)
        try:
            return await asyncio.wrap_future(submitted)
        except asyncio.CancelledError:
            if not submitted.cancel() and not submitted.done():
                log.info("nobody waits any more for the frame at work: its process is ended")
                self._replace()
            raise

    async def _submit(self, job: Job) -> Future[JobResult]:
        """Hand `job` to the process once that has nothing else to do, so that it runs from now on."""
        with suppress(InreconError):  # a device that cannot be used: the job will tell of it
            await self.warmed_up()
        if self._pool is None:
            raise RuntimeError("the worker is not running")
        return self._pool.submit(run_job, job)

    def retire(self) -> None:
        """Replace the process no more when it ends."""
        self._retired = True

    def _replace(self) -> None:
        self._terminate()
        if not self._retired and self._pool is not None:
            self._pool.shutdown(wait=False)
            self.start()

    def _terminate(self) -> None:
        for process in self._processes:
            process.terminate()

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self.retire()
        self._terminate()
        if self._pool is not None:
            # The pool sees that its process is gone, fails what is pending and ends its thread: waiting is short.
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
