"""What a client is sent: one message waits, and the rest of them with whoever sends the next."""

import asyncio
from collections.abc import Callable

from inrecon_server.patience import Patience
from inrecon_server.protocol import Close, serialise

CLOSE = serialise(Close())


class Outbox:
    """The messages that go out at `writer`, in their order; CLOSE is the last.

    `said_all`: that CLOSE, and all before it, was taken by the client's machine.
    """

    def __init__(self, writer: asyncio.StreamWriter, *, patience: Patience) -> None:
        self._writer = writer
        self._patience = patience
        self._queue: asyncio.Queue[tuple[bytes, Callable[[], None]] | None] = asyncio.Queue(1)
        self.said_all = False

    async def put(self, data: bytes, *, on_sent: Callable[[], None] = lambda: None) -> None:
        """Queue `data`; `on_sent` is called when the client's connection has taken it."""
        await self._queue.put((data, on_sent))

    async def close(self) -> None:
        """Queue CLOSE, after which nothing comes."""
        await self.put(CLOSE)
        await self._queue.put(None)

    async def write(self) -> None:
        """Write what is queued, up to CLOSE; raises `TimeoutError` where the client does not take it."""
        self._writer.transport.set_write_buffer_limits(high=self._patience.send_buffer_bytes)
        while (outgoing := await self._queue.get()) is not None:
            data, on_sent = outgoing
            self._writer.write(data)
            await self._drain()
            on_sent()
        self._writer.transport.set_write_buffer_limits(high=0)
        await self._drain()
        self.said_all = True
        self._end()

    def last_words(self, data: bytes) -> None:
        """Write `data` and CLOSE past what is queued."""
        self._writer.write(data + CLOSE)
        self._end()

    def _end(self) -> None:
        if self._writer.can_write_eof():  # TLS cannot; there the client has CLOSE to go by
            self._writer.write_eof()

    async def _drain(self) -> None:
        async with asyncio.timeout(self._patience.idle_s):
            await self._writer.drain()
