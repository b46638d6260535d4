"""Scans made from a phantom: an object, coils, k-space lines and the ISMRMRD file that a scanner would have sent.

Everything is drawn from a seed with numpy, so that tests and the demo need no data of anybody's.
"""

from inrecon.simulate.phantom import brain_phantom, coil_maps
from inrecon.simulate.sampling import Pattern, sampled_lines
from inrecon.simulate.scan import SimulatedScan, folded, simulate_scan, write_ismrmrd

__all__ = [
    "Pattern",
    "SimulatedScan",
    "brain_phantom",
    "coil_maps",
    "folded",
    "sampled_lines",
    "simulate_scan",
    "write_ismrmrd",
]
