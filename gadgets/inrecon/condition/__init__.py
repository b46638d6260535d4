"""From readouts as acquired to clean k-space: white noise, no oversampling, few coils, 2-D problems."""

from inrecon.condition.condition import MOST_COILS, condition

__all__ = ["MOST_COILS", "condition"]
