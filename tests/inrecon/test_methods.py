"""Methods: the suite, and what each is for."""

import dataclasses

import pytest
import torch

from inrecon.errors import FitDiverged, UnknownName
from inrecon.events import Event, FitFinished, FitProgressed, listening
from inrecon.frame import Frame, Reconstruction
from inrecon.methods import BilevelINR, CGSense, ZeroFilled, build
from inrecon.methods.bilevel_inr import held_out_samples
from inrecon.methods.method import InvalidHyperparameter
from inrecon.testing import MethodConformance, relative_error, simulated_frame

QUICK = BilevelINR(
    iterations=60,
    levels=8,
    log2_table_size=12,
    base_resolution=4,
    width=16,
    sample_dropout=0.0,
    pixel_shift=0.0,
    closing_weight=0.0,
)


class TestBilevelINR(MethodConformance):
    method = QUICK


class TestBilevelINRStoppedByHeldOutSamples(MethodConformance):
    method = dataclasses.replace(QUICK, held_out=0.2, patience=2, weight_form="magnitude", weight_offset=1.4e-2)


class TestBilevelINRWithAcquiredWeightsAndClosing(MethodConformance):
    method = dataclasses.replace(QUICK, weight="acquired", closing_weight=0.1, sample_dropout=0.25, pixel_shift=0.25)


class TestCGSense(MethodConformance):
    method = CGSense()


class TestZeroFilled(MethodConformance):
    method = ZeroFilled()


def test_the_inr_beats_cg_sense_which_beats_zero_filling() -> None:
    frame, truth = simulated_frame(48, 48, noise=1e-3)
    inr = dataclasses.replace(QUICK, iterations=300, base_resolution=8)
    errors = [relative_error(m.fit(frame).image, truth) for m in (inr, CGSense(), ZeroFilled())]
    assert errors == sorted(errors)


def test_closing_data_consistency_brings_the_image_nearer_to_the_data() -> None:
    frame, _ = simulated_frame()

    def misfit(result: Reconstruction) -> float:
        return float((frame.operator.forward(result.image) - frame.kspace).norm())

    closed = dataclasses.replace(QUICK, closing_weight=0.1)
    assert misfit(closed.fit(frame)) < 0.5 * misfit(QUICK.fit(frame))


def test_held_out_samples_have_no_part_in_the_fit() -> None:
    frame, _ = simulated_frame()
    method = dataclasses.replace(QUICK, held_out=0.3, iterations=20)
    held_out = held_out_samples(frame, 0.3, seed=method.seed)
    assert 0.25 < held_out.sum() / frame.operator.sampled.expand_as(held_out).sum() < 0.35
    spoiled = dataclasses.replace(frame, kspace=torch.where(held_out, frame.kspace + 5, frame.kspace))
    assert torch.equal(method.fit(frame).image, method.fit(spoiled).image)


def test_another_seed_is_another_fit() -> None:
    frame, _ = simulated_frame()
    assert not torch.equal(QUICK.fit(frame).image, dataclasses.replace(QUICK, seed=1).fit(frame).image)


def test_stopping_by_held_out_samples_gives_the_best_image_of_the_run() -> None:
    frame, _ = simulated_frame(noise=2e-2)
    # Without averaging the iterates are restless, so a best one comes soon.
    method = dataclasses.replace(QUICK, iterations=600, held_out=0.2, patience=2, image_averaging=0.0)
    result = method.fit(frame)
    assert result.stopped_by == "held-out samples"
    assert result.iterations < 600
    last = dataclasses.replace(method, patience=0, iterations=result.iterations).fit(frame)
    assert result.validation_loss is not None
    assert last.validation_loss is not None
    assert result.validation_loss < last.validation_loss


def test_a_fit_that_diverges_says_so() -> None:
    frame, _ = simulated_frame()
    infinite = dataclasses.replace(frame, kspace=frame.kspace * float("inf"))
    with pytest.raises(FitDiverged, match="not finite"):
        QUICK.fit(infinite)


def test_the_fit_is_announced() -> None:
    frame, _ = simulated_frame()
    heard: list[Event] = []
    with listening(heard.append):
        result = QUICK.fit(frame)
    QUICK.fit(frame)
    finished = [event for event in heard if isinstance(event, FitFinished)]
    assert len(finished) == 1
    assert finished[0].validation_loss == result.validation_loss
    assert [event.iteration for event in heard if isinstance(event, FitProgressed)] == [25, 50, 60]


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
        ({"patience": 3, "held_out": 0.0}, "held_out must be above 0"),
        ({"encoder": "hash"}, "must be one of dense_grid, frequency, hash_grid, identity, not 'hash'"),
        ({"seed": [1]}, r"must be int, not \[1\]"),
    ],
)
def test_a_wrong_hyperparameter_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidHyperparameter, match=message):
        build("bilevel_inr", values)


def test_an_unknown_method_is_named_with_the_known_ones() -> None:
    with pytest.raises(UnknownName, match=r"known are .*bilevel_inr, cg_sense, .*zero_filled"):
        build("grappa", {})


def test_a_frame_checks_its_shapes_at_the_door() -> None:
    frame, _ = simulated_frame()
    from inrecon.errors import InvalidFrame

    with pytest.raises(InvalidFrame, match="operator to"):
        Frame(kspace=frame.kspace[:1], operator=frame.operator, maps=frame.maps, noise_level=None)
