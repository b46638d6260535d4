"""The messages of the MRD v1 stream, the ids they travel under, and what can be wrong with them.

Acquisitions, images and waveforms are `ismrmrd`'s own classes; the other messages are the small dataclasses below.
"""

from dataclasses import dataclass, field
from enum import IntEnum

from ismrmrd import Acquisition, Image, Waveform
from ismrmrd.serialization import ISMRMRDMessageID

from inrecon.errors import InreconError

__all__ = [
    "Acquisition",
    "Close",
    "ConfigFile",
    "ConfigText",
    "DependencyQuery",
    "Error",
    "Header",
    "Image",
    "Limits",
    "Malformed",
    "Message",
    "MessageId",
    "OutOfOrder",
    "ProtocolError",
    "Query",
    "Response",
    "Text",
    "TooLarge",
    "Truncated",
    "UnknownMessage",
    "Waveform",
    "asking_for",
]

_KIB, _MIB, _GIB = 2**10, 2**20, 2**30


class ProtocolError(InreconError):
    """The bytes are not an MRD stream, or not one that makes sense at this place."""


class Truncated(ProtocolError):
    """The stream ended inside a message."""


class UnknownMessage(ProtocolError):
    """A message id that has no reader here; as no message tells its length, nothing after it can be read."""


class OutOfOrder(ProtocolError):
    """A message that its sender may not send now."""


class TooLarge(ProtocolError):
    """A message declares more bytes than its limit allows; nothing of its body was read."""


class Malformed(ProtocolError):
    """A message whose content contradicts the standard, or uses a part of it that is not supported."""


class MessageId(IntEnum):
    """The ids of the messages that are read and written here."""

    CONFIG_FILE = ISMRMRDMessageID.CONFIG_FILE
    CONFIG_TEXT = ISMRMRDMessageID.CONFIG_TEXT
    HEADER = ISMRMRDMessageID.HEADER
    CLOSE = ISMRMRDMessageID.CLOSE
    TEXT = ISMRMRDMessageID.TEXT
    # Gadgetron's own messages, which ismrmrd does not name (gadgetron/core/MessageID.h).
    QUERY = 6
    RESPONSE = 7
    ERROR = 8
    ACQUISITION = ISMRMRDMessageID.ACQUISITION
    DEPENDENCY_QUERY = 1019
    IMAGE = ISMRMRDMessageID.IMAGE
    WAVEFORM = ISMRMRDMessageID.WAVEFORM


@dataclass(frozen=True)
class ConfigFile:
    """The name of a configuration that the server knows; at most 1023 bytes of UTF-8."""

    name: str


@dataclass(frozen=True)
class ConfigText:
    """A configuration itself: XML of a Gadgetron chain, or FIRE's JSON."""

    text: str


def asking_for(config: str) -> ConfigFile | ConfigText:
    """The message that asks for `config`: the name of a configuration, or a text, XML or JSON."""
    return ConfigText(config) if config.lstrip()[:1] in ("<", "{") else ConfigFile(config)


@dataclass(frozen=True)
class Header:
    """The ISMRMRD XML header as it came, without the NULs that some senders append; not parsed, not decoded.

    `nuls` is how many those were, for who sends it on byte for byte.
    """

    xml: bytes
    nuls: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Close:
    """The sender will send nothing more."""


@dataclass(frozen=True)
class Text:
    """To a client: a line for its log. To the server: FIRE's JSON with further configuration."""

    text: str


@dataclass(frozen=True)
class Query:
    """A question to the server, such as ``gadgetron::version``; the answer repeats `correlation_id`."""

    name: str
    correlation_id: int


@dataclass(frozen=True)
class Response:
    """The answer to the query of the same `correlation_id`."""

    correlation_id: int
    text: str


@dataclass(frozen=True)
class Error:
    """An error of an external module, told to Gadgetron; Gadgetron's client does not know this message."""

    text: str


@dataclass(frozen=True)
class DependencyQuery:
    """What the server knows of a noise measurement that a scan depends on: `meta` is ISMRMRD Meta XML."""

    meta: str


Message = (
    ConfigFile
    | ConfigText
    | Header
    | Close
    | Text
    | Query
    | Response
    | Error
    | Acquisition
    | DependencyQuery
    | Image
    | Waveform
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most bytes that the variable part of a message may have."""

    config_text: int = 1 * _MIB
    header: int = 16 * _MIB
    text: int = 1 * _MIB
    query: int = 64 * _KIB
    meta: int = 16 * _MIB
    acquisition: int = 128 * _MIB
    image: int = 2 * _GIB
    waveform: int = 64 * _MIB
