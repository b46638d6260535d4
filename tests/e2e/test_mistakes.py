"""The likeliest mistakes: each is named in a text, ends with CLOSE, and the next scan is served."""

from __future__ import annotations

import copy
import socket
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from ismrmrd import Acquisition

from inrecon.simulate import SimulatedScan
from inrecon_server.protocol import Close, ConfigFile, Error, Header, Image, Message, Text, serialise

if TYPE_CHECKING:
    from conftest import RunningServer

CONFIG = ConfigFile("zero_filled")


def errors(answers: list[Message]) -> list[str]:
    """The error texts, after a check of what every connection is owed: CLOSE once, at the end, and no message 8."""
    assert answers.count(Close()) == 1
    assert answers[-1] == Close()
    assert not [answer for answer in answers if isinstance(answer, Error)]
    texts = [answer.text for answer in answers if isinstance(answer, Text)]
    return [text.removeprefix("ERROR   ") for text in texts if text.startswith("ERROR   ")]


@pytest.fixture(autouse=True)
def next_scan_is_served(server: RunningServer, scan: SimulatedScan):
    yield
    result = server.send(scan, config="zero_filled")
    assert result.closed
    assert len(result.images) == 1


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


def test_header_that_is_garbage(server: RunningServer, scan: SimulatedScan) -> None:
    (error,) = errors(server.answers(CONFIG, Header(b"<garbage"), *scan.acquisitions, Close()))
    assert "header" in error
    assert "XML" in error


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


def test_readout_without_samples(server: RunningServer, scan: SimulatedScan) -> None:
    empty = Acquisition.from_array(np.zeros((4, 0), np.complex64))
    (error,) = errors(server.answers(CONFIG, Header(scan.header), empty, *scan.acquisitions, Close()))
    assert "sample" in error


def test_channels_that_change(server: RunningServer, scan: SimulatedScan) -> None:
    other = Acquisition.from_array(np.ones((3, scan.acquisitions[-1].number_of_samples), np.complex64))
    other.center_sample = scan.acquisitions[-1].center_sample
    (error,) = errors(server.answers(CONFIG, Header(scan.header), *scan.acquisitions[:-2], other, Close()))
    assert "3 channels in a scan of 4" in error


def test_values_that_are_not_finite(server: RunningServer, scan: SimulatedScan) -> None:
    spoilt = copy.deepcopy(scan.acquisitions[-2])
    spoilt.data[0, 0] = np.nan
    (error,) = errors(server.answers(CONFIG, Header(scan.header), spoilt, *scan.acquisitions, Close()))
    assert "NaN" in error or "finite" in error


def test_length_beyond_all_limits(server: RunningServer) -> None:
    (error,) = errors(server.answers(CONFIG, struct.pack("<HI", 3, 0xFFFFFFFF), b"<", Close()))
    assert "4294967295" in error


def test_images_for_a_server_of_raw_data(server: RunningServer, scan: SimulatedScan) -> None:
    (image,) = server.send(scan, config="zero_filled").images
    (error,) = errors(server.answers(CONFIG, Header(scan.header), image, *scan.acquisitions, Close()))
    assert "does not take images" in error


def test_client_that_vanishes(server: RunningServer, scan: SimulatedScan) -> None:
    with server.connect() as connection:
        connection.sendall(serialise(CONFIG) + serialise(Header(scan.header)))
        connection.sendall(b"".join(map(serialise, scan.acquisitions)))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # hang up by a reset
