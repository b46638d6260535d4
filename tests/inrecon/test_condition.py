"""Conditioning, by laws: white noise, the same object with and without oversampling, unitary compression."""

import dataclasses

import ismrmrd
import numpy as np
import pytest
import torch

from inrecon.condition import condition, conditioned
from inrecon.condition.compress import compression_matrix
from inrecon.condition.grid import Grid, centre_block
from inrecon.condition.noise import NoiseOfFrame
from inrecon.condition.noise import noise_of as estimated
from inrecon.errors import InvalidFrame
from inrecon.events import Event, Warned, listening
from inrecon.frame import Geometry, Key, Noise, RawFrame, Readouts
from inrecon.testing import silent_protocol

RNG = np.random.default_rng(0)


def complex_normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape) + 1j * RNG.standard_normal(shape)


def random_covariance(coils: int) -> np.ndarray:
    root = complex_normal(coils, coils)
    return root @ root.conj().T / coils + 0.1 * np.eye(coils)


def raw_frame(kspace: np.ndarray, lines: np.ndarray, *, y: int, z: int = 1, recon_x: int | None = None) -> RawFrame:
    coils, _, x = kspace.shape
    recon_x = recon_x or x
    return RawFrame(
        imaging=Readouts(
            kspace=kspace.astype(np.complex64), lines=lines, acquired=np.ones((len(lines), x), dtype=bool)
        ),
        calibration=None,
        noise=None,
        sample_time_us=5.0,
        key=Key(),
        geometry=Geometry(
            encoded_matrix=(x, y, z),
            encoded_fov_mm=(x, y, z),
            recon_matrix=(recon_x, y, z),
            recon_fov_mm=(recon_x, y, z),
        ),
        protocol=silent_protocol(matrix=(y, recon_x), coils=coils),
        reference=bytes(ismrmrd.AcquisitionHeader()),
    )


def all_lines(y: int, z: int = 1) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(z), np.arange(y), indexing="ij"), -1).reshape(-1, 2)


def covariance_of(samples: torch.Tensor) -> torch.Tensor:
    flat = samples.transpose(0, 1).flatten(1)
    return flat @ flat.mH / flat.shape[1]


def noisy_frame(coils: int = 4) -> tuple[RawFrame, np.ndarray]:
    """Nothing but noise, readouts and noise readouts alike, and its root covariance."""
    root = np.linalg.cholesky(random_covariance(coils))
    kspace = np.einsum("cd,dls->cls", root, complex_normal(coils, 60, 80) / np.sqrt(2))
    return raw_frame(kspace, all_lines(60), y=60), root


def test_noise_readouts_make_noise_white_whatever_the_sample_times() -> None:
    raw, root = noisy_frame()
    # The same noise process, seen through a receiver twice as slow and 0.8 as wide as it says.
    samples = np.einsum("cd,ds->cs", root, complex_normal(4, 5000) / np.sqrt(2)) * np.sqrt(0.8 * 5.0 / 10.0)
    noise = Noise(
        covariance=samples @ samples.conj().T / 5000, samples=5000, sample_time_us=10.0, relative_bandwidth=0.8
    )
    measurement = condition(dataclasses.replace(raw, noise=noise), device="cpu", energy=1.0)
    assert measurement.prewhitened_by == "noise readouts"
    assert measurement.noise_level is not None
    covariance = covariance_of(measurement.kspace) / measurement.noise_level**2
    torch.testing.assert_close(covariance, torch.eye(4, dtype=torch.complex64), rtol=0, atol=0.1)
    assert float(measurement.kspace.abs().max()) == pytest.approx(1)


def test_without_noise_readouts_the_corners_make_noise_white() -> None:
    raw, _ = noisy_frame()
    measurement = condition(raw, device="cpu", energy=1.0)
    assert measurement.prewhitened_by == "corners"
    assert measurement.noise_level is not None
    covariance = covariance_of(measurement.kspace) / measurement.noise_level**2
    assert float((covariance - torch.eye(4)).abs().max()) < 0.5


