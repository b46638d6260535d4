"""The way from the front to the process that writes: bounded, never in the way, and heard once when it ends."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from inrecon.simulate import SimulatedScan, simulate_scan
from inrecon_server.capture import Capture, Captures
from inrecon_server.files import open_raw
from inrecon_server.keeping import Keeping
from inrecon_server.protocol import Close, ConfigFile, Header, serialise


@pytest.fixture(scope="module")
def scan() -> SimulatedScan:
    return simulate_scan(shape=(16, 16), coils=2, acceleration=2, acs=8)


def pieces(scan: SimulatedScan) -> list[bytes]:
    return [serialise(message) for message in (ConfigFile("null"), Header(scan.header), *scan.acquisitions, Close())]


def new(folder: Path, **more: object) -> Capture:
    return Capture(Keeping(folder=folder), name="session 1", always=True, **more)  # type: ignore[arg-type]


def readouts(folder: Path) -> int:
    (path,) = folder.iterdir()
    with open_raw(path) as raw:
        return raw.readouts


def test_what_came_before_it_was_known_to_be_kept_is_kept(scan: SimulatedScan, tmp_path: Path) -> None:
    capture = new(tmp_path)
    sent = pieces(scan)
    for piece in sent[:-3]:
        capture.feed(piece)
    capture.begin()
    for piece in sent[-3:]:
        capture.feed(piece)
    capture.end()
    assert capture.wait(30)
    assert capture.take_problem() is None
    assert capture.recorded is not None
    assert capture.recorded.readouts == readouts(tmp_path) == len(scan.acquisitions)


def test_a_session_that_is_not_to_be_kept_is_forgotten(scan: SimulatedScan, tmp_path: Path) -> None:
    capture = new(tmp_path)
    capture.feed(pieces(scan)[0])
    assert capture.at_work
    capture.end()
    capture.begin()
    assert not capture.at_work
    assert list(tmp_path.iterdir()) == []


def test_a_full_queue_ends_the_capture_and_not_what_is_in_it(scan: SimulatedScan, tmp_path: Path) -> None:
    sent = pieces(scan)
    capture = new(tmp_path, queue_bytes=sum(map(len, sent[:12])))
    for piece in sent:
        capture.feed(piece)
    problem = capture.take_problem()
    assert problem is not None
    assert "would wait to be written" in problem
    assert capture.take_problem() is None
    capture.begin()
    capture.end()
    assert capture.wait(30)
    assert capture.take_problem() is None
    assert readouts(tmp_path) == 10


def test_a_process_that_dies_is_a_problem(scan: SimulatedScan, tmp_path: Path) -> None:
    capture = new(tmp_path)
    sent = pieces(scan)
    capture.feed(sent[0])
    capture.begin()
    capture.end()
    while capture.at_work:
        capture.kill()
    assert capture.take_problem() == "the process that writes it died, exit code -9"


def test_when_nobody_listens_any_more_the_log_hears_of_it(
    scan: SimulatedScan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    capture = new(tmp_path / "gone")
    for piece in pieces(scan):
        capture.feed(piece)
    capture.begin()
    capture.release()
    assert capture.wait(30)
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warning == ("session 1: the capture of this session has ended, the scan goes on: No such file or directory")


def test_captures_that_a_killed_server_left_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    captures = Captures(Keeping(folder=tmp_path), always=True)
    captures.start()
    assert caplog.records == []
    (tmp_path / "MRD_input_2026-01-01-120000_1.h5.part").touch()
    captures.start()
    (record,) = caplog.records
    assert "holds 1 captures that are not whole" in record.message


def test_stopping_waits_for_what_is_still_to_be_written(scan: SimulatedScan, tmp_path: Path) -> None:
    captures = Captures(Keeping(folder=tmp_path), always=True)
    capture = captures.new("session 1")
    for piece in pieces(scan)[:-1]:
        capture.feed(piece)
    capture.begin()
    captures.stop()
    assert not capture.at_work
    assert readouts(tmp_path) == len(scan.acquisitions)
