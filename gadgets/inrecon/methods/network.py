"""The network of an INR: an encoder of fixed pixel centres and a small MLP, Eq. (5) of the bilevel paper."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inrecon.encoders import Encoder, EncoderSettings, encoders, pixel_centres


class ImageNetwork(torch.nn.Module):
    """x = MLP(encoder(r)): two outputs, real and imaginary part."""

    def __init__(self, shape: tuple[int, ...], encoder: Encoder, mlp: torch.nn.Sequential) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = encoder
        self.mlp = mlp

    def forward(self, which: int = 0) -> torch.Tensor:
        """The image at point set number `which`, complex64 of `shape`."""
        return torch.view_as_complex(self.mlp(self.encoder(which))).view(self.shape)


def build_network(
    shape: tuple[int, ...],
    *,
    encoder: str,
    settings: EncoderSettings,
    hidden_layers: int,
    width: int,
    offsets: Sequence[tuple[float, ...]],
    generator: torch.Generator,
    device: torch.device,
) -> ImageNetwork:
    """A network for the pixel centres of `shape` moved by each of `offsets` (pixels).

    `hidden_layers` of `width` ReLU neurons without bias (0: linear).
    """
    point_sets = [pixel_centres(shape, device, offset=offset) for offset in offsets]
    encoding = encoders[encoder](point_sets, settings, generator=generator)
    layers: list[torch.nn.Module] = []
    inputs = encoding.features
    for _ in range(hidden_layers):
        layers += [_linear(inputs, width, generator), torch.nn.ReLU()]
        inputs = width
    layers.append(_linear(inputs, 2, generator))
    return ImageNetwork(shape, encoding, torch.nn.Sequential(*layers).to(device))


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> torch.nn.Linear:
    """A linear layer without bias, drawn as tinycudann draws its own (Glorot and Bengio 2010, uniform)."""
    layer = torch.nn.Linear(inputs, outputs, bias=False)
    torch.nn.init.xavier_uniform_(layer.weight, generator=generator)
    return layer
