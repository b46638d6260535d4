"""Positional encoders, by name: coordinates in (0, 1) to features. Group ``inrecon.encoders`` for other packages."""

from collections.abc import Sequence

import torch

from inrecon.encoders.diner import Diner
from inrecon.encoders.encoder import Encoder, EncoderSettings, encoders, pixel_centres
from inrecon.encoders.fixed import Frequency, Identity
from inrecon.encoders.grid import DenseGrid, HashGrid
from inrecon.encoders.tcnn import TinyCudaHashGrid, why_not


@encoders.register("hash_grid")
def hash_grid(
    point_sets: Sequence[torch.Tensor], settings: EncoderSettings, *, generators: Sequence[torch.Generator]
) -> Encoder:
    """The multi-resolution hash grid: tinycudann's on a GPU that has it, else torch's."""
    kind = TinyCudaHashGrid if point_sets[0].is_cuda and why_not() is None else HashGrid
    return kind(point_sets, settings, generators=generators)


__all__ = [
    "DenseGrid",
    "Diner",
    "Encoder",
    "EncoderSettings",
    "Frequency",
    "HashGrid",
    "Identity",
    "TinyCudaHashGrid",
    "encoders",
    "pixel_centres",
    "why_not",
]
