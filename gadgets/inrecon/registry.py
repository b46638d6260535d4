"""Names to things, once: methods, encoders, and whatever else is chosen by name in a file or on the wire."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from inrecon.errors import UnknownName

T = TypeVar("T")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The one of `names` that is nearest to a wrong one, as a question with a space after it; nothing if none is."""
    near = get_close_matches(name, list(names), n=1)
    return f"did you mean {near[0]!r}? " if near else ""


class Registry(Generic[T]):
    """A table of named things of one `kind`, open to other packages through an entry-point group.

    ``@registry.register("name")`` adds; ``registry["name"]`` finds, or raises `UnknownName` with the
    names there are.
    """

    def __init__(self, kind: str, *, group: str) -> None:
        self._kind = kind
        self._group = group
        self._entries: dict[str, T] = {}
        self._plugins_loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorate a thing to add it under `name`; raises ValueError if the name is taken."""

        def add(thing: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self._kind} {name!r} is registered twice")
            self._entries[name] = thing
            return thing

        return add

    def __getitem__(self, name: str) -> T:
        names = self.names()
        if name not in names:
            raise UnknownName(f"unknown {self._kind} {name!r}: {did_you_mean(name, names)}known are {', '.join(names)}")
        return self._entries[name]

    def names(self) -> list[str]:
        """All names, sorted, those of other packages included."""
        if not self._plugins_loaded:
            self._plugins_loaded = True
            for point in entry_points(group=self._group):
                self._entries.setdefault(point.name, point.load())
        return sorted(self._entries)
