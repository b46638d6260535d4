"""Simulated scans: what a file says is what the object was, with the noise that it claims."""

import subprocess
import sys
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ismrmrd.xsd import CreateFromDocument
from numpy.typing import NDArray

from inrecon.errors import InvalidFrame
from inrecon.simulate import (
    SimulatedScan,
    brain_phantom,
    coil_maps,
    folded,
    sampled_lines,
    simulate_scan,
    write_ismrmrd,
)
from inrecon.simulate.header import RELATIVE_NOISE_BANDWIDTH
from inrecon.simulate.readouts import NOISE_DWELL_US, noise_colour, noise_readouts, slice_readouts

SMALL = {"shape": (48, 40), "coils": 4, "acs": 12, "acceleration": 4}


def imaging(scan: SimulatedScan) -> list[ismrmrd.Acquisition]:
    return [a for a in scan.acquisitions if not a.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]


def placed(scan: SimulatedScan) -> NDArray[np.complex128]:
    """k-space (frames, coils, y, samples), every line where the header's limits put it."""
    encoding = CreateFromDocument(scan.header).encoding[0]
    matrix, limits = encoding.encodedSpace.matrixSize, encoding.encodingLimits
    slices = limits.slice.maximum + 1
    kspace = np.zeros((len(scan.reference), len(scan.csm), matrix.y, matrix.x), complex)
    for a in imaging(scan):
        line = a.idx.kspace_encode_step_1 + matrix.y // 2 - limits.kspace_encoding_step_1.center
        kspace[a.idx.repetition * slices + a.idx.slice, :, line] = a.data
    return kspace


def reconstructed(scan: SimulatedScan) -> NDArray[np.complex128]:
    """The images of fully sampled k-space by explicit discrete Fourier sums, at the pixels of the recon matrix."""
    kspace = placed(scan)
    _, _, lines, samples = kspace.shape
    _, rows, columns = scan.reference.shape

    def waves(pixels: int, orders: int) -> NDArray[np.complex128]:
        positions, k = np.arange(pixels) - pixels // 2, np.arange(orders) - orders // 2
        return np.exp(2j * np.pi * np.outer(positions, k) / orders) / np.sqrt(orders)

    images = np.einsum("yk,fckl,xl->fcyx", waves(rows, lines), kspace, waves(columns, samples), optimize=True)
    return np.einsum("cyx,fcyx->fyx", scan.csm.conj(), images)


def relative(found: NDArray[np.complex128], truth: NDArray[np.complex64]) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize("shape", [(48, 40), (41, 33), (32, 45)])
@pytest.mark.parametrize("oversampling", [True, False])
def test_full_scan_without_noise_gives_the_reference(shape: tuple[int, int], oversampling: bool) -> None:
    scan = simulate_scan(shape=shape, coils=3, pattern="full", snr=np.inf, oversampling=oversampling, slices=2)
    assert scan.acceleration == 1
    assert relative(reconstructed(scan), scan.reference) < 1e-5
    assert len(scan.acquisitions) == len(imaging(scan)) == 2 * shape[0]


def coil_images(scan: SimulatedScan) -> NDArray[np.complex128]:
    """(coils, y, x) of the first frame, readouts not oversampled."""
    shifted = np.fft.ifftshift(placed(scan)[0], (-2, -1))
    return np.fft.fftshift(np.fft.ifft2(shifted, norm="ortho"), (-2, -1))


def test_what_lies_outside_the_field_of_view_comes_in_on_the_other_side() -> None:
    settings = {"coils": 4, "pattern": "full", "snr": np.inf, "oversampling": False, "seed": 2}
    part = simulate_scan(shape=(56, 64), field_of_view=0.7, **settings)
    whole = simulate_scan(shape=(80, 64), **settings)
    images = coil_images(part)
    assert relative(folded(coil_images(whole), 56), images.astype(np.complex64)) < 0.05
    np.testing.assert_allclose(np.abs(part.reference[0]), np.linalg.norm(images, axis=0), atol=1e-5)
    assert np.array_equal(part.support[0], folded(whole.support[0].astype(int), 56) > 0)
    assert np.array_equal(part.folded[0], folded(whole.support[0].astype(int), 56) > 1)
    assert 0.05 < part.folded.mean() < 0.3
    assert not whole.folded.any()
    heights = [CreateFromDocument(one.header).encoding[0].reconSpace.fieldOfView_mm.y for one in (part, whole)]
    assert heights[0] / 56 == pytest.approx(heights[1] / 80)


