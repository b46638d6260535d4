"""The door for Gadgetron: ``<execute name="inrecon.gadget" target="inr_recon" type="python"/>``.

For each scan Gadgetron starts ``python -m gadgetron <port> inrecon.gadget inr_recon``, which calls `inr_recon` with the
connection. From there on the way is that of `inrecon.stream`, in this process.
"""

from __future__ import annotations

import ctypes
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ismrmrd
from gadgetron.external import Connection, constants, readers
from gadgetron.types import acquisition_bucket, recon_data

from inrecon import __version__
from inrecon.acquire import (
    LEFT_TO_GADGETRON,
    Accumulator,
    LiveAccumulator,
    as_delivered,
    bucket_readouts,
    buffer_readouts,
    collector,
    parse_header,
)
from inrecon.attempts import FRAME_ERRORS, reconstruct
from inrecon.errors import InreconError, InvalidFrame
from inrecon.events import Event, FallBack, Warned, listening
from inrecon.frame import NO_PRIOR_HERE, Key, RawFrame, Request, SeriesBySpace
from inrecon.hyperparams import HyperparameterFiles
from inrecon.live import Stream
from inrecon.methods import build
from inrecon.properties import changed, parse_xml, properties_of
from inrecon.stream import choose_device

log = logging.getLogger(__name__)

HYPERPARAMETERS, DEVICE = "INRECON_HYPERPARAMETERS", "INRECON_DEVICE"
"""Environment variables: the folder of hyperparameter files, else those that come with inrecon; ``auto`` (else),
``cpu`` or ``cuda``."""

_READ_BYTES = 1 << 18
_LINGER_S = 2.0
_FAILURES_TOLD = 5


def inr_recon(connection: Connection) -> None:
    """Reconstruct the scan that comes on `connection`; each image goes back as soon as its frame is complete.

    The properties of the external node's ``<configuration>`` are those that the server takes: ``method``, ``preset``,
    ``dtype``, and fields of the method. Acquisitions, buckets of them (`AcquisitionBucket`) and buffers (`ReconData`)
    are taken, waveforms passed over. Hyperparameter files are read once, and the environment names their folder and the
    device (`HYPERPARAMETERS`, `DEVICE`).

    Raises nothing that the scan could be the cause of. What is wrong goes to Gadgetron as its message ERROR, upon which
    it sends nothing more and ends the scan: at once where no frame can overcome it; else, with the counters of the
    frames that failed, after the images of the others.
    """
    wire = connection.socket = _Wire(connection.socket.socket)
    try:
        with listening(_hear):
            problem = _problem(connection)
        if problem is not None:
            log.error(problem)
            wire.refuse(problem)
    except _Vanished as gone:
        log.warning("Gadgetron is gone: %s", gone)


def _problem(connection: Connection) -> str | None:
    """Serve the scan on `connection` as far as possible; gives what is wrong with it, or None."""
    failures: list[str] = []
    try:
        scan = _Scan(connection, failures=failures)
        for item in _items(connection.socket):
            scan.take(item)
        scan.finish()
    except InreconError as error:
        failures.insert(0, str(error))
    except _Vanished:
        raise
    except Exception as error:  # the boundary: a process that just ends is to Gadgetron one that is done
        log.exception("internal error")
        failures.insert(0, f"internal error: {type(error).__name__}; the log says more")
    return _told(failures)


class _Vanished(ConnectionError):
    """The connection ended without CLOSE."""


class _Wire:
    """Gadgetron's socket in place of the wrapper that the package `gadgetron` has, which reads on for ever when the
    peer is gone; `read`, `write` and `close` are all that the package wants of it."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._refused = False

    def read(self, count: int) -> bytearray:
        """Exactly `count` bytes; raises `_Vanished` if the stream ends before."""
        data = bytearray()
        while len(data) < count:
            try:
                part = self._socket.recv(min(count - len(data), _READ_BYTES))
            except OSError as error:
                raise _Vanished(str(error)) from error
            if not part:
                raise _Vanished("the stream ended without CLOSE")
            data += part
        return data

    def write(self, data: Any) -> None:
        """Send `data`; raises `_Vanished` if nobody takes it."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise _Vanished(str(error)) from error

    def refuse(self, text: str) -> None:
        """Send Gadgetron's message ERROR."""
        self._refused = True
        body = text.encode(errors="replace")
        kind = constants.GadgetMessageIdentifier.pack(constants.GADGET_MESSAGE_ERROR)
        self.write(kind + constants.uint64.pack(len(body)) + body)

    def close(self) -> None:
        """Send CLOSE and hang up; after an error not before Gadgetron has hung up or fallen silent."""
        with suppress(OSError):
            self._socket.sendall(constants.GadgetMessageIdentifier.pack(constants.GADGET_MESSAGE_CLOSE))
            self._socket.settimeout(_LINGER_S)
            # Hanging up on unread input would reset the connection, and the error could get lost.
            while self._refused and self._socket.recv(_READ_BYTES):
                pass
        self._socket.close()


def _items(wire: _Wire) -> Iterator[Any]:
    """What Gadgetron sends, up to its CLOSE; raises `InreconError` for a message of another kind."""
    # Not the package's own iteration, which ends at an unknown message as it does at CLOSE.
    while (kind := readers.read(wire, constants.GadgetMessageIdentifier)) != constants.GADGET_MESSAGE_CLOSE:
        if kind not in _READERS:
            known = ", ".join(map(str, sorted(_READERS)))
            raise InreconError(
                f"a message of kind {kind}: inrecon takes readouts, alone or sorted, and waveforms ({known})"
            )
        yield _READERS[kind](wire)


