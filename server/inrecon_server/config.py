"""Names and texts of configurations -> what is asked for.

A name stands for one of the files in ``inrecon/config``; it is looked up in their list and never used as a
path or an import. A text is either XML whose ``<property name= value=>`` elements say what is wanted, or FIRE's
JSON ``{"parameters": {...}}``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any

from inrecon.errors import ConfigError
from inrecon.frame import Dtype, Preset, Request
from inrecon.properties import PARAMETERS, changed, parse_xml, properties_of
from inrecon.registry import did_you_mean

DEFAULT = "inr"
"""The configuration of what names none."""
NULL = "null"
"""The method that reads everything and answers nothing but CLOSE."""
SAVE_ONLY = "savedataonly"
"""The configuration that keeps what it reads, and answers nothing else."""
NOISE_ONLY = "default_measurement_dependencies"
"""Gadgetron's name for what is done with a noise scan: its noise is kept for later ones, and no images are made."""

_HEALTH_CHECKS = ("isalive", "gtquery")
_MAX_CHARACTERS = 1 << 20
_MAX_IGNORED = 100
_BY_NAME = ("config", "customconfig")
_BY_JSON = PARAMETERS | {"iterations"}
_NEW_PRIOR = "new_prior"
"""Which a stream begins with anyway."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A configuration as understood: `name` for texts and logs, `request` for the reconstruction.

    `ignored` names what was not understood and has no effect; `from_gadgetron` is True where Gadgetron itself
    sent its external module's configuration, which expects other answers than a client does. `keeps_noise_only` is True
    where a scan is sent for its noise readouts, and no images are wanted.
    """

    name: str
    request: Request
    ignored: tuple[str, ...] = ()
    from_gadgetron: bool = False
    keeps_noise_only: bool = False

    @property
    def is_null(self) -> bool:
        """Whether everything is to be read and nothing answered."""
        return self.request.method == NULL

    @property
    def makes_images(self) -> bool:
        """Whether images are wanted."""
        return not (self.is_null or self.keeps_noise_only)

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
        wished = replace(
            request,
            method=self.method or request.method,
            preset=self.preset or request.preset,
            dtype=self.dtype or request.dtype,
            overrides={**request.overrides, **self.overrides},
        )
        noise_only = configuration.keeps_noise_only and self.method is None
        return replace(configuration, request=wished, keeps_noise_only=noise_only)


def names() -> list[str]:
    """The names a client may ask for, without ``.xml``."""
    return sorted((*_texts(), NULL, SAVE_ONLY, NOISE_ONLY))


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


def makes_images(name_or_text: str) -> bool:
    """Whether that configuration makes images, or may: a server can have more of them than are known here."""
    try:
        return configure(name_or_text).makes_images
    except ConfigError:
        return True


def amend(configuration: Configuration, text: str) -> Configuration:
    """`configuration` changed by FIRE's JSON `text`; raises `ConfigError`.

    ``config`` and ``customconfig`` name another configuration; `PARAMETERS` and ``iterations`` change the request, be
    they texts or numbers; other keys are listed in `Configuration.ignored`. Empty values and ``None`` change nothing.
    """
    parameters = _json_parameters(text)
    known = {key: value for key, value in parameters.items() if str(value).strip() not in ("", "None")}
    for key in _BY_NAME:
        if key in known:
            configuration = replace(_by_name(str(known[key])), from_gadgetron=configuration.from_gadgetron)
    wanted = {key: str(known[key]) for key in sorted(_BY_JSON) if key in known}
    request = changed(configuration.request, wanted)
    understood = {*_BY_NAME, *_BY_JSON}
    if request.live is not None:
        understood.add(_NEW_PRIOR)
    ignored = sorted(set(parameters) - understood)
    return replace(
        configuration,
        request=request,
        ignored=tuple(key[:40] for key in ignored[:_MAX_IGNORED]),
    )


def asks_for_prior(text: str) -> bool:
    """Whether FIRE's JSON `text` asks, in the middle of a stream, for a new prior: ``"new_prior": "true"``."""
    try:
        return str(_json_parameters(text).get(_NEW_PRIOR, "")).lower() in ("true", "1", "yes")
    except ConfigError:
        return False


def beside_prior(text: str) -> tuple[str, ...]:
    """What stands beside ``new_prior`` in such a text, the first of many."""
    others = sorted(set(_json_parameters(text)) - {_NEW_PRIOR})
    return tuple(key[:40] for key in others[:_MAX_IGNORED])


def requested(config: str, wishes: Wishes) -> Request:
    """What the configuration `config`, a name or a text, asks for with `wishes` over it; raises `ConfigError`."""
    configuration = wishes.over(configure(config))
    if not configuration.makes_images:
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
    if bare == NOISE_ONLY:
        return Configuration(name=bare, request=Request(), keeps_noise_only=True)
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
    root = parse_xml(text)
    if root.find(".//gadget") is not None and root.find(".//external") is None:
        raise ConfigError(
            "the configuration is a chain of Gadgetron's own gadgets, which this server does not have; "
            f"ask for one of {', '.join(names())}, or send <configuration> with <property name= value=> elements"
        )
    properties = properties_of(root)
    # Gadgetron sends only the innermost <configuration>; a whole chain comes from a client.
    from_gadgetron = properties.pop("peer", "") == "gadgetron" and root.find(".//external") is None
    return Configuration(name=name, request=changed(Request(), properties), from_gadgetron=from_gadgetron)


def _json_parameters(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError("the configuration is not well-formed JSON") from error
    parameters = document.get("parameters") if isinstance(document, dict) else None
    if not isinstance(parameters, dict):
        raise ConfigError('a JSON configuration needs an object "parameters", as in {"parameters": {"preset": "fast"}}')
    return parameters
