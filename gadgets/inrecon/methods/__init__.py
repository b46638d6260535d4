"""Reconstruction methods, by name. Other packages add theirs through the entry-point group ``inrecon.methods``."""

from inrecon.methods.bilevel_inr import BilevelINR
from inrecon.methods.linear import CGSense, ZeroFilled
from inrecon.methods.method import Method, Tunable, build, methods, tunable, tunable_fields

__all__ = ["BilevelINR", "CGSense", "Method", "Tunable", "ZeroFilled", "build", "methods", "tunable", "tunable_fields"]