def test_reference_is_the_object_cut_to_the_matrix_not_sampled_on_it() -> None:
    scan = simulate_scan(shape=(96, 96), coils=4, pattern="full", snr=np.inf, seed=3)
    pixels = brain_phantom((96, 96), seed=3)
    assert 0.02 < relative(scan.reference[0], pixels.astype(np.complex64)) < 0.3


@pytest.mark.parametrize("pattern", ["uniform", "random", "full"])
@pytest.mark.parametrize("oversampling", [True, False])
def test_header_is_ismrmrd_and_agrees_with_the_readouts(pattern: str, oversampling: bool) -> None:
    scan = simulate_scan(**SMALL, pattern=pattern, oversampling=oversampling, slices=2, repetitions=2, protocol="mine")
    header = CreateFromDocument(scan.header)
    encoding = header.encoding[0]
    encoded, recon, limits = encoding.encodedSpace, encoding.reconSpace, encoding.encodingLimits
    assert header.measurementInformation.protocolName == "mine"
    assert (
        header.acquisitionSystemInformation.receiverChannels == 4 == len(header.acquisitionSystemInformation.coilLabel)
    )
    assert (recon.matrixSize.x, recon.matrixSize.y, recon.matrixSize.z) == (40, 48, 1)
    assert encoded.matrixSize.x == (80 if oversampling else 40)
    assert encoded.fieldOfView_mm.x / encoded.matrixSize.x == pytest.approx(recon.fieldOfView_mm.x / recon.matrixSize.x)
    assert (encoding.parallelImaging is None) == (pattern == "full")
    for counter, a in enumerate(scan.acquisitions):
        assert a.data.shape == (4, encoded.matrixSize.x)
        assert a.center_sample == encoded.matrixSize.x // 2
        assert a.scan_counter == counter
    for name in ("kspace_encode_step_1", "slice", "repetition"):
        limit = getattr(limits, name.replace("encode", "encoding"))
        values = {getattr(a.idx, name) for a in imaging(scan)}
        assert limit.minimum <= min(values)
        assert max(values) <= limit.maximum
    assert {a.idx.slice for a in imaging(scan)} == {a.idx.repetition for a in imaging(scan)} == {0, 1}


def test_partial_fourier_leaves_out_the_first_lines_and_moves_the_centre() -> None:
    whole = simulate_scan(**SMALL, snr=np.inf)
    part = simulate_scan(**SMALL, snr=np.inf, partial_fourier=0.75)
    limits = CreateFromDocument(part.header).encoding[0].encodingLimits.kspace_encoding_step_1
    assert (limits.minimum, limits.maximum, limits.center) == (0, 35, 12)
    assert CreateFromDocument(part.header).encoding[0].encodedSpace.matrixSize.y == 48
    np.testing.assert_array_equal(placed(part)[:, :, 12:], placed(whole)[:, :, 12:])
    assert not placed(part)[:, :, :12].any()
    assert placed(whole)[:, :, :12].any()
    assert part.acceleration > whole.acceleration


def test_flags_mark_calibration_lines_and_ends() -> None:
    scan = simulate_scan(**SMALL, slices=2, repetitions=3)
    readouts = imaging(scan)
    calibration = [a for a in readouts if a.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)]
    assert {a.idx.kspace_encode_step_1 for a in calibration} == set(range(18, 30))
    assert len(calibration) == 12 * 6
    frames = [(a.idx.repetition, a.idx.slice) for a in readouts]
    ends = [i for i, a in enumerate(readouts) if a.is_flag_set(ismrmrd.ACQ_LAST_IN_SLICE)]
    assert ends == [i for i in range(len(frames)) if i + 1 == len(frames) or frames[i] != frames[i + 1]]
    last_slices = [i for i, a in enumerate(readouts) if a.is_flag_set(ismrmrd.ACQ_LAST_IN_REPETITION)]
    assert last_slices == ends[1::2]
    assert [a.is_flag_set(ismrmrd.ACQ_LAST_IN_MEASUREMENT) for a in readouts] == [False] * (len(readouts) - 1) + [True]
    assert frames == sorted(frames)
    assert scan.acceleration == pytest.approx(48 * 6 / len(readouts))
    first = [a.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT) for a in scan.acquisitions]
    assert first == sorted(first, reverse=True)


