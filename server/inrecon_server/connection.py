"""One TCP connection: a task that reads, one that reconstructs, one that writes, with bounded queues between them.

The reader stops reading when frames wait for the worker, and the worker gets no more frames of this connection when its
images wait for the client; so neither a slow worker nor a client that does not read makes memory grow or holds up
other connections.
"""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace

from inrecon.errors import InreconError
from inrecon.frame import RawFrame
from inrecon_server.capture import Capture, ended_early, kept_as
from inrecon_server.notices import Level, Notice
from inrecon_server.protocol import (
    Acquisition,
    Close,
    Header,
    Image,
    Message,
    Parser,
    ProtocolError,
    Response,
    State,
    Truncated,
    Waveform,
    serialise,
)
from inrecon_server.session import Session, Step
from inrecon_server.worker import Worker

log = logging.getLogger(__name__)

_READ_BYTES = 1 << 18
_CLOSE = serialise(Close())
_AFTER_CLOSE_S = 0.2
_WATCH_S = 1.0
_REFUSED_S = 2.0
_TCP_CLOSED = 7  # TCP_CLOSE of Linux' netinet/tcp.h, the first byte of TCP_INFO


@dataclass(frozen=True, kw_only=True)
class Patience:
    """What a connection may cost.

    `idle_s`: how long a peer may neither send nor take anything. `send_buffer_bytes`: how much may wait for the client
    before its next frame is reconstructed. `waiting_frames`: how many may wait for the worker before the socket is
    read on. After an error the client is heard out for at most `discard_s` and `discard_bytes`, and where its messages
    cannot be told apart any more, until it is silent for `silence_s`. `linger_s`: how long to wait for it to hang up.
    `captured_s`: how long CLOSE may wait for the end of the capture, so that the client hears if that fails.
    """

    idle_s: float = 600.0
    send_buffer_bytes: int = 16 << 20
    waiting_frames: int = 2
    discard_s: float = 600.0
    discard_bytes: int = 8 << 30
    silence_s: float = 5.0
    linger_s: float = 2.0
    captured_s: float = 1.0

    def cut_short(self) -> "Patience":
        """The patience with a client that is not served."""
        return replace(self, idle_s=min(self.idle_s, _REFUSED_S), discard_s=min(self.discard_s, _REFUSED_S))


