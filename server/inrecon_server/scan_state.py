"""What outlives a scan: the noise of measurements, for later scans whose headers name them.

Measurement and device IDs may hold a patient's: they are kept as digests, and no text or log line shows them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from inrecon.acquire import Scan
from inrecon.errors import InreconError
from inrecon.frame import Noise
from inrecon.replace_file import replace_file
from inrecon_server.notices import Notice
from inrecon_server.sfndam import MOST_BYTES, InvalidNoise, parse_noise, serialise_noise
from inrecon_server.storage_server import StorageFailed, StorageServer, noise_tags

log = logging.getLogger(__name__)

IN_MEMORY = 64
"""How many measurements are kept in memory; those least recently used go."""
_MOST_DEPENDENCIES = 8
_SUFFIX = ".noise"
_FILE_NAME = re.compile(r"[0-9a-f]{64}\.noise")
_DEVICE = "inreconDevice"
_THE_MEASUREMENT = "the noise measurement that was named"


def digest(identifier: str) -> str:
    """What stands for an `identifier` wherever it is kept."""
    return hashlib.sha256(identifier.encode(errors="surrogatepass")).hexdigest()


class NoiseNotFound(InreconError):
    """There is no noise for a scan that names a noise measurement; the text says why, and names nobody."""


class ScanState:
    """Keeps the noise of the latest measurements for `hours`: in memory, in `folder` if there is one, and in `storage`,
    a storage server of Gadgetron's, if there is one. Safe to use from several threads; its methods do I/O."""

    def __init__(
        self, *, folder: Path | None = None, hours: float = 48.0, storage: StorageServer | None = None
    ) -> None:
        self._folder = folder
        self._hours = hours
        self._storage = storage
        self._lock = threading.Lock()
        self._in_memory: OrderedDict[str, tuple[float, bytes]] = OrderedDict()

    def keep(self, noise: Noise, scan: Scan) -> Iterator[Notice]:
        """Keep the `noise` that `scan` measured; gives what its sender should know."""
        if scan.measurement_id is None:
            yield _warning("the noise cannot be kept for later scans: the header has no measurementID")
            return
        try:
            device = {} if scan.device_id is None else {_DEVICE: digest(scan.device_id)}
            blob = serialise_noise(noise, "double", **device)
        except InvalidNoise as error:
            yield _warning(f"the noise is not kept for later scans: {error}")
            return
        name = digest(scan.measurement_id)
        with self._lock:
            self._in_memory[name] = time.time(), blob
            self._in_memory.move_to_end(name)
            while len(self._in_memory) > IN_MEMORY:
                self._in_memory.popitem(last=False)
        kept = f"{len(noise.covariance)} channels, {noise.samples} samples"
        text = f"the noise ({kept}) is kept for scans that name this one, {self._hours:g} h at most"
        yield Notice(level="INFO", text=text)
        if self._folder is not None:
            yield from self._write(self._folder / f"{name}{_SUFFIX}", blob)
        if self._storage is not None:
            try:
                tags = noise_tags(scan.measurement_id, scan=scan)
                self._storage.store(serialise_noise(noise, "single"), tags, hours=self._hours)
            except StorageFailed as error:
                yield _warning(f"the noise is kept by this server alone: {error}")

    def noise_for(self, scan: Scan) -> Noise:
        """The noise of the first measurement that `scan` depends on and that is known; raises `NoiseNotFound`, as it
        does where `scan` depends on none."""
        return self._find(scan.noise_dependencies[:_MOST_DEPENDENCIES], scan)

    def noise_of(self, measurement_id: str) -> Noise:
        """The noise of a measurement; raises `NoiseNotFound`."""
        return self._find([measurement_id], None)

    def _find(self, measurement_ids: Sequence[str], scan: Scan | None) -> Noise:
        problems: list[str] = []
        for measurement_id in measurement_ids:
            try:
                return self._own(measurement_id, device_id=None if scan is None else scan.device_id)
            except NoiseNotFound as error:
                problems.append(str(error))
        if self._storage is not None:
            try:
                for measurement_id in measurement_ids:
                    blob = self._storage.latest(noise_tags(measurement_id, scan=scan))
                    if blob is not None:
                        return parse_noise(blob)[0]
            except StorageFailed as error:
                problems.append(str(error))
            except InvalidNoise as error:
                problems.append(f"what the storage server has of it cannot be used: {error}")
        raise NoiseNotFound("; ".join(dict.fromkeys(problems)))

    def _own(self, measurement_id: str, *, device_id: str | None) -> Noise:
        name = digest(measurement_id)
        found = self._read(name)
        if found is None:
            raise NoiseNotFound(f"{_THE_MEASUREMENT} is not known here")
        kept_at, blob = found
        if self._is_old(kept_at):
            raise NoiseNotFound(f"{_THE_MEASUREMENT} is older than {self._hours:g} h")
        try:
            noise, facts = parse_noise(blob)
        except InvalidNoise as error:
            log.warning("the file %s%s is damaged: %s", name, _SUFFIX, error)
            raise NoiseNotFound(f"what is kept of {_THE_MEASUREMENT} is damaged") from error
        if device_id is not None and facts.get(_DEVICE) not in (None, digest(device_id)):
            raise NoiseNotFound(f"{_THE_MEASUREMENT} was made by another scanner")
        return noise

    def _read(self, name: str) -> tuple[float, bytes] | None:
        """When a measurement was kept, and what."""
        with self._lock:
            if name in self._in_memory:
                self._in_memory.move_to_end(name)
                return self._in_memory[name]
        if self._folder is None:
            return None
        try:
            with (self._folder / f"{name}{_SUFFIX}").open("rb") as file:
                return os.fstat(file.fileno()).st_mtime, file.read(MOST_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise NoiseNotFound(f"what is kept of {_THE_MEASUREMENT} cannot be read: {error.strerror}") from error

    def _write(self, path: Path, blob: bytes) -> Iterator[Notice]:
        try:
            replace_file(path, blob, mode=0o640)
        except OSError as error:
            log.warning("the noise of a measurement: %s", error)
            yield _warning("the noise is kept in memory only: its file cannot be written (the server's log says more)")
            return
        with suppress(OSError):  # another server may be at it, too
            for old in path.parent.iterdir():
                if _FILE_NAME.fullmatch(old.name) and self._is_old(old.stat().st_mtime):
                    old.unlink()

    def _is_old(self, kept_at: float) -> bool:
        return time.time() - kept_at > self._hours * 3600


def _warning(text: str) -> Notice:
    return Notice(level="WARNING", text=text)
