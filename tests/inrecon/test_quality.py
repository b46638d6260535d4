"""PSNR, SSIM and NRMSE: laws first, then scikit-image's own numbers."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio

from inrecon.errors import InvalidFrame
from inrecon.quality import Quality, change_error, measure, nrmse, psnr, scale_to, ssim

RNG = np.random.default_rng(0)
REFERENCE = RNG.uniform(0.5, 2, (24, 20)) * np.exp(1j * RNG.uniform(0, 6, (24, 20)))
NOISE = RNG.standard_normal((24, 20)) + 1j * RNG.standard_normal((24, 20))
SUPPORT = np.hypot(*np.mgrid[-12:12, -10:10]) < 9


def as_tuple(quality: Quality) -> tuple[float, float, float]:
    return quality.psnr, quality.ssim, quality.nrmse


def test_an_image_equals_itself() -> None:
    assert as_tuple(measure(REFERENCE, REFERENCE, SUPPORT)) == (np.inf, 1.0, 0.0)


@given(exponent=st.floats(-6, 6), angle=st.floats(0, 6))
@settings(deadline=None)
def test_scale_and_phase_do_not_count(exponent: float, angle: float) -> None:
    image = REFERENCE + 0.1 * NOISE
    scaled = image * 10**exponent * np.exp(1j * angle)
    np.testing.assert_allclose(
        as_tuple(measure(scaled, REFERENCE, SUPPORT)), as_tuple(measure(image, REFERENCE, SUPPORT)), rtol=1e-9
    )
    np.testing.assert_allclose(
        as_tuple(measure(image, REFERENCE * 10**exponent, SUPPORT)),
        as_tuple(measure(image, REFERENCE, SUPPORT)),
        rtol=1e-9,
    )


def test_the_outside_of_the_support_does_not_count() -> None:
    image = REFERENCE + 0.1 * NOISE
    elsewhere = np.where(SUPPORT, 0, 50 + NOISE)
    assert measure(image + elsewhere, REFERENCE - elsewhere, SUPPORT) == measure(image, REFERENCE, SUPPORT)


def test_more_noise_is_worse() -> None:
    found = [measure(REFERENCE + level * NOISE, REFERENCE, SUPPORT) for level in (0, 0.01, 0.03, 0.1, 0.3)]
    assert all(a.psnr > b.psnr and a.ssim > b.ssim and a.nrmse < b.nrmse for a, b in pairwise(found))


def test_the_scale_is_the_best_there_is() -> None:
    image = 3 * REFERENCE + NOISE

    def error(scale: float) -> float:
        return float(np.linalg.norm((scale * np.abs(image) - np.abs(REFERENCE))[SUPPORT]))

    best = scale_to(image, REFERENCE, SUPPORT)
    assert best == pytest.approx(1 / 3, rel=0.1)
    assert error(best) < min(error(best * 1.01), error(best / 1.01))
    assert nrmse(image, REFERENCE, SUPPORT) == pytest.approx(error(best) / np.linalg.norm(REFERENCE[SUPPORT]))


def test_psnr_by_hand() -> None:
    reference = np.zeros((8, 8))
    reference[::2] = 4.0
    image = reference.copy()
    image[0], image[2] = 3.0, 5.0
    everywhere = np.ones((8, 8), bool)
    # A row of threes, one of fives and two of fours against fours: least squares by hand.
    scale = (8 * (3 + 5) * 4 + 16 * 16) / (8 * (9 + 25) + 16 * 16)
    mean_square = (8 * ((3 * scale - 4) ** 2 + (5 * scale - 4) ** 2) + 16 * (4 * scale - 4) ** 2) / 64
    assert psnr(image, reference, everywhere) == pytest.approx(10 * np.log10(4.0**2 / mean_square))


def test_psnr_counts_zeros_outside_into_the_range_but_not_into_the_mean() -> None:
    image = REFERENCE + 0.1 * NOISE
    fitted = scale_to(image, REFERENCE, SUPPORT) * np.abs(image)
    truth = np.abs(REFERENCE)
    expected = peak_signal_noise_ratio(truth[SUPPORT], fitted[SUPPORT], data_range=truth[SUPPORT].max())
    assert psnr(image, REFERENCE, SUPPORT) == pytest.approx(expected)


def test_ssim_sees_structure_where_psnr_sees_none() -> None:
    """Two images equally far from a smooth reference: one with a wrong offset, one with wrong texture."""
    reference = 1 + np.outer(np.linspace(0, 1, 32), np.linspace(0, 1, 32))
    everywhere = np.ones((32, 32), bool)
    wave = 0.1 * (-1.0) ** np.add.outer(np.arange(32), np.arange(32))
    assert ssim(reference + 0.1, reference, everywhere) > ssim(reference + wave, reference, everywhere) + 0.2


def test_an_image_of_zeros_has_nrmse_one() -> None:
    assert nrmse(np.zeros((24, 20)), REFERENCE, SUPPORT) == 1.0
    assert scale_to(np.zeros((24, 20)), REFERENCE, SUPPORT) == 0.0


def holed(value: float) -> NDArray[np.complex128]:
    image = REFERENCE.copy()
    image[12, 10] = value
    return image


@pytest.mark.parametrize(
    ("image", "reference", "support"),
    [
        (REFERENCE[1:], REFERENCE, SUPPORT),
        (REFERENCE, REFERENCE, SUPPORT[1:]),
        (REFERENCE[:6], REFERENCE[:6], SUPPORT[:6]),
        (REFERENCE[None], REFERENCE[None], SUPPORT[None]),
        (holed(np.nan), REFERENCE, SUPPORT),
        (REFERENCE, holed(np.inf), SUPPORT),
        (REFERENCE, REFERENCE, np.zeros_like(SUPPORT)),
        (REFERENCE, np.ones_like(REFERENCE), np.ones_like(SUPPORT)),
    ],
)
def test_what_cannot_be_measured_is_refused(
    image: NDArray[np.complex128], reference: NDArray[np.complex128], support: NDArray[np.bool_]
) -> None:
    for of in (psnr, ssim, nrmse, measure, scale_to):
        with pytest.raises(InvalidFrame):
            of(image, reference, support)


def test_an_empty_margin_changes_nothing() -> None:
    head = np.hypot(*np.mgrid[-12:12, -10:10]) < 6
    image = REFERENCE + 0.3 * NOISE
    wider = [np.pad(values, ((9, 4), (0, 7))) for values in (image, REFERENCE, head)]
    np.testing.assert_allclose(as_tuple(measure(*wider)), as_tuple(measure(image, REFERENCE, head)))


def test_the_error_of_a_change_is_that_of_what_lacks_it() -> None:
    changed = np.zeros_like(SUPPORT)
    changed[10:13, 8:12] = True
    before = np.where(changed, 0.3 * REFERENCE, REFERENCE)
    where = {"support": SUPPORT, "changed": changed}
    assert change_error(5j * REFERENCE, REFERENCE, before, **where) == pytest.approx(0, abs=1e-12)
    assert change_error(before, REFERENCE, before, **where) == pytest.approx(1, rel=0.1)
    half = np.where(changed, 0.65 * REFERENCE, REFERENCE)
    assert change_error(half, REFERENCE, before, **where) == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("before", [REFERENCE, REFERENCE[1:]])
def test_what_has_not_changed_has_no_such_error(before: NDArray[np.complex128]) -> None:
    with pytest.raises(InvalidFrame):
        change_error(REFERENCE, REFERENCE, before, support=SUPPORT, changed=SUPPORT)
