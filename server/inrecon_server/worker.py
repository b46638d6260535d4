"""The front's hold on its worker processes: whose turn it is, and who has died."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from inrecon.errors import UnknownName
from inrecon.frame import PRIORITIES, Priority
from inrecon_server.child import Beat, Warm, work
from inrecon_server.job import Job, JobResult
from inrecon_server.logs import LogFormat
from inrecon_server.notices import Notice

log = logging.getLogger(__name__)

START_S = 300.0
"""How long a process may take to load torch and its device."""
STOP_S = 10.0


class WorkerLost(Exception):
    """A process has died, or was ended because nothing had been heard of it for too long."""


OnBeat = Callable[[Beat], None]


class _Process:
    """One worker process; `ready` is what it said of its device, once it has, and `usable` that it can take jobs."""

    def __init__(
        self, number: int, *, settings: tuple[str, Path | None, LogFormat], on_idle_loss: Callable[[_Process], None]
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
        self.usable = False
        self._reaper: threading.Thread | None = None
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    async def run(self, job: Job, *, hang_s: float, on_beat: OnBeat) -> JobResult:
        """What becomes of `job`; raises `WorkerLost`. Cancelled, the process is still at it."""
        self._answer, self._on_beat, self._heard_at = self._loop.create_future(), on_beat, time.monotonic()
        self._sender.submit(self._send, job)
        while True:
            silent_s = time.monotonic() - self._heard_at
            if silent_s >= hang_s:
                raise WorkerLost(f"nothing was heard of it for {hang_s:g} s")
            done, _ = await asyncio.wait({self._answer}, timeout=hang_s - silent_s)
            if done:
                return self._answer.result()

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
        return self._process.is_alive()

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
                was_idle = self.usable and (self._answer is None or self._answer.done())
                self.usable = False
                for waiting in (self.ready, self._answer):
                    if waiting is not None and not waiting.done():
                        waiting.set_exception(said)
                        waiting.exception()  # nobody may be waiting
                if was_idle:
                    self._on_idle_loss(self)


class Workers:
    """`count` worker processes: started and warmed up ahead, replaced when they die or hang.

    A process has one job at a time: what ends it takes no other job along. `hang_s` is how long nothing may be heard of
    one at work. `on_lost` is called whenever one is lost. `remark`, once all are ready: what is wrong with the files in
    `hyperparameters`.
    """

    def __init__(
        self,
        *,
        device: str,
        count: int,
        hang_s: float,
        hyperparameters: Path | None = None,
        log_format: LogFormat = "text",
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.device = device
        self._count = count
        self._hang_s = hang_s
        self._hyperparameters = hyperparameters
        self._log_format = log_format
        self.remark = ""
        self._on_lost = on_lost
        self._processes: list[_Process] = []
        self._free: list[_Process] = []
        self._waiting: list[tuple[int, int, asyncio.Future[_Process]]] = []
        self._order = itertools.count()
        self._retired = False
        self._last_good: bytes | None = None

    @property
    def queued(self) -> int:
        """Jobs that wait for their turn."""
        return sum(not turn.done() for *_, turn in self._waiting)

    @property
    def at_work(self) -> int:
        """Jobs that have their turn."""
        return len(self._processes) - len(self._free)

    @property
    def usable(self) -> bool:
        """Whether a process is ready for jobs; may be asked from any thread."""
        return any(process.usable for process in list(self._processes))

    def start(self) -> None:
        """Start the processes and their warming up; returns at once."""
        self._processes = [self._new(number) for number in range(self._count)]
        self._free = list(self._processes)

    async def warmed_up(self) -> str:
        """The device, once all are ready; raises `InreconError` if it cannot be used, `WorkerLost` if one died."""
        warm = [await process.started() for process in self._processes]
        if problems := [one.problem for one in warm if one.problem]:
            raise UnknownName(problems[0])
        self.remark = warm[0].remark
        return warm[0].device

    async def run(self, job: Job, *, priority: Priority = "inline", on_beat: OnBeat = lambda _: None) -> JobResult:
        """The result of `job`. If the process is lost to it, another one makes CG-SENSE's image instead, and the result
        says so; on the CPU, if that is lost as well.

        Cancelling drops a job that waits for its turn; if it is running already, its process is ended and replaced.
        """
        lost = ""
        # A search that costs the process is not begun again with the next frame.
        tuned = job.progress.tuned | {job.raw.key.encoding_space}
        for attempt in (job, replace(job, no_fit=""), replace(job, no_fit="", device="cpu")):
            reason = f"the process that reconstructed this frame was lost: {lost}"
            ready = attempt
            if attempt.no_fit is not None:
                ready = replace(attempt, no_fit=reason, progress=replace(job.progress, tuned=tuned))
            try:
                return await self._once(ready, priority=priority, on_beat=on_beat)
            except WorkerLost as error:
                lost = str(error)
                log.error("a worker process was lost at a frame: %s", lost)
                self._on_lost()
        text = f"this frame has cost three processes and is given up; the last: {lost} (out of memory?)"
        return JobResult(progress=job.progress, notices=(Notice(level="ERROR", text=text),))

    async def _once(self, job: Job, *, priority: Priority, on_beat: OnBeat) -> JobResult:
        process = await self._turn(priority)
        try:
            if not await self._starts(process):  # nothing is lost but time
                process = self._replaced(process)
                if not await self._starts(process):
                    raise WorkerLost("no other could be started")
            try:
                asked = replace(job, last_good=self._last_good)
                result = await process.run(asked, hang_s=self._hang_s, on_beat=on_beat)
            except BaseException as error:
                if not isinstance(error, WorkerLost):
                    log.info("nobody waits any more for the frame at work: its process is ended")
                process = self._replaced(process)
                raise
        finally:
            self._release(process)
        self._last_good = result.last_good or self._last_good
        return result

    async def _starts(self, process: _Process) -> bool:
        try:
            await process.started()
        except WorkerLost as error:
            log.error("a worker process was lost before it had anything to do: %s", error)
            self._on_lost()
            return False
        return process.is_alive

    async def _turn(self, priority: Priority) -> _Process:
        """A process that is free, when it is this caller's turn."""
        if self._free:
            return self._free.pop()
        turn: asyncio.Future[_Process] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (PRIORITIES.index(priority), next(self._order), turn))
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release(turn.result())
            raise

    def _release(self, process: _Process) -> None:
        while self._waiting:
            *_, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(process)
                return
        self._free.append(process)

    def _new(self, number: int) -> _Process:
        settings = (self.device, self._hyperparameters, self._log_format)
        return _Process(number, settings=settings, on_idle_loss=self._idle_loss)

    def _replaced(self, process: _Process) -> _Process:
        """A new process in the place of `process`, which is ended.

        It keeps its place once these are retired, or if the machine has no room for another: the next job tries again.
        """
        process.kill()
        if self._retired:
            return process
        try:
            new = self._new(process.number)
        except OSError as error:
            log.error("no worker process can be started: %s", error)
            return process
        self._processes[process.number] = new
        return new

    def _idle_loss(self, process: _Process) -> None:
        """A process that was ready has died with nothing to do: another is warmed up before anybody asks."""
        if self._retired or process not in self._free:
            return
        log.error("a worker process was lost while it was idle")
        self._on_lost()
        self._free[self._free.index(process)] = self._replaced(process)

    def retire(self) -> None:
        """Replace processes no more when they end."""
        self._retired = True

    def stop(self) -> None:
        """End all processes, whatever they are doing."""
        self.retire()
        for reaper in [process.kill() for process in self._processes]:
            reaper.join(STOP_S)
