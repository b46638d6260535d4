"""Methods in general: linear ones by the suite, their order, hyperparameters by name, frames that judge."""

import dataclasses

import pytest
import torch

from inrecon.errors import FitDiverged, InvalidFrame, UnknownName
from inrecon.frame import Frame, Reconstruction
from inrecon.methods import BilevelINR, CGSense, Method, ZeroFilled, build, hold_out, methods
from inrecon.methods.method import InvalidHyperparameter
from inrecon.testing import MethodConformance, random_complex, relative_error, simulated_frame


class TestCGSense(MethodConformance):
    method = CGSense()


class TestZeroFilled(MethodConformance):
    method = ZeroFilled()


def test_every_method_is_registered() -> None:
    expected = ["auto", "bilevel_inr", "cg_sense", "grappa", "imjense", "l1_wavelet", "tv", "unroll_inr", "zero_filled"]
    with_a_prior = ["residual_inr", "residual_tikhonov", "residual_tv"]
    assert {*expected, *with_a_prior} <= set(methods.names())


def test_the_inr_beats_cg_sense_which_beats_zero_filling() -> None:
    frame, truth = simulated_frame(48, 48, noise=1e-3)
    inr = BilevelINR(iterations=300, levels=8, log2_table_size=12, base_resolution=8, width=16)
    errors = [relative_error(m.fit(frame).image, truth) for m in (inr, CGSense(), ZeroFilled())]
    assert errors == sorted(errors)


def test_a_method_that_takes_no_notice_of_held_out_samples_is_judged_by_a_second_fit() -> None:
    frame = hold_out(simulated_frame(64, 24)[0], 0.3, seed=0)
    result = CGSense().judged(frame)
    assert torch.equal(result.image, CGSense().fit(frame).image)
    assert result.trial is not None
    assert torch.equal(result.trial, CGSense().fit(frame.training).image)
    assert result.validation_loss == frame.loss(result.trial)


def test_nothing_held_out_is_nothing_to_judge_by() -> None:
    result = CGSense().judged(simulated_frame()[0])
    assert result.trial is None
    assert result.validation_loss is None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fragile(Method):
    """Gives k-space's sum as a constant image; diverges on frames without any."""

    def fit(self, frame: Frame) -> Reconstruction:
        """Or `FitDiverged`."""
        if not frame.kspace.any():
            raise FitDiverged("nothing to fit")
        image = frame.kspace.sum().expand(frame.operator.domain_shape)
        return Reconstruction(image=image, iterations=1, stopped_by="closed form")


def test_slices_are_fitted_one_by_one_and_one_that_diverges_leaves_the_others() -> None:
    frame, _ = simulated_frame()
    empty = dataclasses.replace(frame, kspace=torch.zeros_like(frame.kspace))
    first, second, third = Fragile().fit_slices([frame, empty, dataclasses.replace(frame, kspace=2 * frame.kspace)])
    assert isinstance(second, FitDiverged)
    assert isinstance(first, Reconstruction)
    assert isinstance(third, Reconstruction)
    torch.testing.assert_close(third.image, 2 * first.image)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1.0}, "no field 'learning_rat'; its fields are .*learning_rate"),
        ({"learning_rate": 1.0}, r"bilevel_inr.learning_rate must lie in 1e-05 .. 0.05, not 1"),
        ({"learning_rate": "nan"}, "must lie in"),
        ({"learning_rate": "fast"}, "must be float, not 'fast'"),
        ({"learning_rate": True}, "must be float, not True"),
        ({"iterations": 10.5}, "must be int, not 10.5"),
        ({"iterations": 0}, "must lie in 1 .. 100000"),
        ({"weight": "all"}, "must be one of 'self', 'acquired', 'none', not 'all'"),
        ({"encoder": "hash"}, "must be one of dense_grid, diner, frequency, hash_grid, identity, not 'hash'"),
        ({"seed": [1]}, r"must be int, not \[1\]"),
    ],
)
def test_a_wrong_hyperparameter_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidHyperparameter, match=message):
        build("bilevel_inr", values)


def test_an_unknown_method_is_named_with_the_known_ones() -> None:
    with pytest.raises(UnknownName, match=r"known are .*bilevel_inr, cg_sense, .*zero_filled"):
        build("sense", {})


def test_a_frame_checks_its_shapes_at_the_door() -> None:
    frame, _ = simulated_frame()
    with pytest.raises(InvalidFrame, match="operator to"):
        Frame(kspace=frame.kspace[:1], operator=frame.operator, maps=frame.maps, noise_level=None)
    with pytest.raises(InvalidFrame, match="held-out samples"):
        dataclasses.replace(frame, held_out=torch.zeros(32, 24, dtype=torch.bool))


def test_the_training_frame_has_all_samples_but_those_held_out() -> None:
    frame = hold_out(simulated_frame(64, 24)[0], 0.3, seed=0)
    held_out, training = frame.held_out, frame.training
    assert held_out is not None
    assert training.held_out is None
    assert torch.equal(training.operator.sampled, frame.operator.sampled & ~held_out)
    assert not training.kspace[:, held_out].any()
    assert torch.equal(training.kspace[:, ~held_out], frame.kspace[:, ~held_out])
    assert training.training is training


def test_the_loss_is_zero_for_the_truth_one_for_nothing_and_blind_to_what_is_fitted() -> None:
    frame, truth = simulated_frame(64, 24, noise=0.0)
    frame = hold_out(frame, 0.3, seed=0)
    loss, nothing = frame.loss(truth), frame.loss(0 * truth)
    assert loss == pytest.approx(0, abs=1e-9)
    assert nothing == pytest.approx(1)
    assert frame.held_out is not None
    elsewhere = dataclasses.replace(frame, kspace=frame.kspace * torch.where(frame.held_out, 1, -1))
    assert elsewhere.loss(truth) == loss


def test_the_loss_does_not_depend_on_the_scale() -> None:
    frame = hold_out(simulated_frame(64, 24)[0], 0.3, seed=0)
    image = random_complex(64, 24, seed=3)
    scaled = dataclasses.replace(frame, kspace=100 * frame.kspace)
    loss = frame.loss(image)
    assert loss is not None
    assert scaled.loss(100 * image) == pytest.approx(loss, rel=1e-4)


def test_without_held_out_samples_there_is_no_loss() -> None:
    frame, truth = simulated_frame()
    assert frame.loss(truth) is None
    with pytest.raises(InvalidFrame, match="no samples are held out"):
        frame.residuals(truth)


def test_the_share_of_the_noise_is_that_of_the_power() -> None:
    frame, _ = simulated_frame()
    noise = random_complex(*frame.kspace.shape, seed=5) * frame.operator.sampled
    only_noise = dataclasses.replace(frame, kspace=1e-2 * noise, noise_level=1e-2)
    assert only_noise.noise_share == pytest.approx(1, rel=0.05)
    loud = dataclasses.replace(frame, noise_level=0.3 * frame.power**0.5)
    assert loud.noise_share == pytest.approx(0.09)
    louder = dataclasses.replace(loud, kspace=10 * frame.kspace, noise_level=3 * frame.power**0.5)
    assert louder.noise_share == pytest.approx(loud.noise_share)


def test_the_share_of_the_noise_is_at_most_one_and_nothing_where_it_is_not_known() -> None:
    frame, _ = simulated_frame()
    assert dataclasses.replace(frame, noise_level=10.0).noise_share == 1
    assert dataclasses.replace(frame, noise_level=None).noise_share == 0
    assert dataclasses.replace(frame, kspace=torch.zeros_like(frame.kspace)).noise_share == 0
