"""Priors of streams, sent once: what the two ends of a process's pipe know both."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

from inrecon.frame import Key
from inrecon_server.job import STREAMS, Progress


class Priors:
    """One end of the pipe between front and process; the other has one, too.

    Both see the same jobs and results in the same order, so that they know, and forget, the same: what one has `sent`
    the other has `received`.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[str, dict[Key, bytes]] = OrderedDict()

    @property
    def streams(self) -> list[str]:
        """Those whose priors are known, the last one at the end."""
        return list(self._known)

    def sent(self, stream: str | None, progress: Progress) -> Progress:
        """`progress` without the priors of `stream` that the other end has; from now on it has all of them."""
        if stream is None:
            return progress
        known = self._of(stream)
        new = {key: prior for key, prior in progress.priors.items() if known.get(key) != prior}
        known.update(new)
        return replace(progress, priors=new)

    def received(self, stream: str | None, progress: Progress) -> Progress:
        """`progress` with all priors of `stream`, as it was before it was sent."""
        if stream is None:
            return progress
        known = self._of(stream)
        known.update(progress.priors)
        return replace(progress, priors=dict(known))

    def _of(self, stream: str) -> dict[Key, bytes]:
        known = self._known.setdefault(stream, {})
        self._known.move_to_end(stream)
        if len(self._known) > STREAMS:
            self._known.popitem(last=False)
        return known
