"""The command line as scripts see it: exit codes, one line for what is wrong, outputs whole or absent."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest

from inrecon.simulate import simulate_scan, write_ismrmrd
from inrecon_server.cli import main
from inrecon_server.client import send
from inrecon_server.protocol import Close, Image, Message, Text, serialise

CLI = [sys.executable, "-m", "inrecon_server.cli"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "raw.h5"
    write_ismrmrd(path, simulate_scan(shape=(16, 16), coils=2, acceleration=2, acs=8))
    return path


def run(*arguments: object) -> int:
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1


def one_line(text: str) -> str:
    lines = text.splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith("inrecon: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "COMMAND"),
        ("replai raw.h5", "invalid choice: 'replai'"),
        ("replay", "required: RAW.h5, -o"),
        ("replay missing.h5 -o out.h5", "no file missing.h5"),
        ("replay notes.txt -o out.h5", "notes.txt is not an HDF5 file"),
        ("replay other.h5 -o out.h5", "other.h5 has no ISMRMRD raw data.* groups are: images"),
        ("replay raw.h5 -g nope -o out.h5", "in its group 'nope'; its groups are: dataset"),
        ("replay raw.h5 -o raw.h5", "raw.h5 is the input"),
        ("replay raw.h5 -o nowhere/out.h5", "nowhere/out.h5 cannot be written"),
        ("replay raw.h5 -o out.h5 --report raw.h5", "raw.h5 is the input"),
        ("replay raw.h5 -o out.h5 --report nowhere/report.json", "cannot be written"),
        ("replay raw.h5 -o out.h5 --report ./out.h5", "cannot hold both the images and the report"),
        ("replay raw.h5 -o /dev/null", "/dev/null is a device or a pipe"),
        ("demo missing.h5 --output new", "there is no file missing.h5"),
        ("replay raw.h5 -o out.h5 --png notes.txt", "notes.txt"),
        ("replay raw.h5 -o out.h5 -c cg_sens", "did you mean 'cg_sense'"),
        ("replay raw.h5 -o out.h5 -c null", "'null' makes no images"),
        ("replay raw.h5 -o out.h5 -c default_measurement_dependencies", "makes no images"),
        ("replay raw.h5 -o out.h5 --method cg_sens", "did you mean 'cg_sense'"),
        ("replay raw.h5 -o out.h5 --preset slow", "invalid choice: 'slow'"),
        ("replay raw.h5 -o out.h5 --dtype int", "invalid choice: 'int'"),
        ("replay raw.h5 -o out.h5 --device tpu", "invalid choice: 'tpu'"),
        ("replay raw.h5 -o out.h5 --set iterations", "must be field=value"),
        ("replay raw.h5 -o out.h5 --set =3", "must be field=value"),
        ("replay raw.h5 -o out.h5 --set iteration=3", "has no field 'iteration'"),
        ("replay raw.h5 -o out.h5 --method cg_sense --set iterations=many", "cg_sense.iterations must be int"),
        ("replay raw.h5 -o out.h5 --hyperparameters nowhere", "no folder nowhere"),
        ("replay raw.h5 -o out.h5 --hyperparameters empty", "no hyperparameter files"),
        ("replay radial.h5 -o out.h5", "(?i)radial"),
        ("send missing.h5 -o out.h5", "no file missing.h5"),
        ("send raw.h5", "images need an --output"),
        ("send raw.h5 -o out.h5 -c default_measurement_dependencies", "makes no images for --output"),
        ("send raw.h5 -o raw.h5", "raw.h5 is the input"),
        ("send raw.h5 -o out.h5 -p 70000", "a port is a number"),
        ("send raw.h5 -o out.h5 --timeout 0", "seconds above 0"),
        ("send raw.h5 -o out.h5 --timeout soon", "seconds above 0"),
        ("check nowhere", "no folder nowhere"),
        ("serve -p http", "a port is a number"),
        ("serve -p 0 -d cg_sens", "did you mean 'cg_sense'"),
        ("serve -p 0 -H 192.0.2.1", "cannot listen on 192.0.2.1:0"),
        ("serve -p 0 --igtl-port slicer", "a port is a number"),
        ("serve -p 0 --hyperparameters nowhere", "no folder nowhere"),
        ("serve -p 0 -l nowhere/log", "nowhere/log"),
        ("serve -p 0 --state nowhere", "no folder nowhere"),
        ("serve -p 0 -s", "savedata_gib need savedata_folder"),
        ("serve -p 0 -s -S nowhere", "no folder nowhere"),
        ("serve -p 0 --tune-seconds 5", "tune_seconds and candidates go together"),
        ("serve -p 0 --tune-seconds 5 --candidates nowhere", "no folder nowhere"),
        ("serve -p 0 --tune-seconds 5 --candidates empty --hyperparameters .", "would be used unseen"),
        ("demo missing.h5 --output demo", "no file missing.h5"),
    ],
)
def test_a_mistake_ends_with_2_and_one_line_and_leaves_nothing(
    raw: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("notes.txt").write_text("not a scan")
    Path("raw.h5").write_bytes(raw.read_bytes())
    with h5py.File("other.h5", "w") as file:
        file.create_group("images")
    Path("radial.h5").write_bytes(raw.read_bytes())
    with h5py.File("radial.h5", "r+") as file:
        file["dataset/xml"][0] = file["dataset/xml"][0].replace(b"cartesian", b"radial")
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert run(*arguments.split()) == 2
    assert re.search(says, one_line(capsys.readouterr().err))
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@contextmanager
def answering(*answers: Message | bytes) -> Iterator[int]:
    """A server on the loopback that reads a scan to its CLOSE, gives these answers and hangs up."""

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            received = b""
            while not received.endswith(serialise(Close())):
                received += connection.recv(1 << 16)
            connection.sendall(b"".join(part if isinstance(part, bytes) else serialise(part) for part in answers))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(10)
        assert not thread.is_alive()


def picture() -> Image:
    return ismrmrd.Image.from_array(np.ones((1, 1, 4, 4), np.float32), transpose=False, image_series_index=1)


@pytest.mark.parametrize(
    ("answers", "code", "complaint"),
    [
        ([Text("INFO    hello"), picture(), Close()], 0, ""),
        ([Text("INFO    hello"), Close()], 1, "no image"),
        ([Text("INFO    hello"), picture()], 1, "without CLOSE"),
        ([Text("INFO    hello")], 1, "no image: the server went away without CLOSE"),
        ([Text("ERROR   out of helium"), picture(), Close()], 1, "told of an error"),
        ([Text("INFO    hello"), picture(), b"\xfe\x03\x01"], 1, "may not be complete: .*inside IMAGE"),
        ([Text("INFO    hello"), picture(), b"\x39\x05garbage"], 1, "may not be complete: .*1337"),
        ([Text("INFO    hello"), b"\x39\x05garbage"], 1, "1337"),
    ],
)
def test_send_tells_what_the_server_says_and_whether_all_went_well(
    raw: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    answers: list[Message],
    code: int,
    complaint: str,
) -> None:
    with answering(*answers) as port:
        assert run("send", raw, "-p", port, "-o", tmp_path / "out.h5") == code
    told = capsys.readouterr()
    assert told.out == answers[0].text + "\n"
    assert re.search(complaint, one_line(told.err) if code else told.err)
    assert (tmp_path / "out.h5").exists() == any(isinstance(answer, Image) for answer in answers)


@contextmanager
def silent(*answers: Message, reads: bool) -> Iterator[int]:
    """A server on the loopback that gives these answers at once, then reads everything or nothing, and is silent."""

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.sendall(b"".join(map(serialise, answers)))
            while reads and connection.recv(1 << 16):
                pass
            assert done.wait(10)

    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        done.set()
        thread.join(10)
        assert not thread.is_alive()


def test_send_keeps_the_images_of_a_server_that_falls_silent(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with silent(picture(), reads=True) as port:
        assert run("send", raw, "-p", port, "-o", tmp_path / "out.h5", "--timeout", 0.3) == 1
    assert "may not be complete: the server has said nothing for 0.3 s" in one_line(capsys.readouterr().err)
    with ismrmrd.File(tmp_path / "out.h5", "r") as file:
        assert len(list(file["images"]["image_1"].images)) == 1


def test_a_server_that_takes_nothing_is_named_as_such() -> None:
    endless = simulate_scan(shape=(16, 16), coils=2, acceleration=2, acs=8)
    with silent(picture(), reads=False) as port:
        result = send(endless.header, cycle(endless.acquisitions), port=port, timeout_s=0.5)
    assert result.problem == "the server has taken nothing for 0.5 s"
    assert len(result.images) == 1
    assert not result.closed


def test_a_scan_that_takes_longer_than_the_patience_is_no_silence(raw: Path) -> None:
    scan = simulate_scan(shape=(16, 16), coils=2, acceleration=2, acs=8)

    def slowly() -> Iterator[Message]:
        yield scan.acquisitions[0]
        threading.Event().wait(0.5)
        yield scan.acquisitions[1]

    with answering(picture(), Close()) as port:
        result = send(scan.header, slowly(), port=port, timeout_s=0.2)
    assert result.closed
    assert result.problem is None


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        (["--preset", "fast"], False),
        (["--preset", "fast", "--method", "bilevel_inr", "--set", "iterations=2"], False),
        (["--method", "cg_sense"], False),
        (["--preset", "fast", "--method", "cg_sense"], True),
        (["--preset", "fast", "-c", "cg_sense"], True),
    ],
)
def test_a_preset_without_effect_is_told(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], warned: bool
) -> None:
    (tmp_path / "default.yaml").write_text(
        "version: 1\nmethod: bilevel_inr\nnormalisation: kspace_max\nvalues: {levels: 2}\n"
        "presets: {fast: {iterations: 2}, standard: {iterations: 2}}\nprovenance: {from: by hand, source: test}\n"
    )
    common = ["--device", "cpu", "--hyperparameters", tmp_path]
    assert run("replay", raw, "-o", tmp_path / "out.h5", *common, *options) == 0
    told = "warning: preset 'fast' has no values for method 'cg_sense'"
    assert (told in capsys.readouterr().err) == warned


def test_send_without_a_server_ends_with_1(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("send", raw, "-p", 1, "-o", tmp_path / "out.h5") == 1
    assert "no server answers at 127.0.0.1:1" in one_line(capsys.readouterr().err)


def test_an_interrupt_ends_with_130_one_line_and_no_output(raw: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        command = [*CLI, "send", str(raw), "-p", port, "-o", str(tmp_path / "out.h5")]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell starts what runs in its background deaf to interrupts; the command must not inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        connection, _ = silent.accept()
        with connection, process:
            assert connection.recv(1)  # it is sending by now
            process.send_signal(signal.SIGINT)
            try:
                out, errors = process.communicate(timeout=10)
            except subprocess.TimeoutExpired:  # one that falls into a destructor is lost: a person presses again
                process.send_signal(signal.SIGINT)
                out, errors = process.communicate(timeout=10)
    assert (process.returncode, out) == (130, "")
    assert one_line(errors) == "inrecon: interrupted"
    assert list(tmp_path.iterdir()) == []


def test_check_ends_with_1_where_something_must_be_put_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("check") == 0
    assert capsys.readouterr().err == ""
    (tmp_path / "default.yaml").write_text("version: 1\nmethod: nonsense\n")
    assert run("check", tmp_path) == 1
    told = capsys.readouterr()
    assert "default.yaml" in told.out
    assert "must be put right" in one_line(told.err)


def test_doctor_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    found = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert found["torch"][0].isdigit()
    assert {"Python", "ismrmrd", "numpy", "torchkbnufft", "device", "tinycudann", "bart", "hyperparameters"} <= set(
        found
    )
    assert "files in" in found["hyperparameters"]


def test_the_server_listens_says_where_logs_to_a_file_and_stops(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    command = [*CLI, "serve", "--port", "0", "--http-port", "0", "--device", "cpu", "--logfile", str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        told = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)\n", line)
        assert told, line + process.stderr.read()
        with socket.create_connection(("127.0.0.1", int(told[1])), timeout=20) as connection:
            connection.sendall(serialise(Close()))
            assert connection.recv(10) == serialise(Close())
        second = subprocess.run(
            [*CLI, "serve", "--port", told[1], "--http-port", "0"], capture_output=True, text=True, timeout=20
        )
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=20)
    assert (process.returncode, out, errors) == (0, "", "")
    assert "connection 1: no image after" in log.read_text()
    assert second.returncode == 2
    assert f"cannot listen on 127.0.0.1:{told[1]}" in one_line(second.stderr)


def test_a_mistake_costs_no_torch_and_the_server_starts_without_it() -> None:
    names = "torch", "matplotlib", "skimage", "rich"
    code = "import inrecon_server.cli, inrecon_server.server, inrecon_server.client, inrecon_server.files, sys;"
    done = subprocess.run(
        [sys.executable, "-c", f"{code} print([name for name in {names} if name in sys.modules])"],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.stdout == "[]\n", done.stderr


def test_a_report_is_strict_json(tmp_path: Path) -> None:
    from inrecon_server.replay import write_report

    report = {"loss": float("nan"), "nested": [{"worst": (1.0, -float("inf"))}], "slice": 0, "fallback": None}
    write_report(tmp_path / "report.json", [report])

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    read = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert read == [{"loss": None, "nested": [{"worst": [1.0, None]}], "slice": 0, "fallback": None}]
