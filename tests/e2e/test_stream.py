"""`inrecon stream`: MRD streams through pipes, as other tools of the standard write and read them."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
from hearing import hear_interrupts
from ismrmrd.serialization import ConfigFile as NameOfConfig
from ismrmrd.serialization import ProtocolDeserializer, ProtocolSerializer
from ismrmrd.xsd import CreateFromDocument, ismrmrdHeader

from inrecon.simulate import SimulatedScan, simulate_scan, write_ismrmrd
from inrecon_server.cli import main
from inrecon_server.protocol import (
    Acquisition,
    Close,
    ConfigFile,
    ConfigText,
    Header,
    Image,
    Message,
    Parser,
    Query,
    Text,
    serialise,
)

COMMAND = [sys.executable, "-m", "inrecon_server.cli", "stream", "--device", "cpu"]
FEW_ITERATIONS = '<configuration><property name="iterations" value="20"/></configuration>'


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def movie() -> SimulatedScan:
    return simulate_scan(shape=(32, 32), coils=4, acceleration=2, acs=12, repetitions=3)


def wire(*messages: Message) -> bytes:
    return b"".join(map(serialise, messages))


def messages(data: bytes) -> list[Message]:
    parser = Parser(role="client")
    found = list(parser.feed(data))
    parser.end()
    return found


def images(data: bytes) -> list[ismrmrd.Image]:
    """The images of an output that is a whole stream: header, images, CLOSE."""
    header, *rest, close = messages(data)
    assert isinstance(header, Header)
    assert close == Close()
    assert all(isinstance(message, Image) for message in rest)
    return rest


def from_file(folder: Path, data: bytes, *arguments: str) -> tuple[int, bytes]:
    """Exit code and output of the command, run in this process on files."""
    (folder / "in").write_bytes(data)
    (folder / "out").unlink(missing_ok=True)
    code = main(["stream", "-i", str(folder / "in"), "-o", str(folder / "out"), "--device", "cpu", *arguments])
    return code, (folder / "out").read_bytes()


def replayed(folder: Path, scan: SimulatedScan, *arguments: str) -> list[ismrmrd.Image]:
    write_ismrmrd(folder / "raw.h5", scan)
    out = folder / "replayed.h5"
    assert main(["replay", str(folder / "raw.h5"), "-o", str(out), "--device", "cpu", *arguments]) == 0
    with ismrmrd.File(out, "r") as file:
        return list(file["images"]["image_1"].images)


def assert_same(found: list[ismrmrd.Image], meant: list[ismrmrd.Image]) -> None:
    for one, same in zip(found, meant, strict=True):
        assert one.data.dtype == same.data.dtype
        assert np.array_equal(one.data, same.data)
        heads = one.getHead(), same.getHead()
        for head in heads:
            head.attribute_string_len = 0  # times differ
        assert bytes(heads[0]) == bytes(heads[1])


@contextmanager
def process(*arguments: object, **streams: object) -> Iterator[subprocess.Popen[bytes]]:
    command = [*COMMAND, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        env=environment,
        preexec_fn=hear_interrupts,
        **streams,  # type: ignore[call-overload]
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def test_the_tools_of_the_standard_write_and_read_the_streams(movie: SimulatedScan, tmp_path: Path) -> None:
    sent = io.BytesIO()
    with ProtocolSerializer(sent) as writer:
        writer.serialize(NameOfConfig("zero_filled"))
        writer.serialize(CreateFromDocument(movie.header))
        for number, readout in enumerate(movie.acquisitions):
            writer.serialize(readout)
            if number % 10 == 0:
                writer.serialize(ismrmrd.Waveform.from_array(np.zeros((2, 3), np.uint32)))
    with process(stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        out, errors = running.communicate(sent.getvalue(), timeout=120)
    assert running.returncode == 0, errors
    assert out.startswith(sent.getvalue()[1026 : 1026 + 6])
    with ProtocolDeserializer(io.BytesIO(out)) as reader:
        header, *found = reader.deserialize()
    assert isinstance(header, ismrmrdHeader)
    assert header == CreateFromDocument(movie.header)
    assert_same(found, replayed(tmp_path, movie, "-c", "zero_filled"))
    for line in errors.decode().splitlines():
        assert line.startswith("inrecon: info: ")


def test_images_of_a_fit_are_those_of_replay_bit_for_bit(movie: SimulatedScan, tmp_path: Path) -> None:
    sent = wire(ConfigText(FEW_ITERATIONS), Header(movie.header), *movie.acquisitions, Close())
    code, out = from_file(tmp_path, sent, "--preset", "fast", "--dtype", "float")
    assert code == 0
    assert_same(images(out), replayed(tmp_path, movie, "-c", FEW_ITERATIONS, "--preset", "fast", "--dtype", "float"))


def test_named_pipes_are_opened_once_on_each_side(movie: SimulatedScan, tmp_path: Path) -> None:
    source, sink = tmp_path / "source", tmp_path / "sink"
    os.mkfifo(source)
    os.mkfifo(sink)
    sent = wire(Header(movie.header), *movie.acquisitions, Close())
    writing = threading.Thread(target=source.write_bytes, args=(sent,))
    with process("-i", source, "-o", sink, "-c", "zero_filled") as running:
        writing.start()
        out = sink.read_bytes()
        writing.join(60)
        assert running.wait(60) == 0
    assert_same(images(out), replayed(tmp_path, movie, "-c", "zero_filled"))


def test_an_image_is_out_before_more_is_in_and_ctrl_c_ends_it(movie: SimulatedScan) -> None:
    first_frame = [readout for readout in movie.acquisitions if readout.idx.repetition == 0]
    sent = wire(ConfigFile("zero_filled"), Header(movie.header), *first_frame)
    with process(stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdin.write(sent)
        running.stdin.flush()
        parser = Parser(role="client")
        found: list[Message] = []
        while not any(isinstance(message, Image) for message in found):
            found += parser.feed(os.read(running.stdout.fileno(), 1 << 16))
        assert [type(message) for message in found] == [Header, Image]
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
        assert running.stderr.read().decode().splitlines()[-1] == "inrecon: interrupted"


def test_a_reader_that_goes_ends_it_without_a_traceback(movie: SimulatedScan) -> None:
    sent = wire(ConfigFile("zero_filled"), Header(movie.header), *movie.acquisitions, Close())
    with process(stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.close()
        running.stdout = None
        _, errors = running.communicate(sent, timeout=120)
    assert running.returncode == 1
    assert b"Traceback" not in errors
    assert errors.splitlines()[-1] == b"inrecon: whoever reads the images has gone"


def test_the_header_is_sent_on_byte_for_byte(movie: SimulatedScan, tmp_path: Path) -> None:
    odd = b"\n<?xml version='1.0'?><!-- \xc3\xa9 -->" + movie.header.partition(b"?>")[2] + b"\0\0"
    header = b"\3\0" + len(odd).to_bytes(4, "little") + odd
    sent = wire(ConfigFile("zero_filled")) + header + wire(*movie.acquisitions, Close())
    code, out = from_file(tmp_path, sent)
    assert code == 0
    assert out.startswith(header)
    assert len(images(out)) == 3


@pytest.mark.parametrize("ending", ["no CLOSE", "cut", "nonsense", "not finite", "channels"])
def test_what_is_complete_before_the_stream_breaks_is_written(
    movie: SimulatedScan, tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    last = movie.acquisitions[-1]
    more = {
        "no CLOSE": b"",
        "cut": serialise(last)[:-5],
        "nonsense": b"\xff" * 100,
        "not finite": serialise(Acquisition(last.getHead(), np.full_like(last.data, np.nan))),
        "channels": serialise(Acquisition.from_array(last.data[:2])),
    }
    told = {
        "no CLOSE": "without CLOSE",
        "cut": "ended inside ACQUISITION",
        "nonsense": "unknown message id 65535",
        "not finite": "finite",
        "channels": "2 channels in a scan of 4",
    }
    two = [readout for readout in movie.acquisitions if readout.idx.repetition < 2]
    third = [readout for readout in movie.acquisitions if readout.idx.repetition == 2][:5]
    sent = wire(ConfigFile("zero_filled"), Header(movie.header), *two, *third) + more[ending]
    code, out = from_file(tmp_path, sent)
    assert code == 1
    assert [image.repetition for image in images(out)] == [0, 1]
    assert told[ending] in capsys.readouterr().err.splitlines()[-1]


def test_frames_that_fail_cost_their_images_and_the_exit_code(
    movie: SimulatedScan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readouts = [readout for readout in movie.acquisitions if readout.idx.repetition == 0]
    spoilt = [Acquisition(readout.getHead(), np.zeros_like(readout.data)) for readout in readouts[-3:]]
    for readout in spoilt:
        readout.idx.repetition = 1
        readout.data[:] = 3e38
    sent = wire(ConfigFile("cg_sense"), Header(movie.header), *readouts, *spoilt, Close())
    code, out = from_file(tmp_path, sent)
    assert code == 1
    assert [image.repetition for image in images(out)] == [0]
    assert capsys.readouterr().err.splitlines()[-1] == "inrecon: 1 frames failed"


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (lambda movie: b"", "the input is empty"),
        (lambda movie: b"\3", "ended inside a message id"),
        (lambda movie: b"GET / HTTP/1.1\r\n\r\n", "HTTP"),
        (lambda movie: wire(Close()), "no header"),
        (lambda movie: wire(ConfigFile("inr"), Close()), "no header"),
        (lambda movie: wire(*movie.acquisitions), "before ISMRMRD header"),
        (lambda movie: wire(Header(b"<garbage"), *movie.acquisitions, Close()), "not well-formed"),
        (lambda movie: wire(ConfigFile("cg_sens"), Header(movie.header), *movie.acquisitions, Close()), "'cg_sense'"),
        (
            lambda movie: wire(ConfigText(FEW_ITERATIONS.replace("iter", "it")), Header(movie.header)) + rest(movie),
            "no field",
        ),
    ],
)
def test_of_what_no_image_can_be_made_nothing_is_written(
    movie: SimulatedScan, tmp_path: Path, capsys: pytest.CaptureFixture[str], sent: object, told: str
) -> None:
    code, out = from_file(tmp_path, sent(movie), "--method", "bilevel_inr")  # type: ignore[operator]
    assert (code, out) == (2, b"")
    assert told in capsys.readouterr().err.splitlines()[-1]


def rest(movie: SimulatedScan) -> bytes:
    return wire(*movie.acquisitions, Close())


def test_a_scan_without_an_image_is_a_whole_stream_and_a_failure(
    movie: SimulatedScan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = [readout for readout in movie.acquisitions if readout.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]
    assert noise
    code, out = from_file(tmp_path, wire(Header(movie.header), *noise, Close()), "-c", "zero_filled")
    assert (code, out) == (1, wire(Header(movie.header), Close()))
    assert capsys.readouterr().err.splitlines()[-1] == "inrecon: no image"
    code, out = from_file(tmp_path, wire(ConfigFile("null"), Header(movie.header), *noise, Close()))
    assert (code, out) == (0, wire(Header(movie.header), Close()))


def test_what_the_stream_carries_comes_before_the_default_and_options_before_both(
    movie: SimulatedScan, tmp_path: Path
) -> None:
    parameters = Text('{"parameters": {"config": "zero_filled", "dtype": "float"}}')
    head = wire(Query("gadgetron::version", 1), Header(movie.header), parameters)
    code, out = from_file(tmp_path, head + rest(movie), "-c", "cg_sense", "--dtype", "complex")
    assert code == 0
    assert {str(image.meta["inrecon_method"]) for image in images(out)} == {"zero_filled"}
    assert {image.data.dtype for image in images(out)} == {np.dtype(np.complex64)}


def test_the_input_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "stream"
    path.write_bytes(b"kept")
    assert main(["stream", "-i", str(path), "-o", str(path)]) == 2
    assert "is the input" in capsys.readouterr().err
    assert path.read_bytes() == b"kept"
