"""Samples kept aside to judge a fit."""

import dataclasses

import torch

from inrecon.frame import Frame

FEWEST = 16
CENTRE = 2


def hold_out(frame: Frame, fraction: float, *, seed: int) -> Frame:
    """`frame` with a random `fraction` of its sampled positions held out, point by point, all coils together.

    The innermost 5 x 5 stay: they carry most of the energy, and nothing else tells them. So few samples that fewer
    than 16 positions would be held out are left whole. Drawn on the CPU by a generator of its own: a seed holds out
    the same samples on every device and for every method.
    """
    shape = frame.kspace.shape[1:]
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(frame.kspace.device)
    held_out = frame.operator.sampled & (drawn < fraction) & ~_centre(frame)
    return dataclasses.replace(frame, held_out=held_out if int(held_out.sum()) >= FEWEST else None)


def _centre(frame: Frame) -> torch.Tensor:
    """Boolean ``(lines, columns)``: the samples of lowest frequency."""
    rows, columns = frame.operator.domain_shape
    box = torch.zeros(1, rows, columns, dtype=torch.complex64, device=frame.kspace.device)
    box[:, _middle(rows), _middle(columns)] = 1
    return frame.operator.arrange(box)[0].abs() > 0.5


def _middle(n: int) -> slice:
    return slice(max(n // 2 - CENTRE, 0), n // 2 + CENTRE + 1)