class Connection:
    """Carries one session's messages; `name` is for the log. `refusal`, if given, is all that the client is told.

    `capture`, if given, keeps what the client sends.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        session: Session,
        worker: Worker,
        patience: Patience,
        name: str,
        refusal: str | None = None,
        capture: Capture | None = None,
    ) -> None:
        self._name = name
        self._reader = reader
        self._writer = writer
        self._session = session
        self._worker = worker
        self._patience = patience
        self._refusal = refusal
        self._capture = capture
        self._has_header = False
        self._frames: asyncio.Queue[RawFrame | None] = asyncio.Queue(patience.waiting_frames)
        self._outgoing: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._received = 0
        self._last_bytes = b""
        self._failed = False
        self._discard_until = 0.0
        self._discard_up_to = 0
        self._said_all = False

    async def run(self) -> None:
        """Serve the client until both sides are done; whatever happens, a client that still listens gets CLOSE."""
        started = time.monotonic()
        try:
            await self._serve()
        except* OSError as gone:
            log.warning("%s: the client is gone: %s", self._name, "; ".join(map(repr, gone.exceptions)))
        except* asyncio.CancelledError:
            await self._apologise("the server is shutting down")
        except* Exception:  # the boundary: what is wrong with one connection must not end the others
            log.exception("%s: internal error", self._name)
            await self._apologise("internal error; the server's log says more")
        finally:
            self._writer.transport.abort()
            if self._capture is not None:
                self._capture.release()
            seconds = time.monotonic() - started
            log.info("%s: ended after %.1f s, %d bytes received", self._name, seconds, self._received)

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
                await self._fail(f"nothing came for {self._patience.idle_s:g} s, and no CLOSE: the scan is ended")
        except ProtocolError as error:
            await self._fail(str(error))
            await self._discard()
        if self._capture is not None:
            self._capture.end()
        await self._frames.put(None)
        while await self._reader.read(_READ_BYTES):
            pass

    async def _messages(self) -> AsyncIterator[Message]:
        """The client's messages, CLOSE the last; raises `ProtocolError` where they make no sense or end without it."""
        parser = Parser()
        while data := await self._bytes():
            if self._capture is not None:
                self._capture.feed(data)
            for message in parser.feed(data):
                yield message
            if parser.state is State.CLOSED:
                return
        parser.end()
        if self._received and not self._failed:
            raise Truncated("the connection ended without CLOSE: frames that were not complete are dropped")

    async def _keep(self, message: Message, capture: Capture) -> None:
        """Begin the capture once it is known that this session is to be kept, or forget it; tell if it has failed."""
        self._has_header = self._has_header or isinstance(message, Header)
        if self._has_header and (capture.always or self._session.saves_only):
            capture.begin()
        elif isinstance(message, Acquisition | Waveform | Image):
            capture.end()
        await self._tell_problem(capture)

    async def _tell_problem(self, capture: Capture) -> None:
        if (problem := capture.take_problem()) is not None:
            level: Level = "ERROR" if self._session.saves_only else "WARNING"
            await self._say(Notice(level=level, text=ended_early(problem)))

    async def _finish_capture(self, capture: Capture) -> None:
        """Tell how the capture ended: a client that asked for it waits until all is written, another one shortly."""
        if capture.at_work:
            patience_s = self._patience.idle_s if self._session.saves_only else self._patience.captured_s
            await asyncio.to_thread(capture.wait, patience_s)
        await self._tell_problem(capture)
        if self._session.saves_only and capture.recorded is not None and capture.recorded.name is not None:
            await self._say(Notice(level="INFO", text=f"kept as {kept_as(capture.recorded)}"))

    async def _step(self, message: Message) -> None:
        try:
            async for step in self._steps(message):
                match step:
                    case RawFrame():
                        await self._frames.put(step)
                    case Notice():
                        await self._say(step)
                    case Response():
                        await self._outgoing.put(serialise(step))
        except InreconError as error:
            await self._fail(str(error))

    async def _steps(self, message: Message) -> AsyncIterator[Step]:
        """What the session makes of `message`: in a thread where it may take long, as at the end of a large scan."""
        steps = self._session.finish() if isinstance(message, Close) else self._session.receive(message)
        if isinstance(message, Acquisition):
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
        async with asyncio.timeout(self._patience.idle_s):
            data = await self._reader.read(_READ_BYTES)
        self._received += len(data)
        self._last_bytes = (self._last_bytes + data[-2:])[-2:]
        return data

    async def _fail(self, text: str) -> None:
        """Tell the client what is wrong; from now on it is only listened to."""
        self._failed = True
        self._discard_until = time.monotonic() + self._patience.discard_s
        self._discard_up_to = self._received + self._patience.discard_bytes
        await self._say(Notice(level="ERROR", text=text))

    async def _reconstruct(self) -> None:
        while (raw := await self._frames.get()) is not None:
            result = await self._worker.run(self._session.job(raw))
            for notice in self._session.take(result):
                await self._say(notice)
            for image in result.images:
                await self._outgoing.put(image)
        if self._capture is not None:
            await self._finish_capture(self._capture)
        for notice in self._session.summary():
            await self._say(notice)
        await self._outgoing.put(_CLOSE)
        await self._outgoing.put(None)

    async def _say(self, notice: Notice) -> None:
        log.log(logging.getLevelNamesMapping()[notice.level], "%s: %s", self._name, notice.text)
        message = self._session.tell(notice)
        if message is not None:
            await self._outgoing.put(serialise(message))

    async def _write(self) -> None:
        while (data := await self._outgoing.get()) is not None:
            self._writer.write(data)
            await self._drain()
        self._writer.transport.set_write_buffer_limits(high=0)
        await self._drain()
        self._said_all = True
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
                self._writer.write_eof()
                while await self._reader.read(_READ_BYTES):
                    pass


async def _watch(peer: socket.socket) -> None:
    """Raise `ConnectionResetError` when `peer` has reset the connection, which a paused reader does not see."""
    if not hasattr(socket, "TCP_INFO"):  # Linux has it; elsewhere the next write will notice
        return
    while peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_CLOSED:
        await asyncio.sleep(_WATCH_S)
    raise ConnectionResetError("the connection was reset")
