"""GRAPPA: exact where linear prediction is, near where maps are smooth, and a refusal where it cannot be calibrated."""

import dataclasses

import pytest
import torch

from inrecon.errors import CalibrationFailed
from inrecon.frame import CoilMaps, Frame
from inrecon.methods import ZeroFilled, hold_out
from inrecon.methods.grappa import Grappa, acquired_region, calibrated_kernel
from inrecon.methods.method import InvalidHyperparameter
from inrecon.operators import CartesianSense
from inrecon.testing import MethodConformance, random_complex, relative_error, smooth_maps, smooth_object

ROWS, COLUMNS = 48, 40


class TestGrappa(MethodConformance):
    method = Grappa()


def frame_of(maps: CoilMaps, mask: torch.Tensor, image: torch.Tensor) -> Frame:
    """Noiseless."""
    operator = CartesianSense(maps.csm, mask)
    return Frame(kspace=operator.forward(image), operator=operator, maps=maps, noise_level=None)


def smooth_frame(mask: torch.Tensor, *, coils: int = 8) -> tuple[Frame, torch.Tensor]:
    """`smooth_object` under eight smooth coil maps, and its true image."""
    image = smooth_object(*mask.shape)
    return frame_of(smooth_maps(coils, *mask.shape), mask, image), image


