"""The properties of an XML configuration -> Request: what a sender may ask for, the same at every door."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from inrecon.errors import ConfigError
from inrecon.frame import Dtype, FramePolicy, Live, Preset, Priority, Request

_MAX_PROPERTIES = 100
_MAX_VALUE = 200


def parse_xml(text: str) -> ET.Element:
    """The root element of a configuration, its tags without namespaces, which Gadgetron's own chains have.

    Raises `ConfigError` if it is not XML or declares a document type.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ConfigError("the configuration declares a document type; remove its <!DOCTYPE ...>")
    try:
        root = ET.fromstring(text)  # noqa: S314  no document type, so no entities to expand
    except (ET.ParseError, ValueError) as error:
        raise ConfigError(f"the configuration is not well-formed XML: {error}") from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def properties_of(root: ET.Element) -> dict[str, str]:
    """Names and values of the ``<property>`` elements below `root`, except those that belong to a ``<gadget>``.

    Raises `ConfigError` for one without a value, or too many of them.
    """
    properties = dict(_properties(root))
    if len(properties) > _MAX_PROPERTIES:
        raise ConfigError(f"the configuration sets {len(properties)} properties; at most {_MAX_PROPERTIES} are read")
    return properties


class _Parameters(BaseModel):
    """What a sender may ask for besides fields of the method, each within its bounds."""

    model_config = ConfigDict(extra="forbid")

    method: str | None = None
    preset: Preset = "standard"
    dtype: Dtype = "uint16"
    deadline: float | None = Field(default=None, gt=0, le=86_400)
    priority: Priority = "inline"
    compare: bool = False
    series_name: str | None = Field(default=None, min_length=1, max_length=64, pattern="^[ -~]*$")
    live: bool = False
    frame_policy: FramePolicy = "latest"
    window: int | None = Field(default=None, ge=1, le=65_536)
    step: int | None = Field(default=None, ge=1, le=65_536)
    prior: str | None = Field(default=None, min_length=1)
    prior_frames: int = Field(default=4, ge=1, le=64)


PARAMETERS = frozenset(_Parameters.model_fields)
"""Their names."""
_LIVE = {"frame_policy": "policy", "window": "window", "step": "step", "prior": "prior", "prior_frames": "prior_frames"}
"""What only interventional streams know, and its name there."""


def changed(request: Request, properties: Mapping[str, str]) -> Request:
    """`request` with `properties` set: `PARAMETERS` by name, the rest as fields of the method.

    Raises `ConfigError` for a parameter's value that cannot be and for what is too long; method and fields are checked
    where the method is built.
    """
    long = next((name for name, value in properties.items() if max(len(name), len(value)) > _MAX_VALUE), None)
    if long is not None:
        raise ConfigError(f"the property {long[:40]!r} or its value has more than {_MAX_VALUE} characters")
    asked = {name: value for name, value in properties.items() if name in PARAMETERS}
    try:
        told = _Parameters.model_validate(asked).model_dump(include=set(asked))
    except ValidationError as error:
        raise ConfigError("; ".join(_in_words(problem) for problem in error.errors())) from error
    if "deadline" in told:
        told["deadline_s"] = told.pop("deadline")
    live = Live() if told.pop("live", request.live is not None) else None
    of_live = {name: told.pop(name) for name in _LIVE if name in told}
    if of_live and live is None:
        raise ConfigError(
            f"{', '.join(of_live)}: only interventional streams have these, as of the configuration inr_imri"
        )
    if live is not None:
        live = replace(request.live or live, **{_LIVE[name]: value for name, value in of_live.items()})
        if live.step is not None and live.window is None:
            raise ConfigError("step: how many readouts a window moves on; there is no window")
    told["live"] = live
    fields = {name: value for name, value in properties.items() if name not in PARAMETERS}
    return replace(request, **told, overrides={**request.overrides, **fields})


def _in_words(problem: ErrorDetails) -> str:
    name, given = str(problem["loc"][0]), str(problem["input"])[:40]
    if problem["type"] == "literal_error":
        known = get_args(_Parameters.model_fields[name].annotation)
        return f"unknown {name} {given!r}: known are {', '.join(known)}"
    return f"{name}: {problem['msg'][0].lower()}{problem['msg'][1:]}, not {given!r}"


def _properties(root: ET.Element) -> Iterator[tuple[str, str]]:
    pending = [root]
    while pending:
        element = pending.pop()
        if element.tag == "property" and "name" in element.attrib:
            if "value" not in element.attrib:
                raise ConfigError(f"the property {element.attrib['name']!r} has no value")
            yield element.attrib["name"], element.attrib["value"]
        elif element.tag != "gadget":
            pending.extend(reversed(element))
