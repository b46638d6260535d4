"""The worker process: what it gives back, and that it comes back when it dies."""

import asyncio
import os
import pickle
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from inrecon.acquire import raw_frames
from inrecon.errors import InvalidFrame, UnknownName
from inrecon.events import FallBack, FitFinished, FitProgressed, Warned, observe
from inrecon.frame import RawFrame, Request
from inrecon.hyperparams import HyperparameterFiles
from inrecon.simulate import simulate_scan
from inrecon.testing import write_quick_default
from inrecon_server.notices import Notice, notice_of
from inrecon_server.protocol import Image, Parser
from inrecon_server.worker import InlineTuning, Job, JobResult, Progress, Worker, run_job


@pytest.fixture(scope="module")
def raw() -> RawFrame:
    scan = simulate_scan(shape=(32, 32), coils=4, acceleration=2, acs=12)
    return raw_frames(scan.header, scan.acquisitions)[0]


@pytest.fixture
def job(raw: RawFrame) -> Job:
    return Job(raw=raw, request=Request(method="zero_filled"), progress=Progress(), hyperparameters=None, device="cpu")


def errors(result: JobResult) -> list[str]:
    return [notice.text for notice in result.notices if notice.level == "ERROR"]


def test_a_job_gives_an_image_for_the_wire_and_what_the_next_needs(job: Job) -> None:
    first = run_job(job)
    second = run_job(replace(job, progress=first.progress))
    parser = Parser(role="client")
    images = [message for data in (*first.images, *second.images) for message in parser.feed(data)]
    assert all(isinstance(image, Image) for image in images)
    assert [image.image_index for image in images] == [1, 2]
    (one,), (other,) = first.progress.series.values(), second.progress.series.values()
    assert one.scale == other.scale
    assert errors(first) == errors(second) == []


def test_a_scan_keeps_the_hyperparameters_it_began_with(job: Job, tmp_path: Path) -> None:
    begun = Progress(hyperparameters=pickle.dumps(HyperparameterFiles.load()))
    assert run_job(replace(job, hyperparameters=tmp_path, progress=begun)).images
    assert "no hyperparameter files" in errors(run_job(replace(job, hyperparameters=tmp_path)))[0]


def test_a_scan_is_tuned_once_and_all_its_frames_use_what_was_found(job: Job, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "candidates").mkdir()
    write_quick_default(tmp_path / "files", iterations=20)
    tuning = InlineTuning(seconds=1e-3, folder=tmp_path / "candidates")
    job = replace(job, request=Request(), hyperparameters=tmp_path / "files", inline_tuning=tuning)
    first = run_job(job)
    (candidate,) = (tmp_path / "candidates").glob("*.yaml")
    assert any(f"kept as {candidate.stem}" in notice.text for notice in first.notices)
    candidate.unlink()
    second = run_job(replace(job, progress=first.progress))
    assert not candidate.exists()
    parser = Parser(role="client")
    images = [message for data in (*first.images, *second.images) for message in parser.feed(data)]
    assert [f"<value>{candidate.stem}</value>" in image.attribute_string for image in images] == [True, True]


def test_a_search_that_fails_costs_no_frame_and_is_not_begun_again(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def out_of_memory(*_: object, **__: object) -> None:
        begun.append(1)
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr("inrecon.tuning.inline.compete", out_of_memory)
    request = Request(overrides={"iterations": 2, "levels": 2})
    job = replace(job, request=request, inline_tuning=InlineTuning(seconds=1e-3, folder=tmp_path))
    first = run_job(job)
    assert len(first.images) == 1
    assert any("cannot be tuned here: CUDA out of memory" in notice.text for notice in first.notices)
    assert run_job(replace(job, progress=first.progress)).images
    assert len(begun) == 1


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (Request(method="cg_sens"), "did you mean 'cg_sense'"),
        (Request(method="cg_sense", overrides={"iteration": "3"}), "no field 'iteration'"),
    ],
)
def test_what_is_wrong_with_a_job_becomes_a_notice(job: Job, request_: Request, told: str) -> None:
    result = run_job(replace(job, request=request_))
    assert result.images == ()
    assert told in errors(result)[0]


def test_a_device_that_does_not_exist_becomes_a_notice(job: Job) -> None:
    assert "unknown device" in errors(run_job(replace(job, device="tpu")))[0]


@pytest.mark.parametrize("wrong", [TypeError, KeyError, AttributeError])
def test_a_bug_costs_one_frame_and_its_details_stay_in_the_log(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wrong: type[Exception]
) -> None:
    from inrecon import stream

    def broken(*_: object, **__: object) -> None:
        raise wrong("secret detail")

    monkeypatch.setattr(stream, "reconstruct", broken)
    assert errors(run_job(job)) == [f"internal error in this frame: {wrong.__name__}"]
    assert "secret detail" in caplog.text
    assert "Traceback" in caplog.text