def every_second_line(rows: int = ROWS, columns: int = COLUMNS, *, centre: int = 16) -> torch.Tensor:
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    mask[::2] = True
    mask[rows // 2 - centre // 2 : rows // 2 + centre // 2] = True
    return mask


def every_second_point() -> torch.Tensor:
    """Both axes undersampled by two, but for the centre."""
    mask = torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
    mask[::2, ::2] = True
    mask[14:34, 10:30] = True
    return mask


@pytest.mark.parametrize("rows", [48, 47])
def test_half_the_lines_of_a_noiseless_scan_are_recovered(rows: int) -> None:
    frame, truth = smooth_frame(every_second_line(rows))
    assert relative_error(ZeroFilled().fit(frame).image, truth) > 0.05
    assert relative_error(Grappa(regularisation=1e-6).fit(frame).image, truth) < 0.02


def test_a_quarter_of_the_points_of_a_noiseless_scan_is_enough() -> None:
    frame, truth = smooth_frame(every_second_point())
    assert relative_error(ZeroFilled().fit(frame).image, truth) > 0.05
    assert relative_error(Grappa(regularisation=1e-6).fit(frame).image, truth) < 0.02


@pytest.mark.parametrize("mask", [every_second_line(), every_second_point()], ids=["lines", "points"])
def test_an_object_of_fewer_points_than_weights_is_recovered_exactly(mask: torch.Tensor) -> None:
    """k-space is then a sum of few exponentials, which some kernel continues exactly, whatever the coil maps."""
    mask = mask[:-1, :-1]
    rows, columns = mask.shape
    csm = random_complex(6, rows, columns, seed=1)
    csm = csm / torch.linalg.vector_norm(csm, dim=0)
    maps = CoilMaps(csm=csm, support=torch.ones(rows, columns, dtype=torch.bool), estimated_by="espirit")
    truth = torch.zeros(rows, columns, dtype=torch.complex64)
    truth[[5, 20, 29, 30, 44], [8, 33, 11, 35, 8]] = random_complex(5, seed=2)
    # Of one column, since a wider kernel reads zeros beyond the ends of the readout.
    image = Grappa(regularisation=1e-8, columns=1).fit(frame_of(maps, mask, truth)).image
    assert relative_error(image, truth) < 1e-3


def test_a_kernel_is_exact_for_a_linear_relation() -> None:
    sources, weights = random_complex(60, 12, seed=1), random_complex(12, 3, seed=2)
    kernel = calibrated_kernel(sources, sources @ weights, regularisation=1e-10)
    torch.testing.assert_close(kernel, weights, rtol=1e-4, atol=1e-4)


def test_regularisation_is_relative_to_the_signal() -> None:
    sources, targets = random_complex(60, 12, seed=1), random_complex(60, 3, seed=2)
    kernel = calibrated_kernel(sources, targets, regularisation=0.1)
    torch.testing.assert_close(calibrated_kernel(1e3 * sources, 1e3 * targets, regularisation=0.1), kernel)
    assert kernel.norm() < calibrated_kernel(sources, targets, regularisation=1e-6).norm()


def test_what_was_acquired_stays() -> None:
    frame, truth = smooth_frame(torch.ones(ROWS, COLUMNS, dtype=torch.bool))
    assert relative_error(Grappa().fit(frame).image, truth) < 1e-5


def test_noise_is_tamed_by_regularisation() -> None:
    frame, truth = smooth_frame(every_second_line(centre=8))
    noisy = dataclasses.replace(frame, kspace=frame.kspace + 0.5 * random_complex(*frame.kspace.shape, seed=3))
    overfitted = relative_error(Grappa(regularisation=1e-8).fit(noisy).image, truth)
    assert relative_error(Grappa(regularisation=1e-2).fit(noisy).image, truth) < overfitted


@pytest.mark.parametrize("axis", [0, 1])
def test_outside_the_acquired_region_kspace_stays_zero(axis: int) -> None:
    """Partial Fourier, and a partial echo: the image is that of the acquired region, not an extrapolation."""
    region = torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
    region.narrow(axis, 0, 35).fill_(True)
    region &= torch.arange(ROWS)[:, None] < ROWS - 1
    frame, truth = smooth_frame(every_second_line() & region)
    complete = CartesianSense(frame.maps.csm, region)
    expected = complete.adjoint(complete.forward(truth))
    assert relative_error(Grappa(regularisation=1e-6).fit(frame).image, expected) < 0.02


def test_lines_with_gaps_wider_than_the_calibration_are_refused() -> None:
    mask = torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
    mask[[0, 3, 19, 20, 21, 22, 23, 24, 25, 26, 38, 40, 47]] = True
    with pytest.raises(CalibrationFailed, match="more calibration lines or a regular pattern"):
        Grappa().fit(smooth_frame(mask)[0])


def test_a_scan_without_calibration_lines_is_refused() -> None:
    with pytest.raises(CalibrationFailed, match=r"neighbours at \(-1, 0\), \(1, 0\)"):
        Grappa().fit(smooth_frame(every_second_line(centre=0))[0])


def test_an_empty_scan_gives_an_empty_image() -> None:
    frame, _ = smooth_frame(every_second_line())
    empty = Grappa().fit(dataclasses.replace(frame, kspace=torch.zeros_like(frame.kspace)))
    assert not empty.image.any()


def test_an_even_number_of_columns_is_refused() -> None:
    with pytest.raises(InvalidHyperparameter, match=r"grappa\.columns must be odd"):
        Grappa(columns=4)


def test_random_points_are_refused() -> None:
    mask = torch.rand(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)) < 0.3
    mask[14:34, 10:30] = True
    with pytest.raises(CalibrationFailed, match="regular patterns, not random or Poisson-disc ones"):
        Grappa().fit(smooth_frame(mask)[0])


def test_it_is_not_judged_by_held_out_samples() -> None:
    frame = hold_out(smooth_frame(every_second_point())[0], 0.05, seed=0)
    assert frame.held_out is not None
    with pytest.raises(CalibrationFailed):
        Grappa().fit(frame.training)
    result = Grappa().judged(frame)
    assert result.validation_loss is None
    assert torch.equal(result.image, Grappa().fit(frame).image)


def test_the_acquired_region_is_the_mask_without_its_gaps() -> None:
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[1:5:3, 2:5:2] = True
    expected = torch.zeros_like(mask)
    expected[1:5, 2:5] = True
    assert torch.equal(acquired_region(mask), expected)
