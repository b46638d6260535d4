"""A client on a plain blocking socket: sends one scan and gathers what the server answers."""

import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import ismrmrd

from inrecon.errors import InreconError
from inrecon_server.protocol import (
    Close,
    Header,
    Image,
    Message,
    Parser,
    ProtocolError,
    Response,
    Text,
    asking_for,
    serialise,
)

_READ_BYTES = 1 << 18
_RECORD_BYTES = 1 << 14

Answer = TypeVar("Answer")


class ConnectionFailedError(InreconError):
    """There is no server at that address."""


@dataclass
class ClientResult:
    """What the server answered, up to its CLOSE (`closed`), or as far as it got; `problem` says why no further."""

    images: list[ismrmrd.Image] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    responses: list[Response] = field(default_factory=list)
    closed: bool = False
    problem: str | None = None


def send(
    header: bytes | None,
    data: Iterable[Message],
    *,
    host: str = "127.0.0.1",
    port: int = 9002,
    config: str | None = "inr",
    parameters: str | None = None,
    timeout_s: float = 600.0,
    tls: ssl.SSLContext | None = None,
    on_answer: Callable[[Message], None] | None = None,
) -> ClientResult:
    """Send a scan and wait for the server's CLOSE.

    `header` is ISMRMRD XML, `data` the acquisitions and waveforms in order, `config` the name of a configuration, or
    the text of one, `parameters` FIRE's JSON; None leaves a message out; `tls` encrypts. `on_answer` is called with
    each message of the server, from another thread. After `timeout_s` in which the server takes nothing, or all has
    been sent and it says nothing, it is waited for no longer. Raises `ConnectionFailedError` if there is no server.
    """
    try:
        plain = socket.create_connection((host, port), timeout=timeout_s)
    except OSError as error:
        raise ConnectionFailedError(f"no server answers at {host}:{port}: {error}") from error
    try:
        connection = plain if tls is None else _Encrypted(tls.wrap_socket(plain, server_hostname=host))
    except OSError as error:
        plain.close()
        raise ConnectionFailedError(
            f"the server at {host}:{port} and this client do not trust each other: {error}"
        ) from error
    with connection:
        listener = _Listener(connection, timeout_s=timeout_s, on_answer=on_answer)
        listener.start()
        try:
            for message in _messages(header, data, config=config, parameters=parameters):
                connection.sendall(serialise(message))
        except TimeoutError:
            listener.give_up(f"the server has taken nothing for {timeout_s:g} s")
        except OSError:
            pass  # a server that ends the scan early still has something to say
        listener.all_sent.set()
        listener.join()
    return listener.result


def _messages(
    header: bytes | None, data: Iterable[Message], *, config: str | None, parameters: str | None
) -> Iterable[Message]:
    if config is not None:
        yield asking_for(config)
    if header is not None:
        yield Header(header)
    if parameters is not None:
        yield Text(parameters)
    yield from data
    yield Close()


class _Encrypted:
    """A socket with TLS that one thread reads and another one writes, which OpenSSL allows in turns only."""

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self._timeout_s = connection.gettimeout()
        self._connection = connection
        self._turn = threading.Lock()
        connection.setblocking(False)

    def __enter__(self) -> "_Encrypted":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def recv(self, size: int) -> bytes:
        """As `socket.recv`."""
        return self._when_ready(lambda: self._connection.recv(size))

    def sendall(self, data: bytes) -> None:
        """As `socket.sendall`."""
        rest = memoryview(data)
        while rest:
            # The same bytes again after a wait, as OpenSSL wants it.
            rest = rest[self._when_ready(partial(self._connection.send, rest[:_RECORD_BYTES])) :]

    def shutdown(self, how: int) -> None:
        """As `socket.shutdown`, without TLS's own farewell: CLOSE has said it."""
        self._connection.shutdown(how)

    def _when_ready(self, act: Callable[[], Answer]) -> Answer:
        while True:
            with self._turn:
                try:
                    return act()
                except ssl.SSLWantReadError:
                    reads, writes = [self._connection], list[ssl.SSLSocket]()
                except ssl.SSLWantWriteError:
                    reads, writes = list[ssl.SSLSocket](), [self._connection]
            if not any(select.select(reads, writes, [], self._timeout_s)):
                raise TimeoutError


class _Listener(threading.Thread):
    """Gathers the answers while the scan is being sent: a client that sends first and reads later can block both."""

    def __init__(
        self, connection: socket.socket | _Encrypted, *, timeout_s: float, on_answer: Callable[[Message], None] | None
    ) -> None:
        super().__init__(daemon=True)
        self.result = ClientResult()
        self.all_sent = threading.Event()
        self._connection = connection
        self._timeout_s = timeout_s
        self._on_answer = on_answer

    def give_up(self, problem: str) -> None:
        """End with what has come."""
        if not self.result.closed:
            self.result.problem = problem
        with suppress(OSError):  # the server may have hung up meanwhile
            self._connection.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        problem = self._listen()
        if not self.result.closed:
            self.result.problem = self.result.problem or problem

    def _listen(self) -> str:
        """Take what comes up to CLOSE; gives why nothing came after it, if it was not that."""
        parser = Parser(role="client")
        try:
            while not self.result.closed and (data := self._next()):
                for message in parser.feed(data):
                    self._take(message)
            parser.end()
        except ProtocolError as error:
            return str(error)
        except TimeoutError:
            return f"the server has said nothing for {self._timeout_s:g} s"
        except OSError as error:
            return f"the connection to the server broke: {error}"
        return "the server went away without CLOSE"

    def _next(self) -> bytes:
        while True:
            sending = not self.all_sent.is_set()
            try:
                return self._connection.recv(_READ_BYTES)
            except TimeoutError:
                # A server that is sent a long scan has nothing to say yet.
                if not sending:
                    raise

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
