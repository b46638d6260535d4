"""What viewers get of a live stream by OpenIGTLink: the pixels that the client gets, where they are in the patient."""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import ismrmrd
import numpy as np
import pyigtl
import pytest

from inrecon.simulate import SimulatedScan, simulate_scan

if TYPE_CHECKING:
    from conftest import RunningServer, RunServer

LIVE = """<configuration>
  <property name="live" value="true"/><property name="frame_policy" value="all"/>
  <property name="method" value="zero_filled"/>{more}
</configuration>"""
HEADER, BODY = struct.Struct(">H12s20sIIQQ"), struct.Struct(">HBBBB3H12f6H")
POLYNOMIAL = 0x42F0E1EBA9EA3693  # ECMA-182, as OpenIGTLink says
TILTED = np.linalg.qr([[0.8, 0.3, 0.2], [-0.1, 0.9, 0.4], [0.3, -0.2, 0.7]])[0].T  # three orthonormal rows


def live(**properties: str) -> str:
    more = "".join(f'<property name="{name}" value="{value}"/>' for name, value in properties.items())
    return LIVE.format(more=more)


@pytest.fixture(scope="module")
def showing(run_server: RunServer) -> Iterator[RunningServer]:
    with run_server(igtl_port=0) as running:
        yield running


@pytest.fixture(scope="module")
def movie() -> SimulatedScan:
    return simulate_scan(shape=(32, 24), coils=2, acceleration=2, acs=12, slices=2, repetitions=3)


def igtl_port(server: RunningServer) -> int:
    told = re.search(r"by OpenIGTLink at 127\.0\.0\.1:(\d+)", server.log())
    assert told is not None
    return int(told[1])


def until(server: RunningServer, metric: str, value: float) -> None:
    """Wait until a figure of the server has a value."""
    deadline = time.monotonic() + 20
    while server.figure(metric) != value:
        assert time.monotonic() < deadline, server.log()
        time.sleep(0.02)


@pytest.fixture
def viewer(showing: RunningServer) -> Iterator[socket.socket]:
    until(showing, "inrecon_viewers", 0)
    with socket.create_connection(("127.0.0.1", igtl_port(showing)), timeout=20) as connection:
        until(showing, "inrecon_viewers", 1)
        yield connection


def crc64(data: bytes) -> int:
    value = 0
    for byte in data:
        value ^= byte << 56
        for _ in range(8):
            value = (value << 1 ^ POLYNOMIAL if value >> 63 else value << 1) & (1 << 64) - 1
    return value


def read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        assert part, "the server has hung up"
        data += part
    return data


class Shown:
    """An IMAGE message as openigtlink.org/protocols/v2_image.html describes it."""

    def __init__(self, connection: socket.socket) -> None:
        version, kind, name, seconds, _fraction, size, crc = HEADER.unpack(read(connection, HEADER.size))
        self.body = read(connection, size)
        assert (version, kind.rstrip(b"\0"), crc) == (1, b"IMAGE", crc64(self.body))
        self.name, self.seconds = name.rstrip(b"\0").decode(), seconds
        image_version, components, scalar, endian, space, *rest = BODY.unpack(self.body[: BODY.size])
        assert (image_version, components, endian, space) == (1, 1, 2, 1)  # scalars, little endian, RAS
        self.size, self.matrix, part = rest[:3], np.reshape(rest[3:15], (4, 3)), rest[15:]
        assert part == [0, 0, 0, *self.size]
        dtype = {5: "<u2", 10: "<f4"}[scalar]
        self.pixels = np.frombuffer(self.body[BODY.size :], dtype).reshape(self.size[::-1])

    def world(self, *index: float) -> np.ndarray:
        """Where a pixel ``(x, y, z)`` is, RAS in mm: the middle of the image is given, and the step along each axis."""
        return self.matrix[3] + (np.array(index) - (np.array(self.size) - 1) / 2) @ self.matrix[:3]


def test_viewers_get_the_pixels_that_the_client_gets(
    showing: RunningServer, viewer: socket.socket, movie: SimulatedScan
) -> None:
    before = time.time()
    images = showing.send(movie, config=live()).images
    shown = [Shown(viewer) for _ in images]
    assert [one.name for one in shown] == ["inrecon", "inrecon_s2"] * 3
    for one, image in zip(shown, images, strict=True):
        assert one.pixels.dtype == np.uint16
        assert np.array_equal(one.pixels, image.data[0])
        assert before - 1 <= one.seconds <= time.time() + 1


@pytest.mark.parametrize("dtype", ["float", "complex"])
def test_other_images_are_shown_as_their_magnitude(
    showing: RunningServer, viewer: socket.socket, scan: SimulatedScan, dtype: str
) -> None:
    (image,) = showing.send(scan, config=live(dtype=dtype, series_name="needle")).images
    shown = Shown(viewer)
    assert shown.name == "needle"
    assert shown.pixels.dtype == np.float32
    np.testing.assert_allclose(shown.pixels, np.abs(image.data[0]), rtol=1e-6)


