"""What a client hears, for all tests of a server."""

from __future__ import annotations

import signal
import socket

from inrecon_server.protocol import Close, Error, Message, Parser


def hear_interrupts() -> None:
    """For `subprocess.Popen(preexec_fn=...)`: a shell starts what runs in its background deaf to interrupts, and a
    command must not inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def read_all(connection: socket.socket) -> list[Message]:
    """Everything up to CLOSE."""
    parser = Parser(role="client")
    messages: list[Message] = []
    while messages[-1:] != [Close()] and (data := connection.recv(1 << 16)):
        messages.extend(parser.feed(data))
    parser.end()
    return messages


def owed(answers: list[Message]) -> list[Message]:
    """`answers`, after a check of what every connection is owed: CLOSE once, at the end, and no message 8."""
    assert answers.count(Close()) == 1
    assert answers[-1] == Close()
    assert not [answer for answer in answers if isinstance(answer, Error)]
    return answers
