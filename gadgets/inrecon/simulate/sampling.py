"""Which lines of k-space a simulated scan acquires."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from inrecon.errors import InvalidFrame

Pattern = Literal["uniform", "random", "full"]


def sampled_lines(
    lines: int, *, pattern: Pattern = "uniform", acceleration: int = 6, acs: int = 20, offset: int = 0, seed: int = 0
) -> NDArray[np.bool_]:
    """Boolean ``(lines,)``: the acquired lines, the `acs` lines around the centre ``lines // 2`` among them.

    "uniform" takes every `acceleration`-th line, the one `offset` lines beyond the centre (0: the centre one) included,
    and fills in the centre; "random" takes
    ``lines / acceleration`` in all, dense near the centre and drawn from `seed`; "full" takes all. Raises
    `InvalidFrame` for an unknown pattern, an acceleration below 1 or more `acs` lines than lines.
    """
    if pattern not in get_args(Pattern):
        raise InvalidFrame(f"pattern must be one of {', '.join(get_args(Pattern))}, not {pattern!r}")
    if acceleration < 1 or not 0 <= acs <= lines:
        raise InvalidFrame(f"{lines} lines cannot be sampled with acceleration {acceleration} and {acs} centre lines")
    order = np.arange(lines) - lines // 2
    if pattern == "full":
        return np.ones(lines, bool)
    mask = np.zeros(lines, bool)
    mask[centre_block(lines, acs)] = True
    if pattern == "uniform":
        mask[(order - offset) % acceleration == 0] = True
        return mask
    weight = np.where(mask, 0.0, 1 / (1 + (order / (lines / 8)) ** 2))
    extra = max(round(lines / acceleration) - acs, 0)
    if extra:
        mask[np.random.default_rng(seed).choice(lines, extra, replace=False, p=weight / weight.sum())] = True
    return mask


def centre_block(length: int, size: int) -> slice:
    """The `size` positions whose own centre, ``size // 2``, lies on ``length // 2``."""
    start = length // 2 - size // 2
    return slice(start, start + size)
