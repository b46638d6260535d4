"""Worker processes of one kind: whose turn it is, and who has died."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from inrecon.errors import UnknownName
from inrecon.frame import PRIORITIES, Priority
from inrecon_server.job import Job, JobResult
from inrecon_server.logs import LogFormat
from inrecon_server.notices import Notice
from inrecon_server.process import OnBeat, WorkerLost, WorkerProcess

log = logging.getLogger(__name__)

STOP_S = 10.0
ABANDONED_S = 5.0
"""How long a process may go on with a frame of a stream that nobody waits for any more, before it is ended."""


class Workers:
    """`count` worker processes: started and warmed up ahead, replaced when they die or hang.

    A process has one job at a time: what ends it takes no other job along. `hang_s` is how long nothing may be heard of
    one at work. `on_lost` is called whenever one is lost. `remark`, once all are ready: what is wrong with the files in
    `hyperparameters`. With several GPUs the first process is at the one of number `first`, modulo their number.
    `while_at_work` gives the context in which a job is at work at a place. `frame_s` is how long a frame of a stream
    that has no deadline may take from its turn on.
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
        first: int = 0,
        while_at_work: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
        frame_s: float | None = None,
    ) -> None:
        self.device = device
        self._count = count
        self._first = first
        self._while_at_work = while_at_work
        self._frame_s = frame_s
        self._pauses: Counter[str] = Counter()
        self._hang_s = hang_s
        self._hyperparameters = hyperparameters
        self._log_format = log_format
        self.remark = ""
        self._on_lost = on_lost
        self._processes: list[WorkerProcess] = []
        self._free: list[WorkerProcess] = []
        self._waiting: list[tuple[int, int, asyncio.Future[WorkerProcess]]] = []
        self._order = itertools.count()
        self._outlasting: set[asyncio.Task[None]] = set()
        self._retired = False

    @property
    def queued(self) -> int:
        """Jobs that wait for their turn."""
        return sum(not turn.done() for *_, turn in self._waiting)

    @property
    def at_work(self) -> int:
        """Jobs that have their turn."""
        return len(self._processes) - len(self._free)

    @property
    def has_free(self) -> bool:
        """Whether a process is ready for a job and has none; one that is not ready is nobody's gain."""
        return any(process.usable for process in self._free)

    @property
    def usable(self) -> bool:
        """Whether a process is ready for jobs; may be asked from any thread."""
        return any(process.usable for process in list(self._processes))

    def start(self) -> None:
        """Start the processes and their warming up; returns at once. Raises OSError where the machine has no room for
        all: those that were started are there."""
        for number in range(len(self._processes), self._count):
            self._processes.append(process := self._new(self._first + number))
            self._release(process)

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

        Cancelling drops a job that waits for its turn; if it is running already, its process is ended and replaced. Not
        so with a frame of a stream: it is soon at its end, and other streams may have what they need at that process.
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
        process = await self._turn(priority, job.stream)
        is_outlasted = False
        try:
            if not await self._starts(process):  # nothing is lost but time
                process = self._replaced(process)
                if not await self._starts(process):
                    raise WorkerLost("no other could be started")
            if job.stream is not None and job.due is None and self._frame_s is not None:
                job = replace(job, due=time.monotonic() + self._frame_s)
            try:
                paused = self._pauses[process.place] > 0
                with self._while_at_work(process.place):
                    return await process.run(job, hang_s=self._hang_s, on_beat=on_beat, paused=paused)
            except BaseException as error:
                is_abandoned = not isinstance(error, WorkerLost)
                is_outlasted = is_abandoned and job.stream is not None and not self._retired
                if is_abandoned:
                    then = "" if is_outlasted else ": its process is ended"
                    log.info("nobody waits any more for the frame at work%s", then)
                if is_outlasted:
                    self._outlast(process)
                else:
                    process = self._replaced(process)
                raise
        finally:
            if not is_outlasted:
                self._release(process)

    def _outlast(self, process: WorkerProcess) -> None:
        """Have `process` come to the end of what it is at before it, or a new one in its place, has the next job."""

        async def outlast() -> None:
            is_free = await process.ends_its_job(ABANDONED_S)
            self._release(process if is_free else self._replaced(process))

        self._outlasting.add(task := asyncio.create_task(outlast()))
        task.add_done_callback(self._outlasting.discard)

    @contextmanager
    def paused(self, place: str) -> Iterator[None]:
        """In this context processes at `place` stand still while they are at a job; contexts may overlap."""
        self._pauses[place] += 1
        for process in self._at(place):
            process.pause()
        try:
            yield
        finally:
            self._pauses[place] -= 1
            if not self._pauses[place]:
                for process in self._at(place):
                    process.go_on()

    def _at(self, place: str) -> list[WorkerProcess]:
        return [process for process in self._processes if process.place == place]

    async def _starts(self, process: WorkerProcess) -> bool:
        try:
            await process.started()
        except WorkerLost as error:
            log.error("a worker process was lost before it had anything to do: %s", error)
            self._on_lost()
            return False
        return process.is_alive

    async def _turn(self, priority: Priority, stream: str | None) -> WorkerProcess:
        """A process that is free, when it is this caller's turn: the last that was at `stream`, if it is free."""
        if self._free:
            process = max(reversed(self._free), key=lambda free: free.had_at(stream))
            self._free.remove(process)
            return process
        turn: asyncio.Future[WorkerProcess] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (PRIORITIES.index(priority), next(self._order), turn))
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release(turn.result())
            raise

    def _release(self, process: WorkerProcess) -> None:
        while self._waiting:
            *_, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(process)
                return
        self._free.append(process)

    def _new(self, number: int) -> WorkerProcess:
        settings = (self.device, self._hyperparameters, self._log_format)
        return WorkerProcess(number, settings=settings, on_idle_loss=self._idle_loss)

    def _replaced(self, process: WorkerProcess) -> WorkerProcess:
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
        self._processes[self._processes.index(process)] = new
        return new

    def _idle_loss(self, process: WorkerProcess) -> None:
        """A process that was ready has died with nothing to do: another is warmed up before anybody asks."""
        if self._retired or process not in self._free:
            return
        log.error("a worker process was lost while it was idle")
        self._on_lost()
        self._free[self._free.index(process)] = self._replaced(process)

    def retire(self) -> None:
        """Replace processes no more when they end."""
        self._retired = True

    def end(self) -> list[threading.Thread]:
        """End all processes, whatever they are doing; the threads that are given wait for that."""
        self.retire()
        return [process.kill() for process in self._processes]

    def stop(self) -> None:
        """End all processes, whatever they are doing, and wait for that."""
        for reaper in self.end():
            reaper.join(STOP_S)
