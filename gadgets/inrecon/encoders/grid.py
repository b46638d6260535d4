"""Multi-resolution grids of trainable features (Mueller et al. 2022; bilevel paper, Eq. 8), in tinycudann's layout.

The points never move, so each level is a constant sparse matrix of interpolation weights: encoding is one sparse
product with the tables of all members side by side, and its gradient one with the transpose, a gather over a fixed
list without atomics that gives the same bits in every run. Only entries that some point touches are kept (an untouched
one has no gradient); `table` restores the full layout.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from inrecon.encoders.encoder import Encoder, EncoderSettings, encoders

PRIMES = (1, 2654435761, 805459861)


@dataclass(frozen=True, kw_only=True)
class Level:
    """One resolution: `scale` and `resolution` of its grid, the number of its table `entries`, `offset` of the
    first."""

    scale: float
    resolution: int
    entries: int
    offset: int

    def dense(self, dimensions: int) -> bool:
        """Whether each vertex has an entry of its own."""
        return self.resolution**dimensions <= self.entries


def grid_levels(settings: EncoderSettings, *, dimensions: int, hashed: bool) -> list[Level]:
    """The levels of a grid: N_l = ceil(a b^l - 1) + 1 vertices a side, tables as tinycudann rounds and caps them."""
    levels, offset = [], 0
    for number in range(settings.levels):
        scale = settings.base_resolution * settings.per_level_scale**number - 1
        resolution = math.ceil(scale) + 1
        entries = math.ceil(resolution**dimensions / 8) * 8
        if hashed:
            entries = min(entries, 2**settings.log2_table_size)
        levels.append(Level(scale=scale, resolution=resolution, entries=entries, offset=offset))
        offset += entries
    return levels


def vertex_index(vertices: torch.Tensor, level: Level) -> torch.Tensor:
    """Table entry within `level` of integer vertices ``(..., dimensions)``: row-major if dense, else Eq. (8)'s hash."""
    dimensions = vertices.shape[-1]
    if level.dense(dimensions):
        strides = torch.tensor([level.resolution**d for d in range(dimensions)], device=vertices.device)
        return (vertices * strides).sum(-1) % level.entries
    mixed = torch.zeros_like(vertices[..., 0])
    for axis, prime in zip(range(dimensions), PRIMES, strict=False):
        mixed ^= (vertices[..., axis] * prime) & 0xFFFFFFFF
    return mixed % level.entries


