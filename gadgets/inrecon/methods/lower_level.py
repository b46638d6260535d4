"""One run of the bilevel INR's lower level: networks, optimiser, what is averaged, when to stop."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from inrecon.errors import FitDiverged
from inrecon.events import FitProgressed, observe
from inrecon.frame import Frame
from inrecon.methods.held_out import Best
from inrecon.methods.linear import CGSense
from inrecon.methods.network import Grid, ImageNetwork, build_network, surrounded
from inrecon.methods.phase import smooth_phase
from inrecon.operators import CartesianSense, displace_image
from inrecon.operators.cartesian import Offset

if TYPE_CHECKING:
    from inrecon.methods.bilevel_inr import BilevelINR

CHECK_EVERY = 25


@dataclasses.dataclass
class _View:
    """The problem on pixel centres moved by `offset` (rows, columns; pixels), and the average of its images so far.

    `phase` is the slices' expected phase, ``(slices, 1, rows, columns)``, or None.
    """

    number: int
    offset: Offset
    operator: CartesianSense
    kspace: torch.Tensor
    phase: torch.Tensor | None
    average: torch.Tensor | None = None
    count: int = 0


class LowerLevel:
    """Networks fitted to `frames`, at first without the held-out samples: `method.members` for each, all side by side.

    Images are ``(slices, members, rows, columns)`` within. Member m of a slice is what a fit of that slice alone with
    the seed `method.seed` + m gives.
    """

    def __init__(self, method: BilevelINR, frames: Sequence[Frame]) -> None:
        self.method = method
        self.frames = frames
        training = [frame.training for frame in frames]
        kspace = torch.stack([frame.kspace for frame in frames])[:, None]
        operator = CartesianSense.stacked([frame.operator for frame in frames])
        self.seen = training[0].operator.sampled
        linear = [CGSense().fit(frame).image for frame in training] if method.phase_width else []
        self.views = [
            _View(
                number=number,
                offset=offset,
                operator=operator.displaced(offset),
                kspace=operator.displace(kspace, offset),
                phase=self._phase(linear, offset) if linear else None,
            )
            for number, offset in enumerate(method.offsets())
        ]
        seeds = range(method.seed, method.seed + method.members)
        region = surrounded(torch.stack([frame.maps.support for frame in frames]).any(0))
        self.network: ImageNetwork = build_network(
            [Grid(region=region, offset=view.offset) for view in self.views],
            method.network_settings(region.shape),
            generators=[torch.Generator().manual_seed(seed) for _ in frames for seed in seeds],
        )
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(self.network.encoder.parameters()), "weight_decay": self._encoder_decay(training)},
                {"params": list(self.network.mlp.parameters()), "weight_decay": method.weight_decay_mlp},
            ],
            lr=method.learning_rate,
            betas=(0.9, 0.99),
            eps=1e-15,
            fused=True,
        )
        offsets = [self._offset(frame) for frame in training]
        self.delta = torch.tensor(offsets, device=kspace.device).view(-1, 1, 1, 1, 1)
        self.dropout = [torch.Generator(kspace.device).manual_seed(seed) for seed in seeds]
        self.history: list[torch.Tensor] = []
        self.trials: Sequence[torch.Tensor | None] = [None] * len(frames)
        self.best = [Best() for _ in frames]

    def run(self) -> str:
        """Iterate, at last on all samples; returns the reason of the stop.

        Raises `FitDiverged` if no slice has a finite loss any more.
        """
        method = self.method
        judged = 0 if self.frames[0].held_out is None else max(1, round(method.iterations * (1 - method.released)))
        stopped_by = self._iterate(judged, patience=method.patience)
        done = len(self.history)
        if judged:
            self.trials = self._best_or_last()
            self.seen = self.views[0].operator.sampled
        self._iterate(method.iterations - judged if done == judged else round(done * method.released), patience=0)
        return stopped_by

    def images(self) -> list[torch.Tensor]:
        """Of each slice, ``(rows, columns)``: what has come of all samples, or the trial if no iteration saw all."""
        released = self.method.released > 0
        return [
            mean if released or trial is None else trial for mean, trial in zip(self._means(), self.trials, strict=True)
        ]

    def _iterate(self, iterations: int, *, patience: int) -> str:
        for iteration in range(1, iterations + 1):
            self.history.append(self._step(self.views[iteration % len(self.views)]))
            if iteration % CHECK_EVERY and iteration != iterations:
                continue
            observe(FitProgressed(iteration=len(self.history), iterations=self.method.iterations))
            if not torch.isfinite(self.history[-1]).any():
                raise FitDiverged(f"bilevel_inr diverged: its loss is not finite after {len(self.history)} iterations")
            if patience and self._check() >= patience:
                return "held-out samples"
        return "iterations"

    def _best_or_last(self) -> list[torch.Tensor]:
        """With `patience` each slice's best image on held-out samples, else its last."""
        return [
            image if best.image is None else best.image for image, best in zip(self._means(), self.best, strict=True)
        ]

    def losses(self) -> list[list[float]]:
        """The training losses of each slice by iteration, the mean of its members'."""
        return torch.stack(self.history).mean(2).T.tolist()

    def _step(self, view: _View) -> torch.Tensor:
        """One iteration of Adam on `view`; returns the training losses, ``(slices, members)``.

        W is detached, so the gradient with respect to the image is A^H W^2 (A x - y) in closed form and only the
        network is differentiated.
        """
        self.optimizer.zero_grad(set_to_none=True)
        images = self._rendered(view)
        with torch.no_grad():
            predicted = view.operator.forward(images)
            residual = predicted - view.kspace
            weight = self._kept(view) * self._squared_weight(predicted, view.kspace) / view.operator.positions
            weighted = weight * residual
            # As if all samples were seen: losses before and after the release can be compared.
            share = self.seen.sum() / view.operator.sampled.sum()
            losses = torch.linalg.vecdot(residual.flatten(2), weighted.flatten(2)).real / share
            gradient = 2 * view.operator.adjoint(weighted)
        torch.autograd.backward(images, gradient)
        self.optimizer.step()
        view.average = self._averaged(view, images.detach())
        view.count += 1
        return losses

    def _rendered(self, view: _View) -> torch.Tensor:
        """The networks' images on the pixels of `view`."""
        images = self.network(view.number)
        images = images.view(len(self.frames), self.method.members, *images.shape[1:])
        return images if view.phase is None else view.phase * images

    def _averaged(self, view: _View, images: torch.Tensor) -> torch.Tensor:
        """The exponential average with `images` in it; a plain mean as long as there are few."""
        if view.average is None:
            return images
        return torch.lerp(images, view.average, min(self.method.image_averaging, view.count / (view.count + 1)))

    def _kept(self, view: _View) -> torch.Tensor:
        """The samples of this iteration: a random part is left out and the rest scaled to keep the mean."""
        dropped = self.method.sample_dropout
        if dropped == 0:
            return self.seen
        shape = view.operator.range_shape
        drawn = torch.stack([torch.rand(shape, generator=g, device=self.seen.device) for g in self.dropout])
        return self.seen * (drawn >= dropped) / (1 - dropped)

    def _squared_weight(self, predicted: torch.Tensor, acquired: torch.Tensor) -> torch.Tensor:
        """W^2 of Eq. (9), or of the published form."""
        if self.method.weight == "none":
            return torch.ones((), device=predicted.device)
        magnitude = (predicted if self.method.weight == "self" else acquired).abs()
        if self.method.weight_form == "squares":
            return 1 / (magnitude.square() + self.delta)
        return 1 / (magnitude + self.delta).square()

    def _phase(self, linear: Sequence[torch.Tensor], offset: Offset) -> torch.Tensor:
        """The phase that the slices are expected to have, from their linear reconstructions."""
        return smooth_phase(torch.stack(list(linear))[:, None], width=self.method.phase_width, offset=offset)

    def _encoder_decay(self, training: Sequence[Frame]) -> float:
        """lambda_Enc for the noise that there is: the same for all slices, for a typical one."""
        share = statistics.median_low(frame.noise_share for frame in training)
        return self.method.weight_decay_encoder * (1 + (self.method.noise_decay * share) ** 2)

    def _offset(self, frame: Frame) -> float:
        """delta of W in the units of the frame's k-space."""
        unit = frame.power if self.method.offset_unit == "power" else float(frame.kspace.abs().max()) ** 2
        return self.method.weight_offset * (unit if self.method.weight_form == "squares" else unit**0.5)

    def _means(self) -> torch.Tensor:
        """The mean over members and views of the averaged images, each moved back to the pixel centres."""
        images = [displace_image(v.average, (-v.offset[0], -v.offset[1])) for v in self.views if v.average is not None]
        return torch.stack(images).mean((0, 2))

    def _check(self) -> int:
        """Judge the images by the held-out samples; returns the number of checks since a slice last improved."""
        judged = zip(self.frames, self._means(), self.best, strict=True)
        return min(best.update(frame.loss(image), image) for frame, image, best in judged)
