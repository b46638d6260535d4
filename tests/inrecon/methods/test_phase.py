"""The smooth phase: unit modulus, the phase that a smooth image has, at pixels wherever they are."""

import math

import pytest
import torch

from inrecon.methods.phase import smooth_phase
from inrecon.operators import displace_image
from inrecon.testing import random_complex, relative_error, simulated_frame

SHAPE = (24, 17)


@pytest.mark.parametrize("width", [0.5, 4.0, 100.0])
def test_its_modulus_is_one(width: float) -> None:
    phase = smooth_phase(random_complex(2, *SHAPE, seed=1), width=width)
    torch.testing.assert_close(phase.abs(), torch.ones(2, *SHAPE))


@pytest.mark.parametrize("angle", [-3.0, 0.0, 1.2])
def test_an_image_of_one_phase_has_that_phase_everywhere(angle: float) -> None:
    y, x = torch.meshgrid(torch.linspace(0, 2, SHAPE[0]), torch.linspace(0, 2, SHAPE[1]), indexing="ij")
    magnitude = 2 + torch.cos(math.pi * x) * torch.sin(math.pi * y)
    expected = torch.polar(torch.ones(()), torch.tensor(angle))
    phase = smooth_phase(magnitude * expected, width=4)
    torch.testing.assert_close(phase, expected.expand(SHAPE), rtol=1e-4, atol=1e-4)


def test_it_turns_with_the_image_and_is_blind_to_its_scale() -> None:
    image = random_complex(*SHAPE, seed=1)
    turned = smooth_phase(3j * image, width=6)
    torch.testing.assert_close(turned, 1j * smooth_phase(image, width=6), rtol=1e-4, atol=1e-4)


def test_wide_enough_it_is_the_phase_of_the_image() -> None:
    image = random_complex(*SHAPE, seed=1)
    torch.testing.assert_close(smooth_phase(image, width=1e6), torch.sgn(image), rtol=1e-3, atol=1e-3)


def test_frequencies_from_the_width_on_have_no_part() -> None:
    y = torch.arange(SHAPE[0])[:, None] / SHAPE[0]
    slow, fast = (torch.polar(torch.ones(SHAPE), (2 * math.pi * cycles * y).expand(SHAPE)) for cycles in (2, 6))
    torch.testing.assert_close(smooth_phase(slow + fast, width=5), slow, rtol=1e-4, atol=1e-4)
    assert relative_error(smooth_phase(slow + fast, width=9), slow) > 0.1


@pytest.mark.parametrize("offset", [(0.25, 0.25), (-0.25, 0.4), (1.0, -2.0)])
def test_an_offset_is_a_displaced_image(offset: tuple[float, float]) -> None:
    image = random_complex(3, *SHAPE, seed=1)
    expected = smooth_phase(displace_image(image, offset), width=5)
    torch.testing.assert_close(smooth_phase(image, width=5, offset=offset), expected, rtol=1e-3, atol=1e-3)


def test_each_image_of_a_batch_has_its_own() -> None:
    images = random_complex(2, *SHAPE, seed=1)
    both = smooth_phase(images, width=5)
    for image, phase in zip(images, both, strict=True):
        torch.testing.assert_close(phase, smooth_phase(image, width=5))


def test_it_is_near_the_phase_of_an_object_with_a_smooth_one() -> None:
    _, truth = simulated_frame(48, 48)
    inside = truth.abs() > 0.5 * truth.abs().mean()
    difference = (smooth_phase(truth, width=12).conj() * truth).angle()[inside]
    assert difference.abs().median() < 0.05
