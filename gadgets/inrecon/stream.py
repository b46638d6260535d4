"""The way of a frame, from readouts to image, in reading order.

    acquire -> condition -> calibrate -> look up -> fit -> image

`inrecon.acquire` gives the raw frames (in the server's front process, which has no torch); everything after it happens
in `reconstruct`, the same function for a scanner on TCP and for a file that is replayed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ismrmrd
import torch

from inrecon import __version__
from inrecon.calibrate import espirit, smooth_sum_of_squares
from inrecon.condition import condition
from inrecon.errors import CalibrationFailed, FitDiverged, UnknownName
from inrecon.events import FallBack, observe
from inrecon.frame import CoilMaps, Frame, Measurement, RawFrame, Reconstruction, Request, Series
from inrecon.hyperparams import HyperparameterFiles, Resolved
from inrecon.image import to_image
from inrecon.methods import BilevelINR, CGSense, Method
from inrecon.operators import CartesianSense


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one raw frame: images to send, a report for each, and the series to hand to the next call."""

    images: tuple[ismrmrd.Image, ...]
    reports: tuple[dict[str, Any], ...]
    series: Series


def reconstruct(
    raw: RawFrame, *, request: Request, hyperparameters: HyperparameterFiles, device: str, series: Series
) -> Result:
    """One raw frame to its image.

    `series` is what the last frame of the same scan returned (or a fresh one). Raises `InreconError` kinds:
    `InvalidFrame`, `NoHyperparameters`, `InvalidHyperparameter`, `UnknownName`. A fit that diverges or calibration
    that fails does not raise: it is announced as a `FallBack` event and written into Meta and report.
    """
    clock = _Stopwatch()
    with clock("look_up"):
        entry = hyperparameters.look_up(raw.protocol)
        resolved = entry.resolve(request)
    with clock("condition"):
        measurement = condition(raw, device=device)
    problems = [
        _solve(measurement, index, method=resolved.method, clock=clock) for index in range(len(measurement.kspace))
    ]
    report = _report(raw, resolved, measurement, problems, device=device)
    with clock("image"):
        image, series = to_image(
            _volume(problems, axes=measurement.axes), raw=raw, dtype=request.dtype, series=series, meta=_meta(report)
        )
    report |= {"series": image.image_series_index, "index": image.image_index, "seconds": clock.seconds}
    return Result(images=(image,), reports=(report,), series=series)


@dataclass(frozen=True, kw_only=True)
class _Solved:
    """One 2-D problem's way: its maps, its reconstruction, and why it is not what was asked for, if it is not."""

    image: torch.Tensor
    reconstruction: Reconstruction
    maps: CoilMaps
    fallback: str | None


def _solve(measurement: Measurement, index: int, *, method: Method, clock: _Stopwatch) -> _Solved:
    """Coil maps and fit of one problem of the batch, its k-space scaled to a largest magnitude of 1."""
    kspace = measurement.kspace[index]
    scale = float(kspace.abs().max()) or 1.0
    with clock("calibrate"):
        maps = coil_maps(measurement, index)
    with clock("fit"):
        operator = CartesianSense(maps.csm, measurement.mask)
        noise_level = None if measurement.noise_level is None else measurement.noise_level / scale
        frame = Frame(kspace=operator.arrange(kspace / scale), operator=operator, maps=maps, noise_level=noise_level)
        reconstruction, fallback = _fit_or_fall_back(method, frame)
        _synchronise(kspace.device)
    # In the intensity of the coils as acquired: whether noise readouts came must not change an image's shading.
    intensity = torch.linalg.vector_norm(torch.einsum("av,vrc->arc", measurement.unmix, maps.csm), dim=0)
    image = reconstruction.image * intensity * (scale * measurement.scale)
    return _Solved(image=image, reconstruction=reconstruction, maps=maps, fallback=fallback)


