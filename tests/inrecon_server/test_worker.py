"""The worker process: what it gives back, and that it comes back when it dies."""

import asyncio
import os
import pickle
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import pytest

from inrecon.acquire import Accumulator, parse_header
from inrecon.errors import UnknownName
from inrecon.events import FallBack, FitFinished, FitProgressed, Warned
from inrecon.frame import RawFrame, Request
from inrecon.hyperparams import HyperparameterFiles
from inrecon.simulate import simulate_scan
from inrecon_server.protocol import Image, Parser
from inrecon_server.worker import Job, JobResult, Notice, Progress, Worker, notice_of, run_job


@pytest.fixture(scope="module")
def raw() -> RawFrame:
    scan = simulate_scan(shape=(32, 32), coils=4, acceleration=2, acs=12)
    accumulator = Accumulator(parse_header(scan.header))
    frames = [frame for acquisition in scan.acquisitions for frame in accumulator.add(acquisition)]
    return [*frames, *accumulator.finish()][0]


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
    assert first.progress.series.scale == second.progress.series.scale
    assert errors(first) == errors(second) == []


def test_a_scan_keeps_the_hyperparameters_it_began_with(job: Job, tmp_path: Path) -> None:
    begun = Progress(hyperparameters=pickle.dumps(HyperparameterFiles.load()))
    assert run_job(replace(job, hyperparameters=tmp_path, progress=begun)).images
    assert "no hyperparameter files" in errors(run_job(replace(job, hyperparameters=tmp_path)))[0]


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


def test_a_worker_that_dies_fails_its_job_and_is_replaced(job: Job) -> None:
    async def scenario() -> None:
        before = set(active_children())
        async with running() as worker:
            (process,) = set(active_children()) - before
            doomed = asyncio.create_task(worker.run(job))
            await asyncio.sleep(0)  # lets the task hand its job over
            os.kill(process.pid, signal.SIGKILL)
            assert "died" in errors(await doomed)[0]
            (process,) = set(active_children()) - before
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            # Whether its pool has noticed yet or not, nothing is lost but perhaps this job.
            idle = await worker.run(job)
            assert idle.images or "died" in errors(idle)[0]
            assert (await worker.run(job)).images

    asyncio.run(scenario())


def test_a_device_that_does_not_exist_is_told_when_the_worker_starts() -> None:
    async def scenario() -> None:
        async with running(device="tpu") as worker:
            with pytest.raises(UnknownName, match="tpu"):
                await worker.warmed_up()

    asyncio.run(scenario())