def test_random_lines_change_between_repetitions_and_noise_does_always() -> None:
    scan = simulate_scan(**{**SMALL, "acs": 4, "acceleration": 3}, pattern="random", repetitions=2)
    first, second = placed(scan)
    lines = [set(np.flatnonzero(k.any(axis=(0, 2)))) for k in (first, second)]
    assert lines[0] != lines[1]
    shared = sorted(lines[0] & lines[1])
    assert (first[:, shared] != second[:, shared]).all()
    np.testing.assert_array_equal(scan.reference[0], scan.reference[1])


@pytest.mark.parametrize("oversampling", [True, False])
def test_noise_readouts_whiten_the_imaging_readouts_as_gadgetron_scales_them(oversampling: bool) -> None:
    kind = {"shape": (96, 64), "coils": 4, "pattern": "full", "oversampling": oversampling}
    noisy, clean = simulate_scan(**kind), simulate_scan(**kind, snr=np.inf)
    noise = np.concatenate([a.data - b.data for a, b in zip(imaging(noisy), imaging(clean), strict=True)], axis=1)
    readouts = [a for a in noisy.acquisitions if a.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]
    alone = np.concatenate([a.data for a in readouts], axis=1).astype(complex)
    covariance = alone @ alone.conj().T / (alone.shape[1] - 1)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() > 0.05 * np.abs(covariance).max()

    bandwidth = CreateFromDocument(noisy.header).acquisitionSystemInformation.relativeReceiverNoiseBandwidth
    dwell, noise_dwell = imaging(noisy)[0].sample_time_us, readouts[0].sample_time_us
    assert dwell != noise_dwell
    white = np.linalg.solve(np.linalg.cholesky(covariance), noise) * np.sqrt(2 * dwell / noise_dwell * bandwidth)
    found = white @ white.conj().T / white.shape[1]
    np.testing.assert_allclose(found, 2 * np.eye(4), atol=0.15)  # unit variance of real and imaginary part


@pytest.mark.parametrize("coils", [1, 2, 8, 48, 64, 128])
def test_noise_of_any_number_of_coils_can_be_whitened(coils: int) -> None:
    for seed in range(5):
        colour = noise_colour(coils, np.random.default_rng(seed))
        covariance = colour @ colour.conj().T
        assert np.trace(covariance).real == pytest.approx(coils)
        assert np.linalg.cond(covariance) < 100
        assert (np.diag(covariance).real > 0.4).all()


@pytest.mark.parametrize("coils", [4, 64])
def test_noise_has_the_covariance_of_its_colour(coils: int) -> None:
    rng = np.random.default_rng(0)
    colour = noise_colour(coils, rng)
    alone = [a.data for a in noise_readouts(40, samples=1000, colour=colour, dwell_us=NOISE_DWELL_US, rng=rng)]
    mask = np.ones(40, bool)
    lines = slice_readouts(
        np.zeros((coils, 40, 1000), complex), mask, calibration=~mask, colour=colour, dwell_us=1.0, rng=rng
    )
    for samples, power in ((alone, RELATIVE_NOISE_BANDWIDTH), ([a.data for a in lines], 1.0)):
        noise = np.concatenate(samples, axis=1).astype(complex)
        found = noise @ noise.conj().T / noise.shape[1] / power
        np.testing.assert_allclose(found, colour @ colour.conj().T, atol=0.05)


def test_scans_of_64_coils_can_be_simulated() -> None:
    scan = simulate_scan(shape=(16, 16), coils=64, acs=8, acceleration=2)
    assert {a.data.shape[0] for a in scan.acquisitions} == {64}


@pytest.mark.parametrize("snr", [5.0, 50.0])
def test_snr_is_signal_in_the_head_over_noise_of_a_sample(snr: float) -> None:
    kind = {"shape": (64, 64), "coils": 4, "pattern": "full"}
    noisy, clean = simulate_scan(**kind, snr=snr), simulate_scan(**kind, snr=np.inf)
    noise = placed(noisy) - placed(clean)
    signal = np.abs(clean.reference[clean.support]).mean()
    assert signal / np.sqrt((np.abs(noise) ** 2).mean()) == pytest.approx(snr, rel=0.03)


def test_one_seed_is_one_scan() -> None:
    one, same, other = (simulate_scan(**SMALL, seed=seed) for seed in (1, 1, 2))
    assert one.header == same.header
    assert all(np.array_equal(a.data, b.data) for a, b in zip(one.acquisitions, same.acquisitions, strict=True))
    assert not np.allclose(one.reference, other.reference)


