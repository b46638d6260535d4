"""A real server process, and the bytes of a small scan."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # tests find what is beside them

from hearing import read_all

from inrecon.simulate import SimulatedScan, simulate_scan
from inrecon_server.client import ClientResult, send
from inrecon_server.protocol import Message, serialise

_ENTRY = """
import json
import logging
import sys
from inrecon_server.patience import Patience
from inrecon_server.server import serve
from inrecon_server.settings import ServerSettings

patience = Patience(idle_s=30.0, silence_s=0.3, linger_s=1.0, captured_s=20.0, send_buffer_bytes=1 << 16)
usual = {"port": 0, "http_port": 0, "device": "cpu", "shutdown_grace_s": 0.2}
settings = ServerSettings(**{**usual, **json.loads(sys.argv[1])})
logging.basicConfig(level="DEBUG" if settings.verbose else "INFO")
serve(settings, patience=patience, on_listening=lambda host, port: print(port, flush=True))
"""


@dataclass(frozen=True)
class RunningServer:
    """A server process, and ways to talk to it."""

    process: "subprocess.Popen[str]"
    port: int
    http_port: int
    log_file: Path

    def log(self) -> str:
        """All that it has logged."""
        return self.log_file.read_text()

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of what it tells over HTTP."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def figures(self) -> dict[str, float]:
        """Its metrics."""
        status, text = self.get("/metrics")
        assert status == 200
        samples = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    def figure(self, name: str) -> float:
        """One of its metrics."""
        return self.figures()[name]

    def worker(self) -> int:
        """The process id of the worker for scans: the first child that Python's spawn started."""
        return self.children(b"spawn_main")[0]

    def children(self, word: bytes) -> list[int]:
        """The process ids of the children that have `word` in their command."""
        return [pid for pid in _children(self.process.pid) if word in _command(pid)]

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        connection = socket.socket()
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", self.port))
        return connection

    def answers(self, *parts: Message | bytes, hang_up: bool = False) -> list[Message]:
        """All that the server answers to `parts`, up to its CLOSE; `hang_up` ends the sending side afterwards."""
        with self.connect() as connection:
            connection.sendall(b"".join(part if isinstance(part, bytes) else serialise(part) for part in parts))
            if hang_up:
                connection.shutdown(socket.SHUT_WR)
            return read_all(connection)

    def hear(self, connection: socket.socket) -> list[Message]:
        """All that it says on `connection`, up to CLOSE."""
        return read_all(connection)

    def send(self, scan: SimulatedScan, *, config: str = "cg_sense", parameters: str | None = None) -> ClientResult:
        return send(scan.header, scan.acquisitions, port=self.port, config=config, parameters=parameters, timeout_s=30)


def _children(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@contextmanager
def _running(*, prelude: str = "", **settings: object) -> Iterator[RunningServer]:
    """A server with these settings; `prelude` is run in its process before it."""
    command = [sys.executable, "-c", f"{prelude}\n{_ENTRY}", json.dumps(settings, default=str)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="inrecon") as folder:
        log = Path(folder) / "log"
        with log.open("w") as stderr:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment)
        assert process.stdout is not None
        try:
            port = process.stdout.readline()
            assert port, log.read_text()
            told = re.search(r"metrics and health at http://127.0.0.1:(\d+)", log.read_text())
            assert told is not None
            yield RunningServer(process, int(port), int(told[1]), log)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=20)
            process.stdout.close()
            sys.stderr.write(log.read_text())


RunServer = Callable[..., AbstractContextManager[RunningServer]]


@pytest.fixture(scope="session")
def run_server() -> RunServer:
    """Start a server with the settings given by name, as a context."""
    return _running


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """The server of all tests, warmed up by the first scan that it gets."""
    with _running() as running:
        yield running


@pytest.fixture
def own_server() -> Iterator[RunningServer]:
    """A server that the test may kill."""
    with _running() as running:
        yield running


@pytest.fixture
def small_server() -> Iterator[RunningServer]:
    """A server that serves one client at a time."""
    with _running(max_connections=1) as running:
        yield running


@pytest.fixture
def next_scan_is_served(server: RunningServer, scan: SimulatedScan) -> Iterator[None]:
    """After the test, and as if nothing had been."""
    yield
    result = server.send(scan, config="zero_filled")
    assert result.closed
    assert len(result.images) == 1


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As the server has it: sums over threads depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def scan() -> SimulatedScan:
    """One frame of 32 x 32 pixels and four coils, with noise readouts."""
    return simulate_scan(shape=(32, 32), coils=4, acceleration=2, acs=12)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """The address of a real Ray cluster of this machine, with two cores."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    # Not pytest's folder: the names of Ray's sockets in it would be too long.
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        command = ["start", "--head", "--block", "--num-cpus=2", f"--port={address.rpartition(':')[2]}"]
        more = ["--node-ip-address=127.0.0.1", "--include-dashboard=false", "--disable-usage-stats"]
        process = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), *command, *more, f"--temp-dir={folder}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "RAY_worker_niceness": "0"},
        )
        assert process.stdout is not None
        heard = []
        for line in process.stdout:
            heard.append(line)
            if "Ray runtime started" in line:
                break
        else:
            pytest.fail(f"Ray did not start: {''.join(heard)}")
        try:
            yield address
        finally:
            process.terminate()
            process.communicate(timeout=60)
