"""Frames of a stream to images, whichever slices they are of."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Mapping

from inrecon import stream
from inrecon.deadline import time_limit
from inrecon.frame import Key, Live, RawFrame, Request, SeriesBySpace
from inrecon.hyperparams import HyperparameterFiles
from inrecon.live.prior import Prior
from inrecon.live.slices import Slice
from inrecon.methods import CGSense
from inrecon.methods.residual import ResidualMethod


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


def _of_any_repetition(raw: RawFrame) -> Key:
    return dataclasses.replace(raw.key, repetition=0)


def _can_have_prior(raw: RawFrame) -> bool:
    """Whether `raw` is one 2-D problem of whole readouts."""
    return raw.geometry.encoded_matrix[2] == 1 and bool(raw.imaging.acquired.all())
