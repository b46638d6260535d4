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
from inrecon.methods.residual import ResidualMethod, forget_prepared


class Stream:
    """All slices of one stream, in the process that reconstructs it.

    What must not be lost with the process are the `priors`, as bytes that another process can go on with; no bytes
    where one is of no use any more. `name` tells the stream from others, whose priors it may be given.
    """

    def __init__(self, device: str, *, name: str = "") -> None:
        self.device = device
        self._name = name
        self._slices: dict[Key, Slice] = {}
        self._kept: dict[Key, Prior] = {}
        self.priors: dict[Key, bytes] = {}

    def restore(self, priors: Mapping[Key, bytes]) -> None:
        """Go on with `priors`: those of them that are new to this process were made by another one meanwhile."""
        for key, prior in priors.items():
            if self.priors.get(key) != prior:
                self.priors[key] = prior
                self._slices.pop(key, None)

    def forget(self, raw: RawFrame) -> None:
        """Begin again with the next frame of this slice, as something has gone wrong with it."""
        key = raw.key.of_any_repetition
        self._slices.pop(key, None)
        self.priors[key] = b""
        forget_prepared()

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
            no_fit = None
            if isinstance(method, ResidualMethod):
                no_fit = "a frame of partial readouts has no prior"
                request = dataclasses.replace(request, method="cg_sense", overrides={}, live=None)
            return stream.reconstruct(
                raw,
                request=request,
                hyperparameters=hyperparameters,
                device=self.device,
                series=series,
                seconds=seconds,
                no_fit=no_fit,
            )
        with time_limit(None if seconds is None else stream.FIT_SHARE * seconds), clock("fit"):
            followed = self._slice(raw, method, request).next(raw)
        self._keep(raw)
        measurement, frame, fit = followed.measurement, followed.frame, followed.fit
        csm = frame.maps.csm
        linear = CGSense().fit(frame).image if request.compare else None
        solved = stream.Solved(
            image=stream.as_acquired(measurement, csm, fit.image),
            linear=None if linear is None else stream.as_acquired(measurement, csm, linear),
            reconstruction=fit,
            maps=frame.maps,
            fallbacks=followed.fallbacks,
        )
        facts = stream.report_of(raw, resolved, measurement, [solved], device=self.device, reasons=())
        return stream.published(
            raw,
            measurement,
            [solved],
            report=facts | {"prior": followed.source},
            request=request,
            series=series,
            clock=clock,
            clips=followed.is_far,  # what was wrong with it must not change how the others look
        )

    def _slice(self, raw: RawFrame, method: ResidualMethod, request: Request) -> Slice:
        """That of `raw`, with all that is known of it."""
        live = request.live or Live()
        key = raw.key.of_any_repetition
        found = self._slices.get(key)
        if found is None or found.method != method:
            found = Slice(method=method, prior_frames=live.prior_frames, device=self.device)
            if self.priors.get(key):
                name, prior = pickle.loads(self.priors[key])  # noqa: S301  pickled by this program
                found.prior, found.unproven = prior.on(self.device), name != self._name
                if found.unproven:
                    found.prior = dataclasses.replace(found.prior, source=f"of an earlier scan: {prior.source}")
                self._kept[key] = found.prior
            self._slices[key] = found
        return found

    def _keep(self, raw: RawFrame) -> None:
        """Note a prior that is new."""
        key = raw.key.of_any_repetition
        prior = self._slices[key].prior
        if prior is not None and self._kept.get(key) is not prior:
            self._kept[key] = prior
            self.priors[key] = pickle.dumps((self._name, prior.on("cpu")))


def _can_have_prior(raw: RawFrame) -> bool:
    """Whether `raw` is one 2-D problem of whole readouts."""
    return raw.geometry.encoded_matrix[2] == 1 and bool(raw.imaging.acquired.all())
