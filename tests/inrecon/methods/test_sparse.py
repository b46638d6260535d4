"""l1-wavelet and total variation: laws of the transforms, of the minimisers, and agreement with BART."""

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from inrecon.errors import FitDiverged
from inrecon.events import Event, FitFinished, FitProgressed, listening
from inrecon.frame import CoilMaps, Frame
from inrecon.methods import CGSense
from inrecon.methods.method import InvalidHyperparameter, build
from inrecon.methods.sparse import SparseMethod
from inrecon.methods.total_variation import TotalVariation, differences, differences_adjoint
from inrecon.methods.wavelet import HIGH_PASS, LOW_PASS, L1Wavelet, StationaryWavelet
from inrecon.operators import CartesianSense
from inrecon.testing import (
    MethodConformance,
    random_complex,
    relative_error,
    simulated_frame,
    smooth_maps,
    smooth_object,
)

BOTH = pytest.mark.parametrize("cls", [L1Wavelet, TotalVariation])
SHAPES = pytest.mark.parametrize("shape", [(32, 24), (15, 22), (7, 5), (1, 9)])
CPU = torch.device("cpu")


class TestL1Wavelet(MethodConformance):
    method = L1Wavelet()


class TestTotalVariation(MethodConformance):
    method = TotalVariation()


def without_noise_term(cls: type[SparseMethod], **values: float) -> SparseMethod:
    """`cls`, its weight set by `regularisation` alone, run far."""
    return dataclasses.replace(cls(), **{"noise_factor": 0.0, "tolerance": 0.0, "iterations": 200, **values})


def penalty(method: SparseMethod, image: torch.Tensor) -> float:
    """R(x)."""
    if isinstance(method, L1Wavelet):
        wavelet = StationaryWavelet((image.shape[0], image.shape[1]), CPU)
        return float((wavelet.weights * wavelet.forward(image).abs()).sum())
    return float(torch.linalg.vector_norm(differences(image), dim=0).sum())


def objective(method: SparseMethod, frame: Frame, image: torch.Tensor) -> float:
    """|A x - y|^2 / 2 + weight R(x)."""
    weight = method.weight(frame, back_projection=frame.operator.adjoint(frame.kspace))
    misfit = (frame.operator.forward(image) - frame.kspace).abs().square().sum() / 2
    return float(misfit) + weight * penalty(method, image)


@SHAPES
def test_the_wavelet_transform_is_a_tight_frame_at_any_size(shape: tuple[int, int]) -> None:
    wavelet, image = StationaryWavelet(shape, CPU), random_complex(*shape, seed=1)
    coefficients = wavelet.forward(image)
    torch.testing.assert_close(wavelet.adjoint(coefficients), image, rtol=1e-5, atol=1e-5)
    assert float(torch.linalg.vector_norm(coefficients)) == pytest.approx(
        float(torch.linalg.vector_norm(image)), rel=1e-5
    )
    other = random_complex(*coefficients.shape, seed=2)
    left = torch.vdot(coefficients.flatten(), other.flatten())
    right = torch.vdot(image.flatten(), wavelet.adjoint(other).flatten())
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def test_the_wavelet_penalty_is_the_mean_over_shifts_of_the_orthogonal_transforms() -> None:
    """By PyWavelets, over the 64 shifts that three levels tell apart."""
    pywt = pytest.importorskip("pywt", reason="PyWavelets is not installed")
    image = random_complex(24, 32, seed=1)
    norms = []
    for shift in np.ndindex(8, 8):
        shifted = image.roll(shift, (0, 1)).numpy()
        _, *details = pywt.wavedec2(shifted, "db2", mode="periodization", level=3)
        norms.append(sum(np.abs(band).sum() for level in details for band in level))
    assert penalty(L1Wavelet(), image) == pytest.approx(np.mean(norms), rel=1e-5)


def test_the_filters_are_orthogonal_and_blind_to_straight_lines() -> None:
    low, high = np.array(LOW_PASS), np.array(HIGH_PASS)
    gram = [low @ low, high @ high, low @ high, low[2:] @ low[:2], high[2:] @ high[:2], low[2:] @ high[:2]]
    np.testing.assert_allclose(gram, [1, 1, 0, 0, 0, 0], atol=1e-15)
    np.testing.assert_allclose([high.sum(), high @ np.arange(4)], 0, atol=1e-15)


@SHAPES
def test_differences_have_their_adjoint(shape: tuple[int, int]) -> None:
    image, field = random_complex(*shape, seed=1), random_complex(2, *shape, seed=2)
    left = torch.vdot(differences(image).flatten(), field.flatten())
    right = torch.vdot(image.flatten(), differences_adjoint(field).flatten())
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def test_total_variation_is_zero_of_a_constant_and_length_times_height_of_an_edge() -> None:
    constant = torch.full((9, 8), 2 - 1j)
    assert not differences(constant).any()
    edge = constant.clone()
    edge[:, 3:] += 3 + 4j
    assert penalty(TotalVariation(), edge) == pytest.approx(5 * 9)
    assert penalty(TotalVariation(), edge.T) == pytest.approx(5 * 9)


