"""The bilevel paper's way with interventional streams: the network of the first frame, fine-tuned for each later one.

Yu, Fessler, Jiang, IEEE TMI 2026, sections IV.A.4 and V.E: the network is pre-trained on the fully sampled first frame,
and each later frame is 500 more iterations of all its weights from there. Beside it, fewer iterations, and a decay
towards the pre-trained weights in the place of that towards zero.
"""

from __future__ import annotations

import dataclasses

import torch

from inrecon.frame import CoilMaps, Frame, Measurement
from inrecon.methods import BilevelINR
from inrecon.methods.network import Grid, ImageNetwork, build_network, surrounded
from inrecon.operators import CartesianSense

PUBLISHED = {
    "weight_offset": 2e-4,
    "offset_unit": "peak",
    "interpolation": "smoothstep",
    "finest_level": 1e4,
    "hidden_layers": 6,
}
"""The paper's network and Table II's values for R=6, where what is shipped differs. Of what the paper does not have
(averages, shifts, drop-out, phase, closing step) nothing is done here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuning:
    """How a network is pre-trained and fine-tuned: `network` has its shape, learning rate, decays and delta.

    With `towards` > 0 that is the weight of the decay towards the pre-trained weights, of both encoder and MLP. Only
    every `every`-th frame is fitted, each by itself.
    """

    network: BilevelINR
    pretraining: int = 1000
    iterations: int = 500
    towards: float = 0.0
    every: int = 1


class Tuned:
    """A network pre-trained on a frame."""

    def __init__(self, method: BilevelINR, frame: Frame, *, iterations: int) -> None:
        self._method = method
        self.network = build_network(
            [Grid(region=surrounded(frame.maps.support), offset=(0.0, 0.0))],
            method.network_settings(frame.operator.domain_shape[-2:]),
            shape=frame.operator.domain_shape,
            generators=[torch.Generator().manual_seed(method.seed)],
        )
        descend(self.network, method, frame, iterations=iterations)
        self._begun = [parameter.detach().clone() for parameter in self.network.parameters()]

    def tuned(self, frame: Frame, *, iterations: int, towards: float) -> torch.Tensor:
        """The image of a later frame, from the pre-trained weights."""
        with torch.no_grad():
            for parameter, begun in zip(self.network.parameters(), self._begun, strict=True):
                parameter.copy_(begun)
        anchors = self._begun if towards else None
        return descend(self.network, self._method, frame, iterations=iterations, towards=towards, anchors=anchors)


def whole(measurement: Measurement, maps: CoilMaps) -> Frame:
    """The problem of a 2-D frame whose loss has weights for each sample of k-space."""
    operator = CartesianSense(maps.csm, measurement.mask)
    kspace = operator.arrange(measurement.kspace[0])
    return Frame(kspace=kspace, operator=operator, maps=maps, noise_level=measurement.noise_level)


def descend(
    network: ImageNetwork,
    method: BilevelINR,
    frame: Frame,
    *,
    iterations: int,
    towards: float = 0.0,
    anchors: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Adam on the self-weighted loss, Eq. (9) in its published form, k-space in units of its largest magnitude; the
    last image in the scale of `frame`."""
    operator, scale = frame.operator, float(frame.kspace.abs().max()) or 1.0
    kspace = frame.kspace / scale
    decays = (0.0, 0.0) if anchors else (method.weight_decay_encoder, method.weight_decay_mlp)
    groups = zip((network.encoder, network.mlp), decays, strict=True)
    optimizer = torch.optim.Adam(
        [{"params": list(part.parameters()), "weight_decay": decay} for part, decay in groups],
        lr=method.learning_rate,
        betas=(0.9, 0.99),
        eps=1e-15,
        fused=True,
    )
    for _ in range(iterations):
        image = network()[0]
        with torch.no_grad():
            predicted = operator.forward(image)
            weight = 1 / (predicted.abs().square() + method.weight_offset)
            gradient = 2 * operator.adjoint(weight * (predicted - kspace)) / operator.positions
        optimizer.zero_grad()
        torch.autograd.backward(image, gradient)
        if anchors:
            for parameter, anchor in zip(network.parameters(), anchors, strict=True):
                parameter.grad = parameter.grad + towards * (parameter.detach() - anchor)
        optimizer.step()
    with torch.no_grad():
        return network()[0] * scale
