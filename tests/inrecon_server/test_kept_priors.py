"""Priors of earlier scans: how long they are kept, and how many."""

import pytest

from inrecon.frame import Key
from inrecon_server.kept_priors import IN_MEMORY, KeptPriors, PriorNotFound


def priors(size: int) -> dict[Key, bytes]:
    return {Key(slice=0): bytes(size // 2), Key(slice=1): bytes(size - size // 2)}


def known(kept: KeptPriors, *scans: str) -> list[str]:
    found = []
    for scan in scans:
        try:
            kept.of(scan)
        except PriorNotFound:
            continue
        found.append(scan)
    return found


def test_they_are_kept_for_so_long() -> None:
    clock = [0.0]
    kept = KeptPriors(hours=2, clock=lambda: clock[0])
    kept.keep("early", priors(10))
    clock[0] = 3600.0
    kept.keep("late", priors(10))
    clock[0] = 2 * 3600.0
    assert known(kept, "early", "late") == ["early", "late"]
    clock[0] += 1
    with pytest.raises(PriorNotFound, match="2 h"):
        kept.of("early")
    assert kept.of("late") == priors(10)
    assert len(kept._kept) == 1


def test_those_that_were_used_longest_ago_go_where_there_are_too_many() -> None:
    kept = KeptPriors(limit_bytes=100)
    for scan in ("a", "b", "c"):
        kept.keep(scan, priors(30))
    kept.of("a")
    kept.keep("d", priors(30))
    assert known(kept, "a", "b", "c", "d") == ["a", "c", "d"]
    kept.keep("large", priors(101))
    assert known(kept, "a", "b", "c", "d", "large") == ["a", "c", "d"]
    for number in range(2 * IN_MEMORY):
        kept.keep(str(number), priors(1))
    assert len(kept._kept) == IN_MEMORY