def coil_maps(measurement: Measurement, index: int) -> CoilMaps:
    """ESPIRiT from the calibration block; without a usable one, maps from the smooth image itself, announced."""
    shape = (measurement.mask.shape[0], measurement.mask.shape[1])
    try:
        if measurement.calibration is None:
            raise CalibrationFailed("the scan has no fully sampled centre and no calibration lines")
        return espirit(measurement.calibration[index], shape)
    except CalibrationFailed as error:
        observe(FallBack(room="calibrate", reason=f"{error}; coil maps from the smooth sum of squares instead"))
        return smooth_sum_of_squares(measurement.kspace[index], measurement.mask)


def _fit_or_fall_back(method: Method, frame: Frame) -> tuple[Reconstruction, str | None]:
    """The method's reconstruction, or CG-SENSE's and the reason, if the fit diverged."""
    try:
        return method.fit(frame), None
    except FitDiverged as error:
        observe(FallBack(room="fit", reason=f"{error}; CG-SENSE instead"))
        return CGSense().fit(frame), str(error)


def _volume(problems: list[_Solved], *, axes: str) -> Any:
    """``(z, y, x)`` on the conditioned grid: one ``(y, x)`` image, or a batch over x of ``(z, y)`` images."""
    stacked = torch.stack([problem.image for problem in problems], 0 if axes == "yx" else 2)
    return stacked.cpu().numpy()


def _report(
    raw: RawFrame, resolved: Resolved, measurement: Measurement, problems: list[_Solved], *, device: str
) -> dict[str, Any]:
    """The facts about one image; of a batch of problems the first fall-back reason, worst losses, most iterations."""
    fits = [problem.reconstruction for problem in problems]
    validation = [fit.validation_loss for fit in fits if fit.validation_loss is not None]
    training = [fit.training_loss for fit in fits if fit.training_loss is not None]
    return {
        "slice": raw.key.slice,
        "contrast": raw.key.contrast,
        "phase": raw.key.phase,
        "repetition": raw.key.repetition,
        "set": raw.key.set,
        "version": __version__,
        "method": resolved.name,
        "entry": resolved.entry,
        "entry_sha256": resolved.sha256,
        "hyperparameters": resolved.values,
        "sources": resolved.sources,
        "device": device,
        "backend": fits[0].backend,
        "coils_acquired": raw.coils,
        "coils": measurement.kspace.shape[1],
        "acceleration": round(raw.protocol.acceleration, 3),
        "prewhitened_by": measurement.prewhitened_by,
        "coil_maps_by": problems[0].maps.estimated_by,
        "iterations": max(fit.iterations for fit in fits),
        "stopped_by": fits[0].stopped_by,
        "training_loss": max(training, default=None),
        "validation_loss": max(validation, default=None),
        "fallback": next((problem.fallback for problem in problems if problem.fallback), None),
    }


def _meta(report: dict[str, Any]) -> dict[str, str]:
    """The report as image Meta: ``inrecon_<name>``, hyperparameters one by one with their source."""
    facts = {k: v for k, v in report.items() if k not in ("hyperparameters", "sources") and v is not None}
    meta = {f"inrecon_{name}": str(value) for name, value in facts.items()}
    for name, value in report["hyperparameters"].items():
        meta[f"inrecon_hyperparameter_{name}"] = f"{value} ({report['sources'][name]})"
    return meta


@dataclass
class _Stopwatch:
    """Seconds by stage, summed over the problems of a batch."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + elapsed, 4)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def choose_device(name: str) -> str:
    """`auto`, `cpu` or `cuda` to a device that exists; raises `UnknownName` if there is no such."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise UnknownName(f"unknown device {name!r}: known are auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UnknownName("device 'cuda' was asked for, but torch sees no CUDA GPU; 'inrecon doctor' says more")
    return name


def warm_up(device: str) -> None:
    """Fit a toy frame, so that no scan waits for the device and its kernels to be loaded."""
    shape = (16, 16)
    csm = torch.ones(1, *shape, dtype=torch.complex64, device=device)
    support = torch.ones(shape, dtype=torch.bool, device=device)
    operator = CartesianSense(csm, support)
    kspace = operator.forward(csm[0])
    maps = CoilMaps(csm=csm, support=support, estimated_by="espirit")
    BilevelINR(iterations=2, levels=2).fit(Frame(kspace=kspace, operator=operator, maps=maps, noise_level=None))
    _synchronise(kspace.device)
