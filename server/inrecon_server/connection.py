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
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from inrecon.acquire import ENDS
from inrecon.errors import InreconError
from inrecon.frame import RawFrame, Request
from inrecon_server.capture import Capture, ended_early, kept_as
from inrecon_server.child import Beat
from inrecon_server.frame_queue import FrameQueue, NewPrior
from inrecon_server.inbox import Inbox, Silence
from inrecon_server.job import Job, JobResult
from inrecon_server.lanes import Lanes
from inrecon_server.metrics import Metrics, Outcome
from inrecon_server.notices import Notice
from inrecon_server.outbox import Outbox
from inrecon_server.patience import Patience
from inrecon_server.protocol import (
    Acquisition,
    Close,
    DependencyQuery,
    Image,
    Message,
    ProtocolError,
    Response,
    Waveform,
    serialise,
)
from inrecon_server.session import Session, Step

if TYPE_CHECKING:
    from inrecon_server.igtl import Viewers

log = logging.getLogger(__name__)

_WATCH_S = 1.0
_TCP_CLOSED = 7  # TCP_CLOSE of Linux' netinet/tcp.h, the first byte of TCP_INFO


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
        self._writer = writer
        self._inbox = Inbox(reader, patience=patience, metrics=metrics, capture=capture)
        self._outbox = Outbox(writer, patience=patience)
        self._session = session
        self._workers = workers
        self._metrics = metrics
        self._patience = patience
        self._refusal = refusal
        self._capture = capture
        self._viewers = viewers
        self._frames = FrameQueue(size=patience.waiting_frames)
        self._failed = False
        self._sender_ended = asyncio.Event()

    async def run(self) -> None:
        """Serve the client until both sides are done; whatever happens, a client that still listens gets CLOSE."""
        outcome, started = Outcome.FAILED, time.monotonic()
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
            seconds, received = time.monotonic() - started, self._inbox.received
            log.info("%s: %s after %.1f s, %d bytes received", self._name, outcome.value, seconds, received)

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
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read())
            group.create_task(self._reconstruct())
            watching = group.create_task(_watch(peer))
            await self._outbox.write()
            watching.cancel()
            # Closing on unread input would reset the connection, and the client could lose our last words.
            await asyncio.wait({reading}, timeout=self._patience.linger_s)
            reading.cancel()

    async def _read(self) -> None:
        """Drive the session with what the client sends; then listen on, to notice when it vanishes."""
        if self._refusal:
            await self._fail(self._refusal)
        try:
            async for message in self._inbox.messages():
                if not self._failed:
                    await self._step(message)
                if self._capture is not None:
                    await self._keep(message, self._capture)
        except Silence as silence:
            if not self._failed:
                await self._fail(str(silence))
        except ProtocolError as error:
            await self._fail(str(error))
            await self._inbox.discard()
        if self._capture is not None:
            self._capture.end()
        await self._frames.end()
        await self._inbox.until_the_end()
        self._sender_ended.set()

    async def _keep(self, message: Message, capture: Capture) -> None:
        """Begin the capture once it is known that this session is to be kept, or forget it; tell if it has failed."""
        if self._inbox.greeted and (capture.always or self._session.saves_only):
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
                        await self._outbox.put(serialise(step))
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

    @property
    def has_nothing(self) -> bool:
        """Whether the client has sent nothing yet."""
        return not self._inbox.received

    async def _fail(self, text: str) -> None:
        """Tell the client what is wrong; from now on it is only listened to."""
        if not self._failed:
            self._failed = True
            self._inbox.hear_out()
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
                await self._outbox.put(image, on_sent=partial(self._image_sent, complete_at))
        if self._capture is not None:
            await self._finish_capture(self._capture)
        for notice in (*self._frames.news(at_end=True), *self._session.summary()):
            await self._say(notice)
        await self._outbox.close()

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
            await self._outbox.put(serialise(message))

    async def _apologise(self, text: str) -> None:
        """Last words and CLOSE, for a client that has had neither."""
        if self._outbox.said_all:
            return
        message = self._session.tell(Notice(level="ERROR", text=text))
        with suppress(OSError):
            self._outbox.last_words(b"" if message is None else serialise(message))
            async with asyncio.timeout(self._patience.linger_s):
                await self._inbox.until_the_end()


async def _watch(peer: socket.socket) -> None:
    """Raise `ConnectionResetError` when `peer` has reset the connection, which a paused reader does not see."""
    if not hasattr(socket, "TCP_INFO"):  # Linux has it; elsewhere the next write will notice
        return
    while peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_CLOSED:
        await asyncio.sleep(_WATCH_S)
    raise ConnectionResetError("the connection was reset")
