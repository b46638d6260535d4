"""Where to look next: the search space of a method, and samplers of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from inrecon.errors import UnknownName
from inrecon.methods import Method, tunable_fields

STARTUP = 20
"""Quasi-random points before the model is asked, as many as the paper draws at random."""

KAPPA = 0.5
"""How many standard deviations below its mean a loss is hoped to be, kappa of Eq. (10)."""

REACH = 0.15
"""How far from the best point the next one may lie, along each side of the unit cube."""


def search_space(method: type[Method]) -> dict[str, FloatDistribution]:
    """The ranges of the fields of `method` that are to be searched for."""
    return {name: FloatDistribution(span.low, span.high, log=span.log) for name, span in tunable_fields(method).items()}


class GPUCB(BaseSampler):
    """Gaussian process and upper confidence bound, Eq. (10) of the bilevel paper, on all losses of all trials.

    The model is of -log(loss) over the unit cube of the fields and the logarithm of the number of iterations, so that
    candidates that were dropped early teach it too; the bound is maximised at the largest number seen, within `REACH`
    of the best point there: a few dozen points cannot fill the cube, and in all of it the bound is largest at corners
    (a trust region: Eriksson et al., NeurIPS 2019). Trials that are running are taken into account as pending. The
    first `startup` points are quasi-random.
    """

    def __init__(self, *, seed: int, startup: int = STARTUP) -> None:
        self._seed = seed
        self._startup = startup
        self._first = _quasi_random(seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Everything is searched together: the ranges of any trial before."""
        del trial
        for other in study.get_trials(deepcopy=False):
            if other.distributions:
                return dict(other.distributions)
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values for all fields of `search_space`."""
        if not search_space:
            return {}
        trials = [t for t in study.get_trials(deepcopy=False) if set(t.params) == set(search_space)]
        seen = [t for t in trials if any(map(math.isfinite, t.intermediate_values.values()))]
        if len(trials) < self._startup or len(seen) < 2:
            return self._first.sample_relative(study, trial, search_space)
        space = {name: _float(distribution) for name, distribution in search_space.items()}
        running = [t for t in trials if t.state == TrialState.RUNNING and t.number != trial.number]
        point = _propose(seen, running, space, seed=self._seed + trial.number)
        return {name: _from_unit(float(u), space[name]) for name, u in zip(space, point, strict=True)}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> float:
        """A random value: for the very first trial, before any range is known."""
        del study, param_name
        generator = torch.Generator().manual_seed(hash((self._seed, trial.number)) % 2**31)
        return _from_unit(float(torch.rand((), generator=generator)), _float(param_distribution))


def _propose(
    seen: list[FrozenTrial], running: list[FrozenTrial], space: Mapping[str, FloatDistribution], *, seed: int
) -> torch.Tensor:
    """The point with the largest bound, near the best one so far."""
    points, values = [], []
    for trial in seen:
        for step, loss in trial.intermediate_values.items():
            if math.isfinite(loss):
                points.append([*_to_unit(trial, space), math.log(step)])
                values.append(-math.log(max(loss, 1e-12)))
    x, y = torch.tensor(points, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)[:, None]
    longest = float(x[:, -1].max())
    x[:, -1] /= longest or 1.0
    ends = x[:, -1] == x[:, -1].max()
    best = x[ends][y[ends, 0].argmax(), :-1]
    # Losses far above the rest (a rate that diverges) would be all that the model sees.
    y = y.clamp(min=float(y.median() - 3 * (y.max() - y.median())))
    y = (y - y.mean()) / y.std().clamp(min=1e-9)
    pending = torch.tensor([[*_to_unit(t, space), 1.0] for t in running], dtype=torch.float64)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of jitter, of restarts that fail, and of what torch deprecates
        # Imported here, for it takes seconds, and other samplers do without.
        from botorch.acquisition.fixed_feature import FixedFeatureAcquisitionFunction
        from botorch.acquisition.monte_carlo import qUpperConfidenceBound
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import SingleTaskGP
        from botorch.optim.optimize import optimize_acqf
        from botorch.sampling.normal import SobolQMCNormalSampler
        from gpytorch.mlls import ExactMarginalLogLikelihood

        torch.manual_seed(seed)
        model = SingleTaskGP(x, y)
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        bound = qUpperConfidenceBound(
            model,
            beta=KAPPA**2,
            sampler=SobolQMCNormalSampler(torch.Size([128]), seed=seed),
            X_pending=pending if len(running) else None,
        )
        acquisition = FixedFeatureAcquisitionFunction(bound, d=len(space) + 1, columns=[len(space)], values=[1.0])
        bounds = torch.stack([(best - REACH).clamp(min=0), (best + REACH).clamp(max=1)])
        candidate, _ = optimize_acqf(acquisition, bounds=bounds, q=1, num_restarts=4, raw_samples=128)
    return candidate[0]


def _to_unit(trial: FrozenTrial, space: Mapping[str, FloatDistribution]) -> list[float]:
    """The values of `trial` in the unit cube."""
    found = []
    for name, span in space.items():
        low, high, value = ((math.log(v) if span.log else v) for v in (span.low, span.high, float(trial.params[name])))
        found.append((value - low) / (high - low))
    return found


def _from_unit(value: float, span: FloatDistribution) -> float:
    low, high = (math.log(v) if span.log else v for v in (span.low, span.high))
    found = low + min(max(value, 0.0), 1.0) * (high - low)
    return min(max(math.exp(found) if span.log else found, span.low), span.high)


def _float(distribution: BaseDistribution) -> FloatDistribution:
    if not isinstance(distribution, FloatDistribution):
        raise TypeError(f"the search space of a method is of ranges, not {distribution}")
    return distribution


def _quasi_random(seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # QMCSampler calls itself experimental
        return QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "gp_ucb": lambda seed: GPUCB(seed=seed),
    "gp": lambda seed: GPSampler(seed=seed),
    "tpe": lambda seed: TPESampler(seed=seed, constant_liar=True, multivariate=True),
    "quasi_random": _quasi_random,
    "random": lambda seed: RandomSampler(seed=seed),
}


def make_sampler(name: str, *, seed: int) -> BaseSampler:
    """The sampler `name`; raises `UnknownName`."""
    if name not in SAMPLERS:
        raise UnknownName(f"unknown sampler {name!r}: known are {', '.join(SAMPLERS)}")
    return SAMPLERS[name](seed)
