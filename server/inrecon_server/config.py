"""Names and texts of configurations -> what is asked for.

A name stands for one of the files in ``inrecon/config``; it is looked up in their list and never used as a
path or an import. A text is either XML whose ``<property name= value=>`` elements say what is wanted, or FIRE's
JSON ``{"parameters": {...}}``.
"""

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any

from inrecon.errors import InreconError
from inrecon.frame import DTYPES, PRESETS, Dtype, Preset, Request
from inrecon.registry import did_you_mean

NULL = "null"
"""The method that reads everything and answers nothing but CLOSE."""
SAVE_ONLY = "savedataonly"
"""The configuration that keeps what it reads, and answers nothing else."""

_HEALTH_CHECKS = ("isalive", "gtquery")
_MAX_CHARACTERS = 1 << 20
_MAX_OVERRIDES = 100
_MAX_VALUE = 200
_BY_NAME = ("config", "customconfig")


class ConfigError(InreconError):
    """A configuration of that name does not exist, or its text says something that cannot be done."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A configuration as understood: `name` for texts and logs, `request` for the reconstruction.

    `ignored` names what was not understood and has no effect; `from_gadgetron` is True where Gadgetron itself
    sent its external module's configuration, which expects other answers than a client does.
    """

    name: str
    request: Request
    ignored: tuple[str, ...] = ()
    from_gadgetron: bool = False

    @property
    def is_null(self) -> bool:
        """Whether everything is to be read and nothing answered."""
        return self.request.method == NULL

    @property
    def saves_only(self) -> bool:
        """Whether the readouts are to be kept as a file, and nothing else done with them."""
        return self.is_null and self.name == SAVE_ONLY


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a command line sets over a configuration, whichever that is; None and no overrides leave it alone."""

    method: str | None = None
    preset: Preset | None = None
    dtype: Dtype | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def over(self, configuration: Configuration) -> Configuration:
        """`configuration` with these wishes fulfilled."""
        request = configuration.request
        wished = Request(
            method=self.method or request.method,
            preset=self.preset or request.preset,
            dtype=self.dtype or request.dtype,
            overrides={**request.overrides, **self.overrides},
        )
        return replace(configuration, request=wished)


def names() -> list[str]:
    """The names a client may ask for, without ``.xml``."""
    return sorted((*_texts(), NULL, SAVE_ONLY))


def configure(name_or_text: str) -> Configuration:
    """The configuration of that name (with or without ``.xml``), XML or JSON text; raises `ConfigError`."""
    text = name_or_text.strip("\0 \t\r\n\ufeff")
    if len(text) > _MAX_CHARACTERS:
        raise ConfigError(f"the configuration has {len(text)} characters; at most {_MAX_CHARACTERS} are read")
    if text.startswith("<"):
        return _from_xml(text, name="XML text")
    if text.startswith("{"):
        return amend(Configuration(name="JSON text", request=Request()), text)
    return _by_name(text)


def amend(configuration: Configuration, text: str) -> Configuration:
    """`configuration` changed by FIRE's JSON `text`; raises `ConfigError`.

    ``config`` and ``customconfig`` name another configuration; ``method``, ``preset`` and ``dtype`` change the
    request; other keys are listed in `Configuration.ignored`. Empty values and ``None`` change nothing.
    """
    parameters = _json_parameters(text)
    known = {key: value for key, value in parameters.items() if str(value).strip() not in ("", "None")}
    for key in _BY_NAME:
        if key in known:
            configuration = replace(_by_name(str(known[key])), from_gadgetron=configuration.from_gadgetron)
    wanted: dict[str, str] = {key: str(known[key]) for key in ("method", "preset", "dtype") if key in known}
    ignored = sorted(set(parameters) - {*_BY_NAME, "method", "preset", "dtype"})
    return replace(
        configuration,
        request=_changed(configuration.request, wanted),
        ignored=tuple(key[:40] for key in ignored[:_MAX_OVERRIDES]),
    )


def requested(config: str, wishes: Wishes) -> Request:
    """What the configuration `config`, a name or a text, asks for with `wishes` over it; raises `ConfigError`."""
    configuration = wishes.over(configure(config))
    if configuration.is_null:
        raise ConfigError(f"the configuration {configuration.name!r} makes no images")
    return configuration.request


def recorded(config: str, parameters: Sequence[str]) -> Configuration:
    """What a client asked for by `config`, a name or text, and then by FIRE's JSON, each over the last.

    Raises `ConfigError` where a server would have refused it.
    """
    configuration, refused = Configuration(name="", request=Request()), None
    try:
        configuration = configure(config)
    except ConfigError as error:
        refused = error
    for text in parameters:
        amended = amend(configuration, text)
        if amended.name:
            configuration, refused = amended, None
    if refused is not None:
        raise refused
    return configuration


def _by_name(name: str) -> Configuration:
    bare = name.strip().removesuffix(".xml")
    if bare in (NULL, SAVE_ONLY) or bare in _HEALTH_CHECKS:
        return Configuration(name=bare, request=Request(method=NULL))
    texts = _texts()
    if bare in texts:
        return _from_xml(texts[bare], name=bare)
    hint = did_you_mean(bare, names())
    raise ConfigError(f"unknown configuration {name[:80]!r}: {hint}known are {', '.join(names())}")


@cache
def _texts() -> Mapping[str, str]:
    """The shipped configurations by name."""
    folder = files("inrecon") / "config"
    return {
        entry.name.removesuffix(".xml"): entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".xml")
    }


def _from_xml(text: str, *, name: str) -> Configuration:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ConfigError("the configuration declares a document type; remove its <!DOCTYPE ...>")
    try:
        root = ET.fromstring(text)  # noqa: S314  no document type, so no entities to expand
    except (ET.ParseError, ValueError) as error:
        raise ConfigError(f"the configuration is not well-formed XML: {error}") from error
    if root.find(".//gadget") is not None and root.find(".//external") is None:
        raise ConfigError(
            "the configuration is a chain of Gadgetron's own gadgets, which this server does not have; "
            f"ask for one of {', '.join(names())}, or send <configuration> with <property name= value=> elements"
        )
    properties = dict(_properties(root))
    # Gadgetron sends only the innermost <configuration>; a whole chain comes from a client.
    from_gadgetron = properties.pop("peer", "") == "gadgetron" and root.find(".//external") is None
    if len(properties) > _MAX_OVERRIDES:
        raise ConfigError(f"the configuration sets {len(properties)} properties; at most {_MAX_OVERRIDES} are read")
    return Configuration(name=name, request=_changed(Request(), properties), from_gadgetron=from_gadgetron)


def _properties(root: ET.Element) -> Iterator[tuple[str, str]]:
    """The ``<property>`` elements below `root`, except those that belong to a ``<gadget>``."""
    pending = [root]
    while pending:
        element = pending.pop()
        if element.tag == "property" and "name" in element.attrib:
            if "value" not in element.attrib:
                raise ConfigError(f"the property {element.attrib['name']!r} has no value")
            yield element.attrib["name"], element.attrib["value"]
        elif element.tag != "gadget":
            pending.extend(reversed(element))


def _json_parameters(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError("the configuration is not well-formed JSON") from error
    parameters = document.get("parameters") if isinstance(document, dict) else None
    if not isinstance(parameters, dict):
        raise ConfigError('a JSON configuration needs an object "parameters", as in {"parameters": {"preset": "fast"}}')
    return parameters


def _changed(request: Request, properties: Mapping[str, str]) -> Request:
    """`request` with `properties` set: method, preset and dtype by name, the rest as fields of the method."""
    fields = dict(properties)
    method = fields.pop("method", None) or request.method
    preset = fields.pop("preset", request.preset)
    dtype = fields.pop("dtype", request.dtype)
    long = next((name for name, value in properties.items() if max(len(name), len(value)) > _MAX_VALUE), None)
    if long is not None:
        raise ConfigError(f"the property {long[:40]!r} or its value has more than {_MAX_VALUE} characters")
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset[:40]!r}: known are {', '.join(PRESETS)}")
    if dtype not in DTYPES:
        raise ConfigError(f"unknown image type (dtype) {dtype[:40]!r}: known are {', '.join(DTYPES)}")
    return Request(method=method, preset=preset, dtype=dtype, overrides={**request.overrides, **fields})