def interpolation_entries(
    points: torch.Tensor, settings: EncoderSettings, levels: list[Level]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Table entries and weights of the surrounding vertices: both ``(points, levels, 2^dimensions)``."""
    indices, weights = [], []
    for level in levels:
        position = points.double() * level.scale + 0.5
        corner = position.floor()
        fraction = position - corner
        if settings.interpolation == "smoothstep":
            fraction = fraction * fraction * (3 - 2 * fraction)
        low = corner.long()
        for bits in itertools.product((0, 1), repeat=points.shape[1]):
            step = torch.tensor(bits, device=points.device)
            indices.append(vertex_index(low + step, level) + level.offset)
            weights.append(torch.where(step.bool(), fraction, 1 - fraction).prod(1))
    shape = (len(points), len(levels), 2 ** points.shape[1])
    return torch.stack(indices, 1).view(shape), torch.stack(weights, 1).float().view(shape)


class _SparseProduct(torch.autograd.Function):
    """matrix @ the tables side by side, with the transpose given: so the gradient is a sparse product as well."""

    @staticmethod
    def forward(ctx: Any, matrix: torch.Tensor, transpose: torch.Tensor, *tables: torch.Tensor) -> torch.Tensor:
        ctx.transpose, ctx.widths = transpose, [table.shape[1] for table in tables]
        return matrix @ (torch.cat(tables, 1) if len(tables) > 1 else tables[0])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient = ctx.transpose @ gradients[0].contiguous()
        return None, None, *(part.contiguous() for part in gradient.split(ctx.widths, 1))


class _Grid(Encoder):
    """A table of features a member and, for each set of points, the constant matrix that interpolates it."""

    def __init__(
        self,
        point_sets: Sequence[torch.Tensor],
        settings: EncoderSettings,
        *,
        generators: Sequence[torch.Generator],
        hashed: bool,
    ) -> None:
        super().__init__()
        self._width = settings.features_per_level
        self.features = settings.levels * self._width
        levels = grid_levels(settings, dimensions=point_sets[0].shape[1], hashed=hashed)
        self.entries = levels[-1].offset + levels[-1].entries
        found = [interpolation_entries(points, settings, levels) for points in point_sets]
        used = torch.zeros(self.entries, dtype=torch.bool, device=point_sets[0].device)
        for indices, _ in found:
            used[indices] = True
        self.touched = used.nonzero()[:, 0]
        compact = used.cumsum(0) - 1
        self._products = [
            _csr_and_transpose(
                compact[indices].flatten(), weights.flatten(), width=len(self.touched), per_row=indices.shape[-1]
            )
            for indices, weights in found
        ]
        # Drawn in the full layout: the same seed gives the same features wherever the points are.
        initial = [torch.rand(self.entries, self._width, generator=generator) for generator in generators]
        self.tables = torch.nn.ParameterList(table.to(used.device)[self.touched] * 2e-4 - 1e-4 for table in initial)

    def forward(self, which: int = 0) -> torch.Tensor:
        """``(members, points, levels * features_per_level)``, level by level."""
        product: torch.Tensor = _SparseProduct.apply(  # type: ignore[no-untyped-call]
            *self._products[which], *self.tables
        )
        levels = self.features // self._width
        return product.view(-1, levels, len(self.tables), self._width).permute(2, 0, 1, 3).flatten(2)

    def table(self, member: int = 0) -> torch.Tensor:
        """All ``(entries, features_per_level)`` of one member in tinycudann's order; untouched entries are zero."""
        full = self.tables[member].new_zeros(self.entries, self._width)
        return full.index_copy(0, self.touched, self.tables[member])

    def load_table(self, table: torch.Tensor, member: int = 0) -> None:
        """Take a member's touched entries from a full `table`, as `table()` or tinycudann gives it."""
        with torch.no_grad():
            self.tables[member].copy_(table.view(self.entries, self._width)[self.touched])


class HashGrid(_Grid):
    """Tables of at most 2^log2_table_size entries a level; finer levels share entries by hash."""

    def __init__(
        self, point_sets: Sequence[torch.Tensor], settings: EncoderSettings, *, generators: Sequence[torch.Generator]
    ) -> None:
        super().__init__(point_sets, settings, generators=generators, hashed=True)


@encoders.register("dense_grid")
class DenseGrid(_Grid):
    """Each vertex of each level has its own entry: the papers' 'dense grid'."""

    def __init__(
        self, point_sets: Sequence[torch.Tensor], settings: EncoderSettings, *, generators: Sequence[torch.Generator]
    ) -> None:
        super().__init__(point_sets, settings, generators=generators, hashed=False)


def _csr_and_transpose(
    columns: torch.Tensor, values: torch.Tensor, *, width: int, per_row: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrix with `per_row` values in each row and `width` columns, and its transpose, as sparse CSR tensors."""
    rows = len(columns) // per_row
    starts = torch.arange(0, len(columns) + 1, per_row, device=columns.device)
    order = columns.argsort(stable=True)
    ends = torch.bincount(columns, minlength=width).cumsum(0)
    matrix = _csr(starts, columns, values, (rows, width))
    transpose = _csr(torch.cat([ends.new_zeros(1), ends]), order // per_row, values[order], (width, rows))
    return matrix, transpose


def _csr(starts: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    with warnings.catch_warnings():
        # torch calls CSR a beta feature once a process; the product and its gradient are tested here.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)
        # 32-bit indices are what the sparse libraries take: others would be converted in every product.
        return torch.sparse_csr_tensor(starts.int(), columns.int(), values, shape, check_invariants=False)
