"""The way of a frame of an interventional stream, from readouts to image, in reading order.

    acquire -> condition and coil maps as the prior has them -> fit what differs from the prior -> image

The prior is an image of the same slice: the first fully sampled frame, the mean of the first few frames where none is,
or that of an earlier scan. `stream.reconstruct` makes images of what has none, and cannot have one.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from inrecon import stream
from inrecon.acquire import Place
from inrecon.condition import Conditioning, conditioned
from inrecon.events import Warned, observe
from inrecon.frame import CoilMaps, Complex, Frame, Measurement, RawFrame, Readouts, Reconstruction
from inrecon.methods import CGSense, ResidualTV, hold_out
from inrecon.methods.residual import HELD_OUT, ResidualMethod, Tracker
from inrecon.operators import ColumnSense

LINEAR_WEIGHT = 0.01
"""Of the closed-form SENSE image that a fit must be nearer to the held-out samples than."""
PRIOR_ITERATIONS = 100
STALE = 1.5
"""By what factor a held-out loss exceeds the median so far when the prior is put in question."""
REMEMBERED = 16


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

    def next(self, raw: RawFrame) -> Followed:
        """The image of `raw`, and what it changes for the frames after it. Raises `InvalidFrame`, `FitDiverged`."""
        if self.prior is not None and not self.prior.place.is_near(Place.of(raw)):
            observe(Warned(text=f"slice {raw.key.slice} has moved: a new prior is made"))
            self.forget()
        if is_complete(raw):
            self._gathered.clear()
            return self._begin(raw, f"the fully sampled frame of repetition {raw.key.repetition}")
        if self.prior is None or self._gathered:
            self._gathered.append(raw)
            frames = len(self._gathered)
            first = self._gathered[0].key.repetition
            followed = self._begin(mean_of(self._gathered), f"the mean of {frames} frames from repetition {first} on")
            if frames >= self.prior_frames:
                self._gathered.clear()
            if frames == 1:
                return followed
        return self._follow(raw)

    def forget(self) -> None:
        """Begin again with the next frame."""
        self.prior, self._tracker = None, None
        self._gathered.clear()
        self._losses.clear()

    def _begin(self, raw: RawFrame, source: str) -> Followed:
        """Make `raw` the prior; it is its own image."""
        followed = begin(raw, source=source, device=self.device)
        self.prior, self._tracker = followed.prior, None
        self._losses.clear()
        return followed

    def _follow(self, raw: RawFrame) -> Followed:
        if self.prior is None:
            raise RuntimeError("there is no prior yet")
        measurement, frame = problem(raw, self.prior)
        if self._tracker is None:
            self._tracker = self.method.tracker(frame)
        tracker, fallbacks = self._tracker, list(self.prior.fallbacks)
        fit = tracker.follow(frame)
        if self._is_doubtful(fit):
            fit = self._without_prior(raw, frame, fit, fallbacks)
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

    def _without_prior(self, raw: RawFrame, frame: Frame, fit: Reconstruction, fallbacks: list[str]) -> Reconstruction:
        """`fit`, or an image without the prior, and a new prior from now on, if held-out samples are nearer to that."""
        alone = ResidualTV(iterations=PRIOR_ITERATIONS).fit(dataclasses.replace(frame, prior=None))
        if alone.validation_loss is None or fit.validation_loss is None or alone.validation_loss >= fit.validation_loss:
            return fit
        losses = f"held-out loss {fit.validation_loss:.4g}, {alone.validation_loss:.4g} without it"
        stream.fall_back("prior", f"the prior does not fit any more ({losses}): a new one is gathered", fallbacks)
        self._gathered[:] = [raw]
        self._tracker = None
        return alone


def begin(raw: RawFrame, *, source: str, device: str) -> Followed:
    """The prior that `raw` makes, and its image; raises `InvalidFrame`."""
    measurement, conditioning = conditioned(raw, device=device)
    fallbacks: list[str] = []
    maps = stream.coil_maps(measurement, 0, fallbacks=fallbacks)
    frame = framed(measurement, maps, prior=None)
    complete = is_complete(raw)
    fit = CGSense().fit(frame) if complete else ResidualTV(displacement=0, iterations=PRIOR_ITERATIONS).fit(frame)
    prior = Prior(
        place=Place.of(raw),
        conditioning=conditioning,
        maps=maps,
        image=fit.image,
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
