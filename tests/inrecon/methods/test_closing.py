"""The closing step: its minimum, and the weight that held-out samples choose."""

import dataclasses
import itertools

import pytest
import torch

from inrecon.frame import Frame
from inrecon.methods import hold_out
from inrecon.methods.closing import closed, weights_around
from inrecon.methods.linear import data_consistent
from inrecon.testing import random_complex, simulated_frame

WEIGHTS = weights_around(0.1, 6)


def judged(noise: float) -> tuple[Frame, torch.Tensor]:
    """A frame with samples held out and the level of its noise known; the truth."""
    frame, truth = simulated_frame(64, 32, noise=noise)
    frame = hold_out(dataclasses.replace(frame, noise_level=noise), 0.1, seed=0)
    assert frame.held_out is not None
    return frame, truth


def weight_chosen(frame: Frame, prior: torch.Tensor) -> float:
    """Which of `WEIGHTS` made the image."""
    image, _ = closed(frame, prior, prior, weights=WEIGHTS)
    each = data_consistent(frame, prior=prior, weights=WEIGHTS, iterations=30)
    distances = torch.linalg.vector_norm(each - image, dim=(1, 2))
    assert float(distances.min()) < 1e-4 * float(image.norm())
    return WEIGHTS[int(distances.argmin())]


def test_weights_lie_around_the_middle() -> None:
    assert weights_around(0.5, 0) == [0.5]
    assert weights_around(0.5, 2) == [0.125, 0.25, 0.5, 1.0, 2.0]


def test_each_image_is_the_minimum_for_its_weight() -> None:
    """The gradient of |A x - y|^2 + weight |x - prior|^2 is zero there."""
    frame, truth = judged(1e-2)
    prior = truth + 0.3 * random_complex(*truth.shape, seed=1)
    for weight, image in zip(
        WEIGHTS, data_consistent(frame, prior=prior, weights=WEIGHTS, iterations=200), strict=True
    ):
        operator = frame.operator
        gradient = operator.adjoint(operator.forward(image) - frame.kspace) + weight * (image - prior)
        assert float(gradient.norm()) < 1e-3 * weight * float((image - prior).norm()) + 1e-5


def test_the_worse_the_prior_the_more_weight_the_data_have() -> None:
    frame, truth = judged(2e-2)
    error = frame.maps.support * random_complex(*truth.shape, seed=1)
    weights = [weight_chosen(frame, truth + size * error) for size in (0.0, 0.03, 0.1, 1.0)]
    assert all(first >= second for first, second in itertools.pairwise(weights))
    assert weights[0] >= 4 * weights[-1]


def test_the_more_noise_the_less_weight_the_data_have() -> None:
    chosen = []
    for noise in (1e-3, 1e-1):
        frame, truth = judged(noise)
        chosen.append(weight_chosen(frame, truth + 0.05 * frame.maps.support * random_complex(*truth.shape, seed=1)))
    assert chosen[1] >= 4 * chosen[0]


def test_the_trial_has_seen_no_held_out_sample() -> None:
    frame, truth = judged(1e-2)
    assert frame.held_out is not None
    image, trial = closed(frame, truth, 0.9 * truth, weights=[0.1])
    spoiled = dataclasses.replace(frame, kspace=torch.where(frame.held_out, 1.0 + 0j, frame.kspace))
    other_image, other_trial = closed(spoiled, truth, 0.9 * truth, weights=[0.1])
    assert trial is not None
    assert other_trial is not None
    assert torch.equal(trial, other_trial)
    assert not torch.allclose(image, other_image)


@pytest.mark.parametrize("doublings", [0, 3])
def test_without_a_trial_the_weight_is_the_middle_one(doublings: int) -> None:
    frame, truth = judged(1e-2)
    image, trial = closed(frame.training, truth, None, weights=weights_around(0.1, doublings))
    assert trial is None
    assert torch.equal(image, data_consistent(frame.training, prior=truth, weights=[0.1], iterations=30)[0])
