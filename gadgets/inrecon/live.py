"""The way of a frame of an interventional stream, from readouts to image, in reading order.

    acquire -> condition and coil maps as the prior has them -> fit what differs from the prior -> image

The prior is an image of the same slice: the first fully sampled frame, the mean of the first few frames where none is,
or that of an earlier scan. Frames that cannot have one go the way of a scan's (`stream.reconstruct`).
"""

from __future__ import annotations

import dataclasses
import math
import pickle
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from inrecon import stream
from inrecon.acquire import Place
from inrecon.calibrate import widened
from inrecon.condition import Conditioning, conditioned
from inrecon.deadline import time_limit
from inrecon.errors import FitDiverged, InvalidFrame
from inrecon.events import Warned, observe
from inrecon.frame import (
    CoilMaps,
    Complex,
    Frame,
    Key,
    Live,
    Measurement,
    RawFrame,
    Readouts,
    Reconstruction,
    Request,
    SeriesBySpace,
)
from inrecon.hyperparams import HyperparameterFiles
from inrecon.methods import CGSense, ResidualTV, hold_out
from inrecon.methods.residual import HELD_OUT, ResidualMethod, Tracker
from inrecon.operators import ColumnSense

LINEAR_WEIGHT = 0.01
"""Of the closed-form SENSE image that a fit must be nearer to the held-out samples than."""
MARGIN = 0.03
"""Of the field of view, by which coil maps are widened for what moves to where nothing was."""
ALONE = ResidualTV(displacement=0, tv_weight=0.1, iterations=100)
"""For frames without a prior. With the weight of differences, 0.2, they are 0.8 to 1.1 dB worse."""
CLEARLY = 0.9
"""By what factor the held-out loss must fall for a prior to be moved as a whole."""
STALE = 1.5
"""By what factor a held-out loss exceeds the median so far when the prior is put in question."""
REMEMBERED = 16
STALE_FRAMES = 3
"""For how many frames in a row an image without the prior must be better before a new one is made: a deep breath goes
by, and what comes after it is nearer to the old one."""


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What the frames of a slice are compared with: `image` and `maps` in the scale and with the coils that
    `conditioning` gives; `source` in words."""

    place: Place
    conditioning: Conditioning
    maps: CoilMaps
    image: torch.Tensor
    source: str
    fallbacks: tuple[str, ...] = ()

    def why_not(self, raw: RawFrame) -> str:
        """What the slice of `raw` has not in common with this one; nothing if it has all."""
        if raw.coils != self.conditioning.mixing.shape[1]:
            return f"has {raw.coils} coils after {self.conditioning.mixing.shape[1]}"
        return "" if self.place.is_near(Place.of(raw)) else "has moved"

    def on(self, device: str) -> Prior:
        """The same on `device`."""
        maps, found = self.maps, self.conditioning
        return dataclasses.replace(
            self,
            image=self.image.to(device),
            maps=dataclasses.replace(maps, csm=maps.csm.to(device), support=maps.support.to(device)),
            conditioning=dataclasses.replace(found, mixing=found.mixing.to(device), unmix=found.unmix.to(device)),
        )


class Stream:
    """All slices of one stream, in the process that reconstructs it.

    What must not be lost with the process are the `priors`, as bytes that another process can go on with.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._slices: dict[Key, Slice] = {}
        self._kept: dict[Key, Prior] = {}
        self.priors: dict[Key, bytes] = {}

    def restore(self, priors: Mapping[Key, bytes]) -> None:
        """Go on with `priors` of slices that this process has not seen yet."""
        for key, prior in priors.items():
            self.priors.setdefault(key, prior)

    def forget(self, raw: RawFrame) -> None:
        """Begin again with the next frame of this slice, as something has gone wrong with it."""
        self._slices.pop(_of_any_repetition(raw), None)
        self.priors.pop(_of_any_repetition(raw), None)

    def reconstruct(
        self,
        raw: RawFrame,
        *,
        request: Request,
        hyperparameters: HyperparameterFiles,
        series: SeriesBySpace,
        seconds: float | None = None,
    ) -> stream.Result:
        """As `stream.reconstruct`, for a frame of a stream; raises the same."""
        clock = stream.Stopwatch()
        with clock("look_up"):
            entry = hyperparameters.look_up(raw.protocol)
            resolved = entry.resolve(request)
        method = resolved.method
        if not isinstance(method, ResidualMethod) or not _can_have_prior(raw):
            if isinstance(method, ResidualMethod) and request.method is None:
                request = dataclasses.replace(request, live=None)  # what a scan would get
            return stream.reconstruct(
                raw,
                request=request,
                hyperparameters=hyperparameters,
                device=self.device,
                series=series,
                seconds=seconds,
            )
        with time_limit(None if seconds is None else stream.FIT_SHARE * seconds), clock("fit"):
            followed = self._slice(raw, method, request).next(raw)
        self._keep(raw, followed.prior)
        measurement, frame, fit = followed.measurement, followed.frame, followed.fit
        csm = frame.maps.csm
        linear = CGSense().fit(frame).image if request.compare else None
        solved = stream.Solved(
            image=stream.as_acquired(measurement, csm, fit.image, scale=1.0),
            linear=None if linear is None else stream.as_acquired(measurement, csm, linear, scale=1.0),
            reconstruction=fit,
            maps=frame.maps,
            fallbacks=followed.fallbacks,
        )
        facts = stream.report_of(raw, resolved, measurement, [solved], device=self.device, reasons=())
        return stream.published(
            raw,
            measurement,
            [solved],
            report=facts | {"prior": followed.prior.source},
            request=request,
            series=series,
            clock=clock,
        )

    def _slice(self, raw: RawFrame, method: ResidualMethod, request: Request) -> Slice:
        """That of `raw`, with all that is known of it."""
        live = request.live or Live()
        key = _of_any_repetition(raw)
        found = self._slices.get(key)
        if found is None or found.method != method:
            found = Slice(method=method, prior_frames=live.prior_frames, device=self.device)
            if key in self.priors:
                prior: Prior = pickle.loads(self.priors[key])  # noqa: S301  pickled by this program
                found.prior = self._kept[key] = prior.on(self.device)
            self._slices[key] = found
        return found

    def _keep(self, raw: RawFrame, prior: Prior) -> None:
        """Note a prior that is new."""
        key = _of_any_repetition(raw)
        if self._kept.get(key) is not prior:
            self._kept[key] = prior
            self.priors[key] = pickle.dumps(prior.on("cpu"))


