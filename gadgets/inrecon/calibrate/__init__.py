"""Coil sensitivities from k-space: ESPIRiT, and a smooth sum of squares to fall back on."""

from inrecon.calibrate.espirit import espirit
from inrecon.calibrate.smooth import smooth_sum_of_squares
from inrecon.calibrate.widen import widened

__all__ = ["espirit", "smooth_sum_of_squares", "widened"]
