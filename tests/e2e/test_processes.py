"""What happens when clients do not read, processes die, and the server is told to stop."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from inrecon.simulate import SimulatedScan, simulate_scan
from inrecon_server.protocol import Close, ConfigFile, ConfigText, Header, Image, Query, Text, serialise

if TYPE_CHECKING:
    from conftest import RunningServer, RunServer

FULL = Text("ERROR   the server has 1 connections already; try again later")


def send_again_and_again(connection: socket.socket, data: bytes) -> None:
    for _ in range(1000):
        connection.sendall(data)


def test_a_client_that_reads_nothing_is_no_longer_read_and_holds_up_nobody(
    server: RunningServer, scan: SimulatedScan
) -> None:
    frame = simulate_scan(shape=(128, 128), coils=1, acceleration=2, acs=16, snr=float("inf"))
    properties = '<property name="method" value="zero_filled"/><property name="dtype" value="complex"/>'
    config = serialise(ConfigText(f"<configuration>{properties}</configuration>"))
    with server.connect(receive_buffer=4096) as deaf:
        deaf.sendall(config + serialise(Header(frame.header)))
        data = b"".join(map(serialise, frame.acquisitions))
        deaf.settimeout(2)
        with pytest.raises(TimeoutError):
            send_again_and_again(deaf, data)
        for _ in range(2):
            assert len(server.send(scan).images) == 1


def test_clients_that_were_refused_take_no_place(small_server: RunningServer) -> None:
    def is_served() -> bool:
        return small_server.answers(Query("gadgetron::version", 1), Close())[-2:-1] != [FULL]

    with small_server.connect() as served:
        served.sendall(serialise(Query("gadgetron::version", 1)))
        assert served.recv(1000)
        refused = [small_server.connect() for _ in range(3)]
        # Each has its refusal, so the server knows of all of them before the place is free.
        assert all(connection.recv(1000).startswith(serialise(FULL)) for connection in refused)
    deadline = time.monotonic() + 1.5
    while not is_served():
        assert time.monotonic() < deadline, "the place of the client that went stays taken"
    for connection in refused:
        assert b"".join(iter(partial(connection.recv, 1000), b"")).endswith(serialise(Close()))
        connection.close()


def test_a_worker_that_dies_is_replaced(own_server: RunningServer, scan: SimulatedScan) -> None:
    assert own_server.send(scan).images
    dead = own_server.worker()
    os.kill(dead, signal.SIGKILL)
    assert own_server.send(scan).images
    assert own_server.worker() != dead


def test_the_worker_ends_when_the_front_is_killed(own_server: RunningServer, scan: SimulatedScan) -> None:
    assert own_server.send(scan).images
    worker = os.pidfd_open(own_server.worker())
    own_server.process.kill()
    assert select.select([worker], [], [], 10)[0], "the worker outlived the front"
    os.close(worker)


def test_a_worker_that_stands_still_ends_when_the_front_is_killed(own_server: RunningServer) -> None:
    wait_until(lambda: own_server.get("/readyz")[0] == 200)
    number = own_server.worker()
    worker = os.pidfd_open(number)
    os.kill(number, signal.SIGSTOP)
    wait_until(lambda: stands_still(number))
    own_server.process.kill()
    assert select.select([worker], [], [], 10)[0], "the worker outlived the front"
    os.close(worker)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_front_and_worker(own_server: RunningServer, scan: SimulatedScan, number: signal.Signals) -> None:
    assert own_server.answers(Close()) == [Close()]
    with own_server.connect() as idle:
        worker = os.pidfd_open(own_server.worker())
        own_server.process.send_signal(number)
        assert own_server.process.wait(timeout=15) == 0
        assert select.select([worker], [], [], 10)[0], "the worker outlived the front"
        os.close(worker)
        assert b"shutting down" in idle.recv(1000)


SLOW = (
    '<configuration><property name="method" value="bilevel_inr"/><property name="iterations" value="{}"/>'
    '<property name="levels" value="2"/></configuration>'
)


def begin(server: RunningServer, scan: SimulatedScan, config: str) -> socket.socket:
    """Send a scan, and come back when its frame is at work."""
    assert server.send(scan).images  # the worker is ready
    connection = server.connect()
    connection.sendall(b"".join(map(serialise, (ConfigText(config), Header(scan.header), *scan.acquisitions, Close()))))
    wait_until(lambda: server.figure("inrecon_frames_at_work") == 1)
    return connection


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stands_still(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


def test_a_scan_stands_still_beside_a_stream_and_all_images_come(
    own_server: RunningServer, scan: SimulatedScan
) -> None:
    movie = simulate_scan(shape=(32, 32), coils=4, acceleration=2, acs=12, repetitions=6)
    stream = '{"parameters": {"config": "inr_imri", "method": "cg_sense", "frame_policy": "all"}}'
    messages = (ConfigText(stream), Header(movie.header), *movie.acquisitions, Close())
    own_server.answers(*messages)
    wait_until(lambda: "ready: streams on cpu" in own_server.log())
    worker, stood_still = own_server.worker(), []
    with begin(own_server, scan, SLOW.format(1000)) as connection, ThreadPoolExecutor(1) as pool:
        frames = pool.submit(own_server.answers, *messages)
        wait_until(lambda: stood_still.append(stands_still(worker)) or frames.done())
        answers = own_server.hear(connection)
    assert [answer.repetition for answer in frames.result() if isinstance(answer, Image)] == list(range(6))
    (image,) = (answer for answer in answers if isinstance(answer, Image))
    assert "inrecon_fallback" not in image.meta
    assert own_server.figure("inrecon_workers_lost_total") == 0
    assert any(stood_still)
    assert len(own_server.children(b"spawn_main")) == 2


def test_a_scan_at_work_is_finished_before_the_server_stops(run_server: RunServer, scan: SimulatedScan) -> None:
    with run_server(shutdown_grace_s=60) as running, begin(running, scan, SLOW.format(3000)) as connection:
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping: 1 connections" in running.log())
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", running.port))
        answers = running.hear(connection)
        assert len([answer for answer in answers if isinstance(answer, Image)]) == 1
        assert running.process.wait(timeout=30) == 0


def test_who_does_not_want_to_wait_asks_twice(run_server: RunServer, scan: SimulatedScan) -> None:
    with run_server(shutdown_grace_s=600) as running, begin(running, scan, SLOW.format(100_000)) as connection:
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping: 1 connections" in running.log())
        running.process.send_signal(signal.SIGTERM)
        answers = running.hear(connection)
        assert [a.text for a in answers if isinstance(a, Text)][-1] == "ERROR   the server is shutting down"
        assert running.process.wait(timeout=30) == 0


def test_a_worker_that_is_killed_in_mid_fit_costs_no_image(own_server: RunningServer, scan: SimulatedScan) -> None:
    with begin(own_server, scan, SLOW.format(100_000)) as connection:
        os.kill(own_server.worker(), signal.SIGKILL)
        answers = own_server.hear(connection)
    (image,) = (answer for answer in answers if isinstance(answer, Image))
    assert "was lost: it died; CG-SENSE instead" in image.meta["inrecon_fallback"]
    assert any("was lost: it died" in answer.text for answer in answers if isinstance(answer, Text))
    assert own_server.figure("inrecon_workers_lost_total") == 1


def test_a_client_that_hangs_up_while_it_waits_gives_its_place_to_the_next(
    own_server: RunningServer, scan: SimulatedScan
) -> None:
    begin(own_server, scan, SLOW.format(100_000)).close()
    assert own_server.send(scan).images


def test_twenty_clients_at_once_are_served_or_refused_and_told_so(run_server: RunServer, scan: SimulatedScan) -> None:
    with run_server(max_connections=4) as running, ThreadPoolExecutor(20) as pool:
        results = list(pool.map(lambda _: running.send(scan), range(20)))
        assert all(result.closed for result in results)
        served = [result for result in results if result.images]
        refused = [result for result in results if not result.images]
        assert len(served) >= 4
        assert all("the server has 4 connections already" in result.texts[0] for result in refused)
        wait_until(lambda: running.figure("inrecon_sessions_active") == 0)


def test_scans_share_the_memory_that_there_is(run_server: RunServer, scan: SimulatedScan) -> None:
    head, data = serialise(ConfigFile("cg_sense")) + serialise(Header(scan.header)), scan.acquisitions[:-1]
    one = 32 * 64 * (4 * 8 + 4)  # lines of 64 samples and 4 coils, with their counts
    with run_server(memory_gib=1.2 * one / 2**30) as running:
        assert running.send(scan).images
        count = running.figure("inrecon_readouts_received_total")
        with running.connect() as first:
            first.sendall(head + b"".join(map(serialise, data)))
            wait_until(lambda: running.figure("inrecon_readouts_received_total") == count + len(data))
            refused = running.send(scan)
        wait_until(lambda: running.figure("inrecon_sessions_active") == 0)
        assert running.send(scan).images
        assert any("GiB that there are for readouts: try again later" in text for text in refused.texts)
        assert running.answers(Close()) == [Close()]


def test_logs_may_be_json(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-m", "inrecon_server.cli", "serve", "-p", "0", "--http-port", "0", "-l", str(log)]
    environment = {**os.environ, "INRECON_LOG_FORMAT": "json"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.terminate()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"time", "level", "logger", "message"} <= set(lines[0])
    assert any("log_format = json (environment)" in line["message"] for line in lines)
