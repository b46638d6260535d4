"""Encoders without parameters: the papers' ablations."""

import math
from collections.abc import Sequence

import torch

from inrecon.encoders.encoder import Encoder, EncoderSettings, encoders


class _Fixed(Encoder):
    """Features computed once."""

    def __init__(self, encoded: list[torch.Tensor], *, members: int) -> None:
        super().__init__()
        self.features = encoded[0].shape[1]
        self.tables = torch.nn.ParameterList()
        self._encoded = encoded
        self._members = members

    def forward(self, which: int = 0) -> torch.Tensor:
        """``(members, points, features)``, the same for each member."""
        return self._encoded[which].expand(self._members, -1, -1)

    def keep(self, members: Sequence[int]) -> None:
        """As many members as that: they are all alike."""
        self._members = len(members)


@encoders.register("identity")
class Identity(_Fixed):
    """The coordinates themselves, moved to (-1, 1): 'no encoding'."""

    def __init__(
        self, point_sets: Sequence[torch.Tensor], settings: EncoderSettings, *, generators: Sequence[torch.Generator]
    ) -> None:
        del settings
        super().__init__([points * 2 - 1 for points in point_sets], members=len(generators))


@encoders.register("frequency")
class Frequency(_Fixed):
    """sin and cos of 2^l pi r for each level l (Mildenhall et al., NeRF, Eq. 4): 'frequency encoding'."""

    def __init__(
        self, point_sets: Sequence[torch.Tensor], settings: EncoderSettings, *, generators: Sequence[torch.Generator]
    ) -> None:
        octaves = math.pi * 2.0 ** torch.arange(settings.levels, device=point_sets[0].device)
        phases = [points[:, :, None] * octaves for points in point_sets]
        encoded = [torch.cat([phase.sin(), phase.cos()], 2).flatten(1) for phase in phases]
        super().__init__(encoded, members=len(generators))
