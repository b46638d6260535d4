"""The properties of an XML configuration -> Request: what a sender may ask for, the same at every door."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping

from inrecon.errors import ConfigError
from inrecon.frame import DTYPES, PRESETS, Request

_MAX_PROPERTIES = 100
_MAX_VALUE = 200


def parse_xml(text: str) -> ET.Element:
    """The root element of a configuration; raises `ConfigError` if it is not XML or declares a document type."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ConfigError("the configuration declares a document type; remove its <!DOCTYPE ...>")
    try:
        return ET.fromstring(text)  # noqa: S314  no document type, so no entities to expand
    except (ET.ParseError, ValueError) as error:
        raise ConfigError(f"the configuration is not well-formed XML: {error}") from error


def properties_of(root: ET.Element) -> dict[str, str]:
    """Names and values of the ``<property>`` elements below `root`, except those that belong to a ``<gadget>``.

    Raises `ConfigError` for one without a value, or too many of them.
    """
    properties = dict(_properties(root))
    if len(properties) > _MAX_PROPERTIES:
        raise ConfigError(f"the configuration sets {len(properties)} properties; at most {_MAX_PROPERTIES} are read")
    return properties


def changed(request: Request, properties: Mapping[str, str]) -> Request:
    """`request` with `properties` set: method, preset and dtype by name, the rest as fields of the method.

    Raises `ConfigError` for a preset or dtype that does not exist and for what is too long; method and fields are
    checked where the method is built.
    """
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
