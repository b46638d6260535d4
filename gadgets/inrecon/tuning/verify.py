"""Whether hyperparameters still hold: an entry's values on new scans, beside other entries' and a short search's."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import optuna

from inrecon.methods import CGSense, build
from inrecon.tuning.race import race
from inrecon.tuning.scans import Scans
from inrecon.tuning.search import make_sampler
from inrecon.tuning.study import Plan, compete

TOLERANCE = 0.1
"""The part of the loss by which others may be better: as much as the seed of a network makes."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """Losses on held-out samples by origin, the least first; `name` is the entry that was asked about, `linear` the
    loss of CG-SENSE for comparison: networks are judged before their closing step."""

    name: str
    losses: Mapping[str, float]
    linear: float

    @property
    def better(self) -> list[str]:
        """Origins with a loss that is lower by more than `TOLERANCE`."""
        limit = min((1 - TOLERANCE) * self.losses[self.name], sys.float_info.max)
        return [name for name, loss in self.losses.items() if loss < limit]

    @property
    def holds(self) -> bool:
        """Whether the entry can be fitted, and nothing is clearly better."""
        return math.isfinite(self.losses[self.name]) and not self.better

    def lines(self) -> list[str]:
        """Every loss in a line."""
        rows = [*self.losses.items(), ("(CG-SENSE)", self.linear)]
        return [f"{loss:10.4g}  {name}" for name, loss in rows]


def verify(
    scans: Scans, plan: Plan, *, name: str, candidates: Mapping[str, Mapping[str, float]], seed: int = 0
) -> Verified:
    """The losses of `candidates` (values of the searched fields by origin, `name` among them) and of the best of a
    quasi-random search by `plan`, all fitted as long as the plan's last rung is."""
    contest = race([build(plan.method, {**plan.fixed, **values}) for values in candidates.values()], scans.groups)
    contest.advance(plan.rungs[-1])
    losses = dict(zip(candidates, contest.losses(), strict=True))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=make_sampler("quasi_random", seed=seed))
    compete(study, plan, scans, worker="")
    complete = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    values = [trial.value for trial in complete if trial.value is not None]
    losses[f"best of {plan.trials} others"] = min(values, default=math.inf)
    linear = [one.loss(CGSense().fit(one.frame.training).image) for one in scans.judged]
    return Verified(
        name=name,
        losses=dict(sorted(losses.items(), key=lambda pair: pair[1])),
        linear=sum(math.inf if loss is None else loss for loss in linear) / len(linear),
    )
