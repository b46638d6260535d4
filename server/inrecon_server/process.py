"""The front's hold on one worker process: its job, its signs of life, and its end."""

from __future__ import annotations

import asyncio
import logging
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from inrecon_server.child import Beat, Warm, work
from inrecon_server.job import Job, JobResult
from inrecon_server.logs import LogFormat
from inrecon_server.priors import Priors

START_S = 300.0
"""How long a process may take to load torch and its device."""


class WorkerLost(Exception):
    """A process has died, or was ended because nothing had been heard of it for too long."""


OnBeat = Callable[[Beat], None]


class WorkerProcess:
    """One worker process; `ready` is what it said of its device, once it has, and `usable` that it can take jobs."""

    def __init__(
        self,
        number: int,
        *,
        settings: tuple[str, Path | None, LogFormat],
        on_idle_loss: Callable[[WorkerProcess], None],
    ) -> None:
        self.number = number
        self._on_idle_loss = on_idle_loss
        self._loop = asyncio.get_running_loop()
        context = multiprocessing.get_context("spawn")
        self._connection, far_end = context.Pipe()
        level = logging.getLogger().getEffectiveLevel()
        device, hyperparameters, log_format = settings
        self._process = context.Process(
            target=work, args=(far_end, number, device, hyperparameters, level, log_format), daemon=True
        )
        self._process.start()
        far_end.close()  # so that the end of the process is the end of the pipe
        self.ready: asyncio.Future[Warm] = self._loop.create_future()
        self._answer: asyncio.Future[JobResult] | None = None
        # A thread of its own: those that all share could be held up by processes that do not take what they are sent.
        self._sender = ThreadPoolExecutor(max_workers=1)
        self._heard_at = time.monotonic()
        self._on_beat: OnBeat = lambda _: None
        self._paused_at: float | None = None
        self._priors = Priors()
        self._had_at: dict[str | None, float] = {}
        self.usable = False
        self._is_lost = False
        self._reaper: threading.Thread | None = None
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    async def run(self, job: Job, *, hang_s: float, on_beat: OnBeat, paused: bool = False) -> JobResult:
        """What becomes of `job`, `paused` from the start or not; raises `WorkerLost`. Cancelled, the process is still
        at it."""
        self._answer, self._on_beat, self._heard_at = self._loop.create_future(), on_beat, time.monotonic()
        progress = self._priors.sent(job.stream, job.progress)
        if job.stream is not None:
            self._had_at[job.stream] = self._heard_at
            self._had_at = {stream: self._had_at[stream] for stream in self._priors.streams}
        self._sender.submit(self._send, replace(job, progress=progress))
        if paused:
            self.pause()
        result = await self._heard(self._answer, hang_s)
        return replace(result, progress=self._priors.received(job.stream, result.progress))

    async def ends_its_job(self, within_s: float) -> bool:
        """Whether a job that nobody waits for comes to its end within that time."""
        if self._answer is None:
            return True
        done, _ = await asyncio.wait({self._answer}, timeout=within_s)
        return bool(done) and self._answer.exception() is None

    def had_at(self, stream: str | None) -> float:
        """When it last got a frame of `stream`, of which it still knows; before all times if it does not."""
        return self._had_at.get(stream, -math.inf)

    async def _heard(self, answer: asyncio.Future[JobResult], hang_s: float) -> JobResult:
        while True:
            # Nothing can be heard of a process that stands still, and nothing is held against it.
            silent_s = (self._paused_at or time.monotonic()) - self._heard_at
            if silent_s >= hang_s:
                raise WorkerLost(f"nothing was heard of it for {hang_s:g} s")
            done, _ = await asyncio.wait({answer}, timeout=hang_s - silent_s)
            if done:
                return answer.result()

    @property
    def place(self) -> str:
        """The device that it is at, once it is ready."""
        return self.ready.result().place if self.usable else ""

    @property
    def _is_at_work(self) -> bool:
        return self._answer is not None and not self._answer.done()

    def pause(self) -> None:
        """Have it stand still, if it is at a job, and where this system can do so."""
        if self._paused_at is None and self._is_at_work and hasattr(signal, "SIGSTOP"):
            self._paused_at = time.monotonic()
            self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Have it go on from where it was paused."""
        if self._paused_at is not None:
            now = time.monotonic()
            self._heard_at = min(now, self._heard_at + now - self._paused_at)
            self._paused_at = None
            self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        # Not once it is being reaped: the number may be another process's by then.
        if self._reaper is None and self._process.pid is not None and self._process.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def _send(self, job: Job) -> None:
        """In a thread: hand over `job`."""
        with suppress(OSError):  # it has died, which the other thread tells
            self._connection.send(job)

    async def started(self) -> Warm:
        """What it says of its device, once it is ready; raises `WorkerLost`."""
        # Not the future itself: several may wait for it, and one that gives up must not cancel it.
        done, _ = await asyncio.wait({self.ready}, timeout=START_S)
        if not done:
            raise WorkerLost(f"it was not ready after {START_S:g} s")
        return self.ready.result()

    def kill(self) -> threading.Thread:
        """End it, whatever it is doing; the thread that is given waits for its end, which may take long with a GPU."""
        if self._reaper is None:
            self.usable = False
            self._process.kill()
            self._reaper = threading.Thread(target=self._reap, daemon=True)
            self._reaper.start()
        return self._reaper

    def _reap(self) -> None:
        self._process.join()
        self._thread.join()
        self._sender.shutdown()
        self._connection.close()

    @property
    def is_alive(self) -> bool:
        """Whether it may still answer."""
        # Its end of the pipe is closed a moment before it counts as dead.
        return not self._is_lost and self._process.is_alive()

    def _listen(self) -> None:
        """In a thread: hand over what the process says."""
        with suppress(RuntimeError):  # the loop is closed
            try:
                while True:
                    self._loop.call_soon_threadsafe(self._hear, self._connection.recv())
            except (EOFError, OSError):
                self._loop.call_soon_threadsafe(self._hear, WorkerLost("it died"))

    def _hear(self, said: Beat | Warm | JobResult | WorkerLost) -> None:
        self._heard_at = time.monotonic()
        match said:
            case Beat():
                self._on_beat(said)
            case Warm():
                self.usable = not said.problem
                self.ready.set_result(said)
            case JobResult() if self._answer is not None:
                self._answer.set_result(said)
            case WorkerLost():
                was_idle = self.usable and not self._is_at_work
                self.usable, self._is_lost = False, True
                for waiting in (self.ready, self._answer):
                    if waiting is not None and not waiting.done():
                        waiting.set_exception(said)
                        waiting.exception()  # nobody may be waiting
                if was_idle:
                    self._on_idle_loss(self)
