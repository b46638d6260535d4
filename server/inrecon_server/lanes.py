"""Two lanes of worker processes: one for scans, and one for real-time streams, which goes first.

What takes seconds in the one gives no place to what is wanted within one second; but it can stand still meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from inrecon.errors import InreconError
from inrecon.frame import Priority
from inrecon_server.job import Job, JobResult
from inrecon_server.logs import LogFormat
from inrecon_server.process import OnBeat, WorkerLost
from inrecon_server.worker import Workers

log = logging.getLogger(__name__)

REALTIME_S = 5.0
"""How long a frame of a stream may take in the real-time lane if nothing else is asked for: others wait for it."""


class Lanes:
    """`scans` processes for all jobs, and `realtime` ones for those of priority "realtime", started when such are
    expected; 0: these have no lane of their own.

    While a real-time job is at work in its own lane, processes for scans that are at a job at the same device stand
    still. `device`, `hang_s`, `hyperparameters`, `log_format` and `on_lost` are those of `Workers`.
    """

    def __init__(
        self,
        *,
        device: str,
        scans: int,
        realtime: int,
        hang_s: float,
        hyperparameters: Path | None = None,
        log_format: LogFormat = "text",
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        made = partial(
            Workers,
            device=device,
            hang_s=hang_s,
            hyperparameters=hyperparameters,
            log_format=log_format,
            on_lost=on_lost,
        )
        self._scans = made(count=scans)
        # Where there are more GPUs than processes for scans, streams have one of their own, and nothing stands still.
        self._realtime = None
        if realtime:
            paused = self._scans.paused
            self._realtime = made(count=realtime, first=scans, while_at_work=paused, frame_s=REALTIME_S)
        self._starting: asyncio.Task[None] | None = None
        self._is_started = False
        self._retired = False
        self._last_good: bytes | None = None

    @property
    def queued(self) -> int:
        """Jobs that wait for their turn."""
        return sum(lane.queued for lane in self._all)

    @property
    def at_work(self) -> int:
        """Jobs that have their turn."""
        return sum(lane.at_work for lane in self._all)

    @property
    def usable(self) -> bool:
        """Whether a process is ready for scans, which any job can be given to; may be asked from any thread."""
        return self._scans.usable

    @property
    def remark(self) -> str:
        """See `Workers`."""
        return self._scans.remark

    def start(self) -> None:
        """Start the processes for scans and their warming up; returns at once."""
        self._scans.start()

    async def warmed_up(self) -> str:
        """See `Workers`; of the processes for scans."""
        return await self._scans.warmed_up()

    def expect(self, priority: Priority) -> None:
        """Jobs of `priority` will come: have the processes for them started; returns at once."""
        if priority == "realtime" and self._realtime is not None and not (self._is_started or self._retired):
            self._starting = self._starting or asyncio.create_task(self._start(self._realtime))

    async def run(self, job: Job, *, priority: Priority = "inline", on_beat: OnBeat = lambda _: None) -> JobResult:
        """See `Workers.run`."""
        lane = await self._lane(priority)
        result = await lane.run(replace(job, last_good=self._last_good), priority=priority, on_beat=on_beat)
        self._last_good = result.last_good or self._last_good
        return result

    async def _lane(self, priority: Priority) -> Workers:
        self.expect(priority)
        # A process for scans that has nothing to do is there sooner than one that has yet to load torch.
        if priority == "realtime" and self._starting is not None and not self._scans.has_free:
            await asyncio.wait({self._starting})
        if priority == "realtime" and self._realtime is not None and self._is_started:
            return self._realtime
        return self._scans

    async def _start(self, lane: Workers) -> None:
        """Start the real-time lane; where it cannot be had, as on a GPU that is lent to one process, do without."""
        try:
            lane.start()
            log.info("ready: streams on %s", await lane.warmed_up())
        except WorkerLost as error:
            log.error("a worker process for streams was lost while it started: %s", error)  # the next job replaces it
        except OSError as error:
            log.error("no worker process for streams can be started now: %s", error)
            return
        except InreconError as error:
            log.error("streams share the worker processes of scans: %s", error)
            self._realtime = None
            lane.end()
        finally:
            self._starting = None
        self._is_started = True

    @property
    def _all(self) -> list[Workers]:
        return [self._scans] if self._realtime is None else [self._scans, self._realtime]

    def retire(self) -> None:
        """Replace processes no more when they end, and start none."""
        self._retired = True
        for lane in self._all:
            lane.retire()

    def stop(self) -> None:
        """End all processes, whatever they are doing."""
        self.retire()
        if self._starting is not None:
            self._starting.cancel()
        for lane in self._all:
            lane.stop()
