"""Frames that wait: which are given, in which order, and which are skipped."""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from inrecon.acquire import raw_frames
from inrecon.frame import Live, RawFrame
from inrecon.simulate import simulate_scan
from inrecon_server.frame_queue import FrameQueue, NewPrior

LATEST, ALL = Live(policy="latest"), Live(policy="all")


@cache
def simulated() -> RawFrame:
    scan = simulate_scan(shape=(16, 16), coils=2, acceleration=2, acs=4)
    return raw_frames(scan.header, scan.acquisitions)[0]


def frame(repetition: int, *, slice: int = 0, acceleration: float = 4.0) -> RawFrame:  # noqa: A002
    raw = simulated()
    key = replace(raw.key, repetition=repetition, slice=slice)
    return replace(raw, key=key, protocol=replace(raw.protocol, acceleration=acceleration))


def run(scenario: Coroutine[object, object, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scenario

    asyncio.run(bounded())


async def given_by(queue: FrameQueue) -> list[tuple[int, int]]:
    """Slices and repetitions of all that waits; -1 of a new prior."""
    await queue.end()
    told = []
    while (got := await queue.get()) is not None:
        told.append((-1, -1) if isinstance(got[0], NewPrior) else (got[0].key.slice, got[0].key.repetition))
    return told


async def begun(size: int = 2, slices: int = 1, clock: list[float] | None = None) -> FrameQueue:
    """A queue of a stream whose fully sampled frames, which others are compared with, have been given."""
    queue = FrameQueue(size=size, clock=lambda: clock[0] if clock else 0.0)
    for number in range(slices):
        assert await queue.put(frame(0, slice=number, acceleration=1.0), 0.0, live=LATEST) == 0
        assert await queue.get() is not None
    return queue


def test_of_a_scan_every_frame_comes_and_who_puts_waits_for_room() -> None:
    async def scenario() -> None:
        for live in (None, ALL):
            queue = FrameQueue(size=2)
            for n in range(2):
                assert await queue.put(frame(n), 0.0, live=live) == 0
            third = asyncio.create_task(queue.put(frame(2), 0.0, live=live))
            await asyncio.sleep(0)
            assert not third.done()
            got = await queue.get()
            assert got is not None
            assert got[0].key.repetition == 0
            assert await third == 0
            assert await given_by(queue) == [(0, 1), (0, 2)]
            assert list(queue.news(at_end=True)) == []

    run(scenario())


def test_of_a_stream_the_newest_takes_the_place_of_the_one_that_waits() -> None:
    async def scenario() -> None:
        queue = await begun()
        assert [await queue.put(frame(n), float(n), live=LATEST) for n in range(1, 50)] == [0] + [1] * 48
        got = await queue.get()
        assert got is not None
        assert (got[0].key.repetition, got[1]) == (49, 49.0)
        (notice,) = queue.news()
        assert notice.text == "skipped for newer frames: 48 frames of slice 0 (repetitions 1 to 48)"
        assert await given_by(queue) == []

    run(scenario())


def test_each_slice_keeps_one_and_its_turn() -> None:
    async def scenario() -> None:
        queue = await begun(slices=3)
        for n, number in ((1, 2), (1, 0), (2, 2), (1, 1), (2, 0), (3, 0), (3, 2)):
            await queue.put(frame(n, slice=number), 0.0, live=LATEST)
        assert await given_by(queue) == [(2, 3), (0, 3), (1, 1)]

    run(scenario())


def test_a_fully_sampled_frame_is_skipped_only_for_another_one() -> None:
    async def scenario() -> None:
        queue = FrameQueue(size=1)
        for n in range(20):
            await queue.put(frame(n, acceleration=1.0 if n in (0, 10, 11) else 3.0), 0.0, live=LATEST)
            if n == 9:
                assert await queue.get() == (frame(0, acceleration=1.0), 0.0)
        assert await given_by(queue) == [(0, 11), (0, 19)]

    run(scenario())


def test_fully_sampled_frames_among_accelerated_ones_do_not_pile_up() -> None:
    async def scenario() -> None:
        queue = FrameQueue(size=1)
        accelerations = [4.0, 4.0, *[1.0, 4.0] * 300]
        skipped = [await queue.put(frame(n, acceleration=a), 0.0, live=LATEST) for n, a in enumerate(accelerations)]
        assert sum(skipped) == len(accelerations) - 4
        assert await given_by(queue) == [(0, 0), (0, 1), (0, 600), (0, 601)]

    run(scenario())


def test_where_all_are_fully_sampled_the_newest_comes() -> None:
    async def scenario() -> None:
        queue = FrameQueue(size=1)
        for n in range(50):
            await queue.put(frame(n, acceleration=1.0), 0.0, live=LATEST)
        assert await given_by(queue) == [(0, 49)]

    run(scenario())


def test_where_none_is_the_first_few_are_kept() -> None:
    async def scenario() -> None:
        queue = FrameQueue(size=1)
        for n in range(50):
            await queue.put(frame(n), 0.0, live=replace(LATEST, prior_frames=3))
        assert await given_by(queue) == [(0, 0), (0, 1), (0, 2), (0, 49)]

    run(scenario())


def test_a_new_prior_comes_after_the_frames_before_it_and_before_those_after_it() -> None:
    async def scenario() -> None:
        for live, expected in ((LATEST, [-1, 3, 4, 5, 7]), (ALL, [0, 1, 2, -1, 3, 4, 5, 6, 7])):
            queue = FrameQueue(size=20)
            await queue.put(frame(0, acceleration=1.0), 0.0, live=live)
            if live is LATEST:
                await queue.get()
            for n in (1, 2):
                await queue.put(frame(n), 0.0, live=live)
            await queue.put(NewPrior(), 0.0, live=live)
            for n in range(3, 8):
                await queue.put(frame(n), 0.0, live=replace(live, prior_frames=3))
            assert [repetition for _, repetition in await given_by(queue)] == expected

    run(scenario())


def test_what_is_skipped_is_told_from_time_to_time_and_at_the_end() -> None:
    async def scenario() -> None:
        clock, told = [0.0], []
        queue = await begun(clock=clock)
        for n in range(1, 1000):
            clock[0] = n * 0.1
            await queue.put(frame(n), 0.0, live=LATEST)
            told += [notice.text for notice in queue.news()]
        told += [notice.text for notice in queue.news(at_end=True)]
        assert 10 <= len(told) <= 12
        assert sum(int(text.split(": ")[1].split()[0]) for text in told) == 998
        assert list(queue.news(at_end=True)) == []

    run(scenario())


def test_many_slices_are_told_in_one_text_and_do_not_make_memory_grow() -> None:
    async def scenario() -> None:
        queue = await begun(slices=300)
        for number in range(20):
            for n in (1, 2):
                await queue.put(frame(n, slice=number), 0.0, live=LATEST)
        (notice,) = queue.news()
        assert notice.text.endswith("1 frame of slice 7 (repetition 1) and of 12 more slices")
        for number in range(20, 256):
            await queue.put(frame(1, slice=number), 0.0, live=LATEST)
        late = asyncio.create_task(queue.put(frame(1, slice=256), 0.0, live=LATEST))
        await asyncio.sleep(0)
        assert not late.done()
        await queue.get()
        await late

    run(scenario())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1.0, 4.0]), st.booleans()), max_size=40))
def test_the_newest_of_each_slice_always_comes_in_order_and_what_does_not_come_is_counted(
    steps: list[tuple[int, float, bool]],
) -> None:
    async def scenario() -> None:
        queue = FrameQueue(size=1)
        told, skipped = [], 0
        for n, (number, acceleration, take) in enumerate(steps):
            skipped += await queue.put(frame(n, slice=number, acceleration=acceleration), 0.0, live=LATEST)
            if take:
                got = await queue.get()
                assert got is not None
                told.append((got[0].key.slice, got[0].key.repetition))
        told += await given_by(queue)
        assert len(told) + skipped == len(steps)
        for number in range(3):
            own = [repetition for s, repetition in told if s == number]
            assert own == sorted(own)
            assert own[-1:] == [n for n, step in enumerate(steps) if step[0] == number][-1:]

    run(scenario())
