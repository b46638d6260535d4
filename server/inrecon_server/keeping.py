"""Where captured sessions are kept: their names, and which go when there are too many."""

from __future__ import annotations

import html
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import h5py

MARK = "inrecon_capture"
"""Attribute of the HDF5 group of a file that was written here: what has it not is never deleted."""

_UNNAMED = "MRD_input"
_PART = ".part"
_MOST_LETTERS = 64
_CAPTURE = re.compile(r"[A-Za-z0-9_-]+_\d{4}-\d{2}-\d{2}-\d{6}_\d+\.h5")
_PROTOCOL_NAME = re.compile(rb"<(?:[\w.-]+:)?protocolName(?:\s[^<>]*)?>([^<>]{1,4096})</")
_DAY_S = 24 * 3600
_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """A folder of captures, and for how many `days` and up to how many `gib` they stay in it (None: for ever, all)."""

    folder: Path
    days: float | None = None
    gib: float | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """A file in `folder` that is ours alone: `part` while it is being written."""

    folder: Path
    stamp: str

    @classmethod
    def claim(cls, folder: Path, when: time.struct_time) -> Self:
        """The first place of that second that nobody has; raises OSError if nothing can be written in `folder`."""
        second, number = time.strftime("%Y-%m-%d-%H%M%S", when), 0
        while True:
            number += 1
            place = cls(folder=folder, stamp=f"{second}_{number}")
            try:
                os.close(os.open(place.part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))  # patients are in it
            except FileExistsError:
                continue
            # Looked for only now: another process may have finished, and given its file a name, a moment ago.
            if not any(folder.glob(f"*_{place.stamp}.h5")):
                return place
            place.leave()

    @property
    def part(self) -> Path:
        """The file while it is not whole."""
        return self.folder / f"{_UNNAMED}_{self.stamp}.h5{_PART}"

    def publish(self, protocol: str | None) -> str:
        """Give the whole file its name, after the scan `protocol` if there is one; gives that name."""
        whole = self.folder / f"{protocol or _UNNAMED}_{self.stamp}.h5"
        self.part.rename(whole)
        return whole.name

    def leave(self) -> None:
        """Remove the file, of which nothing came."""
        self.part.unlink(missing_ok=True)


def protocol_name(header: bytes) -> str | None:
    """The name of the scan protocol in an ISMRMRD header, fit for a file: at most 64 letters, digits, - and _.

    Also of a header that is damaged elsewhere; None if it has no such name.
    """
    found = _PROTOCOL_NAME.search(header)
    if found is None:
        return None
    try:
        name = found[1].decode()
    except UnicodeDecodeError:
        name = found[1].decode("latin-1")
    return re.sub(r"[^A-Za-z0-9_-]+", "_", html.unescape(name)).strip("_-")[:_MOST_LETTERS] or None


def unfinished(folder: Path) -> int:
    """How many captures in `folder` are not whole: at work now, or left by a process that was killed."""
    names = (path.name for path in folder.iterdir())
    return sum(name.endswith(_PART) and _is_name(name.removesuffix(_PART)) for name in names)


def tidy(keeping: Keeping, *, latest: str | None) -> int:
    """Delete captures that are older than is wanted, then the oldest while there are too many GiB; gives how many.

    Never touches the capture called `latest`, files that are not whole, or files that were not written here.
    """
    captures = sorted(_captures(keeping.folder), key=lambda item: (item[1].st_mtime, item[0].name))
    total = sum(status.st_size for _, status in captures)
    oldest = -float("inf") if keeping.days is None else time.time() - keeping.days * _DAY_S
    most = float("inf") if keeping.gib is None else keeping.gib * _GIB
    if total > most:  # only then do the sizes of files that only look like ours matter
        captures = [(path, status) for path, status in captures if _is_ours(path)]
        total = sum(status.st_size for _, status in captures)
    deleted = 0
    for path, status in captures:
        unwanted = status.st_mtime < oldest or total > most
        if unwanted and path.name != latest and _is_ours(path):
            path.unlink(missing_ok=True)
            total -= status.st_size
            deleted += 1
    return deleted


def _captures(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_name(entry.name) and entry.is_file(follow_symlinks=False):
                yield Path(entry.path), entry.stat(follow_symlinks=False)


def _is_name(name: str) -> bool:
    return _CAPTURE.fullmatch(name) is not None


def _is_ours(path: Path) -> bool:
    try:
        with h5py.File(path, "r", locking=False) as file:
            return MARK in file["dataset"].attrs
    except (OSError, KeyError, RuntimeError):
        return False
