"""A server under a mix of good, bad and vanishing clients for some minutes: does anything leak, do its figures add up?

    python tests/benchmarks/soak.py [--minutes 15] [--clients 6]

Each client thread takes kinds of visits at random (seeded); now and then a worker process is killed. Memory, file
descriptors, threads and processes are sampled twice a minute. Ends with 1 if a visit ended in another way than its kind
should, if the figures do not add up, or if what the server holds has grown.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from inrecon.simulate import SimulatedScan, simulate_scan
from inrecon_server.client import send
from inrecon_server.protocol import Close, ConfigFile, Header, Query, serialise

SAMPLE_S = 30.0
KILL_S = 60.0
SMALL_INR = (
    '<configuration><property name="method" value="bilevel_inr"/><property name="iterations" value="40"/>'
    '<property name="levels" value="4"/><property name="deadline" value="5"/></configuration>'
)


class Visits:
    """The kinds of visits that clients pay; each raises AssertionError if the server does not do as it should."""

    def __init__(self, port: int, scan: SimulatedScan) -> None:
        self._port = port
        self._scan = scan
        self._head = serialise(ConfigFile("cg_sense")) + serialise(Header(scan.header))
        self._data = b"".join(map(serialise, scan.acquisitions))
        self.kinds: dict[str, Callable[[], None]] = {
            "linear scan": lambda: self._scan_with("cg_sense"),
            "network": lambda: self._scan_with(SMALL_INR),
            "unknown configuration": self._unknown,
            "garbage": self._garbage,
            "values that are none": self._not_finite,
            "reset in mid-scan": self._reset,
            "end in mid-scan": self._end,
            "gone before the image": self._gone,
            "query": self._query,
            "reads slowly": self._slow,
        }

    def _scan_with(self, config: str) -> None:
        result = send(self._scan.header, self._scan.acquisitions, port=self._port, config=config, timeout_s=120)
        assert result.closed, result
        assert len(result.images) == 1, result.texts

    def _unknown(self) -> None:
        result = send(self._scan.header, self._scan.acquisitions, port=self._port, config="cg_sens", timeout_s=120)
        assert result.closed
        assert not result.images

    def _garbage(self) -> None:
        with self._connect() as connection:
            connection.sendall(self._head + struct.pack("<H", 4711) + os.urandom(5000))
            assert self._rest(connection).endswith(serialise(Close()))

    def _not_finite(self) -> None:
        spoilt = self._data[:-8] + np.full(2, np.nan, np.float32).tobytes()
        with self._connect() as connection:
            connection.sendall(self._head + spoilt + serialise(Close()))
            answer = self._rest(connection)
            assert b"not finite" in answer
            assert answer.endswith(serialise(Close()))

    def _reset(self) -> None:
        with self._connect() as connection:
            connection.sendall(self._head + self._data[: len(self._data) // 2])
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _end(self) -> None:
        with self._connect() as connection:
            connection.sendall(self._head + self._data[: len(self._data) // 2])
            connection.shutdown(socket.SHUT_WR)
            assert self._rest(connection).endswith(serialise(Close()))

    def _gone(self) -> None:
        with self._connect() as connection:
            connection.sendall(self._head + self._data + serialise(Close()))

    def _query(self) -> None:
        with self._connect() as connection:
            connection.sendall(serialise(Query("gadgetron::version", 1)) + serialise(Close()))
            assert self._rest(connection).endswith(serialise(Close()))

    def _slow(self) -> None:
        with self._connect(receive_buffer=4096) as connection:
            connection.sendall(self._head + self._data + serialise(Close()))
            answer = b""
            while piece := connection.recv(512):
                answer += piece
            assert answer.endswith(serialise(Close()))

    def _connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        connection = socket.socket()
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(120)
        connection.connect(("127.0.0.1", self._port))
        return connection

    @staticmethod
    def _rest(connection: socket.socket) -> bytes:
        pieces = []
        while piece := connection.recv(1 << 16):
            pieces.append(piece)
        return b"".join(pieces)


def main() -> int:
    """Run, print what was seen, and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--clients", type=int, default=6)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "inrecon_server.cli", "serve", "-p", "0", "--http-port", "0", "-l", str(log)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                return soak(server, log, seconds=60 * options.minutes, clients=options.clients)
            finally:
                server.terminate()


