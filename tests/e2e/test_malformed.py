"""Bad input of every kind that servers of this protocol are known to lose images, hang or die of.

Each case is sent whole; the client is told what is wrong in a text, or gets the image where nothing is lost, and CLOSE
at the end. Afterwards the next scan is served, and the server's memory is what it was.
"""

from __future__ import annotations

import copy
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ismrmrd
import numpy as np
import pytest
from hearing import owed
from ismrmrd import Acquisition

from inrecon.simulate import SimulatedScan
from inrecon_server.protocol import (
    Close,
    ConfigFile,
    ConfigText,
    Header,
    Image,
    Message,
    Text,
    serialise,
)

if TYPE_CHECKING:
    from conftest import RunningServer

CONFIG = ConfigFile("zero_filled")

pytestmark = pytest.mark.usefixtures("next_scan_is_served")

Parts = Sequence[Message | bytes]


def usual(scan: SimulatedScan) -> list[Message | bytes]:
    return [CONFIG, Header(scan.header), *scan.acquisitions, Close()]


def length_of(code: int, pattern: str, *numbers: int) -> Callable[[SimulatedScan], Parts]:
    """A message of which only lengths come."""
    before = [] if code == 2 else [CONFIG]
    return lambda _: [*before, struct.pack("<H" + pattern, code, *numbers), b"<", Close()]


def named(name: bytes) -> Callable[[SimulatedScan], Parts]:
    return lambda scan: [struct.pack("<H1024s", 1, name), *usual(scan)[1:]]


def text(config: str) -> Callable[[SimulatedScan], Parts]:
    return lambda scan: [ConfigText(config), *usual(scan)[1:]]


def header(change: Callable[[bytes], bytes]) -> Callable[[SimulatedScan], Parts]:
    return lambda scan: [CONFIG, Header(change(scan.header)), *scan.acquisitions, Close()]


def replaced(pattern: bytes, text: bytes) -> Callable[[SimulatedScan], Parts]:
    def change(xml: bytes) -> bytes:
        changed = re.sub(pattern, text, xml, flags=re.DOTALL)
        assert changed != xml
        return changed

    return header(change)


def readout(change: Callable[[Acquisition], object], *, number: int = -1) -> Callable[[SimulatedScan], Parts]:
    """One readout changed, the last unless `number` says otherwise."""

    def parts(scan: SimulatedScan) -> Parts:
        acquisitions = [copy.deepcopy(acquisition) for acquisition in scan.acquisitions]
        changed = change(acquisitions[number])
        if isinstance(changed, Acquisition):
            acquisitions[number] = changed
        return [CONFIG, Header(scan.header), *acquisitions, Close()]

    return parts


def every(change: Callable[[Acquisition], object]) -> Callable[[SimulatedScan], Parts]:
    def parts(scan: SimulatedScan) -> Parts:
        acquisitions = [copy.deepcopy(acquisition) for acquisition in scan.acquisitions]
        for acquisition in acquisitions:
            change(acquisition)
        return [CONFIG, Header(scan.header), *acquisitions, Close()]

    return parts


def resized(*shape: int) -> Callable[[Acquisition], Acquisition]:
    """A readout with the counters of another, and ``(channels, samples)`` of ones."""

    def change(acquisition: Acquisition) -> Acquisition:
        other = Acquisition.from_array(np.ones(shape, np.complex64))
        other.idx, other.flags = acquisition.idx, acquisition.flags
        other.center_sample = acquisition.center_sample
        return other

    return change


def setter(**values: object) -> Callable[[Acquisition], None]:
    def change(acquisition: Acquisition) -> None:
        for name, value in values.items():
            owner = acquisition.idx if hasattr(acquisition.idx, name) else acquisition
            setattr(owner, name, value)

    return change


BOMB = b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
FOREIGN = b'<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]>'

REFUSED: dict[str, tuple[Callable[[SimulatedScan], Parts], str]] = {
    "length of a configuration text": (length_of(2, "I", 2**32 - 1), "4294967295"),
    "length of a header": (length_of(3, "I", 2**32 - 1), "4294967295"),
    "length of a text": (length_of(5, "I", 2**32 - 1), "4294967295"),
    "length of a query": (length_of(6, "QQQ", 0, 1, 2**62), "4611686018427387904"),
    "path as configuration": (named(b"../../../etc/passwd\0"), "unknown configuration"),
    "environment variable as configuration": (named(b"HOME\0"), "unknown configuration"),
    "no name of a configuration": (named(b"\0"), "unknown configuration"),
    "name without an end": (named(b"x" * 1024), "does not end within 1024"),
    "configuration of garbage": (text("<<<garbage"), "not well-formed XML"),
    "configuration of another's gadgets": (text("<configuration><gadget/></configuration>"), "Gadgetron's own gadgets"),
    "header that is a bomb": (header(lambda xml: BOMB + xml), "document type"),
    "header that reads files": (header(lambda xml: FOREIGN + xml), "document type"),
    "header of garbage": (header(lambda _: b"\xff\x00garbage"), "header"),
    "empty header": (header(lambda _: b""), "header"),
    "header without encoding": (replaced(rb"<encoding>.*</encoding>", b""), "encoding"),
    "matrix beyond memory": (replaced(rb"<([xy])>(64|32)</", rb"<\1>65535</"), "GiB"),
    "matrix of nothing": (replaced(rb"<y>32</y>", b"<y>0</y>"), "matrix"),
    "two headers": (lambda scan: [CONFIG, Header(scan.header), Header(scan.header), Close()], "second ISMRMRD header"),
    "two configurations": (lambda _: [CONFIG, CONFIG, Close()], "second config file"),
    "header first": (lambda scan: [Header(scan.header), Close()], "header before config"),
    "more samples than the matrix": (readout(resized(4, 100)), "does not fit the encoded matrix"),
    "no samples": (readout(resized(4, 0)), "holds no data"),
    "no channels": (readout(resized(0, 64)), "holds no data"),
    "fewer channels": (readout(resized(3, 64)), "3 channels in a scan of 4"),
    "more channels": (readout(resized(5, 64)), "5 channels in a scan of 4"),
    "noise of a thousand channels and more": (readout(resized(2000, 4), number=0), "noise readout of 2000 channels"),
    "encoding space that is not there": (readout(setter(encoding_space_ref=7)), "encoding space 7"),
    "not a number": (readout(lambda a: a.data.__setitem__((0, 0), np.nan)), "line 30, slice 0, repetition 0 holds"),
    "values whose squares overflow": (every(lambda a: a.data.__imul__(1e36)), "its square overflows"),
    "infinity": (readout(lambda a: a.data.__setitem__((0, 0), np.inf)), "not finite"),
    "compression without being compressed": (
        readout(lambda a: a.set_flag(ismrmrd.ACQ_COMPRESSION1)),
        "is compressed (flag 53)",
    ),
    "big-endian ids": (lambda _: [struct.pack(">H1024s", 1, b"default.xml"), Close()], "big-endian"),
    "samples declared and not sent": (
        lambda scan: [CONFIG, Header(scan.header), serialise(scan.acquisitions[40])[:-8], *scan.acquisitions, Close()],
        "unknown message id",
    ),
}

