"""The bilevel INR: the suite, what held-out samples may do, members and slices side by side, the phase option."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch

from inrecon.errors import FitDiverged
from inrecon.events import Event, FitFinished, FitProgressed, listening
from inrecon.frame import Frame, Reconstruction
from inrecon.methods import BilevelINR, bilevel_inr, hold_out
from inrecon.methods.linear import data_consistent
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


def judged_frame(fraction: float = 0.3, *, noise: float = 1e-4) -> Frame:
    """A frame with a part of its samples held out."""
    frame = hold_out(simulated_frame(64, 24, noise=noise)[0], fraction, seed=0)
    assert frame.held_out is not None
    return frame


def trial_of(result: Reconstruction) -> torch.Tensor:
    assert result.trial is not None
    return result.trial


def spoiled(frame: Frame) -> Frame:
    """`frame` with other values where it is held out."""
    assert frame.held_out is not None
    return dataclasses.replace(frame, kspace=frame.kspace + 0.05 * frame.held_out)


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


@pytest.mark.parametrize("closing_weight", [0.0, 0.1])
def test_held_out_samples_have_no_part_in_the_trial_but_in_the_image(closing_weight: float) -> None:
    frame, method = judged_frame(), dataclasses.replace(WHOLE, iterations=40, closing_weight=closing_weight)
    first, second = method.fit(frame), method.fit(spoiled(frame))
    assert first.losses[:30] == second.losses[:30]
    assert first.losses[30] != second.losses[30]
    assert torch.equal(trial_of(first), trial_of(second))
    assert relative_error(second.image, first.image) > 1e-3
    assert first.validation_loss == frame.loss(trial_of(first))
    assert second.validation_loss == spoiled(frame).loss(trial_of(first))


def test_if_nothing_is_released_the_image_is_the_trial_made_consistent_with_all_samples() -> None:
    frame = judged_frame()
    method = dataclasses.replace(WHOLE, released=0.0, closing_doublings=0)
    plain = method.fit(frame)
    assert torch.equal(plain.image, trial_of(plain))
    closed = dataclasses.replace(method, closing_weight=0.1).fit(frame)
    for part, image in ((frame, closed.image), (frame.training, trial_of(closed))):
        (expected,) = data_consistent(part, prior=plain.image, weights=[0.1], iterations=30)
        torch.testing.assert_close(image, expected)


def test_the_last_iterations_are_those_released() -> None:
    """Of 80 iterations with a quarter of them released the first 60 are a fit that sees no held-out sample."""
    frame = judged_frame()
    whole = dataclasses.replace(WHOLE, iterations=80, released=0.25).fit(frame)
    judged = dataclasses.replace(WHOLE, iterations=60, released=0.0).fit(frame)
    assert (whole.iterations, judged.iterations) == (80, 60)
    assert whole.losses[:60] == judged.losses
    assert torch.equal(trial_of(whole), trial_of(judged))
    assert relative_error(whole.image, trial_of(whole)) > 0.01


@pytest.mark.parametrize("released", [0.0, 0.3, 0.9])
def test_all_iterations_are_done_whatever_part_is_released(released: float) -> None:
    result = dataclasses.replace(QUICK, iterations=33, released=released).fit(judged_frame())
    assert result.iterations == len(result.losses) == 33
    assert result.stopped_by == "iterations"


def test_released_samples_bring_the_image_nearer_to_them() -> None:
    frame, method = judged_frame(), dataclasses.replace(QUICK, iterations=120)
    losses = [frame.loss(dataclasses.replace(method, released=r).fit(frame).image) or 0.0 for r in (0.0, 0.5)]
    assert losses[1] < 0.8 * losses[0]


def test_a_fit_of_very_few_iterations_is_judged_all_the_same() -> None:
    result = dataclasses.replace(QUICK, iterations=1, released=0.9).fit(judged_frame())
    assert result.iterations == 1
    assert result.validation_loss is not None


def test_nothing_held_out_is_nothing_to_judge_by() -> None:
    result = QUICK.fit(simulated_frame()[0])
    assert result.validation_loss is None
    assert result.trial is None


def test_without_held_out_samples_there_is_nothing_to_release() -> None:
    frame, _ = simulated_frame()
    plain = dataclasses.replace(QUICK, released=0.0).fit(frame)
    released = dataclasses.replace(QUICK, released=0.5).fit(frame)
    assert torch.equal(released.image, plain.image)
    assert released.losses == plain.losses


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


@pytest.mark.parametrize("released", [0.0, 0.25])
def test_patience_ends_the_judged_part_at_the_best_image(released: float) -> None:
    frame = judged_frame(noise=2e-2)
    # Without averaging the iterates are restless, so a best one comes soon.
    method = dataclasses.replace(QUICK, iterations=600, patience=2, image_averaging=0.0, released=released)
    result = method.fit(frame)
    assert result.stopped_by == "held-out samples"
    judged = round(result.iterations * (1 - released))
    assert result.iterations < 600
    assert judged % 25 == 0
    assert judged < 600 * (1 - released)
    plain = dataclasses.replace(method, patience=0, released=0.0)
    last, best = (dataclasses.replace(plain, iterations=n).fit(frame) for n in (judged, judged - 50))
    assert result.losses[:judged] == last.losses
    assert torch.equal(trial_of(result), trial_of(best))
    assert best.validation_loss is not None
    assert last.validation_loss is not None
    assert result.validation_loss == best.validation_loss < last.validation_loss
    assert torch.equal(result.image, trial_of(result)) == (released == 0)


def test_patience_without_held_out_samples_has_no_effect() -> None:
    frame, _ = simulated_frame()
    assert torch.equal(dataclasses.replace(QUICK, patience=3).fit(frame).image, QUICK.fit(frame).image)


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
    frame = judged_frame()
    heard: list[Event] = []
    with listening(heard.append):
        result = dataclasses.replace(QUICK, iterations=80).fit(frame)
    QUICK.fit(frame)
    finished = [event for event in heard if isinstance(event, FitFinished)]
    assert [event.iterations for event in finished] == [80]
    assert finished[0].validation_loss == result.validation_loss
    assert result.validation_loss is not None
    progress = [(event.iteration, event.iterations) for event in heard if isinstance(event, FitProgressed)]
    assert progress == [(25, 80), (50, 80), (60, 80), (75, 80), (80, 80)]


UNAWARE = dataclasses.replace(QUICK, noise_decay=0.0)


def of_noise(level: float | None) -> Frame:
    """A noisy frame whose noise is said to have the standard deviation `level`."""
    return dataclasses.replace(simulated_frame(noise=2e-2)[0], noise_level=level)


def test_noise_that_is_not_known_or_known_to_be_none_changes_nothing() -> None:
    aware = dataclasses.replace(QUICK, noise_decay=1e6, closing_weight=0.1)
    expected = dataclasses.replace(UNAWARE, closing_weight=0.1).fit(of_noise(None)).image
    for level in (None, 0.0):
        assert torch.equal(aware.fit(of_noise(level)).image, expected)


def test_the_more_noise_the_smaller_the_image() -> None:
    """The encoder's decay grows with the noise, and pulls the image to zero."""
    method = dataclasses.replace(QUICK, iterations=200, noise_decay=100.0)
    norms = [float(method.fit(of_noise(level)).image.norm()) for level in (0.0, 2e-2, 4e-2)]
    assert norms[1] < 0.99 * norms[0]
    assert norms[2] < 0.9 * norms[0]
    assert torch.equal(UNAWARE.fit(of_noise(2e-2)).image, UNAWARE.fit(of_noise(None)).image)


