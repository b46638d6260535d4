"""Noise that is a measurement of its own, and the scans that name it."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
from ismrmrd import ACQ_IS_NOISE_MEASUREMENT, Acquisition, Meta

from inrecon.simulate import SimulatedScan, simulate_scan, write_ismrmrd
from inrecon_server.cli import main
from inrecon_server.client import ClientResult, send
from inrecon_server.protocol import Close, ConfigText, DependencyQuery, Image, Query

if TYPE_CHECKING:
    from conftest import RunningServer, RunServer

NOISE = "default_measurement_dependencies.xml"
_NUMBERS = count()


@pytest.fixture
def name() -> str:
    """A measurement ID that no other test has."""
    return f"45387_subject_study_{next(_NUMBERS)}"


@pytest.fixture(scope="session")
def scan() -> SimulatedScan:
    """A noisy one, so that it shows whether the coils were prewhitened, and how."""
    return simulate_scan(shape=(32, 32), coils=4, acceleration=2, acs=12, snr=8)


def noise_of(scan: SimulatedScan) -> list[Acquisition]:
    return [one for one in scan.acquisitions if one.is_flag_set(ACQ_IS_NOISE_MEASUREMENT)]


def imaging_of(scan: SimulatedScan) -> list[Acquisition]:
    return [one for one in scan.acquisitions if not one.is_flag_set(ACQ_IS_NOISE_MEASUREMENT)]


def header(scan: SimulatedScan, name: str, *, noise: str | None = None, labels: Sequence[str] | None = None) -> bytes:
    """The header of measurement `name`, which depends on measurement `noise` and has coils named by `labels`."""
    text = scan.header.decode().replace("<measurementID>simulated<", f"<measurementID>{name}<")
    if noise is not None:
        dependency = f"<dependencyType>NOISE</dependencyType><measurementID>{noise}</measurementID>"
        place = "</protocolName>"
        text = text.replace(place, f"{place}<measurementDependency>{dependency}</measurementDependency>")
    if labels is not None:
        named = "".join(
            f"<coilLabel><coilNumber>{n}</coilNumber><coilName>{label}</coilName></coilLabel>"
            for n, label in enumerate(labels)
        )
        text = re.sub(r"(\s*<coilLabel>.*</coilLabel>)", named, text, flags=re.DOTALL)
    return text.encode()


def ask(
    server: RunningServer, header: bytes, acquisitions: Sequence[Acquisition], config: str = "cg_sense"
) -> ClientResult:
    result = send(header, acquisitions, port=server.port, config=config, timeout_s=30)
    assert result.closed
    assert not told(result, "ERROR")
    return result


def told(result: ClientResult, level: str) -> list[str]:
    return [text.removeprefix(level).strip() for text in result.texts if text.startswith(level)]


def only_image(result: ClientResult) -> Image:
    (image,) = result.images
    return image


def send_noise(server: RunningServer, scan: SimulatedScan, name: str, config: str = NOISE) -> ClientResult:
    result = ask(server, header(scan, name), noise_of(scan), config)
    assert result.images == []
    assert "4 channels, 2048 samples" in " ".join(told(result, "INFO"))
    return result


def send_dependent(server: RunningServer, scan: SimulatedScan, name: str) -> ClientResult:
    return ask(server, header(scan, "dependent", noise=name), imaging_of(scan))


@pytest.fixture(scope="session")
def inline(server: RunningServer, scan: SimulatedScan) -> Image:
    """The image of a scan that has its noise readouts in itself."""
    return only_image(ask(server, header(scan, "inline"), scan.acquisitions))


@pytest.fixture(scope="session")
def by_corners(server: RunningServer, scan: SimulatedScan) -> Image:
    """The image of a scan whose noise nobody has measured."""
    return only_image(ask(server, header(scan, "no noise"), imaging_of(scan)))


def assert_whitened_as(result: ClientResult, inline: Image) -> None:
    image = only_image(result)
    assert image.meta["inrecon_prewhitened_by"] == "noise readouts"
    assert np.array_equal(image.data, inline.data)
    assert not told(result, "WARNING")


def assert_not_whitened(result: ClientResult, by_corners: Image, reason: str) -> None:
    image = only_image(result)
    assert image.meta["inrecon_prewhitened_by"] == "corners"
    assert np.array_equal(image.data, by_corners.data)
    (warning,) = told(result, "WARNING")
    assert reason in warning
    assert warning.endswith("noise is estimated from the data instead")


@pytest.mark.parametrize("config", [NOISE, "default_measurement_dependencies", "cg_sense", "inr"])
def test_a_dependent_scan_has_the_image_that_it_has_with_its_noise_inline(
    server: RunningServer, scan: SimulatedScan, inline: Image, by_corners: Image, name: str, config: str
) -> None:
    assert not np.array_equal(inline.data, by_corners.data)
    send_noise(server, scan, name, config)
    result = send_dependent(server, scan, name)
    assert_whitened_as(result, inline)
    assert "the noise of an earlier measurement is used: 2048 samples" in told(result, "INFO")


def test_the_command_sends_a_noise_scan(
    server: RunningServer,
    scan: SimulatedScan,
    inline: Image,
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured = dataclasses.replace(scan, header=header(scan, name), acquisitions=tuple(noise_of(scan)))
    write_ismrmrd(tmp_path / "noise.h5", measured)
    assert main(["send", str(tmp_path / "noise.h5"), "-p", str(server.port), "-c", NOISE]) == 0
    assert "is kept for scans that name this one" in capsys.readouterr().out
    assert_whitened_as(send_dependent(server, scan, name), inline)


def test_noise_readouts_among_imaging_ones_are_kept_too(
    server: RunningServer, scan: SimulatedScan, inline: Image, name: str
) -> None:
    result = ask(server, header(scan, name), scan.acquisitions)
    assert [text for text in told(result, "INFO") if "48 h at most" in text]
    assert_whitened_as(result, inline)
    assert_whitened_as(send_dependent(server, scan, name), inline)


def test_noise_readouts_of_the_scan_itself_win(
    server: RunningServer, scan: SimulatedScan, inline: Image, name: str
) -> None:
    louder = [copy.deepcopy(one) for one in noise_of(scan)]
    for one in louder:
        one.data[0] *= 10
    ask(server, header(scan, name), louder, NOISE)
    for noise in (name, f"{name} that nobody knows"):
        result = ask(server, header(scan, "dependent", noise=noise), scan.acquisitions)
        assert_whitened_as(result, inline)
        assert not [text for text in told(result, "INFO") if "earlier measurement" in text]


def test_a_noise_scan_makes_no_image_even_of_imaging_readouts(
    server: RunningServer, scan: SimulatedScan, name: str
) -> None:
    result = ask(server, header(scan, name), scan.acquisitions, NOISE)
    assert result.images == []
    start, kept, summary = told(result, "INFO")
    assert start.endswith("noise is kept for later scans, no images are made")
    assert "is kept for scans that name this one" in kept
    assert f"{len(imaging_of(scan))} that are not noise" in summary


def test_a_noise_scan_without_a_measurement_id_is_told_that_it_is_lost(
    server: RunningServer, scan: SimulatedScan
) -> None:
    result = ask(server, header(scan, ""), noise_of(scan), NOISE)
    (warning,) = told(result, "WARNING")
    assert "no measurementID" in warning
    assert told(ask(server, header(scan, ""), scan.acquisitions), "WARNING") == []


def reordered(acquisitions: Sequence[Acquisition], order: list[int]) -> list[Acquisition]:
    copies = [copy.deepcopy(one) for one in acquisitions]
    for one in copies:
        one.resize(one.number_of_samples, len(order))
    for one, original in zip(copies, acquisitions, strict=True):
        one.data[:] = original.data[order]
    return copies


def test_coils_in_another_order_are_found_by_their_names(server: RunningServer, scan: SimulatedScan, name: str) -> None:
    order = [2, 0, 3, 1]
    labels = [f"loop{coil}" for coil in order]
    inline = ask(server, header(scan, "inline", labels=labels), reordered(scan.acquisitions, order))
    send_noise(server, scan, name)
    found = ask(server, header(scan, "dependent", noise=name, labels=labels), reordered(imaging_of(scan), order))
    unnamed = ask(server, header(scan, "dependent", noise=name, labels=()), reordered(imaging_of(scan), order))
    right, wrong = (
        np.abs(only_image(one).data.astype(int) - only_image(inline).data).max() for one in (found, unnamed)
    )
    # Sums over samples need not be the same to the last bit in another order of the coils.
    assert right <= 1 < wrong
    assert not told(found, "WARNING")


def test_the_noise_of_more_coils_serves_those_that_are_used(
    server: RunningServer, scan: SimulatedScan, name: str
) -> None:
    used = [3, 1]
    labels = [f"loop{coil}" for coil in used]
    inline = ask(server, header(scan, "inline", labels=labels), reordered(scan.acquisitions, used))
    send_noise(server, scan, name)
    found = ask(server, header(scan, "dependent", noise=name, labels=labels), reordered(imaging_of(scan), used))
    assert only_image(found).meta["inrecon_prewhitened_by"] == "noise readouts"
    assert np.abs(only_image(found).data.astype(int) - only_image(inline).data).max() <= 1


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ((), "the noise measurement has 3 channels, the scan 4, and no coil labels tell which are the same"),
        (("a", "b", "c"), "2 of the scan's 4 coils are not among the 3 of its noise measurement"),
    ],
)
def test_noise_of_other_coils_is_not_used(
    server: RunningServer, scan: SimulatedScan, by_corners: Image, name: str, labels: Sequence[str], reason: str
) -> None:
    ask(server, header(scan, name, labels=labels), reordered(noise_of(scan), [0, 1, 2]), NOISE)
    own = ("a", "b", "x", "y") if labels else None
    result = ask(server, header(scan, "dependent", noise=name, labels=own), imaging_of(scan))
    assert_not_whitened(result, by_corners, reason)


def test_noise_of_another_scanner_is_not_used(
    server: RunningServer, scan: SimulatedScan, inline: Image, by_corners: Image, name: str
) -> None:
    def of(device: str, text: bytes) -> bytes:
        return text.replace(
            b"</acquisitionSystemInformation>", f"<deviceID>{device}</deviceID></acquisitionSystemInformation>".encode()
        )

    ask(server, of("A", header(scan, name)), noise_of(scan), NOISE)
    for device in ("A", ""):
        assert_whitened_as(ask(server, of(device, header(scan, "x", noise=name)), imaging_of(scan)), inline)
    result = ask(server, of("B", header(scan, "x", noise=name)), imaging_of(scan))
    assert_not_whitened(result, by_corners, "made by another scanner")


def test_a_noise_measurement_that_nobody_sent_is_missed_once(
    server: RunningServer, by_corners: Image, scan: SimulatedScan, name: str
) -> None:
    assert_not_whitened(send_dependent(server, scan, name), by_corners, "is not known here")
    movie = simulate_scan(shape=(32, 32), coils=2, acceleration=2, acs=12, repetitions=3)
    result = ask(server, header(movie, "dependent", noise=name), imaging_of(movie))
    assert len(result.images) == 3
    assert len(told(result, "WARNING")) == 1


def test_a_restart_does_not_lose_the_noise_and_what_is_wrong_with_its_file_is_told(
    run_server: RunServer, scan: SimulatedScan, inline: Image, by_corners: Image, name: str, tmp_path: Path
) -> None:
    with run_server(state_folder=tmp_path) as first:
        send_noise(first, scan, name)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    with run_server(state_folder=tmp_path) as second:
        assert_whitened_as(send_dependent(second, scan, name), inline)
        for damaged in (content[:-1], content[:40], b"", bytes(len(content)), content + b" " * (4 << 20)):
            file.write_bytes(damaged)
            assert_not_whitened(send_dependent(second, scan, name), by_corners, "is damaged")
        file.write_bytes(content)
        two_days_ago = file.stat().st_mtime - 48 * 3600 - 1
        os.utime(file, (two_days_ago, two_days_ago))
        assert_not_whitened(send_dependent(second, scan, name), by_corners, "is older than 48 h")
        (tmp_path / "of somebody else").touch()
        os.utime(tmp_path / "of somebody else", (two_days_ago, two_days_ago))
        send_noise(second, scan, f"{name} again")
        assert not file.exists()
        assert len(list(tmp_path.iterdir())) == 2
        assert_not_whitened(send_dependent(second, scan, name), by_corners, "is not known here")


# What Gadgetron's client asks before it sends a scan with a noise dependency.
QUESTION = """<?xml version="1.0" encoding="UTF-8"?>
      <gadgetronStreamConfiguration xsi:schemaLocation="http://gadgetron.sf.net/gadgetron gadgetron.xsd"
        xmlns="http://gadgetron.sf.net/gadgetron"
      xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
    <writer><slot>1019</slot><dll>gadgetron_mricore</dll><classname>DependencyQueryWriter</classname></writer>
    <gadget>
      <name>NoiseSummary</name>
      <dll>gadgetron_mricore</dll>
      <classname>NoiseSummaryGadget</classname>
      <property>
         <name>noise_file</name>
         <value>GadgetronNoiseCovarianceMatrix_{}</value>
      </property>
    </gadget>
