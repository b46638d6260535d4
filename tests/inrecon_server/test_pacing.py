"""Readouts at a pace: none before its time, all when the socket is late, and when each frame had been sent."""

from __future__ import annotations

import pytest

from inrecon_server import pacing
from inrecon_server.config import configure
from inrecon_server.pacing import Pace, live_configuration


class Clock:
    """Time that passes by sleeping only."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(pacing, "time", found)
    return found


def test_the_readouts_of_a_frame_are_spread_over_its_time(clock: Clock) -> None:
    pace = Pace([["a", "b"], ["c", "d", "e", "f"]], 2.0)
    assert [(readout, clock.now - 100) for readout in pace] == [
        ("a", 1.0), ("b", 2.0), ("c", 2.5), ("d", 3.0), ("e", 3.5), ("f", 4.0),
    ]  # fmt: skip
    assert pace.sent == {0: 102.0, 1: 104.0}
    assert pace.late_s == 0


def test_what_is_late_goes_at_once(clock: Clock) -> None:
    pace, times = Pace([["a"], ["b"], ["c"]], 1.0), []
    for readout in pace:
        times.append(clock.now - 100)
        clock.now += 1.75 if readout == "a" else 0
    assert times == [1.0, 2.75, 3.0]
    assert pace.late_s == 0.75
    assert pace.sent == {0: 102.75, 1: 102.75, 2: 103.0}


def test_a_live_configuration_is_that_of_inr_imri() -> None:
    request = configure(live_configuration(method="residual_tv", displacement=0, deadline=0.5)).request
    usual = configure("inr_imri").request
    assert (request.live, request.priority) == (usual.live, usual.priority)
    assert (request.method, request.overrides, request.deadline_s) == ("residual_tv", {"displacement": "0"}, 0.5)
