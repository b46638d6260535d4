"""A frame to its image whatever fails on the way: by all means that there are, and marked if not as asked for."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from inrecon import stream
from inrecon.condition import MOST_COILS
from inrecon.errors import (
    CalibrationFailed,
    DeviceBroken,
    FitDiverged,
    InreconError,
    InvalidFrame,
    ReconstructionFailed,
    first_line,
)
from inrecon.frame import RawFrame, Request, SeriesBySpace
from inrecon.hyperparams import HyperparameterFiles
from inrecon.live import Stream
from inrecon.stream import Result

log = logging.getLogger(__name__)

FRAME_ERRORS = (InvalidFrame, CalibrationFailed, FitDiverged, ReconstructionFailed)
"""What `reconstruct` raises that costs a frame, and says nothing of others."""
FEW_COILS = 6
"""To how many coils a frame is compressed that did not fit into memory."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A way to make an image: where, with how many coils at most, and with a fit or with CG-SENSE in its place."""

    device: str
    max_coils: int = MOST_COILS
    fits: bool = True


def reconstruct(
    raw: RawFrame,
    *,
    request: Request,
    hyperparameters: HyperparameterFiles,
    device: str,
    series: SeriesBySpace,
    due: float | None = None,
    no_fit: str | None = None,
    live: Stream | None = None,
) -> Result:
    """`stream.reconstruct`, and again in another way where it fails for reasons that are not the sender's; frames of an
    interventional stream go the way of `live` first.

    What does not fit into memory is tried with fewer coils, then on the CPU. Where that does not help, or the fit fails
    in a way that nobody thought of, CG-SENSE's image is made instead, and marked; at once if `no_fit` says why. `due`
    is the time of the monotonic clock at which the image is wanted; without it, the request's deadline counts from now.
    Raises what `stream.reconstruct` does; `ReconstructionFailed` if nothing helps; `DeviceBroken` if the device is of
    no use to this process any more.
    """
    if due is None and request.deadline_s is not None:
        due = time.monotonic() + request.deadline_s
    chosen = stream.choose_device(device)
    ways = ways_for(chosen, fits=no_fit is None, live=live is not None)
    way, reasons = next(ways), list[str]()
    while True:
        seconds = None if due is None else due - time.monotonic()
        try:
            if live is not None and way.fits:
                return live.reconstruct(
                    raw, request=request, hyperparameters=hyperparameters, series=series, seconds=seconds
                )
            return stream.reconstruct(
                raw,
                request=request,
                hyperparameters=hyperparameters,
                device=way.device,
                series=series,
                seconds=seconds,
                max_coils=way.max_coils,
                no_fit=None if way.fits else no_fit,
                reasons=reasons,
            )
        except InreconError:
            raise
        except Exception as error:
            log.exception("an attempt at a reconstruction failed")
            failure = error
        if _is_broken(failure):
            raise DeviceBroken(f"the device {way.device!r} is out of order: {_in_words(failure)}") from failure
        if live is not None:
            live.forget(raw)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        following = next((other for other in ways if not other.fits or _out_of_memory(failure)), None)
        if following is None:
            raise ReconstructionFailed(f"the reconstruction failed: {_in_words(failure)}") from failure
        way = following
        if way.fits:
            how = "on the CPU" if way.device != chosen else f"with {way.max_coils} coils"
            reasons = [f"the frame did not fit into memory; reconstructed {how} instead"]
        else:
            no_fit = no_fit or f"the fit failed: {_in_words(failure)}"


def ways_for(device: str, *, fits: bool, live: bool = False) -> Iterator[Attempt]:
    """All ways, the best first; the last one is without a fit, and the only other one where the next frame is due."""
    yield Attempt(device=device, fits=fits)
    if fits and not live:
        yield Attempt(device=device, max_coils=FEW_COILS)
        if device != "cpu":
            yield Attempt(device="cpu")
    yield Attempt(device="cpu", max_coils=FEW_COILS, fits=False)


def _is_broken(error: BaseException) -> bool:
    """Whether a device has failed in a way that leaves this process no use of it: hardware, or a kernel of a GPU."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error) and not _out_of_memory(error)


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory, of a device or of the machine, was not enough."""
    told = str(error).lower()
    memory = "out of memory" in told or "allocate memory" in told or "not enough memory" in told
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and memory)


def _in_words(error: BaseException) -> str:
    """An error that is none of inrecon's own: torch's and the system's say what is wrong, others are bugs."""
    if isinstance(error, RuntimeError | MemoryError | OSError):
        return first_line(error)[:300]
    return f"internal error ({type(error).__name__}); the log says more"
