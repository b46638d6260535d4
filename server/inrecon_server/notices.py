"""What to tell the sender of a scan, and how often."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from inrecon.events import Event, FallBack, FitFinished, Warned

log = logging.getLogger(__name__)

Level = Literal["INFO", "WARNING", "ERROR"]
MAX_WARNINGS = 50
"""How many different warnings of one scan are told in `PERIOD_S`."""
PERIOD_S = 600.0
_NUMBER = re.compile(r"\d[\d.,e+-]*")


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something to tell the sender of a scan. Of warnings on one `topic` (None: the text itself) the first is told."""

    level: Level
    text: str
    topic: str | None = None


class News:
    """Of the notices of one scan, those worth telling: all but warnings that repeat themselves or are too many.

    Streams last for hours: after `PERIOD_S` by the `clock`, in seconds, as many warnings are told again, also those
    that were told before.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._topics: set[str] = set()
        self._clock = clock
        self._since = clock()
        self._told = self._untold = 0
        self._one_at_a_time = threading.Lock()

    def of(self, notice: Notice) -> list[Notice]:
        """`notice`, if it is to be told; in place of the first warning too many, that there are more.

        May be asked from any thread: what becomes of readouts and of images is told by two.
        """
        with self._one_at_a_time:
            return list(self._of(notice))

    def _of(self, notice: Notice) -> Iterator[Notice]:
        if notice.level != "WARNING":
            yield notice
            return
        topic = notice.text if notice.topic is None else notice.topic
        if (now := self._clock()) >= self._since + PERIOD_S:
            if self._untold:
                yield Notice(level="WARNING", text=f"{self._untold} warnings were not shown")
            self._since, self._told, self._untold = now, 0, 0
            self._topics.clear()
        if topic in self._topics:
            return
        if self._told < MAX_WARNINGS:
            self._told += 1
            self._topics.add(topic)
            yield notice
            return
        if not self._untold:
            yield Notice(level="WARNING", text="further warnings are not shown")
        self._untold += 1


def notice_of(event: Event) -> Notice | None:
    """What to tell of `event`, if anything."""
    match event:
        case Warned(text=text, topic=topic):
            return Notice(level="WARNING", text=text, topic=topic)
        case FallBack(room=room, reason=reason):
            # The planes of a volume, and the frames of a movie, fall back for one reason with different numbers in it.
            topic = _NUMBER.sub("#", reason)
            return Notice(level="WARNING", text=f"fall-back ({room}): {reason}", topic=f"{room}: {topic}")
        case FitFinished():
            log.info(
                "%s: %d iterations in %.2f s, stopped by %s",
                event.method,
                event.iterations,
                event.seconds,
                event.stopped_by,
            )
    return None
