"""One TCP connection: a task that reads, one that reconstructs, one that writes, with bounded queues between them.

The reader stops reading when frames wait for the worker (of interventional streams the newest frame takes the place of
the one that waits), and the worker gets no more frames of this connection when its images wait for the client; so
neither a slow worker nor a client that does not read makes memory grow or holds up other connections.
"""

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from inrecon.acquire import ENDS
from inrecon.errors import InreconError
from inrecon.frame import RawFrame, Request
from inrecon_server.capture import Capture, ended_early, kept_as
from inrecon_server.child import Beat
from inrecon_server.frame_queue import FrameQueue, NewPrior
from inrecon_server.job import Job, JobResult
from inrecon_server.lanes import Lanes
from inrecon_server.metrics import Metrics, Outcome
from inrecon_server.notices import Notice
from inrecon_server.protocol import (
    Acquisition,
    Close,
    DependencyQuery,
    Header,
    Image,
    Limits,
    Message,
    Parser,
    ProtocolError,
    Response,
    State,
    TooLarge,
    Truncated,
    Waveform,
    serialise,
)
from inrecon_server.session import Session, Step

if TYPE_CHECKING:
    from inrecon_server.igtl import Viewers

log = logging.getLogger(__name__)

_READ_BYTES = 1 << 18
_CLOSE = serialise(Close())
_AFTER_CLOSE_S = 0.2
_WATCH_S = 1.0
_REFUSED_S = 2.0
_IMAGE_BYTES = 128 << 20
"""Of an image from a client, which only the configuration ``null`` takes."""
_TCP_CLOSED = 7  # TCP_CLOSE of Linux' netinet/tcp.h, the first byte of TCP_INFO


@dataclass(frozen=True, kw_only=True)
class Patience:
    """What a connection may cost.

    `idle_s`: how long a peer may neither send nor take anything. `greeting_s`: how long it may take to send
    configuration and header. `scan_s` and `scan_bytes`: how long it may send, and how much. `send_buffer_bytes`: how
    much may wait for the client before its next frame is reconstructed.
    `waiting_frames`: how many may wait for the worker before the socket is read on. After an error the client is heard
    out for at most `discard_s` and `discard_bytes`, and where its messages cannot be told apart any more, until it is
    silent for `silence_s`. `linger_s`: how long to wait for it to hang up. `progress_s`: after how long a client that
    waits for an image is told how far that is. `captured_s`: how long CLOSE may wait for the end of the capture, so
    that the client hears if that fails.
    """

    idle_s: float = 600.0
    greeting_s: float = 60.0
    scan_s: float = 86_400.0
    scan_bytes: int = 1 << 40
    send_buffer_bytes: int = 16 << 20
    waiting_frames: int = 2
    discard_s: float = 600.0
    discard_bytes: int = 8 << 30
    silence_s: float = 5.0
    linger_s: float = 2.0
    captured_s: float = 1.0
    progress_s: float = 60.0

    def cut_short(self) -> "Patience":
        """The patience with a client that is not served."""
        return replace(self, idle_s=min(self.idle_s, _REFUSED_S), discard_s=min(self.discard_s, _REFUSED_S))