@BOTH
@pytest.mark.parametrize("regularisation", [3e-3, 3e-2])
def test_nothing_near_the_solution_has_a_lower_objective(cls: type[SparseMethod], regularisation: float) -> None:
    frame, _ = simulated_frame(noise=1e-3)
    method = without_noise_term(cls, regularisation=regularisation)
    image = method.fit(frame).image
    least = objective(method, frame, image)
    assert least < objective(method, frame, torch.zeros_like(image))
    assert least < objective(method, frame, frame.operator.adjoint(frame.kspace))
    directions = [random_complex(*image.shape, seed=s) for s in range(10)]
    directions += [image, -image, 1j * image, CGSense().fit(frame).image - image]
    for direction in directions:
        step = 0.02 * direction * torch.linalg.vector_norm(image) / torch.linalg.vector_norm(direction)
        assert least < objective(method, frame, image + step)


@pytest.mark.parametrize(("cls", "tolerance"), [(L1Wavelet, 0.04), (TotalVariation, 0.005)])
def test_along_the_solution_data_and_penalty_balance(cls: type[SparseMethod], tolerance: float) -> None:
    """R is homogeneous, so the derivative at the minimiser along itself is <A^H (A x - y), x> + weight R(x) = 0.

    Of the wavelet nearly: the mean of proximal maps belongs to a function slightly below the mean of the norms.
    """
    frame, _ = simulated_frame(noise=1e-3)
    method = without_noise_term(cls, regularisation=3e-2)
    image = method.fit(frame).image
    back_projection = frame.operator.adjoint(frame.kspace)
    pull = float(torch.vdot((back_projection - frame.operator.gram(image)).flatten(), image.flatten()).real)
    weight = method.weight(frame, back_projection=back_projection)
    assert pull == pytest.approx(weight * penalty(method, image), rel=tolerance)


@BOTH
def test_without_a_weight_it_is_least_squares(cls: type[SparseMethod]) -> None:
    frame, _ = simulated_frame(noise=1e-3)
    least_squares = CGSense(regularisation=1e-6, noise_factor=0.0, iterations=300).fit(frame).image
    image = without_noise_term(cls, regularisation=0.0).fit(frame).image
    assert relative_error(image, least_squares) < 0.01


def test_a_huge_weight_leaves_total_variation_a_constant() -> None:
    frame, _ = simulated_frame()
    image = without_noise_term(TotalVariation, regularisation=30.0).fit(frame).image
    assert image.mean().abs() > 0.01 * frame.operator.adjoint(frame.kspace).abs().max()
    assert (image - image.mean()).abs().max() < 0.01 * image.mean().abs()


@BOTH
def test_with_noise_it_is_nearer_to_the_object_than_cg_sense_at_every_noise_level(cls: type[SparseMethod]) -> None:
    for noise in (1e-4, 1e-3, 1e-2):
        frame, truth = simulated_frame(48, 40, noise=noise)
        assert relative_error(cls().fit(frame).image, truth) < relative_error(CGSense().fit(frame).image, truth)


@BOTH
def test_the_image_follows_the_scale_of_its_data(cls: type[SparseMethod]) -> None:
    frame, _ = simulated_frame()
    dim = dataclasses.replace(frame, kspace=frame.kspace / 1024, noise_level=(frame.noise_level or 0) / 1024)
    torch.testing.assert_close(cls().fit(dim).image * 1024, cls().fit(frame).image, rtol=1e-3, atol=1e-5)


@BOTH
def test_more_noise_is_more_weight_and_unknown_noise_is_none(cls: type[SparseMethod]) -> None:
    frame, _ = simulated_frame()
    back_projection = frame.operator.adjoint(frame.kspace)
    method = cls()
    weights = [
        method.weight(dataclasses.replace(frame, noise_level=level), back_projection=back_projection)
        for level in (None, 0.0, 1e-3, 1e-2)
    ]
    assert weights[0] == weights[1] == pytest.approx(method.regularisation * float(back_projection.abs().max()))
    assert weights[3] - weights[0] == pytest.approx(10 * (weights[2] - weights[0]))
    assert weights[2] > weights[1]


@BOTH
def test_it_stops_when_converged_or_at_the_end_of_its_iterations(cls: type[SparseMethod]) -> None:
    frame, _ = simulated_frame(noise=1e-3)
    events: list[Event] = []
    with listening(events.append):
        converged = cls().fit(frame)
    assert converged.stopped_by == "converged"
    assert converged.iterations < cls().iterations
    finished = events.pop()
    assert isinstance(finished, FitFinished)
    assert (finished.method, finished.iterations) == (cls.name, converged.iterations)
    assert all(isinstance(event, FitProgressed) for event in events)
    short = dataclasses.replace(cls(), iterations=3, tolerance=0.0).fit(frame)
    assert (short.stopped_by, short.iterations) == ("iterations", 3)
    long = without_noise_term(cls, noise_factor=cls().noise_factor)
    assert relative_error(converged.image, long.fit(frame).image) < 0.02


