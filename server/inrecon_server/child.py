"""What a worker process does: it owns torch and a device, and takes one job after the other."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from inrecon.errors import DeviceBroken, InreconError, first_line
from inrecon.events import Event, FitProgressed, listening
from inrecon_server.job import Job, read_files, run_job
from inrecon_server.logs import LogFormat, log_to_stderr
from inrecon_server.priors import Priors

log = logging.getLogger(__name__)

BEAT_S = 0.5
_PR_SET_PDEATHSIG = 1  # of Linux' linux/prctl.h


@dataclass(frozen=True, kw_only=True)
class Beat:
    """A sign of life of a process at work; how far its fit is, if it is at one."""

    iteration: int = 0
    iterations: int = 0


@dataclass(frozen=True, kw_only=True)
class Warm:
    """A process is ready on `device`, or its device cannot be used, which is its `problem`; `remark` is what is wrong
    with the hyperparameter files as they are now. `place` is the device and, where there are several, which of them:
    processes at one place are in each other's way."""

    device: str = ""
    place: str = ""
    problem: str = ""
    remark: str = ""


def follow_parent() -> None:
    """Make this process follow its parent: out of reach of Ctrl-C, and gone when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    # A pipe gives no end of file, for other children may hold its far end, too.
    parent.join()
    os._exit(1)


def _die_with_parent() -> None:
    """Have the kernel end this process with its parent, for a process that stands still cannot do so itself.

    Strictly with the thread that has made it, which must be one that lasts: workers are made by the front's loop.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def work(
    connection: Connection,
    number: int,
    device: str,
    hyperparameters: Path | None,
    log_level: int,
    log_format: LogFormat,
) -> None:
    """What a worker process does: gets ready, then one job after the other."""
    # Threads that spin while they wait take the cores from the other processes; read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    log_to_stderr(log_level, log_format)
    follow_parent()
    _die_with_parent()
    connection.send(_warm_up(number, device, hyperparameters))
    pulse, priors = _Pulse(connection), Priors()
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        job = replace(job, progress=priors.received(job.stream, job.progress))
        with listening(pulse):
            pulse.beat(Beat())
            try:
                result = run_job(job)
            except DeviceBroken:
                log.exception("this process ends, so that another may use the device")
                return
        connection.send(replace(result, progress=priors.sent(job.stream, result.progress)))


def _warm_up(number: int, device: str, hyperparameters: Path | None) -> Warm:
    import torch  # in worker processes only

    from inrecon import stream

    try:
        chosen = stream.choose_device(device)
        place = chosen
        if chosen == "cuda":
            index = number % torch.cuda.device_count()
            torch.cuda.set_device(index)
            place = f"cuda:{index}"
        stream.warm_up(chosen)
    except InreconError as error:
        return Warm(problem=str(error))
    except RuntimeError as error:
        return Warm(problem=f"the device {device!r} cannot be used: {first_line(error)[:300]}")
    try:
        read_files(hyperparameters)
    except InreconError as error:
        return Warm(device=chosen, place=place, remark=first_line(error))
    return Warm(device=chosen, place=place)


class _Pulse:
    """Sends a beat for what is heard of a job, at most every `BEAT_S`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last = 0.0

    def __call__(self, event: Event) -> None:
        if time.monotonic() - self._last >= BEAT_S:
            match event:
                case FitProgressed(iteration=iteration, iterations=iterations):
                    self.beat(Beat(iteration=iteration, iterations=iterations))
                case _:
                    self.beat(Beat())

    def beat(self, beat: Beat) -> None:
        self._last = time.monotonic()
        self._connection.send(beat)
