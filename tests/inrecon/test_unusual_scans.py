"""Scans beyond the easy case, from readouts to image with what the shipped entry asks for, against CG-SENSE."""

import cmath
import dataclasses
from collections.abc import Callable
from typing import Any

import ismrmrd
import numpy as np
import pytest
from ismrmrd import xsd
from numpy.typing import NDArray

from inrecon.acquire import raw_frames
from inrecon.frame import RawFrame, Request
from inrecon.hyperparams import HyperparameterFiles
from inrecon.quality import psnr
from inrecon.simulate import SimulatedScan, simulate_scan
from inrecon.simulate.header import RELATIVE_NOISE_BANDWIDTH
from inrecon.stream import reconstruct

QUICK = {"iterations": 100, "levels": 8, "log2_table_size": 12, "width": 32}
WORSE_BY_CHANCE_DB = 0.1
SAME = 5e-3  # of the image's norm: rounding errors grow over the iterations

Image = NDArray[np.complex64]
Data = NDArray[np.complex64]


@pytest.fixture(scope="module")
def hyperparameters() -> HyperparameterFiles:
    return HyperparameterFiles.load()


def is_noise(acquisition: ismrmrd.Acquisition) -> bool:
    return bool(acquisition.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT))


def frames_of(scan: SimulatedScan) -> list[RawFrame]:
    return raw_frames(scan.header, scan.acquisitions)


def image_of(raw: RawFrame, hyperparameters: HyperparameterFiles, *, method: str = "auto") -> Image:
    """The image (z, y, x), which must be finite, not empty, and what was asked for."""
    request = Request(method=method, dtype="complex", overrides=QUICK if method == "auto" else {})
    result = reconstruct(raw, request=request, hyperparameters=hyperparameters, device="cpu", series={})
    ((image,), (report,)) = result.images, result.reports
    x, y, z = raw.geometry.recon_matrix
    assert image.data.shape == (1, z, y, x)
    assert np.isfinite(image.data).all()
    assert image.data.any()
    assert (report["method"], report["fallback"]) == (method, None)
    volume: Image = image.data[0]
    return volume


def figures(scan: SimulatedScan, hyperparameters: HyperparameterFiles, *, shading: Any = 1) -> tuple[float, float]:
    """PSNR in dB of the one image of `scan` by auto and by CG-SENSE, against the reference times `shading`."""
    (raw,) = frames_of(scan)
    auto, linear = (image_of(raw, hyperparameters, method=method)[0] for method in ("auto", "cg_sense"))
    reference = scan.reference[0] * shading
    return psnr(auto, reference, scan.support[0]), psnr(linear, reference, scan.support[0])


def readout(like: ismrmrd.Acquisition, data: Data) -> ismrmrd.Acquisition:
    """A readout with the header of another one and samples ``(coils, samples)`` of its own."""
    head = ismrmrd.AcquisitionHeader.from_buffer_copy(like.getHead())
    head.active_channels = len(data)
    return ismrmrd.Acquisition(head, np.array(data, np.complex64))


def altered(scan: SimulatedScan, change: Callable[[ismrmrd.Acquisition], Data]) -> SimulatedScan:
    """`scan` with the samples of each readout replaced by ``change(readout)``, ``(coils, samples)``."""
    acquisitions = tuple(readout(a, change(a)) for a in scan.acquisitions)
    return dataclasses.replace(scan, acquisitions=acquisitions)


def difference(image: Image, expected: Image) -> float:
    return float(np.linalg.norm(image - expected) / np.linalg.norm(expected))


def scan_case(name: str, *, good: float, gain: float = -WORSE_BY_CHANCE_DB, **scan: Any) -> Any:
    """A scan; the least PSNR of its image in dB, and by how much it is better than CG-SENSE at the least."""
    return pytest.param(scan, good, gain, id=name)


