"""Encoders: the suite, and tinycudann's layout written out by hand as the reference."""

import math

import pytest
import torch

from inrecon.encoders import EncoderSettings, HashGrid, TinyCudaHashGrid, encoders, pixel_centres, why_not
from inrecon.encoders.grid import grid_levels
from inrecon.errors import UnknownName
from inrecon.testing import EncoderConformance


class TestHashGrid(EncoderConformance):
    encoder = "hash_grid"


class TestSmoothHashGrid(EncoderConformance):
    encoder = "hash_grid"
    settings = EncoderSettings(levels=4, base_resolution=4, log2_table_size=6, interpolation="smoothstep")


class TestDenseGrid(EncoderConformance):
    encoder = "dense_grid"


class TestFrequency(EncoderConformance):
    encoder = "frequency"


class TestIdentity(EncoderConformance):
    encoder = "identity"


def by_hand(point: list[float], table: torch.Tensor, settings: EncoderSettings) -> list[float]:
    """One point through tinycudann's rules, in plain Python integers and floats."""
    features: list[float] = []
    offset = 0
    for level in range(settings.levels):
        scale = settings.base_resolution * settings.per_level_scale**level - 1
        resolution = math.ceil(scale) + 1
        size = min((resolution ** len(point) + 7) // 8 * 8, 2**settings.log2_table_size)
        position = [coordinate * scale + 0.5 for coordinate in point]
        total = [0.0, 0.0]
        for corner in range(2 ** len(point)):
            weight, vertex = 1.0, []
            for axis, p in enumerate(position):
                fraction = p - math.floor(p)
                if settings.interpolation == "smoothstep":
                    fraction = 3 * fraction**2 - 2 * fraction**3
                upper = corner >> axis & 1
                weight *= fraction if upper else 1 - fraction
                vertex.append(math.floor(p) + upper)
            if resolution ** len(point) <= size:
                index = sum(v * resolution**axis for axis, v in enumerate(vertex))
            else:
                index = 0
                for v, prime in zip(vertex, (1, 2654435761, 805459861), strict=False):
                    index ^= (v * prime) % 2**32
            for f in range(2):
                total[f] += weight * float(table[offset + index % size, f])
        features += total
        offset += size
    return features


@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
@pytest.mark.parametrize("shape", [(13, 10), (6, 5, 4)])
def test_hash_grid_follows_the_published_layout(shape: tuple[int, ...], interpolation: str) -> None:
    settings = EncoderSettings(levels=6, log2_table_size=7, base_resolution=4, interpolation=interpolation)  # type: ignore[arg-type]
    points = pixel_centres(shape, "cpu")
    encoder = HashGrid([points], settings, generators=[torch.Generator().manual_seed(0)])
    full = torch.rand(encoder.entries, 2, generator=torch.Generator().manual_seed(1))
    encoder.load_table(full)
    expected = torch.tensor([by_hand(point, full, settings) for point in points.tolist()])
    torch.testing.assert_close(encoder()[0].detach(), expected, rtol=1e-5, atol=1e-5)


def test_the_published_configuration_has_the_published_number_of_entries() -> None:
    levels = grid_levels(EncoderSettings(), dimensions=2, hashed=True)
    assert [level.dense(2) for level in levels] == [True] * 9 + [False] * 7
    assert levels[8].resolution == 411
    assert 2.13e6 < levels[-1].offset + levels[-1].entries < 2.15e6


def test_a_table_saved_and_loaded_gives_the_same_features() -> None:
    points = pixel_centres((8, 8), "cpu")
    first = HashGrid([points], EncoderSettings(levels=3), generators=[torch.Generator().manual_seed(0)])
    second = HashGrid([points], EncoderSettings(levels=3), generators=[torch.Generator().manual_seed(1)])
    assert not torch.equal(first(), second())
    second.load_table(first.table())
    assert torch.equal(first(), second())


def test_a_table_is_loaded_into_one_member_only() -> None:
    points, settings = pixel_centres((8, 8), "cpu"), EncoderSettings(levels=3)
    both = HashGrid([points], settings, generators=[torch.Generator().manual_seed(seed) for seed in (0, 1)])
    other = HashGrid([points], settings, generators=[torch.Generator().manual_seed(2)])
    before = both().detach()
    both.load_table(other.table(), member=1)
    assert torch.equal(both.table(1), other.table())
    assert torch.equal(both()[0], before[0])
    torch.testing.assert_close(both()[1], other()[0])


def test_initial_features_do_not_depend_on_where_the_points_are() -> None:
    settings = EncoderSettings(levels=2, base_resolution=4)
    coarse = HashGrid([pixel_centres((4, 4), "cpu")], settings, generators=[torch.Generator().manual_seed(0)])
    fine = HashGrid([pixel_centres((9, 9), "cpu")], settings, generators=[torch.Generator().manual_seed(0)])
    both = torch.isin(coarse.touched, fine.touched)
    assert both.any()
    assert torch.equal(coarse.table()[coarse.touched[both]], fine.table()[coarse.touched[both]])


def test_pixel_centres_are_x_first_and_half_a_pixel_off_the_edge() -> None:
    assert pixel_centres((2, 4), "cpu")[:5].tolist() == [
        [0.125, 0.25],
        [0.375, 0.25],
        [0.625, 0.25],
        [0.875, 0.25],
        [0.125, 0.75],
    ]


def test_an_unknown_encoder_is_named_with_the_known_ones() -> None:
    with pytest.raises(
        UnknownName, match=r"did you mean 'hash_grid'.*known are dense_grid, diner, frequency, hash_grid, identity"
    ):
        encoders["hashgrid"]


def test_hash_grid_falls_to_torch_where_tinycudann_cannot_run() -> None:
    encoder = encoders["hash_grid"](
        [pixel_centres((4, 4), "cpu")], EncoderSettings(levels=2), generators=[torch.Generator()]
    )
    assert isinstance(encoder, HashGrid)


@pytest.mark.cuda
@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
def test_tinycudann_and_torch_are_one_function(interpolation: str) -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(f"tinycudann cannot be used: {reason}")
    settings = EncoderSettings(interpolation=interpolation)  # type: ignore[arg-type]
    points = pixel_centres((64, 48), "cuda")
    ours = HashGrid([points], settings, generators=[torch.Generator().manual_seed(0)])
    theirs = TinyCudaHashGrid([points], settings, generators=[torch.Generator().manual_seed(0)])
    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-7)


def test_sets_of_points_share_one_table() -> None:
    settings = EncoderSettings(levels=4, base_resolution=4)
    offsets = [(0.25, 0.25), (-0.25, 0.25)]
    sets = [pixel_centres((9, 8), "cpu", offset=offset) for offset in offsets]
    both = HashGrid(sets, settings, generators=[torch.Generator().manual_seed(0)])
    for which, points in enumerate(sets):
        alone = HashGrid([points], settings, generators=[torch.Generator().manual_seed(0)])
        assert torch.equal(both(which), alone())
