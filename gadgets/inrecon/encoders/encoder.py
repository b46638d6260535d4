"""What an encoder is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from inrecon.registry import Registry


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """The shape of an encoder; each uses the fields that concern it. The bilevel paper's b is `per_level_scale`."""

    levels: int = 16
    features_per_level: int = 2
    log2_table_size: int = 18
    base_resolution: int = 16
    per_level_scale: float = 1.5
    interpolation: Literal["linear", "smoothstep"] = "linear"


class Encoder(torch.nn.Module, ABC):
    """Maps from points ``(points, dimensions)`` in (0, 1) to features ``(members, points, features)``.

    One or several sets of points are given when it is made and never change, so whatever depends on them alone is
    computed once; the parameters are shared by all sets. Members are independent of one another, each with a parameter
    of its own in `tables` (none of them, if the encoder has nothing to fit): many fits in one.
    """

    features: int
    backend: str = "torch"
    tables: torch.nn.ParameterList

    @abstractmethod
    def forward(self, which: int = 0) -> torch.Tensor:
        """Features of point set number `which`, ``(members, points, features)`` float32."""

    def keep(self, members: Sequence[int]) -> None:
        """Go on with these members alone, in this order."""
        self.tables = torch.nn.ParameterList(self.tables[member] for member in members)


class EncoderFactory(Protocol):
    """What is registered under an encoder's name."""

    def __call__(
        self, point_sets: Sequence[torch.Tensor], settings: EncoderSettings, *, generators: Sequence[torch.Generator]
    ) -> Encoder:
        """An encoder of these sets of points, the initial parameters of each member drawn from its generator."""


encoders: Registry[EncoderFactory] = Registry("encoder", group="inrecon.encoders")


def pixel_centres(
    shape: Sequence[int], device: torch.device | str, *, offset: Sequence[float] | None = None
) -> torch.Tensor:
    """Coordinates of pixel centres, ``(pixels, dimensions)``, last axis of `shape` first: (x, y) or (x, y, z).

    They lie in (0, 1), moved by `offset` (in pixels, an entry for each axis of `shape`) if there is one.
    """
    steps = offset or [0.0] * len(shape)
    axes = [
        (torch.arange(n, device=device, dtype=torch.float32) + 0.5 + step) / n
        for n, step in zip(shape, steps, strict=True)
    ]
    return torch.stack([a.flatten() for a in reversed(torch.meshgrid(*axes, indexing="ij"))], 1)
