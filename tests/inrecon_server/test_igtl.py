"""Names and places of images for viewers, and viewers that take nothing."""

from __future__ import annotations

import socket
import sys
import time
from ipaddress import ip_network

import ismrmrd
import numpy as np
import pytest

from inrecon.errors import InreconError
from inrecon.frame import Live, Request
from inrecon_server import igtl
from inrecon_server.igtl import Viewers, device_name, ijk_to_ras
from inrecon_server.metrics import Metrics
from inrecon_server.protocol import serialise
from inrecon_server.server import serve
from inrecon_server.settings import ServerSettings

LIVE = Request(live=Live())


def image(size: int = 8, **head: int) -> ismrmrd.Image:
    made = ismrmrd.Image.from_array(np.ones((1, 1, size, size), np.float32), transpose=False)
    made.read_dir[0] = made.phase_dir[1] = made.slice_dir[2] = 1.0
    made.field_of_view[:] = 200, 200, 5
    made.image_series_index = 1
    for name, value in head.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("head", "series_name", "name"),
    [
        ({}, None, "inrecon"),
        ({"slice": 2}, None, "inrecon_s3"),
        ({"slice": 1, "contrast": 1, "set": 3}, "needle", "needle_s2_c2_t4"),
        ({"repetition": 9, "phase": 3}, "needle", "needle"),
        ({"image_series_index": 101}, None, "inrecon"),
        ({"image_series_index": 202}, None, "inrecon_e2"),
        ({"slice": 11}, "a name that is far too long", "a name that is f_s12"),
        ({"slice": 65534, "contrast": 65534, "set": 65534}, "n", "_s65535_c65535_t6553"),
    ],
)
def test_devices_are_what_follows_one_another(head: dict[str, int], series_name: str | None, name: str) -> None:
    assert device_name(image(**head).getHead(), series_name) == name
    assert len(name) <= 20


@pytest.mark.parametrize("size", [7, 8])
def test_the_pixel_in_the_middle_of_the_transform_is_at_the_position(size: int) -> None:
    head = image(size).getHead()
    head.position[:] = 10, 20, 30
    matrix = ijk_to_ras(head)
    np.testing.assert_allclose(matrix @ [size // 2, size // 2, 0, 1], [-10, -20, 30, 1], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(matrix[:3, :3], axis=0), [200 / size, 200 / size, 5], rtol=1e-6)


@pytest.mark.parametrize(("field", "value"), [("slice_dir", 0.0), ("field_of_view", 0.0), ("position", np.nan)])
def test_a_header_that_says_nothing_of_the_place_is_refused(field: str, value: float) -> None:
    head = image().getHead()
    getattr(head, field)[:] = (value,) * 3
    with pytest.raises(ValueError, match="the image's header has no"):
        ijk_to_ras(head)


def connected(viewers: Viewers, metrics: Metrics, *, count: int = 1) -> socket.socket:
    viewer = socket.socket()
    viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    viewer.settimeout(10)
    viewer.connect(viewers._listening.getsockname())
    until(metrics, "viewers", count)
    return viewer


def until(metrics: Metrics, name: str, value: float) -> None:
    deadline = time.monotonic() + 10
    while metrics.registry.get_sample_value(f"inrecon_{name}") != value:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_of_each_device_the_latest_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(igtl, "_WAITING_BYTES", 3_000_000)
    metrics = Metrics()
    shown = [serialise(image(512, slice=n)) for n in (0, 1, 2)]  # 1 MiB each
    with Viewers(host="127.0.0.1", port=0, metrics=metrics) as viewers, connected(viewers, metrics):
        for _ in range(20):
            for one in shown:
                viewers.show([one, b"to compare with"], LIVE)
        (viewer,) = viewers._viewers
        assert set(viewer.waiting) <= {"inrecon", "inrecon_s2", "inrecon_s3"}
        assert sum(len(waiting.data) for waiting in viewer.waiting.values()) <= 3_000_000


def test_one_that_takes_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(igtl, "_STALLED_S", 0.5)
    metrics = Metrics()
    with Viewers(host="127.0.0.1", port=0, metrics=metrics) as viewers, connected(viewers, metrics):
        viewers.show([serialise(image(1024))], LIVE)
        until(metrics, "viewers", 0)


def test_one_that_is_owed_nothing_may_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(igtl, "_STALLED_S", 0.01)
    metrics = Metrics()
    with Viewers(host="127.0.0.1", port=0, metrics=metrics) as viewers, connected(viewers, metrics) as viewer:
        viewers.show([serialise(image())], LIVE)
        until(metrics, "live_images_sent_total", 1)
        viewers._call()
        viewers.show([serialise(image())], LIVE)
        until(metrics, "live_images_sent_total", 2)
        assert viewer.recv(2) == b"\0\1"


def test_only_those_who_are_allowed_and_no_more_than_eight_are_let_in() -> None:
    metrics = Metrics()
    with (
        Viewers(host="127.0.0.1", port=0, allow=[ip_network("10.0.0.0/8")], metrics=metrics) as viewers,
        socket.create_connection(viewers._listening.getsockname(), timeout=10) as refused,
    ):
        assert refused.recv(1) == b""
    with Viewers(host="127.0.0.1", port=0, metrics=metrics) as viewers:
        let_in = [connected(viewers, metrics, count=n) for n in range(1, 9)]
        with socket.create_connection(viewers._listening.getsockname(), timeout=10) as refused:
            assert refused.recv(1) == b""
    assert [viewer.recv(1) for viewer in let_in] == [b""] * 8
    for viewer in let_in:
        viewer.close()


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InreconError, match=rf"127\.0\.0\.1:{port} \(igtl_host, igtl_port\)"):
            Viewers(host="127.0.0.1", port=port, metrics=Metrics()).__enter__()


def test_without_pyigtl_the_server_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "inrecon_server.igtl")
    monkeypatch.setitem(sys.modules, "pyigtl", None)
    with pytest.raises(InreconError, match=r"pyigtl: pip install 'inrecon\[igtl\]'"):
        serve(ServerSettings(port=0, http_port=0, igtl_port=0))
