"""A client of Gadgetron's storage server: blobs over HTTP, found by tags (``core/Storage.cpp`` of Gadgetron 4.7).

Not by `urllib.request`, which obeys proxies and redirects: tags hold patient IDs, and go to this address only.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import urlencode, urlsplit

from inrecon.acquire import Scan
from inrecon.errors import InreconError

_PATH = "/v1/blobs/data"
_STRUCTURED_ID = re.compile(r"([^_]*)_([^_]*)_([^_]*)_[^_]*")
_READ_BYTES = 1 << 16


class StorageFailed(InreconError):
    """The storage server cannot do what it is asked to; the text says why, and names nobody."""


def noise_tags(measurement_id: str, *, scan: Scan | None = None) -> dict[str, str]:
    """The tags under which Gadgetron keeps the noise of a measurement and, for `scan`, looks for it.

    Device, subject and session are what the scan's header says or, where it does not, the parts of the scan's own
    measurement ID; without a subject there, the parts of `measurement_id`. Such an ID has the form
    ``device_subject_session_rest``. Raises `StorageFailed` if there is no subject at all: Gadgetron keeps nothing then.
    """
    for tags in (_tags_of(scan), _parts(measurement_id)):
        if tags.get("subject"):
            return {**tags, "name": "noise_covariance", "measurement": measurement_id}
    raise StorageFailed("the storage server files noise by patient, and this header names none")


def _tags_of(scan: Scan | None) -> dict[str, str]:
    if scan is None:
        return {}
    said = {"device": scan.device_id, "subject": scan.subject_id, "session": scan.study_id}
    return {**_parts(scan.measurement_id or ""), **{name: value for name, value in said.items() if value}}


def _parts(measurement_id: str) -> dict[str, str]:
    parts = _STRUCTURED_ID.fullmatch(measurement_id)
    named = zip(("device", "subject", "session"), parts.groups() if parts else (), strict=False)
    return {name: value for name, value in named if value}


class StorageServer:
    """The server at `address`, ``http://host[:port][/path]`` or https. It is given `timeout_s` to answer, and as much
    again to say all of it, which is at most `limit_bytes`. Safe to use from several threads."""

    def __init__(self, address: str, *, limit_bytes: int, timeout_s: float = 2.0) -> None:
        parts = urlsplit(address)
        self._connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._host = parts.hostname or ""
        self._port = parts.port
        self._base = parts.path.rstrip("/")
        self._limit_bytes = limit_bytes
        self._timeout_s = timeout_s

    def store(self, blob: bytes, tags: Mapping[str, str], *, hours: float) -> None:
        """Keep `blob` for so many hours; raises `StorageFailed`."""
        status, _ = self._ask("POST", _PATH, {**tags, "_ttl": f"{hours * 3600:.0f}s"}, body=blob)
        if status != 201:
            raise StorageFailed(f"the storage server answers with status {status}")

    def latest(self, tags: Mapping[str, str]) -> bytes | None:
        """The youngest blob with these tags, None if there is none; raises `StorageFailed`."""
        status, blob = self._ask("GET", f"{_PATH}/latest", tags)
        if status == 404:
            return None
        if status != 200:
            raise StorageFailed(f"the storage server answers with status {status}")
        return blob

    def _ask(self, method: str, path: str, tags: Mapping[str, str], body: bytes | None = None) -> tuple[int, bytes]:
        connection = self._connect(self._host, self._port, timeout=self._timeout_s)
        try:
            connection.request(method, f"{self._base}{path}?{urlencode(tags)}", body)
            response = connection.getresponse()
            return response.status, self._all_of(response)
        except TimeoutError as error:
            raise StorageFailed(f"the storage server did not answer within {self._timeout_s:g} s") from error
        except (OSError, UnicodeError) as error:
            told = getattr(error, "strerror", None) or type(error).__name__
            raise StorageFailed(f"the storage server cannot be reached: {told}") from error
        except HTTPException as error:
            # Its text may repeat what was asked, and so a patient ID.
            raise StorageFailed(f"the storage server gives no answer in HTTP ({type(error).__name__})") from error
        finally:
            connection.close()

    def _all_of(self, response: HTTPResponse) -> bytes:
        body = bytearray()
        deadline = time.monotonic() + self._timeout_s
        while part := response.read1(_READ_BYTES):
            body += part
            if len(body) > self._limit_bytes:
                raise StorageFailed(f"the storage server answers with more than {self._limit_bytes} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError
        return bytes(body)
