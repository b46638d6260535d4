"""One connection over a real socket, with a worker that does what the test wants."""

import asyncio
import socket
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from inrecon.acquire import Accumulator
from inrecon.frame import RawFrame
from inrecon.simulate import SimulatedScan, simulate_scan
from inrecon_server.capture import Capture
from inrecon_server.connection import Connection
from inrecon_server.files import open_raw
from inrecon_server.job import Job, JobResult, Progress
from inrecon_server.keeping import Keeping
from inrecon_server.metrics import Metrics
from inrecon_server.patience import Patience
from inrecon_server.protocol import Close, ConfigFile, Header, Message, Parser, Query, Response, Text, serialise
from inrecon_server.session import Session, Terms

QUICK = Patience(linger_s=0.2)
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class FakeWorker:
    """Answers each job by `answer`, and counts the jobs."""

    def __init__(self, answer: Callable[[Job], Awaitable[JobResult]]) -> None:
        self._answer = answer
        self.started = 0
        self.cancelled = asyncio.Event()

    queued = 0

    def expect(self, priority: str) -> None:
        pass

    async def run(self, job: Job, *, priority: str, on_beat: object) -> JobResult:
        self.started += 1
        try:
            return await self._answer(job)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def never(_: Job) -> JobResult:
    return await asyncio.Future()


async def nothing(_: Job) -> JobResult:
    return JobResult(progress=Progress())


@asynccontextmanager
async def connected(
    worker: FakeWorker,
    *,
    patience: Patience = QUICK,
    refusal: str | None = None,
    capture: Capture | None = None,
) -> AsyncIterator[Streams]:
    done = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = Session(Terms(device="cpu"))
        connection = Connection(
            reader,
            writer,
            session=session,
            workers=worker,  # type: ignore[arg-type]
            metrics=Metrics(),
            patience=patience,
            name="test",
            refusal=refusal,
            capture=capture,
        )
        await connection.run()
        done.set()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    try:
        yield reader, writer
    finally:
        writer.close()
        async with asyncio.timeout(10):
            await done.wait()
        server.close()
        await server.wait_closed()


async def answers(reader: asyncio.StreamReader) -> list[Message]:
    parser = Parser(role="client")
    return list(parser.feed(await reader.read()))


