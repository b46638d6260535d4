"""Images of earlier scans, with which frames of interventional streams are compared whose clients name those scans.

Measurement IDs may hold a patient's: they are kept as digests, and no text or log line shows them.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping

from inrecon.errors import InreconError
from inrecon.frame import Key
from inrecon_server.scan_state import digest

IN_MEMORY = 16
"""Of how many scans priors are kept; those least recently used go."""


class PriorNotFound(InreconError):
    """There is no prior of the scan that a stream names; the text says so, and names nobody."""


class KeptPriors:
    """The priors of the latest scans, in memory, for `hours`: by slice, in a form that workers alone read.

    Safe to use from several threads.
    """

    def __init__(self, *, hours: float = 48.0) -> None:
        self._hours = hours
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[float, Mapping[Key, bytes]]] = OrderedDict()

    def keep(self, measurement_id: str, priors: Mapping[Key, bytes]) -> None:
        """Keep the `priors` of a scan in place of what there was of it."""
        with self._lock:
            self._kept[digest(measurement_id)] = time.monotonic(), priors
            self._kept.move_to_end(digest(measurement_id))
            while len(self._kept) > IN_MEMORY:
                self._kept.popitem(last=False)

    def of(self, measurement_id: str) -> Mapping[Key, bytes]:
        """The priors of a scan; raises `PriorNotFound`."""
        with self._lock:
            kept_at, priors = self._kept.get(digest(measurement_id), (0.0, {}))
        if not priors:
            raise PriorNotFound("the scan that was named as prior is not known here: the stream makes its own")
        if time.monotonic() - kept_at > self._hours * 3600:
            raise PriorNotFound(f"the scan that was named as prior is older than {self._hours:g} h")
        return priors
