"""SENSE column by column: the laws of operators, and CartesianSense but for the readout transform."""

import pytest
import torch

from inrecon.operators import CartesianSense, ColumnSense, displace_image
from inrecon.testing import OperatorConformance, random_complex, smooth_maps

EACH_SHAPE = pytest.mark.parametrize("shape", [(14, 9), (9, 14), (8, 8)])
SETS = pytest.mark.parametrize("sets", [1, 2])
WEIGHTS = pytest.mark.parametrize("weight", [1e-3, 0.1, 10.0])


def lines(rows: int, columns: int) -> torch.Tensor:
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    mask[1::3] = True
    mask[rows // 2 - 2 : rows // 2 + 2] = True
    return mask


def maps_of(sets: int, rows: int, columns: int) -> torch.Tensor:
    """Smooth maps; two sets are orthonormal at each pixel, the second zero in half of the columns."""
    first = smooth_maps(3, rows, columns).csm
    if sets == 1:
        return first
    other = random_complex(3, rows, columns, seed=9)
    second = other - (first.conj() * other).sum(0) * first
    second = second / torch.linalg.vector_norm(second, dim=0)
    return torch.stack([first, second * (torch.arange(columns) < columns // 2)])


def both(sets: int, shape: tuple[int, int]) -> tuple[CartesianSense, ColumnSense]:
    plain = CartesianSense(maps_of(sets, *shape), lines(*shape))
    return plain, ColumnSense.of(plain)


def kept_samples(operator: CartesianSense) -> torch.Tensor:
    """Most of the samples, of each line others."""
    return torch.rand(operator.range_shape[1:], generator=torch.Generator().manual_seed(1)) < 0.7


class TestWholeLines(OperatorConformance):
    operator = both(1, (14, 9))[1]


class TestSamplesLeftOut(OperatorConformance):
    operator = TestWholeLines.operator.restricted(kept_samples(TestWholeLines.operator))


class TestTwoSetsOfMaps(OperatorConformance):
    operator = both(2, (11, 8))[1]


def by_columns(columns: ColumnSense, matrices: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """`matrices` of the box times the columns of `images`; zero beyond it."""
    products = torch.zeros_like(images)
    products[..., *columns.box] = columns._inside(matrices, images)
    return products


class TestTwoSetsOfMapsWithSamplesLeftOut(OperatorConformance):
    operator = TestTwoSetsOfMaps.operator.restricted(kept_samples(TestTwoSetsOfMaps.operator))


def test_lines_with_gaps_are_refused() -> None:
    mask = lines(14, 9)
    mask[1, :3] = False
    with pytest.raises(ValueError, match="readouts are whole"):
        ColumnSense.of(CartesianSense(maps_of(1, 14, 9), mask))


@EACH_SHAPE
@SETS
def test_it_is_sense_with_readouts_in_image_space(sets: int, shape: tuple[int, int]) -> None:
    plain, columns = both(sets, shape)
    image = random_complex(*plain.domain_shape, seed=5)
    assert (columns.domain_shape, columns.range_shape) == (plain.domain_shape, plain.range_shape)
    assert torch.equal(columns.mask, plain.mask)
    kspace = plain.forward(image)
    torch.testing.assert_close(torch.fft.fft(columns.forward(image), dim=-1, norm="ortho"), kspace)
    torch.testing.assert_close(columns.adjoint(torch.fft.ifft(kspace, dim=-1, norm="ortho")), plain.adjoint(kspace))
    torch.testing.assert_close(columns.gram(image), plain.gram(image))


@EACH_SHAPE
@SETS
def test_data_that_cross_doors_have_the_same_adjoint(sets: int, shape: tuple[int, int]) -> None:
    plain, columns = both(sets, shape)
    kspace = random_complex(3, *shape, seed=6)
    found = columns.adjoint(columns.arrange(kspace))
    torch.testing.assert_close(found, plain.adjoint(plain.arrange(kspace)), rtol=1e-4, atol=1e-5)


@EACH_SHAPE
def test_centring_undoes_arranging(shape: tuple[int, int]) -> None:
    plain, columns = both(1, shape)
    kspace = random_complex(2, 3, *shape, seed=1)
    arranged = columns.arrange(kspace)
    torch.testing.assert_close(torch.linalg.vector_norm(arranged), torch.linalg.vector_norm(kspace * plain.mask))
    torch.testing.assert_close(columns.centred(arranged), kspace * plain.mask)


def test_arranging_drops_what_has_been_left_out() -> None:
    columns = both(1, (14, 9))[1]
    kept = kept_samples(columns)
    kspace = random_complex(3, 14, 9, seed=1)
    assert torch.equal(columns.restricted(kept).arrange(kspace), columns.arrange(kspace) * kept)


@EACH_SHAPE
def test_displaced_data_are_those_of_the_displaced_image(shape: tuple[int, int]) -> None:
    plain, columns = both(1, shape)
    kspace, offset = random_complex(3, *shape, seed=6), (0.25, -0.5)
    found = columns.displace(columns.arrange(kspace), offset)
    expected = plain.displace(plain.arrange(kspace), offset)
    torch.testing.assert_close(torch.fft.fft(found, dim=-1, norm="ortho"), expected, rtol=1e-4, atol=1e-5)
    odd = 13, 11  # sizes at which interpolation loses nothing
    alone = ColumnSense(torch.ones(1, *odd, dtype=torch.complex64), lines(*odd))
    image = random_complex(*odd, seed=7)
    left = alone.displaced(offset).forward(displace_image(image, offset))
    torch.testing.assert_close(left, alone.displace(alone.forward(image), offset), rtol=1e-4, atol=1e-4)


@EACH_SHAPE
@pytest.mark.parametrize("reach", [0, 1, 3])
def test_the_centre_is_its_lines_at_every_column(shape: tuple[int, int], reach: int) -> None:
    columns = both(1, shape)[1]
    rows = (torch.arange(shape[0]) - shape[0] // 2).abs() <= reach
    near = torch.zeros(shape, dtype=torch.bool)
    near[rows] = True
    marked = columns.restricted(columns.central(reach))
    assert torch.equal(marked.mask, near & columns.mask)


@EACH_SHAPE
@SETS
@pytest.mark.parametrize("restricted", [False, True])
def test_the_matrix_of_each_column_is_the_gram(sets: int, shape: tuple[int, int], restricted: bool) -> None:
    columns = both(sets, shape)[1]
    if restricted:
        columns = columns.restricted(kept_samples(columns))
    images = random_complex(2, 4, *columns.domain_shape, seed=5)
    grams = columns.grams()
    assert grams.shape == (shape[1], sets * shape[0], sets * shape[0])
    torch.testing.assert_close(grams, grams.mH, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(by_columns(columns, grams, images), columns.gram(images), rtol=1e-4, atol=1e-5)


@SETS
@WEIGHTS
@pytest.mark.parametrize("restricted", [False, True])
def test_the_inverses_solve_tikhonovs_problem(sets: int, weight: float, restricted: bool) -> None:
    columns = both(sets, (14, 9))[1]
    if restricted:
        columns = columns.restricted(kept_samples(columns))
    images = random_complex(3, *columns.domain_shape, seed=5)
    right_hand_side = columns.gram(images) + weight * images
    found = columns.solve(columns.inverses(weight), right_hand_side, weight=weight)
    torch.testing.assert_close(found, images, rtol=1e-3, atol=1e-3)


def test_columns_and_rows_without_coil_maps_are_left_out() -> None:
    columns = both(1, (14, 9))[1]
    csm = columns.csm.clone()
    csm[:, :3], csm[:, :, 7:] = 0, 0
    narrow = columns.with_maps(csm)
    assert narrow.box == (slice(3, 14), slice(0, 7))
    images = random_complex(2, 14, 9, seed=5)
    torch.testing.assert_close(by_columns(narrow, narrow.grams(), images), narrow.gram(images), rtol=1e-4, atol=1e-5)
    right_hand_side = narrow.gram(images) + 0.1 * images
    torch.testing.assert_close(
        narrow.solve(narrow.inverses(0.1), right_hand_side, weight=0.1), images, rtol=1e-3, atol=1e-3
    )


@SETS
def test_matrices_of_columns_meet_each_image_of_a_batch(sets: int) -> None:
    columns = both(sets, (14, 9))[1]
    matrices = random_complex(9, sets * 14, sets * 14, seed=3)
    images = random_complex(2, 3, *columns.domain_shape, seed=5)
    together = by_columns(columns, matrices, images)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(together[i, j], by_columns(columns, matrices, images[i, j]))
    third = torch.stack([matrices[x] @ images[0, 0].reshape(-1, 9)[:, x] for x in range(9)], 1)
    torch.testing.assert_close(together[0, 0], third.view(columns.domain_shape))
