"""Samples kept aside to judge a fit."""

import dataclasses

import torch

from inrecon.frame import Frame

HELD_OUT = 0.05
"""The part of the samples that judges a fit."""
STRETCH = 16
CENTRE = 2
FEWEST = 16
LARGEST_SHARE = 0.2
FEWEST_LEFT = 8
FEWEST_CERTAIN = 8


def hold_out(frame: Frame, fraction: float, *, seed: int) -> Frame:
    """`frame` with a random `fraction` of its samples held out: stretches of 16 along the readout, at least 16 of them
    where that is no more than a fifth, and at least two.

    Stretches, because a single sample is told by its neighbours in the same readout, and losses on samples strewn over
    lines rank images badly; not whole lines, whose loss opens a hole right across k-space that the scan does not have
    (of short lines a stretch is at most half). Where lines have gaps each point is a readout of its own (two phase
    encodings) and stands alone. The innermost 5 x 5 samples stay; where fewer than 8 stretches would be left, none is
    held out. Drawn on the CPU by a generator of its own, and whatever the data are: a seed holds out the same samples
    on every device, for every method and in every slice.
    """
    sampled = frame.operator.sampled.cpu()
    length = min(STRETCH, sampled.shape[1] // 2) if _without_gaps(frame.operator.mask) else 1
    stretches = _in_stretches(sampled, length)
    candidates = (stretches.any(2) & ~_in_stretches(frame.operator.central(CENTRE).cpu(), length).any(2)).nonzero()
    count = max(round(fraction * len(candidates)), min(FEWEST, int(LARGEST_SHARE * len(candidates))))
    if count < 2 or len(candidates) - count < FEWEST_LEFT:
        return dataclasses.replace(frame, held_out=None)
    chosen = candidates[torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))[:count]]
    taken = torch.zeros_like(stretches)
    taken[tuple(chosen.T)] = True
    held_out = taken.flatten(1)[:, : sampled.shape[1]] & sampled
    return dataclasses.replace(frame, held_out=held_out.to(frame.kspace.device))


def certainty(frame: Frame, *, worse: torch.Tensor, better: torch.Tensor) -> float:
    """By how many standard errors the residuals `worse` are larger than those of another image, `better`.

    Neighbours in a readout err alike, so what counts as one is a run of held-out samples; and since a few runs hold
    most of the error, it is the mean of the logarithm of the ratio of the two errors that is tested. Of fewer than 8
    runs the standard error is worth nothing, and so is the answer: 0. If an image has been chosen by these samples, it
    is less certain than this says.
    """
    if frame.held_out is None:
        return 0.0
    errors = torch.stack([worse, better]).abs().square().unflatten(1, (len(frame.kspace), -1)).sum(1)
    begins = frame.held_out & ~torch.nn.functional.pad(frame.held_out, (1, 0))[:, :-1]
    run = (begins.flatten().cumsum(0) - 1).view_as(begins)[frame.held_out]
    runs = torch.zeros(2, int(begins.sum()), dtype=torch.float64, device=errors.device)
    runs.index_add_(1, run, errors.double())
    gains = runs.clamp(min=torch.finfo(runs.dtype).tiny).log().diff(dim=0)[0].neg()
    if len(gains) < FEWEST_CERTAIN:
        return 0.0
    return float(gains.mean() / (gains.std() / len(gains) ** 0.5).clamp(min=1e-30))


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


def _without_gaps(mask: torch.Tensor) -> bool:
    """Whether the samples of each row of the centred `mask` follow one another, as those of a readout do."""
    begins = mask & ~torch.nn.functional.pad(mask, (1, 0))[:, :-1]
    return int(begins.sum(1).max()) <= 1


def _in_stretches(marked: torch.Tensor, length: int) -> torch.Tensor:
    """``(lines, columns)`` as ``(lines, stretches, length)``, filled up with False."""
    missing = -marked.shape[1] % length
    return torch.nn.functional.pad(marked, (0, missing)).unflatten(1, (-1, length))
