"""Calls that run beside this process: in processes of this machine, or on the machines of a Ray cluster."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from inrecon.errors import InreconError, first_line
from inrecon_server.child import follow_parent
from inrecon_server.files import words

KNOCK_S = 5.0


class ClusterUnavailable(InreconError):
    """There is no Ray cluster at that address, or no Ray here to reach it with."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A call that is over: its `number`, its `answer`, and the `problem` if it has failed or its process has died."""

    number: int
    answer: Any = None
    problem: str | None = None


class Tasks(ABC):
    """At most `size` calls at a time, of functions of a module with arguments that can be pickled.

    A context: what is still running at its end is ended by force.
    """

    size: int

    def __enter__(self) -> Tasks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    @abstractmethod
    def running(self) -> int:
        """How many have been started and not been told as ended."""

    @abstractmethod
    def start(self, function: Callable[..., Any], *arguments: Any) -> int:
        """Begin a call; returns its number."""

    @abstractmethod
    def ended(self, *, timeout_s: float) -> list[Ended]:
        """Those that are over and have not been told yet; waits for the first of them, but no longer than that."""

    @abstractmethod
    def close(self) -> None:
        """End everything."""


class Processes(Tasks):
    """Each call in a process of its own, with its share of the cores: threads of different processes that have more
    wait for one another."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._context = multiprocessing.get_context("spawn")
        self._threads = max(1, (os.cpu_count() or 1) // size)
        self._numbers = itertools.count()
        self._running: dict[Connection, tuple[int, SpawnProcess]] = {}

    @property
    def running(self) -> int:
        """See `Tasks`."""
        return len(self._running)

    def start(self, function: Callable[..., Any], *arguments: Any) -> int:
        """See `Tasks`."""
        number = next(self._numbers)
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_answer, args=(sender, self._threads, function, arguments))
        # The terminal's Ctrl-C is for this process, which ends the other: that inherits the mask from the beginning on.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        sender.close()  # so that the end of the process is the end of the pipe
        self._running[receiver] = number, process
        return number

    def ended(self, *, timeout_s: float) -> list[Ended]:
        """See `Tasks`."""
        found = []
        for receiver in multiprocessing.connection.wait(list(self._running), timeout=timeout_s):
            if not isinstance(receiver, Connection):
                continue
            number, process = self._running.pop(receiver)
            try:
                answer, problem = receiver.recv()
                process.join()
            except EOFError:
                process.join()
                answer, problem = None, f"its process ended with code {process.exitcode}"
            receiver.close()
            found.append(Ended(number=number, answer=answer, problem=problem))
        return found

    def close(self) -> None:
        """See `Tasks`."""
        for _, process in self._running.values():
            process.terminate()
        for receiver, (_, process) in self._running.items():
            process.join()
            receiver.close()
        self._running.clear()


def _answer(sender: Connection, threads: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """What a process of its own does."""
    follow_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    import torch  # not by a parent that only looks after others

    torch.set_num_threads(threads)
    sender.send(_outcome(function, arguments))


def _outcome(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, str | None]:
    """Answer and problem of a call; what is neither the project's own way to fail nor the disk's ends the process."""
    try:
        return function(*arguments), None
    except InreconError as error:
        return None, str(error)
    except OSError as error:
        return None, words(error)


class RayTasks(Tasks):
    """Each call a task of the Ray cluster at `address` (``auto``: the one of this machine), with a core or a GPU.

    `size` is by default what the cluster has of these. inrecon has to be installed on its machines, and see files by
    the same names. Raises `ClusterUnavailable`.
    """

    def __init__(self, address: str, *, size: int | None, gpu: bool) -> None:
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ClusterUnavailable("a Ray cluster needs the package ray: pip install 'inrecon[ray]'") from error
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:
            raise ClusterUnavailable(f"there is no Ray cluster at {address}: {first_line(error)}") from error
        self._ray = ray
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self.size = size or max(1, int(resources.get("GPU" if gpu else "CPU", 1)))
        self._call = ray.remote(num_cpus=1, num_gpus=int(gpu), max_retries=0)(_outcome)
        self._numbers = itertools.count()
        self._running: dict[Any, int] = {}

    @property
    def running(self) -> int:
        """See `Tasks`."""
        return len(self._running)

    def start(self, function: Callable[..., Any], *arguments: Any) -> int:
        """See `Tasks`."""
        number = next(self._numbers)
        self._running[self._call.remote(function, arguments)] = number
        return number

    def ended(self, *, timeout_s: float) -> list[Ended]:
        """See `Tasks`."""
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout_s)
        found = []
        for reference in ready:
            number = self._running.pop(reference)
            try:
                answer, problem = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None) or error
                answer, problem = None, f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[0]}"
            found.append(Ended(number=number, answer=answer, problem=problem))
        return found

    def close(self) -> None:
        """See `Tasks`."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()
        self._ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError if nobody listens at ``[ray://]HOST:PORT``: Ray itself would go on trying for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()


def tasks_on(ray: str | None, *, size: int | None, device: str) -> Tasks:
    """On the Ray cluster at the address `ray`, a GPU for each call if `device` is ``cuda``; without one, here."""
    return Processes(size or 1) if ray is None else RayTasks(ray, size=size, gpu=device == "cuda")
