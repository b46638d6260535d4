"""Candidates side by side: each is the fit that it would be alone, whoever else runs and however often it pauses."""

import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch

from inrecon.methods import BilevelINR, L1Wavelet, Method, hold_out
from inrecon.testing import simulated_frame
from inrecon.tuning import Judged, race

QUICK = BilevelINR(levels=5, log2_table_size=10, base_resolution=4, width=16, iterations=40)
CANDIDATES = [
    QUICK,
    dataclasses.replace(QUICK, learning_rate=3e-3, weight_offset=0.1),
    dataclasses.replace(QUICK, weight_decay_encoder=2e-3, weight_decay_mlp=1e-4),
    dataclasses.replace(QUICK, per_level_scale=1.3),
    dataclasses.replace(QUICK, learning_rate=2e-2, per_level_scale=1.3),
]


def judged(rows: int = 48, columns: int = 24, *, seeds: Sequence[int] = (0,), noise: float = 1e-2) -> list[Judged]:
    frame, _ = simulated_frame(rows, columns, noise=noise)
    return [Judged(frame=hold_out(frame, 0.2, seed=seed)) for seed in seeds]


GROUPS = [judged(seeds=(0, 1)), judged(32, 28)]


def losses_after(methods: Sequence[Method], *stops: int, groups: Sequence[Sequence[Judged]] = GROUPS) -> list[float]:
    candidates = race(methods, groups)
    for stop in stops:
        candidates.advance(stop)
    return candidates.losses()


@pytest.fixture(scope="module")
def alone() -> list[float]:
    """What each candidate comes to by itself in 40 iterations."""
    return [losses_after([method], 40)[0] for method in CANDIDATES]


def test_candidates_do_not_know_of_each_other(alone: list[float]) -> None:
    assert losses_after(CANDIDATES, 40) == pytest.approx(alone, rel=1e-4)
    assert losses_after(CANDIDATES[::-1], 40) == pytest.approx(alone[::-1], rel=1e-4)
    assert len({round(loss, 4) for loss in alone}) == len(alone)


def test_pauses_change_nothing(alone: list[float]) -> None:
    assert losses_after(CANDIDATES, 7, 10, 33, 40) == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("kept", [[0, 1, 2, 3, 4], [3], [4, 1], [2, 0, 4]])
def test_those_that_are_kept_go_on_as_if_nothing_had_happened(alone: list[float], kept: list[int]) -> None:
    candidates = race(CANDIDATES, GROUPS)
    candidates.advance(15)
    before = candidates.losses()
    candidates.keep(kept)
    assert candidates.losses() == pytest.approx([before[number] for number in kept], rel=1e-5)
    candidates.advance(40)
    assert candidates.losses() == pytest.approx([alone[number] for number in kept], rel=1e-4)
    assert candidates.spent == 15 * len(CANDIDATES) + 25 * len(kept)


def test_a_loss_is_the_mean_over_frames_and_folds() -> None:
    each = [losses_after([QUICK], 20, groups=[[one]])[0] for group in GROUPS for one in group]
    assert losses_after([QUICK], 20)[0] == pytest.approx(sum(each) / 3, rel=1e-4)


def test_what_diverges_is_infinitely_bad_and_harms_nobody(alone: list[float]) -> None:
    wild = dataclasses.replace(QUICK, learning_rate=1e30)
    found = losses_after([wild, *CANDIDATES], 40)
    assert found[0] == math.inf
    assert found[1:] == pytest.approx(alone, rel=1e-4)
    apart = losses_after([dataclasses.replace(wild, per_level_scale=1.4), QUICK], 40)
    assert apart == [math.inf, pytest.approx(found[1], rel=1e-4)]


def test_methods_without_networks_are_fitted_anew() -> None:
    group = judged()
    methods = [L1Wavelet(regularisation=weight) for weight in (1e-3, 1e-1)]
    expected = [dataclasses.replace(m, iterations=12).judged(group[0].frame).validation_loss for m in methods]
    candidates = race(methods, [group])
    candidates.advance(12)
    assert candidates.losses() == expected
    candidates.keep([1])
    assert candidates.losses() == expected[1:]
    assert candidates.spent == 24


def test_a_reference_judges_by_the_magnitude_up_to_a_scale() -> None:
    frame, truth = simulated_frame(48, 24)
    one = Judged(frame=frame, reference=truth.abs())
    assert one.loss(3 * truth * torch.exp(torch.tensor(0.7j))) == pytest.approx(0, abs=1e-5)
    half = truth.clone()
    half[:24] = 0
    inside = frame.maps.support
    rest = truth.abs()[inside & (torch.arange(48) < 24)[:, None]].norm() / truth.abs()[inside].norm()
    assert one.loss(half) == pytest.approx(float(rest), rel=1e-4)
    assert losses_after([QUICK], 40, groups=[[one]])[0] < 0.3