def noise_of(covariance: np.ndarray, *, samples: int = 5000) -> Noise:
    return Noise(covariance=covariance, samples=samples, sample_time_us=0.0, relative_bandwidth=0.8)


def warnings_and_estimate(raw: RawFrame) -> tuple[list[str], NoiseOfFrame]:
    heard: list[Event] = []
    with listening(heard.append):
        noise = estimated(raw)
    return [event.text for event in heard if isinstance(event, Warned)], noise


def matrix_of(noise: NoiseOfFrame) -> np.ndarray:
    """The prewhitening of all coils, without compression between its two steps."""
    return noise.whitening(noise.gains.astype(complex)) @ noise.gains


def test_averages_lower_the_noise_that_noise_readouts_tell() -> None:
    raw, root = noisy_frame()
    raw = dataclasses.replace(raw, noise=noise_of(root @ root.conj().T))
    once = condition(raw, device="cpu")
    four_times = condition(dataclasses.replace(raw, average_count=4.0), device="cpu")
    assert once.noise_level is not None
    assert four_times.noise_level == pytest.approx(once.noise_level / 2)
    assert four_times.scale == once.scale


def test_the_corners_are_averaged_already() -> None:
    raw, _ = noisy_frame()
    once = condition(raw, device="cpu").noise_level
    assert condition(dataclasses.replace(raw, average_count=4.0), device="cpu").noise_level == once


def test_unknown_sample_times_leave_the_noise_unscaled() -> None:
    raw, root = noisy_frame()
    covariance = root @ root.conj().T
    texts, noise = warnings_and_estimate(dataclasses.replace(raw, noise=noise_of(covariance)))
    assert not texts
    assert noise.level is not None
    whitened = matrix_of(noise) @ covariance @ matrix_of(noise).conj().T
    np.testing.assert_allclose(whitened, noise.level**2 * np.eye(4), atol=1e-9)


def test_a_silent_coil_is_left_out_and_told() -> None:
    raw, root = noisy_frame()
    covariance = root @ root.conj().T
    covariance[2] = covariance[:, 2] = 0
    raw = dataclasses.replace(raw, noise=noise_of(covariance))
    texts, noise = warnings_and_estimate(raw)
    assert matrix_of(noise).shape == (3, 4)
    assert not matrix_of(noise)[:, 2].any()
    assert ["1 of 4 coils have no noise" in text for text in texts] == [True]
    measurement = condition(raw, device="cpu", energy=1.0)
    assert measurement.kspace.shape[1] == 3
    assert torch.isfinite(torch.view_as_real(measurement.kspace)).all()
    assert not measurement.unmix[2].abs().max() > 1e-6


@pytest.mark.parametrize("samples", [5, 5000])
def test_a_singular_covariance_is_regularised_and_told(samples: int) -> None:
    raw, root = noisy_frame()
    seen = root @ complex_normal(4, 2)
    texts, noise = warnings_and_estimate(
        dataclasses.replace(raw, noise=noise_of(seen @ seen.conj().T, samples=samples))
    )
    assert ["close to singular" in text for text in texts] == [True]
    deviation = np.linalg.norm(seen, axis=1)
    assert np.linalg.cond(matrix_of(noise) * deviation) < np.sqrt(10 * 4)


def test_silent_noise_readouts_give_way_to_the_corners() -> None:
    raw, _ = noisy_frame()
    texts, noise = warnings_and_estimate(dataclasses.replace(raw, noise=noise_of(np.zeros((4, 4), complex))))
    assert noise.known_by == "corners"
    assert ["noise readouts are all zero" in text for text in texts] == [True]


