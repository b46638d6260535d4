"""BART's reconstructions of a scan, their settings chosen against what judges them: as good as it can be made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from inrecon.condition import condition
from quality.bart import Bart
from quality.judge import Candidate, combined_of
from quality.scans import Complex, Scan

GRID_RATIO = 2.0
MOST_EXTENSIONS = 12
CONVERGED_DB = 0.05
"""As long as twice the iterations gain more than this, they are doubled."""
BLOCKS = (24, 48)
CROPS = (0.8, 0.0, 0.5, 0.7, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)


@dataclass(frozen=True, kw_only=True)
class Solver:
    """A way to run `pics`: `options` for a regularisation and a number of iterations.

    `start` is the first grid of regularisations. `fixed` is what a user would take who has no reference to tune by;
    `iterations` are tried all, since stopping early can be better than converging.
    """

    options: Callable[[float, int], list[str]]
    start: tuple[float, ...]
    fixed: float
    iterations: tuple[int, ...]


SOLVERS = {
    "bart_l2": Solver(
        options=lambda weight, n: ["-l2", "-r", f"{weight:.4g}", f"-i{n}"],
        start=(1.25e-3, 2.5e-3, 5e-3, 1e-2, 2e-2),
        fixed=1e-2,
        iterations=(100,),
    ),
    "bart_l1": Solver(
        options=lambda weight, n: ["-l1", "-e", "-r", f"{weight:.4g}", f"-i{n}"],
        start=(6.25e-4, 1.25e-3, 2.5e-3, 5e-3, 1e-2),
        fixed=1e-2,
        iterations=(100, 300),
    ),
    "bart_tv": Solver(
        options=lambda weight, n: ["-R", f"T:3:0:{weight:.4g}", "-u", "0.01", "-C", "10", f"-i{n}"],
        start=(6.25e-4, 1.25e-3, 2.5e-3, 5e-3, 1e-2),
        fixed=1e-2,
        iterations=(300,),
    ),
}
"""`pics -l1` with 0.01 is what BART's own examples have; it scales the data before it applies the weight."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run: what it was, how good, how long it took."""

    command: str
    name: str
    weight: float
    iterations: int
    block: int
    crop: float
    merit: float
    scores: dict[str, float]
    seconds: float
    candidate: Candidate


@dataclass
class Opponent:
    """BART on the data that the methods fit: conditioned, whitened, coils compressed."""

    scan: Scan
    bart: Bart
    kspace: Complex = field(init=False)

    def __post_init__(self) -> None:
        self._measurement = condition(self.scan.raw, device="cpu")
        self.kspace = self._measurement.kspace[0].numpy()
        self._settings: tuple[int, float] | None = None

    def best(self, name: str) -> tuple[Trial, list[Trial]]:
        """The best trial of a solver, and all trials by rising weight: those that a curve is drawn of."""
        solver = SOLVERS[name]
        block, crop = self._maps_settings()
        trials = [
            trial
            for n in solver.iterations
            for trial in searched(partial(self.trial, name, iterations=n, block=block, crop=crop), solver.start)
        ]
        best = max(trials, key=lambda trial: trial.merit)
        while (twice := self.with_iterations(best, 2)).merit > best.merit + CONVERGED_DB:
            trials.append(best := twice)
        return best, sorted(trials, key=lambda trial: trial.weight)

    def fixed(self, name: str) -> Trial:
        """A solver as it is run without a reference: default maps, the customary weight."""
        solver = SOLVERS[name]
        return self.trial(name, solver.fixed, iterations=solver.iterations[0], block=24, crop=0.8)

    def trial(self, name: str, weight: float, *, iterations: int, block: int, crop: float) -> Trial:
        """One run of a solver on maps of a block and a crop threshold."""
        sets = 2 if self.scan.case.folds else 1
        maps = self.bart.maps(self.kspace, block=block, crop=crop, sets=sets)
        options = SOLVERS[name].options(weight, iterations)
        output = self.bart.pics(self.kspace, maps.array, options)
        image = combined_of(self._measurement, maps.array, output.array)
        candidate = Candidate(image=image.astype(np.complex64), maps=maps.array)
        scores = self.scan.judge.scores(candidate)
        return Trial(
            command=f"ecalib -m{sets} -r {block} -c {crop:g}; pics {' '.join(options)}",
            name=name,
            weight=weight,
            iterations=iterations,
            block=block,
            crop=crop,
            merit=self.scan.judge.merit(scores),
            scores=scores,
            seconds=maps.seconds + output.seconds,
            candidate=candidate,
        )

    def with_iterations(self, trial: Trial, factor: int) -> Trial:
        """`trial` with `factor` times its iterations."""
        return self.trial(
            trial.name, trial.weight, iterations=factor * trial.iterations, block=trial.block, crop=trial.crop
        )

    def _maps_settings(self) -> tuple[int, float]:
        """The calibration block and crop threshold that the l1-wavelet does best with, at its best weight."""
        if self._settings is None:
            n = SOLVERS["bart_l1"].iterations[0]
            block, crop = BLOCKS[0], CROPS[0]
            trials = searched(
                partial(self.trial, "bart_l1", iterations=n, block=block, crop=crop), SOLVERS["bart_l1"].start
            )
            weight = max(trials, key=lambda trial: trial.merit).weight
            run = partial(self.trial, "bart_l1", weight, iterations=n)
            block = max(BLOCKS, key=lambda size: run(block=size, crop=crop).merit)
            crop = max(CROPS, key=lambda threshold: run(block=block, crop=threshold).merit)
            block = max(BLOCKS, key=lambda size: run(block=size, crop=crop).merit)
            self._settings = block, crop
        return self._settings


def converged(opponent: Opponent, best: Trial) -> str:
    """What twice the iterations of the best trial change, in words."""
    twice = opponent.with_iterations(best, 2)
    return (
        f"{opponent.scan.case.name}, {best.name} with {twice.iterations} iterations instead of {best.iterations}:"
        f" {twice.merit - best.merit:+.3f} dB"
    )


def searched(run: Callable[[float], Trial], start: tuple[float, ...]) -> list[Trial]:
    """Trials on the grid `start`, which is widened while the best lies at its edge, then halved around the best."""
    trials = {weight: run(weight) for weight in start}
    for _ in range(MOST_EXTENSIONS):
        best = _best(trials)
        if best == min(trials):
            weight = best / GRID_RATIO
        elif best == max(trials):
            weight = best * GRID_RATIO
        else:
            break
        trials[weight] = run(weight)
    best = _best(trials)
    for weight in (best / GRID_RATIO**0.5, best * GRID_RATIO**0.5):
        trials[weight] = run(weight)
    return list(trials.values())


def _best(trials: dict[float, Trial]) -> float:
    return max(trials, key=lambda weight: trials[weight].merit)
