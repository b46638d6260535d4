"""Scans that are as they should be: what a client gets back."""

from __future__ import annotations

import threading
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from inrecon.simulate import SimulatedScan, simulate_scan
from inrecon_server.client import ClientResult, ConnectionFailedError, send
from inrecon_server.protocol import Close, ConfigFile, ConfigText, Error, Header, Image, Query, Response

if TYPE_CHECKING:
    from conftest import RunningServer


def likeness(image: Image, truth: np.ndarray) -> float:
    """Correlation of two magnitude images."""
    return float(np.corrcoef(np.abs(image.data).ravel(), np.abs(truth).ravel())[0, 1])


@pytest.mark.parametrize(
    "config", ["cg_sense", "cg_sense.xml", "zero_filled", (files("inrecon") / "config/cg_sense.xml").read_text()]
)
def test_a_scan_comes_back_as_its_image(server: RunningServer, scan: SimulatedScan, config: str) -> None:
    result = server.send(scan, config=config)
    assert result.closed
    (image,) = result.images
    assert image.data.shape == (1, 1, 32, 32)
    assert likeness(image, scan.reference[0]) > (0.8 if config == "zero_filled" else 0.95)
    start, *_, summary = result.texts
    assert start.startswith("INFO    inrecon")
    assert summary.startswith("INFO    1 images in")
    assert not [text for text in result.texts if text.startswith("ERROR")]


def test_images_of_a_series_come_in_order_and_while_the_scan_goes_on(server: RunningServer) -> None:
    movie = simulate_scan(shape=(32, 32), coils=2, acceleration=2, acs=12, repetitions=3)
    first_came = threading.Event()

    def acquisitions():
        for acquisition in movie.acquisitions:
            if acquisition.idx.repetition == 2:
                assert first_came.wait(30)
            yield acquisition

    def hear(message: object) -> None:
        if isinstance(message, Image):
            first_came.set()

    result = send(movie.header, acquisitions(), port=server.port, config="cg_sense", timeout_s=30, on_answer=hear)
    assert [image.image_index for image in result.images] == [1, 2, 3]
    assert [image.repetition for image in result.images] == [0, 1, 2]
    assert len({image.image_series_index for image in result.images}) == 1


def test_json_after_the_header_chooses_as_fire_does(server: RunningServer, scan: SimulatedScan) -> None:
    parameters = '{"parameters": {"config": "zero_filled", "dtype": "complex", "sendOriginal": "true"}}'
    result = server.send(scan, config="openrecon", parameters=parameters)
    (image,) = result.images
    assert np.iscomplexobj(image.data)
    assert [text for text in result.texts if text.startswith("WARNING") and "sendOriginal" in text]


def test_null_reads_everything_and_answers_close(server: RunningServer, scan: SimulatedScan) -> None:
    assert server.send(scan, config="null") == ClientResult(closed=True)


@pytest.mark.parametrize(
    "messages",
    [
        [Close()],
        [ConfigFile("cg_sense"), Close()],
        [ConfigFile("isalive.xml"), Close()],
        [ConfigText("<gadgetronStreamConfiguration><gadget/></gadgetronStreamConfiguration>"), Close()],
    ],
)
def test_a_health_check_gets_close_and_nothing_else(server: RunningServer, messages: list[object]) -> None:
    assert server.answers(*messages) == [Close()]


def test_a_query_is_answered(server: RunningServer) -> None:
    response, close = server.answers(Query("gadgetron::version", 5), Close())
    assert isinstance(response, Response)
    assert response.correlation_id == 5
    assert close == Close()


def test_two_scans_at_once_are_both_served(server: RunningServer, scan: SimulatedScan) -> None:
    second_is_done = threading.Event()

    def slowly():
        for number, acquisition in enumerate(scan.acquisitions):
            if number == len(scan.acquisitions) // 2:
                assert second_is_done.wait(30)
            yield acquisition

    results: list[ClientResult] = []
    first = threading.Thread(
        target=lambda: results.append(send(scan.header, slowly(), port=server.port, config="cg_sense", timeout_s=30))
    )
    first.start()
    results.append(server.send(scan, config="cg_sense"))
    second_is_done.set()
    first.join()
    assert [len(result.images) for result in results] == [1, 1]
    assert np.array_equal(results[0].images[0].data, results[1].images[0].data)


def test_gadgetron_gets_images_and_no_texts(server: RunningServer, scan: SimulatedScan) -> None:
    properties = '<property name="peer" value="gadgetron"/><property name="method" value="zero_filled"/>'
    result = server.send(scan, config=f"<configuration>{properties}</configuration>")
    assert result.closed
    assert len(result.images) == 1
    assert result.texts == []
    wrong = '<configuration><property name="peer" value="gadgetron"/></configuration>'
    error, close = server.answers(ConfigText(wrong), Header(b"garbage"), Close())
    assert isinstance(error, Error)
    assert close == Close()


def test_memory_does_not_grow_from_scan_to_scan(server: RunningServer) -> None:
    heavy = simulate_scan(shape=(160, 160), coils=8, acceleration=2, acs=16)

    def after_a_scan() -> list[float]:
        """Megabytes that front and worker hold of their own."""
        assert server.send(heavy, config="zero_filled").images
        status = [Path(f"/proc/{pid}/status").read_text() for pid in (server.process.pid, server.worker())]
        return [int(text.split("RssAnon:")[1].split()[0]) / 1e3 for text in status]

    first, *_, last = np.split(np.array([after_a_scan() for _ in range(14)]), [4, 10])
    front, worker = last.min(0) - first.max(0)
    # One copy of each of the ten scans would be 26 MB in the front, and with what is made of it 100 MB in the worker.
    assert front < 13
    assert worker < 40


def test_the_front_has_no_torch_and_the_worker_has(server: RunningServer, scan: SimulatedScan) -> None:
    server.send(scan)
    assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "libtorch" in Path(f"/proc/{server.worker()}/maps").read_text()


def test_a_client_without_a_server_is_told_so(scan: SimulatedScan) -> None:
    with pytest.raises(ConnectionFailedError, match="no server answers"):
        send(scan.header, scan.acquisitions, port=1)
