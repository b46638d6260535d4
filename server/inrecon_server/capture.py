"""Sessions kept as raw files: what a client sends goes through a bounded queue to a process that writes it.

HDF5 ends the process that it is in where a write fails, so it has no place in the front. Here a thread hands on the
bytes as they came, unparsed; a queue that is full ends the capture, not the scan.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress

from inrecon_server.keeping import Keeping, unfinished
from inrecon_server.logs import LogFormat
from inrecon_server.recorder import Recorded

log = logging.getLogger(__name__)

QUEUE_BYTES = 256 << 20
"""How much of a session may wait to be written."""
# How much may come before it is known whether a session is to be kept: more than a configuration and a header have.
_UNDECIDED_BYTES = 32 << 20
_STOP_S = 30.0


class Captures:
    """The captures of a server: `always` of every session, or only of clients that ask for it."""

    def __init__(self, keeping: Keeping, *, always: bool, log_format: LogFormat = "text") -> None:
        self._keeping = keeping
        self._always = always
        self._log_format: LogFormat = log_format
        self._captures: set[Capture] = set()

    def start(self) -> None:
        """Say what a server that was killed has left."""
        folder = self._keeping.folder
        with suppress(OSError):
            if left := unfinished(folder):
                log.warning("%s holds %d captures that are not whole (.part)", folder, left)

    def new(self, name: str) -> Capture:
        """The capture of a session; `name` is for the log."""
        self._captures = {capture for capture in self._captures if capture.at_work}
        capture = Capture(self._keeping, name=name, always=self._always, log_format=self._log_format)
        self._captures.add(capture)
        return capture

    def stop(self) -> None:
        """Wait until everything is written, for half a minute at most."""
        until = time.monotonic() + _STOP_S
        for capture in self._captures:
            capture.end()
            if not capture.wait(max(0.0, until - time.monotonic())):
                capture.kill()


class Capture:
    """The capture of one session; nothing here waits for a disk, and nothing raises.

    `feed` takes what the client sends from its first byte on; `begin` says that it is to be kept, `end` that no more
    will come, `release` that nobody will ask any more. `take_problem` tells once why not all is kept.
    """

    def __init__(
        self,
        keeping: Keeping,
        *,
        name: str,
        always: bool,
        queue_bytes: int = QUEUE_BYTES,
        log_format: LogFormat = "text",
    ) -> None:
        self.always = always
        self._log_format = log_format
        self._keeping = keeping
        self._name = name
        self._queue_bytes = queue_bytes
        self._changed = threading.Condition()
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._ended = False
        self._released = False
        self._problem: str | None = None
        self._problem_told = False
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._done = threading.Event()
        self.recorded: Recorded | None = None

    @property
    def at_work(self) -> bool:
        """Whether something is still to come or to be written."""
        return not self._done.is_set()

    def feed(self, data: bytes) -> None:
        """Keep `data`, unless the capture has ended."""
        with self._changed:
            if self._ended:
                return
            most = self._queue_bytes if self._thread is not None else min(self._queue_bytes, _UNDECIDED_BYTES)
            if self._queued + len(data) > most:
                self._fail(f"more than {most / 2**20:.0f} MiB would wait to be written")
            else:
                self._queue.append(data)
                self._queued += len(data)
            self._changed.notify()

    def begin(self) -> None:
        """The session is to be kept, what has come of it already included."""
        if self._thread is None and not self._done.is_set():
            self._thread = threading.Thread(target=self._run, name=f"capture of {self._name}", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """No more will come; a session that was not to be kept is forgotten."""
        with self._changed:
            self._ended = True
            if self._thread is None:
                self._queue.clear()
                self._done.set()
            self._changed.notify()

    def release(self) -> None:
        """Nobody listens any more: what is wrong from now on goes to the log."""
        self.end()
        with self._changed:
            self._released = True
            self._log_problem()

    def take_problem(self) -> str | None:
        """Why not all of the session is kept, if that is so; told once."""
        if self._problem is None or self._problem_told:
            return None
        self._problem_told = True
        return self._problem

    def wait(self, timeout_s: float) -> bool:
        """Wait until all is written; gives whether it is."""
        return self._done.wait(timeout_s)

    def kill(self) -> None:
        """End the process that writes, whatever it is doing; its file stays as it is."""
        if self._process is not None:
            self._process.kill()

    def _fail(self, problem: str) -> None:
        """Take no more; to be called with the lock."""
        self._ended = True
        if self._problem is None:
            self._problem = problem
        if self._released:
            self._log_problem()

    def _log_problem(self) -> None:
        if (problem := self.take_problem()) is not None:
            log.warning("%s: %s", self._name, ended_early(problem))

    def _run(self) -> None:
        try:
            self._record()
        except OSError as error:
            self._finish(Recorded(problem=f"the process that writes it cannot be started: {error.strerror}"))
        finally:
            self._done.set()

    def _record(self) -> None:
        keeping = self._keeping
        options = {
            "folder": str(keeping.folder),
            "days": keeping.days,
            "gib": keeping.gib,
            "log_level": log.getEffectiveLevel(),
            "log_format": self._log_format,
        }
        # Out of reach of Ctrl-C: what has come is written first.
        with subprocess.Popen(  # noqa: S603  our own module
            [sys.executable, "-m", "inrecon_server.recorder", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        ) as process:
            self._process = process
            if process.stdin is None or process.stdout is None:
                raise RuntimeError("a process without pipes")
            with suppress(BrokenPipeError), process.stdin as pipe:
                while (data := self._next()) is not None:
                    pipe.write(data)
            line = process.stdout.readline()
            try:
                recorded = Recorded.read(line)
            except ValueError:
                recorded = Recorded(problem=f"the process that writes it died, exit code {process.wait()}")
            self._finish(recorded)

    def _next(self) -> bytes | None:
        """What is to be written next; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._ended)
            if not self._queue:
                return None
            data = self._queue.popleft()
            self._queued -= len(data)
            return data

    def _finish(self, recorded: Recorded) -> None:
        with self._changed:
            self._queue.clear()
            self.recorded = recorded
            self._ended = True
            if recorded.problem is not None:
                self._fail(recorded.problem)
        if recorded.name is not None:
            log.info("%s: kept as %s", self._name, kept_as(recorded))
        self._done.set()


def kept_as(recorded: Recorded) -> str:
    """The file and what is in it, in words."""
    return f"{recorded.name} ({recorded.readouts} readouts, {recorded.waveforms} waveforms)"


def ended_early(problem: str, *, nothing_else: bool = False) -> str:
    """What to tell of a capture that could not keep everything, where `nothing_else` was wanted or the scan goes on."""
    rest = "what came after it is lost" if nothing_else else "the scan goes on"
    return f"the capture of this session has ended, {rest}: {problem}"