def test_file_holds_the_scan(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    scan = simulate_scan(**SMALL, slices=2)
    path.write_bytes(b"something older")
    write_ismrmrd(path, scan)
    with ismrmrd.Dataset(path, "dataset", mode="r") as dataset:
        assert dataset.read_xml_header() == scan.header
        assert dataset.number_of_acquisitions() == len(scan.acquisitions)
        for number, written in enumerate(scan.acquisitions):
            read = dataset.read_acquisition(number)
            assert bytes(read.getHead()) == bytes(written.getHead())
            np.testing.assert_array_equal(read.data, written.data)


@pytest.mark.parametrize(
    "wrong",
    [
        {"slices": 0},
        {"repetitions": 0},
        {"shape": (4, 48)},
        {"snr": 0.0},
        {"snr": float("nan")},
        {"coils": 0},
        {"acceleration": 0},
        {"acs": 49},
        {"acs": -1},
        {"pattern": "spiral"},
        {"partial_fourier": 0.5},
        {"partial_fourier": 1.1},
        {"partial_fourier": float("nan")},
    ],
)
def test_impossible_scans_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidFrame):
        simulate_scan(**{**SMALL, **wrong})


@given(
    lines=st.integers(8, 300),
    acceleration=st.integers(1, 12),
    acs_part=st.floats(0, 1),
    pattern=st.sampled_from(["uniform", "random"]),
    seed=st.integers(0, 5),
)
@settings(deadline=None)
def test_lines_hold_the_centre_and_keep_the_count(
    lines: int, acceleration: int, acs_part: float, pattern: str, seed: int
) -> None:
    acs = int(acs_part * lines)
    mask = sampled_lines(lines, pattern=pattern, acceleration=acceleration, acs=acs, seed=seed)
    centre = np.arange(lines)[lines // 2 - acs // 2 :][:acs]
    assert mask.shape == (lines,)
    assert mask[centre].all()
    if pattern == "uniform":
        outside = np.setdiff1d(np.flatnonzero(mask), centre)
        assert ((outside - lines // 2) % acceleration == 0).all()
        assert mask[lines // 2 % acceleration :: acceleration].all()
    else:
        assert mask.sum() == max(round(lines / acceleration), acs)


@pytest.mark.parametrize("shape", [(64, 48), (33, 48), (51, 37)])
def test_head_and_coils_are_the_same_at_every_resolution(shape: tuple[int, int]) -> None:
    fine = (2 * shape[0], 2 * shape[1])
    here = np.s_[..., shape[0] % 2 :: 2, shape[1] % 2 :: 2]
    np.testing.assert_allclose(brain_phantom(fine, seed=5)[here], brain_phantom(shape, seed=5), atol=1e-9)
    np.testing.assert_allclose(coil_maps(fine, 5, seed=5)[here], coil_maps(shape, 5, seed=5), atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_head_lies_inside_the_field_of_view_and_is_nowhere_flat(seed: int) -> None:
    image = brain_phantom((192, 192), seed=seed)
    support = image != 0
    border = np.concatenate([support[0], support[-1], support[:, 0], support[:, -1]])
    assert not border.any()
    assert 0.3 < support.mean() < 0.7
    assert 0.8 < np.abs(image).max() < 1.8
    middle = np.abs(image[60:132, 60:132])  # white matter, nuclei, ventricles: the smooth part of a brain
    steps = np.abs(np.diff(middle, axis=1)) / middle[:, 1:]
    assert np.median(steps) > 0.01  # a piecewise flat object has median 0


def test_coil_maps_have_unit_sum_of_squares_and_are_smooth_and_different() -> None:
    maps = coil_maps((96, 80), 8, seed=0)
    np.testing.assert_allclose((np.abs(maps) ** 2).sum(0), 1)
    assert max(np.abs(np.diff(maps, axis=axis)).max() for axis in (1, 2)) < 0.08
    gram = np.abs(np.einsum("cyx,dyx->cd", maps.conj(), maps))
    norms = np.sqrt(np.diag(gram))
    assert (gram / np.outer(norms, norms))[~np.eye(8, dtype=bool)].max() < 0.95


@pytest.mark.parametrize("call", [lambda: brain_phantom((0, 5)), lambda: coil_maps((8, 8), 0)])
def test_empty_objects_are_refused(call: object) -> None:
    with pytest.raises(InvalidFrame):
        call()


def test_simulating_needs_no_torch() -> None:
    code = "import sys, inrecon.simulate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
