"""The module that Gadgetron starts for `<execute>`: these tests play Gadgetron's end of the wire."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import ismrmrd
import numpy as np
import pytest
from gadgetron.external import Connection
from gadgetron.types.recon_data import ReconBit, ReconBuffer, ReconData, SamplingDescription, write_recon_data
from hearing import read_all

from inrecon import gadget
from inrecon.acquire import raw_frames
from inrecon.frame import Request, SeriesBySpace
from inrecon.gadget import inr_recon
from inrecon.hyperparams import HyperparameterFiles
from inrecon.simulate import SimulatedScan, simulate_scan
from inrecon.stream import reconstruct
from inrecon.testing import write_quick_default
from inrecon_server.config import configure
from inrecon_server.protocol import Close, ConfigText, Error, Header, Image, Message, Parser, Waveform, serialise

if TYPE_CHECKING:
    from conftest import RunningServer

TIMEOUT_S = 60
CHAINS = files("inrecon") / "config" / "gadgetron"
CG_SENSE = {"method": "cg_sense"}
TINY_INR = {"method": "bilevel_inr", "iterations": "5", "levels": "3", "log2_table_size": "8", "width": "8"}
NOISE = ismrmrd.ACQ_IS_NOISE_MEASUREMENT
CALIBRATION = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION
BOTH = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING
COUNTERS = ("kspace_encode_step_1", "kspace_encode_step_2", "slice", "phase", "contrast", "repetition", "set")
PATIENT = "Doe^Jane"

Readouts = Iterable[ismrmrd.Acquisition]
Sort = Callable[[Readouts], bytes]


@pytest.fixture(autouse=True)
def the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INRECON_DEVICE", "cpu")


@pytest.fixture(scope="module")
def movie() -> SimulatedScan:
    """Two slices, twice, of a patient, without noise readouts, which Gadgetron does not sort into anything."""
    scan = simulate_scan(shape=(32, 32), coils=4, acceleration=2, acs=12, slices=2, repetitions=2)
    patient = f"<subjectInformation><patientName>{PATIENT}</patientName></subjectInformation><studyInformation>"
    header = scan.header.decode().replace("<studyInformation>", patient).encode()
    assert PATIENT.encode() in header
    return replace(scan, header=header, acquisitions=tuple(r for r in scan.acquisitions if not r.is_flag_set(NOISE)))


# What Gadgetron sends.


def configuration(properties: Mapping[str, str]) -> str:
    """The `<configuration>` of an external node, as Gadgetron serialises it."""
    lines = "".join(f'\t<property name="{name}" value="{value}" />\n' for name, value in properties.items())
    return f'<?xml version="1.0"?>\n<configuration>\n{lines}</configuration>\n'


def beginning(scan: SimulatedScan, properties: Mapping[str, str] = CG_SENSE) -> bytes:
    return serialise(ConfigText(configuration(properties))) + serialise(Header(scan.header))


def one_by_one(readouts: Readouts) -> bytes:
    return b"".join(map(serialise, readouts))


def waveform() -> Waveform:
    return Waveform.from_array(np.arange(6, dtype=np.uint32).reshape(2, 3), waveform_id=0)


def bucket(readouts: Readouts) -> bytes:
    """A bucket, with a waveform (AcquisitionBucketWriter.cpp)."""
    readouts = list(readouts)
    data = [r for r in readouts if not r.is_flag_set(CALIBRATION)]
    reference = [r for r in readouts if r.is_flag_set(CALIBRATION) or r.is_flag_set(BOTH)]

    def sizes(members: list[ismrmrd.Acquisition]) -> list[int]:
        return [len(members), 340 * len(members), sum(m.data.nbytes for m in members), 0]

    def bodies(members: list[ismrmrd.Acquisition]) -> bytes:
        return b"".join([*(bytes(m.getHead()) for m in members), *(m.data.tobytes() for m in members)])

    def statistics(members: list[ismrmrd.Acquisition]) -> bytes:
        found = [sorted({getattr(m.idx, name) for m in members}) for name in (*COUNTERS, "segment", "average")]
        sets = [struct.pack(f"<Q{len(values)}H", len(values), *values) for values in found]
        return struct.pack("<Q", 1) + b"".join(sets)

    of_data, of_reference, heart = statistics(data), statistics(reference), waveform()
    numbers = [*sizes(data), *sizes(reference), len(of_data), len(of_reference), 1, 40, heart.data.nbytes]
    parts = [bodies(data), of_data, bodies(reference), of_reference, bytes(heart.getHead()), heart.data.tobytes()]
    return struct.pack("<H13Q", 1050, *numbers) + b"".join(parts)


def buffer(readouts: Readouts) -> ReconBuffer:
    """Readouts of one slice as BucketToBufferGadget sorts them."""
    readouts = list(readouts)
    coils, samples = readouts[0].data.shape
    data = np.zeros((samples, 32, 1, coils, 1, 1, 1), np.complex64)
    headers = np.empty((32, 1, 1, 1, 1), object)
    for place in np.ndindex(headers.shape):
        headers[place] = ismrmrd.AcquisitionHeader()
    for readout in readouts:
        line, pre, post = readout.idx.kspace_encode_step_1, readout.discard_pre, readout.discard_post
        start = pre if readout.center_sample == samples // 2 else samples // 2 - readout.center_sample
        data[start : start + samples - pre - post, line, 0, :, 0, 0, 0] = readout.data[:, pre : samples - post].T
        headers[line, 0, 0, 0, 0] = readout.getHead()
    sampling = SamplingDescription()
    sampling.sampling_limits[0].max, sampling.sampling_limits[0].center = samples - 1, samples // 2
    return ReconBuffer(data, None, None, headers, sampling)


def buffers(readouts: Readouts) -> bytes:
    """A message for each slice of each repetition."""
    readouts = list(readouts)
    wire = io.BytesIO()
    for place in sorted({(r.idx.repetition, r.idx.slice) for r in readouts}):
        members = [r for r in readouts if (r.idx.repetition, r.idx.slice) == place]
        data = buffer(r for r in members if not r.is_flag_set(CALIBRATION))
        reference = buffer(r for r in members if r.is_flag_set(CALIBRATION) or r.is_flag_set(BOTH))
        write_recon_data(wire, ReconData([ReconBit(data, reference)]))
    return wire.getvalue()


def without_oversampling(readouts: Readouts) -> Readouts:
    """As RemoveROOversamplingGadget does it."""
    for readout in readouts:
        image = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(readout.data, 1), norm="ortho"), 1)
        half = readout.data.shape[1] // 4
        cropped = np.fft.ifftshift(image[:, half:-half], 1)
        head = readout.getHead()
        head.number_of_samples, head.center_sample = cropped.shape[1], head.center_sample // 2
        data = np.fft.fftshift(np.fft.fft(cropped, norm="ortho"), 1).astype(np.complex64)
        yield ismrmrd.Acquisition(head, data)


# What Gadgetron gets.


@contextmanager
def module_in_a_thread() -> Iterator[socket.socket]:
    """Gadgetron's end of a connection that is served as `python -m gadgetron` does it, and must be done in time."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with Connection(theirs) as connection:
            inr_recon(connection)

    thread = threading.Thread(target=serve, daemon=True)
    ours.settimeout(TIMEOUT_S)
    with ours:
        thread.start()
        yield ours
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()


