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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from inrecon.errors import InreconError
from inrecon.events import Event, FallBack, FitFinished, Warned, listening
from inrecon.frame import RawFrame, Request, Series
from inrecon_server.protocol import serialise

if TYPE_CHECKING:
    from inrecon.hyperparams import HyperparameterFiles

log = logging.getLogger(__name__)

Level = Literal["INFO", "WARNING", "ERROR"]
_MAX_NOTICES = 20


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something to tell the sender of a scan."""

    level: Level
    text: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the next job of a scan takes over from the last one.

    `hyperparameters` is a pickled `HyperparameterFiles`, which the front cannot open without torch; None before
    the first job has read the files.
    """

    series: Series = field(default_factory=Series)
    hyperparameters: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """One frame to reconstruct; `hyperparameters` is the folder of files (None: the shipped ones)."""

    raw: RawFrame
    request: Request
    progress: Progress
    hyperparameters: Path | None
    device: str


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

    def hear(event: Event) -> None:
        notice = notice_of(event)
        if notice is not None and notice not in notices and len(notices) < _MAX_NOTICES:
            notices.append(notice)

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
    return JobResult(progress=progress, images=images, notices=tuple(notices))


def _hyperparameters(job: Job) -> tuple[HyperparameterFiles, Progress]:
    """The files as they were at the scan's first job, whatever has become of them since."""
    from inrecon.hyperparams import HyperparameterFiles  # its check of the methods' fields imports torch

    if job.progress.hyperparameters is not None:
        return pickle.loads(job.progress.hyperparameters), job.progress  # noqa: S301  pickled below, in our own process
    files = HyperparameterFiles.load(job.hyperparameters)
    return files, replace(job.progress, hyperparameters=pickle.dumps(files))


def notice_of(event: Event) -> Notice | None:
    """What to tell of `event`, if anything."""
    match event:
        case Warned(text=text):
            return Notice(level="WARNING", text=text)
        case FallBack(room=room, reason=reason):
            return Notice(level="WARNING", text=f"fall-back ({room}): {reason}")
        case FitFinished():
            log.info(
                "%s: %d iterations in %.2f s, stopped by %s",
                event.method,
                event.iterations,
                event.seconds,
                event.stopped_by,
            )
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _initialise(log_level: int) -> None:
    """Make the worker process follow its parent: out of reach of Ctrl-C, and gone when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=log_level, format="%(asctime)s %(levelname)-8s %(name)s: %(message)s")
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
    """A worker process that is there when needed: started and warmed up ahead, replaced when it dies."""

    def __init__(self, *, device: str) -> None:
        self.device = device
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
        return await asyncio.wrap_future(self._warm)

    async def run(self, job: Job) -> JobResult:
        """The result of `job`. If the process dies of it, it is replaced and the result says so.

        Cancelling takes the job out of the queue, unless it is running already.
        """
        try:
            submitted = self._submit(job)
        except BrokenProcessPool:  # it died idle: nothing is lost
            self._replace()
            submitted = self._submit(job)
        pool = self._pool
        try:
            return await asyncio.wrap_future(submitted)
        except BrokenProcessPool:
            if pool is self._pool:
                self._replace()
            text = "the reconstruction process died before this frame was done (out of memory?); it is being restarted"
            return JobResult(progress=job.progress, notices=(Notice(level="ERROR", text=text),))

    def _submit(self, job: Job) -> Future[JobResult]:
        if self._pool is None:
            raise RuntimeError("the worker is not running")
        return self._pool.submit(run_job, job)

    def _replace(self) -> None:
        log.error("the worker process died; starting another")
        if self._pool is not None:
            self._pool.shutdown(wait=False)
        self.start()

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        for process in self._processes:
            process.terminate()
        if self._pool is not None:
            # The pool sees that its process is gone, fails what is pending and ends its thread: waiting is short.
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
