"""Reconstruction methods, by name. Other packages add theirs through the entry-point group ``inrecon.methods``."""

from inrecon.methods.auto import Auto
from inrecon.methods.bilevel_inr import BilevelINR
from inrecon.methods.grappa import Grappa
from inrecon.methods.held_out import hold_out
from inrecon.methods.imjense import Imjense
from inrecon.methods.linear import CGSense, ZeroFilled
from inrecon.methods.method import Method, Tunable, build, methods, tunable, tunable_fields
from inrecon.methods.residual import ResidualTikhonov, ResidualTV
from inrecon.methods.residual_inr import ResidualINR
from inrecon.methods.total_variation import TotalVariation
from inrecon.methods.unroll_inr import UnrollINR
from inrecon.methods.wavelet import L1Wavelet

__all__ = [
    "Auto",
    "BilevelINR",
    "CGSense",
    "Grappa",
    "Imjense",
    "L1Wavelet",
    "Method",
    "ResidualINR",
    "ResidualTV",
    "ResidualTikhonov",
    "TotalVariation",
    "Tunable",
    "UnrollINR",
    "ZeroFilled",
    "build",
    "hold_out",
    "methods",
    "tunable",
    "tunable_fields",
]
