"""Images of earlier scans, with which frames of interventional streams are compared whose clients name those scans.

Measurement IDs may hold a patient's: they are kept as digests, and no text or log line shows them.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from inrecon.errors import InreconError
from inrecon.frame import Key
from inrecon_server.scan_state import digest

IN_MEMORY = 16
"""Of how many scans priors are kept; those least recently used go."""
MOST_BYTES = 256 << 20
"""Of the priors of all scans together."""


class PriorNotFound(InreconError):
    """There is no prior of the scan that a stream names; the text says so, and names nobody."""


@dataclass(frozen=True, kw_only=True)
class _Kept:
    at: float
    priors: Mapping[Key, bytes]

    @property
    def size(self) -> int:
        return sum(map(len, self.priors.values()))


class KeptPriors:
    """The priors of the latest scans, in memory, for `hours`: by slice, in a form that workers alone read.

    Of all scans together there are at most `limit_bytes`; `clock` tells seconds. Safe to use from several threads.
    """

    def __init__(
        self, *, hours: float = 48.0, limit_bytes: int = MOST_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._hours = hours
        self._limit_bytes = limit_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def keep(self, measurement_id: str, priors: Mapping[Key, bytes]) -> None:
        """Keep the `priors` of a scan in place of what there was of it."""
        name = digest(measurement_id)
        with self._lock:
            self._forget_expired()
            self._kept.pop(name, None)
            new = _Kept(at=self._clock(), priors=priors)
            if new.size > self._limit_bytes:
                return
            self._kept[name] = new
            while len(self._kept) > IN_MEMORY or sum(kept.size for kept in self._kept.values()) > self._limit_bytes:
                self._kept.popitem(last=False)

    def of(self, measurement_id: str) -> Mapping[Key, bytes]:
        """The priors of a scan; raises `PriorNotFound`."""
        name = digest(measurement_id)
        with self._lock:
            self._forget_expired()
            found = self._kept.get(name)
            if found is None or not found.priors:
                raise PriorNotFound(
                    "the scan that was named as prior is not known here, or was more than "
                    f"{self._hours:g} h ago: the stream makes its own"
                )
            self._kept.move_to_end(name)
        return found.priors

    def _forget_expired(self) -> None:
        oldest = self._clock() - self._hours * 3600
        for name in [name for name, kept in self._kept.items() if kept.at < oldest]:
            del self._kept[name]