def _read_bucket(wire: _Wire) -> acquisition_bucket.AcquisitionBucket:
    """As the package reads it but for the waveforms, on which that fails; they are left out."""
    head = wire.read(ctypes.sizeof(acquisition_bucket.bucket_meta))
    sizes = acquisition_bucket.bucket_meta.from_buffer_copy(head)
    data = acquisition_bucket.read_acquisitions(wire, sizes.data)
    data_stats = acquisition_bucket.read_bucketstats(wire)
    reference = acquisition_bucket.read_acquisitions(wire, sizes.reference)
    reference_stats = acquisition_bucket.read_bucketstats(wire)
    wire.read(sizes.waveforms.header_bytes + sizes.waveforms.data_bytes)
    return acquisition_bucket.AcquisitionBucket(data, data_stats, reference, reference_stats, [])


def _read_buffers(wire: _Wire) -> recon_data.ReconData:
    """As the package reads them, without what numpy has to say of arrays of headers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A builtin ctypes object", RuntimeWarning)
        return recon_data.read_recon_data(wire)


_READERS = {
    constants.GADGET_MESSAGE_ISMRMRD_ACQUISITION: readers.read_acquisition,
    constants.GADGET_MESSAGE_ISMRMRD_WAVEFORM: readers.read_waveform,
    constants.GADGET_MESSAGE_RECON_DATA: _read_buffers,
    constants.GADGET_MESSAGE_BUCKET: _read_bucket,
}


class _Scan:
    """One scan, frame by frame; adds to `failures` which frames have no image, and why.

    Raises `InreconError`, as do `take` and `finish`, for what no frame could overcome.
    """

    def __init__(self, connection: Connection, *, failures: list[str]) -> None:
        self._send = connection.send
        self._request = _request(connection.raw_bytes.config)
        self._scan = parse_header(connection.raw_bytes.header)
        folder = os.environ.get(HYPERPARAMETERS)
        self._hyperparameters = HyperparameterFiles.load(Path(folder) if folder else None)
        self._device = choose_device(os.environ.get(DEVICE, "auto"))
        self._accumulator: Accumulator | LiveAccumulator | None = None
        self._series: SeriesBySpace = {}
        self._images = 0
        self._failures = failures
        method = self._request.method or "by protocol"
        self._stream = None if self._request.live is None else Stream(self._device)
        if self._request.live is not None and self._request.live.prior is not None:
            log.warning(NO_PRIOR_HERE)
        log.info("inrecon %s on %s: method %s, preset %s", __version__, self._device, method, self._request.preset)

    def take(self, item: Any) -> None:
        """Take what Gadgetron has sent, and send the images of the frames that it completes."""
        match item:
            case ismrmrd.Acquisition():
                self._add([item], sorted_before=False)
            case acquisition_bucket.AcquisitionBucket():
                self._add(bucket_readouts(item), sorted_before=True)
            case recon_data.ReconData():
                self._add(buffer_readouts(item), sorted_before=True)

    def finish(self) -> None:
        """End of the scan: send the images of the frames that nothing else has ended."""
        if self._accumulator is not None:
            self._reconstruct(self._accumulator.finish())
            log.info("%d images; %s", self._images, self._accumulator.summary())

    def _add(self, readouts: Sequence[ismrmrd.Acquisition], *, sorted_before: bool) -> None:
        if not readouts:
            return
        if self._accumulator is None:
            scan = as_delivered(self._scan, readouts) if sorted_before else self._scan
            self._accumulator = collector(scan, live=self._request.live, kept_noise=LEFT_TO_GADGETRON)
        for readout in readouts:
            try:
                frames = self._accumulator.add(readout)
            except InvalidFrame as error:
                raise InvalidFrame(f"{_place(readout.idx)}: {error}") from error
            self._reconstruct(frames)

    def _reconstruct(self, frames: Iterable[RawFrame]) -> None:
        for raw in frames:
            try:
                result = reconstruct(
                    raw,
                    request=self._request,
                    hyperparameters=self._hyperparameters,
                    device=self._device,
                    series=self._series,
                    live=self._stream,
                )
            except FRAME_ERRORS as error:
                self._failures.append(f"{_place(raw.key)}: {error}")
                log.error(self._failures[-1])
                continue
            self._series = result.series
            for image in result.images:
                self._send(image)
            self._images += len(result.images)


def _request(configuration: bytes) -> Request:
    """What the external node's ``<configuration>`` asks for; raises `InreconError` kinds for what does not exist."""
    properties = properties_of(parse_xml(configuration.decode(errors="replace").strip("\0")))
    # It tells the server who sends; one configuration may go through either door.
    properties.pop("peer", None)
    request = changed(Request(), properties)
    if request.method is not None:
        build(request.method, request.overrides)
    return request


def _place(counters: Key | ismrmrd.EncodingCounters) -> str:
    """Which frame ISMRMRD's counters tell of."""
    names = ("slice", "contrast", "phase", "repetition", "set")
    return ", ".join(f"{name} {getattr(counters, name)}" for name in names)


def _told(failures: Sequence[str]) -> str | None:
    """The first few of `failures` in one text, or None if there are none."""
    more = len(failures) - _FAILURES_TOLD
    return "; ".join([*failures[:_FAILURES_TOLD], *([f"and {more} more frames"] if more > 0 else [])]) or None


def _hear(event: Event) -> None:
    """Keep in Gadgetron's log what a client of the server would be told: a module may send no texts."""
    match event:
        case Warned(text=text):
            log.warning(text)
        case FallBack(room=room, reason=reason):
            log.warning("fall-back (%s): %s", room, reason)
