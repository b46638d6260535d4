"""Sessions that a server keeps as raw files: what is in them, their names, and what happens where that fails."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import ismrmrd
import numpy as np
import pytest

from inrecon.simulate import SimulatedScan, simulate_scan
from inrecon_server.cli import main
from inrecon_server.files import open_raw
from inrecon_server.protocol import (
    Acquisition,
    Close,
    ConfigFile,
    ConfigText,
    Header,
    Image,
    Message,
    Query,
    Text,
    serialise,
)

if TYPE_CHECKING:
    from conftest import RunningServer

Start = Callable[..., AbstractContextManager["RunningServer"]]

FEW_ITERATIONS = '<configuration><property name="iterations" value="30"/></configuration>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("captures")


@pytest.fixture(scope="module")
def keeping(run_server: Start, folder: Path) -> Iterator[RunningServer]:
    """A server that keeps all sessions in `folder`; CLOSE comes when they are whole."""
    with run_server(savedata=True, savedata_folder=folder) as running:
        yield running


def captured(folder: Path, before: list[Path]) -> Path:
    (new,) = set(folder.iterdir()) - set(before)
    return new


def assert_holds(path: Path, header: bytes, sent: list[ismrmrd.Acquisition]) -> None:
    with open_raw(path) as raw:
        assert raw.header == header
        assert [serialise(readout) for readout in raw.acquisitions()] == [serialise(readout) for readout in sent]


def texts(answers: list[Message]) -> list[str]:
    return [answer.text for answer in answers if isinstance(answer, Text)]


def test_a_session_is_kept_as_it_was_sent(keeping: RunningServer, folder: Path, scan: SimulatedScan) -> None:
    before = list(folder.iterdir())
    wave = ismrmrd.Waveform.from_array(np.arange(12, dtype=np.uint32).reshape(3, 4), waveform_id=1)
    parameters = Text('{"parameters": {"preset": "fast"}}')
    sent = [*scan.acquisitions[:40], wave, *scan.acquisitions[40:]]
    answers = keeping.answers(ConfigFile("zero_filled"), Header(scan.header), parameters, *sent, Close())
    assert len([answer for answer in answers if isinstance(answer, Image)]) == 1
    path = captured(folder, before)
    assert re.fullmatch(r"simulated_brain_\d{4}-\d\d-\d\d-\d{6}_\d+\.h5", path.name)
    assert_holds(path, scan.header, scan.acquisitions)
    with ismrmrd.Dataset(path, mode="r") as dataset:
        assert np.array_equal(dataset.read_waveform(0).data, wave.data)
        assert {name: dataset._dataset[name][0].decode() for name in ("config_file", "configAdditional")} == {
            "config_file": "zero_filled",
            "configAdditional": parameters.text,
        }


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        ("zero_filled", None),
        (FEW_ITERATIONS, None),
        ("inr", '{"parameters": {"config": "cg_sense", "dtype": "float"}}'),
    ],
)
def test_replayed_without_options_a_capture_gives_the_images_that_were_sent(
    keeping: RunningServer,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    config: str,
    parameters: str | None,
) -> None:
    movie = simulate_scan(shape=(40, 32), coils=4, acceleration=2, acs=12, slices=2, pattern="random")
    before = list(folder.iterdir())
    sent = keeping.send(movie, config=config, parameters=parameters).images
    out = tmp_path / "out.h5"
    assert main(["replay", str(captured(folder, before)), "-o", str(out), "--device", "cpu"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "as recorded in" in line
    with ismrmrd.File(out, "r") as file:
        replayed = list(file["images"]["image_1"].images)
    assert len(sent) == len(replayed) == 2
    for one, other in zip(sent, replayed, strict=True):
        assert one.data.dtype == other.data.dtype
        assert np.array_equal(one.data, other.data)


@pytest.mark.parametrize("config", ["no_such", "null", "savedataonly"])
def test_a_capture_whose_configuration_makes_no_image_asks_for_another(
    keeping: RunningServer,
    folder: Path,
    scan: SimulatedScan,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    config: str,
) -> None:
    before = list(folder.iterdir())
    keeping.send(scan, config=config)
    replay = ["replay", str(captured(folder, before)), "-o", str(tmp_path / "out.h5"), "--device", "cpu"]
    assert main(replay) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "was recorded with" in line
    assert "-c" in line
    assert main([*replay, "-c", "zero_filled"]) == 0


def test_what_asks_for_nothing_leaves_no_file(keeping: RunningServer, folder: Path) -> None:
    before = list(folder.iterdir())
    for messages in [(Close(),), (ConfigFile("isalive"), Close()), (Query("gadgetron::info", 1), Close())]:
        assert keeping.answers(*messages)[-1] == Close()
    assert list(folder.iterdir()) == before


def test_a_scan_that_failed_is_kept_to_its_end(keeping: RunningServer, folder: Path, scan: SimulatedScan) -> None:
    before = list(folder.iterdir())
    spoilt = Acquisition.from_array(np.full((4, 64), np.nan, np.complex64))
    sent = [*scan.acquisitions[:40], spoilt, *scan.acquisitions[40:]]
    answers = keeping.answers(ConfigFile("zero_filled"), Header(scan.header), *sent, Close())
    assert [text for text in texts(answers) if text.startswith("ERROR")]
    assert_holds(captured(folder, before), scan.header, sent)


def test_nonsense_ends_the_file_as_it_ends_the_scan(keeping: RunningServer, folder: Path, scan: SimulatedScan) -> None:
    before = list(folder.iterdir())
    answers = keeping.answers(ConfigFile("null"), Header(scan.header), *scan.acquisitions[:7], b"\xee" * 99, Close())
    assert answers[-1] == Close()
    assert_holds(captured(folder, before), scan.header, scan.acquisitions[:7])


def test_a_client_may_ask_for_nothing_but_to_be_kept(
    run_server: Start, scan: SimulatedScan, tmp_path: Path, folder: Path
) -> None:
    with run_server(savedata_folder=tmp_path) as server:
        assert server.send(scan, config="zero_filled").images
        assert list(tmp_path.iterdir()) == []
        by_name = server.send(scan, config="savedataonly")
        by_parameters = server.send(scan, config="inr", parameters='{"parameters": {"config": "savedataonly"}}')
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    for result, path in zip((by_name, by_parameters), files, strict=True):
        assert result.closed
        assert result.images == []
        assert result.texts == [f"INFO    kept as {path.name} ({len(scan.acquisitions)} readouts, 0 waveforms)"]
        assert_holds(path, scan.header, scan.acquisitions)


def test_a_server_without_a_folder_refuses_to_save_only(server: RunningServer, scan: SimulatedScan) -> None:
    result = server.send(scan, config="savedataonly")
    assert result.closed
    (error,) = result.texts
    assert error.startswith("ERROR   this server keeps no readouts")
    assert server.answers(ConfigFile("savedataonly"), Close()) == [Close()]


def test_a_disk_that_is_full_is_told_once_and_the_scan_goes_on(
    run_server: Start, scan: SimulatedScan, tmp_path: Path
) -> None:
    ballast = Acquisition.from_array(np.ones((4, 30_000), np.complex64))  # 0.9 MiB
    ballast.set_flag(ismrmrd.ACQ_IS_DUMMYSCAN_DATA)
    sent = [*scan.acquisitions[:-1], *(100 * [ballast]), scan.acquisitions[-1]]
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20))"
    captures = tmp_path / "captures"
    captures.mkdir()
    with run_server(prelude=limit, savedata=True, savedata_folder=captures) as server:
        answers = server.answers(ConfigFile("zero_filled"), Header(scan.header), *sent, Close())
        assert server.send(scan, config="zero_filled").images
        log = server.log()
    assert len([answer for answer in answers if isinstance(answer, Image)]) == 1
    (warning,) = [text for text in texts(answers) if "capture" in text]
    assert warning == "WARNING the capture of this session has ended, the scan goes on: File too large"
    assert log.count("the capture of this session has ended") == 1
    first, second = sorted(captures.iterdir())
    assert_holds(second, scan.header, scan.acquisitions)
    with open_raw(first) as raw:
        assert len(scan.acquisitions) < raw.readouts < len(sent)
        assert_holds(first, scan.header, sent[: raw.readouts])


def test_a_folder_that_has_gone_is_told_once_and_the_scan_goes_on(
    run_server: Start, scan: SimulatedScan, tmp_path: Path
) -> None:
    captures = tmp_path / "captures"
    captures.mkdir()
    with run_server(savedata=True, savedata_folder=captures) as server:
        shutil.rmtree(captures)
        result = server.send(scan, config="zero_filled")
        assert len(result.images) == 1
        (warning,) = [text for text in result.texts if text.startswith("WARNING")]
        assert "the capture of this session has ended, the scan goes on: No such file or directory" in warning
        only = server.send(scan, config="savedataonly")
        assert [text[:7] for text in only.texts] == ["ERROR  "]


def heard(connection: object, *messages: Message) -> None:
    """Send `messages`, and wait until the server has had them all."""
    connection.sendall(b"".join(map(serialise, (*messages, Query("gadgetron::version", 1)))))  # type: ignore[attr-defined]
    assert connection.recv(1000)  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_came_before_the_server_ended_is_kept(
    run_server: Start, scan: SimulatedScan, tmp_path: Path, number: signal.Signals
) -> None:
    with run_server(savedata=True, savedata_folder=tmp_path) as server, server.connect() as connection:
        heard(connection, ConfigFile("null"), Header(scan.header), *scan.acquisitions[:40])
        while not list(tmp_path.iterdir()):
            heard(connection)
        recorders = [os.pidfd_open(pid) for pid in server.children(b"inrecon_server.recorder")]
        server.process.send_signal(number)
        server.process.wait(timeout=30)
        for recorder in recorders:
            assert select.select([recorder], [], [], 30)[0], "the process that writes outlived the server"
            os.close(recorder)
    (path,) = tmp_path.iterdir()
    with open_raw(path) as raw:
        # A server that is killed takes along what it had not yet handed on.
        readouts = raw.readouts
    assert readouts == 40 or number == signal.SIGKILL
    assert_holds(path, scan.header, scan.acquisitions[:readouts])


def test_a_file_that_is_not_whole_is_not_taken_for_one(run_server: Start, scan: SimulatedScan, tmp_path: Path) -> None:
    with run_server(savedata=True, savedata_folder=tmp_path, savedata_days=0.5) as server:
        with server.connect() as connection:
            heard(connection, ConfigFile("null"), Header(scan.header), *scan.acquisitions[:40])
            while not list(tmp_path.iterdir()):
                heard(connection)
            (recorder,) = server.children(b"inrecon_server.recorder")
            os.kill(recorder, signal.SIGKILL)
            connection.sendall(serialise(Close()))
            answer = connection.recv(1000)
            assert b"WARNING the capture of this session has ended, the scan goes on: the process" in answer
        (left,) = tmp_path.iterdir()
        assert left.name.endswith(".h5.part")
        old = time.time() - 86400
        os.utime(left, (old, old))
        server.send(scan, config="savedataonly")
        assert sorted(path.suffix for path in tmp_path.iterdir()) == [".h5", ".part"]


def test_old_captures_go_after_a_session_and_files_of_others_stay(
    run_server: Start, scan: SimulatedScan, tmp_path: Path
) -> None:
    with run_server(savedata_folder=tmp_path, savedata_days=7) as server:
        server.send(scan, config="savedataonly")
        (old,) = tmp_path.iterdir()
        other = tmp_path / "other_2020-01-01-120000_1.h5"
        other.write_bytes(b"")
        for path in (old, other):
            os.utime(path, (1e9, 1e9))
        server.send(scan, config="savedataonly")
    assert not old.exists()
    assert other.exists()
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_of_the_patient_is_in_names_or_logs(run_server: Start, scan: SimulatedScan, tmp_path: Path) -> None:
    patient = (
        b"<subjectInformation><patientName>Doe^Jane</patientName><patientID>4711-0815</patientID></subjectInformation>"
    )
    header = scan.header.replace(b"<studyInformation>", patient + b"<studyInformation>")
    assert patient in header
    captures = tmp_path / "captures"
    captures.mkdir()
    with run_server(verbose=True, savedata=True, savedata_folder=captures) as server:
        answers = server.answers(ConfigFile("zero_filled"), Header(header), *scan.acquisitions, Close())
        nameless = header.replace(b"protocolName", b"comment")
        answers += server.answers(ConfigText("<configuration/>"), Header(nameless), *scan.acquisitions[:3], Close())
        log = server.log()
    names = [path.name for path in captures.iterdir()]
    assert len(names) == 2
    told = "\n".join([log, *names, *texts(answers)]).lower()
    assert "kept as simulated_brain_" in told
    for secret in ("doe", "jane", "4711", "0815"):
        assert secret not in told