</gadgetronStreamConfiguration>
"""


def answer_of_noise(server: RunningServer, name: str) -> Meta:
    query, close = server.answers(ConfigText(QUESTION.format(name)), Close())
    assert isinstance(query, DependencyQuery)
    assert close == Close()
    return Meta.deserialize(query.meta)


def test_gadgetrons_client_is_told_whether_the_noise_is_there(
    server: RunningServer, scan: SimulatedScan, name: str
) -> None:
    assert answer_of_noise(server, name) == {"status": "failed"}
    send_noise(server, scan, name)
    known = answer_of_noise(server, name)
    samples = np.concatenate([one.data for one in noise_of(scan)], axis=1)
    sigma = np.sqrt((np.abs(samples) ** 2).mean(1))
    assert (known["status"], known["channels"]) == ("success", "4")
    for key, value in (("min_sigma", sigma.min()), ("max_sigma", sigma.max()), ("mean_sigma", sigma.mean())):
        assert float(known[key]) == pytest.approx(value, rel=1e-5)
    assert float(known["noise_dwell_time_us"]) == 4.0


class Storage:
    """A storage server as Gadgetron's: blobs by the tags of the query, the latest that has all of them.

    `answer` may answer in its place, and tells whether it has.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.blobs: list[tuple[dict[str, str], bytes]] = []
        self.asked: list[str] = []
        self.answer: Callable[[BaseHTTPRequestHandler], bool] = lambda _: False

    @contextmanager
    def serving(self) -> Iterator[str]:
        storage = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                tags = self.tags("/v1/blobs/data")
                if not storage.answer(self):
                    storage.blobs.append((tags, body))
                    self.respond(201, json.dumps(tags).encode())

            def do_GET(self) -> None:
                tags = self.tags("/v1/blobs/data/latest")
                if not storage.answer(self):
                    found = [blob for kept, blob in storage.blobs if tags.items() <= kept.items()]
                    self.respond(200 if found else 404, found[-1] if found else b"")

            def tags(self, path: str) -> dict[str, str]:
                parts = urlsplit(self.path)
                assert parts.path == path
                storage.asked.append(f"{self.command} {self.path}")
                return dict(parse_qsl(parts.query, strict_parsing=True))

            def respond(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()
                thread.join()


def of_patient(header: bytes) -> bytes:
    subject = b"<subjectInformation><patientID>patient &amp; 1</patientID></subjectInformation>"
    study = b"<studyInformation><studyID>study 1</studyID>"
    return header.replace(b"<studyInformation>", subject + study, 1)


def gadgetrons_blob(scan: SimulatedScan) -> bytes:
    """What Gadgetron would store of the noise of `scan`: SFNDAM, complex64, column-major, over n - 1."""
    samples = np.concatenate([one.data for one in noise_of(scan)], axis=1).T
    covariance = (samples.conj().T @ samples) / np.float32(len(samples) - 1)
    document = {
        "channels": 4,
        "labels": [f"loop{coil}" for coil in range(4)],
        "noiseDwellTimeUs": 4.0,
        "receiverNoiseBandwidth": 0.7929999828338623,
        "sampleCount": len(samples),
    }
    meta = json.dumps(document).encode()
    return b"".join(
        [
            b"SFNDAM",
            struct.pack("<I", 1),
            struct.pack("<I", 7),
            struct.pack("<I", 2),
            struct.pack("<QQ", 4, 4),
            struct.pack("<Q", len(meta)),
            covariance.astype("<c8").tobytes(order="F"),
            meta,
        ]
    )


@pytest.fixture(scope="module")
def storage_of_module(run_server: RunServer) -> Iterator[tuple[Storage, RunningServer]]:
    storage = Storage()
    with storage.serving() as address, run_server(storage_address=f"{address}/") as server:
        yield storage, server


@pytest.fixture
def storage_and_server(storage_of_module: tuple[Storage, RunningServer]) -> tuple[Storage, RunningServer]:
    """A storage server with nothing in it, and a server that uses it."""
    storage_of_module[0].reset()
    return storage_of_module


def test_noise_is_filed_at_gadgetrons_storage_server_as_gadgetron_does(
    storage_and_server: tuple[Storage, RunningServer], scan: SimulatedScan, name: str
) -> None:
    storage, server = storage_and_server
    ask(server, of_patient(header(scan, name)), noise_of(scan), NOISE)
    tags, blob = storage.blobs[-1]
    named = {"subject": "patient & 1", "session": "study 1", "device": "45387"}
    assert tags == named | {"name": "noise_covariance", "measurement": name, "_ttl": "172800s"}
    theirs = gadgetrons_blob(scan)
    start, end = 42, 42 + 16 * 8
    assert blob[: start - 8] == theirs[: start - 8]
    assert struct.unpack("<Q", blob[start - 8 : start]) == (len(blob) - end,)
    assert np.allclose(np.frombuffer(blob[start:end], "<c8"), np.frombuffer(theirs[start:end], "<c8"), rtol=1e-3)
    assert json.loads(blob[end:]) == {**json.loads(theirs[end:]), "receiverNoiseBandwidth": 0.793}


def test_noise_that_gadgetron_or_another_server_filed_is_found(
    storage_and_server: tuple[Storage, RunningServer],
    scan: SimulatedScan,
    inline: Image,
    by_corners: Image,
    name: str,
) -> None:
    storage, server = storage_and_server
    ask(server, of_patient(header(scan, f"{name}0")), noise_of(scan), NOISE)
    _, ours = storage.blobs[-1]
    dependent = of_patient(header(scan, "45387_x_y_z", noise=name))
    tags = {"subject": "patient & 1", "session": "study 1", "device": "45387", "name": "noise_covariance"}
    for blob in (ours, gadgetrons_blob(scan)):
        storage.blobs[:] = [({**tags, "measurement": name}, blob)]
        result = ask(server, dependent, imaging_of(scan))
        image = only_image(result)
        assert image.meta["inrecon_prewhitened_by"] == "noise readouts"
        assert np.abs(image.data.astype(int) - inline.data).max() <= 1  # single precision on the way
        assert not told(result, "WARNING")
    # The question names a measurement and nobody else: its ID tells who that was.
    assert answer_of_noise(server, name) == {"status": "failed"}
    storage.blobs.append(({**storage.blobs[0][0], "subject": "subject", "session": "study"}, ours))
    assert answer_of_noise(server, name)["status"] == "success"
    storage.blobs.clear()
    assert_not_whitened(ask(server, dependent, imaging_of(scan)), by_corners, "is not known here")


def nonsense(handler: BaseHTTPRequestHandler) -> bool:
    handler.wfile.write(b"220 this is a mail server for patient\r\n")
    return True


def failing(handler: BaseHTTPRequestHandler) -> bool:
    handler.send_error(503)
    return True


def elsewhere(handler: BaseHTTPRequestHandler) -> bool:
    handler.send_response(307)
    handler.send_header("Location", "http://192.0.2.1/")
    handler.end_headers()
    return True


def garbage(handler: BaseHTTPRequestHandler) -> bool:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"SFNDAM" + bytes(200))
    return True


