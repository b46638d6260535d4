"""The bilevel paper's hypotheses as a table: values tuned on one scan, used on another.

H1: held-out samples find values as good as the fully sampled image does (the oracle). H2: values of another protocol
are worse. H3: values of the same protocol carry over to another scan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import optuna

from inrecon.tuning import Plan, Scans, compete, make_sampler
from tuning.bed import METHOD, Bed, Values
from tuning.searches import shipped

SHIPPED = "method's defaults"


def crossed(beds: Sequence[Bed], found: dict[str, Any], *, trials: int) -> Iterator[None]:
    """Tune on each of `beds` by its samples and by its oracle, then try all values on all of them.

    Fills `found`: "values" by origin, and "psnr" by case and origin in dB. Pauses after each figure.
    """
    values: dict[str, Values] = found["values"]
    values[SHIPPED] = shipped()
    for bed in beds:
        values[bed.name] = tuned(bed.scans, trials=trials)
        yield
        values[f"{bed.name}, oracle"] = tuned(bed.oracle, trials=trials)
        yield
    for bed in beds:
        row = found["psnr"].setdefault(bed.name, {})
        for origin, chosen in values.items():
            if not origin.endswith("oracle") or origin.startswith(bed.name):
                row[origin] = round(bed.psnr(chosen), 3)
                yield


def tuned(scans: Scans, *, trials: int) -> Values:
    """What `inrecon tune` finds, the method's defaults being among its candidates."""
    study = optuna.create_study(sampler=make_sampler("gp_ucb", seed=0))
    study.enqueue_trial(dict(shipped()))
    compete(study, Plan(method=METHOD, trials=trials), scans, worker="bench")
    return dict(study.best_trial.params)


def table(psnr: dict[str, dict[str, float]]) -> str:
    """Scans down, origins of the values across; differences from what was tuned on the scan itself."""
    others = [SHIPPED, *psnr]
    lines = ["| scan | tuned on it | oracle | " + " | ".join(others) + " |", "|---" * (3 + len(others)) + "|"]
    for case, row in psnr.items():
        own = row[case]
        cells = [f"{row[other] - own:+.2f}" if other != case else "" for other in others]
        lines.append(f"| {case} | {own:.2f} | {row[f'{case}, oracle'] - own:+.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
