"""The network of an INR: an encoder of fixed pixel centres and a small MLP, Eq. (5) of the bilevel paper."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch

from inrecon.encoders import Encoder, EncoderSettings, encoders, pixel_centres
from inrecon.methods.method import InvalidHyperparameter

Activation = Literal["relu", "sine"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Where a network is evaluated: pixels of `region` ``(rows, columns)`` bool, their centres moved by `offset`."""

    region: torch.Tensor
    offset: tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """The shape of a network: its encoder by name, and `hidden_layers` of `width` neurons without bias (0: linear)."""

    encoder: str
    encoder_settings: EncoderSettings
    hidden_layers: int
    width: int
    activation: Activation = "relu"


class ImageNetwork(torch.nn.Module):
    """x = MLP(encoder(r)): two outputs, real and imaginary part, for each image of a set of coil maps; several members
    at once, each its own parameters."""

    def __init__(self, grids: Sequence[Grid], encoder: Encoder, mlp: MLP, *, shape: tuple[int, ...]) -> None:
        super().__init__()
        self._pixels = [grid.region.flatten().nonzero()[:, 0] for grid in grids]
        self._shape = shape
        self.encoder = encoder
        self.mlp = mlp

    def forward(self, which: int = 0) -> torch.Tensor:
        """The images on grid number `which`, ``(members, *shape)`` complex64, zero outside its region."""
        values = torch.view_as_complex(self.mlp(self.encoder(which)).unflatten(-1, (-1, 2))).transpose(1, 2)
        images = values.new_zeros(*values.shape[:2], math.prod(self._shape[-2:]))
        return images.index_copy(2, self._pixels[which], values).view(-1, *self._shape)

    def keep(self, members: Sequence[int]) -> None:
        """Go on with these members alone, in this order."""
        self.encoder.keep(members)
        self.mlp.members = torch.nn.ModuleList(self.mlp.members[member] for member in members)


class MLP(torch.nn.Module):
    """Fully connected layers without bias, those of all members as one batch of matrices."""

    def __init__(self, sizes: Sequence[int], activation: Activation, *, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self._activation = torch.relu if activation == "relu" else torch.sin
        self.members = torch.nn.ModuleList(
            torch.nn.ParameterList(_glorot(*shape, generator) for shape in itertools.pairwise(sizes))
            for generator in generators
        )

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """``(members, points, inputs)`` to ``(members, points, outputs)``."""
        *hidden, last = (torch.stack(layer) for layer in zip(*self.members, strict=True))
        for layer in hidden:
            values = self._activation(values @ layer)
        return values @ last


def build_network(
    grids: Sequence[Grid],
    settings: NetworkSettings,
    *,
    shape: tuple[int, ...],
    generators: Sequence[torch.Generator],
) -> ImageNetwork:
    """A network for each of `grids`, one set of parameters for all, in as many members as there are generators.

    `shape` is that of an image, ``(rows, columns)`` or ``(sets, rows, columns)``.
    """
    device = grids[0].region.device
    point_sets = [pixel_centres(g.region.shape, device, offset=g.offset)[g.region.flatten()] for g in grids]
    encoder = encoders[settings.encoder](point_sets, settings.encoder_settings, generators=generators)
    sizes = [encoder.features, *[settings.width] * settings.hidden_layers, 2 * math.prod(shape[:-2])]
    mlp = MLP(sizes, settings.activation, generators=generators)
    return ImageNetwork(grids, encoder, mlp.to(device), shape=shape)


def check_encoder(method: str, encoder: str) -> None:
    """Raises `InvalidHyperparameter` if there is no such `encoder` for `method`."""
    if encoder not in encoders.names():
        raise InvalidHyperparameter(f"{method}.encoder must be one of {', '.join(encoders.names())}, not {encoder!r}")


def surrounded(support: torch.Tensor) -> torch.Tensor:
    """`support` ``(rows, columns)`` and two pixels around it: further out coil maps are zero, even between pixels."""
    return torch.nn.functional.max_pool2d(support[None].float(), 5, stride=1, padding=2)[0].bool()


def _glorot(inputs: int, outputs: int, generator: torch.Generator) -> torch.Tensor:
    """A matrix drawn as tinycudann draws its own (Glorot and Bengio 2010, uniform)."""
    weight = torch.empty(outputs, inputs)
    torch.nn.init.xavier_uniform_(weight, generator=generator)
    return weight.T
