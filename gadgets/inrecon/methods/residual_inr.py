"""Frames told by how they differ from a prior image, the difference an implicit neural representation."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from inrecon.deadline import DEADLINE, time_left
from inrecon.encoders import EncoderSettings
from inrecon.frame import Frame, Reconstruction
from inrecon.methods.auto import convex_weights
from inrecon.methods.method import bounded, methods, tunable
from inrecon.methods.network import Grid, NetworkSettings, build_network, surrounded
from inrecon.methods.residual import FULL_SHARE, Difference, Problem, ResidualTV, TVDifference
from inrecon.methods.total_variation import differences

AVERAGING = 0.85
"""Of the images of a frame's iterations: the share that the average so far keeps."""
UNIT = 0.2
"""What the network's outputs are multiplied by, over the largest pixel of the first frame."""
ROUNDING = 1e-3
"""In these units: below it the total variation is a parabola, and so has a gradient."""


@methods.register("residual_inr")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualINR(ResidualTV):
    """The difference as a network on a hash grid with total variation on it, weighed against `residual_tv`.

    The network goes on from its parameters of the last frame for `network_iterations`, or as long as there is time; its
    images are averaged. It, `residual_tv` and no difference at all are weighed by the held-out samples (as in `auto`).
    """

    name: ClassVar[str] = "residual_inr"
    network_iterations: int = bounded(30, low=0, high=10_000)
    learning_rate: float = tunable(1e-2, low=1e-4, high=1e-1, log=True, symbol="tau")
    levels: int = bounded(16, low=1, high=32)
    log2_table_size: int = bounded(18, low=4, high=24)
    base_resolution: int = bounded(16, low=1, high=512)
    per_level_scale: float = tunable(1.5, low=1.2, high=2.0, symbol="b")
    hidden_layers: int = bounded(2, low=0, high=16)
    width: int = bounded(64, low=1, high=512)
    seed: int = bounded(0, low=0, high=2**31 - 1)

    def difference(self, frame: Frame) -> Difference:
        """Kept from frame to frame with the network."""
        return _NetworkDifference(self, frame)


class _NetworkDifference(Difference):
    def __init__(self, method: ResidualINR, frame: Frame) -> None:
        self._method = method
        self._classical = TVDifference(method, frame)
        self.image = self._classical.image
        largest = frame.operator.adjoint(frame.kspace) if frame.prior is None else frame.prior
        self._unit = UNIT * float(largest.abs().max()) or 1.0
        encoder = EncoderSettings(
            levels=method.levels,
            log2_table_size=method.log2_table_size,
            base_resolution=method.base_resolution,
            per_level_scale=method.per_level_scale,
        )
        self._network = build_network(
            [Grid(region=surrounded(frame.maps.support), offset=(0.0, 0.0))],
            NetworkSettings(
                encoder="hash_grid",
                encoder_settings=encoder,
                hidden_layers=method.hidden_layers,
                width=method.width,
            ),
            shape=frame.operator.domain_shape,
            generators=[torch.Generator().manual_seed(method.seed)],
        )
        self._optimizer = torch.optim.Adam(
            self._network.parameters(), lr=method.learning_rate, betas=(0.9, 0.99), eps=1e-15, fused=True
        )

    def fit(self, frame: Frame, base: torch.Tensor, *, seen: Problem, everything: Problem) -> Reconstruction:
        classical = self._classical.fit(frame, base, seen=seen, everything=everything)
        last = self._method.network_iterations
        judged_at = last - round(FULL_SHARE * last) if frame.held_out is not None else last
        trial, done, losses = self._follow(seen, 0, judged_at)
        if done == 0 or classical.trial is None:
            self.image = classical.image - base
            return classical
        image, done, later = self._follow(everything, done, last) if done < last else (trial, done, [])
        residuals = torch.stack([frame.residuals(x) for x in (classical.trial, base + trial, base)])
        weights = convex_weights(residuals)
        tried = weights[0] * (classical.trial - base) + weights[1] * trial
        self.image = weights[0] * (classical.image - base) + weights[1] * image
        names = ("residual_tv", "network", "prior")
        return Reconstruction(
            image=base + self.image,
            trial=base + tried,
            validation_loss=frame.loss(base + tried),
            iterations=done,
            stopped_by="iterations" if done == last else DEADLINE,
            losses=(*losses, *later),
            backend=self._network.encoder.backend,
            remark=" + ".join(f"{w:.2f} {name}" for w, name in zip(weights, names, strict=True) if w >= 0.005),
        )

    def _follow(self, problem: Problem, done: int, goal: int) -> tuple[torch.Tensor, int, list[float]]:
        """The averaged difference after iterations from number `done` to `goal`, as long as there is time."""
        average: torch.Tensor | None = None
        losses: list[torch.Tensor] = []
        while done < goal and time_left() > 0:
            loss, difference = self._step(problem)
            average = difference if average is None else torch.lerp(difference, average, AVERAGING)
            losses.append(loss)
            done += 1
        return self.image if average is None else average, done, torch.stack(losses).tolist() if losses else []

    def _step(self, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of Adam; the loss over the noise, and the difference before the step."""
        difference = self._network()[0] * self._unit
        with torch.no_grad():
            error = problem.operator.forward(difference) - problem.missing
            gradient = problem.operator.adjoint(error)
        rounded = (differences(difference).abs().square().sum(0) + (ROUNDING * self._unit) ** 2).sqrt()
        variation = self._method.tv_weight * problem.noise * rounded.sum()
        pull = (torch.view_as_real(difference) * torch.view_as_real(gradient)).sum()
        self._optimizer.zero_grad()
        ((pull + variation) / problem.noise**2).backward()
        self._optimizer.step()
        loss = (error.abs().square().sum() / 2 + variation.detach()) / problem.noise**2
        return loss, difference.detach()