@dataclass(frozen=True, kw_only=True)
class Followed:
    """What became of a frame: the problem as it was solved, its image in the scale of the frame's `measurement`."""

    measurement: Measurement
    frame: Frame
    fit: Reconstruction
    prior: Prior
    fallbacks: tuple[str, ...]


@dataclass
class Slice:
    """One slice of a stream, frame after frame.

    `prior_frames` is of how many frames a prior is the mean, where none is fully sampled.
    """

    method: ResidualMethod
    prior_frames: int
    device: str
    prior: Prior | None = None
    _gathered: list[RawFrame] = field(default_factory=list)
    _tracker: Tracker | None = None
    _losses: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _refused: list[RawFrame] = field(default_factory=list)

    def next(self, raw: RawFrame) -> Followed:
        """The image of `raw`, and what it changes for the frames after it: nothing if it raises `InvalidFrame`."""
        if not raw.imaging.kspace.any():
            raise InvalidFrame("the frame's samples are all zero")
        if self.prior is not None and (reason := self.prior.why_not(raw)):
            observe(Warned(text=f"slice {raw.key.slice} {reason}: a new prior is made"))
            self.forget()
        if is_complete(raw):
            self._gathered.clear()
            return self._begin(raw, f"the fully sampled frame of repetition {raw.key.repetition}")
        if self.prior is None or self._gathered:
            gathered = [*self._gathered, raw]
            frames = len(gathered)
            followed = self._begin(mean_of(gathered), _mean_in_words(gathered))
            self._gathered = gathered if frames < self.prior_frames else []
            if frames == 1:
                return followed
        return self._follow(raw)

    def forget(self) -> None:
        """Begin again with the next frame."""
        self.prior, self._tracker = None, None
        self._gathered.clear()
        self._losses.clear()
        self._refused.clear()

    def _begin(self, raw: RawFrame, source: str) -> Followed:
        """Make `raw` the prior; it is its own image. What later frames need is made now, while none is waited for."""
        followed = begin(raw, source=source, device=self.device)
        self.prior = followed.prior
        self._tracker = self.method.tracker(dataclasses.replace(followed.frame, prior=self.prior.image))
        self._losses.clear()
        return followed

    def _follow(self, raw: RawFrame) -> Followed:
        if self.prior is None:
            raise RuntimeError("there is no prior yet")
        measurement, frame = problem(raw, self.prior)
        if self._tracker is None:
            self._tracker = self.method.tracker(frame)
        tracker, fallbacks = self._tracker, list(self.prior.fallbacks)
        try:
            fit = tracker.follow(frame)
        except FitDiverged as error:
            self._tracker = None
            stream.fall_back("fit", f"{error}; SENSE instead", fallbacks)
            image = tracker.linear(frame, weight=LINEAR_WEIGHT)
            fit = Reconstruction(image=image, iterations=1, stopped_by="closed form")
        if self._is_doubtful(fit):
            fit = self._again(raw, frame, fit, fallbacks)
        else:
            self._refused.clear()
        trial = tracker.linear(frame.training, weight=LINEAR_WEIGHT)
        linear, loss = frame.loss(trial), fit.validation_loss
        if linear is not None and loss is not None and linear < loss:
            reason = f"held-out samples are nearer to SENSE (loss {linear:.4g}) than to the fit ({loss:.4g})"
            stream.fall_back("fit", f"{reason}; SENSE instead", fallbacks)
            image = tracker.linear(frame, weight=LINEAR_WEIGHT)
            fit = dataclasses.replace(fit, image=image, trial=trial, validation_loss=linear)
        return Followed(measurement=measurement, frame=frame, fit=fit, prior=self.prior, fallbacks=tuple(fallbacks))

    def _is_doubtful(self, fit: Reconstruction) -> bool:
        """Whether the held-out samples say that the prior serves worse than it did; takes note of what they say."""
        if fit.validation_loss is None:
            return False
        doubtful = len(self._losses) >= 3 and fit.validation_loss > STALE * statistics.median(self._losses)
        if not doubtful:
            self._losses.append(fit.validation_loss)
        return doubtful

    def _again(self, raw: RawFrame, frame: Frame, fit: Reconstruction, fallbacks: list[str]) -> Reconstruction:
        """A frame that its prior has not served well: the held-out samples choose between `fit`, another fit with the
        prior moved as a whole, and an image without it; where the last is best several times, a new prior is made."""
        if self._tracker is None:
            return fit
        alone = ALONE.fit(dataclasses.replace(frame, prior=None))
        other = self._tracker.realigned(frame, alone.image)
        realigned = other.follow(frame)
        best = min((fit, realigned, alone), key=_loss)
        if best is realigned and _loss(realigned) > CLEARLY * _loss(fit):
            best = fit
        place = f"slice {raw.key.slice}, repetition {raw.key.repetition}"
        losses = f"held-out loss {_loss(fit):.4g}, {_loss(best):.4g} now"
        if best is not alone:
            self._refused.clear()
            if best is realigned:
                self._tracker = other
                observe(Warned(text=f"{place}: the patient has moved, and the prior with it ({losses})"))
            return best
        stream.fall_back("prior", f"{place}: the prior does not fit ({losses}): an image without it", fallbacks)
        self._refused.append(raw)
        if len(self._refused) >= STALE_FRAMES:
            observe(Warned(text=f"{place}: the prior has not fitted {STALE_FRAMES} frames: a new one is made"))
            refused = list(self._refused)
            self.forget()
            self._gathered = refused if len(refused) < self.prior_frames else []
            self.prior = begin(mean_of(refused), source=_mean_in_words(refused), device=self.device).prior
        return best


