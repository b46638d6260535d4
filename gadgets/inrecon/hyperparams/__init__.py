"""Hyperparameters by scan protocol: YAML files, one entry each. ``hyperparams/README.md`` says how to write one."""

from inrecon.hyperparams.check import Finding, check
from inrecon.hyperparams.entry import Entry, Resolved
from inrecon.hyperparams.snapshot import HyperparameterFiles

__all__ = ["Entry", "Finding", "HyperparameterFiles", "Resolved", "check"]
