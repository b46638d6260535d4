"""What a client sends, as messages, for no longer and no more than it may."""

import asyncio
import time
from collections.abc import AsyncIterator

from inrecon_server.capture import Capture
from inrecon_server.metrics import Metrics
from inrecon_server.outbox import CLOSE
from inrecon_server.patience import Patience
from inrecon_server.protocol import Header, Limits, Message, Parser, State, TooLarge, Truncated

_READ_BYTES = 1 << 18
_AFTER_CLOSE_S = 0.2
_IMAGE_BYTES = 128 << 20
"""Of an image from a client, which only the configuration ``null`` takes."""


class Silence(TimeoutError):
    """The client has said nothing for too long; the text is for it."""


class Inbox:
    """The messages that come in at `reader`; `capture`, if given, gets the bytes.

    `received` counts bytes, and `greeted` is whether the client's header was among them.
    """

    def __init__(
        self, reader: asyncio.StreamReader, *, patience: Patience, metrics: Metrics, capture: Capture | None
    ) -> None:
        self._reader = reader
        self._patience = patience
        self._metrics = metrics
        self._capture = capture
        self._started = time.monotonic()
        self._last_bytes = b""
        self._heard_out: tuple[float, int] | None = None
        self.received = 0
        self.greeted = False

    async def messages(self) -> AsyncIterator[Message]:
        """The client's messages, CLOSE the last; raises `ProtocolError` where they make no sense, end without it or are
        too much, `Silence` where nothing comes."""
        parser = Parser(Limits(image=_IMAGE_BYTES))
        while data := await self._bytes():
            if self._capture is not None:
                self._capture.feed(data)
            for message in parser.feed(data):
                self.greeted = self.greeted or isinstance(message, Header)
                yield message
            if parser.state is State.CLOSED:
                return
        if self._heard_out is not None:
            return  # it was heard out for long enough
        parser.end()
        if self.received:
            raise Truncated("the connection ended without CLOSE: frames that were not complete are dropped")

    def hear_out(self) -> None:
        """Its scan has failed: what it still sends is taken for a while, and then its bytes are at an end."""
        self._heard_out = (
            time.monotonic() + self._patience.discard_s,
            self.received + self._patience.discard_bytes,
        )

    async def discard(self) -> None:
        """Hear the client out where its messages cannot be told apart any more."""
        while True:
            silence_s = _AFTER_CLOSE_S if self._last_bytes == CLOSE else self._patience.silence_s
            try:
                async with asyncio.timeout(silence_s):
                    data = await self._bytes()
            except TimeoutError:
                return
            if not data:
                return

    async def until_the_end(self) -> None:
        """Wait until the client has ended its side; what it says meanwhile is of no interest."""
        while await self._reader.read(_READ_BYTES):
            pass

    async def _bytes(self) -> bytes:
        """What came next; nothing at the end, or when a client whose scan has failed was heard for long enough."""
        patience, now = self._patience, time.monotonic()
        if self._heard_out is not None:
            until, up_to = self._heard_out
            if now > until or self.received > up_to:
                return b""
        elif now > self._started + patience.scan_s or self.received > patience.scan_bytes:
            limit = f"{patience.scan_bytes / 2**30:.3g} GiB or {patience.scan_s:g} s"
            raise TooLarge(f"the scan takes more than {limit}, the most that this server takes of one")
        # Until the header is there, what is left of the time for greetings.
        left_s = patience.idle_s if self.greeted else max(self._started + patience.greeting_s - now, 0.0)
        try:
            async with asyncio.timeout(min(patience.idle_s, left_s)):
                data = await self._reader.read(_READ_BYTES)
        except TimeoutError:
            raise Silence(self._silence) from None
        self.received += len(data)
        self._metrics.received_bytes.inc(len(data))
        self._last_bytes = (self._last_bytes + data[-2:])[-2:]
        return data

    @property
    def _silence(self) -> str:
        patience = self._patience
        if not self.greeted and time.monotonic() >= self._started + patience.greeting_s:
            return f"no configuration and header came within {patience.greeting_s:g} s: the scan is ended"
        return f"nothing came for {patience.idle_s:g} s, and no CLOSE: the scan is ended"
