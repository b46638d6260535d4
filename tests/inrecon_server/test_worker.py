"""Worker processes: whose turn it is, and that no scan is lost when one dies or hangs."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import pytest
from held import Held, children, only_child, texts, until

from inrecon.errors import UnknownName
from inrecon.frame import Request
from inrecon.testing import write_quick_default
from inrecon_server.child import Beat
from inrecon_server.job import Job
from inrecon_server.process import WorkerProcess
from inrecon_server.worker import Workers


@asynccontextmanager
async def running(
    *, device: str = "cpu", count: int = 1, hang_s: float = 60.0, on_lost: Callable[[], None] = lambda: None
) -> AsyncIterator[Workers]:
    workers = Workers(device=device, count=count, hang_s=hang_s, on_lost=on_lost)
    workers.start()
    try:
        yield workers
    finally:
        workers.stop()


def test_a_worker_that_dies_costs_its_job_the_fit_and_is_replaced(job: Job, tmp_path: Path) -> None:
    async def scenario() -> None:
        before = set(active_children())
        async with running() as workers:
            held = Held(job, tmp_path / "held")
            doomed, end = await held.given_to(workers.run)
            held.let_go()
            waiting = [asyncio.create_task(workers.run(job)) for _ in range(3)]
            await asyncio.sleep(0)
            process = only_child(before)
            os.kill(process.pid, signal.SIGKILL)
            result = await doomed
            os.close(end)
            assert len(result.images) == 1
            assert texts(result, "ERROR") == []
            assert "was lost: it died; CG-SENSE instead" in texts(result, "WARNING")[0]
            assert result.reports[0]["fallback"] in texts(result, "WARNING")[0]
            assert all(result.images for result in await asyncio.gather(*waiting))
            assert only_child(before).pid != process.pid

    asyncio.run(scenario())


def test_a_worker_that_hangs_is_ended_and_its_job_gets_the_fall_back(job: Job, tmp_path: Path) -> None:
    async def scenario() -> None:
        before = set(active_children())
        async with running() as workers:
            assert (await workers.run(job)).images
            process = only_child(before)
            workers._hang_s = 0.5
            held = Held(job, tmp_path / "held")
            stuck, end = await held.given_to(workers.run)
            held.let_go()
            while process.is_alive():
                await asyncio.sleep(0.01)
            workers._hang_s = 60.0
            result = await stuck
            assert len(result.images) == 1
            assert "nothing was heard of it for 0.5 s; CG-SENSE instead" in texts(result, "WARNING")[0]
            os.close(end)

    asyncio.run(scenario())


def test_a_job_that_costs_every_process_is_given_up_and_the_next_is_served(job: Job, tmp_path: Path) -> None:
    async def scenario() -> None:
        before = set(active_children())
        async with running() as workers:
            held = Held(job, tmp_path / "held")
            deadly = asyncio.create_task(workers.run(held.job))
            for _ in range(3):
                end = await held.at_work()
                process = only_child(before)
                os.kill(process.pid, signal.SIGKILL)
                process.join()  # or the next turn could find it at the pipe
                os.close(end)
            result = await deadly
            assert result.images == ()
            assert "has cost three processes" in texts(result, "ERROR")[0]
            assert (await workers.run(job)).images

    asyncio.run(scenario())


def test_a_worker_that_dies_while_it_starts_costs_nothing(job: Job) -> None:
    async def scenario() -> None:
        before = set(active_children())
        async with running() as workers:
            process = only_child(before)
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            result = await workers.run(job)
            assert result.images
            assert result.notices == ()

    asyncio.run(scenario())


def test_a_worker_that_dies_idle_is_replaced_before_anybody_asks(job: Job) -> None:
    lost = []

    async def scenario() -> None:
        before = set(active_children())
        async with running(on_lost=lambda: lost.append(1)) as workers:
            await workers.warmed_up()
            assert workers.usable
            process = only_child(before)
            os.kill(process.pid, signal.SIGKILL)
            async with asyncio.timeout(60):
                while not lost or not workers.usable:
                    await asyncio.sleep(0.01)
            assert len(lost) == 1
            assert only_child(before).pid != process.pid
            assert (await workers.run(job)).notices == ()

    asyncio.run(scenario())


def test_a_process_whose_pipe_has_closed_gets_no_job_though_it_still_seems_to_live(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        process = WorkerProcess(0, settings=("cpu", None, "text"), on_idle_loss=lambda _: None)
        try:
            await process.started()
            assert process.is_alive
            monkeypatch.setattr(process._process, "is_alive", lambda: True)
            os.kill(process._process.pid, signal.SIGKILL)
            await until(lambda: not process.usable)
            assert not process.is_alive
        finally:
            process.kill().join()

    asyncio.run(scenario())


def test_a_machine_without_room_for_a_process_has_room_later(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        before = set(active_children())
        async with running() as workers:
            assert (await workers.run(job)).images
            with monkeypatch.context() as full:
                full.setattr(Workers, "_new", lambda *_: (_ for _ in ()).throw(OSError(24, "Too many open files")))
                os.kill(only_child(before).pid, signal.SIGKILL)
                assert "given up" in texts(await workers.run(job), "ERROR")[0]
            assert (await workers.run(job)).images

    asyncio.run(scenario())


def test_a_worker_that_does_not_even_take_its_job_is_replaced(job: Job) -> None:
    async def scenario() -> None:
        before = set(active_children())
        async with running() as workers:
            assert (await workers.run(job)).images
            stopped = only_child(before)
            os.kill(stopped.pid, signal.SIGSTOP)
            workers._hang_s = 0.5
            waiting = asyncio.create_task(workers.run(job))
            while stopped.is_alive():
                await asyncio.sleep(0.01)
            workers._hang_s = 60.0
            assert (await waiting).images

    asyncio.run(scenario())


def test_a_client_that_leaves_while_the_worker_starts_leaves_the_worker_alone(job: Job) -> None:
    async def scenario() -> None:
        before = set(active_children())
        async with running() as workers:
            process = only_child(before)
            waiting = asyncio.create_task(workers.run(job))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait({waiting})
            assert (await workers.run(job)).images
            assert only_child(before).pid == process.pid

    asyncio.run(scenario())


def test_a_running_job_that_is_cancelled_ends_at_once_and_the_next_is_served(job: Job, tmp_path: Path) -> None:
    async def scenario() -> None:
        before = set(active_children())
        async with running() as workers:
            held = Held(job, tmp_path / "held")
            abandoned, other_end = await held.given_to(workers.run)
            waiting = asyncio.create_task(workers.run(job))
            await asyncio.sleep(0)
            process = only_child(before)
            abandoned.cancel()
            async with asyncio.timeout(60):
                assert (await waiting).images
            assert abandoned.cancelled()
            assert not process.is_alive()
            os.close(other_end)

    asyncio.run(scenario())


def test_a_frame_of_a_stream_that_nobody_waits_for_costs_other_streams_no_process(job: Job, tmp_path: Path) -> None:
    async def scenario() -> None:
        before = set(active_children())
        async with running() as workers:
            held = Held(replace(job, stream="one"), tmp_path / "held")
            abandoned, other_end = await held.given_to(workers.run)
            waiting = asyncio.create_task(workers.run(replace(job, stream="other")))
            await asyncio.sleep(0)
            process = only_child(before)
            abandoned.cancel()
            await asyncio.wait({abandoned})
            assert abandoned.cancelled()
            assert workers.queued == 1
            held.finish(other_end)
            async with asyncio.timeout(60):
                assert (await waiting).images
            assert process.is_alive()
            assert workers.at_work == 0

    asyncio.run(scenario())


def test_a_frame_of_a_stream_that_nobody_waits_for_has_an_end(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inrecon_server.worker.ABANDONED_S", 0.0)

    async def scenario() -> None:
        before = set(active_children())
        async with running() as workers:
            held = Held(replace(job, stream="one"), tmp_path / "held")
            abandoned, other_end = await held.given_to(workers.run)
            process = only_child(before)
            abandoned.cancel()
            async with asyncio.timeout(60):
                assert (await workers.run(replace(job, stream="other"))).images
            assert not process.is_alive()
            os.close(other_end)

    asyncio.run(scenario())


def test_a_waiting_job_that_is_cancelled_disturbs_nobody(job: Job) -> None:
    async def scenario() -> None:
        before = set(active_children())
        async with running() as workers:
            process = only_child(before)
            first, second, third = (asyncio.create_task(workers.run(job)) for _ in range(3))
            await asyncio.sleep(0)
            assert workers.queued == 2
            second.cancel()
            assert (await first).images
            assert (await third).images
            assert second.cancelled()
            assert only_child(before).pid == process.pid

    asyncio.run(scenario())


def test_urgent_jobs_go_first_and_equals_in_their_order(job: Job, tmp_path: Path) -> None:
    async def scenario() -> None:
        ended = []

        async def run(name: str, priority: str) -> None:
            await workers.run(job, priority=priority)  # type: ignore[arg-type]
            ended.append(name)

        async with running() as workers:
            held = Held(job, tmp_path / "held")
            first = asyncio.create_task(workers.run(held.job))
            os.close(await held.at_work())
            asked = [("replay", "replay"), ("a", "inline"), ("b", "inline"), ("now", "realtime")]
            tasks = [asyncio.create_task(run(*one)) for one in asked]
            await asyncio.gather(first, *tasks)
            assert ended == ["now", "a", "b", "replay"]

    asyncio.run(scenario())


def test_two_workers_have_a_job_each(job: Job, tmp_path: Path) -> None:
    async def scenario() -> None:
        before = set(active_children())
        async with running(count=2) as workers:
            held = Held(job, tmp_path / "held")
            first, end = await held.given_to(workers.run)
            assert (await workers.run(job)).images
            assert len(children(before)) == 2
            os.close(end)
            await first

    asyncio.run(scenario())


def test_a_fit_gives_signs_of_life(job: Job, tmp_path: Path) -> None:
    write_quick_default(tmp_path, iterations=200)
    heard: list[Beat] = []

    async def scenario() -> None:
        async with running() as workers:
            asked = replace(job, hyperparameters=tmp_path, request=Request())
            assert (await workers.run(asked, on_beat=heard.append)).images

    asyncio.run(scenario())
    assert heard


def test_a_retired_worker_that_is_cancelled_leaves_no_process(job: Job, tmp_path: Path) -> None:
    async def scenario() -> None:
        before = set(active_children())
        async with running() as workers:
            held = Held(job, tmp_path / "held")
            abandoned, other_end = await held.given_to(workers.run)
            workers.retire()
            abandoned.cancel()
            await asyncio.wait({abandoned})
            await until(lambda: not children(before))
            os.close(other_end)

    asyncio.run(scenario())


def test_a_device_that_does_not_exist_is_told_when_the_worker_starts() -> None:
    async def scenario() -> None:
        async with running(device="tpu") as workers:
            with pytest.raises(UnknownName, match="tpu"):
                await workers.warmed_up()

    asyncio.run(scenario())
