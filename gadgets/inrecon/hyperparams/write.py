"""A hyperparameter file made of values that were found for a scan, checked as a server would before it is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from math import isfinite
from pathlib import Path
from reprlib import repr as short_repr

import yaml

from inrecon.errors import NoHyperparameters
from inrecon.frame import PRESETS, Protocol
from inrecon.hyperparams.check import overlaps
from inrecon.hyperparams.entry import Entry, entry_of
from inrecon.hyperparams.match import MAX_GLOB, TRAJECTORIES, Match
from inrecon.hyperparams.schema import FileProblems, LiveSection, Value
from inrecon.hyperparams.snapshot import read_folder
from inrecon.replace_file import replace_file

_LINE_LENGTH = 100


def write_entry(
    path: Path,
    *,
    match: Mapping[str, object],
    method: str,
    values: Mapping[str, Value],
    presets: Mapping[str, Mapping[str, Value]],
    provenance: Mapping[str, Value],
    live: Mapping[str, object] | None = None,
    comment: str = "",
    folder: Path | None = None,
) -> Entry:
    """Write the hyperparameter file `path`, whole or not at all, and give the entry that it holds.

    A file of that name is replaced. `live` is the section for interventional streams, a `method`, `values`, or both.
    `folder` is the one that a server would load, `path` in or below it (None: the folder of `path`). Raises
    `FileProblems` with all that is wrong: what `schema.parse` finds, a name that another file has, another file that
    would match a scan equally well; and `OSError` where the file cannot be written. In either case nothing on the disk
    has changed.
    """
    if path.suffix.lower() not in {".yaml", ".yml"} or path.name.startswith("."):
        raise FileProblems(str(path), (("", "would not be read: names of hyperparameter files end in .yaml"),))
    document = {
        "version": 1,
        "match": _inner_lines(_in_order(match, Match.model_fields)),
        "method": method,
        "normalisation": "kspace_max",
        "values": dict(values),
        "presets": _inner_lines(_in_order(presets, PRESETS)),
        "live": _inner_lines(_in_order(live or {}, LiveSection.model_fields)),
        "provenance": _in_order(provenance, ("from", "source")),
    }
    data = _text({name: part for name, part in document.items() if part != {}}, comment=comment, path=path).encode()
    entry = entry_of(data, path)
    problems = tuple(_conflicts(entry, folder or path.parent))
    if problems:
        raise FileProblems(str(path), problems)
    replace_file(path, data)
    return entry


def match_for(protocol: Protocol, *, beside: Iterable[Entry] = ()) -> dict[str, object]:
    """A `match` for scans like that of `protocol`; `beside` are the other entries of the folder.

    Numbers may differ as far as values carry over: field strength and matrix by 10 %, coils by 30 %, acceleration from
    0.75 to 1.35 of the scan's. What the header does not say is left out. The vendor is left out, too, for values hang
    on contrast, noise and sampling, not on who built the scanner, and the name of the protocol, which is a site's own
    and easily edited, unless neither sequence nor anatomy tells what the scan is. Both are added in this order if
    the scan would go to an entry of `beside` without them, or if one of these would match equally well.
    """
    strength, acceleration, (y, x) = protocol.field_strength_T, protocol.acceleration, protocol.matrix
    found: dict[str, object] = {
        "protocol": None if protocol.sequence or protocol.anatomy else _glob(protocol.name),
        "sequence": _glob(protocol.sequence),
        "anatomy": _glob(protocol.anatomy),
        "field_strength_T": strength and [_rounded(0.9 * strength), _rounded(1.1 * strength)],
        "trajectory": protocol.trajectory if protocol.trajectory.casefold() in TRAJECTORIES else None,
        "matrix": {"y": _about(y, percent=10), "x": _about(x, percent=10)},
        "acceleration": [max(1.0, _rounded(0.75 * acceleration)), _rounded(1.35 * acceleration)],
        "coils": _about(protocol.coils, percent=30),
    }
    others = [entry.match for entry in beside]
    for name, text in (("vendor", protocol.vendor), ("protocol", protocol.name)):
        if not _comes_first(found, protocol, others):
            found[name] = _glob(text)
    return _in_order(_said(found), Match.model_fields)


def _comes_first(found: Mapping[str, object], protocol: Protocol, others: Iterable[Match]) -> bool:
    match = Match.model_validate(_said(found))
    rank = match.rank(protocol) or (False, 0)
    return all((other.rank(protocol) or (False, 0)) < rank and not other.ties(match) for other in others)


def _said(found: Mapping[str, object]) -> dict[str, object]:
    return {name: wanted for name, wanted in found.items() if wanted is not None}


def _glob(text: str | None) -> str | None:
    if not text:
        return None
    return text if len(text) <= MAX_GLOB else text[: MAX_GLOB - 1] + "*"


def _about(number: int, *, percent: int) -> list[int]:
    spread = number * percent // 100
    return [number - spread, number + spread]


def _rounded(number: float) -> float:
    """To three digits, which moves it by half a percent at most."""
    return float(f"{number:.3g}")


def _conflicts(entry: Entry, folder: Path) -> Iterable[tuple[str, str]]:
    """What keeps `entry` from standing in `folder` beside the other files there."""
    try:
        entries, broken = read_folder(folder)
    except NoHyperparameters:
        return
    own = _place(entry.file)
    names = {file: Path(file).stem for file in (*(one.file for one in entries), *(one.file for one in broken))}
    for file, name in names.items():
        if name == entry.name and _place(file) != own:
            yield "", f"has the same name as {file}: choose another one"
    for other in entries:
        if _place(other.file) != own:
            yield from ((finding.field, finding.text) for finding in overlaps((entry, other)))


def _place(file: str) -> Path:
    """Which file of which folder that is, however the way there is written."""
    return Path(file).parent.resolve() / Path(file).name


def _in_order(given: Mapping[str, object], order: Iterable[str]) -> dict[str, object]:
    """Those named in `order` first, then the others as they come."""
    return {name: given[name] for name in (*(n for n in order if n in given), *given)}


def _text(document: Mapping[str, object], *, comment: str, path: Path) -> str:
    """The file's text, its first line the comment, laid out like the files that come with inrecon."""
    try:
        body: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_LINE_LENGTH)
    except yaml.representer.RepresenterError as error:
        text = f"cannot hold {short_repr(error.args[-1])}: values are numbers, texts and true/false"
        raise FileProblems(str(path), (("", text),)) from error
    words = "".join(letter if letter.isprintable() else " " for letter in comment).split()
    return (f"# {' '.join(words)}\n" if words else "") + body