def _mean_in_words(frames: Sequence[RawFrame]) -> str:
    return f"the mean of {len(frames)} frames from repetition {frames[0].key.repetition} on"


def _loss(fit: Reconstruction) -> float:
    """On held-out samples; more than any where nothing judges."""
    return math.inf if fit.validation_loss is None else fit.validation_loss


def begin(raw: RawFrame, *, source: str, device: str) -> Followed:
    """The prior that `raw` makes, and its image; raises `InvalidFrame`."""
    measurement, conditioning = conditioned(raw, device=device)
    fallbacks: list[str] = []
    found = stream.coil_maps(measurement, 0, fallbacks=fallbacks)
    maps = widened(found, round(MARGIN * max(found.support.shape)))
    frame = framed(measurement, maps, prior=None)
    complete = is_complete(raw)
    fit = CGSense().fit(frame) if complete else ALONE.fit(frame)
    prior = Prior(
        place=Place.of(raw),
        conditioning=conditioning,
        maps=maps,
        image=fit.image * found.support,  # no noise from where nothing was
        source=source,
        fallbacks=tuple(fallbacks),
    )
    fit = dataclasses.replace(fit, remark="the prior of the frames that follow")
    return Followed(measurement=measurement, frame=frame, fit=fit, prior=prior, fallbacks=tuple(fallbacks))


