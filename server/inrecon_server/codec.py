"""The bodies of MRD v1 messages: one reader and one line of `serialise` for each kind.

A reader is a generator: it yields the number of bytes that it needs, is sent exactly those, and at last yields its
message. Every length is checked before its bytes are asked for, so a wrong one costs no memory.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Generator
from typing import Any, TypeAlias
from xml.etree.ElementTree import ParseError

import numpy as np
from ismrmrd import AcquisitionHeader, ImageHeader, Meta, WaveformHeader
from ismrmrd.constants import ACQ_COMPRESSION1, ACQ_COMPRESSION2, DATATYPE_INT
from ismrmrd.image import dtype_mapping
from numpy.typing import NDArray

from inrecon_server.messages import (
    Acquisition,
    Close,
    ConfigFile,
    ConfigText,
    DependencyQuery,
    Error,
    Header,
    Image,
    Limits,
    Malformed,
    Message,
    MessageId,
    Query,
    Response,
    Text,
    TooLarge,
    Waveform,
)

_U16, _U32, _U64 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")
_QUERY = struct.Struct("<QQQ")  # reserved, correlation id, length
_RESPONSE = struct.Struct("<QQ")  # correlation id, length
_CONFIG_FILE_BYTES = 1024

# Writers put 0 (unset), 1 (the major version) or their minor version; more means that the stream is out of step.
_LARGEST_VERSION = 255

# ismrmrd takes DATATYPE_INT for the platform's int, of eight bytes; on the wire it has four.
_WIRE_DTYPES: dict[int, np.dtype[Any]] = {**dtype_mapping, DATATYPE_INT: np.dtype(np.int32)}


Reader: TypeAlias = Generator[int | Message, bytearray, None]
_Part: TypeAlias = Generator[int | Message, bytearray, bytearray]


def reader_of(kind: MessageId, limits: Limits) -> Reader:
    """A reader for the body of one message; raises `Malformed` or `TooLarge` when sent such bytes."""
    return _READERS[kind](limits)


def _config_file(_: Limits) -> Reader:
    name, terminator, _rest = (yield _CONFIG_FILE_BYTES).partition(b"\0")
    if not terminator:
        raise Malformed(f"the name in CONFIG_FILE does not end within {_CONFIG_FILE_BYTES} bytes")
    try:
        text = name.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"the name in CONFIG_FILE is not UTF-8: {bytes(name[:40])!r}") from error
    if not text.isprintable():
        raise Malformed(f"the name in CONFIG_FILE is not a name: {text[:40]!r}")
    yield ConfigFile(text)


def _config_text(limits: Limits) -> Reader:
    yield ConfigText(_decode((yield from _block(_U32, limits.config_text, "CONFIG_TEXT"))))


def _header(limits: Limits) -> Reader:
    raw = yield from _block(_U32, limits.header, "HEADER")
    xml = bytes(raw.rstrip(b"\0"))
    yield Header(xml, len(raw) - len(xml))


def _close(_: Limits) -> Reader:
    yield 0
    yield Close()


def _text(limits: Limits) -> Reader:
    yield Text(_decode((yield from _block(_U32, limits.text, "TEXT"))))


def _query(limits: Limits) -> Reader:
    reserved, correlation_id, length = _QUERY.unpack((yield _QUERY.size))
    if reserved:
        raise Malformed("Unsupported value in reserved bytes.")
    _check_size(length, limits.query, "QUERY")
    yield Query(_decode((yield length)), correlation_id)


def _response(limits: Limits) -> Reader:
    correlation_id, length = _RESPONSE.unpack((yield _RESPONSE.size))
    _check_size(length, limits.text, "RESPONSE")
    yield Response(correlation_id, _decode((yield length)))


def _error(limits: Limits) -> Reader:
    yield Error(_decode((yield from _block(_U64, limits.text, "ERROR"))))


def _dependency_query(limits: Limits) -> Reader:
    yield DependencyQuery(_decode((yield from _block(_U64, limits.meta, "DEPENDENCY_QUERY"))))


def _acquisition(limits: Limits) -> Reader:
    head = AcquisitionHeader.from_buffer_copy((yield ctypes.sizeof(AcquisitionHeader)))
    _check_version(head.version, "ACQUISITION")
    for flag in (ACQ_COMPRESSION1, ACQ_COMPRESSION2):
        if head.is_flag_set(flag):
            raise Malformed(f"the ACQUISITION is compressed (flag {flag}), which is not supported")
    samples, channels, dimensions = head.number_of_samples, head.active_channels, head.trajectory_dimensions
    trajectory_bytes = 4 * samples * dimensions
    size = trajectory_bytes + 8 * samples * channels
    _check_size(size, limits.acquisition, f"ACQUISITION ({samples} samples, {channels} channels)")
    body = yield size
    trajectory = np.frombuffer(body, np.float32, samples * dimensions)
    data = np.frombuffer(memoryview(body)[trajectory_bytes:], np.complex64)
    yield Acquisition(head, data.reshape(channels, samples), trajectory.reshape(samples, dimensions))


def _waveform(limits: Limits) -> Reader:
    head = WaveformHeader.from_buffer_copy((yield ctypes.sizeof(WaveformHeader)))
    _check_version(head.version, "WAVEFORM")
    samples, channels = head.number_of_samples, head.channels
    _check_size(4 * samples * channels, limits.waveform, f"WAVEFORM ({samples} samples, {channels} channels)")
    yield Waveform(head, np.frombuffer((yield 4 * samples * channels), np.uint32))


def _image(limits: Limits) -> Reader:
    head = ImageHeader.from_buffer_copy((yield ctypes.sizeof(ImageHeader)))
    _check_version(head.version, "IMAGE")
    dtype = _WIRE_DTYPES.get(head.data_type)
    if dtype is None:
        raise Malformed(f"IMAGE of data type {head.data_type}; known are {min(_WIRE_DTYPES)} .. {max(_WIRE_DTYPES)}")
    x, y, z = head.matrix_size
    shape = (head.channels, z, y, x)
    size = dtype.itemsize * head.channels * z * y * x
    _check_size(size, limits.image, f"IMAGE (channels, z, y, x = {shape}, {dtype})")
    meta = _meta((yield from _block(_U64, limits.meta, "attributes of an IMAGE")))
    pixels = np.frombuffer((yield size), dtype).reshape(shape)
    # An Image keeps int32 pixels as int64, the only array of signed integers that ismrmrd takes for DATATYPE_INT.
    yield Image(head, data=pixels.astype(dtype_mapping[head.data_type], copy=False), meta=meta)


_READERS: dict[MessageId, Callable[[Limits], Reader]] = {
    MessageId.CONFIG_FILE: _config_file,
    MessageId.CONFIG_TEXT: _config_text,
    MessageId.HEADER: _header,
    MessageId.CLOSE: _close,
    MessageId.TEXT: _text,
    MessageId.QUERY: _query,
    MessageId.RESPONSE: _response,
    MessageId.ERROR: _error,
    MessageId.ACQUISITION: _acquisition,
    MessageId.DEPENDENCY_QUERY: _dependency_query,
    MessageId.IMAGE: _image,
    MessageId.WAVEFORM: _waveform,
}


def _block(prefix: struct.Struct, limit: int, what: str) -> _Part:
    """Read a length and that many bytes."""
    (length,) = prefix.unpack((yield prefix.size))
    _check_size(length, limit, what)
    return (yield length)


def _check_size(size: int, limit: int, what: str) -> None:
    if size > limit:
        raise TooLarge(f"{what} declares {size} bytes, the limit is {limit}")


def _check_version(version: int, what: str) -> None:
    if version > _LARGEST_VERSION:
        raise Malformed(f"{what} of version {version}, not 1: the message before it had not the length it declared")


def _decode(raw: bytearray) -> str:
    """Text without trailing NULs, which some writers count in; what is not UTF-8 is taken for Latin-1."""
    raw = raw.rstrip(b"\0")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _meta(raw: bytearray) -> Meta:
    text = _decode(raw)
    # Entities have no place in these attributes, and are a way to make a small text large.
    if "<!DOCTYPE" in text:
        raise Malformed("the attributes of the IMAGE hold a DOCTYPE, which is refused")
    try:
        meta = Meta.deserialize(text)
    # Meta asserts that the elements it needs are there; AttributeError is the same under `python -O`.
    except (ParseError, AssertionError, AttributeError) as error:
        raise Malformed(f"the attributes of the IMAGE are not ISMRMRD Meta XML: {error}") from error
    # Meta gives None for an empty value and would write it back as the word "None".
    for name, value in meta.items():
        meta[name] = [item or "" for item in value] if isinstance(value, list) else value or ""
    return meta


def serialise(message: Message) -> bytes:
    """The bytes of one message, id included.

    An empty `Text` or `ConfigText` goes out as one space, because C++ readers of ISMRMRD read before the start of an
    empty one. Raises `Malformed` for a message that has no form on the wire.
    """
    match message:
        case ConfigFile(name):
            return _join(MessageId.CONFIG_FILE, _config_name(name))
        case ConfigText(text):
            return _join(MessageId.CONFIG_TEXT, *_sized(_U32, _encode(text) or b" "))
        case Header(xml, nuls):
            return _join(MessageId.HEADER, *_sized(_U32, xml.rstrip(b"\0") + nuls * b"\0"))
        case Close():
            return _join(MessageId.CLOSE)
        case Text(text):
            return _join(MessageId.TEXT, *_sized(_U32, _encode(text) or b" "))
        case Query(name, correlation_id):
            raw = _encode(name)
            return _join(MessageId.QUERY, _QUERY.pack(0, correlation_id, len(raw)), raw)
        case Response(correlation_id, text):
            raw = _encode(text)
            return _join(MessageId.RESPONSE, _RESPONSE.pack(correlation_id, len(raw)), raw)
        case Error(text):
            return _join(MessageId.ERROR, *_sized(_U64, _encode(text)))
        case DependencyQuery(meta):
            return _join(MessageId.DEPENDENCY_QUERY, *_sized(_U64, _encode(meta)))
        case Acquisition():
            return _join(MessageId.ACQUISITION, *_acquisition_parts(message))
        case Image():
            return _join(MessageId.IMAGE, *_image_parts(message))
        case Waveform():
            shape = (message.channels, message.number_of_samples)
            return _join(MessageId.WAVEFORM, message.getHead(), _array(message.data, shape, np.dtype(np.uint32)))
    raise TypeError(f"{type(message).__name__} is not a message")


def _join(kind: MessageId, *parts: Any) -> bytes:
    return b"".join((_U16.pack(kind), *parts))


def _sized(prefix: struct.Struct, raw: bytes) -> tuple[bytes, bytes]:
    return prefix.pack(len(raw)), raw


def _encode(text: str) -> bytes:
    """UTF-8; what it cannot hold (halves of surrogate pairs, from odd file names) becomes a question mark."""
    return text.rstrip("\0").encode(errors="replace")


def _config_name(name: str) -> bytes:
    raw = name.encode(errors="replace")
    if len(raw) >= _CONFIG_FILE_BYTES or not name.isprintable():
        raise Malformed(f"a config name has at most {_CONFIG_FILE_BYTES - 1} printable bytes, not {name[:40]!r}")
    return raw.ljust(_CONFIG_FILE_BYTES, b"\0")


def _acquisition_parts(acquisition: Any) -> tuple[Any, ...]:
    samples, channels = acquisition.number_of_samples, acquisition.active_channels
    trajectory = _array(acquisition.traj, (samples, acquisition.trajectory_dimensions), np.dtype(np.float32))
    return acquisition.getHead(), trajectory, _array(acquisition.data, (channels, samples), np.dtype(np.complex64))


def _image_parts(image: Any) -> tuple[Any, ...]:
    head = image.getHead()
    attributes = _encode(image.attribute_string)
    head.attribute_string_len = len(attributes)
    dtype = _WIRE_DTYPES.get(head.data_type)
    if dtype is None:
        raise Malformed(f"an image of data type {head.data_type} cannot be sent")
    x, y, z = head.matrix_size
    pixels = _array(image.data, (head.channels, z, y, x), dtype)
    return head, *_sized(_U64, attributes), pixels


def _array(array: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The array as its header declares it; any other would put the reader out of step."""
    if array.shape != shape or not np.can_cast(array.dtype, dtype, "same_kind"):
        raise Malformed(f"the header declares {dtype} {shape}, the array is {array.dtype} {array.shape}")
    if dtype.kind == "i" and array.size and not np.can_cast(array.dtype, dtype):
        span = np.iinfo(dtype)
        if array.min() < span.min or array.max() > span.max:
            raise Malformed(f"values {array.min()} .. {array.max()} do not fit {dtype}")
    return np.ascontiguousarray(array, dtype)
