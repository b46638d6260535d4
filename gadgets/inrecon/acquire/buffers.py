"""Where readouts wait until their frame is complete."""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from inrecon.acquire.readout import Placed
from inrecon.acquire.scan import SAMPLE_BYTES, Encoding
from inrecon.errors import InvalidFrame
from inrecon.frame import Complex, Key, Noise, Readouts

Line = tuple[int, int]

MOST_CHANNELS = 1024
"""Of noise readouts, whose covariance has as many rows: several times what receivers have."""


class Memory:
    """Bytes that the buffers of all scans of a process may hold together, whatever thread they are filled in."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Set `size` bytes aside; raises `InvalidFrame` if that is more than is left."""
        with self._lock:
            if self._held + size > self._limit:
                raise InvalidFrame(
                    f"the scans that are being received hold {self._held / 2**30:.3g} GiB of the "
                    f"{self._limit / 2**30:.3g} GiB that there are for readouts: try again later"
                )
            self._held += size

    def give_back(self, size: int) -> None:
        """End of a loan."""
        with self._lock:
            self._held -= size


class Budget:
    """Bytes that all buffers of a scan may hold together, and lent by `memory` if that is given."""

    def __init__(self, limit: int, *, memory: Memory | None = None) -> None:
        self._limit = limit
        self._memory = memory
        self._held = 0
        self._closed = False
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Set `size` bytes aside; raises `InvalidFrame` if that is more than is left."""
        with self._lock:
            if self._closed:
                return
            if self._held + size > self._limit:
                raise InvalidFrame(
                    f"readouts that wait for the end of their frames need more than {self._limit / 2**30:.3g} GiB; "
                    "LAST_IN_SLICE or LAST_IN_REPETITION on the last readout of each frame frees them earlier"
                )
            if self._memory is not None:
                self._memory.take(size)
            self._held += size

    def give_back(self, size: int) -> None:
        """End of a loan."""
        with self._lock:
            if not self._closed:
                self._end(size)

    def close(self) -> None:
        """End of all loans, with the scan: a thread that is still at it takes and gives nothing any more."""
        with self._lock:
            self._closed = True
            self._end(self._held)

    def _end(self, size: int) -> None:
        self._held -= size
        if self._memory is not None:
            self._memory.give_back(size)


class LineBuffer:
    """Readouts by line ``(kz, ky)``, each summed over its repeats sample by sample."""

    def __init__(self, width: int, *, budget: Budget) -> None:
        self._width = width
        self._budget = budget
        self._bytes = 0
        self._sums: dict[Line, tuple[Complex, NDArray[np.int32]]] = {}
        self.repeats: Counter[Line] = Counter()
        self.readouts = 0

    def __len__(self) -> int:
        return len(self._sums)

    def __iter__(self) -> Iterator[Line]:
        return iter(self._sums)

    def add(self, line: Line, placed: Placed) -> None:
        """Add a readout to a line; raises `InvalidFrame` if the memory budget is spent."""
        if line not in self._sums:
            channels = len(placed.samples)
            size = self._width * (channels * SAMPLE_BYTES + 4)
            self._budget.take(size)
            self._bytes += size
            self._sums[line] = np.zeros((channels, self._width), np.complex64), np.zeros(self._width, np.int32)
        total, counts = self._sums[line]
        where = slice(placed.start, placed.start + placed.samples.shape[1])
        total[:, where] += placed.samples
        counts[where] += 1
        self.repeats[line] += 1
        self.readouts += 1

    def mean(self, lines: Iterable[Line], *, origin: Line = (0, 0)) -> Readouts:
        """The mean of the readouts of each of `lines`, one at least, in order of ``(kz, ky)`` and moved by `origin`."""
        lines = sorted(lines)
        kspace = np.empty((len(self._sums[lines[0]][0]), len(lines), self._width), np.complex64)
        acquired = np.empty((len(lines), self._width), np.bool_)
        for i, line in enumerate(lines):
            total, counts = self._sums[line]
            kspace[:, i] = total / np.maximum(counts, 1) if counts.max() > 1 else total
            acquired[i] = counts > 0
        return Readouts(kspace=kspace, lines=np.array(lines, np.int64) + origin, acquired=acquired)

    def release(self) -> None:
        """Forget everything."""
        self._sums.clear()
        self._budget.give_back(self._bytes)
        self._bytes = 0


class NoiseSum:
    """Covariance of noise readouts, readout by readout."""

    def __init__(self, relative_bandwidth: float, *, coil_labels: tuple[str, ...]) -> None:
        self._relative_bandwidth = relative_bandwidth
        self._coil_labels = coil_labels
        self._sum: NDArray[np.complex128] | None = None
        self._samples = 0
        self._sample_time_us = 0.0

    def add(self, samples: Complex, *, sample_time_us: float) -> None:
        """Add samples ``(coils, samples)``; raises `InvalidFrame` if the number of coils changes, or is absurd."""
        if len(samples) > MOST_CHANNELS:
            raise InvalidFrame(f"a noise readout of {len(samples)} channels; at most {MOST_CHANNELS} are taken")
        wide = samples.astype(np.complex128)
        product = wide @ wide.conj().T
        if self._sum is None:
            self._sum, self._sample_time_us = product, sample_time_us
        elif self._sum.shape != product.shape:
            raise InvalidFrame(f"noise readouts of {len(product)} channels after some of {len(self._sum)}")
        else:
            self._sum += product
        self._samples += samples.shape[1]

    def noise(self) -> Noise | None:
        """What is known so far, or None."""
        if self._sum is None:
            return None
        return Noise(
            covariance=self._sum / self._samples,
            samples=self._samples,
            sample_time_us=self._sample_time_us,
            relative_bandwidth=self._relative_bandwidth,
            coil_labels=self._coil_labels,
        )


class CalibrationStore:
    """Calibration scans of their own, by the counters they came with, in raw encoding steps."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._buffers: dict[Key, LineBuffer] = {}
        self._means: dict[Key, tuple[Readouts | None, int]] = {}
        self._used: set[tuple[int, int]] = set()

    def add(self, key: Key, step: Line, placed: Placed, *, width: int) -> None:
        """Add a calibration readout; raises `InvalidFrame` if the memory budget is spent."""
        if key not in self._buffers:
            self._buffers[key] = LineBuffer(width, budget=self._budget)
        self._buffers[key].add(step, placed)
        self._means.pop(key, None)

    def serves(self, key: Key) -> bool:
        """Whether there is a calibration scan that `find` would give a frame."""
        return any((k.slice, k.encoding_space) == (key.slice, key.encoding_space) for k in self._buffers)

    def find(self, key: Key, encoding: Encoding) -> tuple[Readouts | None, int]:
        """The calibration scan for a frame, and how many of its lines fall outside the encoded matrix.

        The frame's own; or of the same slice and encoding space the one that shares most counters, the latest of
        those. Scans that a later repetition has replaced are forgotten.
        """
        near = [k for k in self._buffers if (k.slice, k.encoding_space) == (key.slice, key.encoding_space)]
        if not near:
            return None, 0
        self._used.add((key.slice, key.encoding_space))
        best = max(reversed(near), key=lambda k: (k == key, _shared(k, key)))
        for old in near:
            if old.repetition < best.repetition and replace(old, repetition=best.repetition) == best:
                self._buffers.pop(old).release()
                self._means.pop(old, None)
        if best not in self._means:
            self._means[best] = _centred(self._buffers[best], encoding)
        return self._means[best]

    def unused(self) -> int:
        """How many readouts belong to a slice and encoding space of which no frame found them."""
        return sum(b.readouts for k, b in self._buffers.items() if (k.slice, k.encoding_space) not in self._used)


def _shared(one: Key, other: Key) -> int:
    return (one.contrast == other.contrast) + (one.phase == other.phase) + (one.set == other.set)


def _centred(buffer: LineBuffer, encoding: Encoding) -> tuple[Readouts | None, int]:
    """A calibration scan on the encoded grid.

    Its steps may count with the image's (then the header's center lies among them) or from zero (then it is taken
    to be symmetric about the centre of k-space).
    """
    _, y, z = encoding.geometry.encoded_matrix
    origin = []
    for axis, (size, limits) in enumerate(((z, encoding.step_2), (y, encoding.step_1))):
        low, high = min(line[axis] for line in buffer), max(line[axis] for line in buffer)
        center = limits.center if low <= limits.center <= high else (low + high + 1) // 2
        origin.append(size // 2 - center)
    inside = [(kz, ky) for kz, ky in buffer if 0 <= kz + origin[0] < z and 0 <= ky + origin[1] < y]
    mean = buffer.mean(inside, origin=(origin[0], origin[1])) if inside else None
    return mean, len(buffer) - len(inside)