def answers(*parts: bytes) -> list[Message]:
    with module_in_a_thread() as connection:
        connection.sendall(b"".join(parts))
        return read_all(connection)


@contextmanager
def module_process() -> Iterator[tuple[socket.socket, list[str]]]:
    """Gadgetron's end of a connection with the process that it starts, and what that will have written to its log;
    it must end by itself."""
    log: list[str] = []
    with socket.create_server(("localhost", 0)) as listening:
        listening.settimeout(TIMEOUT_S)
        command = ["-m", "gadgetron", str(listening.getsockname()[1]), "inrecon.gadget", "inr_recon"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([sys.executable, *command], env=environment, stderr=subprocess.PIPE, text=True)
        try:
            connection, _ = listening.accept()
            connection.settimeout(TIMEOUT_S)
            with connection:
                yield connection, log
            log.append(process.communicate(timeout=TIMEOUT_S)[1])
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == 0, log


def images_of(scan: SimulatedScan, request: Request) -> list[ismrmrd.Image]:
    """What the rooms make of the readouts without a wire."""
    series: SeriesBySpace = {}
    images: list[ismrmrd.Image] = []
    shipped = HyperparameterFiles.load()
    for raw in raw_frames(scan.header, scan.acquisitions):
        result = reconstruct(raw, request=request, hyperparameters=shipped, device="cpu", series=series)
        series = result.series
        images.extend(result.images)
    return images


def assert_same(images: Iterable[Message], others: Iterable[ismrmrd.Image]) -> None:
    """Headers, pixels, and attributes but the seconds that stages took."""

    def facts(image: ismrmrd.Image) -> tuple[object, ...]:
        head = image.getHead()
        head.attribute_string_len = 0
        return bytes(head), {k: v for k, v in image.meta.items() if not k.startswith("inrecon_seconds")}

    for image, other in zip(images, others, strict=True):
        assert isinstance(image, Image)
        assert facts(image) == facts(other)
        assert image.data.dtype == other.data.dtype
        np.testing.assert_array_equal(image.data, other.data)


# Whole scans.


@pytest.mark.parametrize("properties", [CG_SENSE, TINY_INR], ids=["cg_sense", "bilevel_inr"])
def test_the_real_process_gives_what_the_server_gives(
    server: RunningServer, scan: SimulatedScan, properties: dict[str, str]
) -> None:
    with module_process() as (connection, log):
        connection.sendall(beginning(scan, properties) + serialise(waveform()) + one_by_one(scan.acquisitions))
        connection.sendall(serialise(Close()))
        *images, close = read_all(connection)
        assert close == Close()
        assert connection.recv(1) == b""
    of_server = server.answers(
        ConfigText(configuration({**properties, "peer": "gadgetron"})), Header(scan.header), *scan.acquisitions, Close()
    )
    assert [type(message) for message in of_server] == [Image, Close]
    assert_same(images, of_server[:-1])
    assert "1 images; 1 frames of 22 imaging readouts" in log[0]


@pytest.mark.parametrize("sort", [one_by_one, bucket, buffers])
def test_every_kind_of_input_gives_the_same_images(movie: SimulatedScan, sort: Sort) -> None:
    *images, close = answers(beginning(movie), sort(movie.acquisitions), serialise(Close()))
    assert close == Close()
    assert len(images) == 4
    assert_same(images, images_of(movie, Request(method="cg_sense")))


@pytest.mark.parametrize("sort", [bucket, buffers])
@pytest.mark.parametrize(
    "fields",
    [
        {"discard_pre": 10, "discard_post": 3},
        {"center_sample": 30, "discard_pre": 4},
    ],
)
def test_readouts_are_taken_out_of_buckets_and_buffers_as_they_were(
    movie: SimulatedScan, sort: Sort, fields: dict[str, int]
) -> None:
    readouts = [ismrmrd.Acquisition(r.getHead(), r.data) for r in movie.acquisitions if r.idx.repetition == 0]
    for readout in readouts:
        for name, value in fields.items():
            setattr(readout, name, value)
        if readout.idx.kspace_encode_step_1 % 2:
            readout.clear_flag(BOTH)
            readout.set_flag(CALIBRATION)
    scan = replace(movie, acquisitions=tuple(readouts))
    *images, _ = answers(beginning(scan), sort(readouts), serialise(Close()))
    assert_same(images, images_of(scan, Request(method="cg_sense")))


@pytest.mark.parametrize("sort", [bucket, buffers])
def test_oversampling_that_gadgetron_has_removed_is_not_removed_again(movie: SimulatedScan, sort: Sort) -> None:
    cropped = sort(without_oversampling(movie.acquisitions))
    *images, _ = answers(beginning(movie, {"method": "zero_filled", "dtype": "float"}), cropped, serialise(Close()))
    for image, other in zip(images, images_of(movie, Request(method="zero_filled", dtype="float")), strict=True):
        # Not the same numbers: the noise is told by other samples. Removed twice, it differs by 0.7.
        assert np.linalg.norm(image.data - other.data) < 0.02 * np.linalg.norm(other.data)


def test_images_come_while_the_scan_goes_on(movie: SimulatedScan) -> None:
    half = len(movie.acquisitions) // 2
    with module_in_a_thread() as connection:
        parser = Parser(role="client")
        images: list[Message] = []
        connection.sendall(beginning(movie) + one_by_one(movie.acquisitions[:half]))
        while len(images) < 2:
            images.extend(parser.feed(connection.recv(1 << 16)))
        connection.sendall(one_by_one(movie.acquisitions[half:]) + serialise(Close()))
        *more, close = read_all(connection)
    assert close == Close()
    assert_same([*images, *more], images_of(movie, Request(method="cg_sense")))


def test_hyperparameter_files_are_those_of_the_environment(
    scan: SimulatedScan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_quick_default(tmp_path, iterations=5)
    monkeypatch.setenv("INRECON_HYPERPARAMETERS", str(tmp_path))
    image, _ = answers(beginning(scan, {}), one_by_one(scan.acquisitions), serialise(Close()))
    assert image.meta["inrecon_method"] == "bilevel_inr"
    assert image.meta["inrecon_hyperparameter_iterations"] == "5 (preset standard)"
    monkeypatch.setenv("INRECON_HYPERPARAMETERS", str(tmp_path / "none"))
    error, close = answers(beginning(scan, {}), serialise(Close()))
    assert "no hyperparameter files" in error.text
    assert close == Close()


@pytest.mark.parametrize("readouts", [0, 32], ids=["nothing", "noise"])
def test_a_scan_without_images_ends_with_close(scan: SimulatedScan, readouts: int) -> None:
    assert answers(beginning(scan), one_by_one(scan.acquisitions[:readouts]), serialise(Close())) == [Close()]


def test_a_prior_of_an_earlier_scan_is_not_passed_over_in_silence(
    scan: SimulatedScan, caplog: pytest.LogCaptureFixture
) -> None:
    properties = {"live": "true", "prior": PATIENT}
    assert answers(beginning(scan, properties), serialise(Close())) == [Close()]
    assert "known to a server only" in caplog.text
    assert PATIENT not in caplog.text


# What is wrong.


@pytest.mark.parametrize(
    ("properties", "told"),
    [
        ({"method": "cg_sens"}, "unknown method 'cg_sens': did you mean 'cg_sense'?"),
        ({"method": "cg_sense", "iterationz": "3"}, "method 'cg_sense' has no field 'iterationz'"),
        ({"method": "cg_sense", "iterations": "many"}, "cg_sense.iterations must be int, not 'many'"),
        ({"iterationz": "3"}, "has no field 'iterationz'"),
        ({"preset": "best"}, "'best': known are fast, standard, quality"),
        ({"dtype": "int16"}, "'int16': known are complex, float, uint16"),
    ],
)
def test_what_cannot_be_asked_for_is_an_error(scan: SimulatedScan, properties: dict[str, str], told: str) -> None:
    error, close = answers(beginning(scan, properties), one_by_one(scan.acquisitions), serialise(Close()))
    assert isinstance(error, Error)
    assert told in error.text
    assert close == Close()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("<trajectory>cartesian", "<trajectory>radial", "no encoding of the header is 'cartesian'"),
        ("<center>16</center>", "<center>99</center>", "must lie in the range of the limits"),
    ],
)
def test_a_header_that_cannot_be_used_is_an_error(scan: SimulatedScan, old: str, new: str, told: str) -> None:
    header = scan.header.decode().replace(old, new)
    assert new in header
    error, close = answers(beginning(replace(scan, header=header.encode())), serialise(Close()))
    assert told in error.text
    assert close == Close()


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (serialise(ismrmrd.Image.from_array(np.zeros((2, 2), np.float32), transpose=False)), "a message of kind 1022"),
        (struct.pack("<H", 1051), "a message of kind 1051"),
    ],
)
def test_a_message_that_has_no_place_here_is_an_error(scan: SimulatedScan, message: bytes, told: str) -> None:
    error, close = answers(beginning(scan), message, serialise(Close()))
    assert told in error.text
    assert close == Close()