def test_without_any_noise_the_coils_stay_as_they_are() -> None:
    kspace = np.zeros((3, 60, 80), complex)
    kspace[:, 25:35, 30:50] = complex_normal(3, 10, 20)
    texts, noise = warnings_and_estimate(raw_frame(kspace, all_lines(60), y=60))
    assert noise.known_by == "none"
    assert noise.level is None
    np.testing.assert_allclose(matrix_of(noise), matrix_of(noise)[0, 0] * np.eye(3))
    assert ["not prewhitened" in text for text in texts] == [True]


def centred_fft(array: np.ndarray, axis: int) -> np.ndarray:
    return np.fft.fftshift(np.fft.fft(np.fft.ifftshift(array, axis), axis=axis, norm="ortho"), axis)


@pytest.mark.parametrize(("x", "wide"), [(24, 48), (25, 50), (24, 47), (25, 48)])
def test_readout_oversampling_is_removed(x: int, wide: int) -> None:
    image = complex_normal(3, 20, x)
    start = wide // 2 - x // 2
    padded = np.pad(image, ((0, 0), (0, 0), (start, wide - x - start)))
    plain = condition(raw_frame(centred_fft(image, 2), all_lines(20), y=20), device="cpu", energy=1.0)
    over = condition(raw_frame(centred_fft(padded, 2), all_lines(20), y=20, recon_x=x), device="cpu", energy=1.0)
    assert over.kspace.shape == plain.kspace.shape

    def coils_as_acquired(measurement: object) -> torch.Tensor:
        return torch.einsum("av,bvyx->bayx", measurement.unmix, measurement.kspace) * measurement.scale  # type: ignore[attr-defined]

    torch.testing.assert_close(coils_as_acquired(over), coils_as_acquired(plain), rtol=1e-3, atol=1e-3)


def test_partial_echoes_keep_their_oversampling_so_that_no_acquired_sample_changes() -> None:
    raw = raw_frame(complex_normal(2, 20, 48), all_lines(20), y=20, recon_x=24)
    acquired = raw.imaging.acquired.copy()
    acquired[:, :12] = False
    partial = dataclasses.replace(raw, imaging=dataclasses.replace(raw.imaging, acquired=acquired))
    measurement = condition(partial, device="cpu", energy=1.0)
    assert torch.equal(measurement.mask, torch.from_numpy(acquired))
    kept = torch.einsum("av,bvyx->bayx", measurement.unmix, measurement.kspace)[0] * measurement.scale
    torch.testing.assert_close(kept, torch.from_numpy(raw.imaging.kspace * acquired), rtol=1e-3, atol=1e-3)


def test_the_noise_covariance_does_not_change_what_is_kept_as_acquired() -> None:
    mixing = complex_normal(6, 3)
    kspace = np.einsum("cd,drk->crk", mixing, complex_normal(3, 24, 24)) + 1e-3 * complex_normal(6, 24, 24)
    raw = raw_frame(kspace, all_lines(24), y=24)
    for noise in (None, noise_of(random_covariance(6)), noise_of(np.diag([1, 4, 9, 1, 2, 3]).astype(complex))):
        measurement = condition(dataclasses.replace(raw, noise=noise), device="cpu")
        assert measurement.kspace.shape[1] == 3
        acquired = torch.einsum("av,bvyx->bayx", measurement.unmix, measurement.kspace)[0] * measurement.scale
        assert np.linalg.norm(acquired.numpy() - kspace) < 0.05 * np.linalg.norm(kspace)


