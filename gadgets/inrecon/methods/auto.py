"""The INR and what needs no network, weighed against each other by samples that none of their trials was made of."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Mapping, Sequence

import torch

from inrecon.deadline import shared, time_left, time_limit
from inrecon.errors import InreconError, NoFit
from inrecon.events import FallBack, observe
from inrecon.frame import Frame, Reconstruction
from inrecon.methods.bilevel_inr import BilevelINR
from inrecon.methods.held_out import certainty
from inrecon.methods.linear import CGSense
from inrecon.methods.method import Method, announced, methods, or_error
from inrecon.methods.total_variation import TotalVariation
from inrecon.methods.wavelet import L1Wavelet

CERTAIN = 2.0
CLASSICAL_SHARE = 0.3
"""Of the time that there is, what goes to the candidates that need no network."""
CLASSICAL: dict[str, Method] = {"cg_sense": CGSense(), "tv": TotalVariation(), "l1_wavelet": L1Wavelet()}


@methods.register("auto")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Auto(BilevelINR):
    """A convex combination of `bilevel_inr` (whose fields these are), `tv`, `l1_wavelet` and `cg_sense`.

    The weights minimise the error on the held-out samples (stacking: Wolpert, Neural Networks 1992; Breiman, Machine
    Learning 1996), so a candidate that fails gets none. As far as it is not certain that this is better than CG-SENSE
    (by `CERTAIN` standard errors of the difference, held-out stretches being the sample), CG-SENSE takes the place of
    the rest. A frame without held-out samples gets the INR alone. A candidate that fails is announced as a `FallBack`
    and named in the remark; iterations, losses and backend are those of the candidate with the largest weight.
    """

    def fit_slices(self, frames: Sequence[Frame]) -> list[Reconstruction | InreconError]:
        """Each of `frames`; an error only where the network fails and nothing judges, or no candidate is left."""
        started = time.perf_counter()
        with time_limit(CLASSICAL_SHARE * time_left()):
            others = [_classical(frame) for frame in shared(frames)]
        networks: list[Reconstruction | InreconError] = [NoFit("no time was left for the network")] * len(frames)
        if time_left() > 0:
            networks = super().fit_slices(frames)
        both = zip(frames, networks, others, strict=True)
        return [self._combined(frame, {"bilevel_inr": network, **other}, started) for frame, network, other in both]

    def _combined(
        self, frame: Frame, tried: Mapping[str, Reconstruction | InreconError], started: float
    ) -> Reconstruction | InreconError:
        network = tried["bilevel_inr"]
        if frame.held_out is None:
            return network
        candidates = {name: fit for name, fit in tried.items() if isinstance(fit, Reconstruction) and _has_loss(fit)}
        if not candidates:
            return network
        failed = {name: fit for name, fit in tried.items() if isinstance(fit, InreconError)}
        for error in failed.values():
            observe(FallBack(room="fit", reason=f"{error}; auto goes on without it"))
        trials = torch.stack([candidate.trial for candidate in candidates.values() if candidate.trial is not None])
        residuals = torch.stack([frame.residuals(trial) for trial in trials])
        weights = convex_weights(residuals)
        if "cg_sense" in candidates:
            linear = list(candidates).index("cg_sense")
            certain = certainty(frame, worse=residuals[linear], better=_weighted(weights, residuals))
            share = min(max(certain / CERTAIN, 0.0), 1.0)
            weights = [share * weight + (1 - share) * (i == linear) for i, weight in enumerate(weights)]
        trial = _weighted(weights, trials)
        image = _weighted(weights, torch.stack([candidate.image for candidate in candidates.values()]))
        best = max(zip(weights, candidates.values(), strict=True), key=lambda pair: pair[0])[1]
        parts = [f"{w:.2f} {name}" for w, name in zip(weights, candidates, strict=True) if w >= 0.005]
        losses = [f"{name} {candidate.validation_loss:.4g}" for name, candidate in candidates.items()]
        without = "".join(f"; without {name}: {error}" for name, error in failed.items())
        result = dataclasses.replace(
            best,
            image=image,
            trial=trial,
            validation_loss=frame.loss(trial),
            remark=f"{' + '.join(parts)} (held-out losses: {', '.join(losses)}){without}",
        )
        return announced(result, method="auto", started=started)


def _classical(frame: Frame) -> dict[str, Reconstruction | InreconError]:
    """What needs no network, CG-SENSE first, as far as there is time and something judges."""
    tried: dict[str, Reconstruction | InreconError] = {}
    for name in shared(list(CLASSICAL) if frame.held_out is not None else []):
        if time_left() > 0 or not tried:
            tried[name] = or_error(CLASSICAL[name].judged, frame)
    return tried


def convex_weights(residuals: torch.Tensor) -> list[float]:
    """The weights a >= 0 with sum 1 that minimise |sum_i a_i residuals_i|^2, for ``(candidates, samples)``.

    Every set of candidates is tried, as there are few: where the minimum over a set, which has a closed form, has
    positive weights only, it is a candidate for the answer.
    """
    count = len(residuals)
    exact = residuals.to(torch.complex128)
    products = (exact @ exact.mH).real.cpu()
    # Of candidates that agree, any share is as good, and of those without error as well: a trace of a ridge decides.
    ridge = 1e-12 * products.diagonal()
    products.diagonal().add_(ridge.where(ridge > 0, 1e-12))
    best, answer = float("inf"), [0.0] * count
    for size in range(1, count + 1):
        for chosen in itertools.combinations(range(count), size):
            among = products[list(chosen)][:, list(chosen)]
            solution = torch.linalg.solve(among, torch.ones(size, dtype=among.dtype))
            solution = solution / solution.sum()
            error = float(solution @ among @ solution)
            if bool((solution > 0).all()) and error < best:
                best, answer = error, [0.0] * count
                for index, share in zip(chosen, solution.tolist(), strict=True):
                    answer[index] = share
    return answer


def _has_loss(fit: Reconstruction) -> bool:
    return fit.validation_loss is not None and math.isfinite(fit.validation_loss)


def _weighted(weights: list[float], images: torch.Tensor) -> torch.Tensor:
    shares = torch.tensor(weights, dtype=images.dtype, device=images.device)
    return torch.einsum("i,i...->...", shares, images)
