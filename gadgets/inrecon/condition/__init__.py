"""From readouts as acquired to conditioned 2-D problems in torch."""

from inrecon.condition.measurement import condition

__all__ = ["condition"]