def run(scenario: Coroutine[object, object, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scenario

    asyncio.run(bounded())


def reset(writer: asyncio.StreamWriter) -> None:
    """Hang up without a farewell."""
    peer = writer.get_extra_info("socket")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.fixture(scope="module")
def movie() -> SimulatedScan:
    return simulate_scan(shape=(64, 64), coils=4, acceleration=1, pattern="full", repetitions=20)


def wire(scan: SimulatedScan, config: str = "zero_filled") -> bytes:
    return b"".join(map(serialise, (ConfigFile(config), Header(scan.header), *scan.acquisitions, Close())))


def test_a_worker_that_does_not_come_along_stops_the_reading(movie: SimulatedScan) -> None:
    async def scenario() -> None:
        worker = FakeWorker(never)
        async with connected(worker) as (_, writer):
            writer.transport.set_write_buffer_limits(high=0)
            for _ in range(4):
                writer.write(wire(movie)[:-2])
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await writer.drain()
            assert worker.started == 1
            reset(writer)
            await worker.cancelled.wait()

    run(scenario())


def test_of_a_stream_the_newest_frame_comes_however_slow_the_worker_is(movie: SimulatedScan) -> None:
    made, all_came = [], asyncio.Event()

    async def slowly(job: Job) -> JobResult:
        made.append(job.raw.key.repetition)
        await all_came.wait()
        return JobResult(progress=job.progress, images=(b"",))

    async def scenario() -> None:
        async with connected(FakeWorker(slowly)) as (reader, writer):
            readouts = b"".join(map(serialise, movie.acquisitions))
            writer.write(serialise(ConfigFile("inr_imri")) + serialise(Header(movie.header)) + readouts)
            writer.write(serialise(Query("ismrmrd::version", 1)))
            # Answered when all readouts have been read, which a worker that does not come along has not stopped.
            parser, heard = Parser(role="client"), []
            while not any(isinstance(message, Response) for message in heard):
                heard += parser.feed(await reader.read(1 << 16))
            all_came.set()
            writer.write(serialise(Close()))
            heard += parser.feed(await reader.read())
            texts = [message.text for message in heard if isinstance(message, Text)]
            assert made == [0, 19]
            assert "WARNING skipped for newer frames: 18 frames of slice 0 (repetitions 1 to 18)" in texts
            assert texts[-1].startswith("INFO    2 images in")
            assert "18 skipped for newer ones; 20 frames of" in texts[-1]

    run(scenario())


def test_a_client_that_vanishes_takes_its_job_back(movie: SimulatedScan) -> None:
    async def scenario() -> None:
        worker = FakeWorker(never)
        async with connected(worker) as (_, writer):
            writer.write(b"".join(map(serialise, (ConfigFile("inr"), Header(movie.header), *movie.acquisitions[:96]))))
            await writer.drain()
            while not worker.started:
                await asyncio.sleep(0.01)
            reset(writer)
            await worker.cancelled.wait()

    run(scenario())


def test_where_the_system_does_not_tell_of_resets_scans_are_served_all_the_same(
    movie: SimulatedScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(socket, "TCP_INFO")

    async def scenario() -> None:
        async with connected(FakeWorker(nothing)) as (reader, writer):
            writer.write(wire(movie))
            start, *_, close = await answers(reader)
            assert isinstance(start, Text)
            assert start.text.startswith("INFO")
            assert close == Close()

    run(scenario())


def test_the_end_of_a_large_scan_does_not_hold_up_others(movie: SimulatedScan, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work, another_was_served = threading.Event(), threading.Event()

    def slowly(_: Accumulator) -> list[RawFrame]:
        at_work.set()
        assert another_was_served.wait(5), "the event loop stood still"
        return []

    monkeypatch.setattr(Accumulator, "finish", slowly)

    async def scenario() -> None:
        async with connected(FakeWorker(nothing)) as (reader, writer), connected(FakeWorker(nothing)) as other:
            writer.write(wire(movie))
            await asyncio.to_thread(at_work.wait, 5)
            other[1].write(serialise(Close()))
            assert await answers(other[0]) == [Close()]
            another_was_served.set()
            assert (await answers(reader))[-1] == Close()

    run(scenario())


def test_a_refused_client_is_not_waited_for_as_long_as_others() -> None:
    async def scenario() -> None:
        patience = Patience(linger_s=0.1).cut_short()
        assert patience.idle_s < 5
        async with connected(FakeWorker(nothing), patience=patience, refusal="the server is full") as (reader, _):
            assert await answers(reader) == [Text("ERROR   the server is full"), Close()]

    run(scenario())


def test_a_full_server_says_so_and_hears_the_client_out(movie: SimulatedScan) -> None:
    async def scenario() -> None:
        worker = FakeWorker(nothing)
        async with connected(worker, refusal="the server is full") as (reader, writer):
            writer.write(wire(movie))
            assert await answers(reader) == [Text("ERROR   the server is full"), Close()]
            assert worker.started == 0

    run(scenario())


def test_a_client_that_falls_silent_is_let_go() -> None:
    async def scenario() -> None:
        async with connected(FakeWorker(nothing), patience=Patience(idle_s=0.2, linger_s=0.1)) as (reader, writer):
            writer.write(serialise(ConfigFile("inr")))
            text, close = await answers(reader)
            assert text == Text("ERROR   nothing came for 0.2 s, and no CLOSE: the scan is ended")
            assert close == Close()

    run(scenario())


def test_a_client_that_never_comes_to_its_header_is_let_go() -> None:
    async def scenario() -> None:
        patience = Patience(greeting_s=0.3, idle_s=60, linger_s=0.1)
        async with connected(FakeWorker(nothing), patience=patience) as (reader, writer):
            trickling = asyncio.create_task(trickle(writer))
            async with asyncio.timeout(20):
                told = await reader.read()
            trickling.cancel()
        assert b"no configuration and header came within 0.3 s" in told
        assert told.endswith(serialise(Close()))

    async def trickle(writer: asyncio.StreamWriter) -> None:
        for byte in serialise(ConfigFile("cg_sense")):
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)

    asyncio.run(scenario())


def test_after_an_error_a_client_is_heard_out_only_for_so_long(movie: SimulatedScan) -> None:
    async def scenario() -> None:
        patience = Patience(discard_bytes=1000, linger_s=0.1)
        async with connected(FakeWorker(nothing), patience=patience) as (reader, writer):
            writer.write(wire(movie, config="no_such")[:-2])
            assert (await answers(reader))[-1] == Close()

    run(scenario())


def test_a_capture_that_cannot_go_on_is_told_once_and_the_scan_goes_on(movie: SimulatedScan, tmp_path: Path) -> None:
    data = wire(movie)
    capture = Capture(Keeping(folder=tmp_path / "gone"), name="test", always=True)

    async def scenario() -> None:
        worker = FakeWorker(nothing)
        patience = Patience(linger_s=0.2, captured_s=30)
        async with connected(worker, patience=patience, capture=capture) as (reader, writer):
            writer.write(data)
            texts = [answer.text for answer in await answers(reader) if isinstance(answer, Text)]
            (warning,) = [text for text in texts if text.startswith("WARNING")]
            assert "the capture of this session has ended, the scan goes on: No such file or directory" in warning
            assert worker.started == 20

    run(scenario())


def test_what_a_client_sent_that_vanished_is_kept(movie: SimulatedScan, tmp_path: Path) -> None:
    capture = Capture(Keeping(folder=tmp_path), name="test", always=True)

    async def scenario() -> None:
        worker = FakeWorker(never)
        async with connected(worker, capture=capture) as (_, writer):
            writer.write(b"".join(map(serialise, (ConfigFile("inr"), Header(movie.header), *movie.acquisitions[:96]))))
            while not worker.started:
                await asyncio.sleep(0.01)
            reset(writer)

    run(scenario())
    assert capture.wait(30)
    (kept,) = tmp_path.iterdir()
    with open_raw(kept) as raw:
        assert 64 <= raw.readouts <= 96
        for one, other in zip(raw.acquisitions(), movie.acquisitions, strict=False):
            assert serialise(one) == serialise(other)


def test_a_bug_is_logged_and_the_client_told_no_more_than_that(
    movie: SimulatedScan, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_: Job) -> JobResult:
        raise LookupError("secret detail")

    async def scenario() -> None:
        async with connected(FakeWorker(broken)) as (reader, writer):
            writer.write(wire(movie))
            *_, text, close = await answers(reader)
            assert isinstance(text, Text)
            assert text.text.startswith("ERROR   internal error")
            assert "secret" not in text.text
            assert close == Close()

    run(scenario())
    assert "secret detail" in caplog.text
