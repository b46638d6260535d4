"""What the frames of a slice are compared with, and frames as problems to be solved with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from inrecon import stream
from inrecon.acquire import Place
from inrecon.calibrate import widened
from inrecon.condition import Conditioning, conditioned
from inrecon.frame import CoilMaps, Complex, Frame, Measurement, RawFrame, Readouts, Reconstruction
from inrecon.methods import CGSense, ResidualTV, hold_out
from inrecon.methods.held_out import HELD_OUT
from inrecon.methods.method import or_error
from inrecon.operators import ColumnSense

MARGIN = 0.03
"""Of the field of view, by which coil maps are widened for what moves to where nothing was."""
ALONE = ResidualTV(displacement=0, tv_weight=0.1, iterations=100)
"""For frames without a prior. With the weight of differences, 0.2, they are 0.8 to 1.1 dB worse."""


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What the frames of a slice are compared with: `image`, and `maps` that are wider than the object, which is
    `inside` ``(rows, columns)`` bool, in the scale and with the coils that `conditioning` gives; `source` in words."""

    place: Place
    conditioning: Conditioning
    maps: CoilMaps
    inside: torch.Tensor
    image: torch.Tensor
    source: str
    fallbacks: tuple[str, ...] = ()

    def why_not(self, raw: RawFrame) -> str:
        """What the slice of `raw` has not in common with this one; nothing if it has all."""
        if reason := self.conditioning.why_not(raw):
            return reason
        return "" if self.place.is_near(Place.of(raw)) else "has moved"

    def found_at(self, raw: RawFrame) -> Prior:
        """The same, its place told by the header of `raw` if that tells it and its own frame's did not."""
        if self.place.pose.is_told or not (place := Place.of(raw)).pose.is_told:
            return self  # the same object: a new one would be kept, and sent to the front, anew
        return dataclasses.replace(self, place=place)

    def on(self, device: str) -> Prior:
        """The same on `device`."""
        maps, found = self.maps, self.conditioning
        return dataclasses.replace(
            self,
            image=self.image.to(device),
            inside=self.inside.to(device),
            maps=dataclasses.replace(maps, csm=maps.csm.to(device), support=maps.support.to(device)),
            conditioning=dataclasses.replace(found, mixing=found.mixing.to(device), unmix=found.unmix.to(device)),
        )


@dataclass(frozen=True, kw_only=True)
class Followed:
    """What became of a frame: the problem as it was solved, its image in the scale of the frame's `measurement`, the
    prior that gave it its coils and maps, and in words the one that it was compared with. `is_far`: something was wrong
    with it, and nothing follows from it."""

    measurement: Measurement
    frame: Frame
    fit: Reconstruction
    prior: Prior
    source: str
    fallbacks: tuple[str, ...]
    is_far: bool = False


def begin(raw: RawFrame, *, source: str, device: str, like: Prior | None = None) -> Followed:
    """The prior that `raw` makes, with coils and maps of its own or those of `like`; and its image. Raises
    `InvalidFrame`."""
    if like is None:
        like, measurement = _calibrated(raw, source=source, device=device)
    else:
        measurement = like.conditioning.apply(raw)
    frame = framed(measurement, like.maps, prior=None)
    fit = CGSense().fit(frame)
    if not is_complete(raw) and isinstance(better := or_error(ALONE.fit, frame), Reconstruction):
        fit = better
    image = fit.image * like.inside  # no noise from where nothing was
    prior = dataclasses.replace(like, image=image, source=source)
    fit = dataclasses.replace(fit, remark="the prior of the frames that follow")
    return Followed(
        measurement=measurement, frame=frame, fit=fit, prior=prior, source=source, fallbacks=prior.fallbacks
    )


def _calibrated(raw: RawFrame, *, source: str, device: str) -> tuple[Prior, Measurement]:
    """A prior with an image of nothing."""
    measurement, conditioning = conditioned(raw, device=device)
    fallbacks: list[str] = []
    found = stream.coil_maps(measurement, 0, fallbacks=fallbacks)
    maps = widened(found, round(MARGIN * max(found.support.shape)))
    prior = Prior(
        place=Place.of(raw),
        conditioning=conditioning,
        maps=maps,
        inside=found.support,
        image=torch.zeros_like(maps.csm[..., 0, :, :]),
        source=source,
        fallbacks=tuple(fallbacks),
    )
    return prior, measurement


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