def test_a_volume_is_a_batch_over_x_of_problems_in_z_and_y() -> None:
    kspace = complex_normal(2, 6 * 8, 10)
    measurement = condition(raw_frame(kspace, all_lines(8, z=6), y=8, z=6), device="cpu", energy=1.0)
    assert measurement.axes == "zy"
    assert measurement.kspace.shape == (10, 2, 6, 8)
    acquired = torch.einsum("av,bvzy->bazy", measurement.unmix, measurement.kspace) * measurement.scale
    back = centred_fft(acquired.numpy().transpose(1, 2, 3, 0), 3)
    np.testing.assert_allclose(back.reshape(2, 48, 10), kspace, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (range(10, 22), 12),  # even, around 16
        (range(10, 23), 13),  # odd
        (range(8, 22), 12),  # one side longer: the symmetric part
        ([*range(10, 22), 2, 30], 12),
        (range(14, 18), None),  # too narrow
        (range(18, 32), None),  # not around the centre
    ],
)
def test_the_centre_block_is_the_largest_around_the_centre(lines: range, expected: int | None) -> None:
    mask = torch.zeros(32, 64, dtype=torch.bool)
    mask[list(lines)] = True
    kspace = torch.zeros(1, 1, 32, 64, dtype=torch.complex64)
    kspace[0, 0, 16, 32] = 1
    block = centre_block(Grid(kspace=kspace, mask=mask, axes="yx"))
    if expected is None:
        assert block is None
        return
    assert block is not None
    assert block.kspace.shape == (1, 1, expected, 48)
    assert block.kspace[0, 0, expected // 2, 24] == 1


def test_a_separate_calibration_is_used_and_whitened_alike() -> None:
    root = np.linalg.cholesky(random_covariance(3))
    imaging = np.einsum("cd,dls->cls", root, complex_normal(3, 10, 32))
    calibration = np.einsum("cd,dls->cls", root, complex_normal(3, 12, 32))
    raw = raw_frame(imaging, np.stack([np.zeros(10, int), np.arange(0, 30, 3)], 1), y=30)
    raw = dataclasses.replace(
        raw,
        calibration=Readouts(
            kspace=calibration.astype(np.complex64),
            lines=np.stack([np.zeros(12, int), np.arange(9, 21)], 1),
            acquired=np.ones((12, 32), dtype=bool),
        ),
    )
    measurement = condition(raw, device="cpu", energy=1.0)
    assert measurement.calibration is not None
    assert measurement.calibration.shape == (1, 3, 12, 32)
    acquired = torch.einsum("av,bvyx->bayx", measurement.unmix, measurement.calibration) * measurement.scale
    np.testing.assert_allclose(acquired[0].numpy(), calibration, rtol=1e-3, atol=1e-3)
    assert measurement.mask.sum() == 10 * 32


def test_compression_keeps_the_asked_for_energy_and_noise_white() -> None:
    mixing = complex_normal(10, 3)
    samples = np.einsum("cd,drk->crk", mixing, complex_normal(3, 20, 20)) + 1e-3 * complex_normal(10, 20, 20)
    kspace = torch.from_numpy(samples.astype(np.complex64))[None]
    matrix = compression_matrix(kspace, energy=0.999, most=12)
    assert len(matrix) == 3
    torch.testing.assert_close(matrix @ matrix.mH, torch.eye(3, dtype=torch.complex64), rtol=0, atol=1e-5)
    kept = torch.einsum("vc,bcrk->bvrk", matrix, kspace)
    assert kept.norm() ** 2 >= 0.999 * kspace.norm() ** 2
    assert len(compression_matrix(kspace, energy=1.0, most=5)) == 5


def test_a_frame_of_zeros_is_refused() -> None:
    with pytest.raises(InvalidFrame, match="samples are all zero"):
        condition(raw_frame(np.zeros((2, 8, 8)), all_lines(8), y=8), device="cpu")


def lines_of(y: int, *, every: int, offset: int = 0) -> np.ndarray:
    ky = np.arange(offset, y, every)
    return np.stack([np.zeros_like(ky), ky], 1)


def scan_frames() -> tuple[RawFrame, RawFrame]:
    """A full frame of 6 coils of which 3 are independent, and one of every third line, with other data."""
    mixing, noise = complex_normal(6, 3), noise_of(random_covariance(6))
    full, fewer = (
        raw_frame(np.einsum("cd,drk->crk", mixing, complex_normal(3, len(lines), 24)), lines, y=24, recon_x=16)
        for lines in (all_lines(24), lines_of(24, every=3))
    )
    return dataclasses.replace(full, noise=noise), dataclasses.replace(fewer, noise=noise)


@pytest.mark.parametrize("known", [True, False])
def test_what_was_found_for_a_frame_makes_of_it_what_conditioning_did(known: bool) -> None:
    raw, _ = scan_frames()
    raw = raw if known else dataclasses.replace(raw, noise=None)
    measurement, found = conditioned(raw, device="cpu")
    again = found.apply(raw)
    torch.testing.assert_close(again.kspace, measurement.kspace)
    assert torch.equal(condition(raw, device="cpu").kspace, measurement.kspace)
    assert torch.equal(again.mask, measurement.mask)
    assert torch.equal(again.unmix, measurement.unmix)
    for name in ("scale", "noise_level", "prewhitened_by", "axes"):
        assert getattr(again, name) == getattr(measurement, name), name
    assert again.calibration is None


def test_another_frame_has_the_same_coils_and_the_same_scale() -> None:
    """Mixed by the same matrix, so that unmixing gives its samples as acquired; and three times as bright."""
    first, raw = scan_frames()
    _, found = conditioned(first, device="cpu", energy=1.0)
    measurement = found.apply(raw)
    assert measurement.mask.sum() == 8 * 16
    acquired = torch.einsum("av,bvyx->bayx", measurement.unmix, measurement.kspace)[0] * measurement.scale
    plain = condition(dataclasses.replace(raw, noise=None), device="cpu", energy=1.0)
    expected = torch.einsum("av,bvyx->bayx", plain.unmix, plain.kspace)[0] * plain.scale
    torch.testing.assert_close(acquired, expected, rtol=1e-3, atol=1e-3)
    brighter = dataclasses.replace(raw, imaging=dataclasses.replace(raw.imaging, kspace=3 * raw.imaging.kspace))
    torch.testing.assert_close(found.apply(brighter).kspace, 3 * measurement.kspace)
    assert found.apply(brighter).scale == measurement.scale


def test_another_frames_noise_goes_with_its_averages() -> None:
    first, raw = scan_frames()
    _, of_one = conditioned(first, device="cpu")
    _, of_four = conditioned(dataclasses.replace(first, average_count=4.0), device="cpu")
    once = of_one.apply(raw).noise_level
    assert once is not None
    assert of_one.apply(dataclasses.replace(raw, average_count=4.0)).noise_level == pytest.approx(once / 2)
    assert of_four.apply(raw).noise_level == pytest.approx(once)


def test_noise_that_is_not_known_stays_unknown() -> None:
    kspace = np.zeros((3, 60, 80), complex)
    kspace[:, 25:35, 30:50] = complex_normal(3, 10, 20)
    raw = raw_frame(kspace, all_lines(60), y=60)
    assert conditioned(raw, device="cpu")[1].apply(raw).noise_level is None


def test_frames_of_other_coils_or_too_large_are_refused() -> None:
    first, raw = scan_frames()
    _, found = conditioned(first, device="cpu")
    fewer = dataclasses.replace(raw.imaging, kspace=raw.imaging.kspace[:5])
    with pytest.raises(InvalidFrame, match="a frame of 5 coils after one of 6"):
        found.apply(dataclasses.replace(raw, imaging=fewer, noise=None))
    large = dataclasses.replace(raw.imaging, kspace=raw.imaging.kspace * np.float32(1e20))
    with pytest.raises(InvalidFrame, match="beyond"):
        found.apply(dataclasses.replace(raw, imaging=large))


def test_a_frame_without_signal_after_others_is_refused() -> None:
    first, raw = scan_frames()
    silent = dataclasses.replace(raw.imaging, kspace=0 * raw.imaging.kspace)
    with pytest.raises(InvalidFrame, match="samples are all zero"):
        conditioned(first, device="cpu")[1].apply(dataclasses.replace(raw, imaging=silent))