@pytest.mark.parametrize(
    ("answer", "on_keeping", "on_looking"),
    [
        (nonsense, "gives no answer in HTTP", "gives no answer in HTTP"),
        (failing, "answers with status 503", "answers with status 503"),
        (elsewhere, "answers with status 307", "answers with status 307"),
        (garbage, "answers with status 200", "what the storage server has of it cannot be used"),
    ],
)
def test_a_storage_server_that_fails_costs_a_warning_a_scan(
    storage_and_server: tuple[Storage, RunningServer],
    scan: SimulatedScan,
    inline: Image,
    by_corners: Image,
    name: str,
    answer: Callable[[BaseHTTPRequestHandler], bool],
    on_keeping: str,
    on_looking: str,
) -> None:
    storage, server = storage_and_server
    storage.answer = answer
    (warning,) = told(ask(server, of_patient(header(scan, name)), noise_of(scan), NOISE), "WARNING")
    assert warning.startswith("the noise is kept by this server alone")
    assert on_keeping in warning
    asked = len(storage.asked)
    assert_whitened_as(send_dependent(server, scan, name), inline)
    assert len(storage.asked) == asked  # what this server knows it need not ask for
    unknown = of_patient(header(scan, "dependent", noise=f"{name} of another server"))
    assert_not_whitened(ask(server, unknown, imaging_of(scan)), by_corners, on_looking)


