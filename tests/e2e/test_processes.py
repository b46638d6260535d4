"""What happens when clients do not read, processes die, and the server is told to stop."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from inrecon.simulate import SimulatedScan, simulate_scan
from inrecon_server.protocol import Close, ConfigText, Header, Query, Text, serialise

if TYPE_CHECKING:
    from conftest import RunningServer

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
