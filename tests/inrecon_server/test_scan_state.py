"""What is kept from scan to scan: how much, how long, and what is told."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from inrecon.acquire import Scan
from inrecon.frame import Noise
from inrecon_server import scan_state
from inrecon_server.scan_state import NoiseNotFound, ScanState
from inrecon_server.storage_server import StorageServer


def noise(level: float = 1.0, *, coils: int = 2) -> Noise:
    return Noise(covariance=np.eye(coils) * (level + 0j), samples=10, sample_time_us=2.5, relative_bandwidth=0.8)


def scan(measurement: str | None, *dependencies: str, device: str | None = None) -> Scan:
    return Scan(encodings=(), measurement_id=measurement, noise_dependencies=dependencies, device_id=device)


def texts(state: ScanState, kept: Noise, of: Scan) -> list[str]:
    return [f"{notice.level} {notice.text}" for notice in state.keep(kept, of)]


def level(found: Noise) -> float:
    return float(found.covariance[0, 0].real)


def test_the_latest_word_on_a_measurement_counts(tmp_path: Path) -> None:
    for state in (ScanState(), ScanState(folder=tmp_path)):
        for value in (1.0, 2.0):
            assert texts(state, noise(value), scan("a")) == [
                "INFO the noise (2 channels, 10 samples) is kept for scans that name this one, 48 h at most"
            ]
        assert level(state.noise_of("a")) == level(state.noise_for(scan("b", "a"))) == 2.0
    assert level(ScanState(folder=tmp_path).noise_of("a")) == 2.0


def test_the_first_dependency_that_is_known_is_taken() -> None:
    state = ScanState()
    texts(state, noise(1.0), scan("a"))
    texts(state, noise(2.0), scan("b"))
    assert level(state.noise_for(scan(None, "x", "b", "a"))) == 2.0
    with pytest.raises(NoiseNotFound, match=r"^the noise measurement that was named is not known here$"):
        state.noise_for(scan(None, "x", "y"))


def test_a_header_of_a_million_dependencies_costs_nothing(tmp_path: Path) -> None:
    many = scan(None, *(f"{n}_a_b_c" for n in range(1_000_000)))
    nobody = StorageServer("http://127.0.0.1:1", limit_bytes=1000)
    with pytest.raises(NoiseNotFound, match="cannot be reached"):
        ScanState(folder=tmp_path, storage=nobody).noise_for(many)


def test_memory_holds_a_bounded_number_and_forgets_what_was_not_used() -> None:
    state = ScanState()
    for number in range(scan_state.IN_MEMORY):
        texts(state, noise(number + 1), scan(f"{number}"))
    state.noise_of("0")
    texts(state, noise(), scan("one more"))
    assert level(state.noise_of("0")) == 1.0
    with pytest.raises(NoiseNotFound):
        state.noise_of("1")


def test_what_memory_forgot_is_in_the_folder(tmp_path: Path) -> None:
    state = ScanState(folder=tmp_path)
    for number in range(scan_state.IN_MEMORY + 1):
        texts(state, noise(number + 1), scan(f"{number}"))
    assert level(state.noise_of("0")) == 1.0


def test_noise_has_its_time(tmp_path: Path) -> None:
    state = ScanState(hours=1e-9)
    texts(state, noise(), scan("a"))
    with pytest.raises(NoiseNotFound, match="older than 1e-09 h"):
        state.noise_of("a")
    texts(ScanState(folder=tmp_path, hours=2), noise(), scan("a"))
    (file,) = tmp_path.iterdir()
    for age_hours, known in ((1.99, True), (2.01, False), (-5, True)):
        kept_at = file.stat().st_ctime - 3600 * age_hours
        os.utime(file, (kept_at, kept_at))
        if known:
            ScanState(folder=tmp_path, hours=2).noise_of("a")
        else:
            with pytest.raises(NoiseNotFound, match="older than 2 h"):
                ScanState(folder=tmp_path, hours=2).noise_of("a")


@pytest.mark.parametrize("identifier", ["", "../../a", "/etc/passwd", "a\0b", "ä" * 10_000, "\ud800", "a\nb"])
def test_an_identifier_may_be_anything_and_is_not_in_a_name(tmp_path: Path, identifier: str) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    texts(ScanState(folder=folder), noise(), scan(identifier))
    assert level(ScanState(folder=folder).noise_of(identifier)) == 1.0
    (file,) = folder.iterdir()
    assert len(file.stem) == 64
    assert list(tmp_path.iterdir()) == [folder]


def test_a_file_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    state = ScanState(folder=tmp_path / "gone")
    _, warning = texts(state, noise(), scan("a"))
    assert warning.startswith("WARNING the noise is kept in memory only")
    assert level(state.noise_of("a")) == 1.0


def test_a_file_that_cannot_be_read_counts_as_absent(tmp_path: Path) -> None:
    texts(ScanState(folder=tmp_path), noise(), scan("a"))
    (file,) = tmp_path.iterdir()
    file.unlink()
    file.mkdir()
    with pytest.raises(NoiseNotFound, match="cannot be read: Is a directory"):
        ScanState(folder=tmp_path).noise_of("a")


def test_what_cannot_be_kept_is_told() -> None:
    (warning,) = texts(ScanState(), noise(), scan(None))
    assert warning.startswith("WARNING the noise cannot be kept")
    state = ScanState()
    (warning,) = texts(state, noise(coils=400), scan("a"))
    assert "400 coils" in warning
    with pytest.raises(NoiseNotFound):
        state.noise_of("a")


def test_noise_of_another_scanner_is_not_given() -> None:
    state = ScanState()
    texts(state, noise(), scan("a", device="A"))
    texts(state, noise(), scan("of any", device=None))
    for device in ("A", None):
        state.noise_for(scan(None, "a", device=device))
    state.noise_for(scan(None, "of any", device="B"))
    with pytest.raises(NoiseNotFound, match="another scanner"):
        state.noise_for(scan(None, "a", device="B"))


def test_labels_are_kept() -> None:
    state = ScanState()
    texts(state, dataclasses.replace(noise(), coil_labels=("x", "y")), scan("a"))
    assert state.noise_of("a").coil_labels == ("x", "y")
