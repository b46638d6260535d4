"""Readouts of a phantom, with noise, as a scanner sends them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from inrecon.errors import InvalidFrame
from inrecon.simulate.header import SLICE_MM, scan_header
from inrecon.simulate.phantom import brain_phantom, coil_maps
from inrecon.simulate.readouts import noise_colour, noise_readouts, slice_readouts
from inrecon.simulate.sampling import Pattern, centre_block, sampled_lines

Array = NDArray[np.complex128]
Number = TypeVar("Number", np.complex64, np.complex128, np.int_)

READOUT_US = 1920.0  # one imaging readout, shared out among its samples
NOISE_READOUTS = 32
TICKS_A_READOUT = 2  # time stamps count 2.5 ms


@dataclass(frozen=True, kw_only=True)
class SimulatedScan:
    """A scan and the truth behind it.

    `header` is ISMRMRD XML; `acquisitions` the readouts in the order of their acquisition: noise, then per
    repetition, per slice, line by line. `reference` ``(frames, y, x)`` complex64 is what the full matrix free of
    noise gives through `csm`; frame ``repetition * slices + slice``. `support` ``(frames, y, x)`` bool is the head,
    `folded` ``(frames, y, x)`` bool where two parts of it lie on one another; where there are such, `reference` has the
    root sum of squares over coils for its magnitude. `csm` ``(coils, y, x)`` complex64 are the true maps inside the
    field of view, with unit root-sum-of-squares. `acceleration` is the number of
    lines in the matrix over the mean number acquired for a frame.
    """

    header: bytes
    acquisitions: tuple[ismrmrd.Acquisition, ...]
    reference: NDArray[np.complex64]
    support: NDArray[np.bool_]
    folded: NDArray[np.bool_]
    csm: NDArray[np.complex64]
    acceleration: float

    def __post_init__(self) -> None:
        if self.reference.ndim != 3 or self.support.shape != self.reference.shape:
            raise InvalidFrame(f"reference {self.reference.shape} with support {self.support.shape}")
        if self.csm.ndim != 3 or self.csm.shape[1:] != self.reference.shape[1:]:
            raise InvalidFrame(f"coil maps {self.csm.shape} for images {self.reference.shape}")


def simulate_scan(
    *,
    shape: tuple[int, int] = (192, 192),
    coils: int = 8,
    acceleration: int = 6,
    acs: int = 20,
    pattern: Pattern = "uniform",
    snr: float = 80.0,
    oversampling: bool = True,
    slices: int = 1,
    repetitions: int = 1,
    partial_fourier: float = 1.0,
    field_of_view: float = 1.0,
    protocol: str = "simulated_brain",
    seed: int = 0,
) -> SimulatedScan:
    """Scan a phantom: a multi-coil Cartesian 2-D acquisition of `slices` heads, `repetitions` times.

    `shape` is the matrix ``(y, x)``; lines run along x, `oversampling` doubles their samples and field of view.
    `pattern`, `acceleration` and `acs` pick the lines (`sampled_lines`; random ones anew in each repetition).
    `partial_fourier` is the part of the matrix that is covered: its first lines are left out and the others counted
    from 0. `field_of_view`, 0.5 to 1, is the part of 220 mm that it spans along y: of less than about 0.86 the head is
    larger and folds. `snr` is the mean magnitude of the reference in the head over the standard deviation of the noise
    of a complex sample (root mean square over coils; transforms are unitary, so also that of a pixel of a fully sampled
    image); infinite for no noise and no noise readouts. Noise is correlated between coils. `seed` draws everything;
    slice n is the head of seed + n.

    The object has twice the resolution of the matrix and its k-space is cut to what is acquired, so that the
    reconstruction's pixels are not the ones the object was made of. Raises `InvalidFrame` for an impossible scan.
    """
    if min(slices, repetitions) < 1 or min(shape) < 8 or not snr > 0 or not 0.5 <= field_of_view <= 1:
        raise InvalidFrame(
            "a simulated scan needs at least one slice and repetition, 8 x 8 pixels, an SNR above 0, and 0.5 to 1 as "
            f"its field of view: not {slices}, {repetitions}, {shape}, {snr} and {field_of_view}"
        )
    rows = shape[0]
    calibration = np.zeros(rows, bool)
    if pattern != "full":
        calibration[centre_block(rows, acs)] = True
    dropped = _dropped_lines(partial_fourier, calibration)
    masks = [
        sampled_lines(rows, pattern=pattern, acceleration=acceleration, acs=acs, seed=seed + repetition)
        for repetition in range(repetitions)
    ]
    for mask in masks:
        mask[:dropped] = False

    scene = _scene(shape, coils=coils, slices=slices, oversampling=oversampling, field_of_view=field_of_view, seed=seed)
    reference, support = scene.reference, scene.layers > 0
    rng = np.random.default_rng((seed, 1))  # not the stream that the phantom is drawn from
    samples = scene.kspace[0].shape[-1]
    dwell_us = READOUT_US / samples
    colour = noise_colour(coils, rng) * np.abs(reference[support]).mean() / snr
    count = NOISE_READOUTS if np.isfinite(snr) else 0
    acquisitions = list(noise_readouts(count, samples=samples, colour=colour, dwell_us=dwell_us, rng=rng))
    for repetition, mask in enumerate(masks):
        for index, full in enumerate(scene.kspace):
            for acquisition in slice_readouts(
                full, mask, calibration=calibration, colour=colour, dwell_us=dwell_us, rng=rng
            ):
                acquisition.idx.kspace_encode_step_1 -= dropped
                acquisition.idx.slice, acquisition.idx.repetition = index, repetition
                acquisition.position[2] = SLICE_MM * (index - (slices - 1) / 2)
                acquisitions.append(acquisition)
        acquisitions[-1].setFlag(ismrmrd.ACQ_LAST_IN_REPETITION)
    acquisitions[-1].setFlag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    for counter, acquisition in enumerate(acquisitions):
        acquisition.scan_counter, acquisition.acquisition_time_stamp = counter, TICKS_A_READOUT * counter

    header = scan_header(
        shape=shape,
        samples=samples,
        lines=rows - dropped,
        centre_line=rows // 2 - dropped,
        coils=coils,
        acceleration=None if pattern == "full" else acceleration,
        slices=slices,
        repetitions=repetitions,
        protocol=protocol,
        field_of_view=field_of_view,
    )
    return SimulatedScan(
        header=header,
        acquisitions=tuple(acquisitions),
        reference=np.tile(reference, (repetitions, 1, 1)).astype(np.complex64),
        support=np.tile(support, (repetitions, 1, 1)),
        folded=np.tile(scene.layers > 1, (repetitions, 1, 1)),
        csm=scene.csm.astype(np.complex64),
        acceleration=rows / float(np.mean([mask.sum() for mask in masks])),
    )


def write_ismrmrd(path: Path, scan: SimulatedScan) -> None:
    """Write `scan` as an ISMRMRD raw file, HDF5 group ``dataset``; a file at `path` is replaced."""
    with ismrmrd.File(path, "w") as file:
        file["dataset"].acquisitions = scan.acquisitions
    with ismrmrd.Dataset(path, "dataset") as dataset:
        dataset.write_xml_header(scan.header)  # the bytes as they are; ismrmrd.File would write them anew


def _dropped_lines(partial_fourier: float, calibration: NDArray[np.bool_]) -> int:
    """How many of the first lines partial Fourier leaves out; the centre and the calibration lines must stay."""
    rows = len(calibration)
    first_needed = int(np.flatnonzero(calibration)[0]) if calibration.any() else rows // 2
    dropped = round(rows * (1 - partial_fourier)) if np.isfinite(partial_fourier) else -1
    if not 0 <= dropped <= first_needed:
        raise InvalidFrame(
            f"partial Fourier must lie in {1 - first_needed / rows:.3f} .. 1 for {rows} lines with "
            f"{calibration.sum()} calibration lines, not {partial_fourier}"
        )
    return dropped


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """Full k-space of each slice, the reference images, how many parts of the head lie at each pixel of a slice
    (``(slices, y, x)``), and the coil maps; all free of noise."""

    kspace: list[Array]
    reference: Array
    layers: NDArray[np.int_]
    csm: Array


def _scene(
    shape: tuple[int, int], *, coils: int, slices: int, oversampling: bool, field_of_view: float, seed: int
) -> _Scene:
    rows, columns = shape
    whole = (2 * round(rows / field_of_view), 2 * columns)
    aligned = np.s_[..., rows % 2 :: 2, columns % 2 :: 2]  # fine pixels at the places of the matrix' own
    maps = coil_maps(whole, coils, seed=seed)
    heads = [brain_phantom(whole, seed=seed + index) for index in range(slices)]
    kspace = [_measure(folded(maps * head, 2 * rows), shape, oversampling=oversampling) for head in heads]
    csm = maps[:, centre_block(whole[0], 2 * rows)][aligned]
    layers = np.stack([folded((head != 0).astype(int), 2 * rows)[aligned] for head in heads])
    reference = np.stack([_combine(full, csm, several=bool((layers > 1).any())) for full in kspace])
    return _Scene(kspace=kspace, reference=reference, layers=layers, csm=csm)


def folded(images: NDArray[Number], rows: int) -> NDArray[Number]:
    """Images ``(..., y, x)`` in a field of view of `rows`, at least half of theirs: what lies outside comes in on the
    other side."""
    height = images.shape[-2]
    inside = centre_block(height, rows)
    found = images[..., inside, :].copy()
    found[..., rows - inside.start :, :] += images[..., : inside.start, :]
    found[..., : height - inside.stop, :] += images[..., inside.stop :, :]
    return found


def _measure(images: Array, shape: tuple[int, int], *, oversampling: bool) -> Array:
    """k-space ``(coils, y, samples)`` of coil images at twice the resolution of `shape`, in its intensities."""
    rows, columns = shape
    kspace = _transform(images, -2)[:, centre_block(2 * rows, rows)]
    if oversampling:
        kspace = np.pad(kspace, ((0, 0), (0, 0), (columns, columns)))
    length = kspace.shape[-1]
    return _transform(kspace, -1)[..., centre_block(length, length // 2)] / 2


def _combine(kspace: Array, csm: Array, *, several: bool) -> Array:
    """The image ``(y, x)`` that full k-space gives through the maps: coils combined, oversampling cropped.

    If `several` parts of the object lie on one another, its magnitude is the root sum of squares of the coils.
    """
    images = _transform(_transform(kspace, -2, inverse=True), -1, inverse=True)
    images = images[..., centre_block(images.shape[-1], csm.shape[-1])]
    combined: Array = (csm.conj() * images).sum(0)
    return np.linalg.norm(images, axis=0) * np.exp(1j * np.angle(combined)) if several else combined


def _transform(values: Array, axis: int, *, inverse: bool = False) -> Array:
    """Centred, unitary Fourier transform along one axis."""
    transform = np.fft.ifft if inverse else np.fft.fft
    shifted = transform(np.fft.ifftshift(values, axis), axis=axis, norm="ortho")
    return np.asarray(np.fft.fftshift(shifted, axis), np.complex128)
