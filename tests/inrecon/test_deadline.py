"""Time limits: on a clock that ticks when it is looked at, so that nothing here waits."""

from __future__ import annotations

import math

import pytest
import torch

from inrecon import deadline
from inrecon.deadline import DEADLINE, shared, time_left, time_limit
from inrecon.methods import Auto, BilevelINR, Method, hold_out
from inrecon.methods.imjense import Imjense
from inrecon.methods.total_variation import TotalVariation
from inrecon.methods.unroll_inr import UnrollINR
from inrecon.testing import simulated_frame

SMALL = {"levels": 3, "log2_table_size": 8, "base_resolution": 4, "width": 8}


class Clock:
    """Goes on by `tick` seconds whenever it is asked."""

    def __init__(self) -> None:
        self.now = 0.0
        self.tick = 0.0

    def monotonic(self) -> float:
        self.now += self.tick
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(deadline, "time", made)
    return made


def test_without_a_limit_there_is_all_the_time() -> None:
    assert time_left() == math.inf
    with time_limit(None):
        assert time_left() == math.inf


def test_a_limit_inside_of_another_only_shortens_it(clock: Clock) -> None:
    with time_limit(10):
        clock.now = 4
        assert time_left() == 6
        with time_limit(100):
            assert time_left() == 6
        with time_limit(1):
            assert time_left() == 1
        assert time_left() == 6
        clock.now = 11
        assert time_left() == -1
    assert time_left() == math.inf


def test_what_is_shared_has_equal_parts_and_what_one_leaves_goes_to_the_rest(clock: Clock) -> None:
    with time_limit(12):
        found = []
        for needs in shared([1, 3, 3]):
            found.append(time_left())
            clock.now += needs
        assert found == [4, 5.5, 8]
        assert time_left() == 5


def test_the_limit_of_a_part_is_lifted_when_its_work_fails(clock: Clock) -> None:
    def fail() -> None:
        for _ in shared([1, 2]):
            raise ValueError("no")

    with time_limit(12):
        with pytest.raises(ValueError, match="no"):
            fail()
        clock.now = 1
        assert time_left() == 11


@pytest.mark.parametrize(
    "method",
    [
        BilevelINR(**SMALL, iterations=100_000),  # type: ignore[arg-type]
        BilevelINR(**SMALL, iterations=100_000, patience=1000),  # type: ignore[arg-type]
        BilevelINR(**SMALL, iterations=100_000, closing_weight=0),  # type: ignore[arg-type]
        Auto(**SMALL, iterations=100_000),  # type: ignore[arg-type]
        UnrollINR(**SMALL, iterations=100_000),  # type: ignore[arg-type]
        Imjense(iterations=100_000),
        TotalVariation(iterations=10_000, tolerance=0),
    ],
    ids=lambda method: type(method).__name__,
)
def test_a_fit_ends_in_time_with_what_it_has(clock: Clock, method: Method) -> None:
    frame, _ = simulated_frame()
    clock.tick = 0.1
    with time_limit(0.5 if isinstance(method, TotalVariation) else 10):
        result = method.fit(frame)
    assert result.stopped_by == DEADLINE
    assert 1 <= result.iterations <= 110
    assert torch.isfinite(torch.view_as_real(result.image)).all()


def test_held_out_samples_are_released_within_the_time(clock: Clock) -> None:
    frame = hold_out(simulated_frame()[0], 0.2, seed=0)
    clock.tick = 0.1
    with time_limit(20):
        result = BilevelINR(**SMALL, iterations=100_000, released=0.25).fit(frame)  # type: ignore[arg-type]
    losses = torch.tensor(result.losses)
    assert result.stopped_by == DEADLINE
    assert result.validation_loss is not None
    assert torch.isfinite(losses).all()


def test_slices_share_the_time(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inrecon.methods.bilevel_inr.LARGEST_BATCH", 1)  # each slice by itself
    frame, _ = simulated_frame()
    clock.tick = 0.1
    with time_limit(60):
        results = BilevelINR(**SMALL, iterations=100_000).fit_slices([frame] * 3)  # type: ignore[arg-type]
    done = [result.iterations for result in results]
    assert min(done) > max(done) / 2
