"""Noise covariances in SFNDAM: nothing is lost, and nothing but a covariance is taken for one."""

from __future__ import annotations

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inrecon.frame import Noise
from inrecon_server.sfndam import MOST_BYTES, InvalidNoise, parse_noise, serialise_noise

HEAD = 42
"""Bytes before the array."""


def noise(coils: int = 3, *, rank: int | None = None, labels: tuple[str, ...] = ("a", "b", "ä")) -> Noise:
    rng = np.random.default_rng(coils)
    shape = coils, rank or 2 * coils
    colour = rng.uniform(0.01, 100, coils)[:, None] * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))
    return Noise(
        covariance=colour @ colour.conj().T,
        samples=1000,
        sample_time_us=2.5,
        relative_bandwidth=0.793,
        coil_labels=labels,
    )


def blob(covariance: np.ndarray, *, code: int = 8, axes: int = 2, meta: bytes | None = None, **facts: object) -> bytes:
    document = {
        "channels": len(covariance),
        "labels": [],
        "noiseDwellTimeUs": 2.5,
        "receiverNoiseBandwidth": 0.8,
        "sampleCount": 10,
        **facts,
    }
    meta = json.dumps(document).encode() if meta is None else meta
    head = struct.pack("<IIIQQQ", 1, code, axes, *covariance.shape, len(meta))
    return b"SFNDAM" + head + covariance.astype("<c8" if code == 7 else "<c16").tobytes() + meta


@pytest.mark.parametrize("coils", [1, 3, 32, 128])
def test_double_precision_loses_nothing(coils: int) -> None:
    before = noise(coils)
    after, facts = parse_noise(serialise_noise(before, "double", more="said"))
    assert np.array_equal(after.covariance, before.covariance)
    for name in ("samples", "sample_time_us", "relative_bandwidth", "coil_labels"):
        assert getattr(after, name) == getattr(before, name)
    assert facts["more"] == "said"


@pytest.mark.parametrize("rank", [None, 16, 1])
def test_single_precision_is_a_covariance_still(rank: int | None) -> None:
    before = noise(32, rank=rank)
    after, _ = parse_noise(serialise_noise(before, "single"))
    assert np.allclose(after.covariance, before.covariance, rtol=1e-6)


def test_sums_in_single_precision_are_taken() -> None:
    rng = np.random.default_rng(0)
    few = (rng.standard_normal((32, 8)) + 1j * rng.standard_normal((32, 8))) * rng.uniform(1e-3, 1e3, 32)[:, None]
    samples = (few @ (rng.standard_normal((8, 4096)) + 1j * rng.standard_normal((8, 4096)))).astype(np.complex64)
    parse_noise(blob((samples @ samples.conj().T) / np.float32(4095), code=7))


def test_dead_coils_and_silence_are_noise_too() -> None:
    silent = np.zeros((3, 3), complex)
    parse_noise(blob(silent))
    silent[1, 1] = 2
    parse_noise(blob(silent))


@pytest.mark.parametrize(
    ("covariance", "told"),
    [
        (np.diag([np.nan, 1]), "not a covariance"),
        (np.diag([1, np.inf]), "not a covariance"),
        (np.eye(2) * 1e300, "not a covariance"),
        (np.diag([1.0, -1.0]), "not a covariance"),
        (np.array([[1, 2], [2, 1]]), "not a covariance"),
        (np.array([[1, 0.5], [-0.5, 1]]), "not a covariance"),
        (np.array([[1, 0.5j], [0.5j, 1]]), "not a covariance"),
        (np.array([[0, 1], [1, 0]]), "not a covariance"),
        (np.array([[1e-300, 1], [1, 1]]), "not a covariance"),
        (np.eye(3) * 1.9 - 0.9, "not a covariance"),
        (np.ones((2, 3)), "not a square matrix"),
        (np.ones((0, 0)), "not a square matrix"),
    ],
)
def test_a_matrix_that_is_no_covariance_is_refused(covariance: np.ndarray, told: str) -> None:
    with pytest.raises(InvalidNoise, match=told):
        parse_noise(blob(covariance))


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"sampleCount": 0}, "number of samples"),
        ({"sampleCount": 1.5}, "number of samples"),
        ({"sampleCount": None}, "number of samples"),
        ({"noiseDwellTimeUs": -1}, "noiseDwellTimeUs"),
        ({"noiseDwellTimeUs": float("nan")}, "noiseDwellTimeUs"),
        ({"noiseDwellTimeUs": "4"}, "noiseDwellTimeUs"),
        ({"receiverNoiseBandwidth": float("inf")}, "receiverNoiseBandwidth"),
        ({"labels": "abc"}, "coil labels"),
        ({"labels": [1, 2, 3]}, "coil labels"),
        ({"meta": b"[1]"}, "not a JSON object"),
        ({"meta": b"{"}, "not JSON"),
        ({"meta": b"\xff"}, "not JSON"),
        ({"meta": b"[" * 100_000}, "not JSON"),
        ({"code": 6}, "complex"),
        ({"axes": 3}, "square"),
    ],
)
def test_wrong_facts_are_refused(facts: dict[str, object], told: str) -> None:
    parse_noise(blob(np.eye(3)))
    with pytest.raises(InvalidNoise, match=told):
        parse_noise(blob(np.eye(3), **facts))  # type: ignore[arg-type]


@pytest.mark.parametrize("loud", [np.eye(2) * 1e40, np.diag([1, -1])])
def test_what_could_not_be_read_is_not_written(loud: np.ndarray) -> None:
    unreadable = Noise(covariance=loud + 0j, samples=9, sample_time_us=2.5, relative_bandwidth=0.8)
    for precision in ("single", "double"):
        with pytest.raises(InvalidNoise, match="not a covariance"):
            serialise_noise(unreadable, precision)  # type: ignore[arg-type]


def test_a_wrong_size_costs_no_memory() -> None:
    sound = blob(np.eye(3))
    for at in (18, 26, 34):
        with pytest.raises(InvalidNoise):
            parse_noise(sound[:at] + struct.pack("<Q", 2**62) + sound[at + 8 :])


def test_a_large_one_is_neither_written_nor_read() -> None:
    with pytest.raises(InvalidNoise, match="400 coils"):
        serialise_noise(noise(400), "double")
    with pytest.raises(InvalidNoise, match="too large"):
        parse_noise(blob(np.eye(3)) + bytes(MOST_BYTES))


@pytest.mark.parametrize("length", range(HEAD + 2))
def test_a_part_of_it_is_refused(length: int) -> None:
    with pytest.raises(InvalidNoise):
        parse_noise(blob(np.eye(3))[:length])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 400), st.integers(0, 40), st.binary(max_size=20))
def test_any_damage_gives_noise_or_is_refused(at: int, length: int, put: bytes) -> None:
    whole = serialise_noise(noise(), "double")
    with contextlib.suppress(InvalidNoise):
        parse_noise(whole[:at] + put + whole[at + length :])
