"""Hyperparameters by scan protocol: YAML files, one entry each. ``hyperparams/README.md`` says how to write one."""

from inrecon.hyperparams.check import Finding, check
from inrecon.hyperparams.entry import Entry, Resolved
from inrecon.hyperparams.explain import Explanation, explain
from inrecon.hyperparams.snapshot import HyperparameterFiles
from inrecon.hyperparams.write import match_for, write_entry

__all__ = [
    "Entry",
    "Explanation",
    "Finding",
    "HyperparameterFiles",
    "Resolved",
    "check",
    "explain",
    "match_for",
    "write_entry",
]
