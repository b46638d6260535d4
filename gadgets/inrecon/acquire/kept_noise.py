"""Noise that another measurement told, for the coils of this one."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from inrecon.errors import InvalidFrame
from inrecon.frame import Noise


def noise_for_coils(noise: Noise, labels: Sequence[str], *, coils: int) -> Noise:
    """`noise` of the `coils` channels of a scan whose header names them by `labels`, in their order.

    Where both sides name each of their coils, and no two alike, names decide: coils are put into the scan's order, and
    those that it does not use are left out. Otherwise coils are taken in the order that they have. Raises
    `InvalidFrame` if names, or numbers where names do not tell, say that the coils are not the same.
    """
    known = noise.coil_labels
    if _tell(known, len(noise.covariance)) and _tell(labels, coils):
        missing = len(set(labels) - set(known))
        if missing:
            raise InvalidFrame(
                f"{missing} of the scan's {coils} coils are not among the {len(known)} of its noise measurement"
            )
        order = [known.index(label) for label in labels]
        return replace(noise, covariance=noise.covariance[np.ix_(order, order)], coil_labels=tuple(labels))
    if len(noise.covariance) != coils:
        raise InvalidFrame(
            f"the noise measurement has {len(noise.covariance)} channels, the scan {coils}, and no coil labels tell "
            "which are the same"
        )
    return noise


def _tell(labels: Sequence[str], coils: int) -> bool:
    """Whether `labels` name each of the coils."""
    return len(labels) == len(set(labels)) == coils and all(labels)
