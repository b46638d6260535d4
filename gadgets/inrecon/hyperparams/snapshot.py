"""The hyperparameter files of a folder as they were when read, and the look-up among them."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from inrecon.errors import InvalidProtocolFile, NoHyperparameters
from inrecon.events import Warned, observe
from inrecon.frame import Protocol
from inrecon.hyperparams.entry import Entry, read
from inrecon.hyperparams.schema import FileProblems

State = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class HyperparameterFiles:
    """All entries of a folder. Nothing in it refers to the disk any more, and it can be pickled."""

    entries: tuple[Entry, ...]

    @classmethod
    def load(cls, folder: Path | None = None) -> HyperparameterFiles:
        """Read every ``.yaml`` file in and below `folder` (None: the files that come with inrecon).

        Raises `InvalidProtocolFile` with all that is wrong in all files, or `NoHyperparameters` if there is none.
        """
        entries, problems = read_folder(folder or shipped_folder())
        if problems:
            raise InvalidProtocolFile("\n".join(map(str, problems)))
        return cls(entries=entries)

    def look_up(self, protocol: Protocol) -> Entry:
        """The entry whose `match` fits `protocol` most specifically.

        An entry that names the protocol without wildcards comes before all that do not; then the one with more
        constrained fields. Of equals the first by name is taken, and `Warned` announced. Raises
        `NoHyperparameters` if no entry matches.
        """
        ranked = [(rank, entry) for entry in self.entries if (rank := entry.match.rank(protocol)) is not None]
        if not ranked:
            raise NoHyperparameters(f"no hyperparameter file matches {_describe(protocol)}; a file default.yaml would")
        best = max(rank for rank, _ in ranked)
        equals = sorted((entry for rank, entry in ranked if rank == best), key=lambda entry: (entry.name, entry.file))
        if len(equals) > 1:
            names = ", ".join(entry.name for entry in equals)
            observe(Warned(text=f"hyperparameter files {names} match equally well; {equals[0].name} was taken"))
        return equals[0]


def shipped_folder() -> Path:
    """The files that come with inrecon: beside this module in an installed package, else in the source tree."""
    installed = Path(__file__).parent / "files"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "hyperparams"


def read_folder(folder: Path) -> tuple[tuple[Entry, ...], list[FileProblems]]:
    """The entries in and below `folder` by file name, and what is wrong with the files that gave none.

    Hidden files are passed over. Raises `NoHyperparameters` if there is no file at all.
    """
    files = _files(folder)
    if not files:
        raise NoHyperparameters(f"there are no hyperparameter files (*.yaml) in {folder}")
    entries, problems = [], _same_names(files)
    for file in files:
        try:
            entries.append(read(file))
        except FileProblems as error:
            problems.append(error)
    return tuple(entries), problems


def state_of(folder: Path) -> State:
    """What changes when a file in or below `folder` does: an equal state means equal files."""
    found = []
    for file in _files(folder):
        with suppress(OSError):  # a link to nothing: whoever reads it is told so
            told = file.stat()
            found.append((str(file), told.st_ino, told.st_size, told.st_mtime_ns))
    return tuple(found)


def _files(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in {".yaml", ".yml"} and not file.name.startswith(".") and not file.is_dir()
    )


def _same_names(files: list[Path]) -> list[FileProblems]:
    """An entry goes by its file's name in logs and images, so no two files may share one."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_name[file.stem].append(file)
    return [
        FileProblems(str(second), (("", f"has the same name as {first}: rename one of them"),))
        for first, *others in by_name.values()
        for second in others
    ]


def _describe(protocol: Protocol) -> str:
    strength = "unknown field strength" if protocol.field_strength_T is None else f"{protocol.field_strength_T:g} T"
    y, x = protocol.matrix
    return (
        f"this scan ({protocol.sequence or 'unknown sequence'}, {protocol.anatomy or 'unknown anatomy'}, {strength}, "
        f"{protocol.trajectory}, matrix {y} x {x}, acceleration {protocol.acceleration:.1f}, {protocol.coils} coils)"
    )
