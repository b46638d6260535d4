"""The likeliest mistakes: each is named in a text, ends with CLOSE, and the next scan is served."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest
from hearing import owed

from inrecon.simulate import SimulatedScan
from inrecon_server.protocol import Close, ConfigFile, Header, Image, Message, Text, serialise

if TYPE_CHECKING:
    from conftest import RunningServer

CONFIG = ConfigFile("zero_filled")

pytestmark = pytest.mark.usefixtures("next_scan_is_served")


def errors(answers: list[Message]) -> list[str]:
    """The error texts."""
    texts = [answer.text for answer in owed(answers) if isinstance(answer, Text)]
    return [text.removeprefix("ERROR   ") for text in texts if text.startswith("ERROR   ")]


def test_unknown_configuration(server: RunningServer, scan: SimulatedScan) -> None:
    (error,) = errors(server.answers(ConfigFile("cg_sens"), Header(scan.header), *scan.acquisitions, Close()))
    assert "did you mean 'cg_sense'" in error
    assert "zero_filled" in error


def test_unknown_method(server: RunningServer, scan: SimulatedScan) -> None:
    config = '<configuration><property name="method" value="cg_sens"/></configuration>'
    (error,) = [text for text in server.send(scan, config=config).texts if text.startswith("ERROR")]
    assert "did you mean 'cg_sense'" in error


def test_missing_header(server: RunningServer, scan: SimulatedScan) -> None:
    (error,) = errors(server.answers(CONFIG, *scan.acquisitions, Close()))
    assert "before ISMRMRD header" in error


def test_missing_configuration(server: RunningServer, scan: SimulatedScan) -> None:
    (error,) = errors(server.answers(Header(scan.header), *scan.acquisitions, Close()))
    assert "before config" in error


def test_unknown_message_id(server: RunningServer, scan: SimulatedScan) -> None:
    (error,) = errors(server.answers(CONFIG, Header(scan.header), struct.pack("<H", 4711), b"x" * 1000, Close()))
    assert "unknown message id 4711" in error


def test_http_request(server: RunningServer) -> None:
    (error,) = errors(server.answers(b"GET / HTTP/1.1\r\n\r\n"))
    assert "HTTP" in error


@pytest.mark.parametrize("cut", [0, 100])
def test_scan_that_ends_early(server: RunningServer, scan: SimulatedScan, cut: int) -> None:
    half = scan.acquisitions[: len(scan.acquisitions) // 2 + 16]
    rest = serialise(scan.acquisitions[-1])[:cut]
    answers = server.answers(CONFIG, Header(scan.header), *half, rest, hang_up=True)
    (error,) = errors(answers)
    assert ("without CLOSE" if cut == 0 else "ended inside ACQUISITION") in error
    assert not [answer for answer in answers if isinstance(answer, Image)]


def test_frames_that_were_complete_come_back_though_the_scan_ends_early(
    server: RunningServer, scan: SimulatedScan
) -> None:
    answers = server.answers(CONFIG, Header(scan.header), *scan.acquisitions, hang_up=True)
    assert len([answer for answer in answers if isinstance(answer, Image)]) == 1
    assert "without CLOSE" in errors(answers)[0]


def test_images_for_a_server_of_raw_data(server: RunningServer, scan: SimulatedScan) -> None:
    (image,) = server.send(scan, config="zero_filled").images
    (error,) = errors(server.answers(CONFIG, Header(scan.header), image, *scan.acquisitions, Close()))
    assert "does not take images" in error


def test_client_that_vanishes(server: RunningServer, scan: SimulatedScan) -> None:
    with server.connect() as connection:
        connection.sendall(serialise(CONFIG) + serialise(Header(scan.header)))
        connection.sendall(b"".join(map(serialise, scan.acquisitions)))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # hang up by a reset
