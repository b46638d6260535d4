"""The network of an INR: an encoder of fixed pixel centres and a small MLP, Eq. (5) of the bilevel paper."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from inrecon.encoders import Encoder, EncoderSettings, encoders, pixel_centres


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Where a network is evaluated: pixels of `region` ``(rows, columns)`` bool, their centres moved by `offset`."""

    region: torch.Tensor
    offset: tuple[float, float]


class ImageNetwork(torch.nn.Module):
    """x = MLP(encoder(r)): two outputs, real and imaginary part."""

    def __init__(self, grids: Sequence[Grid], encoder: Encoder, mlp: torch.nn.Sequential) -> None:
        super().__init__()
        self._pixels = [grid.region.flatten().nonzero()[:, 0] for grid in grids]
        self._shape = grids[0].region.shape
        self.encoder = encoder
        self.mlp = mlp

    def forward(self, which: int = 0) -> torch.Tensor:
        """The image on grid number `which`, ``(rows, columns)`` complex64, zero outside its region."""
        values = torch.view_as_complex(self.mlp(self.encoder(which)))
        return values.new_zeros(self._shape.numel()).index_copy(0, self._pixels[which], values).view(self._shape)


def build_network(
    grids: Sequence[Grid],
    *,
    encoder: str,
    settings: EncoderSettings,
    hidden_layers: int,
    width: int,
    generator: torch.Generator,
) -> ImageNetwork:
    """A network for each of `grids`, one set of parameters for all.

    `hidden_layers` of `width` ReLU neurons without bias (0: linear).
    """
    device = grids[0].region.device
    point_sets = [pixel_centres(g.region.shape, device, offset=g.offset)[g.region.flatten()] for g in grids]
    encoding = encoders[encoder](point_sets, settings, generator=generator)
    layers: list[torch.nn.Module] = []
    inputs = encoding.features
    for _ in range(hidden_layers):
        layers += [_linear(inputs, width, generator), torch.nn.ReLU()]
        inputs = width
    layers.append(_linear(inputs, 2, generator))
    return ImageNetwork(grids, encoding, torch.nn.Sequential(*layers).to(device))


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> torch.nn.Linear:
    """A linear layer without bias, drawn as tinycudann draws its own (Glorot and Bengio 2010, uniform)."""
    layer = torch.nn.Linear(inputs, outputs, bias=False)
    torch.nn.init.xavier_uniform_(layer.weight, generator=generator)
    return layer
