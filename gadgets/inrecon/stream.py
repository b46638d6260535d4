"""The way of a frame, from readouts to image, in reading order.

    acquire -> condition -> calibrate -> look up -> fit -> image

`inrecon.acquire` gives the raw frames (in the server's front process, which has no torch); everything after it happens
in `reconstruct`, the same function for a scanner on TCP and for a file that is replayed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ismrmrd
import torch

from inrecon import __version__
from inrecon.calibrate import espirit, smooth_sum_of_squares
from inrecon.condition import MOST_COILS, condition
from inrecon.deadline import time_left, time_limit
from inrecon.errors import CalibrationFailed, InreconError, NoFit, UnknownName
from inrecon.events import FallBack, observe
from inrecon.frame import (
    CoilMaps,
    Complex,
    Frame,
    Measurement,
    RawFrame,
    Reconstruction,
    Request,
    Series,
    SeriesBySpace,
)
from inrecon.hyperparams import HyperparameterFiles, Resolved
from inrecon.image import to_image
from inrecon.methods import Auto, CGSense, Method, hold_out
from inrecon.methods.held_out import HELD_OUT
from inrecon.methods.method import synchronise
from inrecon.operators import CartesianSense

Report = dict[str, Any]
"""The facts about one image by name, ready for JSON."""

FIT_SHARE = 0.93
"""Of the time that is left when a fit begins, what is the fit's; the rest is for judging it and for the image."""
COMPARED = "cg_sense"
COMPARED_SPACE = 10_000
"""From an encoding space to the one under which images for comparison have their series."""
LINEAR: Report = {
    "method": COMPARED,
    "hyperparameters": {},
    "sources": {},
    "iterations": None,
    "stopped_by": None,
    "training_loss": None,
    "validation_loss": None,
    "remark": "for comparison",
    "fallback": None,
}
"""What the report of such an image says in place of what is said of the fit."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one raw frame: images to send, a report for each, and the series to hand to the next call."""

    images: tuple[ismrmrd.Image, ...]
    reports: tuple[Report, ...]
    series: SeriesBySpace


def reconstruct(
    raw: RawFrame,
    *,
    request: Request,
    hyperparameters: HyperparameterFiles,
    device: str,
    series: SeriesBySpace,
    seconds: float | None = None,
    max_coils: int = MOST_COILS,
    no_fit: str | None = None,
    reasons: Sequence[str] = (),
) -> Result:
    """One raw frame to its image, and to CG-SENSE's as well if that is asked for.

    `series` is what the last frame of the same scan returned (empty for the first). The fit ends in time for an image
    after `seconds`, with what it has by then. Coils are compressed to at most `max_coils`. `no_fit` says why CG-SENSE
    shall stand in for the fit, `reasons` what else is not as was asked for. Raises `InreconError` kinds:
    `InvalidFrame`, `NoHyperparameters`, `InvalidHyperparameter`, `UnknownName`. A fit that diverges or comes too late,
    or calibration that fails, does not raise: it is announced as a `FallBack` event and written into Meta and report.
    """
    clock = Stopwatch()
    with clock("look_up"):
        entry = hyperparameters.look_up(raw.protocol)
        resolved = entry.resolve(request)
    with time_limit(seconds):
        with clock("condition"):
            measurement = condition(raw, device=device, max_coils=max_coils)
        method, compared = resolved.method, request.compare and resolved.name != COMPARED
        for reason in reasons:
            observe(FallBack(room="memory", reason=reason))
        problems = _solve(measurement, method=method, no_fit=no_fit, compared=compared, clock=clock)
    report = report_of(raw, resolved, measurement, problems, device=device, reasons=reasons)
    return published(raw, measurement, problems, report=report, request=request, series=series, clock=clock)


@dataclass(frozen=True, kw_only=True)
class Solved:
    """One 2-D problem's way: its maps, its reconstruction, and what of it is not what was asked for; `linear` is
    CG-SENSE's image, if that was asked for, too."""

    image: torch.Tensor
    linear: torch.Tensor | None
    reconstruction: Reconstruction
    maps: CoilMaps
    fallbacks: tuple[str, ...]


def published(
    raw: RawFrame,
    measurement: Measurement,
    problems: Sequence[Solved],
    *,
    report: Report,
    request: Request,
    series: SeriesBySpace,
    clock: Stopwatch,
    clips: bool = False,
) -> Result:
    """The image of a frame whose `problems` are solved, and CG-SENSE's beside it where they have that; `clips` is that
    of `to_image`."""
    space = raw.key.encoding_space
    volumes = {space: (_volume([p.image for p in problems], axes=measurement.axes), report)}
    linear = [p.linear for p in problems if p.linear is not None]
    if linear:
        volumes[COMPARED_SPACE + space] = _volume(linear, axes=measurement.axes), report | LINEAR
    images, reports = [], []
    for number, (volume, facts) in volumes.items():
        with clock("image"):
            image, used = to_image(
                volume,
                raw=raw,
                dtype=request.dtype,
                series=series.get(number, Series(index=1 + number)),
                meta=_meta(facts | {"seconds": clock.seconds}, series_name=request.series_name),
                clips=clips,
            )
        series = {**series, number: used}
        images.append(image)
        place = {"series": image.image_series_index, "index": image.image_index}
        reports.append(facts | place | {"seconds": dict(clock.seconds)})
    return Result(images=tuple(images), reports=tuple(reports), series=series)


