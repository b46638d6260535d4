"""The client of Gadgetron's storage server: its tags, and servers that are slow, silent or talk too much."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from inrecon.acquire import Scan
from inrecon_server.storage_server import StorageFailed, StorageServer, noise_tags

WHAT = {"name": "noise_covariance"}


def scan(**facts: str) -> Scan:
    return Scan(encodings=(), **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "measurement", "tags"),
    [
        (
            {"device_id": "d", "subject_id": "s", "study_id": "t", "measurement_id": "1_2_3_4"},
            "5_6_7_8",
            {"device": "d", "subject": "s", "session": "t"},
        ),
        ({"subject_id": "s", "measurement_id": "1_2_3_4"}, "5_6_7_8", {"device": "1", "subject": "s", "session": "3"}),
        ({"device_id": "d", "measurement_id": "1_2_3_4"}, "x", {"device": "d", "subject": "2", "session": "3"}),
        ({"subject_id": "s", "measurement_id": "m"}, "5_6_7_8", {"subject": "s"}),
        ({"subject_id": "s"}, "", {"subject": "s"}),
        ({"device_id": "d", "measurement_id": "m"}, "5_6_7_8", {"device": "5", "subject": "6", "session": "7"}),
        ({}, "_6__8", {"subject": "6"}),
    ],
)
def test_noise_is_filed_under_what_the_header_says_or_the_parts_of_an_id(
    facts: dict[str, str], measurement: str, tags: dict[str, str]
) -> None:
    assert noise_tags(measurement, scan=scan(**facts)) == {**tags, **WHAT, "measurement": measurement}


@pytest.mark.parametrize(
    ("facts", "measurement"),
    [({}, "m"), ({"device_id": "d", "study_id": "t"}, "1_2_3"), ({"measurement_id": "1__3_4"}, "1_2_3_4_5"), ({}, "")],
)
def test_without_a_subject_nothing_is_filed(facts: dict[str, str], measurement: str) -> None:
    with pytest.raises(StorageFailed, match="header names none"):
        noise_tags(measurement, scan=scan(**facts))


@contextmanager
def listening(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server for one connection, which does as `talk` does once it has read something."""

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1 << 16)
            talk(connection)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def client(address: str, **options: float) -> StorageServer:
    return StorageServer(address, **{"limit_bytes": 1000, "timeout_s": 0.1, **options})  # type: ignore[arg-type]


def test_a_silent_server_is_not_waited_for() -> None:
    over = threading.Event()
    with listening(lambda _: over.wait(30) and None) as address:
        with pytest.raises(StorageFailed, match=r"did not answer within 0.1 s"):
            client(address).latest({"subject": "secret"})
        over.set()


def test_a_server_that_goes_on_and_on_is_not_listened_to() -> None:
    def talk(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        over.wait(30)

    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not over.wait(0.001):
            connection.send(b".")

    for answer in (talk, drip):
        over = threading.Event()
        with listening(answer) as address:
            with pytest.raises(StorageFailed, match=r"did not answer within 0.1 s"):
                client(address, limit_bytes=10**9).latest({})
            over.set()


def test_an_answer_has_a_largest_size() -> None:
    def talk(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(2000))

    with listening(talk) as address, pytest.raises(StorageFailed, match="more than 1000 bytes"):
        client(address, timeout_s=5).latest({})


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\r\n",
        b"secret\r\n\r\n",
        b"HTTP/1.1 secret\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a" * 70_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nsecret\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 500 secret\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
def test_what_is_no_answer_is_told_without_its_words(answer: bytes) -> None:
    served = listening(lambda connection: connection.sendall(answer))
    with served as address, pytest.raises(StorageFailed) as caught:
        client(address, timeout_s=5).latest({"subject": "secret"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "http://nobody.invalid", "https://127.0.0.1:1", "http://.a"])
def test_a_server_that_is_not_there_is_told(address: str) -> None:
    with pytest.raises(StorageFailed, match="cannot be reached") as caught:
        client(address, timeout_s=5).store(b"blob", {"subject": "secret"}, hours=1)
    assert "secret" not in str(caught.value)


def test_proxies_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://192.0.2.1:1")

    def talk(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    with listening(talk) as address:
        assert client(address, timeout_s=5).latest({}) is None