def problem(raw: RawFrame, prior: Prior) -> tuple[Measurement, Frame]:
    """`raw` as it is to be fitted with `prior`, some of its samples held out; raises `InvalidFrame`."""
    measurement = prior.conditioning.apply(raw)
    return measurement, hold_out(framed(measurement, prior.maps, prior=prior.image), HELD_OUT, seed=0)


def framed(measurement: Measurement, maps: CoilMaps, *, prior: torch.Tensor | None) -> Frame:
    """The one problem of a 2-D frame, by columns."""
    operator = ColumnSense(maps.csm, measurement.mask)
    return Frame(
        kspace=operator.arrange(measurement.kspace[0]),
        operator=operator,
        maps=maps,
        noise_level=measurement.noise_level,
        prior=prior,
    )


def _of_any_repetition(raw: RawFrame) -> Key:
    return dataclasses.replace(raw.key, repetition=0)


def _can_have_prior(raw: RawFrame) -> bool:
    """Whether `raw` is one 2-D problem of whole readouts."""
    return raw.geometry.encoded_matrix[2] == 1 and bool(raw.imaging.acquired.all())


def is_complete(raw: RawFrame) -> bool:
    """Whether no line is missing between the first and the last, and these span most of k-space."""
    lines = np.unique(raw.imaging.lines[:, 1])
    _, y, _ = raw.geometry.encoded_matrix
    return len(lines) == lines[-1] - lines[0] + 1 and 2 * len(lines) > y


def mean_of(frames: Sequence[RawFrame]) -> RawFrame:
    """The frame that holds each line of `frames`, averaged over those that have it."""
    first = frames[0]
    lines, where = np.unique(np.concatenate([raw.imaging.lines for raw in frames]), axis=0, return_inverse=True)
    kspace = np.concatenate([raw.imaging.kspace for raw in frames], axis=1)
    acquired = np.concatenate([raw.imaging.acquired for raw in frames])
    # A matrix of ones and zeros, a row for each line: numpy sums no repeated indices.
    belongs = (where.reshape(-1) == np.arange(len(lines))[:, None]).astype(np.float32)
    counts = belongs @ acquired.astype(np.float32)
    total: Complex = np.einsum("lr,crx->clx", belongs, kspace)
    imaging = Readouts(kspace=(total / np.maximum(counts, 1)).astype(np.complex64), lines=lines, acquired=counts > 0)
    _, y, z = first.geometry.encoded_matrix
    return dataclasses.replace(
        frames[-1],
        imaging=imaging,
        calibration=first.calibration,
        protocol=dataclasses.replace(first.protocol, acceleration=y * z / len(lines)),
        average_count=first.average_count * acquired.shape[0] / len(lines),
    )