def test_a_storage_server_that_takes_its_time_holds_up_nobody_else(
    storage_and_server: tuple[Storage, RunningServer], scan: SimulatedScan, name: str
) -> None:
    storage, server = storage_and_server
    asked, others_are_served = threading.Event(), threading.Event()

    def in_a_while(_: BaseHTTPRequestHandler) -> bool:
        asked.set()
        others_are_served.wait(10)
        return False

    storage.answer = in_a_while
    results: list[ClientResult] = []
    sending = threading.Thread(
        target=lambda: results.append(ask(server, of_patient(header(scan, name)), noise_of(scan), NOISE))
    )
    sending.start()
    assert asked.wait(10)
    assert server.answers(Query("gadgetron::version", 1), Close())
    others_are_served.set()
    sending.join()
    assert told(results[0], "WARNING") == []  # as there would be, had the answer come too late


def test_without_a_patient_the_storage_server_is_not_asked(
    storage_and_server: tuple[Storage, RunningServer], scan: SimulatedScan, by_corners: Image
) -> None:
    storage, server = storage_and_server
    before = len(storage.asked)
    (warning,) = told(ask(server, header(scan, "unstructured"), noise_of(scan), NOISE), "WARNING")
    assert "files noise by patient" in warning
    assert_not_whitened(send_dependent(server, scan, "another"), by_corners, "files noise by patient")
    assert len(storage.asked) == before


