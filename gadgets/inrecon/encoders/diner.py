"""DINER's learned table (Zhu et al., "Disorder-invariant implicit neural representation", IEEE TPAMI 2024).

UnrollINR compares it with the multi-resolution hash grid: each pixel has its own entry, so nothing ties a pixel to its
neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inrecon.encoders.encoder import Encoder, EncoderSettings, encoders


@encoders.register("diner")
class Diner(Encoder):
    """One entry of `features_per_level` trainable features a point, without interpolation; other settings are not used.

    Entry i belongs to point i, so every set must have the same number of points: points moved by a part of a pixel
    share the entry of their pixel. Raises ValueError if they have not.
    """

    def __init__(
        self, point_sets: Sequence[torch.Tensor], settings: EncoderSettings, *, generators: Sequence[torch.Generator]
    ) -> None:
        super().__init__()
        counts = {len(points) for points in point_sets}
        if len(counts) > 1:
            raise ValueError(f"diner has one entry a point: its sets of points must be of one size, not {counts}")
        self.features = settings.features_per_level
        # Uniform in +-1e-4 like the grids' tables, so that an ablation changes the encoder only.
        shape = (counts.pop(), self.features)
        initial = [torch.rand(shape, generator=generator) * 2e-4 - 1e-4 for generator in generators]
        self.tables = torch.nn.ParameterList(table.to(point_sets[0].device) for table in initial)

    def forward(self, which: int = 0) -> torch.Tensor:
        """``(members, points, features_per_level)``, the same for every set."""
        del which
        return torch.stack(list(self.tables))
