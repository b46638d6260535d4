"""The process that writes one session's messages as an ISMRMRD raw file: bytes come on stdin, a line of JSON goes out.

    python -m inrecon_server.recorder '{"folder": ...}' < what a client sends

A process of its own, because HDF5 ends the process that it is in where a write fails.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from ismrmrd.hdf5 import acquisition_dtype, acquisition_header_dtype, waveform_dtype, waveform_header_dtype
from numpy.typing import NDArray

from inrecon.errors import first_line
from inrecon_server.keeping import MARK, Keeping, Place, protocol_name, tidy
from inrecon_server.logs import log_to_stderr
from inrecon_server.protocol import (
    Acquisition,
    ConfigFile,
    ConfigText,
    Header,
    Message,
    Parser,
    ProtocolError,
    Text,
    Waveform,
)

log = logging.getLogger("inrecon_server.recorder")  # run as a program of its own

_KIB, _MIB = 2**10, 2**20
_READ_BYTES = 1 * _MIB
_TEXT = h5py.special_dtype(vlen=bytes)
# Many enough that the cost of a call to HDF5 is shared.
_ROWS_AT_ONCE = 256
_BYTES_AT_ONCE = 8 * _MIB
# Of each dataset, rows that HDF5 has not yet given a place in the file.
_CACHE_BYTES = 1 * _MIB
# For what HDF5 writes when a file is closed: these caches, indices and headers.
_CLOSING_BYTES = 4 * _MIB
_RESERVED_AT_ONCE = 16 * _MIB
# A row and the heap that holds its arrays, which is never smaller than a page.
_ROW_BYTES = 8 * _KIB

# What h5py raises where a file cannot be written, by what it was doing.
_FAILURES = (OSError, RuntimeError, ValueError, MemoryError)


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What became of a session: the file's `name` (None: there is none), how much is in it, and the `problem` that
    ended it early, if there was one."""

    name: str | None = None
    readouts: int = 0
    waveforms: int = 0
    problem: str | None = None

    @classmethod
    def read(cls, line: bytes) -> Self:
        """What another process wrote; raises ValueError if that is not such a line."""
        return cls(**json.loads(line))

    def line(self) -> bytes:
        """One line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"


def record(pieces: Iterator[bytes], folder: Path) -> Recorded:
    """Write what a client sends, in `pieces` of any size, to a file in `folder`; there is none without a header.

    Ends with the pieces, or where they make no sense; what came before is in the file, also where the disk is full.
    Queries, images, texts that are not FIRE's JSON, and texts after the first readout are left out.
    """
    recording: Recording | None = None
    configuration: list[Message] = []
    problem = None
    try:
        for message in _messages(pieces):
            if recording is not None:
                recording.take(message)
            elif isinstance(message, Header):
                recording = Recording(Place.claim(folder, time.localtime()), message)
                for earlier in configuration:
                    recording.take(earlier)
            else:
                configuration.append(message)
    except _FAILURES as error:
        problem = _words(error)
    if recording is None:
        return Recorded(problem=problem)
    return recording.close(problem)


def _messages(pieces: Iterator[bytes]) -> Iterator[Message]:
    parser = Parser()
    with suppress(ProtocolError):
        for piece in pieces:
            yield from parser.feed(piece)


class Recording:
    """One file, as it grows; raises what h5py does, and OSError where the disk is full."""

    def __init__(self, place: Place, header: Header) -> None:
        self._place = place
        self._protocol = protocol_name(header.xml)
        self._rows: dict[str, list[Acquisition | Waveform]] = {"data": [], "waveforms": []}
        self._held = 0
        self._written = dict.fromkeys(self._rows, 0)
        self._reserved = 0
        try:
            self._file = h5py.File(place.part, "w", locking="best-effort", rdcc_nbytes=_CACHE_BYTES)
            self._reserve(len(header.xml))
            self._group = self._file.create_group("dataset")
            self._group.attrs[MARK] = True
            self._write_text("xml", header.xml)
            self._append("data", np.empty(0, acquisition_dtype))
        except _FAILURES:
            place.leave()
            raise

    def take(self, message: Message) -> None:
        """Keep `message`, at the latest when the file is closed."""
        match message:
            case ConfigFile(name=name):
                self._write_text("config_file", name.encode())
            case ConfigText(text=text):
                self._write_text("config", text.encode())
            # A server takes no texts after the first readout, and a replay shall not either.
            case Text(text=text) if text.lstrip().startswith("{") and not self._any_readouts:
                self._write_text("configAdditional", text.encode())
            case Acquisition():
                self._add("data", message, message.data.nbytes + message.traj.nbytes)
            case Waveform():
                self._add("waveforms", message, message.data.nbytes)

    def close(self, problem: str | None) -> Recorded:
        """Write what is left, unless there was a `problem`, and give the file its name."""
        try:
            if problem is None:
                self._write_rows()
        except _FAILURES as error:
            problem = _words(error)
        name = None
        try:
            self._file.flush()
            size = self._file.id.get_filesize()
            self._file.close()
            os.truncate(self._place.part, size)  # without what was reserved and not needed
            name = self._place.publish(self._protocol)
        except _FAILURES as error:
            problem = problem or _words(error)
        return Recorded(
            name=name, readouts=self._written["data"], waveforms=self._written["waveforms"], problem=problem
        )

    @property
    def _any_readouts(self) -> bool:
        return bool(self._written["data"] or self._rows["data"])

    def _add(self, dataset: str, message: Acquisition | Waveform, size: int) -> None:
        self._rows[dataset].append(message)
        self._held += size
        if self._held >= _BYTES_AT_ONCE or len(self._rows[dataset]) >= _ROWS_AT_ONCE:
            self._write_rows()

    def _write_rows(self) -> None:
        self._reserve(self._held + _ROW_BYTES * sum(map(len, self._rows.values())))
        for name, rows in self._rows.items():
            if rows:
                table = _acquisition_table(rows) if name == "data" else _waveform_table(rows)
                self._append(name, table)
                self._written[name] += len(rows)
                rows.clear()
        self._held = 0

    def _write_text(self, name: str, text: bytes) -> None:
        self._reserve(len(text) + _ROW_BYTES)
        texts = np.empty(1, _TEXT)
        texts[0] = text.replace(b"\0", b" ")  # HDF5's texts end with NUL
        self._append(name, texts)

    def _append(self, name: str, rows: NDArray[Any]) -> None:
        if name not in self._group:
            self._group.create_dataset(name, (0,), maxshape=(None,), chunks=(_ROWS_AT_ONCE,), dtype=rows.dtype)
        dataset = self._group[name]
        start = len(dataset)
        dataset.resize(start + len(rows), axis=0)
        try:
            dataset[start:] = rows
        except _FAILURES:
            dataset.resize(start, axis=0)  # no rows but those that came
            raise

    def _reserve(self, size: int) -> None:
        """Make sure that the file can grow by `size` bytes and then be closed; raises OSError if the disk is full.

        HDF5 must not notice that itself: the file would be lost, and the process with it.
        """
        needed = self._file.id.get_filesize() + size + 4 * _CACHE_BYTES + _CLOSING_BYTES
        if needed > self._reserved and hasattr(os, "posix_fallocate"):
            self._reserved = needed + _RESERVED_AT_ONCE
            os.posix_fallocate(self._file.id.get_vfd_handle(), 0, self._reserved)


def _acquisition_table(acquisitions: Sequence[Any]) -> NDArray[Any]:
    table = np.empty(len(acquisitions), acquisition_dtype)
    table["head"] = np.frombuffer(b"".join(bytes(each.getHead()) for each in acquisitions), acquisition_header_dtype)
    for row, acquisition in enumerate(acquisitions):
        table["traj"][row] = acquisition.traj.ravel()
        table["data"][row] = acquisition.data.ravel().view(np.float32)
    return table


def _waveform_table(waveforms: Sequence[Any]) -> NDArray[Any]:
    table = np.empty(len(waveforms), waveform_dtype)
    table["head"] = np.frombuffer(b"".join(bytes(each.getHead()) for each in waveforms), waveform_header_dtype)
    for row, waveform in enumerate(waveforms):
        table["data"][row] = waveform.data.ravel()
    return table


def _words(error: BaseException) -> str:
    """What is wrong, in a line without the name of a file."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return first_line(error)[:200]


def _pieces() -> Iterator[bytes]:
    """What comes on stdin, as it comes."""
    while data := os.read(0, _READ_BYTES):
        yield data


def main() -> None:
    """Record stdin as the options in the first argument say, a JSON object; then tidy the folder."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # What ends the server ends this process, too, but only once it has written what came.
        signal.signal(number, signal.SIG_IGN)
    options = json.loads(sys.argv[1])
    log_to_stderr(options["log_level"], options["log_format"])
    keeping = Keeping(folder=Path(options["folder"]), days=options["days"], gib=options["gib"])
    recorded = record(_pieces(), keeping.folder)
    os.close(0)  # whoever still writes shall hear of it
    with suppress(BrokenPipeError):
        os.write(1, recorded.line())
    try:
        if deleted := tidy(keeping, latest=recorded.name):
            log.info("%d captures deleted, as settings say", deleted)
    except OSError as error:
        log.warning("captures cannot be tidied: %s", _words(error))


if __name__ == "__main__":
    main()
