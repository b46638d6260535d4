"""The INR and the classical methods as one image: laws of the weights, of the combination, and of who is left out."""

import dataclasses
import math
import re
from collections.abc import Sequence

import pytest
import torch

from inrecon.errors import FitDiverged
from inrecon.frame import Frame, Reconstruction
from inrecon.methods import BilevelINR, auto, hold_out
from inrecon.methods.auto import CLASSICAL, Auto, convex_weights
from inrecon.methods.total_variation import TotalVariation
from inrecon.testing import MethodConformance, random_complex, relative_error, simulated_frame

QUICK = Auto(iterations=100, levels=8, log2_table_size=12, base_resolution=8, width=16, pixel_shift=0.0)
ALONE = BilevelINR(**dataclasses.asdict(QUICK))
SEEDS = pytest.mark.parametrize("seed", range(6))
COUNTS = pytest.mark.parametrize("count", [1, 2, 3, 4])


class TestAuto(MethodConformance):
    method = QUICK


def judged_frame(*, noise: float = 1e-2) -> Frame:
    frame = hold_out(simulated_frame(64, 24, noise=noise)[0], 0.2, seed=0)
    assert frame.held_out is not None
    return frame


@pytest.fixture(scope="module")
def candidates() -> dict[str, Reconstruction]:
    """What each method makes of the frame alone."""
    frame = judged_frame()
    return {"bilevel_inr": ALONE.fit(frame)} | {name: method.judged(frame) for name, method in CLASSICAL.items()}


@pytest.fixture(scope="module")
def combined() -> Reconstruction:
    return QUICK.fit(judged_frame())


def diverge(self: BilevelINR, frames: Sequence[Frame]) -> list[FitDiverged]:
    return [FitDiverged("bilevel_inr diverged: tested here") for _ in frames]


def error(weights: Sequence[float], residuals: torch.Tensor) -> float:
    """|sum_i a_i residuals_i|^2."""
    shares = torch.tensor(weights, dtype=residuals.dtype)
    return float((shares[:, None] * residuals).sum(0).abs().square().sum())


def some_residuals(count: int, seed: int) -> torch.Tensor:
    """Of candidates that err partly alike, one of them thrice as much as the first."""
    common = random_complex(1, 50, seed=100 + seed)
    sizes = torch.linspace(1, 3, count)[:, None]
    return sizes * (common + 0.7 * random_complex(count, 50, seed=seed))


@COUNTS
@SEEDS
def test_weights_are_shares(count: int, seed: int) -> None:
    weights = convex_weights(some_residuals(count, seed))
    assert len(weights) == count
    assert min(weights) >= 0
    assert math.fsum(weights) == pytest.approx(1)


@COUNTS
@SEEDS
def test_no_candidate_is_better_than_the_weighted_mean(count: int, seed: int) -> None:
    residuals = some_residuals(count, seed)
    singles = [error([float(i == j) for j in range(count)], residuals) for i in range(count)]
    assert error(convex_weights(residuals), residuals) <= min(singles) * (1 + 1e-5)


@COUNTS
@SEEDS
def test_no_other_shares_are_better(count: int, seed: int) -> None:
    """The conditions of Karush, Kuhn and Tucker: towards no candidate does the error fall."""
    residuals = some_residuals(count, seed).to(torch.complex128)
    weights = convex_weights(residuals)
    mean = (torch.tensor(weights, dtype=residuals.dtype)[:, None] * residuals).sum(0)
    slopes = (residuals @ mean.conj()).real
    assert slopes.min() >= error(weights, residuals) * (1 - 1e-9)


def test_orthogonal_residuals_are_weighted_by_the_inverse_of_their_power() -> None:
    powers = torch.tensor([1.0, 4.0, 0.5])
    residuals = torch.diag(powers.sqrt()).to(torch.complex64)
    inverse = 1 / powers
    assert convex_weights(residuals) == pytest.approx((inverse / inverse.sum()).tolist())


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_candidate_without_error_gets_all_the_weight(which: int) -> None:
    residuals = random_complex(3, 50, seed=1)
    residuals[which] = 0
    assert convex_weights(residuals) == pytest.approx([float(i == which) for i in range(3)], abs=1e-9)


def test_candidates_whose_errors_cancel_are_taken_together() -> None:
    first, other = random_complex(2, 50, seed=1)
    weights = convex_weights(torch.stack([first, other, -3 * first]))
    assert weights == pytest.approx([0.75, 0, 0.25], abs=1e-6)


def test_among_candidates_without_error_the_weights_are_shares_still() -> None:
    assert math.fsum(convex_weights(torch.zeros(3, 50, dtype=torch.complex64))) == pytest.approx(1)


@SEEDS
def test_two_identical_candidates_are_as_good_as_one(seed: int) -> None:
    first, second = random_complex(2, 50, seed=seed)
    once, twice = torch.stack([first, second]), torch.stack([first, second, first])
    weights = convex_weights(twice)
    assert min(weights) >= 0
    assert math.fsum(weights) == pytest.approx(1)
    assert weights[0] + weights[2] == pytest.approx(convex_weights(once)[0], abs=1e-6)


@pytest.mark.parametrize("size", [1e3, 1e8])
def test_how_badly_a_candidate_fails_does_not_matter(size: float) -> None:
    residuals = some_residuals(3, seed=0)
    failed = size * random_complex(1, 50, seed=7)
    weights = convex_weights(torch.cat([residuals, failed]))
    assert weights == pytest.approx([*convex_weights(residuals), 0.0], abs=1e-3)