def _solve(
    measurement: Measurement, *, method: Method, no_fit: str | None, compared: bool, clock: Stopwatch
) -> list[Solved]:
    """Coil maps and fit of each problem of the batch."""
    fallbacks: list[list[str]] = [[] for _ in measurement.kspace]
    frames, scales = _frames(measurement, fallbacks=fallbacks, clock=clock)

    def finished(image: torch.Tensor, frame: Frame, scale: float) -> torch.Tensor:
        return as_acquired(measurement, frame.maps.csm, image, scale=scale)

    with clock("fit"):
        if no_fit is None and time_left() <= 0:
            no_fit = "no time was left for the fit"
        fits: list[Reconstruction | InreconError] = [NoFit(no_fit or "")] * len(frames)
        if no_fit is None:
            with time_limit(FIT_SHARE * time_left()):
                fits = method.fit_slices(frames)
        tried = zip(frames, fits, fallbacks, strict=True)
        chosen = [_guarded(frame, fit, fallbacks=reasons) for frame, fit, reasons in tried]
        synchronise(measurement.kspace.device)
    return [
        Solved(
            image=finished(fit.image, frame, scale),
            linear=finished(CGSense().fit(frame).image, frame, scale) if compared else None,
            reconstruction=fit,
            maps=frame.maps,
            fallbacks=tuple(reasons),
        )
        for fit, frame, scale, reasons in zip(chosen, frames, scales, fallbacks, strict=True)
    ]


def frames_of(raw: RawFrame, *, device: str) -> list[Frame]:
    """The frames that a method would fit for `raw`: one, or one for each plane across the readout of a volume.

    Raises `InvalidFrame` kinds, like `condition`.
    """
    measurement = condition(raw, device=device)
    frames, _ = _frames(measurement, fallbacks=[[] for _ in measurement.kspace], clock=Stopwatch())
    return frames


def _frames(
    measurement: Measurement, *, fallbacks: Sequence[list[str]], clock: Stopwatch
) -> tuple[list[Frame], list[float]]:
    """Each problem of the batch with its coil maps, k-space scaled to a largest magnitude of 1; and these scales."""
    with clock("calibrate"):
        maps = [coil_maps(measurement, index, fallbacks=reasons) for index, reasons in enumerate(fallbacks)]
    scales = [float(kspace.abs().max()) or 1.0 for kspace in measurement.kspace]
    with clock("fit"):
        both = enumerate(zip(maps, scales, strict=True))
        return [_frame(measurement, index, maps=csm, scale=scale) for index, (csm, scale) in both], scales


def _frame(measurement: Measurement, index: int, *, maps: CoilMaps, scale: float) -> Frame:
    """One problem of the batch, some of its samples held out to judge the fit."""
    operator = CartesianSense(maps.csm, measurement.mask)
    noise_level = None if measurement.noise_level is None else measurement.noise_level / scale
    kspace = operator.arrange(measurement.kspace[index] / scale)
    frame = Frame(kspace=kspace, operator=operator, maps=maps, noise_level=noise_level)
    return hold_out(frame, HELD_OUT, seed=0)


def as_acquired(
    measurement: Measurement, csm: torch.Tensor, image: torch.Tensor, *, scale: float = 1.0
) -> torch.Tensor:
    """`image` times `scale`, of the measurement's scale, as `combined`, in the units of the coils as acquired."""
    return combined(measurement, csm, image) * (scale * measurement.scale)