@pytest.mark.parametrize(
    ("kwargs", "good", "gain"),
    [
        scan_case("1-coil", shape=(48, 40), coils=1, acceleration=2, acs=14, seed=1, good=24, gain=0.2),
        scan_case("2-coils", shape=(48, 40), coils=2, acceleration=2, acs=14, seed=1, good=35, gain=0.7),
        scan_case("12-coils", shape=(48, 40), coils=12, acceleration=3, acs=14, seed=1, good=38),
        scan_case("32-coils", shape=(48, 40), coils=32, acceleration=3, acs=14, seed=1, good=38),
        scan_case("64-coils", shape=(48, 40), coils=64, acceleration=3, acs=14, seed=1, good=38),
        scan_case("odd-33x47", shape=(33, 47), coils=6, acceleration=3, acs=12, seed=2, good=36),
        scan_case("prime-37x41", shape=(37, 41), coils=6, acceleration=3, acs=12, seed=2, good=32, gain=0.8),
        scan_case("prime-by-even-47x64", shape=(47, 64), coils=6, acceleration=3, acs=12, seed=2, good=37, gain=0.6),
        scan_case("tall-72x24", shape=(72, 24), coils=6, acceleration=3, acs=12, seed=2, good=35, gain=0.4),
        scan_case("wide-24x72", shape=(24, 72), coils=6, acceleration=2, acs=12, seed=2, good=39, gain=0.2),
        scan_case("random-1-coil", shape=(48, 40), coils=1, acceleration=2, acs=14, pattern="random", good=20),
        scan_case("random-4-fold", shape=(64, 56), coils=6, acceleration=4, acs=14, pattern="random", seed=9, good=20),
        scan_case("partial-0.7", shape=(64, 48), acceleration=2, acs=14, partial_fourier=0.7, seed=3, good=29, gain=2),
        scan_case("partial-0.8", shape=(64, 48), acceleration=2, acs=14, partial_fourier=0.8, seed=3, good=33, gain=2),
        scan_case(
            "partial-0.8-random", shape=(64, 48), acceleration=3, acs=14, partial_fourier=0.8, pattern="random", seed=8,
            good=23, gain=0.8,
        ),
        scan_case("snr-3", shape=(56, 48), acceleration=3, acs=16, snr=3, seed=4, good=20),
        scan_case("snr-4.5", shape=(56, 48), acceleration=3, acs=16, snr=4.5, seed=4, good=22),
        scan_case("snr-6", shape=(56, 48), acceleration=3, acs=16, snr=6, seed=4, good=24),
        scan_case("snr-3-random", shape=(56, 48), acceleration=3, acs=16, snr=3, seed=5, pattern="random", good=18),
        scan_case("snr-10000", shape=(56, 48), acceleration=3, acs=16, snr=1e4, seed=4, good=43),
    ],
)  # fmt: skip
def test_the_image_is_good_and_not_worse_than_cg_sense(
    kwargs: dict[str, Any], good: float, gain: float, hyperparameters: HyperparameterFiles
) -> None:
    auto, linear = figures(simulate_scan(**kwargs), hyperparameters)
    assert auto > good
    assert auto - linear > gain


@pytest.fixture(scope="module")
def scan() -> SimulatedScan:
    return simulate_scan(shape=(48, 40), coils=6, acceleration=3, acs=14, seed=1)


@pytest.fixture(scope="module")
def expected(scan: SimulatedScan, hyperparameters: HyperparameterFiles) -> Image:
    (raw,) = frames_of(scan)
    return image_of(raw, hyperparameters)


@pytest.mark.parametrize("factor", [1e-6, 1e6, -1, cmath.exp(1.2j)], ids=["millionth", "million", "negative", "phase"])
def test_a_factor_of_the_data_is_one_of_the_image(
    factor: complex, scan: SimulatedScan, expected: Image, hyperparameters: HyperparameterFiles
) -> None:
    (raw,) = frames_of(altered(scan, lambda a: a.data * factor))
    assert difference(image_of(raw, hyperparameters) / factor, expected) < SAME


COIL = 2


def without_coil(scan: SimulatedScan) -> SimulatedScan:
    absent = altered(scan, lambda a: np.delete(a.data, COIL, axis=0))
    return dataclasses.replace(absent, csm=np.delete(scan.csm, COIL, axis=0))


def coil_noise(scan: SimulatedScan, *, factor: float = 1.0) -> Callable[[ismrmrd.Acquisition], Data]:
    """What makes noise of `factor` times the standard deviation that the coil has in a readout."""
    rng = np.random.default_rng(0)
    measured = float(np.std([a.data[COIL] for a in scan.acquisitions if is_noise(a)]))
    dwell = {is_noise(a): a.sample_time_us for a in scan.acquisitions}
    imaging = measured / np.sqrt(dwell[False] / dwell[True] * RELATIVE_NOISE_BANDWIDTH)

    def noise(acquisition: ismrmrd.Acquisition) -> Data:
        level = factor * (measured if is_noise(acquisition) else imaging) / np.sqrt(2)
        samples = acquisition.data.shape[1]
        return np.asarray(level * (rng.standard_normal(samples) + 1j * rng.standard_normal(samples)), np.complex64)

    return noise


