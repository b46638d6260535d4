"""Tissue that has moved: known displacements are found again, and nothing moves without a reason."""

import math

import pytest
import torch

from inrecon.methods.displacement import Displacement
from inrecon.operators import ColumnSense
from inrecon.testing import random_complex, relative_error, smooth_maps

ROWS, COLUMNS = 48, 40
POINTS = 8
NOISE = 1e-3
Y, X = torch.meshgrid(torch.arange(ROWS) - ROWS / 2, torch.arange(COLUMNS) - COLUMNS / 2, indexing="ij")
STILL = torch.zeros(2, ROWS, COLUMNS)
PULL = torch.exp(-((X - 3).square() + (Y + 4).square()) / 150) * torch.tensor([1.5, -1.0])[:, None, None]
"""A smooth displacement of up to 1.8 pixels, in the middle."""
ACCELERATIONS = pytest.mark.parametrize("acceleration", [1, 2, 4])


def scene(field: torch.Tensor) -> torch.Tensor:
    """An object that is known between pixels, too, at the places r + field."""
    y, x = (Y + field[0]) / (ROWS / 2), (X + field[1]) / (COLUMNS / 2)
    inside = torch.sigmoid((1 - (x / 0.75).square() - (y / 0.8).square()) * 12)
    magnitude = 1 + 0.5 * torch.sin(7 * x + 3 * y) + 0.3 * torch.cos(11 * y * x + 2 * y)
    return torch.polar(magnitude * inside, 0.8 * x - 0.5 * y)


OBJECT = scene(STILL)
INSIDE = OBJECT.abs() > 0.3


