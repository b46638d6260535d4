"""Noise covariances in SFNDAM, the form in which Gadgetron keeps them: bytes <-> `Noise`. Nothing here does I/O.

Magic bytes and version, type of the numbers, number of axes, their sizes, length of a JSON document, the array
(row-major), the document; all numbers are little-endian (``io/sfndam.h`` and ``NoiseAdjustGadget.h`` of Gadgetron 4.7).
"""

from __future__ import annotations

import json
import struct
from math import isfinite, prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from inrecon.errors import InreconError
from inrecon.frame import Noise

MOST_BYTES = 2 << 20
"""The most that is read or written: 350 coils or so."""

_MAGIC = b"SFNDAM\1\0\0\0"
_HEAD = struct.Struct("<II2QQ")  # type, axes, sizes, length of the document
_DTYPES: dict[int, np.dtype[Any]] = {7: np.dtype("<c8"), 8: np.dtype("<c16")}
# Sums in single precision, as Gadgetron makes them, were within 3e-7; whitening copes with eigenvalues of -1e-6.
_ROUNDING = 1e-6
_LARGEST_DEVIATION = 1e15


class InvalidNoise(InreconError):
    """The bytes are not a noise covariance in SFNDAM; the text says why."""


def serialise_noise(noise: Noise, precision: Literal["single", "double"], **facts: str) -> bytes:
    """`noise` in SFNDAM, `facts` added to its document; raises `InvalidNoise` if `parse_noise` would refuse it.

    Gadgetron reads ``single``; ``double`` loses nothing.
    """
    code = 7 if precision == "single" else 8
    document = {
        "channels": len(noise.covariance),
        "labels": noise.coil_labels,
        "noiseDwellTimeUs": noise.sample_time_us,
        "receiverNoiseBandwidth": noise.relative_bandwidth,
        "sampleCount": noise.samples,
        **facts,
    }
    meta = json.dumps(document).encode()
    size = len(_MAGIC) + _HEAD.size + noise.covariance.size * _DTYPES[code].itemsize + len(meta)
    if size > MOST_BYTES:
        raise InvalidNoise(f"with its {len(noise.covariance)} coils it takes {size} bytes, more than {MOST_BYTES}")
    _check_covariance(noise.covariance)
    head = _HEAD.pack(code, 2, *noise.covariance.shape, len(meta))
    return b"".join((_MAGIC, head, noise.covariance.astype(_DTYPES[code]).tobytes(), meta))


def parse_noise(data: bytes) -> tuple[Noise, dict[str, Any]]:
    """The noise in `data` and its document; raises `InvalidNoise`, and nothing else, for any other bytes."""
    if len(data) > MOST_BYTES or not data.startswith(_MAGIC) or len(data) < len(_MAGIC) + _HEAD.size:
        raise InvalidNoise("it is too large, too short, or not SFNDAM of version 1")
    code, axes, *shape, meta_length = _HEAD.unpack_from(data, len(_MAGIC))
    dtype = _DTYPES.get(code)
    if dtype is None or axes != 2 or shape[0] != shape[1] or shape[0] < 1:
        raise InvalidNoise("its array is not a square matrix of complex numbers")
    start = len(_MAGIC) + _HEAD.size
    end = start + prod(shape) * dtype.itemsize
    if end + meta_length != len(data):
        raise InvalidNoise(f"it declares {end + meta_length} bytes and has {len(data)}")
    document = _document(data[end:])
    covariance = np.frombuffer(data[start:end], dtype).reshape(shape).astype(np.complex128)
    _check_covariance(covariance)
    samples, labels = document.get("sampleCount"), document.get("labels", [])
    if type(samples) is not int or samples < 1:
        raise InvalidNoise("its number of samples is not a whole number from 1 on")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise InvalidNoise("its coil labels are not a list of names")
    noise = Noise(
        covariance=covariance,
        samples=samples,
        sample_time_us=_measure(document, "noiseDwellTimeUs"),
        relative_bandwidth=_measure(document, "receiverNoiseBandwidth"),
        coil_labels=tuple(labels),
    )
    return noise, document


def _document(meta: bytes) -> dict[str, Any]:
    try:
        document = json.loads(meta)
    except (ValueError, RecursionError) as error:
        raise InvalidNoise("its document is not JSON") from error
    if not isinstance(document, dict):
        raise InvalidNoise("its document is not a JSON object")
    return document


def _measure(document: dict[str, Any], name: str) -> float:
    value = document.get(name)
    if not isinstance(value, int | float) or not 0 <= value < 1e9 or not isfinite(value):
        raise InvalidNoise(f"its {name} is not a number from 0 on")
    return float(value)


def _check_covariance(covariance: NDArray[np.complex128]) -> None:
    """Raise `InvalidNoise` for a matrix that is no covariance: it might have no Cholesky factor."""
    with np.errstate(all="ignore"):  # what overflows fails the comparisons
        deviation = np.sqrt(covariance.diagonal().real)
        scale = np.where(deviation > 0, deviation, 1)
        correlation = covariance / scale / scale[:, None]
        sound = (
            0 <= deviation.max() < _LARGEST_DEVIATION
            and abs(correlation).max() < 1 + _ROUNDING
            and abs(correlation - correlation.conj().T).max() < _ROUNDING
            and np.linalg.eigvalsh(correlation).min() > -_ROUNDING
        )
    if not sound:
        raise InvalidNoise("its matrix is not a covariance: Hermitian, with no negative eigenvalue")