def test_the_decay_is_multiplied_by_what_the_share_of_noise_says() -> None:
    frame = of_noise(2e-2)
    q = frame.noise_share
    assert 0.001 < q < 0.5
    method = dataclasses.replace(UNAWARE, weight_decay_encoder=1e-4, noise_decay=2 / q)
    by_hand = dataclasses.replace(UNAWARE, weight_decay_encoder=5e-4)
    torch.testing.assert_close(method.fit(frame).image, by_hand.fit(frame).image, rtol=1e-3, atol=1e-5)
    without = dataclasses.replace(method, noise_decay=0.0)
    assert relative_error(without.fit(frame).image, by_hand.fit(frame).image) > 0.01


def test_the_finest_level_is_the_first_of_so_many_vertices_a_pixel() -> None:
    method = BilevelINR(levels=32, base_resolution=16, per_level_scale=1.5)
    for size in (16, 33, 96, 256):
        for finest in (0.25, 1.0, 2.5, 10.0):
            shape = (size // 2, size)
            settings = dataclasses.replace(method, finest_level=finest).network_settings(shape).encoder_settings
            vertices = [16 * 1.5**level for level in range(settings.levels)]
            assert vertices[-1] >= finest * size
            assert settings.levels == 1 or vertices[-2] < finest * size


def test_the_encoder_has_no_more_features_than_levels_and_the_finest_level_allow() -> None:
    frame, _ = simulated_frame()

    def features(**fields: float) -> int:
        return bilevel_inr.LowerLevel([dataclasses.replace(QUICK, **fields)], [frame]).network.encoder.features

    # Of 4 vertices, each level 1.5 times as fine: the seventh has 46, one a pixel of 32, the tenth 154.
    assert features(levels=16, finest_level=1.0) == 2 * 7
    assert features(levels=32, finest_level=1.0) == 2 * 7
    assert features(levels=16, finest_level=4.0) == 2 * 10
    assert features(levels=3, finest_level=4.0) == 2 * 3
    assert features(levels=16, finest_level=0.25, base_resolution=64) == 2
