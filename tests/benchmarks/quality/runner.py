"""One method on one scan, in a process of its own: what it takes in memory is then its own."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inrecon.errors import InreconError
from inrecon.frame import RawFrame, Request
from quality.entrants import Entrant

_STATUS = Path("/proc/self/status")
_MIB = 2**20


class MethodDied(InreconError):
    """The process of a method ended before it had an image."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a method gave: `image` ``(rows, columns)``, the stream's report, seconds from readouts to image without
    imports, the process' largest memory and how much of that came after its start, and the device's."""

    image: NDArray[np.complex64]
    report: dict[str, Any]
    seconds: float
    peak_mib: float
    grown_mib: float
    device_mib: float | None


def run_apart(raw: RawFrame, entrant: Entrant, *, device: str, hyperparameters: Path | None) -> Outcome:
    """Run `entrant` on `raw` as `inrecon replay` would.

    Raises what `inrecon.stream.reconstruct` raises, and `MethodDied` where the process ended, for lack of memory say.
    """
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(run_here, raw, entrant, device=device, hyperparameters=hyperparameters).result()
    except BrokenProcessPool as error:
        raise MethodDied(f"the process of {entrant.label} ended before it had an image") from error


def run_here(raw: RawFrame, entrant: Entrant, *, device: str, hyperparameters: Path | None) -> Outcome:
    """`run_apart` in this process: its largest memory is then that of all that this process did."""
    import torch

    from inrecon.hyperparams import HyperparameterFiles
    from inrecon.stream import choose_device, reconstruct, warm_up

    device = choose_device(device)
    files = HyperparameterFiles.load(hyperparameters)
    warm_up(device)
    before = _peak_mib()
    request = Request(method=entrant.method, preset=entrant.preset, dtype="complex", overrides=entrant.overrides)
    started = time.perf_counter()
    result = reconstruct(raw, request=request, hyperparameters=files, device=device, series={})
    seconds = time.perf_counter() - started
    peak = _peak_mib()
    return Outcome(
        image=_plane(result.images[0].data[0]),
        report=dict(result.reports[0]),
        seconds=seconds,
        peak_mib=peak,
        grown_mib=peak - before,
        device_mib=torch.cuda.max_memory_allocated() / _MIB if device == "cuda" else None,
    )


def _plane(volume: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """``(z, y, x)`` of one slice, or of one x, as ``(rows, columns)``."""
    return np.ascontiguousarray(volume[0] if volume.shape[0] == 1 else volume[:, :, 0])


def _peak_mib() -> float:
    """Largest resident memory of this process so far. Linux's own figure where there is one: getrusage's counts what
    the parent held at the fork."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) / 1024
    return getrusage(RUSAGE_SELF).ru_maxrss / 1024
