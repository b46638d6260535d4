"""Scans made from a phantom: an object, coils, k-space lines and the ISMRMRD file that a scanner would have sent.

Everything is drawn from a seed with numpy, so that tests and the demo need no data of anybody's.
"""

from inrecon.simulate.abdomen import abdomen_phantom
from inrecon.simulate.intervention import StreamPattern, repaint, simulate_intervention
from inrecon.simulate.live import Intervention
from inrecon.simulate.phantom import brain_phantom, coil_maps
from inrecon.simulate.sampling import Pattern, sampled_lines
from inrecon.simulate.scan import SimulatedScan, folded, simulate_scan, write_ismrmrd

__all__ = [
    "Intervention",
    "Pattern",
    "SimulatedScan",
    "StreamPattern",
    "abdomen_phantom",
    "brain_phantom",
    "coil_maps",
    "folded",
    "repaint",
    "sampled_lines",
    "simulate_intervention",
    "simulate_scan",
    "write_ismrmrd",
]
