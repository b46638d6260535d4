"""From a case to what a method is given and what it is judged by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import ismrmrd
import numpy as np
import torch
from numpy.typing import NDArray

from inrecon.calibrate import espirit
from inrecon.frame import Geometry, Key, Noise, Protocol, RawFrame, Readouts
from inrecon.simulate import folded, simulate_scan
from quality.cases import Case, InvalidCases
from quality.judge import HeldOut, Judge, Reference, maps_of
from quality.sampling import Mask, centre_square, sampled

Complex = NDArray[np.complex64]

LARGEST = 100.0
"""Largest magnitude of k-space, before noise is added; the noise of a case is relative to it."""
REFERENCE_BLOCK = 24
NOISE_SAMPLES = 4096
DWELL_US = 5.0
RELATIVE_NOISE_BANDWIDTH = 0.793


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One case, ready to run: `raw` is what `inrecon.acquire` would give, `acceleration` the true one."""

    case: Case
    raw: RawFrame
    judge: Judge
    acceleration: float

    @cached_property
    def maps(self) -> Complex:
        """The coil maps of conditioned data that every method of ours makes its image with."""
        return maps_of(self.raw)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Full k-space ``(coils, rows, columns)``, free of added noise, and the noise readouts' samples ``(coils, n)``.

    `truth` ``(rows, columns)`` is the image behind it where that is known, `own` the mask that the data came with.
    """

    kspace: Complex
    noise: Complex | None
    truth: Complex | None = None
    own: Mask | None = None


def scan_of(case: Case, *, data: Path | None) -> Scan | None:
    """The scan of a case; None where its data file is not in the folder `data`. Raises `InvalidCases`."""
    source = _source(case, data)
    if source is None:
        return None
    rows = 2 * round(source.kspace.shape[1] * case.field_of_view / 2) if case.folds else source.kspace.shape[1]
    shape = (rows, source.kspace.shape[2])
    mask = sampled(case, shape, own=source.own)
    rng = np.random.default_rng((case.seed, 1))  # not the stream that lines are drawn from
    kept = mask
    if case.held_out > 0:
        kept = mask & ~_held_out(case, mask, rng)
    noisy = source.kspace + case.noise * LARGEST * _white(source.kspace.shape, rng)
    # The noise of what folds adds up.
    louder = math.sqrt(source.kspace.shape[1] / rows)
    samples = None if source.noise is None else louder * _noise_samples(case, source, noisy, rng)
    noise = None if samples is None else _noise_of(samples, length=shape[1])
    if case.folds:
        noisy = _kspace_of(folded(image_of(noisy), rows))
    raw = raw_frame(case, noisy, kept, noise=noise)
    if case.held_out > 0:
        judge: Judge = HeldOut.of(raw, raw_frame(case, noisy, mask, noise=noise))
    else:
        judge = _reference(case, source, rows)
    return Scan(case=case, raw=raw, judge=judge, acceleration=float(mask.size / kept.sum()))


def _source(case: Case, data: Path | None) -> _Source | None:
    if case.generated is not None:
        return _generated(case)
    if data is None or case.data is None or not (data / case.data).exists():
        return None
    with np.load(data / case.data) as file:
        if "kspace" not in file or file["kspace"].ndim != 3:
            raise InvalidCases(f"case {case.name}: {case.data} holds no kspace of (coils, rows, columns)")
        kspace = file["kspace"].astype(np.complex64)
        own = file["mask"].astype(bool) if case.pattern == "own" and "mask" in file else None
    if case.line_axis == "x":
        kspace, own = kspace.transpose(0, 2, 1), None if own is None else own.T
    kspace = np.ascontiguousarray(kspace / np.abs(kspace).max() * LARGEST)
    return _Source(kspace=kspace, noise=None if case.pattern == "own" else _corners(kspace), own=own)


def _generated(case: Case) -> _Source:
    """A simulated head, fully sampled and free of noise; its noise readouts are drawn later, by themselves."""
    settings = case.generated
    if settings is None:
        raise InvalidCases(f"case {case.name} is not a generated one")
    simulated = simulate_scan(
        shape=settings.matrix,
        coils=settings.coils,
        pattern="full",
        snr=float("inf"),
        oversampling=False,
        seed=settings.seed,
    )
    kspace = np.stack([acquisition.data for acquisition in simulated.acquisitions], axis=1)
    scale = LARGEST / np.abs(kspace).max()
    nothing = np.zeros((settings.coils, 0), np.complex64)
    return _Source(kspace=kspace * scale, noise=nothing, truth=simulated.reference[0] * scale)


def _noise_samples(case: Case, source: _Source, noisy: Complex, rng: np.random.Generator) -> Complex:
    """What noise readouts hold: the corners of the noisy image, or for a generated scan noise of its own."""
    if source.truth is None:
        return _corners(noisy)
    return case.noise * LARGEST * _white((len(noisy), NOISE_SAMPLES), rng)


def _white(shape: tuple[int, ...], rng: np.random.Generator) -> Complex:
    """Complex white noise with a standard deviation of 1 a sample."""
    parts = rng.normal(scale=np.sqrt(0.5), size=(2, *shape))
    noise: Complex = (parts[0] + 1j * parts[1]).astype(np.complex64)
    return noise


def _corners(kspace: Complex) -> Complex:
    """Samples ``(coils, n)`` of the four corners of the fully sampled image, where there is nothing but noise."""
    images = image_of(kspace)
    side = max(kspace.shape[1] // 16, 6)
    near, far = slice(None, side), slice(-side, None)
    boxes = [images[:, down, across] for down in (near, far) for across in (near, far)]
    corners: Complex = np.concatenate([box.reshape(len(kspace), -1) for box in boxes], axis=1)
    return corners


def _noise_of(samples: Complex, *, length: int) -> Noise | None:
    """The covariance of noise readouts of `length` samples each, as many as there are whole ones."""
    whole = samples.shape[1] // length * length or samples.shape[1]
    wide = samples[:, :whole].astype(np.complex128)
    if not wide.any():
        return None
    return Noise(
        covariance=wide @ wide.conj().T / whole,
        samples=whole,
        sample_time_us=DWELL_US,
        relative_bandwidth=RELATIVE_NOISE_BANDWIDTH,
    )


def image_of(kspace: Complex) -> Complex:
    """Centred unitary transform of the last two axes."""
    shifted = np.fft.ifftshift(kspace, (-2, -1))
    image: Complex = np.fft.fftshift(np.fft.ifft2(shifted, norm="ortho"), (-2, -1)).astype(np.complex64)
    return image


def _kspace_of(images: Complex) -> Complex:
    """The inverse of `image_of`."""
    shifted = np.fft.ifftshift(images, (-2, -1))
    kspace: Complex = np.fft.fftshift(np.fft.fft2(shifted, norm="ortho"), (-2, -1)).astype(np.complex64)
    return kspace


def _reference(case: Case, source: _Source, rows: int) -> Reference:
    """Fully sampled coil images combined by ESPIRiT maps of their own centre, or the truth; the maps' support.

    Of a scan whose field of view folds, the root sum of squares of the coil images on its `rows`, as far as both sets
    of maps explain them: that leaves out most of the noise.
    """
    images = image_of(source.kspace)
    kspace = source.kspace
    if case.folds:
        images = folded(images, rows)
        kspace = _kspace_of(images)
    shape = (kspace.shape[1], kspace.shape[2])
    block = kspace[:, *centre_square(shape, REFERENCE_BLOCK)]
    maps = espirit(torch.from_numpy(block.copy()), shape)
    if case.folds:
        csm = maps.csm.numpy().reshape(-1, *images.shape)
        explained = (csm * (csm.conj() * images).sum(1, keepdims=True)).sum(0)
        image = np.linalg.norm(explained, axis=0).astype(np.complex64)
    else:
        image = (maps.csm.numpy().conj() * images).sum(0) if source.truth is None else source.truth
    return Reference(image=image, support=maps.support.numpy(), regions=dict(case.regions))


def _held_out(case: Case, mask: Mask, rng: np.random.Generator) -> Mask:
    """A random part of the samples outside of the calibration square, point by point, the same for all coils."""
    candidates = mask.copy()
    candidates[centre_square((mask.shape[0], mask.shape[1]), case.centre)] = False
    return candidates & (rng.random(mask.shape) < case.held_out)


def raw_frame(case: Case, kspace: Complex, mask: Mask, *, noise: Noise | None) -> RawFrame:
    """The samples of `mask` as readouts: lines of a 2-D scan, or single points of a plane of a 3-D scan.

    The plane's rows are kz and its columns ky, its encoded x is 1: what is left of a readout that is fully sampled.
    """
    coils, rows, columns = kspace.shape
    if case.planar:
        lines = np.argwhere(mask)
        samples = kspace[:, mask][:, :, None]
        matrix = (1, columns, rows)
    else:
        sampled_rows = np.flatnonzero(mask[:, 0])
        lines = np.stack([np.zeros_like(sampled_rows), sampled_rows], axis=1)
        samples = kspace[:, sampled_rows]
        matrix = (columns, rows, 1)
    x, y, z = matrix
    field_of_view = (float(x), float(y), float(z) if z > 1 else 5.0)
    return RawFrame(
        imaging=Readouts(
            kspace=np.ascontiguousarray(samples),
            lines=lines.astype(np.int64),
            acquired=np.ones(samples.shape[1:], bool),
        ),
        calibration=None,
        noise=noise,
        sample_time_us=DWELL_US,
        key=Key(),
        geometry=Geometry(
            encoded_matrix=matrix,
            encoded_fov_mm=field_of_view,
            recon_matrix=matrix,
            recon_fov_mm=field_of_view,
        ),
        protocol=Protocol(
            name="brain_test",
            sequence=None,
            anatomy=None,
            vendor="test",
            field_strength_T=3.0,
            trajectory="cartesian",
            matrix=(y, x),
            acceleration=y * z / len(lines),
            coils=coils,
        ),
        reference=_header(coils, x),
    )


def _header(coils: int, samples: int) -> bytes:
    """The acquisition header of a readout in the scanner's centre, straight."""
    acquisition = ismrmrd.Acquisition()
    acquisition.resize(samples, coils)
    acquisition.read_dir[0] = acquisition.phase_dir[1] = acquisition.slice_dir[2] = 1.0
    acquisition.sample_time_us = DWELL_US
    return bytes(acquisition.getHead())
