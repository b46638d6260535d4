"""Coil maps: laws on a synthetic object, agreement with sigpy and BART on scanner data."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from inrecon.calibrate import espirit, smooth_sum_of_squares
from inrecon.errors import CalibrationFailed
from inrecon.frame import CoilMaps
from inrecon.simulate import simulate_scan

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
SCANS = ("brain_8ch_230x180", "brain_16ch_96")
Array = NDArray[np.complex64]


def fft2(image: Array) -> Array:
    shifted = np.fft.fft2(np.fft.ifftshift(image, (-2, -1)), norm="ortho")
    return np.fft.fftshift(shifted, (-2, -1)).astype(np.complex64)


def ifft2(kspace: Array) -> Array:
    shifted = np.fft.ifft2(np.fft.ifftshift(kspace, (-2, -1)), norm="ortho")
    return np.fft.fftshift(shifted, (-2, -1)).astype(np.complex64)


def centre(kspace: Array, rows: int, columns: int) -> torch.Tensor:
    top, left = kspace.shape[1] // 2 - rows // 2, kspace.shape[2] // 2 - columns // 2
    return torch.from_numpy(kspace[:, top : top + rows, left : left + columns].copy())


def synthetic(shape: tuple[int, int] = (72, 61), coils: int = 6) -> tuple[Array, Array, NDArray[np.bool_]]:
    """k-space of a textured ellipse seen by smooth complex coils, the unit-norm maps, and where the object is."""
    generator = np.random.default_rng(1)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = (y / 0.8) ** 2 + (x / 0.65) ** 2 < 1
    low = fft2(generator.standard_normal(shape).astype(np.complex64)) * (np.hypot(y, x) < 0.5)
    image = inside * (1 + 0.3 * ifft2(low).real / ifft2(low).real.std()) * np.exp(0.8j * y)
    angles = 2 * np.pi * np.arange(coils)[:, None, None] / coils
    distance = (y - 1.2 * np.sin(angles)) ** 2 + (x - 1.2 * np.cos(angles)) ** 2
    csm = np.exp(-distance / 1.5 + 1j * (angles + 0.7 * x * np.cos(angles)))
    csm /= np.linalg.norm(csm, axis=0)
    return fft2(csm * image), csm.astype(np.complex64), inside


def alignment(a: Array, b: Array, region: NDArray[np.bool_]) -> NDArray[np.float64]:
    """|<a, b>| / |a| |b| of the maps at each pixel of `region`: 1 where they span the same line."""
    inner = np.abs((a.conj() * b).sum(0))[region]
    return inner / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0))[region]


def residual(images: Array, csm: Array, region: NDArray[np.bool_]) -> float:
    """Part of the coil images in `region`, relative, that is no multiple of the maps."""
    unit = csm / np.maximum(np.linalg.norm(csm, axis=0), 1e-20)
    left = images - unit * (unit.conj() * images).sum(0)
    return float(np.linalg.norm(left[:, region]) / np.linalg.norm(images[:, region]))


def bright(images: Array, threshold: float) -> NDArray[np.bool_]:
    """Where the root sum of squares, averaged over 5 x 5 pixels, exceeds `threshold` of its maximum: the object."""
    magnitude = torch.from_numpy(np.linalg.norm(images, axis=0))[None]
    smooth = torch.nn.functional.avg_pool2d(magnitude, 5, 1, 2)[0].numpy()
    region: NDArray[np.bool_] = smooth > threshold * smooth.max()
    return region


def scan(name: str) -> Array:
    path = DATA / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"real data {path.name} is not beside this repository")
    kspace: Array = np.load(path)["kspace"]
    return kspace


def by_sigpy(kspace: Array) -> Array:
    with warnings.catch_warnings():
        # sigpy imports what numpy and numba have deprecated; none of it bears on the maps.
        warnings.simplefilter("ignore")
        from sigpy.mri.app import EspiritCalib

        csm: Array = EspiritCalib(kspace, calib_width=24, device=-1, show_pbar=False).run()
    return csm


def by_bart(kspace: Array, folder: Path) -> Array:
    if shutil.which("bart") is None:
        pytest.skip("bart is not on PATH")
    dims = (*kspace.shape[1:], 1, kspace.shape[0])
    (folder / "k.hdr").write_text("# Dimensions\n" + " ".join(map(str, dims)) + "\n")
    kspace.transpose(1, 2, 0).astype(np.complex64).ravel("F").tofile(folder / "k.cfl")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = ["bart", "ecalib", "-m1", "-r24", str(folder / "k"), str(folder / "maps")]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    maps = np.fromfile(folder / "maps.cfl", np.complex64).reshape(dims, order="F")
    return np.ascontiguousarray(maps[:, :, 0].transpose(2, 0, 1))


@pytest.fixture(params=["espirit", "smooth sum of squares"])
def maps(request: pytest.FixtureRequest) -> CoilMaps:
    kspace, _, _ = synthetic()
    if request.param == "espirit":
        return espirit(centre(kspace, 24, 24), (72, 61))
    return smooth_sum_of_squares(torch.from_numpy(kspace), torch.ones(72, 61, dtype=torch.bool))


def test_maps_have_unit_norm_inside_the_support_and_are_zero_outside(maps: CoilMaps) -> None:
    norm = torch.linalg.vector_norm(maps.csm, dim=0)
    torch.testing.assert_close(norm, maps.support.to(torch.float32), rtol=0, atol=1e-5)
    assert maps.csm.dtype == torch.complex64
    assert 0.3 < float(maps.support.float().mean()) < 1


@pytest.mark.parametrize("block", [(24, 24), (25, 31), (48, 48), (12, 48), (48, 8)])
def test_espirit_finds_the_sensitivities(block: tuple[int, int]) -> None:
    kspace, csm, inside = synthetic()
    found = espirit(centre(kspace, *block), (72, 61))
    assert found.support.numpy()[inside].mean() > 0.999
    assert alignment(found.csm.numpy(), csm, inside).min() > (0.999 if min(block) >= 24 else 0.98)


def test_the_smooth_maps_are_close_to_the_sensitivities() -> None:
    kspace, csm, inside = synthetic()
    found = smooth_sum_of_squares(torch.from_numpy(kspace), torch.ones(72, 61, dtype=torch.bool))
    assert found.support.numpy()[inside].mean() > 0.99
    assert alignment(found.csm.numpy(), csm, inside & found.support.numpy()).mean() > 0.995


def test_the_phase_of_the_maps_is_smooth() -> None:
    kspace, _, inside = synthetic()
    csm = espirit(centre(kspace, 24, 24), (72, 61)).csm.numpy()
    both = inside[1:] & inside[:-1]
    assert np.linalg.norm(csm[:, 1:] - csm[:, :-1], axis=0)[both].max() < 0.15


@pytest.mark.parametrize("scale", [1e-12, 1e12, -3j])
def test_the_scale_of_the_data_does_not_matter(scale: complex) -> None:
    block = centre(synthetic()[0], 24, 24)
    one, other = espirit(block, (72, 61)), espirit(block * scale, (72, 61))
    torch.testing.assert_close(other.csm, one.csm, rtol=0, atol=1e-3)


def test_maps_mix_as_the_coils_do() -> None:
    kspace, _, inside = synthetic()
    generator = np.random.default_rng(2)
    mixing = np.linalg.qr(generator.standard_normal((6, 6)) + 1j * generator.standard_normal((6, 6)))[0]
    mixed = np.einsum("vc,cyx->vyx", mixing, kspace).astype(np.complex64)
    plain, other = (espirit(centre(k, 24, 24), (72, 61)) for k in (kspace, mixed))
    assert (plain.support == other.support).float().mean() > 0.999
    expected = np.einsum("vc,cyx->vyx", mixing, plain.csm.numpy())
    assert alignment(other.csm.numpy(), expected, inside).min() > 0.9999


def test_one_coil_has_maps_too() -> None:
    kspace, _, inside = synthetic()
    found = espirit(centre(kspace[:1], 24, 24), (72, 61))
    assert found.support.numpy()[inside].mean() > 0.95


def folded_coil_images(share: float, *, seed: int = 1) -> tuple[Array, NDArray[np.bool_]]:
    """Coil images of a head in a field of view that spans `share` of it, and where two parts lie on one another."""
    settings = {"coils": 6, "pattern": "full", "snr": np.inf, "oversampling": False, "seed": seed}
    found = simulate_scan(shape=(64, 72), field_of_view=share, **settings)
    return ifft2(np.stack([a.data for a in found.acquisitions], 1)), found.folded[0]


@pytest.mark.parametrize("side", [8, 12, 16, 24])
def test_where_the_field_of_view_folds_there_are_two_orthonormal_maps(side: int) -> None:
    images, overlap = folded_coil_images(0.65)
    maps = espirit(centre(fft2(images), side, 24), (64, 72))
    assert maps.sets == 2
    products = torch.einsum("sckx,tckx->kxst", maps.csm.conj(), maps.csm)
    second = maps.csm[1].abs().sum(0) > 0
    assert not second[~maps.support].any()
    assert second.numpy()[overlap].mean() > (0.95 if side >= 12 else 0.7)
    expected = torch.diag_embed(torch.stack([maps.support, second], -1).to(products))
    torch.testing.assert_close(products, expected, rtol=0, atol=1e-4)
    csm = maps.csm.numpy()
    explained = (csm * (csm.conj() * images).sum(1, keepdims=True)).sum(0)
    missing = np.linalg.norm((images - explained)[:, overlap]) / np.linalg.norm(images[:, overlap])
    assert missing < 0.5 * residual(images, csm[0], overlap)
    assert missing < (0.1 if side >= 12 else 0.3)


@pytest.mark.parametrize("side", [8, 12, 16, 24])
@pytest.mark.parametrize("seed", [1, 5])
def test_where_it_does_not_fold_there_is_one(seed: int, side: int) -> None:
    images, overlap = folded_coil_images(1.0, seed=seed)
    assert not overlap.any()
    assert espirit(centre(fft2(images), side, 24), (64, 72)).csm.shape == (6, 64, 72)


@pytest.mark.parametrize("coils", [2, 3])
def test_few_coils_cannot_tell_whether_it_folds(coils: int) -> None:
    """Their second eigenvalue is high wherever there is noise."""
    scan = simulate_scan(shape=(64, 72), coils=coils, pattern="full", snr=4.0, oversampling=False)
    kspace = np.stack([a.data for a in scan.acquisitions[-64:]], 1)  # noise readouts come before
    assert espirit(centre(kspace, 24, 24), (64, 72)).sets == 1


def test_the_second_set_leaves_the_first_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    block = centre(fft2(folded_coil_images(0.65)[0]), 16, 24)
    both = espirit(block, (64, 72))
    monkeypatch.setattr(importlib.import_module("inrecon.calibrate.espirit"), "_FOLDED_SHARE", 1.0)
    one = espirit(block, (64, 72))
    assert (both.sets, one.sets) == (2, 1)
    assert torch.equal(both.csm[0], one.csm)
    assert torch.equal(both.support, one.support)


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (torch.ones(4, 5, 24, dtype=torch.complex64), r"5 x 24 samples is too small: at least 6 x 6"),
        (torch.zeros(4, 24, 24, dtype=torch.complex64), "zero or not finite"),
        (torch.full((4, 24, 24), torch.nan, dtype=torch.complex64), "zero or not finite"),
        (torch.ones(24, 24, dtype=torch.complex64), r"\(coils, rows, columns\)"),
    ],
)
def test_a_useless_block_is_refused_with_the_reason(block: torch.Tensor, text: str) -> None:
    with pytest.raises(CalibrationFailed, match=text):
        espirit(block, (32, 32))


def test_the_smooth_maps_need_no_centre_but_something() -> None:
    mask = torch.zeros(32, 24, dtype=torch.bool)
    with pytest.raises(CalibrationFailed, match="zero or not finite"):
        smooth_sum_of_squares(torch.zeros(3, 32, 24, dtype=torch.complex64), mask)
    kspace = torch.zeros(3, 32, 24, dtype=torch.complex64)
    kspace[:, 1, 2] = 1
    mask[1, 2] = True
    assert smooth_sum_of_squares(kspace, mask).support.any()


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("peer", ["sigpy", "bart"])
def test_espirit_agrees_with_its_peers_on_scanner_data(name: str, peer: str, tmp_path: Path) -> None:
    """Measured: mean alignment 0.9999 or better, 1 % quantile 0.998; residual 0.1 to 9 % below the peer's."""
    kspace = scan(name)
    theirs = by_sigpy(kspace) if peer == "sigpy" else by_bart(kspace, tmp_path)
    ours = espirit(centre(kspace, 24, 24), (kspace.shape[1], kspace.shape[2]))
    images = ifft2(kspace)
    common = bright(images, 0.08) & ours.support.numpy() & (np.linalg.norm(theirs, axis=0) > 0)
    assert common.mean() > 0.55
    agreement = alignment(ours.csm.numpy(), theirs, common)
    assert agreement.mean() > 0.9995
    assert np.quantile(agreement, 0.01) > 0.995
    assert residual(images, ours.csm.numpy(), common) < 1.001 * residual(images, theirs, common)


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("lines", [6, 8, 12])
def test_few_calibration_lines_leave_no_holes_in_the_object(name: str, lines: int) -> None:
    kspace = scan(name)
    ours = espirit(centre(kspace, lines, 48), (kspace.shape[1], kspace.shape[2]))
    images = ifft2(kspace)
    signal = bright(images, 0.1)
    assert ours.support.numpy()[signal].mean() > 0.999
    # A kernel six wide on so few lines leaves residuals of 0.15 (8 coils) and 0.22 (16 coils) for six lines.
    assert residual(images, ours.csm.numpy(), signal) < 0.11


@pytest.mark.cuda
def test_espirit_is_the_same_function_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA GPU")
    kspace, _, inside = synthetic()
    block = centre(kspace, 24, 24)
    here, there = espirit(block, (72, 61)), espirit(block.cuda(), (72, 61))
    assert alignment(there.csm.cpu().numpy(), here.csm.numpy(), inside).min() > 0.9999
    assert (there.support.cpu() == here.support).float().mean() > 0.999