def test_a_buffer_that_gadgetron_did_not_sort_is_an_error(movie: SimulatedScan) -> None:
    def error_of(wrong: ReconBuffer) -> str:
        wire = io.BytesIO()
        write_recon_data(wire, ReconData([ReconBit(wrong)]))
        error, close = answers(beginning(movie), wire.getvalue(), serialise(Close()))
        assert close == Close()
        return error.text

    fewer_headers, elsewhere = buffer(movie.acquisitions[:1]), buffer(movie.acquisitions[:1])
    fewer_headers.headers = fewer_headers.headers[1:]
    assert "(64, 32, 1, 4, 1, 1, 1) has headers (31, 1, 1, 1, 1)" in error_of(fewer_headers)
    next(head for head in elsewhere.headers.flat if head.number_of_samples).center_sample = 3
    assert "a readout of 64 samples does not lie inside a buffer of 64" in error_of(elsewhere)


def test_a_readout_that_ends_the_scan_is_named_after_the_images_before_it(
    movie: SimulatedScan, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    readouts = [ismrmrd.Acquisition(r.getHead(), r.data.copy()) for r in movie.acquisitions]
    next(r for r in readouts if r.idx.repetition == 1 and r.idx.slice == 1).data[0, 0] = np.nan
    *images, error, close = answers(beginning(movie), one_by_one(readouts), serialise(Close()))
    assert_same(images, images_of(movie, Request(method="cg_sense"))[:3])
    assert error.text.startswith(
        "slice 1, contrast 0, phase 0, repetition 1, set 0: the readout of line 0, slice 1, repetition 1 holds values"
    )
    assert close == Close()
    assert error.text in caplog.text
    assert PATIENT not in caplog.text


def test_a_frame_that_fails_is_named_and_costs_no_other(movie: SimulatedScan) -> None:
    readouts = [ismrmrd.Acquisition(r.getHead(), r.data.copy()) for r in movie.acquisitions]
    for readout in readouts:
        if (readout.idx.repetition, readout.idx.slice) == (0, 1):
            readout.data[:] *= np.float32(1e38)
    *images, error, close = answers(beginning(movie), one_by_one(readouts), serialise(Close()))
    assert [(image.repetition, image.slice) for image in images] == [(0, 0), (1, 0), (1, 1)]
    assert error.text.startswith("slice 1, contrast 0, phase 0, repetition 0, set 0: ")
    assert "repetition 1" not in error.text
    assert close == Close()


def test_of_many_frames_that_fail_the_first_are_named(movie: SimulatedScan, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory\nsome advice")

    monkeypatch.setattr("inrecon.stream.reconstruct", fail)  # whatever is attempted
    later = [ismrmrd.Acquisition(r.getHead(), r.data) for r in movie.acquisitions]
    for readout in later:
        readout.idx.repetition += 2
    error, close = answers(beginning(movie), one_by_one([*movie.acquisitions, *later]), serialise(Close()))
    *five, more = error.text.split("; ")
    assert [text.rpartition(": ")[2] for text in five] == ["out of memory"] * 5
    assert more == "and 3 more frames"
    assert close == Close()


def test_what_nobody_thought_of_is_an_error(scan: SimulatedScan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gadget, "reconstruct", None)
    error, close = answers(beginning(scan), one_by_one(scan.acquisitions), serialise(Close()))
    assert error == Error("internal error: TypeError; the log says more")
    assert close == Close()


def test_gadgetron_is_heard_out_after_an_error(scan: SimulatedScan) -> None:
    """A socket closed on what was not read resets the connection, and takes the error with it."""
    with module_in_a_thread() as connection:
        connection.sendall(beginning(scan, {"method": "cg_sens"}) + 40 * one_by_one(scan.acquisitions))
        error, close = read_all(connection)
    assert isinstance(error, Error)
    assert close == Close()


def test_the_real_process_reports_an_error_and_ends(movie: SimulatedScan) -> None:
    with module_process() as (connection, log):
        connection.sendall(beginning(movie, {"method": "cg_sens"}) + one_by_one(movie.acquisitions))
        error, close = read_all(connection)
    assert "did you mean 'cg_sense'" in error.text
    assert close == Close()
    assert error.text in log[0]
    assert PATIENT not in log[0]


# Gadgetron that vanishes.


def test_the_real_process_ends_when_gadgetron_vanishes(scan: SimulatedScan) -> None:
    with module_process() as (connection, log):
        connection.sendall(beginning(scan) + one_by_one(scan.acquisitions[:40]))
    assert "Gadgetron is gone: the stream ended without CLOSE" in log[0]


@pytest.mark.parametrize("cut", [0, 1, 100], ids=["between messages", "inside an id", "inside a readout"])
def test_a_stream_that_ends_without_close_ends_the_module(scan: SimulatedScan, cut: int) -> None:
    readouts = one_by_one(scan.acquisitions)
    with module_in_a_thread() as connection:
        connection.sendall(beginning(scan) + readouts + readouts[:cut])
        connection.shutdown(socket.SHUT_WR)
        *images, close = read_all(connection)
    assert len(images) == 1
    assert close == Close()


def test_an_image_that_nobody_takes_ends_the_module(scan: SimulatedScan, caplog: pytest.LogCaptureFixture) -> None:
    with module_in_a_thread() as connection:
        connection.sendall(beginning(scan) + one_by_one(scan.acquisitions[:-1]))
        connection.shutdown(socket.SHUT_RD)
        connection.sendall(one_by_one(scan.acquisitions[-1:]) + serialise(Close()))
    assert "Gadgetron is gone" in caplog.text


# Chains.


@pytest.mark.parametrize("name", ["inr_execute", "inr_after_gadgets"])
def test_a_chain_is_one_that_gadgetron_reads_and_our_server_understands(name: str) -> None:
    text = (CHAINS / f"{name}.xml").read_text(encoding="utf-8")
    root = ET.fromstring(text)
    assert [part.tag for part in root] == ["version", "readers", "writers", "stream"]
    *gadgets, external = root.find("stream")
    for part in (*root.find("readers"), *root.find("writers"), *gadgets):
        assert part.findtext("dll")
        assert part.findtext("classname")
    assert external.tag == "external"
    assert external[0].tag in ("execute", "connect")
    assert configure(text).request == Request()
    for module in external.iter("execute"):
        assert module.get("type") == "python"
        assert callable(getattr(import_module(module.get("name")), module.get("target")))
