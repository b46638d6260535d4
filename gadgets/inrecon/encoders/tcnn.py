"""tinycudann's hash grid, where it can be had: the only file that knows of the package.

It has no wheel, needs CUDA to import, and is not reproducible from run to run; nothing depends on it. Its table has
the layout of `inrecon.encoders.grid`, so tables go back and forth.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch

from inrecon.encoders.encoder import Encoder, EncoderSettings
from inrecon.encoders.grid import grid_levels


def why_not() -> str | None:
    """Why tinycudann cannot be used on this machine, or None if it can."""
    if not torch.cuda.is_available():
        return "it needs a CUDA GPU and torch sees none"
    try:
        importlib.import_module("tinycudann")
    except (ImportError, OSError) as error:
        return f"it does not import: {error}"
    return None


class TinyCudaHashGrid(Encoder):
    """The same function as `HashGrid`, evaluated by tinycudann's fused kernels in single precision."""

    backend = "tinycudann"

    def __init__(
        self, point_sets: Sequence[torch.Tensor], settings: EncoderSettings, *, generators: Sequence[torch.Generator]
    ) -> None:
        super().__init__()
        tinycudann: Any = importlib.import_module("tinycudann")
        dimensions = point_sets[0].shape[1]
        levels = grid_levels(settings, dimensions=dimensions, hashed=True)
        self.entries = levels[-1].offset + levels[-1].entries
        self.features = settings.levels * settings.features_per_level
        self._width = settings.features_per_level
        config = {
            "otype": "HashGrid",
            "n_levels": settings.levels,
            "n_features_per_level": settings.features_per_level,
            "log2_hashmap_size": settings.log2_table_size,
            "base_resolution": settings.base_resolution,
            "per_level_scale": settings.per_level_scale,
            "interpolation": settings.interpolation.capitalize(),
        }
        self._encodings = torch.nn.ModuleList(
            tinycudann.Encoding(n_input_dims=dimensions, encoding_config=config, dtype=torch.float32)
            for _ in generators
        )
        self.tables = torch.nn.ParameterList(encoding.get_parameter("params") for encoding in self._encodings)
        for member, generator in enumerate(generators):
            self.load_table(torch.rand(self.entries, self._width, generator=generator) * 2e-4 - 1e-4, member)
        self._point_sets = list(point_sets)

    def forward(self, which: int = 0) -> torch.Tensor:
        """``(members, points, levels * features_per_level)``."""
        return torch.stack([encoding(self._point_sets[which]) for encoding in self._encodings])

    def keep(self, members: Sequence[int]) -> None:
        """Go on with these members alone, in this order."""
        self._encodings = torch.nn.ModuleList(self._encodings[member] for member in members)
        super().keep(members)

    def table(self, member: int = 0) -> torch.Tensor:
        """All ``(entries, features_per_level)`` of one member."""
        return self.tables[member].detach().view(self.entries, self._width)

    def load_table(self, table: torch.Tensor, member: int = 0) -> None:
        """Take a full `table` for one member."""
        with torch.no_grad():
            self.tables[member].copy_(table.to(self.tables[member].device).flatten())
