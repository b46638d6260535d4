"""A client on a plain blocking socket: sends one scan and gathers what the server answers."""

import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import ismrmrd

from inrecon.errors import InreconError
from inrecon_server.protocol import (
    Close,
    ConfigFile,
    ConfigText,
    Header,
    Image,
    Message,
    Parser,
    ProtocolError,
    Response,
    Text,
    serialise,
)

_READ_BYTES = 1 << 18


class ConnectionFailedError(InreconError):
    """There is no server at that address, or the connection to it broke."""


@dataclass
class ClientResult:
    """What the server answered; `closed` is False where it went away without CLOSE."""

    images: list[ismrmrd.Image] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    responses: list[Response] = field(default_factory=list)
    closed: bool = False


def send(
    header: bytes | None,
    data: Iterable[Message],
    *,
    host: str = "127.0.0.1",
    port: int = 9002,
    config: str | None = "inr",
    parameters: str | None = None,
    timeout_s: float = 600.0,
    on_answer: Callable[[Message], None] | None = None,
) -> ClientResult:
    """Send a scan and wait for the server's CLOSE.

    `header` is ISMRMRD XML, `data` the acquisitions and waveforms in order, `config` the name of a configuration, or
    the text of one, `parameters` FIRE's JSON; None leaves a message out. `on_answer` is called with each message of
    the server, from another thread. Raises `ConnectionFailedError` if there is no server or it is silent for
    `timeout_s`, and `ProtocolError` if it does not speak MRD.
    """
    try:
        connection = socket.create_connection((host, port), timeout=timeout_s)
    except OSError as error:
        raise ConnectionFailedError(f"no server answers at {host}:{port}: {error}") from error
    with connection:
        listener = _Listener(connection, on_answer=on_answer)
        listener.start()
        # A server that ends the scan early still has something to say.
        with suppress(OSError):
            for message in _messages(header, data, config=config, parameters=parameters):
                connection.sendall(serialise(message))
        listener.join()
    if listener.problem is not None and not listener.result.closed:
        raise listener.problem
    return listener.result


def _messages(
    header: bytes | None, data: Iterable[Message], *, config: str | None, parameters: str | None
) -> Iterable[Message]:
    if config is not None:
        yield ConfigText(config) if config.lstrip()[:1] in ("<", "{") else ConfigFile(config)
    if header is not None:
        yield Header(header)
    if parameters is not None:
        yield Text(parameters)
    yield from data
    yield Close()


class _Listener(threading.Thread):
    """Gathers the answers while the scan is being sent: a client that sends first and reads later can block both."""

    def __init__(self, connection: socket.socket, *, on_answer: Callable[[Message], None] | None) -> None:
        super().__init__(daemon=True)
        self.result = ClientResult()
        self.problem: InreconError | None = None
        self._connection = connection
        self._on_answer = on_answer

    def run(self) -> None:
        parser = Parser(role="client")
        try:
            while not self.result.closed and (data := self._connection.recv(_READ_BYTES)):
                for message in parser.feed(data):
                    self._take(message)
            parser.end()
        except ProtocolError as error:
            self.problem = error
        except OSError as error:
            self.problem = ConnectionFailedError(f"the connection to the server broke: {error}")

    def _take(self, message: Message) -> None:
        match message:
            case Image():
                self.result.images.append(message)
            case Text(text=text):
                self.result.texts.append(text)
            case Response():
                self.result.responses.append(message)
            case Close():
                self.result.closed = True
        if self._on_answer is not None:
            self._on_answer(message)
