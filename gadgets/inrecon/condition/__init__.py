"""From readouts as acquired to clean k-space: white noise, no oversampling, few coils, 2-D problems."""

from inrecon.condition.condition import MOST_COILS, Conditioning, condition, conditioned
from inrecon.condition.sparks import without_sparks

__all__ = ["MOST_COILS", "Conditioning", "condition", "conditioned", "without_sparks"]