WARNED: dict[str, tuple[Callable[[SimulatedScan], Parts], str]] = {
    "line out of range": (readout(setter(kspace_encode_step_1=1000)), "outside the header's encoding limits"),
    "centre out of range": (readout(setter(center_sample=60_000)), "taken to be the middle"),
    "readouts of nothing": (readout(lambda a: a.data.fill(0)), "all zero"),
}

TAKEN: dict[str, Callable[[SimulatedScan], Parts]] = {
    "header that ends in NUL": header(lambda xml: xml + b"\0"),
    "header in Latin-1": replaced(rb'encoding="utf-8"(.*)simulated_brain', b'encoding="latin-1"\\1K\xf6rper'),
    "unknown element in the header": replaced(rb"<encoding>", b"<vendorsOwn><thing>1</thing></vendorsOwn><encoding>"),
    "trajectory of a Cartesian scan": every(lambda a: a.resize(a.number_of_samples, a.active_channels, 2)),
    "no flag of an end": every(lambda a: a.clear_all_flags()),
    "lines twice": lambda scan: [
        CONFIG,
        Header(scan.header),
        *2 * scan.acquisitions[:-1],
        scan.acquisitions[-1],
        Close(),
    ],
    "slice out of limits": every(setter(slice=17)),
    "waveforms between": lambda scan: [
        CONFIG,
        Header(scan.header),
        *(m for a in scan.acquisitions for m in (ismrmrd.Waveform.from_array(np.ones((1, 4), np.uint32)), a)),
        Close(),
    ],
    "data after CLOSE": lambda scan: [*usual(scan), *scan.acquisitions, b"garbage"],
    "byte by byte": lambda scan: [bytes([byte]) for byte in b"".join(map(serialise, usual(scan)))],
}


@pytest.fixture(scope="module", autouse=True)
def memory_is_what_it_was(server: RunningServer, scan: SimulatedScan) -> Iterator[None]:
    assert server.send(scan, config="zero_filled").images
    before = anonymous_mb(server)
    yield
    assert server.send(scan, config="zero_filled").images
    assert anonymous_mb(server) < before + 20


def anonymous_mb(server: RunningServer) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1e3


def heard(server: RunningServer, parts: Parts) -> tuple[list[Image], list[str]]:
    """Images and texts."""
    answers = owed(server.answers(*parts))
    texts = [answer.text for answer in answers if isinstance(answer, Text)]
    return [answer for answer in answers if isinstance(answer, Image)], texts


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_words(server: RunningServer, scan: SimulatedScan, case: str) -> None:
    parts, told = REFUSED[case]
    images, texts = heard(server, parts(scan))
    assert images == []
    (error,) = [text for text in texts if text.startswith("ERROR")]
    assert told in error
    assert "\n" not in error


@pytest.mark.parametrize("case", WARNED)
def test_what_can_be_left_out_is_told(server: RunningServer, scan: SimulatedScan, case: str) -> None:
    parts, told = WARNED[case]
    images, texts = heard(server, parts(scan))
    assert len(images) == 1
    assert images[0].data.shape[-2:] == (32, 32)
    assert [text for text in texts if text.startswith("WARNING") and told in text]


@pytest.mark.parametrize("case", TAKEN)
def test_what_does_no_harm_is_taken(server: RunningServer, scan: SimulatedScan, case: str) -> None:
    images, texts = heard(server, TAKEN[case](scan))
    assert len(images) == 1
    assert images[0].data.shape[-2:] == (32, 32)
    assert not [text for text in texts if text.startswith("ERROR")]


def test_noise_alone_makes_no_image(server: RunningServer, scan: SimulatedScan) -> None:
    noise = [a for a in scan.acquisitions if a.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]
    images, texts = heard(server, [CONFIG, Header(scan.header), *noise, Close()])
    assert images == []
    assert not [text for text in texts if text.startswith("ERROR")]


def test_an_image_with_attributes_beyond_all_limits(server: RunningServer, scan: SimulatedScan) -> None:
    (image,) = server.send(scan, config="zero_filled").images
    head = serialise(image)[:200]
    _, (error,) = heard(server, [CONFIG, Header(scan.header), head, struct.pack("<Q", 2**60), Close()])
    assert "1152921504606846976" in error
