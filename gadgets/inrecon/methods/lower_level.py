"""The bilevel INR's lower level: networks, optimiser, and the averages of their images."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from inrecon.deadline import time_left
from inrecon.errors import FitDiverged
from inrecon.events import FitProgressed, observe
from inrecon.frame import Frame
from inrecon.methods.linear import CGSense
from inrecon.methods.memory import give_back
from inrecon.methods.method import synchronise
from inrecon.methods.network import Grid, ImageNetwork, build_network, surrounded
from inrecon.methods.phase import smooth_phase
from inrecon.operators import CartesianSense, displace_image
from inrecon.operators.cartesian import Offset

if TYPE_CHECKING:
    from inrecon.methods.bilevel_inr import BilevelINR

CHECK_EVERY = 25
OWN = ("learning_rate", "weight_decay_encoder", "weight_decay_mlp", "weight_offset", "seed")
"""The fields in which methods that are fitted side by side may differ."""


@dataclasses.dataclass
class _View:
    """The problem on pixel centres moved by `offset` (rows, columns; pixels), and the average of its images so far.

    `phase` is the slices' expected phase, ``(slices, 1, *domain_shape)``, or None.
    """

    number: int
    offset: Offset
    operator: CartesianSense
    kspace: torch.Tensor
    phase: torch.Tensor | None
    average: torch.Tensor | None = None
    count: int = 0


class LowerLevel:
    """Networks fitted to `frames` without the held-out samples: one for each frame and each of `methods`, side by side.

    Methods may differ in `OWN` fields only, and frames have as many sets of coil maps. Images are ``(slices, members,
    *domain_shape)``; member m of a slice is what a fit of that slice alone by method m gives, but for the decay, which
    follows the noise of a typical slice.
    """

    def __init__(self, methods: Sequence[BilevelINR], frames: Sequence[Frame]) -> None:
        self.methods = list(methods)
        self.method = methods[0]
        self._frames = len(frames)
        training = [frame.training for frame in frames]
        kspace = torch.stack([frame.kspace for frame in frames])[:, None]
        operator = CartesianSense.stacked([frame.operator for frame in frames])
        self._sampled = operator.sampled
        self.seen = torch.stack([frame.operator.sampled for frame in training])[:, None, None]
        linear = [CGSense().fit(frame).image for frame in training] if self.method.phase_width else []
        self._views = [
            _View(
                number=number,
                offset=offset,
                operator=operator.displaced(offset),
                kspace=operator.displace(kspace, offset),
                phase=self._phase(linear, offset) if linear else None,
            )
            for number, offset in enumerate(self.method.offsets())
        ]
        region = surrounded(torch.stack([frame.maps.support for frame in frames]).any(0))
        self.network: ImageNetwork = build_network(
            [Grid(region=region, offset=view.offset) for view in self._views],
            self.method.network_settings(region.shape),
            shape=operator.domain_shape,
            generators=[torch.Generator().manual_seed(method.seed) for _ in frames for method in methods],
        )
        self._noise_share = statistics.median_low(frame.noise_share for frame in training)
        self.optimizer = self._adam()
        offsets = [[self._offset(method, frame) for method in methods] for frame in training]
        self._delta = torch.tensor(offsets, device=kspace.device)[..., None, None, None]
        self._dropout = [torch.Generator(kspace.device).manual_seed(method.seed) for method in methods]
        self.history: list[torch.Tensor] = []

    def iterate(self, iterations: int) -> Iterator[None]:
        """Do so many iterations, with a pause for whoever wants to look every 25 and at the end.

        When the time is over they end at once, but for the very first. Raises `FitDiverged` if no network has a
        finite loss any more.
        """
        end = len(self.history) + iterations
        while (done := len(self.history) + 1) <= end and (self._in_time() or not self.history):
            self.history.append(self._step(self._views[done % len(self._views)]))
            if done % CHECK_EVERY and done != end and time_left() > 0:
                continue
            observe(FitProgressed(iteration=done, iterations=self.method.iterations))
            give_back()
            if not torch.isfinite(self.history[-1]).any():
                raise FitDiverged(f"bilevel_inr diverged: its loss is not finite after {done} iterations")
            yield

    def _in_time(self) -> bool:
        """Whether there is time for another iteration; with a deadline, those that a GPU still has to do count."""
        if time_left() < math.inf:
            synchronise(self._delta.device)
        return time_left() > 0

    def release(self) -> None:
        """See all samples from now on."""
        self.seen = self._sampled.expand_as(self.seen)

    def images(self) -> torch.Tensor:
        """The mean over views of the averaged images, each moved back to the pixel centres."""
        images = [displace_image(v.average, (-v.offset[0], -v.offset[1])) for v in self._views if v.average is not None]
        return torch.stack(images).mean(0)

    def losses(self) -> list[list[float]]:
        """The training losses of each slice by iteration, the mean of its members'."""
        return torch.stack(self.history).mean(2).T.tolist()

    def keep(self, members: Sequence[int]) -> None:
        """Go on with these members alone."""
        count = len(self.methods)
        state = self.optimizer.state
        self.network.keep([slice_ * count + member for slice_ in range(self._frames) for member in members])
        self.methods = [self.methods[member] for member in members]
        self._dropout = [self._dropout[member] for member in members]
        self._delta = self._delta[:, list(members)]
        self.history = [losses[:, list(members)] for losses in self.history]
        for view in self._views:
            view.average = None if view.average is None else view.average[:, list(members)]
        self.optimizer = self._adam()
        kept = {parameter for group in self.optimizer.param_groups for parameter in group["params"]}
        self.optimizer.state.update({parameter: values for parameter, values in state.items() if parameter in kept})

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
            share = self.seen.flatten(2).sum(2) / self._sampled.sum()
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
        images = images.view(self._frames, len(self.methods), *images.shape[1:])
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
        drawn = torch.stack([torch.rand(shape, generator=g, device=self.seen.device) for g in self._dropout])
        return self.seen * (drawn >= dropped) / (1 - dropped)

    def _squared_weight(self, predicted: torch.Tensor, acquired: torch.Tensor) -> torch.Tensor:
        """W^2 of Eq. (9), or of the published form."""
        if self.method.weight == "none":
            return torch.ones((), device=predicted.device)
        magnitude = (predicted if self.method.weight == "self" else acquired).abs()
        if self.method.weight_form == "squares":
            return 1 / (magnitude.square() + self._delta)
        return 1 / (magnitude + self._delta).square()

    def _phase(self, linear: Sequence[torch.Tensor], offset: Offset) -> torch.Tensor:
        """The phase that the slices are expected to have, from their linear reconstructions."""
        return smooth_phase(torch.stack(list(linear))[:, None], width=self.method.phase_width, offset=offset)

    def _adam(self) -> torch.optim.Adam:
        return torch.optim.Adam(self._parameter_groups(), betas=(0.9, 0.99), eps=1e-15, fused=True)

    def _parameter_groups(self) -> list[dict[str, object]]:
        """Each member's encoders and MLPs, those of all slices, with the member's own rate and decays."""
        count = len(self.methods)
        groups: list[dict[str, object]] = []
        for number, method in enumerate(self.methods):
            tables = list(self.network.encoder.tables)[number::count]
            layers = [layer for mlp in list(self.network.mlp.members)[number::count] for layer in mlp.parameters()]
            for parameters, decay in ((tables, self._encoder_decay(method)), (layers, method.weight_decay_mlp)):
                groups.append({"params": parameters, "lr": method.learning_rate, "weight_decay": decay})
        return [group for group in groups if group["params"]]

    def _encoder_decay(self, method: BilevelINR) -> float:
        """lambda_Enc for the noise that there is: the same for all slices, for a typical one."""
        return method.weight_decay_encoder * (1 + (method.noise_decay * self._noise_share) ** 2)

    def _offset(self, method: BilevelINR, frame: Frame) -> float:
        """delta of W in the units of the frame's k-space."""
        unit = frame.power if method.offset_unit == "power" else float(frame.kspace.abs().max()) ** 2
        return method.weight_offset * (unit if method.weight_form == "squares" else unit**0.5)