def soak(server: subprocess.Popen[str], log: Path, *, seconds: float, clients: int) -> int:
    """Let `clients` visit for so long; the exit code."""
    port = int(server.stdout.readline().rpartition(":")[2]) if server.stdout else 0
    http = int(re.search(r"http://127.0.0.1:(\d+)", log.read_text())[1])  # type: ignore[index]
    scan = simulate_scan(shape=(96, 96), coils=8, acceleration=2, acs=16)
    visits = Visits(port, scan)
    assert send(scan.header, scan.acquisitions, port=port, config="cg_sense").images
    counts, problems, stop = Counter[str](), list[str](), threading.Event()

    def visit(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not stop.is_set():
            kind = str(rng.choice(list(visits.kinds)))
            try:
                visits.kinds[kind]()
            except (AssertionError, OSError) as error:
                problems.append(f"{kind}: {error!r}"[:300])
            counts[kind] += 1

    threads = [threading.Thread(target=visit, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    samples, kills = [held(server.pid)], 0
    started = time.monotonic()
    sys.stdout.write(
        "| s | visits | MB front | MB workers | descriptors | threads | processes |\n|---|---|---|---|---|---|---|\n"
    )
    while (now := time.monotonic() - started) < seconds:
        stop.wait(SAMPLE_S)
        samples.append(held(server.pid))
        cells = [f"{now + SAMPLE_S:.0f}", f"{sum(counts.values())}", *(f"{value:.0f}" for value in samples[-1])]
        sys.stdout.write("| " + " | ".join(cells) + " |\n")
        sys.stdout.flush()
        if now > KILL_S * (kills + 1):
            kills += 1
            with suppress(ProcessLookupError):
                os.kill(workers(server.pid)[0], signal.SIGKILL)
    stop.set()
    for thread in threads:
        thread.join()
    return judged(samples, counts, problems, kills, http)


def held(pid: int) -> tuple[float, float, int, int, int]:
    """Megabytes of the front and of its workers, the front's descriptors and threads, and processes in all."""
    pids = [pid, *workers(pid)]
    own, *others = (private_mb(one) for one in pids)
    status = Path(f"/proc/{pid}/status").read_text()
    threads = int(status.split("Threads:")[1].split()[0])
    return own, sum(others), len(list(Path(f"/proc/{pid}/fd").iterdir())), threads, len(pids)


def workers(pid: int) -> list[int]:
    """Process ids of the workers."""
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def private_mb(pid: int) -> float:
    """Memory that a process has of its own; 0 if it has just ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        status = Path(f"/proc/{pid}/status").read_text()
        if "RssAnon:" in status:
            return int(status.split("RssAnon:")[1].split()[0]) / 1e3
    return 0.0


def judged(samples: list[tuple[float, ...]], counts: Counter[str], problems: list[str], kills: int, http: int) -> int:
    """Print the end of it; 1 if anything is wrong."""
    deadline = time.monotonic() + 30
    while (found := figures(http))["inrecon_sessions_active"] and time.monotonic() < deadline:
        time.sleep(0.2)
    ended = {name: value for name, value in found.items() if name.startswith("inrecon_sessions_ended_total")}
    sys.stdout.write(
        f"\nvisits: {dict(counts)}\nworkers killed: {kills}, lost: {found['inrecon_workers_lost_total']:.0f}\n"
    )
    sys.stdout.writelines(f"{value:7.0f}  {name}\n" for name, value in ended.items())
    wrong = [f"a visit went wrong: {problem}" for problem in problems]
    if found["inrecon_sessions_started_total"] != sum(ended.values()):
        wrong.append(f"{found['inrecon_sessions_started_total']:.0f} sessions started, {sum(ended.values()):.0f} ended")
    if found["inrecon_sessions_started_total"] != sum(counts.values()) + 1:
        wrong.append(f"{sum(counts.values()) + 1} visits, {found['inrecon_sessions_started_total']:.0f} sessions")
    third = max(1, len(samples) // 3)
    names = ("MB front", "MB workers", "descriptors", "threads", "processes")
    tolerated = (10, 60, 4, 2, 0)
    for name, most, first, last in zip(
        names, tolerated, np.max(samples[1 : 1 + third], 0), np.min(samples[-third:], 0), strict=True
    ):
        if last > first + most:
            wrong.append(f"{name} grew from {first:.0f} to {last:.0f}")
    sys.stdout.writelines(f"WRONG: {text}\n" for text in wrong)
    sys.stdout.write("all is well\n" if not wrong else "")
    return int(bool(wrong))


def figures(port: int) -> dict[str, float]:
    """The server's metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line and line[0] != "#")}


if __name__ == "__main__":
    sys.exit(main())