@BOTH
def test_zero_data_give_a_zero_image(cls: type[SparseMethod]) -> None:
    frame, _ = simulated_frame()
    result = cls().fit(dataclasses.replace(frame, kspace=torch.zeros_like(frame.kspace)))
    assert not result.image.any()
    assert result.stopped_by == "converged"


@BOTH
def test_data_that_are_not_finite_are_an_error(cls: type[SparseMethod]) -> None:
    frame, _ = simulated_frame()
    with pytest.raises(FitDiverged, match=cls.name):
        cls().fit(dataclasses.replace(frame, kspace=frame.kspace * float("nan")))


@BOTH
def test_it_is_stable_with_maps_above_one(cls: type[SparseMethod]) -> None:
    """Maps three times as large, data alike: the same image, a third as bright."""
    frame, _ = simulated_frame()
    csm = 3 * frame.maps.csm
    mask = torch.zeros(frame.operator.domain_shape, dtype=torch.bool)
    mask[::3] = True
    mask[12:20] = True
    operator = CartesianSense(csm, mask)
    bright = dataclasses.replace(frame, operator=operator, maps=dataclasses.replace(frame.maps, csm=csm))
    expected = without_noise_term(cls, regularisation=1e-3).fit(frame).image
    assert relative_error(3 * without_noise_term(cls, regularisation=1e-3).fit(bright).image, expected) < 0.02


@BOTH
def test_a_weight_of_zero_cannot_be_asked_for_by_name(cls: type[SparseMethod]) -> None:
    with pytest.raises(InvalidHyperparameter, match=r"regularisation must lie in"):
        build(cls.name, {"regularisation": 0})


def centred_scan(*, noise: float) -> tuple[torch.Tensor, CoilMaps, torch.Tensor]:
    """k-space ``(coils, rows, columns)`` of a random third of the lines, largest magnitude 1, its maps and mask."""
    rows, columns = 64, 56  # BART's transform changes the sign at sizes that four does not divide
    maps = smooth_maps(6, rows, columns)
    mask = torch.rand(rows, 1, generator=torch.Generator().manual_seed(0)).expand(rows, columns) < 0.25
    mask[rows // 2 - 6 : rows // 2 + 6] = True
    shifted = torch.fft.ifftshift(maps.csm * smooth_object(rows, columns), dim=(1, 2))
    kspace = torch.fft.fftshift(torch.fft.fft2(shifted, norm="ortho"), dim=(1, 2)) * mask
    kspace = kspace / kspace.abs().max() + noise * random_complex(*kspace.shape, seed=3) * mask
    return kspace, maps, mask


def by_bart(kspace: torch.Tensor, csm: torch.Tensor, options: list[str], folder: Path) -> torch.Tensor:
    """`bart pics` in the units of `kspace`, whose axes are rows, columns and coils of a 2-D image to it."""
    if shutil.which("bart") is None:
        pytest.skip("bart is not on PATH")
    for name, array in (("kspace", kspace), ("maps", csm)):
        coils, rows, columns = array.shape
        (folder / f"{name}.hdr").write_text(f"# Dimensions\n{rows} {columns} 1 {coils}\n")
        array.numpy().transpose(1, 2, 0).ravel(order="F").tofile(folder / f"{name}.cfl")
    paths = [str(folder / name) for name in ("kspace", "maps", "image")]
    subprocess.run(
        ["bart", "pics", "-w", "1", *options, *paths],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    image = np.fromfile(folder / "image.cfl", np.complex64).reshape(kspace.shape[1:], order="F")
    return torch.from_numpy(np.ascontiguousarray(image))


@BOTH
def test_it_agrees_with_bart(cls: type[SparseMethod], tmp_path: Path) -> None:
    kspace, maps, mask = centred_scan(noise=1e-3)
    operator = CartesianSense(maps.csm, mask)
    frame = Frame(kspace=operator.arrange(kspace), operator=operator, maps=maps, noise_level=None)
    method = without_noise_term(cls, regularisation=3e-3)
    weight = method.weight(frame, back_projection=operator.adjoint(frame.kspace))
    wavelet = ["-l1", "-e", "-i", "200", "-r", f"{weight:.8f}"]
    variation = ["-R", f"T:3:0:{weight:.8f}", "-u", "0.01", "-C", "10", "-i", "100"]
    theirs = by_bart(kspace, maps.csm, wavelet if cls is L1Wavelet else variation, tmp_path)
    ours = method.fit(frame).image
    assert relative_error(ours, theirs) < 0.03
    assert objective(method, frame, ours) < 1.001 * objective(method, frame, theirs)
