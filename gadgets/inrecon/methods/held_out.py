"""Samples kept aside to judge a fit."""

import dataclasses

import torch

from inrecon.frame import Frame

CENTRE = 8
FEWEST = 2
FEWEST_LEFT = 8


def hold_out(frame: Frame, fraction: float, *, seed: int) -> Frame:
    """`frame` with a random `fraction` of its readouts held out, at least two of them.

    A readout is a line where all sampled lines are alike (a 2-D scan), a point of the plane elsewhere (two phase
    encodings). Whole ones, for a sample is told by its neighbours in the same readout, and the losses of points strewn
    over lines rank images badly: what a fit must tell are readouts that were never acquired. Those within 8 of the
    centre stay; where fewer than 8 others are left, or all data are zero, none is held out. Drawn on the CPU by a
    generator of its own: a seed holds out the same samples on every device and for every method.
    """
    sampled = frame.operator.sampled
    lines = bool((sampled == sampled[:1]).all())
    readouts = (sampled & ~_centre(frame, every_column=lines)).cpu()
    candidates = readouts.any(1).nonzero() if lines else readouts.nonzero()
    count = max(FEWEST, round(fraction * len(candidates)))
    if frame.power == 0 or len(candidates) - count < FEWEST_LEFT:
        return dataclasses.replace(frame, held_out=None)
    chosen = candidates[torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))[:count]]
    held_out = torch.zeros_like(readouts)
    held_out[tuple(chosen.T)] = True
    return dataclasses.replace(frame, held_out=held_out.to(sampled.device) & sampled)


def _centre(frame: Frame, *, every_column: bool) -> torch.Tensor:
    """Boolean ``(lines, columns)``: the samples of low frequency, along rows only if `every_column`."""
    rows, columns = frame.operator.domain_shape
    box = torch.zeros(1, rows, columns, dtype=torch.complex64, device=frame.kspace.device)
    box[:, _middle(rows), slice(None) if every_column else _middle(columns)] = 1
    return frame.operator.arrange(box)[0].abs() > 0.5


def _middle(n: int) -> slice:
    return slice(max(n // 2 - CENTRE, 0), n // 2 + CENTRE + 1)