def test_the_weights_do_not_depend_on_the_scale() -> None:
    residuals = some_residuals(4, seed=0)
    assert convex_weights(1e-4 * residuals) == pytest.approx(convex_weights(residuals), abs=1e-5)


def test_its_loss_is_at_most_that_of_each_candidate(
    candidates: dict[str, Reconstruction], combined: Reconstruction
) -> None:
    assert combined.validation_loss is not None
    for candidate in candidates.values():
        assert candidate.validation_loss is not None
        assert combined.validation_loss <= candidate.validation_loss * (1 + 1e-5)


def test_image_and_trial_are_the_same_mean_of_the_candidates(
    candidates: dict[str, Reconstruction], combined: Reconstruction
) -> None:
    trials = [candidate.trial for candidate in candidates.values() if candidate.trial is not None]
    weights = convex_weights(torch.stack([judged_frame().residuals(trial) for trial in trials]))
    assert sum(weight > 0.01 for weight in weights) > 1
    images = [candidate.image for candidate in candidates.values()]
    for mean, parts in ((combined.image, images), (combined.trial, trials)):
        assert mean is not None
        expected = sum(weight * part for weight, part in zip(weights, parts, strict=True))
        assert isinstance(expected, torch.Tensor)
        assert relative_error(mean, expected) < 1e-5
    assert combined.trial is not None
    assert combined.validation_loss == judged_frame().loss(combined.trial)


def test_the_remark_names_the_parts_and_the_losses_of_all(
    candidates: dict[str, Reconstruction], combined: Reconstruction
) -> None:
    parts, losses = combined.remark.removesuffix(")").split(" (held-out losses: ")
    named = dict(reversed(part.split(" ")) for part in parts.split(" + "))
    assert set(named) <= set(candidates)
    assert sum(map(float, named.values())) == pytest.approx(1, abs=0.03)
    assert losses == ", ".join(f"{name} {c.validation_loss:.4g}" for name, c in candidates.items())


def test_the_same_frame_gives_the_same_bits(combined: Reconstruction) -> None:
    again = QUICK.fit(judged_frame())
    assert torch.equal(again.image, combined.image)
    assert again.remark == combined.remark


def test_each_slice_is_weighed_by_itself(combined: Reconstruction) -> None:
    other = judged_frame(noise=5e-2)
    first, second = QUICK.fit_slices([judged_frame(), other])
    assert isinstance(first, Reconstruction)
    assert isinstance(second, Reconstruction)
    assert first.remark != second.remark
    assert first.trial is not None
    assert second.trial is not None
    assert first.validation_loss == judged_frame().loss(first.trial)
    assert second.validation_loss == other.loss(second.trial)


@pytest.mark.parametrize("certain", [-1.0, 0.0, 1.2, 2.0, 50.0])
def test_cg_sense_takes_the_place_of_what_is_not_certain(
    candidates: dict[str, Reconstruction],
    combined: Reconstruction,
    certain: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two standard errors are certain enough; the frame of these tests is."""
    monkeypatch.setattr(auto, "certainty", lambda *_, **__: certain)
    share = min(max(certain / 2, 0.0), 1.0)
    expected = share * combined.image + (1 - share) * candidates["cg_sense"].image
    assert relative_error(QUICK.fit(judged_frame()).image, expected) < 1e-5


def test_a_network_that_diverges_is_left_out(
    candidates: dict[str, Reconstruction], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BilevelINR, "fit_slices", diverge)
    result = QUICK.fit(judged_frame())
    assert torch.isfinite(torch.view_as_real(result.image)).all()
    assert re.match(r"\d\.\d\d (cg_sense|tv|l1_wavelet)", result.remark)
    assert result.remark.endswith("; without bilevel_inr: bilevel_inr diverged: tested here")
    assert result.validation_loss is not None
    for name in CLASSICAL:
        assert result.validation_loss <= (candidates[name].validation_loss or 0) * (1 + 1e-5)


def test_without_held_out_samples_the_network_is_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, _ = simulated_frame(64, 24)
    result = QUICK.fit(frame)
    assert torch.equal(result.image, ALONE.fit(frame).image)
    assert (result.remark, result.validation_loss) == ("", None)
    monkeypatch.setattr(BilevelINR, "fit_slices", diverge)
    with pytest.raises(FitDiverged, match="tested here"):
        QUICK.fit(frame)


def test_a_slice_that_no_method_can_fit_leaves_the_others(combined: Reconstruction) -> None:
    frame = judged_frame()
    spoilt = dataclasses.replace(frame, kspace=frame.kspace * float("nan"))
    first, second = QUICK.fit_slices([frame, spoilt])
    assert isinstance(first, Reconstruction)
    assert isinstance(second, FitDiverged)
    assert relative_error(first.image, combined.image) < 0.02


def test_a_classical_method_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: TotalVariation, frame: Frame) -> Reconstruction:
        raise FitDiverged("tv diverged: tested here")

    monkeypatch.setattr(TotalVariation, "fit", fail)
    result = QUICK.fit(judged_frame())
    assert "bilevel_inr" in result.remark
    assert result.remark.endswith("; without tv: tv diverged: tested here")
