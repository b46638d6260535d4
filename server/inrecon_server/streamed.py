"""An MRD stream in, an MRD stream out: what the server does with the same messages, in this process.

Out comes the header as it came, each image as soon as it is made, and CLOSE; no texts, which readers may not know.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path

from inrecon import stream
from inrecon.errors import InreconError, InvalidFrame
from inrecon.frame import RawFrame
from inrecon.hyperparams import HyperparameterFiles
from inrecon.methods import build
from inrecon_server.config import DEFAULT, Wishes
from inrecon_server.files import UnwritableFile
from inrecon_server.frame_queue import NewPrior
from inrecon_server.job import run_job
from inrecon_server.notices import Notice
from inrecon_server.protocol import (
    Acquisition,
    Close,
    Header,
    Message,
    MessageId,
    Parser,
    State,
    Truncated,
    asking_for,
    serialise,
)
from inrecon_server.session import Session, Terms

_READ_BYTES = 1 << 18
_ID_BYTES = 2
_NOT_CONFIGURATIONS = set(MessageId) - {MessageId.CONFIG_FILE, MessageId.CONFIG_TEXT}


@contextmanager
def opened(source: Path | None, sink: Path | None) -> Iterator[tuple[FileIO, FileIO]]:
    """Source and sink, in this order, opened once each and without buffers; None is stdin and stdout.

    Where images go to stdout nothing else does: what is printed meanwhile, by whomever, goes to stderr. Raises OSError,
    and `UnwritableFile` if both are one file.
    """
    with ExitStack() as files:
        reader = files.enter_context(FileIO(0, "r", closefd=False) if source is None else FileIO(source, "r"))
        if sink is None:
            writer = files.enter_context(FileIO(os.dup(1), "w"))
            os.dup2(2, 1)
            files.callback(os.dup2, writer.fileno(), 1)
        else:
            if sink.is_file() and os.path.samestat(sink.stat(), os.fstat(reader.fileno())):
                raise UnwritableFile(f"{sink} is the input, which is not overwritten; choose another name")
            writer = files.enter_context(FileIO(sink, "w"))
        yield reader, writer


def reconstruct_stream(
    source: FileIO,
    sink: FileIO,
    *,
    config: str | None,
    wishes: Wishes,
    hyperparameters: Path | None,
    device: str,
    tell: Callable[[Notice], None],
) -> str | None:
    """Reconstruct what comes from `source`, a frame at a time, and write images to `sink`; gives why some are missing.

    `config` is asked for where the stream itself names no configuration, `wishes` go over either. A stream that breaks
    off or makes no sense after its first readout, and a frame that fails, cost the images concerned; what else there
    is, and CLOSE, are written. Raises `InreconError`, with nothing written, for what no image could be made of.
    """
    HyperparameterFiles.load(hyperparameters)
    run = _Run(
        sink,
        Session(Terms(hyperparameters=hyperparameters, device=stream.choose_device(device)), wishes=wishes),
        tell=tell,
    )
    ended_by = None
    try:
        for message in _messages(source, config or DEFAULT):
            run.take(message)
    except InreconError as error:
        if not (run.begun or isinstance(error, InvalidFrame)):
            raise
        ended_by = str(error)
    run.finish()
    return "; ".join(filter(None, (run.problem(), ended_by))) or None


def _messages(source: FileIO, config: str) -> Iterator[Message]:
    """The messages of the stream, after `config` where it begins with no configuration; raises `ProtocolError`."""
    parser = Parser()
    data = b""
    while len(data) < _ID_BYTES and (more := source.read(_READ_BYTES)):
        data += more
    if not data:
        raise Truncated("the input is empty")
    if int.from_bytes(data[:_ID_BYTES], "little") in _NOT_CONFIGURATIONS:
        yield from parser.feed(serialise(asking_for(config)))
    while data:
        yield from parser.feed(data)
        if parser.state is State.CLOSED:
            return
        data = source.read(_READ_BYTES)
    parser.end()
    raise Truncated("the input ended without CLOSE: frames that were not complete are dropped")


class _Run:
    """One stream: `begun` once something was read of which images can be made."""

    def __init__(self, sink: FileIO, session: Session, *, tell: Callable[[Notice], None]) -> None:
        self.begun = False
        self._sink = sink
        self._session = session
        self._tell = tell
        self._header: Header | None = None
        self._header_written = False

    def take(self, message: Message) -> None:
        """Do what `message` asks for; raises `InreconError` if the stream cannot go on."""
        if isinstance(message, Close) and self._header is None:
            raise Truncated("the input has no header")
        for step in self._session.finish() if isinstance(message, Close) else self._session.receive(message):
            match step:
                case RawFrame():
                    self._begin()
                    self._reconstruct(step)
                case NewPrior():
                    self._session.begin_anew()
                case Notice():
                    self._tell(step)
        if isinstance(message, Header):
            self._header = message
        elif isinstance(message, Acquisition | Close):
            self._begin()

    def finish(self) -> None:
        """End the output, and say what came of it."""
        self._write_header()
        self._write(serialise(Close()))
        for notice in self._session.summary():
            self._tell(notice)

    def problem(self) -> str | None:
        """Why images are missing, if they are."""
        if self._session.failed:
            return f"{self._session.failed} frames failed"
        return None if self._session.images or not self._session.makes_images else "no image"

    def _begin(self) -> None:
        if not self.begun and self._session.makes_images and self._session.request.method is not None:
            build(self._session.request.method, self._session.request.overrides)
        self.begun = True

    def _reconstruct(self, raw: RawFrame) -> None:
        result = run_job(self._session.job(raw, complete_at=time.monotonic()))
        for notice in self._session.take(result):
            self._tell(notice)
        for image in result.images:
            self._write_header()
            self._write(image)

    def _write_header(self) -> None:
        """The header as it came, before anything else."""
        if self._header is not None and not self._header_written:
            self._header_written = True
            self._write(serialise(self._header))

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._sink.write(rest) :]
