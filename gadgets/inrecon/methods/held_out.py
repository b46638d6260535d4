"""Samples kept aside to judge a fit."""

import dataclasses

import torch

from inrecon.frame import Frame

STRETCH = 16
CENTRE = 2
FEWEST = 2
FEWEST_LEFT = 8


def hold_out(frame: Frame, fraction: float, *, seed: int) -> Frame:
    """`frame` with a random `fraction` of its samples held out: stretches of 16 along the readout, at least two.

    Stretches, because a single sample is told by its neighbours in the same readout, and losses on samples strewn over
    lines rank images badly; not whole lines, whose loss opens a hole right across k-space that the scan does not have.
    Where lines are not sampled alike each point is a readout of its own (two phase encodings) and stands alone. The
    innermost 5 x 5 samples stay; where fewer than 8 stretches would be left, or all data are zero, none is held out.
    Drawn on the CPU by a generator of its own: a seed holds out the same samples on every device and for every method.
    """
    sampled = frame.operator.sampled.cpu()
    length = STRETCH if bool((sampled == sampled[:1]).all()) else 1
    stretches = _in_stretches(sampled, length)
    candidates = (stretches.any(2) & ~_in_stretches(_centre(frame).cpu(), length).any(2)).nonzero()
    count = max(FEWEST, round(fraction * len(candidates)))
    if frame.power == 0 or len(candidates) - count < FEWEST_LEFT:
        return dataclasses.replace(frame, held_out=None)
    chosen = candidates[torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))[:count]]
    taken = torch.zeros_like(stretches)
    taken[tuple(chosen.T)] = True
    held_out = taken.flatten(1)[:, : sampled.shape[1]] & sampled
    return dataclasses.replace(frame, held_out=held_out.to(frame.kspace.device))


class Best:
    """The best image so far by its loss on held-out samples."""

    def __init__(self) -> None:
        self.loss: float | None = None
        self.image: torch.Tensor | None = None
        self._since = 0

    def update(self, loss: float | None, image: torch.Tensor) -> int:
        """Take note of a check; returns the number of checks since the best one."""
        if loss is not None and (self.loss is None or loss < self.loss):
            self.loss, self.image, self._since = loss, image.clone(), 0
        else:
            self._since += 1
        return self._since


def _in_stretches(marked: torch.Tensor, length: int) -> torch.Tensor:
    """``(lines, columns)`` as ``(lines, stretches, length)``, filled up with False."""
    missing = -marked.shape[1] % length
    return torch.nn.functional.pad(marked, (0, missing)).unflatten(1, (-1, length))


def _centre(frame: Frame) -> torch.Tensor:
    """Boolean ``(lines, columns)``: the samples of lowest frequency."""
    rows, columns = frame.operator.domain_shape
    box = torch.zeros(1, rows, columns, dtype=torch.complex64, device=frame.kspace.device)
    box[:, _middle(rows), _middle(columns)] = 1
    return frame.operator.arrange(box)[0].abs() > 0.5


def _middle(n: int) -> slice:
    return slice(max(n // 2 - CENTRE, 0), n // 2 + CENTRE + 1)
