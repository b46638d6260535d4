"""MRD v1 on the wire: bytes become messages and messages become bytes. Nothing here does I/O.

    parser = Parser()
    for message in parser.feed(data): ...    # again for every piece that arrives
    parser.end()                             # when no more will come

Layouts: ISMRMRD 1.15 (``ismrmrd.h``, ``waveform.h``) and Gadgetron 4.7 (``MessageID.h``, ``Handlers.cpp``,
``Writers.cpp``). All numbers are little-endian; a message is a uint16 id and a body; there is neither a magic number
nor a total length, so one wrong count makes nonsense of everything after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Literal

from inrecon_server.codec import Reader, reader_of, serialise
from inrecon_server.messages import (
    Acquisition,
    Close,
    ConfigFile,
    ConfigText,
    DependencyQuery,
    Error,
    Header,
    Image,
    Limits,
    Malformed,
    Message,
    MessageId,
    OutOfOrder,
    ProtocolError,
    Query,
    Response,
    Text,
    TooLarge,
    Truncated,
    UnknownMessage,
    Waveform,
    asking_for,
)

__all__ = [
    "Acquisition",
    "Close",
    "ConfigFile",
    "ConfigText",
    "DependencyQuery",
    "Ending",
    "Error",
    "Header",
    "Image",
    "Limits",
    "Malformed",
    "Message",
    "MessageId",
    "OutOfOrder",
    "Parser",
    "ProtocolError",
    "Query",
    "Response",
    "State",
    "Text",
    "TooLarge",
    "Truncated",
    "UnknownMessage",
    "Waveform",
    "asking_for",
    "serialise",
]

_ID_BYTES = 2

# Ids of the standard and of Gadgetron that have no reader here, named so that the refusal can be understood.
_UNSUPPORTED = {
    1018: "a DICOM file",
    1023: "Gadgetron's ReconData",
    1024: "Gadgetron's ImageArray",
    1030: "NDArray",
    1050: "Gadgetron's AcquisitionBucket",
}
_HTTP_METHODS = {b"GE": "GET", b"PO": "POST", b"PU": "PUT", b"HE": "HEAD", b"OP": "OPTIONS", b"PR": "PRI (HTTP/2)"}
_TLS_HANDSHAKE = b"\x16\x03"


class State(Enum):
    """What a server's parser waits for; a client's is in `STREAM` from the start."""

    CONFIG = "config"
    HEADER = "header"
    STREAM = "stream"
    CLOSED = "closed"
    BROKEN = "broken"


class Ending(Enum):
    """How a stream ended when it did not end inside a message: by CLOSE, without one, or in nonsense."""

    CLOSED = "closed"
    VANISHED = "vanished"
    BROKEN = "broken"


class Parser:
    """Turns bytes, in pieces of any size, into messages.

    A server's parser also holds the client to the order config, header, data. After CLOSE, or after an error, whatever
    follows is ignored, so that a caller may go on draining its peer.
    """

    def __init__(self, limits: Limits | None = None, *, role: Literal["server", "client"] = "server") -> None:
        self._limits = limits or Limits()
        self._checks_order = role == "server"
        self._state = State.CONFIG if self._checks_order else State.STREAM
        self._buffer = bytearray()
        self._reader: Reader | None = None
        self._needed = _ID_BYTES
        self._id: MessageId | None = None
        self._previous: MessageId | None = None

    @property
    def state(self) -> State:
        """What the parser waits for."""
        return self._state

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Message]:
        """Take `data` and iterate over the messages that are now complete; ones not iterated over come next time.

        Iterating raises `ProtocolError`, and nothing else, at the first byte that makes no sense.
        """
        if not self._over:
            self._buffer += data
        return self._messages()

    def end(self) -> Ending:
        """Say how the stream ended; to be called once all messages have been iterated over.

        Raises `Truncated` if it ended inside a message.
        """
        if self._state is State.BROKEN:
            return Ending.BROKEN
        if self._state is State.CLOSED:
            return Ending.CLOSED
        if self._id is not None:
            inside = self._id.name
        elif self._buffer:
            inside = "a message id"
        else:
            return Ending.VANISHED
        raise Truncated(f"the stream ended inside {inside}: {len(self._buffer)} of the next {self._needed} bytes came")

    @property
    def _over(self) -> bool:
        return self._state in (State.CLOSED, State.BROKEN)

    def _messages(self) -> Iterator[Message]:
        while not self._over and len(self._buffer) >= self._needed:
            part = self._buffer[: self._needed]
            # Deleting at the front of a bytearray moves no bytes.
            del self._buffer[: self._needed]
            try:
                message = self._begin(part) if self._reader is None else self._go_on(self._reader, part)
            except ProtocolError:
                self._stop(State.BROKEN)
                raise
            if message is not None:
                yield message

    def _begin(self, part: bytearray) -> Message | None:
        """Choose the reader for the id in `part`."""
        try:
            self._id = MessageId(int.from_bytes(part, "little"))
        except ValueError:
            raise UnknownMessage(_unknown(bytes(part), self._previous)) from None
        if self._checks_order and (reason := _out_of_order(self._id, self._state)):
            raise OutOfOrder(reason)
        self._reader = reader_of(self._id, self._limits)
        self._needed = next(self._reader)
        return None

    def _go_on(self, reader: Reader, part: bytearray) -> Message | None:
        """Give `reader` the bytes it asked for."""
        wanted = reader.send(part)
        if isinstance(wanted, int):
            self._needed = wanted
            return None
        self._previous, self._id, self._reader, self._needed = self._id, None, None, _ID_BYTES
        if isinstance(wanted, Close):
            self._stop(State.CLOSED)
        elif self._checks_order and isinstance(wanted, ConfigFile | ConfigText):
            self._state = State.HEADER
        elif isinstance(wanted, Header):
            self._state = State.STREAM
        return wanted

    def _stop(self, state: State) -> None:
        self._state = state
        self._buffer = bytearray()
        self._reader = None


def _out_of_order(kind: MessageId, state: State) -> str | None:
    """Why a server in `state` refuses a message, or None; in Gadgetron's words where it has any."""
    match kind:
        case MessageId.CONFIG_FILE | MessageId.CONFIG_TEXT if state is not State.CONFIG:
            return "Received second config file. Only one allowed."
        case MessageId.HEADER if state is State.CONFIG:
            return "Received ISMRMRD header before config file."
        case MessageId.HEADER if state is State.STREAM:
            return "Received second ISMRMRD header. Only one allowed."
        case MessageId.ACQUISITION | MessageId.IMAGE | MessageId.WAVEFORM if state is not State.STREAM:
            missing = "config and ISMRMRD header" if state is State.CONFIG else "ISMRMRD header"
            return f"Received {kind.name} before {missing}."
        case MessageId.RESPONSE | MessageId.ERROR | MessageId.DEPENDENCY_QUERY:
            return f"Received {kind.name}, which a client does not send."
    return None


def _unknown(code: bytes, previous: MessageId | None) -> str:
    """What to say of an id that has no reader, with a guess at what is really wrong."""
    number = int.from_bytes(code, "little")
    told = f"unknown message id {number}"
    if number in _UNSUPPORTED:
        return f"{told}: {_UNSUPPORTED[number]}, which is not supported"
    if previous is not None:
        return f"{told} after {previous.name}, which perhaps had not the length that it declared"
    if code in _HTTP_METHODS:
        return f"{told}: this looks like an HTTP {_HTTP_METHODS[code]} request, but this port speaks MRD"
    if code == _TLS_HANDSHAKE:
        return f"{told}: this looks like a TLS handshake, but this port speaks MRD without encryption"
    if int.from_bytes(code, "big") in set(MessageId):
        return f"{told}: this looks like a big-endian id, but MRD is little-endian"
    return f"{told}: this is not an MRD v1 stream"
