"""Reconstruction -> ismrmrd.Image: the header's field of view and matrix, one scale a series, geometry untouched."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from inrecon.errors import InvalidFrame
from inrecon.events import Warned, observe
from inrecon.frame import Complex, Dtype, Geometry, RawFrame, Series
from inrecon.meta import MetaValue, describe

GREY_MAX = 4095
"""Largest grey value of an integer image: 12 bits, what scanners and viewers expect."""
GREY_OF_FIRST = 2048
"""Where the first image's bright end lies, so that later slices may be twice as bright."""
SERIES_STEP = 100
"""From a series to the one that takes over when an image is too bright for it; encoding spaces count from 1 below."""
_BRIGHT_PERCENTILE = 99.9
_CLIPPED_TOLERATED = 1e-3
_INDEX_MAX = 65535

_IMAGE_TYPES = {
    "complex": ismrmrd.IMTYPE_COMPLEX,
    "float": ismrmrd.IMTYPE_MAGNITUDE,
    "uint16": ismrmrd.IMTYPE_MAGNITUDE,
}


def to_image(
    volume: Complex,
    *,
    raw: RawFrame,
    dtype: Dtype,
    series: Series,
    meta: Mapping[str, MetaValue],
    clips: bool = False,
) -> tuple[ismrmrd.Image, Series]:
    """The image to send, and the series as it stands after it.

    `volume` ``(z, y, x)`` complex64 on the encoded field of view, with or without readout oversampling. The image
    ``(1, z, y, x)`` has the header's reconSpace matrix and field of view; its geometry, counters and time stamps are
    those of ``raw.reference``. `dtype` "complex" sends the values themselves, "float" their magnitude, "uint16" the
    magnitude times the series' scale, which the first image with any signal fixes; an image far brighter than that
    begins a new series, announced, rather than being clipped, unless it `clips`. `meta` is added to the attributes.
    image_index counts from 1 and starts again after 65535.

    Raises `InvalidFrame` if `volume` does not fit the encoded matrix or holds values that are not finite.
    """
    _check(volume, raw.geometry)
    resized = to_recon_space(volume, raw.geometry)
    magnitude: NDArray[np.float32] = np.abs(resized)
    window: tuple[float, float] | None = None
    pixels: Complex | NDArray[np.float32] | NDArray[np.uint16]
    if dtype == "complex":
        pixels = resized
    elif dtype == "float":
        pixels = magnitude
        bright = bright_end(magnitude)
        window = (bright / 2, bright)
    else:
        if series.scale is None or not clips:
            series = _with_scale_for(magnitude, series)
        pixels = np.minimum(np.rint(magnitude * np.float64(series.scale or 0)), GREY_MAX).astype(np.uint16)
        # The same for the whole series: a window chosen for each image would flicker.
        window = (GREY_OF_FIRST / 2, GREY_OF_FIRST)
    image = ismrmrd.Image.from_array(
        pixels[np.newaxis],
        acquisition=ismrmrd.AcquisitionHeader.from_buffer_copy(raw.reference),
        transpose=False,
        field_of_view=raw.geometry.recon_fov_mm,
        image_type=_IMAGE_TYPES[dtype],
        image_index=series.images % _INDEX_MAX + 1,
        image_series_index=series.index,
    )
    image.meta = describe(image.getHead(), meta, scale=series.scale if dtype == "uint16" else None, window=window)
    return image, dataclasses.replace(series, images=series.images + 1)


def to_recon_space(volume: Complex, geometry: Geometry) -> Complex:
    """`volume` ``(z, y, x)`` on the encoded field of view, resampled to reconSpace's matrix and field of view.

    Pixels are those of Fourier zero filling (or cropping, to a coarser matrix) with the pixel ``n // 2`` staying where
    it is and intensities kept; a field of view that is larger than the encoded one is filled up with zeros.
    """
    for axis, dimension in ((2, 0), (1, 1), (0, 2)):
        spacing = geometry.encoded_fov_mm[dimension] / geometry.encoded_matrix[dimension]
        size = geometry.recon_matrix[dimension]
        step = geometry.recon_fov_mm[dimension] / size / spacing
        length = volume.shape[axis]
        if length == size and (size == 1 or np.isclose(step, 1, rtol=1e-6)):
            continue
        matrix = _resampling(length, size, step=step)
        volume = np.moveaxis(np.tensordot(matrix, volume, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(volume)


def _resampling(length: int, size: int, *, step: float) -> Complex:
    """Matrix ``(size, length)`` that evaluates a pixel row's trigonometric interpolant every `step` pixels.

    For sizes that divide this is a centred FFT, zero filling or cropping, the FFT back, and a crop; the matrix also
    serves fields of view that are no whole number of pixels, and leaves no seam at the edge of a cropped one.
    """
    positions = (np.arange(size) - size // 2) * step
    pixels = np.arange(length) - length // 2
    frequencies = np.arange(length) - length // 2
    # A coarser grid holds length / step frequencies, the negative half-open end included, as for an FFT of its size.
    held = min(length, length / step) / 2
    frequencies = frequencies[(frequencies >= -held - 1e-6) & (frequencies < held - 1e-6)]
    inside = (positions >= -length / 2 - 1e-6) & (positions < length / 2 - 1e-6)
    synthesis = np.exp(2j * np.pi / length * np.outer(positions, frequencies)) * inside[:, np.newaxis]
    analysis = np.exp(-2j * np.pi / length * np.outer(frequencies, pixels)) / length
    matrix: Complex = (synthesis @ analysis).astype(np.complex64)
    return matrix


def _check(volume: Complex, geometry: Geometry) -> None:
    """Raise `InvalidFrame` unless `volume` is finite and on the encoded matrix, perhaps shorter along x."""
    x, y, z = geometry.encoded_matrix
    if volume.ndim != 3 or volume.shape[:2] != (z, y) or not 1 <= volume.shape[2] <= x:
        raise InvalidFrame(f"an image volume must be (z, y, x) = ({z}, {y}, up to {x}), not {volume.shape}")
    if volume.dtype != np.complex64:
        raise InvalidFrame(f"an image volume must be complex64, not {volume.dtype}")
    if not np.isfinite(volume).all():
        raise InvalidFrame("the image holds values that are not finite (NaN or infinity)")


def bright_end(magnitude: NDArray[np.float32]) -> float:
    """The bright end of an image: a high percentile, or the maximum where fewer pixels than that hold any signal."""
    return float(np.percentile(magnitude, _BRIGHT_PERCENTILE)) or float(magnitude.max())


def _with_scale_for(magnitude: NDArray[np.float32], series: Series) -> Series:
    """`series` if its scale holds all but a few pixels, with a scale if it had none; else a new series."""
    bright = bright_end(magnitude)
    if bright == 0:
        return series
    fitting = GREY_OF_FIRST / bright
    if series.scale is None:
        return dataclasses.replace(series, scale=fitting)
    clipped = np.count_nonzero(magnitude * np.float64(series.scale) > GREY_MAX) / magnitude.size
    if clipped <= _CLIPPED_TOLERATED:
        return series
    following = Series(index=series.index + SERIES_STEP, scale=fitting)
    observe(
        Warned(
            text=f"an image is too bright for the grey scale of series {series.index}: "
            f"it begins series {following.index}, whose scale is {fitting / series.scale:.3g} times that"
        )
    )
    return following
