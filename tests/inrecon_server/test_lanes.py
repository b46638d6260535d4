"""Real-time jobs beside fits: who stands still for whom, and that nothing is lost by it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from held import Held, children, only_child, stands_still, texts, until

from inrecon.errors import UnknownName
from inrecon.frame import Key, Request
from inrecon.testing import write_quick_default
from inrecon_server.job import Job, JobResult, Progress
from inrecon_server.lanes import REALTIME_S, Lanes
from inrecon_server.process import WorkerProcess
from inrecon_server.protocol import Image, Parser
from inrecon_server.worker import Workers


@asynccontextmanager
async def running(
    *, realtime: int = 1, hang_s: float = 60.0, on_lost: Callable[[], None] = lambda: None
) -> AsyncIterator[tuple[Lanes, BaseProcess]]:
    """Lanes whose processes are all ready, and the process for scans."""
    before = set(active_children())
    lanes = Lanes(device="cpu", scans=1, realtime=realtime, hang_s=hang_s, on_lost=on_lost)
    lanes.start()
    try:
        scans = only_child(before)
        await lanes.warmed_up()
        if realtime:
            lanes.expect("realtime")
            await until(lambda: lanes._is_started)
        yield lanes, scans
    finally:
        lanes.stop()


def pixels(result: JobResult) -> np.ndarray:
    (image,) = (message for data in result.images for message in Parser(role="client").feed(data))
    assert isinstance(image, Image)
    return image.data


async def paused(lanes: Lanes, job: Job, scans: BaseProcess, folder: Path) -> tuple[Held, int, asyncio.Task[JobResult]]:
    """A frame at work, which the process for scans stands still for; how to end it, and its task."""
    held = Held(job, folder)
    frame, end = await held.given_to(lanes.run, priority="realtime")
    await until(lambda: stands_still(scans.pid))
    return held, end, frame


def test_a_fit_stands_still_for_frames_and_its_image_is_the_same(job: Job, tmp_path: Path) -> None:
    write_quick_default(tmp_path, iterations=800)
    fit = replace(job, hyperparameters=tmp_path, request=Request())

    async def scenario() -> None:
        async with running() as (lanes, scans):
            undisturbed = await lanes.run(fit)
            beats: list[object] = []
            disturbed = asyncio.create_task(lanes.run(fit, on_beat=beats.append))
            await until(lambda: len(beats) > 1)
            held, end, first = await paused(lanes, job, scans, tmp_path / "held")
            second = asyncio.create_task(lanes.run(job, priority="realtime"))
            await until(lambda: lanes.queued == 1)
            assert lanes.at_work == 2
            held.finish(end)
            assert (await first).images
            assert (await second).images
            assert not disturbed.done()
            result = await disturbed
            assert result.notices == undisturbed.notices
            assert np.array_equal(pixels(result), pixels(undisturbed))
            assert not stands_still(scans.pid)

    asyncio.run(scenario())


def test_a_fit_that_begins_beside_a_frame_waits_for_it(job: Job, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running() as (lanes, scans):
            held = Held(job, tmp_path / "held")
            frame, end = await held.given_to(lanes.run, priority="realtime")
            assert not stands_still(scans.pid)  # it has nothing to do
            scan = asyncio.create_task(lanes.run(job))
            await until(lambda: stands_still(scans.pid))
            held.finish(end)
            assert (await frame).images
            assert (await scan).images

    asyncio.run(scenario())


def test_time_in_which_it_stands_still_is_not_held_against_a_process(job: Job, tmp_path: Path) -> None:
    hang_s = 2.0

    async def scenario() -> None:
        async with running(hang_s=hang_s) as (lanes, scans):
            stuck = Held(job, tmp_path / "stuck")
            scan, stuck_end = await stuck.given_to(lanes.run)
            assert lanes._realtime is not None
            lanes._realtime._hang_s = 60.0
            held, end, frame = await paused(lanes, job, scans, tmp_path / "held")
            begun = time.monotonic()
            await until(lambda: time.monotonic() > begun + 1.5 * hang_s)
            assert stands_still(scans.pid)
            stuck.let_go()
            held.finish(end)
            assert (await frame).images
            result = await scan  # the pipe still gives nothing, so that it hangs in earnest
            assert f"nothing was heard of it for {hang_s:g} s; CG-SENSE instead" in texts(result, "WARNING")[0]
            os.close(stuck_end)

    asyncio.run(scenario())


def test_a_process_that_dies_while_it_stands_still_is_replaced(job: Job, tmp_path: Path) -> None:
    lost: list[int] = []

    async def scenario() -> None:
        before = set(active_children())
        async with running(on_lost=lambda: lost.append(1)) as (lanes, scans):
            stuck = Held(job, tmp_path / "stuck")
            scan, stuck_end = await stuck.given_to(lanes.run)
            held, end, frame = await paused(lanes, job, scans, tmp_path / "held")
            (realtime,) = set(children(before)) - {scans}
            stuck.let_go()
            os.kill(scans.pid, signal.SIGKILL)
            os.close(stuck_end)
            await until(lambda: bool(lost))
            (new,) = set(children(before)) - {scans, realtime}
            await until(lambda: stands_still(new.pid))  # once it is ready, and has the job
            held.finish(end)
            assert (await frame).images
            result = await scan
            assert result.images
            assert "was lost: it died; CG-SENSE instead" in texts(result, "WARNING")[0]

    asyncio.run(scenario())


def test_a_scan_that_nobody_waits_for_ends_though_it_stands_still(job: Job, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running() as (lanes, scans):
            stuck = Held(job, tmp_path / "stuck")
            scan, stuck_end = await stuck.given_to(lanes.run)
            _, end, frame = await paused(lanes, job, scans, tmp_path / "held")
            scan.cancel()
            await until(lambda: not scans.is_alive())
            frame.cancel()
            assert (await lanes.run(job)).images
            os.close(stuck_end)
            os.close(end)

    asyncio.run(scenario())


def test_a_frame_that_is_lost_lets_the_fit_go_on(job: Job, tmp_path: Path) -> None:
    async def scenario() -> None:
        before = set(active_children())
        async with running() as (lanes, scans):
            stuck = Held(job, tmp_path / "stuck")
            scan, stuck_end = await stuck.given_to(lanes.run)
            held, end, frame = await paused(lanes, job, scans, tmp_path / "held")
            held.let_go()
            (realtime,) = set(children(before)) - {scans}
            os.kill(realtime.pid, signal.SIGKILL)
            os.close(end)
            await until(lambda: not stands_still(scans.pid))
            stuck.let_go()
            assert "CG-SENSE instead" in texts(await frame, "WARNING")[0]
            scan.cancel()
            os.close(stuck_end)

    asyncio.run(scenario())


def test_without_a_lane_of_their_own_frames_wait_for_their_turn(job: Job, tmp_path: Path) -> None:
    async def scenario() -> None:
        before = set(active_children())
        async with running(realtime=0) as (lanes, scans):
            held = Held(job, tmp_path / "held")
            scan, end = await held.given_to(lanes.run)
            lanes.expect("realtime")
            frame = asyncio.create_task(lanes.run(job, priority="realtime"))
            await until(lambda: lanes.queued == 1)
            assert children(before) == [scans]
            held.finish(end)
            await scan
            assert (await frame).images

    asyncio.run(scenario())


def test_where_a_device_takes_no_second_process_streams_share_that_of_scans(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def busy(_: Workers) -> str:
        raise UnknownName("the device is busy")

    async def scenario() -> None:
        before = set(active_children())
        lanes = Lanes(device="cpu", scans=1, realtime=1, hang_s=60.0)
        lanes.start()
        try:
            await lanes.warmed_up()
            monkeypatch.setattr(Workers, "warmed_up", busy)
            assert (await lanes.run(job, priority="realtime")).images
            await until(lambda: len(children(before)) == 1)
            assert (await lanes.run(job, priority="realtime")).images
        finally:
            lanes.stop()

    asyncio.run(scenario())


def test_threads_that_wait_do_not_spin(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_DISPLAY_ENV", "VERBOSE")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)

    async def scenario() -> None:
        async with running(realtime=0):
            pass

    asyncio.run(scenario())
    assert "GOMP_SPINCOUNT = '0'" in capfd.readouterr().err


def test_a_frame_has_not_all_the_time_in_the_world_where_others_wait_for_it(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    due: list[float | None] = []
    send = WorkerProcess._send

    def spied(self: WorkerProcess, job: Job) -> None:
        due.append(job.due)
        send(self, job)

    monkeypatch.setattr(WorkerProcess, "_send", spied)

    async def scenario() -> None:
        async with running() as (lanes, _):
            asked, now = replace(job, due=time.monotonic() + 60), time.monotonic()
            for one in (replace(job, stream="one"), replace(asked, stream="one"), job):
                assert (await lanes.run(one, priority="realtime")).images
            limited, *others = due
            assert limited is not None
            assert now < limited <= time.monotonic() + REALTIME_S
            assert others == [asked.due, None]

    asyncio.run(scenario())


def test_frames_of_a_stream_stay_at_their_process_and_priors_are_sent_once(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, str | None, set[Key]]] = []
    send = WorkerProcess._send

    def spied(self: WorkerProcess, job: Job) -> None:
        sent.append((self.number, job.stream, set(job.progress.priors)))
        send(self, job)

    monkeypatch.setattr(WorkerProcess, "_send", spied)

    async def scenario() -> None:
        priors = {Key(slice=n): bytes(100) for n in range(2)}
        a, b = (replace(job, stream=name, progress=Progress(priors=priors)) for name in "ab")
        async with running(realtime=2) as (lanes, _):
            results = await asyncio.gather(lanes.run(a, priority="realtime"), lanes.run(b, priority="realtime"))
            for _ in range(2):
                for one in (a, b):
                    results.append(await lanes.run(one, priority="realtime"))
            assert all(result.images and result.progress.priors == priors for result in results)

        places = {stream: number for number, stream, _ in sent[:2]}
        assert len(set(places.values())) == 2
        assert all(places[stream] == number for number, stream, _ in sent)
        assert [keys for *_, keys in sent] == [set(priors)] * 2 + [set()] * 4

    asyncio.run(scenario())
