"""Which k-space positions a case acquires. Lines are chosen as `inrecon.simulate` chooses them."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from inrecon.simulate import Pattern, sampled_lines
from inrecon.simulate.sampling import centre_block
from quality.cases import Case, InvalidCases

Mask = NDArray[np.bool_]


def sampled(case: Case, shape: tuple[int, int], *, own: Mask | None) -> Mask:
    """Boolean `shape` ``(rows, columns)``, centred; `own` is the data file's mask. Raises `InvalidCases`."""
    if case.pattern == "own":
        if own is None or own.shape != shape:
            raise InvalidCases(f"case {case.name}: pattern own, but {case.data} has no mask of {shape}")
        return own
    if case.pattern == "poisson":
        return _poisson_disc(case, shape)
    rows, columns = shape
    if case.centre > rows:
        raise InvalidCases(f"case {case.name}: {case.centre} centre lines of {rows}")
    lines = _lines(case, rows)
    first = round(rows * (1 - case.partial_fourier))
    if first > rows // 2 - case.centre // 2:
        raise InvalidCases(f"case {case.name}: partial_fourier {case.partial_fourier:g} leaves out centre lines")
    lines[:first] = False
    return np.repeat(lines[:, None], columns, axis=1)


def centre_square(shape: tuple[int, int], side: int) -> tuple[slice, slice]:
    """The central `side` x `side` positions, whose own centre ``side // 2`` lies on ``n // 2``."""
    down, across = (centre_block(n, side) for n in shape)
    return down, across


def _lines(case: Case, rows: int) -> Mask:
    if case.pattern == "full":
        return np.ones(rows, bool)
    pattern: Pattern = "uniform" if case.pattern == "uniform" else "random"
    return sampled_lines(rows, pattern=pattern, acceleration=int(case.acceleration), acs=case.centre, seed=case.seed)


def _poisson_disc(case: Case, shape: tuple[int, int]) -> Mask:
    """Variable-density Poisson disc (Bridson 2007), by sigpy: corners of k-space are left out, the centre is full."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numba and of sigpy's optional parts
        from sigpy.mri import poisson

        try:
            disc = poisson(shape, case.acceleration, calib=(case.centre, case.centre), seed=case.seed)
        except ValueError as error:
            raise InvalidCases(f"case {case.name}: no Poisson disc of {shape} like that: {error}") from error
    mask: Mask = np.abs(disc) > 0
    mask[centre_square(shape, case.centre)] = True
    return mask
