"""What is fuzzed: functions of bytes that raise only where something is wrong with the code."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np

from inrecon.acquire import Accumulator, LiveAccumulator, parse_header
from inrecon.errors import ConfigError, InvalidFrame, InvalidHeader
from inrecon.frame import Live
from inrecon.simulate import simulate_scan
from inrecon_server.config import amend, configure
from inrecon_server.protocol import Acquisition, Limits, Parser, ProtocolError, serialise

SCAN = simulate_scan(shape=(8, 8), coils=2, acceleration=2, acs=4)
LIMITS = Limits(acquisition=1 << 16, image=1 << 16, waveform=1 << 16, meta=1 << 14, header=1 << 16, text=1 << 14)


def parser(data: bytes) -> None:
    """A stream of messages, in pieces whose size the first byte says; readouts go on to those that collect them.

    Whatever is parsed can be sent, and be parsed again.
    """
    piece, stream = data[:1] or b"\0", data[1:]
    step = 1 + piece[0] // 2
    reader = Parser(LIMITS, role="client" if piece[0] % 2 else "server")
    scan = parse_header(SCAN.header)
    collecting = (
        Accumulator(scan, limit_bytes=1 << 20),
        LiveAccumulator(scan, live=Live(window=3, step=1), limit_bytes=1 << 20),
    )
    with suppress(ProtocolError), np.errstate(all="ignore"):
        for start in range(0, len(stream), step):
            for message in reader.feed(stream[start : start + step]):
                again = Parser(role="client")
                list(again.feed(serialise(message)))
                if isinstance(message, Acquisition):
                    for accumulator in collecting:
                        with suppress(InvalidFrame):
                            accumulator.add(message)
        reader.end()


def header(data: bytes) -> None:
    """An ISMRMRD header."""
    with suppress(InvalidHeader):
        parse_header(data)


def configuration(data: bytes) -> None:
    """The name or text of a configuration, and FIRE's JSON after it."""
    text, _, amendment = data.decode("latin-1").partition("\1")
    with suppress(ConfigError):
        found = configure(text)
        if amendment:
            amend(found, amendment)


TARGETS: dict[str, Callable[[bytes], None]] = {"parser": parser, "header": header, "configuration": configuration}
