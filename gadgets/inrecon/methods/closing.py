"""The closing step: how near to its data a finished image is brought."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inrecon.frame import Frame
from inrecon.methods.linear import data_consistent

ITERATIONS = 30
TOLERANCE = 0.02


def closed(
    frame: Frame, prior: torch.Tensor, tried: torch.Tensor | None, *, weights: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """argmin |A x - y|^2 + weight |x - prior|^2 of all samples, and that of the training samples with the image `tried`
    that was made of them alone.

    The weight is one of `weights`, which rise: the smallest whose loss on the held-out samples, beyond what their noise
    makes of it, is within 2 % of the least. The smallest, because the losses favour large weights: an image
    made without some of the samples needs its prior more than the one that is sent. Where nothing judges it is the
    middle one.
    """
    chosen, trial = len(weights) // 2, None
    if tried is not None:
        trials = data_consistent(frame.training, prior=tried, weights=weights, iterations=ITERATIONS)
        losses = [frame.loss(image) for image in trials]
        noise = frame.noise_loss
        excess = [loss - noise for loss in losses if loss is not None]
        if excess:
            tolerated = min(excess) + TOLERANCE * max(min(excess), 0.0)
            chosen = next(i for i, loss in enumerate(excess) if loss <= tolerated)
        trial = trials[chosen]
    return data_consistent(frame, prior=prior, weights=[weights[chosen]], iterations=ITERATIONS)[0], trial


def weights_around(middle: float, doublings: int) -> list[float]:
    """`middle`, and what is up to so many doublings smaller and larger."""
    return [middle * 2.0**power for power in range(-doublings, doublings + 1)]
