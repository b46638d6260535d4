"""Operators: the laws, and the explicit Fourier sum as the reference."""

import math
from collections.abc import Callable

import pytest
import torch

from inrecon.operators import (
    CartesianSense,
    conjugate_gradient,
    displace_image,
    shifted_conjugate_gradients,
)
from inrecon.testing import OperatorConformance, random_complex, smooth_maps


def lines(rows: int, columns: int) -> torch.Tensor:
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    mask[1::3] = True
    mask[rows // 2 - 2 : rows // 2 + 2] = True
    return mask


def scattered(rows: int, columns: int) -> torch.Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(0)) < 0.4


def odd(rows: int, columns: int) -> torch.Tensor:
    """Lines of which one is not whole."""
    mask = lines(rows, columns)
    mask[1, : columns // 2] = False
    return mask


EACH_PATTERN = pytest.mark.parametrize("pattern", [lines, odd, scattered])


class TestLines(OperatorConformance):
    operator = CartesianSense(smooth_maps(3, 14, 9).csm, lines(14, 9))


class TestScatteredSamples(OperatorConformance):
    operator = CartesianSense(smooth_maps(3, 11, 8).csm, scattered(11, 8))


class TestLinesWithSamplesLeftOut(OperatorConformance):
    operator = TestLines.operator.restricted(torch.arange(9) % 3 > 0)


def two_sets(rows: int, columns: int) -> torch.Tensor:
    """Maps (2, 3, rows, columns), orthonormal at each pixel, the second zero in half of the columns."""
    first, other = smooth_maps(3, rows, columns).csm, random_complex(3, rows, columns, seed=9)
    second = other - (first.conj() * other).sum(0) * first
    second = second / torch.linalg.vector_norm(second, dim=0)
    return torch.stack([first, second * (torch.arange(columns) < columns // 2)])


class TestLinesThroughTwoSetsOfMaps(OperatorConformance):
    operator = CartesianSense(two_sets(14, 9), lines(14, 9))


class TestScatteredSamplesThroughTwoSetsOfMaps(OperatorConformance):
    operator = CartesianSense(two_sets(11, 8), scattered(11, 8))


@EACH_PATTERN
def test_coils_see_the_sum_of_what_the_sets_make_of_their_images(
    pattern: Callable[[int, int], torch.Tensor],
) -> None:
    csm, mask, images = two_sets(14, 9), pattern(14, 9), random_complex(2, 14, 9, seed=5)
    both = CartesianSense(csm, mask)
    assert (both.sets, both.grid, both.domain_shape) == (2, (14, 9), (2, 14, 9))
    one, other = (CartesianSense(maps, mask) for maps in csm)
    assert (one.sets, one.grid, one.domain_shape) == (1, (14, 9), (14, 9))
    kspace = both.forward(images)
    torch.testing.assert_close(kspace, one.forward(images[0]) + other.forward(images[1]))
    torch.testing.assert_close(both.adjoint(kspace), torch.stack([one.adjoint(kspace), other.adjoint(kspace)]))
    back = both.with_maps(csm[1])
    assert torch.equal(back.forward(images[1]), other.forward(images[1]))


@EACH_PATTERN
def test_slices_with_two_sets_are_stacked_as_those_with_one(pattern: Callable[[int, int], torch.Tensor]) -> None:
    operators = [CartesianSense(csm, pattern(14, 9)) for csm in (two_sets(14, 9), two_sets(14, 9).flip(1, 3))]
    stacked = CartesianSense.stacked(operators).displaced((0.25, -0.25))
    images = random_complex(2, 5, 2, 14, 9, seed=5)
    forward, gram = stacked.forward(images), stacked.gram(images)
    assert (stacked.sets, stacked.positions) == (2, operators[0].positions)
    for number, operator in enumerate(operator.displaced((0.25, -0.25)) for operator in operators):
        torch.testing.assert_close(forward[number], operator.forward(images[number]))
        torch.testing.assert_close(stacked.adjoint(forward)[number], operator.adjoint(forward[number]))
        torch.testing.assert_close(gram[number], operator.gram(images[number]))
    with pytest.raises(ValueError, match="as many sets"):
        CartesianSense.stacked([operators[0], CartesianSense(smooth_maps(3, 14, 9).csm, pattern(14, 9))])


def explicit_kspace(image: torch.Tensor) -> torch.Tensor:
    """Centred unitary Fourier sum, written out."""
    matrices = []
    for n in image.shape[-2:]:
        index = torch.arange(n, dtype=torch.float64) - n // 2
        matrices.append(
            torch.polar(torch.full((n, n), n**-0.5, dtype=torch.float64), -2 * math.pi * torch.outer(index, index) / n)
        )
    return torch.einsum("ky,lx,...yx->...kl", *matrices, image.to(torch.complex128)).to(torch.complex64)


@pytest.mark.parametrize("shape", [(14, 9), (9, 14), (8, 8), (7, 5)])
@EACH_PATTERN
def test_forward_is_the_explicit_fourier_sum_of_the_coil_images(
    shape: tuple[int, int], pattern: Callable[[int, int], torch.Tensor]
) -> None:
    csm, mask, image = smooth_maps(3, *shape).csm, pattern(*shape), random_complex(*shape, seed=5)
    operator = CartesianSense(csm, mask)
    expected = operator.arrange(explicit_kspace(csm * image) * mask)
    torch.testing.assert_close(operator.forward(image), expected, rtol=1e-4, atol=1e-5)


def test_arranging_keeps_magnitudes_and_drops_what_was_not_sampled() -> None:
    mask, kspace = lines(14, 9), random_complex(3, 14, 9, seed=1)
    arranged = CartesianSense(smooth_maps(3, 14, 9).csm, mask).arrange(kspace)
    kept = kspace[:, mask.any(1)].abs().flatten().sort().values
    torch.testing.assert_close(arranged.abs().flatten().sort().values, kept)


@EACH_PATTERN
@pytest.mark.parametrize("shape", [(14, 9), (9, 14), (8, 8)])
def test_the_range_is_the_rows_with_a_sample(
    shape: tuple[int, int], pattern: Callable[[int, int], torch.Tensor]
) -> None:
    mask = pattern(*shape)
    operator = CartesianSense(smooth_maps(3, *shape).csm, mask)
    assert operator.range_shape == (3, int(mask.any(1).sum()), shape[1])
    assert operator.sampled.sum() == mask.sum()
    assert torch.equal(operator.mask, mask)


@EACH_PATTERN
@pytest.mark.parametrize("shape", [(14, 9), (9, 14), (8, 8)])
def test_centring_undoes_arranging(shape: tuple[int, int], pattern: Callable[[int, int], torch.Tensor]) -> None:
    mask, kspace = pattern(*shape), random_complex(2, 3, *shape, seed=1)
    operator = CartesianSense(smooth_maps(3, *shape).csm, mask)
    torch.testing.assert_close(operator.centred(operator.arrange(kspace)), kspace * mask)


@EACH_PATTERN
def test_a_restricted_operator_is_that_of_the_samples_kept(pattern: Callable[[int, int], torch.Tensor]) -> None:
    maps, image = smooth_maps(3, 14, 9).csm, random_complex(14, 9, seed=5)
    operator = CartesianSense(maps, pattern(14, 9))
    kept = torch.rand(operator.range_shape[1:], generator=torch.Generator().manual_seed(1)) < 0.7
    restricted = operator.restricted(kept)
    assert restricted.range_shape == operator.range_shape
    assert torch.equal(restricted.forward(image), operator.forward(image) * kept)
    fresh = CartesianSense(maps, restricted.mask)
    assert fresh.mask.sum() == (operator.sampled & kept).sum()
    torch.testing.assert_close(restricted.gram(image), fresh.gram(image))
    assert torch.equal(operator.mask, pattern(14, 9))


@EACH_PATTERN
def test_batch_axes_are_images_side_by_side(pattern: Callable[[int, int], torch.Tensor]) -> None:
    operator = CartesianSense(smooth_maps(3, 14, 9).csm, pattern(14, 9))
    images, kspace = random_complex(2, 4, 14, 9, seed=5), random_complex(2, 4, *operator.range_shape, seed=6)
    forward, adjoint, gram = operator.forward(images), operator.adjoint(kspace), operator.gram(images)
    for i in range(2):
        for j in range(4):
            torch.testing.assert_close(forward[i, j], operator.forward(images[i, j]))
            torch.testing.assert_close(adjoint[i, j], operator.adjoint(kspace[i, j]))
            torch.testing.assert_close(gram[i, j], operator.gram(images[i, j]))


@EACH_PATTERN
def test_a_stacked_operator_is_each_slice_with_its_own_maps(pattern: Callable[[int, int], torch.Tensor]) -> None:
    maps = [smooth_maps(3, 14, 9).csm, smooth_maps(3, 14, 9).csm.flip(0, 2)]
    operators = [CartesianSense(csm, pattern(14, 9)) for csm in maps]
    stacked = CartesianSense.stacked(operators)
    assert stacked.positions == operators[0].positions
    assert (stacked.domain_shape, stacked.range_shape) == (operators[0].domain_shape, operators[0].range_shape)
    images = random_complex(2, 5, 14, 9, seed=5)
    for displaced in (False, True):
        both = stacked.displaced((0.25, -0.25)) if displaced else stacked
        forward, gram = both.forward(images), both.gram(images)
        adjoint = both.adjoint(forward)
        for number, operator in enumerate(operators):
            alone = operator.displaced((0.25, -0.25)) if displaced else operator
            torch.testing.assert_close(forward[number], alone.forward(images[number]))
            torch.testing.assert_close(adjoint[number], alone.adjoint(forward[number]))
            torch.testing.assert_close(gram[number], alone.gram(images[number]))


def test_slices_with_other_samples_are_not_stacked() -> None:
    maps = smooth_maps(3, 14, 9).csm
    with pytest.raises(ValueError, match="same samples"):
        CartesianSense.stacked([CartesianSense(maps, pattern(14, 9)) for pattern in (lines, odd)])


@EACH_PATTERN
def test_a_displaced_operator_gives_the_displaced_data_of_the_displaced_image(
    pattern: Callable[[int, int], torch.Tensor],
) -> None:
    rows, columns, offset = 33, 29, (0.25, -0.25)
    mask, csm = pattern(rows, columns), torch.ones(1, rows, columns, dtype=torch.complex64)
    image = random_complex(rows, columns, seed=7)
    operator = CartesianSense(csm, mask)
    left = operator.displaced(offset).forward(displace_image(image, offset))
    torch.testing.assert_close(left, operator.displace(operator.forward(image), offset), rtol=1e-4, atol=1e-4)
    back = displace_image(displace_image(image, offset), (-0.25, 0.25))
    torch.testing.assert_close(back, image, rtol=1e-4, atol=1e-4)


def test_displacing_by_a_whole_pixel_is_a_roll() -> None:
    image = random_complex(8, 7, seed=8)
    torch.testing.assert_close(displace_image(image, (1, -1)), image.roll((-1, 1), (0, 1)), rtol=1e-4, atol=1e-4)
    maps = smooth_maps(2, 8, 7).csm
    rolled = CartesianSense(maps, lines(8, 7)).displaced((1, -1)).csm
    torch.testing.assert_close(rolled, maps.roll((-1, 1), (1, 2)))


def test_conjugate_gradient_solves_the_normal_equations() -> None:
    matrix = random_complex(12, 12, seed=2)
    positive = matrix.conj().T @ matrix
    right = random_complex(12, seed=3)
    solution, iterations = conjugate_gradient(
        lambda x: positive @ x, right, weight=0.5, iterations=100, start=random_complex(12, seed=4), tolerance=1e-6
    )
    expected = torch.linalg.solve(positive + 0.5 * torch.eye(12), right)
    torch.testing.assert_close(solution, expected, rtol=1e-3, atol=1e-3)
    assert iterations < 100


def test_conjugate_gradient_of_nothing_is_nothing() -> None:
    zero = torch.zeros(5, dtype=torch.complex64)
    assert torch.equal(conjugate_gradient(lambda x: 2 * x, zero)[0], zero)


@pytest.mark.parametrize("iterations", [3, 12, 100])
def test_shifted_conjugate_gradients_are_those_of_each_weight(iterations: int) -> None:
    """Long after the largest weights have converged too, down to zeta that no number is small enough for."""
    matrix = random_complex(12, 12, seed=2).to(torch.complex128)
    positive = matrix.conj().T @ matrix
    right = random_complex(3, 4, seed=3).to(torch.complex128)
    weights = [30.0, 1e-2, 1.0, 1e9]

    def gram(x: torch.Tensor) -> torch.Tensor:
        return (positive @ x.flatten()).view(3, 4)

    found = shifted_conjugate_gradients(gram, right, weights=weights, iterations=iterations, tolerance=1e-14)
    assert found.shape == (4, 3, 4)
    for weight, solution in zip(weights, found, strict=True):
        alone, _ = conjugate_gradient(gram, right, weight=weight, iterations=iterations, tolerance=1e-14)
        torch.testing.assert_close(solution, alone, rtol=1e-6, atol=1e-12)


def test_shifted_conjugate_gradients_of_nothing_are_nothing() -> None:
    zero = torch.zeros(2, 5, dtype=torch.complex64)
    assert torch.equal(
        shifted_conjugate_gradients(lambda x: 2 * x, zero, weights=[1.0, 2.0], iterations=3), zero.expand(2, 2, 5)
    )


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="mask"):
        CartesianSense(smooth_maps(2, 8, 8).csm, torch.ones(8, 7, dtype=torch.bool))
