"""Frames told by how they differ from a prior image, the difference corrected by an implicit neural representation."""

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
from inrecon.methods.residual import FULL_SHARE, Difference, Problem, ResidualTV, TVDifference, energies
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
    """`residual_tv`, and a network on a hash grid that gives back what total variation takes away.

    The network's image is added to the difference of least total variation and fitted with it to the data, under a part
    `network_tv` of the weight of total variation, which shrinks what is new in a frame. A network that is all of the
    difference lags behind what moves, and converges to the same image. It goes on from its parameters of the last
    frame for `network_iterations`, or as long as there is time; its images are averaged. The held-out samples tell how
    much of it is worth having (as in `auto`).
    """

    name: ClassVar[str] = "residual_inr"
    tv_weight: float = tunable(0.25, low=0.01, high=5.0, log=True, symbol="lambda_s")
    network_iterations: int = bounded(30, low=0, high=10_000)
    learning_rate: float = tunable(1e-2, low=1e-4, high=1e-1, log=True, symbol="tau")
    network_tv: float = tunable(0.5, low=0.05, high=1.0, log=True)
    levels: int = bounded(10, low=1, high=32)
    log2_table_size: int = bounded(18, low=4, high=24)
    base_resolution: int = bounded(16, low=1, high=512)
    per_level_scale: float = tunable(1.5, low=1.2, high=2.0, symbol="b")
    hidden_layers: int = bounded(1, low=0, high=16)
    width: int = bounded(32, low=1, high=512)
    seed: int = bounded(0, low=0, high=2**31 - 1)

    def difference(self, frame: Frame) -> Difference:
        """Kept from frame to frame with the network."""
        return _NetworkDifference(self, frame)


class _NetworkDifference(Difference):
    def __init__(self, method: ResidualINR, frame: Frame) -> None:
        super().__init__(frame)
        self._method = method
        self._classical = TVDifference(method, frame)
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

    @property
    def state(self) -> tuple[torch.Tensor, ...]:
        """The whole difference and the classical one: the network, which corrects that, soon finds its way again."""
        return self.image, *self._classical.state

    def resume(self, state: tuple[torch.Tensor, ...]) -> None:
        """The network begins anew."""
        self.image, *classical = state
        self._classical.resume(tuple(classical))

    def fit(self, frame: Frame, base: torch.Tensor, *, seen: Problem, everything: Problem) -> Reconstruction:
        classical = self._classical.fit(frame, base, seen=seen, everything=everything)
        self.image = classical.image - base
        last = self._method.network_iterations
        if classical.trial is None or time_left() <= 0 or last == 0:
            return classical
        judged_at = last - round(FULL_SHARE * last)
        losses: list[torch.Tensor] = []
        corrections = [
            self._follow(problem, image - base, goal, losses)
            for problem, image, goal in ((seen, classical.trial, judged_at), (everything, classical.image, last))
        ]
        tried, added = corrections
        names = ("residual_tv", "with network")
        # No share for the prior alone: it would fade what is new, and these samples hardly see a needle.
        residuals = torch.stack([frame.residuals(x) for x in (classical.trial, classical.trial + tried)])
        weights = convex_weights(residuals)
        trial = classical.trial + weights[1] * tried
        self.image = self.image + weights[1] * added
        return Reconstruction(
            image=base + self.image,
            trial=trial,
            validation_loss=frame.loss(trial),
            iterations=max(len(losses), 1),
            stopped_by="iterations" if len(losses) == last else DEADLINE,
            losses=tuple(torch.stack(losses).tolist()) if losses else (),
            backend=self._network.encoder.backend,
            remark=" + ".join(f"{w:.2f} {name}" for w, name in zip(weights, names, strict=True) if w >= 0.005),
        )

    def _follow(
        self, problem: Problem, difference: torch.Tensor, goal: int, losses: list[torch.Tensor]
    ) -> torch.Tensor:
        """The network's averaged image beside `difference`, when there are `goal` `losses`, or no time is left."""
        problem = dataclasses.replace(problem, missing=problem.missing - problem.operator.forward(difference))
        average: torch.Tensor | None = None
        while len(losses) < goal and (time_left() > 0 or average is None):
            loss, correction = self._step(problem, difference)
            average = correction if average is None else torch.lerp(correction, average, AVERAGING)
            losses.append(loss)
        return torch.zeros_like(difference) if average is None else average

    def _step(self, problem: Problem, difference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of Adam; the loss in units of the noise, and the network's image before the step."""
        correction = self._network()[0] * self._unit
        with torch.no_grad():
            error = problem.operator.forward(correction) - problem.missing
            gradient = problem.operator.adjoint(error)
        jumps = energies(differences(difference + correction))
        variation = (jumps + (ROUNDING * self._unit) ** 2).sqrt().sum()
        penalty = self._method.network_tv * self._method.tv_weight * problem.noise * variation
        pull = (torch.view_as_real(correction) * torch.view_as_real(gradient)).sum()
        self._optimizer.zero_grad()
        ((pull + penalty) / problem.noise**2).backward()
        self._optimizer.step()
        loss = (error.abs().square().sum() / 2 + penalty.detach()) / problem.noise**2
        return loss, correction.detach()
