"""One slice of a stream: where its prior comes from, how long it lasts, and what follows from it."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from inrecon import stream
from inrecon.condition import without_sparks
from inrecon.errors import InreconError, InvalidFrame
from inrecon.events import Warned, observe
from inrecon.frame import Frame, RawFrame, Reconstruction
from inrecon.live.prior import ALONE, Followed, Prior, begin, is_complete, mean_of, problem
from inrecon.methods.method import or_error
from inrecon.methods.residual import ResidualMethod, Tracker

LINEAR_WEIGHT = 0.01
"""Of the closed-form SENSE image that a fit must be nearer to the held-out samples than."""
CLEARLY = 0.9
"""By what factor the held-out loss must fall for a prior to be moved as a whole, or questioned as SENSE is better."""
STALE = 1.5
"""By what factor a held-out loss exceeds the median so far when the prior is put in question."""
FAR = 4.0
"""By what factor it does when the frame is: a deep breath comes to 3, a spark or a burst of noise to 10 and more."""
REMEMBERED = 16
LEFT = 3
"""How many priors of other places are kept, in case that the slice returns: a wrong position in one header costs no
prior, nor does a look elsewhere."""
LEARNT = 3
"""Of how many frames the losses must be known before a smaller factor says anything."""
STALE_FRAMES = 8
"""For how many frames in a row an image without the prior must be better before a new one is made: a deep breath goes
by, and what comes after it is nearer to the old one, which was worth 10 dB, and no mean of undersampled frames is."""


@dataclass
class Slice:
    """One slice of a stream, frame after frame.

    `prior_frames` is of how many frames a prior is the mean, where none is fully sampled. A prior that is `unproven`,
    for it is another scan's, is put in question by the first frame.
    """

    method: ResidualMethod
    prior_frames: int
    device: str
    prior: Prior | None = None
    unproven: bool = False
    _was_complete: bool = False
    _gathered: list[RawFrame] = field(default_factory=list)
    _tracker: Tracker | None = None
    _losses: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _was_far: bool = False
    _served: bool = False
    _left: list[Prior] = field(default_factory=list)
    _refused: list[RawFrame] = field(default_factory=list)

    def next(self, raw: RawFrame) -> Followed:
        """The image of `raw`, and what it changes for the frames after it; raises `InvalidFrame`, which leaves no trace
        in a prior that is being gathered."""
        if not raw.imaging.kspace.any():
            raise InvalidFrame("the frame's samples are all zero")
        raw = without_sparks(raw)
        self._go_to(raw)
        if self.prior is not None and self.unproven:
            self.unproven = False
            if not self._serves(raw, self.prior):
                observe(
                    Warned(text=f"slice {raw.key.slice}: the prior of another scan does not fit: a new one is made")
                )
                self.forget()
        complete, was_complete = is_complete(raw), self._was_complete
        self._was_complete = complete
        if complete:
            self._gathered.clear()
            # Of full frames one after the other, coils and maps are those of the first, and nothing follows them yet.
            return self._begin(raw, _frame_in_words(raw), like=self.prior if was_complete else None)
        if self.prior is None or self._gathered:
            gathered = [*self._gathered, raw]
            frames = len(gathered)
            followed = self._begin(mean_of(gathered), _mean_in_words(gathered))
            self._gathered = gathered if frames < self.prior_frames else []
            if frames == 1:
                return followed
        return self._follow(raw)

    def _go_to(self, raw: RawFrame) -> None:
        """Be where `raw` is: with the prior that was left there, if the present one is of another place."""
        before = self.prior
        reason = "" if before is None else before.why_not(raw)
        if before is not None and not reason:
            self.prior = before.found_at(raw)
            return
        if before is not None:
            # Not one that is half made, or that nothing is known of.
            left = [] if self.unproven or self._gathered else [before]
            self._left = [*left, *self._left][:LEFT]
            self.forget()
        known = next((other for other in self._left if not other.why_not(raw)), None)
        self._left = [other for other in self._left if other is not known]
        self.prior, self._served = known, known is not None
        if before is not None or known is not None:
            then = "a new prior is made" if known is None else "the prior that was left there serves again"
            observe(Warned(text=f"{raw.key.in_words}: the slice {reason or 'is back'}: {then}"))

    def forget(self) -> None:
        """Begin again with the next frame."""
        self.prior, self._tracker = None, None
        self._gathered.clear()
        self._learn_anew()
        self._refused.clear()
        self.unproven = self._served = False

    def _begin(self, raw: RawFrame, source: str, *, like: Prior | None = None) -> Followed:
        """Make `raw` the prior; it is its own image. What later frames need is made now, while none is waited for."""
        followed = begin(raw, source=source, device=self.device, like=like)
        self.prior, self._tracker = followed.prior, None
        self.unproven = self._served = False
        if like is None:
            self._tracker = self.method.tracker(dataclasses.replace(followed.frame, prior=self.prior.image))
        self._learn_anew()
        return followed

    def _follow(self, raw: RawFrame) -> Followed:
        if self.prior is None:
            raise RuntimeError("there is no prior yet")
        prior = self.prior
        measurement, frame = problem(raw, prior)
        tracker = self._tracker = self._tracker or self.method.tracker(frame)
        kept, usual, alone = tracker.kept, self._usual, False
        fallbacks, source = list(prior.fallbacks), prior.source
        fit = or_error(tracker.follow, frame)
        if isinstance(fit, InreconError):
            self._tracker = tracker.resumed(frame, kept)
            stream.fall_back("fit", f"{fit}; SENSE instead", fallbacks)
            image = tracker.linear(frame, weight=LINEAR_WEIGHT)
            fit = Reconstruction(image=image, iterations=1, stopped_by="closed form")
        trial = tracker.linear(frame.training, weight=LINEAR_WEIGHT)
        linear = frame.loss(trial)
        if self._is_doubtful(fit, linear):
            fit, alone = self._again(raw, frame, tracker, fit, fallbacks)
            source = "none" if alone else source
        if linear is not None and linear < _loss(fit) < math.inf:
            reason = f"held-out samples are nearer to SENSE (loss {linear:.4g}) than to the fit ({_loss(fit):.4g})"
            stream.fall_back("fit", f"{reason}; SENSE instead", fallbacks)
            image = tracker.linear(frame, weight=LINEAR_WEIGHT)
            fit = dataclasses.replace(fit, image=image, trial=trial, validation_loss=linear)
        is_far = self._is_far(fit, usual)
        if is_far:
            reason = f"the frame is far from what came before (held-out loss {_loss(fit):.4g}, {usual:.4g} usual)"
            stream.fall_back("frame", f"{raw.key.in_words}: {reason}: nothing follows from it", fallbacks)
            self._tracker = tracker.resumed(frame, kept)
        elif alone:
            self._refuse(raw)
        else:
            self._refused.clear()
        return Followed(
            measurement=measurement,
            frame=frame,
            fit=fit,
            prior=prior,
            source=source,
            fallbacks=tuple(fallbacks),
            is_far=is_far,
        )

    @property
    def _usual(self) -> float:
        """The held-out loss of frames like the last ones; more than any as long as there is none."""
        return statistics.median(self._losses) if self._losses else math.inf

    def _learn_anew(self, loss: float | None = None) -> None:
        """What is usual is now `loss`, or not known."""
        self._losses.clear()
        self._losses.extend([] if loss is None else [loss] * LEARNT)
        self._was_far = False

    def _is_doubtful(self, fit: Reconstruction, linear: float | None) -> bool:
        """Whether the held-out samples say that the prior serves worse than it did, or than SENSE with its loss
        `linear`; takes note of what they say."""
        if fit.validation_loss is None:
            return False
        limit = STALE if len(self._losses) >= LEARNT else FAR
        by_itself = math.inf if linear is None else linear / CLEARLY
        doubtful = fit.validation_loss > min(limit * self._usual, by_itself)
        if not doubtful:
            self._losses.append(fit.validation_loss)
            self._served = True
        return doubtful

    def _is_far(self, fit: Reconstruction, usual: float) -> bool:
        """Whether a frame, with the best image of it, has nothing to do with those before: then something was wrong
        with it. If the one after it is so, too, that is how things are now."""
        far = fit.validation_loss is not None and fit.validation_loss > FAR * usual
        if far and self._was_far:
            self._learn_anew(_loss(fit))
            return False
        self._was_far = far
        return far

    def _again(
        self, raw: RawFrame, frame: Frame, tracker: Tracker, fit: Reconstruction, fallbacks: list[str]
    ) -> tuple[Reconstruction, bool]:
        """A frame that its prior has not served well: the held-out samples choose between `fit`, another fit with the
        prior moved as a whole, and an image without it; where the last is best several times, a new prior is made.

        Gives the best, and whether that is the one without the prior.
        """
        tried = {"fit": fit}
        alone = or_error(ALONE.fit, dataclasses.replace(frame, prior=None))
        if isinstance(alone, Reconstruction):
            tried["alone"] = alone
            other = tracker.realigned(frame, alone.image)
            realigned = or_error(other.follow, frame)
            if isinstance(realigned, Reconstruction) and _loss(realigned) < CLEARLY * _loss(fit):
                tried["realigned"] = realigned
        best = min(tried, key=lambda name: _loss(tried[name]))
        losses = f"held-out loss {_loss(fit):.4g}, {_loss(tried[best]):.4g} now"
        if best == "alone":
            reason = f"the prior does not fit ({losses}): an image without it"
            stream.fall_back("prior", f"{raw.key.in_words}: {reason}", fallbacks)
        elif best == "realigned":
            self._tracker = other
            if isinstance(settled := or_error(other.follow, frame), Reconstruction):  # field and difference begin anew
                tried[best] = settled
            observe(Warned(text=f"{raw.key.in_words}: the patient has moved, and the prior with it ({losses})"))
        elif self._losses and _loss(fit) <= FAR * self._usual:
            self._learn_anew(_loss(fit))
        return tried[best], best == "alone"

    def _serves(self, raw: RawFrame, prior: Prior) -> bool:
        """Whether held-out samples are nearer to `raw` fitted with `prior`, perhaps moved as a whole, and its coil maps
        than to `raw` by itself."""
        _, own = problem(raw, begin(raw, source="", device=self.device).prior)
        alone = or_error(ALONE.fit, dataclasses.replace(own, prior=None))
        if isinstance(alone, InreconError):
            return True
        _, frame = problem(raw, prior)
        tracker = self.method.tracker(frame)
        tried = (or_error(one.follow, frame) for one in (tracker, tracker.realigned(frame, alone.image)))
        return any(isinstance(fit, Reconstruction) and _loss(fit) <= _loss(alone) for fit in tried)

    def _refuse(self, raw: RawFrame) -> None:
        """Note a frame that the prior does not fit; of the last of them a new one is made, once there are enough: of a
        prior that has served no frame yet, that is soon."""
        self._refused.append(raw)
        if len(self._refused) < (STALE_FRAMES if self._served else LEARNT):
            return
        observe(Warned(text=f"{raw.key.in_words}: the prior does not fit any more: a new one is made"))
        refused = list(self._refused)
        self.forget()
        self._gathered = refused if len(refused) < self.prior_frames else []
        self.prior = begin(mean_of(refused), source=_mean_in_words(refused), device=self.device).prior


def _frame_in_words(raw: RawFrame) -> str:
    return f"the fully sampled frame of repetition {raw.key.repetition}"


def _mean_in_words(frames: Sequence[RawFrame]) -> str:
    return f"the mean of {len(frames)} frames from repetition {frames[0].key.repetition} on"


def _loss(fit: Reconstruction) -> float:
    """On held-out samples; more than any where nothing judges."""
    return math.inf if fit.validation_loss is None else fit.validation_loss