class _Line(dict[str, object]):
    """A mapping that is written in a line, if it is a short one."""


def _inner_lines(fields: Mapping[str, object]) -> dict[str, object]:
    """`fields` with the mappings in it, the matrix or presets, in a line each."""
    return {name: _Line(inner) if isinstance(inner, Mapping) else inner for name, inner in fields.items()}


class _Dumper(yaml.SafeDumper):
    """Plain YAML as `strict_yaml` reads it: without aliases, numbers in their shortest form."""

    def ignore_aliases(self, _: object) -> bool:
        return True

    def represent_number(self, number: float) -> yaml.Node:
        return self.represent_scalar("tag:yaml.org,2002:float", _number(float(number)))

    def represent_text(self, text: str) -> yaml.Node:
        # What is folded at single spaces, and line breaks that are escaped, come back as they were.
        folds = len(text) > _LINE_LENGTH and text == " ".join(text.split())
        style = None if text.isprintable() and not folds else ">" if text.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    def represent_line(self, mapping: _Line) -> yaml.Node:
        return self.represent_mapping("tag:yaml.org,2002:map", mapping, flow_style=True)

    def represent_range(self, items: list[object] | tuple[object, ...]) -> yaml.Node:
        return self.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


_Dumper.add_representer(float, _Dumper.represent_number)
_Dumper.add_multi_representer(float, _Dumper.represent_number)  # numpy's are floats of a class of their own
_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_representer(_Line, _Dumper.represent_line)
_Dumper.add_representer(list, _Dumper.represent_range)
_Dumper.add_representer(tuple, _Dumper.represent_range)


def _number(number: float) -> str:
    """The shortest text that YAML 1.1 reads as exactly this float: it takes no exponent without point and sign."""
    if not isfinite(number):
        return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}[repr(number)]
    plain = repr(number)
    mantissa, exponent = f"{Decimal(plain).normalize():e}".split("e")
    scientific = f"{mantissa if '.' in mantissa else mantissa + '.0'}e{exponent}"
    return scientific if "e" in plain or len(scientific) <= len(plain) else plain
