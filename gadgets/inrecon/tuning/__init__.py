"""Hyperparameters found offline, from raw scans of a protocol alone (the bilevel paper's upper level).

    scans -> frames with samples held out -> race of candidates -> study -> entry

Optuna keeps the trials; everything that fits is `inrecon.methods`.
"""

from inrecon.tuning.inline import tuned_for
from inrecon.tuning.race import Race, race
from inrecon.tuning.scans import Judged, NotTunable, Scans, judged_scans
from inrecon.tuning.search import SAMPLERS, make_sampler, search_space
from inrecon.tuning.study import RUNGS, Plan, compete
from inrecon.tuning.verify import Verified, verify

__all__ = [
    "RUNGS",
    "SAMPLERS",
    "Judged",
    "NotTunable",
    "Plan",
    "Race",
    "Scans",
    "Verified",
    "compete",
    "judged_scans",
    "make_sampler",
    "race",
    "search_space",
    "tuned_for",
    "verify",
]
