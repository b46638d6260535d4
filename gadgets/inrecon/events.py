"""What the library announces; the process decides who hears it (logs, metrics, texts to the scanner).

``with listening(handler): ...`` hears what is announced in that context; ``observe(event)`` announces.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """Something a user should know of, in one sentence free of patient data. Of many on one `topic` (None: the text)
    the first says enough."""

    text: str
    topic: str | None = None


@dataclass(frozen=True, kw_only=True)
class FallBack(Event):
    """A named policy took another way than the one asked for."""

    room: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class FitProgressed(Event):
    """One more iteration is done."""

    iteration: int
    iterations: int


@dataclass(frozen=True, kw_only=True)
class FitFinished(Event):
    """A fit ended."""

    method: str
    iterations: int
    stopped_by: str
    seconds: float
    validation_loss: float | None


Listener = Callable[[Event], None]
_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("inrecon_listeners", default=())


def observe(event: Event) -> None:
    """Announce `event` to every listener of this context."""
    for listener in _listeners.get():
        listener(event)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` with each event announced inside the ``with`` block."""
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _listeners.reset(token)