@pytest.mark.parametrize("kind", ["dead", "unplugged-after-the-noise-scan", "noise-only"])
def test_a_coil_that_tells_nothing_is_as_no_coil(
    kind: str, scan: SimulatedScan, hyperparameters: HyperparameterFiles
) -> None:
    noise = coil_noise(scan)

    def change(acquisition: ismrmrd.Acquisition) -> Data:
        data = acquisition.data.copy()
        if kind == "dead" or not is_noise(acquisition):
            data[COIL] = noise(acquisition) if kind == "noise-only" else 0
        return data

    absent = without_coil(scan)
    shading = np.linalg.norm(absent.csm, axis=0)
    auto, linear = figures(altered(scan, change), hyperparameters, shading=shading)
    assert auto > linear - WORSE_BY_CHANCE_DB
    assert auto == pytest.approx(figures(absent, hyperparameters, shading=shading)[0], abs=0.3)
    assert auto > 36


def test_a_coil_much_noisier_than_the_others_costs_little(
    scan: SimulatedScan, hyperparameters: HyperparameterFiles
) -> None:
    noise = coil_noise(scan, factor=3)

    def change(acquisition: ismrmrd.Acquisition) -> Data:
        data = acquisition.data.copy()
        data[COIL] += noise(acquisition)
        return data

    auto, linear = figures(altered(scan, change), hyperparameters)
    assert auto > linear - WORSE_BY_CHANCE_DB
    assert auto > figures(scan, hyperparameters)[0] - 1.5


@pytest.fixture(scope="module")
def slices() -> SimulatedScan:
    return simulate_scan(shape=(40, 33), coils=5, acceleration=2, acs=12, slices=3, seed=5)


@pytest.fixture(scope="module")
def one_by_one(slices: SimulatedScan, hyperparameters: HyperparameterFiles) -> list[Image]:
    images = []
    for index in range(3):
        own = tuple(a for a in slices.acquisitions if is_noise(a) or a.idx.slice == index)
        (raw,) = frames_of(dataclasses.replace(slices, acquisitions=own))
        images.append(image_of(raw, hyperparameters))
    return images


@pytest.mark.parametrize("counter", ["slice", "contrast", "set", "repetition"])
def test_images_of_one_scan_are_those_of_scans_of_their_own(
    counter: str, slices: SimulatedScan, one_by_one: list[Image], hyperparameters: HyperparameterFiles
) -> None:
    relabelled = altered(slices, lambda a: a.data).acquisitions
    noise = [a for a in relabelled if is_noise(a)]
    imaging = [a for a in relabelled if not is_noise(a)]
    for acquisition in imaging:
        number, acquisition.idx.slice = acquisition.idx.slice, 0
        setattr(acquisition.idx, counter, number)
    if counter != "repetition":  # interleaved, as echoes are; a repetition begins when the one before has ended
        imaging.sort(key=lambda a: a.idx.kspace_encode_step_1)
    found = frames_of(dataclasses.replace(slices, acquisitions=(*noise, *imaging)))
    assert [getattr(raw.key, counter) for raw in found] == [0, 1, 2]
    for index, raw in enumerate(found):
        image = image_of(raw, hyperparameters)
        assert difference(image, one_by_one[index]) < SAME
        linear = image_of(raw, hyperparameters, method="cg_sense")
        truth = slices.reference[index], slices.support[index]
        assert psnr(image[0], *truth) > max(35, psnr(linear[0], *truth) - WORSE_BY_CHANCE_DB)


