"""Frames told by how they differ from a prior: laws of the difference, of what is followed, of what judges."""

import dataclasses

import pytest
import torch

from inrecon import deadline
from inrecon.deadline import DEADLINE, time_limit
from inrecon.errors import FitDiverged
from inrecon.events import Event, FitFinished, listening
from inrecon.frame import Frame
from inrecon.methods import CGSense, ResidualINR, ResidualTikhonov, ResidualTV, TotalVariation, hold_out
from inrecon.methods.residual import ResidualMethod, columnwise, forget_prepared, prepared
from inrecon.methods.total_variation import differences
from inrecon.operators import CartesianSense
from inrecon.testing import (
    MethodConformance,
    folded_frame,
    random_complex,
    relative_error,
    simulated_frame,
    smooth_maps,
    smooth_object,
)

NETWORK = {"levels": 4, "log2_table_size": 10, "base_resolution": 4, "width": 16, "network_iterations": 15}
TIKHONOV = ResidualTikhonov()
VARIATION = ResidualTV()
QUICK_INR = ResidualINR(iterations=20, **NETWORK)
EACH = pytest.mark.parametrize("method", [TIKHONOV, VARIATION, QUICK_INR], ids=lambda method: method.name)
ITERATIVE = pytest.mark.parametrize("method", [VARIATION, QUICK_INR], ids=lambda method: method.name)
ROWS, COLUMNS = 40, 32


@pytest.mark.cuda
@pytest.mark.parametrize("method", [ResidualTikhonov(), ResidualTV(), ResidualINR()])
def test_a_gpu_gives_the_image_of_a_cpu(method: ResidualMethod) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA GPU")
    images = []
    for device in ("cpu", "cuda"):
        frame, truth = simulated_frame(device=device)
        prior = truth.roll(1, -1)
        images.append(method.fit(dataclasses.replace(frame, prior=prior)).image.cpu())
    assert relative_error(images[1], images[0]) < 0.02


class TestResidualTikhonov(MethodConformance):
    method = TIKHONOV


class TestResidualTV(MethodConformance):
    method = VARIATION


class TestResidualINR(MethodConformance):
    method = QUICK_INR


def scene(*, lesion: float = 0.0) -> torch.Tensor:
    """The object, and a square of it whose signal is lower by that part."""
    image = smooth_object(ROWS, COLUMNS).clone()
    image[12:17, 17:22] *= 1 - lesion
    return image