def test_a_point_in_the_patient_is_shown_where_it_is(showing: RunningServer, viewer: socket.socket) -> None:
    """Its readouts are written down from the definition of k-space: phase by the distance from `position`, in LPS."""
    read_dir, phase_dir, slice_dir = TILTED
    position, steps, fov, shape = np.array([12.5, -40.0, 33.0]), (5, -7), 220.0, (32, 24)
    scan = simulate_scan(shape=shape, coils=1, pattern="full", snr=np.inf, oversampling=False)
    distance = fov * np.array(steps) / shape[::-1]
    for readout in scan.acquisitions:
        readout.position[:], readout.read_dir[:] = position, read_dir
        readout.phase_dir[:], readout.slice_dir[:] = phase_dir, slice_dir
        along = np.arange(shape[1]) - readout.center_sample
        line = readout.idx.kspace_encode_step_1 - shape[0] // 2
        readout.data[:] = np.exp(-2j * np.pi * ((along * distance[0] + line * distance[1]) / fov))
    (image,) = showing.send(scan, config=live()).images
    shown = Shown(viewer)
    _, y, x = np.unravel_index(np.argmax(shown.pixels), shown.pixels.shape)
    assert tuple(image.field_of_view[:2]) == (fov, fov)
    left, posterior, superior = position + distance[0] * read_dir + distance[1] * phase_dir
    np.testing.assert_allclose(shown.world(x, y, 0), (-left, -posterior, superior), atol=0.02)
    np.testing.assert_allclose(shown.matrix[2], [-1, -1, 1] * slice_dir * image.field_of_view[2], atol=1e-4)


def test_pyigtls_own_client_sees_them(showing: RunningServer, movie: SimulatedScan) -> None:
    until(showing, "inrecon_viewers", 0)
    client = pyigtl.OpenIGTLinkClient("127.0.0.1", igtl_port(showing))
    try:
        until(showing, "inrecon_viewers", 1)
        images = showing.send(movie, config=live()).images
        second = client.wait_for_message("inrecon_s2", timeout=20)
    finally:
        client.stop()
    assert any(np.array_equal(second.image, image.data[0]) for image in images if image.slice == 1)


def test_nothing_but_pixels_place_and_time_is_sent(
    showing: RunningServer, viewer: socket.socket, scan: SimulatedScan
) -> None:
    patient = rb"<subjectInformation><patientName>Mustermann</patientName></subjectInformation>"
    named = replace(scan, header=re.sub(rb"(<(\w+:)?ismrmrdHeader[^>]*>)", rb"\1" + patient, scan.header))
    assert b"Mustermann" in named.header
    (image,) = showing.send(named, config=live()).images
    shown = Shown(viewer)
    assert len(shown.body) == BODY.size + image.data.nbytes
    assert b"Mustermann" not in shown.body
    assert shown.name == "inrecon"


def test_images_of_other_scans_are_not_shown(
    showing: RunningServer, viewer: socket.socket, movie: SimulatedScan, scan: SimulatedScan
) -> None:
    assert len(showing.send(movie, config="zero_filled").images) == 6
    (image,) = showing.send(scan, config=live()).images
    assert np.array_equal(Shown(viewer).pixels, image.data[0])


def test_an_image_without_a_place_is_counted_and_the_next_is_shown(
    showing: RunningServer, viewer: socket.socket, scan: SimulatedScan
) -> None:
    failed = showing.figure("inrecon_live_images_failed_total")
    placed = [bytes(readout.getHead()) for readout in scan.acquisitions]
    try:
        for readout in scan.acquisitions:
            readout.read_dir[:] = 0, 0, 0
        assert len(showing.send(scan, config=live()).images) == 1
    finally:
        for readout, head in zip(scan.acquisitions, placed, strict=True):
            readout.setHead(ismrmrd.AcquisitionHeader.from_buffer_copy(head))
    until(showing, "inrecon_live_images_failed_total", failed + 1)
    showing.send(scan, config=live(series_name="next"))
    assert Shown(viewer).name == "next"
    assert showing.log().count("an image cannot be shown") == 1


def test_a_viewer_that_does_not_read_holds_up_nothing(run_server: RunServer) -> None:
    """Images are several times what buffers hold, and the client gets each; the viewer, once it reads, the latest."""
    scan = simulate_scan(shape=(256, 256), coils=1, pattern="full", repetitions=12)
    with run_server(igtl_port=0) as server, socket.socket() as viewer:
        viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        viewer.settimeout(20)
        viewer.connect(("127.0.0.1", igtl_port(server)))
        until(server, "inrecon_viewers", 1)
        images = server.send(scan, config=live(dtype="float")).images
        assert len(images) == 12
        skipped = server.figure("inrecon_live_images_skipped_total")
        assert skipped > 4
        first, *_, last = [Shown(viewer) for _ in range(12 - int(skipped))]
        assert np.array_equal(first.pixels, images[0].data[0])
        assert np.array_equal(last.pixels, images[-1].data[0])
        until(server, "inrecon_live_images_sent_total", 12 - skipped)
        assert "live_images_failed_total 0" in server.get("/metrics")[1]


def test_a_viewer_that_dies_is_forgotten(showing: RunningServer, scan: SimulatedScan) -> None:
    until(showing, "inrecon_viewers", 0)
    with socket.create_connection(("127.0.0.1", igtl_port(showing))) as dying:
        until(showing, "inrecon_viewers", 1)
        dying.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, as of a crash
    until(showing, "inrecon_viewers", 0)
    assert len(showing.send(scan, config=live()).images) == 1


def test_what_viewers_say_means_nothing(showing: RunningServer, viewer: socket.socket, scan: SimulatedScan) -> None:
    viewer.sendall(b"\xff" * 100_000)
    showing.send(scan, config=live())
    assert Shown(viewer).name == "inrecon"