class Connection:
    """Carries one session's messages; `name` is for the log. `refusal`, if given, is all that the client is told.

    `capture`, if given, keeps what the client sends; `viewers` see the images of a live stream.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        session: Session,
        workers: Lanes,
        metrics: Metrics,
        patience: Patience,
        name: str,
        refusal: str | None = None,
        capture: Capture | None = None,
        viewers: "Viewers | None" = None,
    ) -> None:
        self._name = name
        self._reader = reader
        self._writer = writer
        self._session = session
        self._workers = workers
        self._metrics = metrics
        self._patience = patience
        self._refusal = refusal
        self._capture = capture
        self._viewers = viewers
        self._frames = FrameQueue(size=patience.waiting_frames)
        self._outgoing: asyncio.Queue[tuple[bytes, Callable[[], None]] | None] = asyncio.Queue(1)
        self._started = time.monotonic()
        self._received = 0
        self._greeted = False
        self._last_bytes = b""
        self._failed = False
        self._discard_until = 0.0
        self._discard_up_to = 0
        self._sender_ended = asyncio.Event()
        self._said_all = False

    async def run(self) -> None:
        """Serve the client until both sides are done; whatever happens, a client that still listens gets CLOSE."""
        outcome = Outcome.FAILED
        self._metrics.started.inc()
        self._metrics.active.inc()
        try:
            await self._serve()
            outcome = self._outcome()
        except* OSError as gone:
            outcome = Outcome.VANISHED
            log.warning("%s: the client is gone: %s", self._name, "; ".join(map(repr, gone.exceptions)))
        except* asyncio.CancelledError:
            outcome = Outcome.INTERRUPTED
            await self._apologise("the server is shutting down")
        except* Exception:  # the boundary: what is wrong with one connection must not end the others
            log.exception("%s: internal error", self._name)
            await self._apologise("internal error; the server's log says more")
        finally:
            self._writer.transport.abort()
            if self._capture is not None:
                self._capture.release()
            self._metrics.active.dec()
            self._metrics.ended.labels(self._session.configuration_name, outcome.value).inc()
            self._session.close()
            seconds = time.monotonic() - self._started
            log.info("%s: %s after %.1f s, %d bytes received", self._name, outcome.value, seconds, self._received)

    def _outcome(self) -> Outcome:
        """Of a connection that came to its end."""
        if self._refusal:
            return Outcome.REFUSED
        if self._failed or self._session.failed:
            return Outcome.PARTLY_FAILED if self._session.images else Outcome.FAILED
        return Outcome.DONE if self._session.images else Outcome.NO_IMAGE

    async def _serve(self) -> None:
        peer: socket.socket = self._writer.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._writer.transport.set_write_buffer_limits(high=self._patience.send_buffer_bytes)
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read())
            group.create_task(self._reconstruct())
            watching = group.create_task(_watch(peer))
            await self._write()
            watching.cancel()
            # Closing on unread input would reset the connection, and the client could lose our last words.
            await asyncio.wait({reading}, timeout=self._patience.linger_s)
            reading.cancel()

    async def _read(self) -> None:
        """Drive the session with what the client sends; then listen on, to notice when it vanishes."""
        if self._refusal:
            await self._fail(self._refusal)
        try:
            async for message in self._messages():
                if not self._failed:
                    await self._step(message)
                if self._capture is not None:
                    await self._keep(message, self._capture)
        except TimeoutError:
            if not self._failed:
                patience = self._patience
                silent = f"nothing came for {patience.idle_s:g} s, and no CLOSE"
                late = f"no configuration and header came within {patience.greeting_s:g} s"
                too_late = not self._greeted and time.monotonic() >= self._started + patience.greeting_s
                await self._fail(f"{late if too_late else silent}: the scan is ended")
        except ProtocolError as error:
            await self._fail(str(error))
            await self._discard()
        if self._capture is not None:
            self._capture.end()
        await self._frames.end()
        while await self._reader.read(_READ_BYTES):
            pass
        self._sender_ended.set()

    async def _messages(self) -> AsyncIterator[Message]:
        """The client's messages, CLOSE the last; raises `ProtocolError` where they make no sense or end without it."""
        parser = Parser(Limits(image=_IMAGE_BYTES))
        while data := await self._bytes():
            if self._capture is not None:
                self._capture.feed(data)
            for message in parser.feed(data):
                self._greeted = self._greeted or isinstance(message, Header)
                yield message
            if parser.state is State.CLOSED:
                return
        if self._failed:
            return  # it was heard out for long enough
        parser.end()
        if self._received:
            raise Truncated("the connection ended without CLOSE: frames that were not complete are dropped")

    async def _keep(self, message: Message, capture: Capture) -> None:
        """Begin the capture once it is known that this session is to be kept, or forget it; tell if it has failed."""
        if self._greeted and (capture.always or self._session.saves_only):
            capture.begin()
        elif isinstance(message, Acquisition | Waveform | Image):
            capture.end()
        await self._tell_problem(capture)

    async def _tell_problem(self, capture: Capture) -> None:
        if (problem := capture.take_problem()) is not None:
            if self._session.saves_only:
                await self._fail(ended_early(problem, nothing_else=True))
            else:
                await self._say(Notice(level="WARNING", text=ended_early(problem)))

    async def _finish_capture(self, capture: Capture) -> None:
        """Tell how the capture ended: a client that asked for it waits until all is written, another one shortly."""
        if capture.at_work:
            patience_s = self._patience.idle_s if self._session.saves_only else self._patience.captured_s
            written = await asyncio.to_thread(capture.wait, patience_s)
            if self._session.saves_only and not written:
                await self._fail(f"the readouts are still not written after {patience_s:g} s; nobody waits any more")
        await self._tell_problem(capture)
        if self._session.saves_only and capture.recorded is not None and capture.recorded.name is not None:
            await self._say(Notice(level="INFO", text=f"kept as {kept_as(capture.recorded)}"))

    async def _step(self, message: Message) -> None:
        try:
            async for step in self._steps(message):
                match step:
                    case RawFrame() | NewPrior():
                        skipped = await self._frames.put(step, time.monotonic(), live=self._session.request.live)
                        self._session.skipped += skipped
                        self._metrics.frames_skipped.inc(skipped)
                    case Request():
                        self._workers.expect(step.priority)
                    case Notice():
                        await self._say(step)
                    case Response() | DependencyQuery():
                        await self._send(serialise(step))
        except InreconError as error:
            await self._fail(str(error))

    async def _steps(self, message: Message) -> AsyncIterator[Step]:
        """What the session makes of `message`: in a thread where it may take long, as at the end of a large frame."""
        steps = self._session.finish() if isinstance(message, Close) else self._session.receive(message)
        if isinstance(message, Acquisition):
            self._metrics.readouts.inc()
        if isinstance(message, Acquisition) and not message.flags & ENDS:
            for step in steps:
                yield step
        else:
            while (later := await asyncio.to_thread(next, steps, None)) is not None:
                yield later

    async def _discard(self) -> None:
        """Hear the client out where its messages cannot be told apart any more."""
        while True:
            silence_s = _AFTER_CLOSE_S if self._last_bytes == _CLOSE else self._patience.silence_s
            try:
                async with asyncio.timeout(silence_s):
                    data = await self._bytes()
            except TimeoutError:
                return
            if not data:
                return

    async def _bytes(self) -> bytes:
        """What came next; nothing at the end, or when a client whose scan has failed was heard for long enough."""
        if self._failed and (time.monotonic() > self._discard_until or self._received > self._discard_up_to):
            return b""
        patience = self._patience
        if not self._failed and (
            time.monotonic() > self._started + patience.scan_s or self._received > patience.scan_bytes
        ):
            limit = f"{patience.scan_bytes / 2**30:.3g} GiB or {patience.scan_s:g} s"
            raise TooLarge(f"the scan takes more than {limit}, the most that this server takes of one")
        async with asyncio.timeout(self._silence_s):
            data = await self._reader.read(_READ_BYTES)
        self._received += len(data)
        self._metrics.received_bytes.inc(len(data))
        self._last_bytes = (self._last_bytes + data[-2:])[-2:]
        return data

    @property
    def has_nothing(self) -> bool:
        """Whether the client has sent nothing yet."""
        return not self._received

    @property
    def _silence_s(self) -> float:
        """How long the client may say nothing; until its header is there, what is left of the time for greetings."""
        if self._greeted:
            return self._patience.idle_s
        left = self._started + self._patience.greeting_s - time.monotonic()
        return min(self._patience.idle_s, max(left, 0.0))

    async def _fail(self, text: str) -> None:
        """Tell the client what is wrong; from now on it is only listened to."""
        if not self._failed:
            self._failed = True
            self._discard_until = time.monotonic() + self._patience.discard_s
            self._discard_up_to = self._received + self._patience.discard_bytes
        await self._say(Notice(level="ERROR", text=text))

    async def _reconstruct(self) -> None:
        while (frame := await self._frames.get()) is not None:
            raw, complete_at = frame
            for notice in self._frames.news():
                await self._say(notice)
            if isinstance(raw, NewPrior):
                self._session.begin_anew()
                continue
            job = self._session.job(raw, complete_at=complete_at)
            result = await self._result(job)
            self._metrics.frame(result.reports, fallbacks=result.fallbacks)
            for notice in self._session.take(result):
                await self._say(notice)
            if not result.images:
                self._metrics.frames_failed.inc()
            elif job.due is not None and (late_s := time.monotonic() - job.due) > 0:
                self._metrics.missed.inc()
                await self._say(Notice(level="WARNING", text=f"an image comes {late_s:.2f} s after its deadline"))
            if self._viewers is not None:
                self._viewers.show(result.images, job.request)
            for image in result.images:
                await self._send(image, on_sent=partial(self._image_sent, complete_at))
        if self._capture is not None:
            await self._finish_capture(self._capture)
        for notice in (*self._frames.news(at_end=True), *self._session.summary()):
            await self._say(notice)
        await self._send(_CLOSE)
        await self._outgoing.put(None)

    def _image_sent(self, complete_at: float) -> None:
        self._metrics.images.inc()
        self._metrics.latency.observe(time.monotonic() - complete_at)

    async def _result(self, job: Job) -> JobResult:
        """What becomes of `job`; the client hears from time to time how far it is."""
        beats: deque[Beat] = deque(maxlen=1)
        telling = asyncio.create_task(self._tell_progress(beats))
        try:
            return await self._workers.run(job, priority=self._session.request.priority, on_beat=beats.append)
        finally:
            telling.cancel()

    async def _tell_progress(self, beats: Sequence[Beat]) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._sender_ended.wait(), self._patience.progress_s)
            self._sender_ended.clear()
            # Only words tell a client that listens on from one that is gone, whose machine resets the connection.
            await self._say(Notice(level="INFO", text="the sender has ended its side; what is owed still comes"))
            await asyncio.sleep(self._patience.progress_s)
        while True:
            text = "a frame waits for its turn"
            if beats:
                iteration, iterations = beats[-1].iteration, beats[-1].iterations
                text = f"a frame is at iteration {iteration} of {iterations}" if iterations else "a frame is at work"
            await self._say(Notice(level="INFO", text=text))
            await asyncio.sleep(self._patience.progress_s)

    async def _say(self, notice: Notice) -> None:
        log.log(logging.getLevelNamesMapping()[notice.level], "%s: %s", self._name, notice.text)
        message = self._session.tell(notice)
        if message is not None:
            await self._send(serialise(message))

    async def _send(self, data: bytes, *, on_sent: Callable[[], None] = lambda: None) -> None:
        """Queue `data`; `on_sent` is called when the client's connection has taken it."""
        await self._outgoing.put((data, on_sent))

    async def _write(self) -> None:
        while (outgoing := await self._outgoing.get()) is not None:
            data, on_sent = outgoing
            self._writer.write(data)
            await self._drain()
            on_sent()
        self._writer.transport.set_write_buffer_limits(high=0)
        await self._drain()
        self._said_all = True
        self._end_writing()

    def _end_writing(self) -> None:
        if self._writer.can_write_eof():  # TLS cannot; there the client has CLOSE to go by
            self._writer.write_eof()

    async def _drain(self) -> None:
        async with asyncio.timeout(self._patience.idle_s):
            await self._writer.drain()

    async def _apologise(self, text: str) -> None:
        """Last words and CLOSE, for a client that has had neither."""
        if self._said_all:
            return
        message = self._session.tell(Notice(level="ERROR", text=text))
        self._writer.write((serialise(message) if message is not None else b"") + _CLOSE)
        with suppress(OSError):
            async with asyncio.timeout(self._patience.linger_s):
                self._end_writing()
                while await self._reader.read(_READ_BYTES):
                    pass


async def _watch(peer: socket.socket) -> None:
    """Raise `ConnectionResetError` when `peer` has reset the connection, which a paused reader does not see."""
    if not hasattr(socket, "TCP_INFO"):  # Linux has it; elsewhere the next write will notice
        return
    while peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_CLOSED:
        await asyncio.sleep(_WATCH_S)
    raise ConnectionResetError("the connection was reset")
