"""The noise of a scan: what its own readouts told, or another measurement."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from inrecon.errors import InvalidFrame
from inrecon.frame import Noise

NOT_AT_HAND = "the noise measurement that was named is not at hand"
LEFT_TO_GADGETRON = "the noise measurement that was named is left to Gadgetron's own gadgets"
"""Readouts that come through Gadgetron may be white by now, and mixed, which nothing in them or their header tells."""


def noise_for(own: Noise | None, kept: Noise | str | None, labels: Sequence[str], *, coils: int) -> Noise | None:
    """The noise of data of `coils` channels that the header names by `labels`; None if nobody measured it.

    `own` is of the scan's own readouts and comes before `kept`, which is of another measurement, or says why it is
    missing. Raises `InvalidFrame` if it is, or if what there is was not measured with these coils.
    """
    if own is not None:
        if len(own.covariance) != coils:
            raise InvalidFrame(f"noise readouts of {len(own.covariance)} channels do not fit data of {coils}")
        return own
    if isinstance(kept, str):
        raise InvalidFrame(kept)
    return None if kept is None else _of_coils(kept, labels, coils=coils)


def _of_coils(noise: Noise, labels: Sequence[str], *, coils: int) -> Noise:
    """`noise` of these coils in their order.

    Where both sides name each of their coils, and no two alike, names decide: coils are put into the scan's order, and
    those that it does not use are left out. Otherwise coils are taken in the order that they have.
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
