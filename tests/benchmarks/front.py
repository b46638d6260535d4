"""The front of the server: readouts a second beside ismrmrd's own reader, and what it adds to the time of a fit.

    python tests/benchmarks/front.py [--readouts 20000] [--scans 100]

1. Readouts of 24 coils x 256 samples from memory through the parser, through the parser and the accumulator, over TCP
   into a running server (configuration ``null``), and through ``ismrmrd.serialization.ProtocolDeserializer``.
2. Latency: from the last readout sent to the first byte of the image, less the seconds that conditioning, fit and image
   took in the worker, for scans of 128 x 128 one after the other. CG-SENSE with few iterations: a short fit shows more
   of the rest.
"""

from __future__ import annotations

import argparse
import io
import socket
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from ismrmrd.serialization import ProtocolDeserializer

from inrecon.acquire import Accumulator, parse_header
from inrecon.simulate import SimulatedScan, simulate_scan
from inrecon_server.demo import running_server
from inrecon_server.protocol import Close, ConfigFile, ConfigText, Header, Image, Parser, serialise

CONFIG = (
    '<configuration><property name="method" value="cg_sense"/><property name="iterations" value="5"/></configuration>'
)


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readouts", type=int, default=20_000)
    parser.add_argument("--scans", type=int, default=100)
    options = parser.parse_args()
    with TemporaryDirectory() as folder, running_server(Path(folder) / "log") as (host, port):
        throughput(options.readouts, (host, port))
        latency(options.scans, (host, port))


def throughput(count: int, address: tuple[str, int]) -> None:
    """Readouts a second."""
    scan = simulate_scan(shape=(256, 128), coils=24, pattern="full", oversampling=False, repetitions=2)
    lines = [line for line in scan.acquisitions if line.active_channels == 24][: min(count, 256)]
    piece = b"".join(map(serialise, lines))
    repeats = max(1, count // len(lines))
    stream = piece * repeats
    readouts = repeats * len(lines)
    begin = serialise(ConfigFile("null")) + serialise(Header(scan.header))
    figures = {
        "parser": timed(lambda: parsed(begin + stream)),
        "parser and accumulator": timed(lambda: accumulated(scan, begin + stream)),
        "over TCP into the server": timed(lambda: sent(begin, piece, repeats, address)),
        "ismrmrd's ProtocolDeserializer": timed(lambda: read_by_ismrmrd(begin + stream)),
    }
    theirs = figures["ismrmrd's ProtocolDeserializer"]
    sys.stdout.write(
        f"{readouts} readouts of 24 x 256\n| way | readouts/s | MB/s | over ismrmrd's |\n|---|---|---|---|\n"
    )
    for name, seconds in figures.items():
        rate = readouts / seconds
        sys.stdout.write(f"| {name} | {rate:,.0f} | {len(stream) / seconds / 1e6:,.0f} | {theirs / seconds:.1f} |\n")


def timed(work) -> float:
    """Seconds, the least of three runs."""
    found = []
    for _ in range(3):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def parsed(data: bytes) -> None:
    """Through the parser in pieces as a socket gives them."""
    parser = Parser()
    for start in range(0, len(data), 1 << 18):
        for _ in parser.feed(data[start : start + (1 << 18)]):
            pass


def accumulated(scan: SimulatedScan, data: bytes) -> None:
    """Through parser and accumulator."""
    parser, accumulator = Parser(), Accumulator(parse_header(scan.header))
    for start in range(0, len(data), 1 << 18):
        for message in parser.feed(data[start : start + (1 << 18)]):
            if hasattr(message, "active_channels"):
                accumulator.add(message)


def sent(begin: bytes, piece: bytes, repeats: int, address: tuple[str, int]) -> None:
    """Into the server, until its CLOSE."""
    with socket.create_connection(address) as connection:
        connection.sendall(begin)
        for _ in range(repeats):
            connection.sendall(piece)
        connection.sendall(serialise(Close()))
        while connection.recv(1 << 16):
            pass


def read_by_ismrmrd(data: bytes) -> None:
    """Through ismrmrd's own reader."""
    for _ in ProtocolDeserializer(io.BytesIO(data + serialise(Close()))).deserialize():
        pass


def latency(scans: int, address: tuple[str, int]) -> None:
    """Milliseconds from the last readout to the image, less the work at it."""
    scan = simulate_scan(shape=(128, 128), coils=8, acceleration=3, acs=20)
    begin = serialise(ConfigText(CONFIG)) + serialise(Header(scan.header))
    most = b"".join(map(serialise, scan.acquisitions[:-1]))
    last = serialise(scan.acquisitions[-1])
    whole, added = [], []
    for number in range(scans + 3):
        with socket.create_connection(address) as connection:
            connection.sendall(begin + most)
            time.sleep(0.05)  # a scanner's readouts come some ms apart: those before the last have been taken
            connection.sendall(last)
            started = time.perf_counter()
            image, first_byte = image_from(connection)
            connection.sendall(serialise(Close()))
            while connection.recv(1 << 16):
                pass
        if number < 3:  # the worker starts, and its threads
            continue
        work = sum(float(value) for name, value in image.meta.items() if name.startswith("inrecon_seconds_"))
        whole.append(1e3 * (first_byte - started))
        added.append(1e3 * (first_byte - started - work))
    sys.stdout.write(f"\n{scans} scans of 128 x 128 x 8\n| ms | median | p99 | max |\n|---|---|---|---|\n")
    for name, values in {"last readout to image": whole, "of which not the reconstruction": added}.items():
        p99 = np.percentile(values, 99)
        sys.stdout.write(f"| {name} | {statistics.median(values):.1f} | {p99:.1f} | {max(values):.1f} |\n")


def image_from(connection: socket.socket) -> tuple[Image, float]:
    """The first image, and when its first bytes came."""
    parser = Parser(role="client")
    while data := connection.recv(1 << 20):
        arrived = time.perf_counter()
        for message in parser.feed(data):
            if isinstance(message, Image):
                return message, arrived
    raise RuntimeError("the server sent no image")


if __name__ == "__main__":
    main()