def operator_of(acceleration: int, *, offset: int = 0, csm: torch.Tensor | None = None) -> ColumnSense:
    mask = torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
    mask[offset % acceleration :: acceleration] = True
    mask[ROWS // 2 - 4 : ROWS // 2 + 4] = True
    return ColumnSense(smooth_maps(8, ROWS, COLUMNS).csm if csm is None else csm, mask)


def follow(found: Displacement, operator: ColumnSense, image: torch.Tensor, *, noise: float = NOISE) -> None:
    kspace = operator.forward(image) + noise * random_complex(*operator.range_shape, seed=1)
    found.follow(operator, kspace, grams=operator.grams(), noise=noise)


def field_of(found: Displacement) -> torch.Tensor:
    """How far each pixel is moved, read off two waves that are moved along."""
    moved = []
    for place, size in ((Y, ROWS), (X, COLUMNS)):
        wave = torch.polar(torch.ones(ROWS, COLUMNS), 2 * math.pi * place / size)
        ruler = Displacement(wave, POINTS)
        ruler.control = found.control
        moved.append((ruler.image() * wave.conj()).angle() * size / (2 * math.pi))
    return torch.stack(moved)


def rigid(pixels: float, degrees: float) -> torch.Tensor:
    turn = math.radians(degrees)
    down = math.cos(turn) * Y - math.sin(turn) * X - Y + pixels
    return torch.stack([down, math.sin(turn) * Y + math.cos(turn) * X - X])


@pytest.mark.parametrize("shape", [(ROWS, COLUMNS), (9, 14), (2, 15, 12)])
def test_at_first_the_image_is_the_prior(shape: tuple[int, ...]) -> None:
    prior = random_complex(*shape, seed=1)
    found = Displacement(prior, POINTS)
    torch.testing.assert_close(found.image(), prior, rtol=1e-4, atol=1e-5)
    assert found.largest == 0


def test_data_of_the_prior_move_nothing() -> None:
    found = Displacement(OBJECT, POINTS)
    follow(found, operator_of(2), OBJECT)
    assert float(torch.linalg.vector_norm(field_of(found), dim=0)[INSIDE].max()) < 0.05
    assert found.largest < 0.15  # in the air nothing tells
    assert relative_error(found.image(), OBJECT) < 1e-3


def test_without_samples_nothing_moves() -> None:
    operator = operator_of(2)
    nothing = operator.restricted(torch.zeros_like(operator.sampled))
    found = Displacement(OBJECT, POINTS)
    found.follow(nothing, torch.zeros(nothing.range_shape, dtype=torch.complex64), grams=nothing.grams(), noise=NOISE)
    assert found.largest == 0


def test_an_object_of_zeros_is_left_alone() -> None:
    found = Displacement(torch.zeros(ROWS, COLUMNS, dtype=torch.complex64), POINTS)
    follow(found, operator_of(2), OBJECT)
    assert not found.image().any()
    assert found.largest == 0


@ACCELERATIONS
def test_a_smooth_displacement_is_followed_over_frames(acceleration: int) -> None:
    """Other lines in each frame; as much noise as a good scan has."""
    found = Displacement(OBJECT, POINTS)
    for frame, share in enumerate((0.3, 0.7, 1.0, 1.0)):
        follow(found, operator_of(acceleration, offset=frame), scene(share * PULL))
        error = torch.linalg.vector_norm(field_of(found) - share * PULL, dim=0)[INSIDE]
        assert float(error.mean()) < 0.05
        assert float(error.max()) < 0.25
        assert found.largest == pytest.approx(share * math.hypot(1.5, 1.0), rel=0.1)
        assert relative_error(found.image(), scene(share * PULL)) < 5e-3


@pytest.mark.parametrize("noise", [1e-3, 2e-2])
@pytest.mark.parametrize("acceleration", [1, 4])
def test_a_patient_who_lies_elsewhere_is_found_within_two_frames(acceleration: int, noise: float) -> None:
    """4 pixels and 3 degrees, which moves the edge of the object by more than a wave of its texture."""
    moved, found, operator = scene(rigid(4, 3)), Displacement(OBJECT, POINTS), operator_of(acceleration)
    assert relative_error(OBJECT, moved) > 0.4
    errors = []
    for _ in range(2):
        follow(found, operator, moved, noise=noise)
        errors.append(relative_error(found.image(), moved))
    assert errors[0] < 0.05
    assert errors[1] < 0.01


def test_the_curvature_by_which_it_is_fitted_is_that_of_finite_differences() -> None:
    """Of the object itself: those of the interpolation, which waver between two pixels of it, are no better. Half of
    the columns tell it."""
    found, generator, operator = Displacement(OBJECT, POINTS), torch.Generator().manual_seed(0), operator_of(2)
    for _ in range(3):
        found.control = 0.5 * torch.randn(2, POINTS, POINTS, generator=generator)
        _, *slopes = found._sampled()
        curvature = found._curvature(operator, torch.stack(slopes), operator.grams())
        torch.testing.assert_close(curvature, curvature.T, rtol=1e-3, atol=1e-3)
        here, direction = found._field(), torch.randn(2, POINTS, POINTS, generator=generator)
        found.control = 0.1 * direction
        step = found._field()
        difference = operator.forward(scene(here + step) - scene(here - step)) / 0.2
        expected = float(difference.abs().square().sum())
        assert float(direction.flatten() @ curvature @ direction.flatten()) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("acceleration", [1, 4])
def test_a_needle_that_appears_bends_little_tissue_elsewhere(acceleration: int) -> None:
    """A dark line of a pixel, alone and while the tissue moves: 8 pixels from it less than 0.6 pixels."""
    needle = (X.abs() < 1) & (Y < 0)
    far = INSIDE & ~((X.abs() <= 8) & (Y < 8))
    for field in (STILL, PULL):
        found, whole = Displacement(OBJECT, POINTS), scene(field)
        for _ in range(2):
            follow(found, operator_of(acceleration), torch.where(needle, 0, whole))
        error = torch.linalg.vector_norm(field_of(found) - field, dim=0)
        assert float(error[far].max()) < 0.6
        assert float(error[far].mean()) < 0.15
        assert relative_error(found.image()[far], whole[far]) < 0.015


def test_both_of_two_sets_move_alike() -> None:
    first = smooth_maps(8, ROWS, COLUMNS).csm
    other = first.roll(3, 0)
    second = other - (first.conj() * other).sum(0) * first
    csm = torch.stack([first, second / torch.linalg.vector_norm(second, dim=0)])

    def images(field: torch.Tensor) -> torch.Tensor:
        return torch.stack([scene(field), 0.5j * scene(field).flip(0) if field is STILL else 0.5j * beyond(field)])

    def beyond(field: torch.Tensor) -> torch.Tensor:
        """The flipped object at r + field."""
        flipped = torch.stack([-field[0] - 2 * Y - 1, field[1]])
        return scene(flipped)

    torch.testing.assert_close(images(STILL)[1], 0.5j * beyond(STILL), rtol=1e-4, atol=1e-4)
    found, operator = Displacement(images(STILL), POINTS), operator_of(2, csm=csm)
    assert found.image().shape == operator.domain_shape
    follow(found, operator, images(PULL))
    error = torch.linalg.vector_norm(field_of(found) - PULL, dim=0)[INSIDE]
    assert float(error.max()) < 0.25
    assert relative_error(found.image(), images(PULL)) < 0.01


def test_same_bits_twice() -> None:
    fields = []
    for _ in range(2):
        found = Displacement(OBJECT, POINTS)
        follow(found, operator_of(3), scene(PULL))
        fields.append(found.control)
    assert torch.equal(*fields)