def combined(measurement: Measurement, csm: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """The image ``(rows, columns)`` that is sent of `image`, in the intensity of the coils as acquired.

    Of several sets of coil maps, `csm` ``(sets, coils, rows, columns)`` and `image` ``(sets, rows, columns)``, the
    root sum of squares over the coils as acquired of what the sets give them together, with the phase of the first.
    """
    if csm.ndim == 3:
        return image * intensity(measurement, csm)
    coil_images = torch.einsum("av,svrc,src->arc", measurement.unmix, csm, image)
    return torch.polar(torch.linalg.vector_norm(coil_images, dim=0), image[0].angle())


def intensity(measurement: Measurement, csm: torch.Tensor) -> torch.Tensor:
    """What takes an image to the intensity of the coils as acquired: whether noise readouts came must not change it."""
    return torch.linalg.vector_norm(torch.einsum("av,vrc->arc", measurement.unmix, csm), dim=0)


def coil_maps(measurement: Measurement, index: int, *, fallbacks: list[str]) -> CoilMaps:
    """ESPIRiT from the calibration block; without a usable one, maps from the smooth image itself, as a fall-back."""
    shape = (measurement.mask.shape[0], measurement.mask.shape[1])
    try:
        if measurement.calibration is None:
            raise CalibrationFailed("the scan has no fully sampled centre and no calibration lines")
        return espirit(measurement.calibration[index], shape)
    except CalibrationFailed as error:
        fall_back(
            "calibrate", f"{error}; coil maps from the smooth sum of squares instead, which leave aliasing", fallbacks
        )
        return smooth_sum_of_squares(measurement.kspace[index], measurement.mask)


def _guarded(frame: Frame, fit: Reconstruction | InreconError, *, fallbacks: list[str]) -> Reconstruction:
    """`fit`, or CG-SENSE's image if the fit diverged or, by a judgement of its own, is further than CG-SENSE from the
    samples held out."""
    if isinstance(fit, InreconError):
        fall_back("fit", f"{fit}; CG-SENSE instead", fallbacks)
        return CGSense().fit(frame)
    if fit.validation_loss is None:
        return fit
    linear = frame.loss(CGSense().fit(frame.training).image)
    if linear is None or fit.validation_loss <= linear:
        return fit
    reason = f"held-out samples are nearer to CG-SENSE (loss {linear:.4g}) than to the fit ({fit.validation_loss:.4g})"
    fall_back("fit", f"{reason}; CG-SENSE instead", fallbacks)
    return CGSense().judged(frame)


def fall_back(room: str, reason: str, fallbacks: list[str]) -> None:
    """Announce that `room` took another way, and note it for report and Meta."""
    observe(FallBack(room=room, reason=reason))
    fallbacks.append(reason)


def _volume(images: Sequence[torch.Tensor], *, axes: str) -> Complex:
    """``(z, y, x)`` on the conditioned grid: one ``(y, x)`` image, or a batch over x of ``(z, y)`` images."""
    stacked = torch.stack(list(images), 0 if axes == "yx" else 2)
    volume: Complex = stacked.cpu().numpy()
    return volume


def report_of(
    raw: RawFrame,
    resolved: Resolved,
    measurement: Measurement,
    problems: Sequence[Solved],
    *,
    device: str,
    reasons: Sequence[str],
) -> Report:
    """The facts about one image; of a batch of problems all different ways, the worst losses, most iterations."""
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
        "backend": _different(fit.backend for fit in fits),
        "coils_acquired": raw.coils,
        "coils": measurement.kspace.shape[1],
        "acceleration": round(raw.protocol.acceleration, 3),
        "prewhitened_by": measurement.prewhitened_by,
        "coil_maps_by": _different(problem.maps.estimated_by for problem in problems),
        "coil_map_sets": max(problem.maps.sets for problem in problems),
        "iterations": max(fit.iterations for fit in fits),
        "stopped_by": _different(fit.stopped_by for fit in fits),
        "training_loss": max(training, default=None),
        "validation_loss": max(validation, default=None),
        "remark": _different(fit.remark for fit in fits if fit.remark) or None,
        "fallback": _different([*reasons, *(r for problem in problems for r in problem.fallbacks)]) or None,
    }


def _different(texts: Iterable[str]) -> str:
    """Each of `texts` once, the first few of them: planes of a volume may have gone different ways."""
    distinct = list(dict.fromkeys(texts))
    more = [f"and {len(distinct) - 3} more"] if len(distinct) > 3 else []
    return "; ".join(distinct[:3] + more)


def _meta(report: Report, *, series_name: str | None) -> dict[str, str]:
    """The report as image Meta: ``inrecon_<name>``, hyperparameters one by one with their source; the name of the
    series as scanners read it."""
    nested = ("hyperparameters", "sources", "seconds")
    facts = {k: v for k, v in report.items() if k not in nested and v is not None}
    facts |= {f"seconds_{stage}": seconds for stage, seconds in report["seconds"].items()}
    meta = {f"inrecon_{name}": str(value) for name, value in facts.items()}
    for name, value in report["hyperparameters"].items():
        meta[f"inrecon_hyperparameter_{name}"] = f"{value} ({report['sources'][name]})"
    if series_name is not None:
        meta["SeriesDescriptionAdditional"] = series_name
    return meta


@dataclass
class Stopwatch:
    """Seconds by stage, summed over the problems of a batch."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """The time that the ``with`` block takes is of `stage`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + elapsed, 4)


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
    frame = Frame(kspace=kspace, operator=operator, maps=maps, noise_level=None)
    Auto(iterations=2, levels=2).fit(hold_out(frame, HELD_OUT, seed=0))
    synchronise(kspace.device)
