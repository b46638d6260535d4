"""DINER's table: one entry a point and nothing between them."""

import pytest
import torch

from inrecon.encoders import EncoderSettings, pixel_centres
from inrecon.encoders.diner import Diner
from inrecon.testing import EncoderConformance


class TestDiner(EncoderConformance):
    encoder = "diner"


def make(*shapes: tuple[int, ...], features: int = 3) -> Diner:
    sets = [pixel_centres(shape, "cpu") for shape in shapes]
    settings = EncoderSettings(features_per_level=features)
    return Diner(sets, settings, generators=[torch.Generator().manual_seed(0)])


def test_each_point_has_features_of_its_own() -> None:
    encoder = make((4, 5))
    assert encoder().shape == (1, 20, 3)
    encoder()[0, 7].sum().backward()
    (table,) = encoder.tables
    assert table.grad is not None
    assert table.grad.any(1).nonzero().tolist() == [[7]]


def test_moved_points_share_the_entry_of_their_pixel() -> None:
    encoder = make((4, 5), (4, 5))
    assert torch.equal(encoder(0), encoder(1))


def test_sets_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="one size"):
        make((4, 5), (3, 5))
