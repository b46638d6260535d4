"""IMJENSE: maps and image are found together, and given in the intensity that every method gives."""

import dataclasses

import numpy as np
import pytest
import torch

from inrecon.errors import FitDiverged
from inrecon.events import Event, FitFinished, FitProgressed, listening
from inrecon.frame import CoilMaps, Frame
from inrecon.methods import CGSense
from inrecon.methods.imjense import Imjense, PolynomialMaps, in_convention_of, siren
from inrecon.operators import CartesianSense
from inrecon.testing import (
    MethodConformance,
    random_complex,
    relative_error,
    simulated_frame,
    smooth_maps,
    smooth_object,
)

QUICK = Imjense(iterations=80, hidden_layers=2, width=32, omega=15.0, order=5, learning_rate=5e-3)


class TestImjense(MethodConformance):
    method = QUICK


class TestImjenseWithoutClosing(MethodConformance):
    method = dataclasses.replace(QUICK, closing_weight=0.0, seed=3)


def frame_with(csm: torch.Tensor, frame: Frame) -> Frame:
    """`frame` with other coil maps, its k-space left alone."""
    mask = torch.zeros(frame.operator.domain_shape, dtype=torch.bool)
    mask[::3] = mask[12:20] = True
    maps = dataclasses.replace(frame.maps, csm=csm)
    return dataclasses.replace(frame, operator=CartesianSense(csm, mask), maps=maps)


@pytest.mark.parametrize(("p", "q"), [(0, 0), (3, 2), (4, 4)])
def test_polynomial_maps_are_exact_for_polynomials(p: int, q: int) -> None:
    maps = PolynomialMaps(2, (9, 12), order=4)
    monomials = [np.polynomial.legendre.poly2leg(np.eye(5)[power]) for power in (p, q)]
    coefficients = torch.zeros(2, 5, 5, dtype=torch.complex64)
    coefficients[1, : p + 1, : q + 1] = (2 - 1j) * torch.from_numpy(np.outer(*monomials))
    with torch.no_grad():
        maps.coefficients.copy_(coefficients)
    y, x = (torch.arange(9) + 0.5) / 4.5 - 1, (torch.arange(12) + 0.5) / 6 - 1
    expected = (2 - 1j) * y[:, None] ** p * x**q
    torch.testing.assert_close(maps()[1].detach(), expected, rtol=1e-5, atol=1e-5)
    assert not maps()[0].any()


def test_a_siren_has_the_same_spread_in_every_layer() -> None:
    """What the initial values are for: arguments with unit variance, whatever the depth (Sitzmann et al.)."""
    network = siren(hidden_layers=6, width=256, omega=30.0, generator=torch.Generator().manual_seed(0))
    values = 2 * torch.rand(2000, 2, generator=torch.Generator().manual_seed(1)) - 1
    with torch.no_grad():
        for layer in list(network)[:-1]:
            values = layer(values)
            assert (
                0.6 < values.std() < 0.8
            )  # a sine of anything spread over periods, or of a normal variable: 0.66 to 0.71


def test_any_maps_are_brought_into_the_convention() -> None:
    csm = smooth_maps(3, 8, 6).csm
    factor = torch.polar(0.5 + torch.rand(8, 6), 6 * torch.rand(8, 6))
    maps, found = in_convention_of(csm, csm * factor)
    torch.testing.assert_close(maps, csm, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, factor, rtol=1e-4, atol=1e-5)


def test_on_complete_data_the_intensity_is_that_of_cg_sense() -> None:
    """Without closing, so that nothing but the convention sets the intensity."""
    maps = smooth_maps(4, 32, 24)
    operator = CartesianSense(maps.csm, torch.ones(32, 24, dtype=torch.bool))
    kspace = operator.forward(smooth_object(32, 24))
    frame = Frame(kspace=kspace / kspace.abs().max(), operator=operator, maps=maps, noise_level=None)
    method = dataclasses.replace(QUICK, iterations=250, width=64, tv_weight=1e-4, closing_weight=0.0)
    image, reference = method.fit(frame).image, CGSense().fit(frame).image
    assert relative_error(image, reference) < 0.1
    assert float(image.abs().sum() / reference.abs().sum()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("closing_weight", [0.0, 0.1])
def test_the_maps_of_the_frame_do_not_enter_the_fit(closing_weight: float) -> None:
    method = dataclasses.replace(QUICK, iterations=20, closing_weight=closing_weight)
    frame, _ = simulated_frame()
    wrong = random_complex(*frame.maps.csm.shape, seed=9)
    wrong = wrong / torch.linalg.vector_norm(wrong, dim=0)
    image, other = method.fit(frame).image, method.fit(frame_with(wrong, frame)).image
    torch.testing.assert_close(other.abs(), image.abs(), rtol=1e-3, atol=1e-5)


def test_the_image_ends_with_the_support() -> None:
    frame, _ = simulated_frame()
    support = torch.zeros_like(frame.maps.support)
    support[4:28, 3:20] = True
    maps = CoilMaps(csm=frame.maps.csm * support, support=support, estimated_by="espirit")
    image = QUICK.fit(dataclasses.replace(frame_with(maps.csm, frame), maps=maps)).image
    assert not image[~support].any()
    assert image[support].all()


def test_image_and_kspace_scale_together() -> None:
    method = dataclasses.replace(QUICK, iterations=10)
    frame, _ = simulated_frame()
    doubled = method.fit(dataclasses.replace(frame, kspace=4 * frame.kspace)).image
    torch.testing.assert_close(doubled, 4 * method.fit(frame).image)


def test_the_seed_decides() -> None:
    method = dataclasses.replace(QUICK, iterations=5)
    frame, _ = simulated_frame()
    image = method.fit(frame).image
    torch.rand(3)
    assert torch.equal(method.fit(frame).image, image)
    assert not torch.equal(dataclasses.replace(method, seed=1).fit(frame).image, image)


def test_total_variation_flattens_the_image() -> None:
    frame, _ = simulated_frame()
    images = [
        dataclasses.replace(QUICK, closing_weight=0.0, tv_weight=weight).fit(frame).image for weight in (1e-5, 0.3)
    ]
    rough, flat = (float(image.diff(dim=0).abs().sum() / image.abs().sum()) for image in images)
    assert flat < 0.8 * rough


@pytest.mark.parametrize("learning_rate", [1e6, float("inf")])
def test_a_fit_that_runs_away_says_so(learning_rate: float) -> None:
    with pytest.raises(FitDiverged, match="imjense diverged"):
        dataclasses.replace(QUICK, iterations=10, learning_rate=learning_rate).fit(simulated_frame()[0])


def test_progress_and_end_are_announced() -> None:
    heard: list[Event] = []
    with listening(heard.append):
        result = dataclasses.replace(QUICK, iterations=30).fit(simulated_frame()[0])
    assert [e.iteration for e in heard if isinstance(e, FitProgressed)] == [25, 30]
    assert [(e.method, e.iterations) for e in heard if isinstance(e, FitFinished)] == [("imjense", 30)]
    assert result.iterations == len(result.losses) == 30
    assert result.losses[-1] < result.losses[0]