def test_a_slice_without_signal_leaves_the_others(
    slices: SimulatedScan, one_by_one: list[Image], hyperparameters: HyperparameterFiles
) -> None:
    """All zero it was not acquired; with noise alone its image is noise, dark beside the others."""
    empty = altered(slices, lambda a: a.data * (is_noise(a) or a.idx.slice != 1))
    assert [raw.key.slice for raw in frames_of(empty)] == [0, 2]
    rng = np.random.default_rng(0)
    level = np.abs(slices.reference).max() / 1e3

    def hiss(acquisition: ismrmrd.Acquisition) -> Data:
        if is_noise(acquisition) or acquisition.idx.slice != 1:
            return acquisition.data
        white = rng.standard_normal((2, *acquisition.data.shape))
        return np.asarray(level * (white[0] + 1j * white[1]), np.complex64)

    images = [image_of(raw, hyperparameters) for raw in frames_of(altered(slices, hiss))]
    for index in (0, 2):
        assert difference(images[index], one_by_one[index]) < SAME
    assert np.abs(images[1]).max() < 0.1 * np.abs(images[0]).max()


def poisson_like(partitions: int, lines: int, *, radius: float, acs: tuple[int, int], seed: int) -> NDArray[np.bool_]:
    """Points (kz, ky) no nearer than `radius` to one another, drawn one by one, and all of the `acs` centre ones."""
    kz, ky = np.indices((partitions, lines))
    mask = np.zeros((partitions, lines), bool)
    for index in np.random.default_rng(seed).permutation(mask.size):
        z, y = divmod(int(index), lines)
        mask[z, y] = not (mask & (np.hypot(kz - z, ky - y) < radius)).any()
    mask[tuple(slice(n // 2 - a // 2, n // 2 - a // 2 + a) for n, a in zip(mask.shape, acs, strict=True))] = True
    return mask


def volume_scan(heads: SimulatedScan, shares: NDArray[np.float64], mask: NDArray[np.bool_]) -> SimulatedScan:
    """A 3-D scan with the phase encodings `mask` (kz, ky), without noise readouts, of a volume of mixed heads.

    `heads` is fully sampled and free of noise; `shares` ``(partitions, heads)`` is how much of each a partition holds.
    """
    partitions, slices = shares.shape
    template = heads.acquisitions[0]
    kspace = np.stack([a.data for a in heads.acquisitions]).reshape(slices, -1, *template.data.shape)
    kspace = np.fft.ifftshift(np.tensordot(shares, kspace, 1), 0)
    kspace = np.fft.fftshift(np.fft.fft(kspace, axis=0, norm="ortho"), 0)
    rng = np.random.default_rng(0)
    level = np.abs(heads.reference[heads.support]).mean() / 100
    kspace += level * (rng.standard_normal(kspace.shape) + 1j * rng.standard_normal(kspace.shape))
    header = xsd.CreateFromDocument(heads.header)
    encoding = header.encoding[0]
    encoding.encodedSpace.matrixSize.z = encoding.reconSpace.matrixSize.z = partitions
    encoding.encodingLimits.slice = xsd.limitType(minimum=0, maximum=0, center=0)
    encoding.encodingLimits.kspace_encoding_step_2 = xsd.limitType(
        minimum=0, maximum=partitions - 1, center=partitions // 2
    )
    acquisitions = []
    for kz, ky in np.argwhere(mask):
        acquisition = readout(template, kspace[kz, ky])
        acquisition.clearAllFlags()
        acquisition.idx.kspace_encode_step_1, acquisition.idx.kspace_encode_step_2 = int(ky), int(kz)
        acquisitions.append(acquisition)
    return dataclasses.replace(heads, header=xsd.ToXML(header).encode(), acquisitions=tuple(acquisitions))


@pytest.mark.parametrize("partitions", [16, 17], ids=["even", "odd"])
def test_a_volume_with_poisson_like_phase_encodings(partitions: int, hyperparameters: HyperparameterFiles) -> None:
    heads = simulate_scan(shape=(36, 9), coils=8, pattern="full", slices=2, snr=np.inf, seed=7)
    angle = np.pi * (np.arange(partitions) + 0.5) / partitions
    shares = np.stack([np.sin(angle), np.sin(angle) * np.cos(angle)], axis=1)
    mask = poisson_like(partitions, 36, radius=1.5, acs=(8, 12), seed=partitions)
    (raw,) = frames_of(volume_scan(heads, shares, mask))
    assert raw.protocol.acceleration > 1.8
    truth = np.tensordot(shares, heads.reference, 1)
    support = np.broadcast_to(heads.support.any(0), truth.shape)
    auto, linear = (
        psnr(*map(np.concatenate, (image_of(raw, hyperparameters, method=method), truth, support)))
        for method in ("auto", "cg_sense")
    )
    assert auto > 28
    assert auto - linear > 0.8