SECRETS = [
    *("Rumpelstilzchen", "PID7788", "1954-11-07", "Dr^Grimm", "STUDY5511", "ACC6622", "MID9933", "Spindle", "DEV4400"),
]


def full_of_names(text: bytes) -> bytes:
    subject = (
        "<subjectInformation><patientName>Rumpelstilzchen</patientName><patientID>PID7788</patientID>"
        "<patientBirthdate>1954-11-07</patientBirthdate></subjectInformation>"
    )
    study = (
        "<studyInformation><studyID>STUDY5511</studyID><accessionNumber>ACC6622</accessionNumber>"
        "<referringPhysicianName>Dr^Grimm</referringPhysicianName>"
    )
    system = "<institutionName>Spindle</institutionName><deviceID>DEV4400</deviceID></acquisitionSystemInformation>"
    text = text.replace(b"<studyInformation>", f"{subject}{study}".encode(), 1)
    return text.replace(b"</acquisitionSystemInformation>", system.encode())


def test_nothing_tells_of_the_patient(run_server: RunServer, scan: SimulatedScan, tmp_path: Path) -> None:
    noise_id = "DEV4400_PID7788_STUDY5511_MID9933"
    with socket.create_server(("127.0.0.1", 0)) as unused:
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / f"{hashlib.sha256(b'PID7788 damaged').hexdigest()}.noise").write_bytes(b"damaged")
    heard: list[str] = []
    with run_server(verbose=True, state_folder=folder, storage_address=nobody) as server:
        for text, acquisitions, config in (
            (header(scan, noise_id), noise_of(scan), NOISE),
            (header(scan, "PID7788 a", noise=noise_id), imaging_of(scan), "cg_sense"),
            (header(scan, "PID7788 b", noise="PID7788 nowhere"), imaging_of(scan), "cg_sense"),
            (header(scan, "PID7788 c", noise="PID7788 damaged"), imaging_of(scan), "cg_sense"),
            (header(scan, "PID7788 d", noise=noise_id), reordered(imaging_of(scan), [0, 1]), "cg_sense"),
        ):
            result = ask(server, full_of_names(text), acquisitions, config)
            heard += [*result.texts, *(image.attribute_string for image in result.images)]
        for asked_for in (noise_id, "PID7788 nowhere"):
            heard.append(str(server.answers(ConfigText(QUESTION.format(asked_for)), Close())))
        with urlopen(f"http://127.0.0.1:{server.http_port}/metrics") as metrics:
            heard.append(metrics.read().decode())
        log = server.log()
    for event in ("cannot be reached", "is damaged", "is not known here", "48 h at most", "channels, the scan 2"):
        assert [text for text in heard if event in text], event
    files = list(folder.iterdir())
    assert len(files) == 2
    everything = [*heard, log, *(f"{file.name} {file.read_bytes().decode('latin-1')}" for file in files)]
    assert "the file" in log
    for secret in SECRETS:
        assert not [text for text in everything if secret.lower() in text.lower()], secret