def test_fall_backs_of_one_kind_are_told_once_for_all_planes_of_a_job(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inrecon import stream

    def hundreds(*_: object, **__: object) -> None:
        for plane in range(300):
            observe(FallBack(room="fit", reason=f"diverged: loss {plane / 7:.3g} after {plane} iterations"))
            observe(FallBack(room="calibrate", reason=f"diverged: loss {plane / 7:.3g} after {plane} iterations"))
        raise InvalidFrame("enough")

    monkeypatch.setattr(stream, "reconstruct", hundreds)
    fit, calibrate, error = run_job(job).notices
    assert "fall-back (fit): diverged: loss 0 after 0 iterations" in fit.text
    assert "fall-back (calibrate)" in calibrate.text
    assert error.text == "enough"


def test_warnings_and_fall_backs_are_told_and_progress_is_not() -> None:
    assert notice_of(Warned(text="w")) == Notice(level="WARNING", text="w")
    told = notice_of(FallBack(room="fit", reason="diverged"))
    assert told is not None
    assert told.level == "WARNING"
    assert "fit" in told.text
    assert "diverged" in told.text
    assert notice_of(FitProgressed(iteration=1, iterations=2)) is None
    assert notice_of(FitFinished(method="m", iterations=1, stopped_by="s", seconds=1.0, validation_loss=None)) is None


@asynccontextmanager
async def running(*, device: str = "cpu") -> AsyncIterator[Worker]:
    worker = Worker(device=device)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


class Held:
    """A job that stays at work: its hyperparameter file is a pipe, which gives nothing before it is let go."""

    def __init__(self, job: Job, folder: Path) -> None:
        folder.mkdir()
        self._pipe = folder / "default.yaml"
        os.mkfifo(self._pipe)
        self.job = replace(job, hyperparameters=folder)

    async def at_work(self) -> int:
        """Wait until the worker has opened the pipe; gives the other end."""
        async with asyncio.timeout(30):
            while True:
                try:
                    return os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK)
                except OSError:  # no reader yet
                    await asyncio.sleep(0.01)


def only_child(before: set[BaseProcess]) -> BaseProcess:
    (process,) = (child for child in active_children() if child not in before)
    return process


def test_a_worker_that_dies_fails_its_job_only_and_is_replaced(job: Job, tmp_path: Path) -> None:
    async def scenario() -> None:
        before = set(active_children())
        async with running() as worker:
            held = Held(job, tmp_path / "held")
            doomed = asyncio.create_task(worker.run(held.job))
            await held.at_work()
            waiting = [asyncio.create_task(worker.run(job)) for _ in range(3)]
            await asyncio.sleep(0)
            process = only_child(before)
            os.kill(process.pid, signal.SIGKILL)
            assert "died" in errors(await doomed)[0]
            assert all(result.images for result in await asyncio.gather(*waiting))
            assert only_child(before).pid != process.pid

    asyncio.run(scenario())


def test_a_worker_that_dies_idle_is_replaced(job: Job) -> None:
    async def scenario() -> None:
        before = set(active_children())
        async with running() as worker:
            process = only_child(before)
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            # It had only begun to warm up: nothing is lost.
            assert (await worker.run(job)).images

    asyncio.run(scenario())


def test_a_running_job_that_is_cancelled_ends_at_once_and_the_next_is_served(job: Job, tmp_path: Path) -> None:
    async def scenario() -> None:
        before = set(active_children())
        async with running() as worker:
            held = Held(job, tmp_path / "held")
            abandoned = asyncio.create_task(worker.run(held.job))
            other_end = await held.at_work()
            waiting = asyncio.create_task(worker.run(job))
            await asyncio.sleep(0)
            process = only_child(before)
            abandoned.cancel()
            async with asyncio.timeout(30):
                assert (await waiting).images
            assert abandoned.cancelled()
            assert not process.is_alive()
            os.close(other_end)

    asyncio.run(scenario())


def test_a_waiting_job_that_is_cancelled_disturbs_nobody(job: Job) -> None:
    async def scenario() -> None:
        before = set(active_children())
        async with running() as worker:
            process = only_child(before)
            first, second, third = (asyncio.create_task(worker.run(job)) for _ in range(3))
            await asyncio.sleep(0)
            second.cancel()
            assert (await first).images
            assert (await third).images
            assert second.cancelled()
            assert only_child(before).pid == process.pid

    asyncio.run(scenario())


def test_a_retired_worker_that_is_cancelled_leaves_no_process(job: Job, tmp_path: Path) -> None:
    async def scenario() -> None:
        before = set(active_children())
        async with running() as worker:
            held = Held(job, tmp_path / "held")
            abandoned = asyncio.create_task(worker.run(held.job))
            other_end = await held.at_work()
            process = only_child(before)
            worker.retire()
            abandoned.cancel()
            await asyncio.wait({abandoned})
            process.join(10)
            assert not set(active_children()) - before
            os.close(other_end)

    asyncio.run(scenario())


def test_a_device_that_does_not_exist_is_told_when_the_worker_starts() -> None:
    async def scenario() -> None:
        async with running(device="tpu") as worker:
            with pytest.raises(UnknownName, match="tpu"):
                await worker.warmed_up()

    asyncio.run(scenario())
