"""Real worker processes in a state that a test can rely on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from dataclasses import replace
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from inrecon.frame import Request
from inrecon.testing import write_quick_default
from inrecon_server.job import Job, JobResult


def texts(result: JobResult, level: str) -> list[str]:
    """What a result tells at that level."""
    return [notice.text for notice in result.notices if notice.level == level]


class Held:
    """A job that stays at work: its hyperparameter file is a pipe, which gives nothing before it is let go."""

    def __init__(self, job: Job, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._pipe = folder / "default.yaml"
        os.mkfifo(self._pipe)
        self.job = replace(job, hyperparameters=folder, request=Request(method="bilevel_inr"))

    async def at_work(self) -> int:
        """Wait until the worker has opened the pipe; gives the other end."""
        async with asyncio.timeout(60):
            while True:
                try:
                    return os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK)
                except OSError:  # no reader yet
                    await asyncio.sleep(0.01)

    async def given_to(
        self, run: Callable[..., Coroutine[Any, Any, JobResult]], **options: Any
    ) -> tuple[asyncio.Task[JobResult], int]:
        """Have `run` do the job; gives its task, and the other end of the pipe, once a worker is at it."""
        task = asyncio.create_task(run(self.job, **options))
        return task, await self.at_work()

    def let_go(self) -> None:
        """Whoever opens the file from now on finds one."""
        self._pipe.unlink()
        write_quick_default(self._folder, iterations=2)

    def finish(self, end: int) -> None:
        """The pipe gives a file after all."""
        self.let_go()
        os.write(end, self._pipe.read_bytes())
        os.close(end)


def children(before: set[BaseProcess]) -> list[BaseProcess]:
    """Those that have come since."""
    return [child for child in active_children() if child not in before]


def only_child(before: set[BaseProcess]) -> BaseProcess:
    """The one that has come since."""
    (process,) = children(before)
    return process


async def until(holds: Callable[[], bool]) -> None:
    """Wait for it."""
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


def stands_still(pid: int) -> bool:
    """Whether that process is stopped."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"
