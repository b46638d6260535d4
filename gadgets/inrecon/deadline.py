"""How much time there is: set by whoever waits for an image, asked by fits, which end in time with what they have.

``with time_limit(seconds): ...`` limits what is done in that context; limits inside of others only make them shorter.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")

DEADLINE = "deadline"
"""Why a fit stopped, where it was for want of time."""

_due: ContextVar[float] = ContextVar("inrecon_due", default=math.inf)


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Leave so many seconds from now to what is inside the ``with`` block; None for no limit of its own."""
    due = math.inf if seconds is None else time.monotonic() + seconds
    token = _due.set(min(_due.get(), due))
    try:
        yield
    finally:
        _due.reset(token)


def shared(items: Sequence[Item]) -> Iterator[Item]:
    """Each of `items`, to be worked on with an equal part of the time that is left."""
    for number, item in enumerate(items):
        with time_limit(time_left() / (len(items) - number)):
            yield item


def time_left() -> float:
    """Seconds, below zero once the time is over; infinite where there is no limit."""
    due = _due.get()
    return due if due == math.inf else due - time.monotonic()
