"""From pictures at twice the resolution to k-space and to what full k-space gives, as products with small matrices.

A stream needs few lines of many frames: a product makes only those, and faster than transforms of whole pictures.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.complex64]
Double = NDArray[np.complex128]


def measured(picture: Array, maps: Array, lines: NDArray[np.bool_], samples: int) -> Array:
    """Readouts ``(coils, acquired lines, samples)`` of a picture ``(2 y, 2 x)`` seen through `maps` ``(coils, 2 y, 2
    x)``, in the intensities of the matrix; `lines` ``(y,)``. Where there are more `samples` than x, readouts are
    oversampled."""
    height, width = picture.shape
    found: Array = _encode(height, height // 2)[lines] @ (maps * picture) @ _encode(width, samples).T
    return found


def combined(picture: Array, maps: Array, csm: Array, samples: int) -> Array:
    """What full k-space (`measured`) gives through maps `csm` ``(coils, y, x)``: an image ``(y, x)``."""
    height, width = picture.shape
    images = _low_pass(height, height // 2) @ (maps * picture) @ _low_pass(width, samples).T
    image: Array = (csm.conj() * images).sum(0)
    return image


def zero_filled(image: NDArray[np.complexfloating[Any, Any]], times: int) -> Double:
    """An image ``(y, x)`` at a resolution `times` as high, in the same intensities, by zero-filling of its k-space."""
    up, across = (_inverse(times * n, n, times * n) @ _forward(n, n, n) for n in image.shape)
    found: Double = up @ image @ across.T
    return found


def linear(count: int, times: int) -> NDArray[np.float64]:
    """The matrix ``(times count, count)`` that interpolates linearly, beyond the ends constantly."""
    places = (np.arange(times * count) - times * count // 2) / times + count // 2
    return np.stack([np.interp(places, np.arange(count), row) for row in np.eye(count)], axis=1)


def _forward(fine: int, orders: int, period: int) -> Double:
    k, place = np.arange(orders) - orders // 2, np.arange(fine) - fine // 2
    waves: Double = np.exp(-2j * np.pi * np.outer(k, place) / period) / period
    return waves


def _inverse(pixels: int, orders: int, period: int) -> Double:
    return _forward(pixels, orders, period).conj().T * period


@lru_cache(maxsize=16)
def _encode(fine: int, orders: int) -> Array:
    """Unitary but for intensity: of pixels twice as fine as the matrix', so half of one over the root of `orders`."""
    return (_forward(fine, orders, 2 * orders) * np.sqrt(orders)).astype(np.complex64)


@lru_cache(maxsize=16)
def _low_pass(fine: int, orders: int) -> Array:
    """From fine pixels to those of the matrix, by way of `orders` of k-space."""
    return (_inverse(fine // 2, orders, orders) @ _forward(fine, orders, 2 * orders)).astype(np.complex64)
