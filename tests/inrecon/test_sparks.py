"""Sparks: what they would spoil comes out as if there had been none, and what is none is left as it is."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inrecon.acquire import raw_frames
from inrecon.condition import condition
from inrecon.condition.sparks import without_sparks
from inrecon.events import Event, Warned, listening
from inrecon.frame import RawFrame
from inrecon.simulate import simulate_intervention, simulate_scan

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


def simulated(**changes: Any) -> RawFrame:
    scan = simulate_scan(**{"shape": (64, 64), "coils": 6, "acceleration": 2, "acs": 16, **changes})
    return raw_frames(scan.header, scan.acquisitions)[0]


def sparked(raw: RawFrame, places: list[tuple[int, int]], *, size: float) -> RawFrame:
    """`raw` with samples, of one coil or another, of `size` times the largest."""
    kspace = raw.imaging.kspace.copy()
    largest = np.abs(kspace).max()
    for number, (readout, sample) in enumerate(places):
        kspace[number % len(kspace), readout, sample] = size * largest * np.exp(1j * number)
    return dataclasses.replace(raw, imaging=dataclasses.replace(raw.imaging, kspace=kspace))


def mended(raw: RawFrame) -> tuple[RawFrame, list[str]]:
    heard: list[Event] = []
    with listening(heard.append):
        result = without_sparks(raw)
    return result, [event.text for event in heard if isinstance(event, Warned)]


@pytest.mark.parametrize("size", [0.3, 1.0, 1e6])
def test_what_sparks_would_spoil_comes_out_as_if_there_had_been_none(size: float) -> None:
    raw = simulated()
    places = [(0, 3), (2, 30), (9, 5), (len(raw.imaging.lines) - 1, raw.imaging.kspace.shape[-1] - 4)]
    found, told = mended(sparked(raw, places, size=size))
    (text,) = told
    assert text.startswith("slice 0, repetition 0: 4 samples are sparks")
    touched = (found.imaging.kspace != raw.imaging.kspace).any(0)
    assert sorted(zip(*np.nonzero(touched), strict=True)) == sorted(places)
    difference = np.linalg.norm(found.imaging.kspace - raw.imaging.kspace) / np.linalg.norm(raw.imaging.kspace)
    assert difference < 0.01
    spoilt, clean = condition(sparked(raw, places, size=size), device="cpu"), condition(raw, device="cpu")
    assert spoilt.scale == pytest.approx(clean.scale, rel=1e-3)


def test_one_whose_square_overflows_is_none_the_less_one() -> None:
    raw = simulated()
    found, told = mended(sparked(raw, [(2, 30)], size=1e25))
    assert len(told) == 1
    assert np.abs(found.imaging.kspace).max() == np.abs(raw.imaging.kspace).max()


def test_calibration_of_its_own_is_mended_too() -> None:
    raw = simulated()
    spoilt = dataclasses.replace(raw, calibration=sparked(raw, [(3, 7)], size=1.0).imaging)
    found, told = mended(spoilt)
    assert len(told) == 1
    assert found.imaging is raw.imaging
    assert found.calibration is not None
    assert np.abs(found.calibration.kspace[:, 3, 7]).max() < np.abs(raw.imaging.kspace).max() / 10


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"coils": 1},
        {"snr": 3.0},
        {"snr": 1e6},
        {"acceleration": 1, "shape": (96, 32)},
        {"oversampling": False},
    ],
    ids=str,
)
def test_scans_without_sparks_are_left_as_they_are(changes: dict[str, Any]) -> None:
    raw = simulated(**changes)
    assert without_sparks(raw) is raw


def test_streams_without_sparks_are_left_as_they_are() -> None:
    made = simulate_intervention(shape=(64, 64), coils=8, frames=5)
    for raw in raw_frames(made.header, made.all_acquisitions()):
        assert without_sparks(raw) is raw


@pytest.mark.parametrize("name", ["brain_16ch_96", "brain_8ch_230x180"])
@pytest.mark.parametrize("rotated", [False, True])
def test_measured_brains_have_none(name: str, rotated: bool) -> None:
    path = SHARED / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"{path.name} is not at hand")
    kspace = np.load(path)["kspace"].astype(np.complex64)
    kspace = np.ascontiguousarray(kspace.swapaxes(1, 2)) if rotated else kspace
    _, y, x = kspace.shape
    raw = simulated()
    lines = np.stack([np.zeros(y, np.int64), np.arange(y)], -1)
    imaging = dataclasses.replace(raw.imaging, kspace=kspace, lines=lines, acquired=np.ones((y, x), bool))
    matrix = {"encoded_matrix": (x, y, 1), "encoded_fov_mm": (x, y, 1.0)}
    geometry = dataclasses.replace(raw.geometry, **matrix)
    noise_free = dataclasses.replace(raw, imaging=imaging, geometry=geometry, noise=None, calibration=None)
    assert without_sparks(noise_free) is noise_free


def test_the_centre_is_a_peak_of_its_own() -> None:
    """A uniform object as large as the field of view has nothing beside it but noise."""
    raw = simulated(acceleration=1)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2, *raw.imaging.kspace.shape)).astype(np.float32)
    kspace = 1e-3 * (noise[0] + 1j * noise[1])
    (middle,) = np.nonzero((raw.imaging.lines == (0, raw.geometry.encoded_matrix[1] // 2)).all(1))
    kspace[:, middle, kspace.shape[-1] // 2] = 1
    found = dataclasses.replace(raw, imaging=dataclasses.replace(raw.imaging, kspace=kspace.astype(np.complex64)))
    assert without_sparks(found) is found
