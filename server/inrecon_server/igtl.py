"""Images of live streams for 3D Slicer and others that connect by OpenIGTLink (version 1 messages of type IMAGE).

pyigtl packs the messages. Its server is not used: it takes the process's signal handlers, serves one client at a time,
keeps a hundred messages for one that does not read, and listens on the loopback or on an interface of its own choice.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

import ismrmrd
import numpy as np
import pyigtl
from numpy.typing import NDArray

from inrecon.errors import InreconError
from inrecon.frame import Request
from inrecon.image import SERIES_STEP
from inrecon_server.door import Network, is_allowed
from inrecon_server.metrics import Metrics
from inrecon_server.protocol import Image, Parser

log = logging.getLogger(__name__)

_NAME = "inrecon"
_NAME_CHARACTERS = 20
_VIEWERS = 8
_WAITING_BYTES = 64 << 20
_STALLED_S = 30.0
_READ_BYTES = 1 << 16
_KIND_BYTES = 2  # before the header of a message on the wire
# Small, so that frames wait here, where a newer one takes their place, and not in the kernel.
_SEND_BUFFER_BYTES = 1 << 18
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def ijk_to_ras(head: ismrmrd.ImageHeader) -> NDArray[np.float64]:
    """The matrix ``(4, 4)`` from pixel indices ``(x, y, z, 1)`` of the image with `head` to RAS millimetres.

    ISMRMRD's `position` and directions are LPS, as DICOM's. The pixel ``n // 2`` lies at `position`, where a centred
    Fourier transform puts it and where Gadgetron's DICOM files have it: of an even matrix the middle of the image is
    half a pixel beside it. Raises ValueError where directions are not of length 1, or a field of view is not positive.
    """
    directions = np.array([head.read_dir, head.phase_dir, head.slice_dir], float).T
    if not np.allclose(np.linalg.norm(directions, axis=0), 1, atol=1e-2):
        raise ValueError("the image's header has no directions")
    size = np.array(head.matrix_size, float)
    spacing = np.array(head.field_of_view, float) / size
    if not (np.isfinite(spacing).all() and spacing.min() > 0 and np.isfinite(head.position[:]).all()):
        raise ValueError("the image's header has no field of view, or no position")
    to_lps = np.eye(4)
    to_lps[:3, :3] = directions * spacing
    to_lps[:3, 3] = np.array(head.position, float) - to_lps[:3, :3] @ (size // 2)
    return _LPS_TO_RAS @ to_lps


def device_name(head: ismrmrd.ImageHeader, series_name: str | None) -> str:
    """What viewers call the images that follow this one: `series_name` or "inrecon", and from the second on the number
    of slice, contrast, set and encoding space, as in ``inrecon_s2``; 20 ASCII characters at most."""
    space = (head.image_series_index - 1) % SERIES_STEP
    counters = {"s": head.slice, "c": head.contrast, "t": head.set, "e": space}
    place = "".join(f"_{letter}{number + 1}" for letter, number in counters.items() if number)
    name = (series_name or _NAME).encode("ascii", "replace").decode()
    return (name[: max(0, _NAME_CHARACTERS - len(place))] + place)[:_NAME_CHARACTERS]


def image_message(image: Image, *, name: str, timestamp: float) -> bytes:
    """`image` as a message: its magnitude, uint16 or float32, of the first channel; `timestamp` in s since 1970.

    Nothing else of the image is in it, no attribute in particular. Raises ValueError as `ijk_to_ras` does.
    """
    pixels = image.data[0]
    magnitude = pixels if pixels.dtype == np.uint16 else np.abs(pixels).astype(np.float32)
    message = pyigtl.ImageMessage(
        magnitude,
        ijk_to_world_matrix=ijk_to_ras(image.getHead()),
        world_coordinate_system="ras",
        timestamp=timestamp,
        device_name=name,
    )
    packed: bytes = message.pack()
    return packed


@dataclass(frozen=True)
class _Shown:
    """An image as message for the wire, and when it was shown."""

    data: bytes
    timestamp: float


@dataclass(eq=False)
class _Viewer:
    """A client: the latest images by device, the oldest first, that are `waiting`, what is left of the message that is
    on its way, and when some of that was last taken, or it was begun."""

    socket: socket.socket
    waiting: dict[str, _Shown] = field(default_factory=dict)
    sending: memoryview = field(default_factory=lambda: memoryview(b""))
    progressed: float = 0.0

    def offer(self, name: str, shown: _Shown) -> int:
        """Let `shown` wait; gives how many others it has taken the place of."""
        skipped = int(self.waiting.pop(name, None) is not None)
        self.waiting[name] = shown
        while len(self.waiting) > 1 and sum(len(other.data) for other in self.waiting.values()) > _WAITING_BYTES:
            del self.waiting[next(iter(self.waiting))]
            skipped += 1
        return skipped


class Viewers:
    """Listens for viewers while its ``with`` block runs, and sends them what is shown, all in a thread of its own.

    `host` and `port` (0: any free one) are where; clients must come from `allow`, if there are any networks in it. Of
    each device a viewer gets the latest image whenever it has taken the one before; those in between are left out and
    counted. One that takes nothing for 30 s is let go. Entering raises `InreconError` if the port is taken.
    """

    def __init__(self, *, host: str, port: int, allow: Sequence[Network] = (), metrics: Metrics) -> None:
        self._host, self._port, self._allow = host, port, allow
        self._metrics = metrics
        self._lock = threading.Lock()  # of the viewers and of what waits for them
        self._viewers: set[_Viewer] = set()
        self._failed = False
        self._stopping = False

    def __enter__(self) -> Self:
        try:
            family = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)[0][0]
            self._listening = socket.create_server((self._host, self._port), family=family)
        except OSError as error:
            where = f"{self._host}:{self._port} (igtl_host, igtl_port)"
            raise InreconError(f"viewers cannot be listened to at {where}: {error.strerror}") from error
        self._called, self._caller = socket.socketpair()
        for one in (self._listening, self._called, self._caller):
            one.setblocking(False)
        log.info("images of live streams by OpenIGTLink at %s:%d", *self._listening.getsockname()[:2])
        self._thread = threading.Thread(target=self._run, name="igtl", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._call()
        self._thread.join()

    def show(self, images: Sequence[bytes], request: Request) -> None:
        """Show the first of `images`, those of one frame as messages for the wire, if they are of a live stream.

        The others are there to compare with. Returns at once, whatever viewers do.
        """
        if request.live is None or not images or not self._viewers:
            return
        head = ismrmrd.ImageHeader.from_buffer_copy(images[0], _KIND_BYTES)
        name, shown = device_name(head, request.series_name), _Shown(images[0], time.time())
        with self._lock:
            skipped = sum(viewer.offer(name, shown) for viewer in self._viewers)
        self._metrics.live_skipped.inc(skipped)
        self._call()

    def _call(self) -> None:
        """Let the thread look at what there is to do."""
        with suppress(BlockingIOError):  # it has been called already
            self._caller.send(b"\0")

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector, self._listening, self._called, self._caller:
            selector.register(self._listening, selectors.EVENT_READ)
            selector.register(self._called, selectors.EVENT_READ)
            while not self._stopping:
                for key, events in selector.select(timeout=1.0):
                    if key.fileobj is self._listening:
                        self._accept(selector)
                    elif key.fileobj is self._called:
                        with suppress(BlockingIOError):
                            self._called.recv(_READ_BYTES)
                    elif events & selectors.EVENT_READ:
                        self._hear(selector, key.data)
                for viewer in tuple(self._viewers):
                    self._serve(selector, viewer)
            for viewer in tuple(self._viewers):
                self._let_go(selector, viewer, "the server stops")

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            accepted, address = self._listening.accept()
        except (BlockingIOError, ConnectionError):  # it has gone already
            return
        except OSError as error:  # there are no descriptors left, and asking again at once would take a core
            log.warning("a viewer could not be let in: %s", error)
            time.sleep(1.0)
            return
        reason = "" if is_allowed(address[0], self._allow) else "its address is not allowed"
        if not reason and len(self._viewers) >= _VIEWERS:
            reason = f"there are {_VIEWERS} already"
        if reason:
            log.warning("a viewer from %s is not let in: %s", address[0], reason)
            accepted.close()
            return
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        viewer = _Viewer(accepted)
        selector.register(accepted, selectors.EVENT_READ, viewer)
        with self._lock:
            self._viewers.add(viewer)
        self._metrics.viewers.inc()
        log.info("a viewer from %s is there", address[0])

    def _let_go(self, selector: selectors.BaseSelector, viewer: _Viewer, reason: str) -> None:
        selector.unregister(viewer.socket)
        viewer.socket.close()
        with self._lock:
            self._viewers.discard(viewer)
        self._metrics.viewers.dec()
        log.info("a viewer is let go: %s", reason)

    def _hear(self, selector: selectors.BaseSelector, viewer: _Viewer) -> None:
        """Take what `viewer` says, none of which has a meaning here, to notice when it has gone."""
        try:
            heard = viewer.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._let_go(selector, viewer, str(error))
            return
        if not heard:
            self._let_go(selector, viewer, "it has hung up")

    def _serve(self, selector: selectors.BaseSelector, viewer: _Viewer) -> None:
        """Send `viewer` as much as it takes now."""
        now = time.monotonic()
        try:
            while viewer.sending or self._begin(viewer, now):
                viewer.sending = viewer.sending[viewer.socket.send(viewer.sending) :]
                viewer.progressed = now
                if not viewer.sending:
                    self._metrics.live_sent.inc()
        except BlockingIOError:
            if now > viewer.progressed + _STALLED_S:
                self._let_go(selector, viewer, f"it has taken nothing for {_STALLED_S:g} s")
                return
        except OSError as error:
            self._let_go(selector, viewer, str(error))
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if viewer.sending else 0)
        selector.modify(viewer.socket, wanted, viewer)

    def _begin(self, viewer: _Viewer, now: float) -> bool:
        """Make a message of what has waited longest for `viewer`; False if there is nothing."""
        while True:
            with self._lock:
                if not viewer.waiting:
                    return False
                name = next(iter(viewer.waiting))
                shown = viewer.waiting.pop(name)
            try:
                (image,) = Parser(role="client").feed(shown.data)
                if not isinstance(image, Image):
                    raise TypeError(f"{type(image).__name__} instead of an image")
                message = image_message(image, name=name, timestamp=shown.timestamp)
            except Exception as error:  # the boundary: whatever is wrong with an image must not end the thread
                self._metrics.live_failed.inc()
                if not self._failed:
                    unexpected = None if isinstance(error, ValueError) else error
                    text = "an image cannot be shown to viewers: %s; others like it are only counted"
                    log.error(text, error, exc_info=unexpected)
                self._failed = True
                continue
            viewer.sending, viewer.progressed = memoryview(message), now
            return True
