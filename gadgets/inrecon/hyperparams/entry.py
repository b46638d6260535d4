"""One hyperparameter file, read and checked, and what becomes of it when a scan asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path

from inrecon.frame import Preset, Request
from inrecon.hyperparams.match import Match
from inrecon.hyperparams.schema import FileProblems, LiveSection, Value, parse
from inrecon.hyperparams.strict_yaml import MAX_BYTES
from inrecon.methods import Method, build, methods
from inrecon.methods.method import related


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A method ready to fit, registered as `name`: `values` are all its fields, `sources` says of each whence its value
    came: "default" (of the method), "entry", "preset NAME" or "request". `entry` and `sha256` are those of the
    entry that was asked."""

    name: str
    method: Method
    entry: str
    sha256: str
    values: Mapping[str, object]
    sources: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The hyperparameters of one file: `name` is the file's name without its ending, `sha256` the first 16 hex
    digits of the hash of its bytes; `values` and `presets` have been checked against `method`. `live` is what takes
    their place for frames of interventional streams, None if the file does not say."""

    name: str
    file: str
    sha256: str
    match: Match
    method: str
    normalisation: str
    values: Mapping[str, Value]
    presets: Mapping[Preset, Mapping[str, Value]]
    provenance: Mapping[str, Value]
    live: LiveSection | None = None

    def resolve(self, request: Request) -> Resolved:
        """The method for `request`: the method's defaults, over them this entry's values, its preset, and the
        request's overrides. If the request names another method, this entry's values and presets apply if one of
        the two extends the other, as far as that method has the fields.

        For a frame of an interventional stream the method is that of `live`, or the default of such a section, and the
        values of `live` take the place of this entry's values and presets wherever the same rule lets them apply. No
        preset goes on top of them: presets trade time for quality, and a stream itself tells how much time a frame has.

        Raises `UnknownName` for a method and `inrecon.methods.method.InvalidHyperparameter` for an override.
        """
        usual = self.method if request.live is None else (self.live or LiveSection()).method
        name = request.method or usual
        known = {field.name for field in fields(methods[name])}
        layers: dict[str, Mapping[str, object]] = {
            source: {k: v for k, v in layer.items() if k in known} for source, layer in self._given(name, request)
        }
        layers["request"] = request.overrides
        merged = {field: value for layer in layers.values() for field, value in layer.items()}
        told = {field: source for source, layer in layers.items() for field in layer}
        method = build(name, merged)
        names = [field.name for field in fields(method)]
        return Resolved(
            name=name,
            method=method,
            entry=self.name,
            sha256=self.sha256,
            values={field: getattr(method, field) for field in names},
            sources={field: told.get(field, "default") for field in names},
        )

    def _given(self, name: str, request: Request) -> Iterable[tuple[str, Mapping[str, Value]]]:
        """What this entry has for the method `name`, by source, later ones winning."""
        if request.live is not None and self.live is not None and related(name, self.live.method):
            yield "entry", self.live.values
        elif related(name, self.method):
            yield "entry", self.values
            yield f"preset {request.preset}", self.presets.get(request.preset, {})


def read(file: Path) -> Entry:
    """The entry in `file`; raises `InvalidProtocolFile` with everything that is wrong with it."""
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise FileProblems(str(file), (("", f"cannot be read: {error.strerror}"),)) from error
    return entry_of(data, file)


def entry_of(data: bytes, file: Path) -> Entry:
    """The entry that `file` holds if its content is `data`; raises `InvalidProtocolFile`."""
    document = parse(data, file)
    return Entry(
        name=file.stem,
        file=str(file),
        sha256=sha256(data).hexdigest()[:16],
        match=document.match,
        method=document.method,
        normalisation=document.normalisation,
        values=document.values,
        presets=document.presets,
        provenance=document.provenance.model_dump(by_alias=True),
        live=document.live,
    )