def frame_of(
    image: torch.Tensor, *, acceleration: int = 4, offset: int = 0, noise: float = 1e-3, seed: int = 1
) -> Frame:
    """By columns, every fourth line and eight in the centre of `image`; its prior is the scene without a lesion."""
    maps = smooth_maps(6, ROWS, COLUMNS)
    mask = torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
    mask[offset % acceleration :: acceleration] = True
    mask[ROWS // 2 - 4 : ROWS // 2 + 4] = True
    operator = CartesianSense(maps.csm, mask)
    peak = float(operator.forward(scene()).abs().max())
    kspace = operator.forward(image / peak) + noise * random_complex(*operator.range_shape, seed=seed)
    return columnwise(Frame(kspace=kspace, operator=operator, maps=maps, noise_level=noise, prior=scene() / peak))


def truth_of(frame: Frame, image: torch.Tensor) -> torch.Tensor:
    """`image` in the scale of `frame`."""
    assert frame.prior is not None
    return image * (frame.prior[20, 16].abs() / scene()[20, 16].abs())


@EACH
def test_where_the_prior_is_the_truth_so_is_the_image(method: ResidualMethod) -> None:
    """To a part of what the noise makes of an image without prior."""
    frame = hold_out(frame_of(scene()), 0.1, seed=0)
    assert frame.prior is not None
    error = relative_error(method.fit(frame).image, frame.prior)
    assert error < 0.02
    assert error < 0.5 * relative_error(CGSense().fit(frame).image, frame.prior)


@EACH
def test_without_noise_a_frame_of_the_prior_is_the_prior(method: ResidualMethod) -> None:
    frame = frame_of(scene(), noise=0.0)
    frame = hold_out(dataclasses.replace(frame, noise_level=1e-4), 0.1, seed=0)
    assert frame.prior is not None
    result = method.fit(frame)
    assert relative_error(result.image, frame.prior) < 2e-3
    assert result.validation_loss is not None
    assert result.validation_loss < 1e-4


@EACH
def test_what_is_new_is_seen(method: ResidualMethod) -> None:
    image = scene(lesion=0.8)
    frame = hold_out(frame_of(image), 0.05, seed=0)
    truth = truth_of(frame, image)
    assert frame.prior is not None
    tracker = method.tracker(frame)
    found = [tracker.follow(frame).image for _ in range(3)][-1]
    assert relative_error(found, truth) < 0.5 * relative_error(frame.prior, truth)
    assert relative_error(found, truth) < relative_error(CGSense().fit(frame).image, truth)


@EACH
def test_without_a_prior_it_is_an_image_like_any_other(method: ResidualMethod) -> None:
    frame = hold_out(dataclasses.replace(frame_of(scene(), acceleration=2), prior=None), 0.05, seed=0)
    truth = truth_of(frame_of(scene()), scene())
    assert relative_error(method.fit(frame).image, truth) < 0.1


def test_tikhonovs_image_is_the_minimum_of_its_objective() -> None:
    """|A x - y|^2 + weight |x - prior|^2: its gradient is zero."""
    method = ResidualTikhonov(displacement=0, regularisation=0.3)
    frame = frame_of(scene(lesion=0.8))
    image = method.fit(frame).image
    assert frame.prior is not None
    gradient = frame.operator.adjoint(frame.operator.forward(image) - frame.kspace) + 0.3 * (image - frame.prior)
    assert torch.linalg.vector_norm(gradient) < 1e-4 * torch.linalg.vector_norm(frame.operator.adjoint(frame.kspace))


def objective(method: ResidualTV, frame: Frame, image: torch.Tensor) -> float:
    """|A x - y|^2 / 2 + weight sum |D (x - prior)|."""
    assert frame.noise_level is not None
    difference = image if frame.prior is None else image - frame.prior
    misfit = (frame.operator.forward(image) - frame.kspace).abs().square().sum() / 2
    variation = torch.linalg.vector_norm(differences(difference), dim=0).sum()
    return float(misfit + method.tv_weight * frame.noise_level * variation)


@pytest.mark.parametrize("tv_weight", [0.1, 0.5])
def test_the_variation_is_the_minimum_that_another_solver_finds(tv_weight: float) -> None:
    """Without prior `TotalVariation` has the same objective, and another algorithm."""
    frame = dataclasses.replace(frame_of(scene(), noise=1e-2), prior=None)
    here = ResidualTV(displacement=0, tv_weight=tv_weight, iterations=600)
    there = TotalVariation(regularisation=1e-6, noise_factor=tv_weight, iterations=600, tolerance=0.0)
    found, expected = here.fit(frame).image, there.fit(frame).image
    assert objective(here, frame, found) == pytest.approx(objective(here, frame, expected), rel=1e-3)
    assert relative_error(found, expected) < 1e-2


def test_no_image_near_the_one_found_is_better() -> None:
    method = ResidualTV(displacement=0, iterations=600)
    frame = frame_of(scene(lesion=0.8), noise=1e-2)
    image = method.fit(frame).image
    least = objective(method, frame, image)
    for seed in range(3):
        for size in (1e-3, 1e-1):
            step = size * image.abs().mean() * random_complex(ROWS, COLUMNS, seed=seed)
            assert objective(method, frame, image + step) > least
    assert frame.prior is not None
    for share in (-0.1, 0.1):
        assert objective(method, frame, torch.lerp(image, frame.prior, share)) > least


def test_a_tracker_that_goes_on_reaches_what_a_fresh_one_does() -> None:
    """Frame after frame of few iterations, or one of many; other lines before."""
    quick, long = ResidualTV(displacement=0), ResidualTV(displacement=0, iterations=600)
    first, frame = frame_of(scene(), offset=1, noise=1e-2), frame_of(scene(lesion=0.8), noise=1e-2)
    tracker = quick.tracker(first)
    tracker.follow(first)
    expected = long.fit(frame).image
    errors = [relative_error(tracker.follow(frame).image, expected) for _ in range(30)]
    assert errors[-1] < 2e-3
    assert errors[-1] < 0.1 * errors[0]


def test_tikhonov_keeps_nothing() -> None:
    method = ResidualTikhonov(displacement=0)
    frames = [frame_of(scene(lesion=share), offset=share > 0) for share in (0.0, 0.4, 0.8)]
    tracker = method.tracker(frames[0])
    for frame in frames:
        assert torch.equal(tracker.follow(frame).image, method.fit(frame).image)


@EACH
def test_frames_may_have_other_lines_each(method: ResidualMethod) -> None:
    """Some of them more often than what is kept of patterns; each is the image of what it shows."""
    tracker = method.tracker(frame_of(scene()))
    for number in range(6):
        lesion = 0.8 if number >= 3 else 0.0
        image = scene(lesion=lesion)
        frame = hold_out(frame_of(image, acceleration=3 + number % 3, offset=number, seed=number), 0.05, seed=number)
        result = tracker.follow(frame)
        assert result.image.shape == frame.operator.domain_shape
        assert relative_error(result.image, truth_of(frame, image)) < 0.08


def test_many_patterns_of_samples_are_not_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_prepared()
    tracker = VARIATION.tracker(frame_of(scene()))
    frames = [columnwise(frame_of(scene(), offset=number)) for number in (0, 1, 2, 3, 0)]
    first = prepared(frames[0])
    assert prepared(frames[0]) is first
    first.solve(frames[0].prior, weight=0.1)
    monkeypatch.setattr("inrecon.methods.residual.PREPARED_BYTES", first.bytes)
    for frame in frames:
        assert relative_error(tracker.follow(frame).image, truth_of(frame, scene())) < 0.03
    assert prepared(frames[0]) is not first
    forget_prepared()


@EACH
def test_held_out_samples_are_not_seen_by_the_trial(method: ResidualMethod) -> None:
    """Whatever they are, over frames, the trial is the same; the image is not, for it is made of all."""
    frame = hold_out(frame_of(scene(lesion=0.8)), 0.1, seed=0)
    assert frame.held_out is not None
    other = dataclasses.replace(frame, kspace=frame.kspace * torch.where(frame.held_out, -1, 1))
    if isinstance(method, ResidualINR):  # its parts are weighed by these samples: each by itself
        method = dataclasses.replace(method, network_iterations=0)
    one, two = method.fit(frame), method.fit(other)
    assert one.trial is not None
    assert two.trial is not None
    assert torch.equal(one.trial, two.trial)
    assert not torch.equal(one.image, two.image)


@EACH
def test_what_judges_is_the_trial(method: ResidualMethod) -> None:
    frame = hold_out(frame_of(scene(lesion=0.8)), 0.1, seed=0)
    result = method.judged(frame)
    assert result.trial is not None
    assert result.validation_loss == frame.loss(result.trial)
    assert torch.equal(result.image, method.fit(frame).image)
    nothing = method.fit(dataclasses.replace(frame, held_out=None))
    assert nothing.trial is None
    assert nothing.validation_loss is None


@EACH
def test_what_is_held_out_of_k_space_cannot_be_held_out_of_columns(method: ResidualMethod) -> None:
    """So there is no trial: one that is made of other samples would be judged by what it was made of."""
    frame = hold_out(simulated_frame()[0], 0.2, seed=0)
    result = method.judged(frame)
    assert result.trial is None
    assert result.validation_loss is None


@EACH
def test_same_bits_twice_over_frames(method: ResidualMethod) -> None:
    frames = [hold_out(frame_of(scene(lesion=share), offset=1), 0.05, seed=0) for share in (0.0, 0.5, 0.9)]

    def images() -> list[torch.Tensor]:
        tracker = method.tracker(frames[0])
        return [tracker.follow(frame).image for frame in frames]

    assert all(torch.equal(*pair) for pair in zip(images(), images(), strict=True))


@EACH
def test_two_sets_of_maps_with_a_prior(method: ResidualMethod) -> None:
    folded, truth = folded_frame()
    frame = hold_out(columnwise(dataclasses.replace(folded, prior=truth)), 0.1, seed=0)
    result = method.fit(frame)
    assert result.image.shape == (2, 32, 24)
    assert relative_error(result.image, truth) < 0.05


@EACH
def test_readouts_with_gaps_are_refused_in_words(method: ResidualMethod) -> None:
    frame, _ = simulated_frame()
    gaps = frame.operator.sampled.clone()
    gaps[1, :5] = False
    with pytest.raises(FitDiverged, match="only where readouts are whole"):
        method.fit(dataclasses.replace(frame, operator=frame.operator.restricted(gaps)))


@EACH
def test_a_frame_of_zeros_has_an_image(method: ResidualMethod) -> None:
    frame = frame_of(scene())
    silent = dataclasses.replace(frame, kspace=torch.zeros_like(frame.kspace), prior=None, noise_level=None)
    for held_out in (silent, hold_out(silent, 0.1, seed=0)):
        assert not method.fit(held_out).image.abs().max() > 1e-3
    lost = hold_out(dataclasses.replace(silent, prior=frame.prior), 0.1, seed=0)
    assert torch.isfinite(torch.view_as_real(method.fit(lost).image)).all()


@EACH
def test_noise_need_not_be_known(method: ResidualMethod) -> None:
    image = scene(lesion=0.8)
    frame = dataclasses.replace(frame_of(image), noise_level=None)
    assert relative_error(method.fit(hold_out(frame, 0.05, seed=0)).image, truth_of(frame, image)) < 0.08


@EACH
def test_the_scale_does_not_matter(method: ResidualMethod) -> None:
    frame = hold_out(frame_of(scene(lesion=0.8), noise=1e-2), 0.05, seed=0)
    assert frame.prior is not None
    louder = dataclasses.replace(frame, kspace=100 * frame.kspace, prior=100 * frame.prior, noise_level=1.0)
    assert relative_error(method.fit(louder).image, 100 * method.fit(frame).image) < 1e-2


def test_values_that_are_not_finite_are_told() -> None:
    frame = frame_of(scene())
    wrong = dataclasses.replace(frame, kspace=frame.kspace * float("nan"))
    with pytest.raises(FitDiverged, match="not finite"):
        ResidualTikhonov(displacement=0).fit(wrong)


class Clock:
    """Goes on by a second whenever it is asked."""

    now = 0.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now


@ITERATIVE
def test_a_deadline_ends_the_iterations(method: ResidualMethod, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = hold_out(frame_of(scene(lesion=0.8)), 0.05, seed=0)
    monkeypatch.setattr(deadline, "time", Clock())
    with time_limit(8):
        result = method.fit(frame)
    assert result.stopped_by == DEADLINE
    assert 1 <= result.iterations <= 10
    assert torch.isfinite(torch.view_as_real(result.image)).all()
    assert relative_error(result.image, truth_of(frame, scene(lesion=0.8))) < 0.3


@EACH
def test_fits_are_announced_once(method: ResidualMethod) -> None:
    heard: list[Event] = []
    with listening(heard.append):
        result = method.fit(hold_out(frame_of(scene()), 0.05, seed=0))
    (event,) = (event for event in heard if isinstance(event, FitFinished))
    assert (event.method, event.iterations) == (method.name, result.iterations)
    assert event.validation_loss == result.validation_loss
    assert "moved by up to 0." in result.remark


def test_what_the_network_adds_is_said() -> None:
    result = QUICK_INR.fit(hold_out(frame_of(scene(lesion=0.8)), 0.05, seed=0))
    shares = [float(part.split()[0]) for part in result.remark.split(";")[0].split(" + ")]
    assert sum(shares) == pytest.approx(1, abs=0.02)
    assert len(result.losses) >= result.iterations - 1
