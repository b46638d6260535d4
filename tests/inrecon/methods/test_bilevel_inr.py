"""The bilevel INR: the suite, what held-out samples may do, members and slices side by side, the phase option."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch

from inrecon.errors import FitDiverged
from inrecon.events import Event, FitFinished, FitProgressed, listening
from inrecon.frame import Frame, Reconstruction
from inrecon.methods import BilevelINR, bilevel_inr, hold_out
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
    phase_width=0.0,
    closing_weight=0.0,
)
# Everything on that the members and slices of a batch might share by mistake.
WHOLE = dataclasses.replace(QUICK, iterations=30, sample_dropout=0.25, pixel_shift=0.25, phase_width=8.0)


class TestBilevelINR(MethodConformance):
    method = QUICK


class TestBilevelINRByMagnitudes(MethodConformance):
    method = dataclasses.replace(QUICK, weight_form="magnitude", offset_unit="peak", weight_offset=1.4e-2)


class TestBilevelINRWithAcquiredWeightsAndClosing(MethodConformance):
    method = dataclasses.replace(QUICK, weight="acquired", closing_weight=0.1, sample_dropout=0.25, pixel_shift=0.25)


class TestBilevelINROfTwoMembersWithPhase(MethodConformance):
    method = dataclasses.replace(QUICK, members=2, phase_width=8.0, closing_weight=0.1)


def judging(frame: Frame, fraction: float = 0.3) -> Frame:
    """`frame` with a part of its samples held out."""
    judging = hold_out(frame, fraction, seed=0)
    assert judging.held_out is not None
    return judging


def spoiled(frame: Frame) -> Frame:
    """`frame` with other values where it is held out."""
    assert frame.held_out is not None
    return dataclasses.replace(frame, kspace=frame.kspace + 5 * frame.held_out)


def two_slices(*, noise: float = 1e-3) -> list[Frame]:
    """Two frames of the same samples: another object, other maps, another scale."""
    first, _ = simulated_frame(noise=noise)
    csm = first.maps.csm.flip(0, 2)
    other = simulated_frame(noise=noise)[1].flip(1).square()
    operator = type(first.operator)(csm, first.operator.mask)
    maps = dataclasses.replace(first.maps, csm=csm)
    second = dataclasses.replace(first, kspace=operator.forward(3 * other), operator=operator, maps=maps)
    return [first, second]


def images(results: Sequence[Reconstruction | FitDiverged]) -> list[torch.Tensor]:
    """Of fits that went well."""
    assert not any(isinstance(result, FitDiverged) for result in results)
    return [result.image for result in results if isinstance(result, Reconstruction)]


def test_closing_data_consistency_brings_the_image_nearer_to_the_data() -> None:
    frame, _ = simulated_frame()

    def misfit(result: Reconstruction) -> float:
        return float((frame.operator.forward(result.image) - frame.kspace).norm())

    closed = dataclasses.replace(QUICK, closing_weight=0.1)
    assert misfit(closed.fit(frame)) < 0.5 * misfit(QUICK.fit(frame))


def test_held_out_samples_have_no_part_in_the_fit() -> None:
    frame = judging(simulated_frame()[0])
    first, second = WHOLE.fit(frame), WHOLE.fit(spoiled(frame))
    assert torch.equal(first.image, second.image)
    assert first.losses == second.losses
    assert first.validation_loss != second.validation_loss


def test_held_out_samples_come_in_with_the_closing_of_the_image_and_not_of_the_trial() -> None:
    frame, method = judging(simulated_frame()[0]), dataclasses.replace(WHOLE, closing_weight=0.1)
    first, second = method.fit(frame), method.fit(spoiled(frame))
    assert first.trial is not None
    assert second.trial is not None
    assert torch.equal(first.trial, second.trial)
    assert relative_error(second.image, first.image) > 0.1
    assert first.validation_loss == frame.loss(first.trial)


def test_nothing_held_out_is_nothing_to_judge_by() -> None:
    result = QUICK.fit(simulated_frame()[0])
    assert result.validation_loss is None
    assert result.trial is None


def test_another_seed_is_another_fit() -> None:
    frame, _ = simulated_frame()
    assert not torch.equal(QUICK.fit(frame).image, dataclasses.replace(QUICK, seed=1).fit(frame).image)


def test_two_members_are_the_mean_of_two_seeds() -> None:
    frame, _ = simulated_frame(noise=1e-3)
    both = dataclasses.replace(WHOLE, members=2).fit(frame)
    alone = [dataclasses.replace(WHOLE, seed=seed).fit(frame) for seed in (0, 1)]
    assert relative_error(both.image, (alone[0].image + alone[1].image) / 2) < 1e-3
    assert relative_error(alone[0].image, alone[1].image) > 0.05
    assert both.losses == pytest.approx([sum(pair) / 2 for pair in zip(*(a.losses for a in alone), strict=True)])


@pytest.mark.parametrize("members", [1, 2])
def test_two_slices_are_two_fits(members: int) -> None:
    frames, method = two_slices(), dataclasses.replace(WHOLE, members=members, closing_weight=0.1)
    for together, frame in zip(images(method.fit_slices(frames)), frames, strict=True):
        assert relative_error(together, method.fit(frame).image) < 1e-3


def test_slices_in_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [*two_slices(), two_slices()[0]]
    together = images(WHOLE.fit_slices(frames))
    sizes: list[int] = []

    class Counted(bilevel_inr.LowerLevel):
        def __init__(self, method: BilevelINR, frames: Sequence[Frame]) -> None:
            sizes.append(len(frames))
            super().__init__(method, frames)

    monkeypatch.setattr(bilevel_inr, "LowerLevel", Counted)
    monkeypatch.setattr(bilevel_inr, "LARGEST_BATCH", 2 * frames[0].maps.support.numel())
    for whole, piece in zip(together, images(WHOLE.fit_slices(frames)), strict=True):
        assert relative_error(piece, whole) < 1e-3
    assert sizes == [2, 1]


def test_a_slice_that_diverges_leaves_the_others() -> None:
    frame, spoilt = two_slices()
    spoilt = dataclasses.replace(spoilt, kspace=spoilt.kspace * float("nan"))
    first, second = QUICK.fit_slices([frame, spoilt])
    assert isinstance(first, Reconstruction)
    assert isinstance(second, FitDiverged)
    assert relative_error(first.image, QUICK.fit(frame).image) < 1e-3


def test_slices_outside_each_others_support_are_fitted_whole() -> None:
    """The networks see the union of the supports."""
    frames = two_slices()
    halves = [torch.zeros_like(frames[0].maps.support) for _ in frames]
    halves[0][:16], halves[1][16:] = True, True
    halved = []
    for frame, half in zip(frames, halves, strict=True):
        maps = dataclasses.replace(frame.maps, csm=frame.maps.csm * half, support=half)
        operator = type(frame.operator)(maps.csm, frame.operator.mask)
        halved.append(dataclasses.replace(frame, operator=operator, maps=maps))
    for image, half in zip(images(QUICK.fit_slices(halved)), halves, strict=True):
        assert image[half].all()


def test_a_smooth_phase_helps_at_equal_iterations() -> None:
    frame, truth = simulated_frame(48, 48, noise=3e-3)
    plain = dataclasses.replace(QUICK, base_resolution=8)
    phased = dataclasses.replace(plain, phase_width=16.0)
    assert relative_error(phased.fit(frame).image, truth) < 0.9 * relative_error(plain.fit(frame).image, truth)


def test_stopping_by_held_out_samples_gives_the_best_image_of_the_run() -> None:
    frame = judging(simulated_frame(noise=2e-2)[0], 0.2)
    # Without averaging the iterates are restless, so a best one comes soon.
    method = dataclasses.replace(QUICK, iterations=600, patience=2, image_averaging=0.0)
    result = method.fit(frame)
    assert result.stopped_by == "held-out samples"
    assert result.iterations < 600
    last = dataclasses.replace(method, patience=0, iterations=result.iterations).fit(frame)
    assert result.validation_loss is not None
    assert last.validation_loss is not None
    assert result.validation_loss < last.validation_loss


def test_patience_without_held_out_samples_is_refused() -> None:
    with pytest.raises(InvalidHyperparameter, match=r"bilevel_inr\.patience needs samples"):
        dataclasses.replace(QUICK, patience=3).fit(simulated_frame()[0])


def test_a_fit_that_diverges_says_so() -> None:
    frame, _ = simulated_frame()
    infinite = dataclasses.replace(frame, kspace=frame.kspace * float("inf"))
    with pytest.raises(FitDiverged, match="not finite"):
        QUICK.fit(infinite)


@pytest.mark.parametrize("offset_unit", ["power", "peak"])
@pytest.mark.parametrize("weight_form", ["squares", "magnitude"])
def test_the_weights_do_not_depend_on_the_scale_of_kspace(offset_unit: str, weight_form: str) -> None:
    """A loss over squares of the data is without units: the first one, of an image of nearly nothing, stays."""
    method = dataclasses.replace(
        QUICK, iterations=1, weight="acquired", offset_unit=offset_unit, weight_form=weight_form
    )
    frame, _ = simulated_frame()
    louder = dataclasses.replace(frame, kspace=1e3 * frame.kspace)
    assert method.fit(louder).losses[0] == pytest.approx(method.fit(frame).losses[0], rel=1e-2)


def test_the_fit_is_announced() -> None:
    frame = judging(simulated_frame()[0])
    heard: list[Event] = []
    with listening(heard.append):
        result = QUICK.fit(frame)
    QUICK.fit(frame)
    finished = [event for event in heard if isinstance(event, FitFinished)]
    assert len(finished) == 1
    assert finished[0].validation_loss == result.validation_loss
    assert result.validation_loss is not None
    assert [event.iteration for event in heard if isinstance(event, FitProgressed)] == [25, 50, 60]
