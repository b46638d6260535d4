"""The wire: whatever the bytes and however they are cut, messages come out or `ProtocolError`, and nothing else."""

import io
import struct
import tracemalloc
from dataclasses import fields
from itertools import pairwise

import ismrmrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inrecon.errors import InreconError
from inrecon_server.protocol import (
    Acquisition,
    Close,
    ConfigFile,
    ConfigText,
    DependencyQuery,
    Ending,
    Error,
    Header,
    Image,
    Limits,
    Malformed,
    MessageId,
    OutOfOrder,
    Parser,
    ProtocolError,
    Query,
    Response,
    State,
    Text,
    TooLarge,
    Truncated,
    UnknownMessage,
    Waveform,
    serialise,
)

fuzz = settings(derandomize=True, deadline=None, database=None, max_examples=150)


def an_acquisition(channels=2, samples=3, dimensions=2, **header):
    rng = np.random.default_rng(channels * samples)
    data = rng.standard_normal((channels, samples)) + 1j * rng.standard_normal((channels, samples))
    trajectory = rng.standard_normal((samples, dimensions)).astype(np.float32)
    acquisition = Acquisition.from_array(data.astype(np.complex64), trajectory, **{"scan_counter": 7, **header})
    acquisition.idx.kspace_encode_step_1 = 11
    return acquisition


def an_image(dtype=np.float32, shape=(2, 1, 3, 4), **meta):
    pixels = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    head = Image.from_array(pixels, transpose=False, image_series_index=3, image_index=1).getHead()
    attributes = ismrmrd.Meta(meta)
    head.attribute_string_len = len(attributes.serialize().encode())
    return Image(head, data=pixels, meta=attributes)


def a_waveform(channels=2, samples=5, **header):
    data = np.arange(channels * samples, dtype=np.uint32).reshape(channels, samples)
    return Waveform.from_array(data, **{"waveform_id": 1, **header})


EXAMPLES = {
    "config file": ConfigFile("default.xml"),
    "config text": ConfigText("<configuration>µ</configuration>"),
    "header": Header(b"<?xml version='1.0'?><ismrmrdHeader>\xb5</ismrmrdHeader>"),
    "close": Close(),
    "text": Text("INFO    größer"),
    "query": Query("gadgetron::version", 2**63 + 1),
    "response": Response(2**63 + 1, "4.7.2"),
    "error": Error("it broke"),
    "acquisition": an_acquisition(),
    "acquisition without trajectory": an_acquisition(dimensions=0),
    "acquisition without samples": an_acquisition(samples=0),
    "acquisition without channels": an_acquisition(channels=0),
    "dependency query": DependencyQuery("<ismrmrdMeta></ismrmrdMeta>"),
    "image": an_image(DataRole="Image", ImageProcessingHistory=["INR", "FFT"], note=""),
    "image without attributes": an_image(np.complex64),
    "image without pixels": an_image(np.uint16, (1, 0, 3, 4)),
    "waveform": a_waveform(),
    "waveform without samples": a_waveform(samples=0),
}
every_example = pytest.mark.parametrize("message", EXAMPLES.values(), ids=EXAMPLES.keys())

OPENING = (ConfigFile("default"), Header(b"<ismrmrdHeader/>"))
SCAN = (
    Query("ismrmrd::version", 1),
    ConfigText("<configuration/>"),
    Text("before the header"),
    Header(b"<ismrmrdHeader/>"),
    Text('{"parameters": {}}'),
    a_waveform(),
    an_acquisition(),
    Query("gadgetron::info", 2),
    an_acquisition(channels=1, samples=1, dimensions=0),
    an_image(a="1"),
    Close(),
)


def wire(*messages):
    return b"".join(map(serialise, messages))


def parse(data, role="client", step=None, **limits):
    """All messages in `data`, fed `step` bytes at a time."""
    parser = Parser(Limits(**limits), role=role)
    step = step or max(len(data), 1)
    return [message for start in range(0, len(data), step) for message in parser.feed(data[start : start + step])]


def acquisition_bytes(**header):
    return serialise(an_acquisition(**header))


class TestEveryMessage:
    @every_example
    def test_comes_back_whole(self, message):
        assert parse(serialise(message)) == [message]

    @every_example
    @pytest.mark.parametrize("step", [1, 7])
    def test_comes_back_in_pieces(self, message, step):
        assert parse(serialise(message) * 2, step=step) == ([message] if message == Close() else [message] * 2)

    @every_example
    def test_is_truncated_at_every_cut(self, message):
        data = serialise(message)
        for cut in range(1, len(data)):
            parser = Parser(role="client")
            assert list(parser.feed(data[:cut])) == []
            with pytest.raises(Truncated):
                parser.end()

    @every_example
    def test_serialising_leaves_the_message_alone(self, message):
        assert serialise(message) == serialise(message)


class TestLayout:
    """The bytes as the specification has them, packed by hand."""

    @pytest.mark.parametrize(
        ("message", "expected"),
        [
            (ConfigFile("ab"), struct.pack("<H1024s", 1, b"ab")),
            (ConfigText("ab"), struct.pack("<HI2s", 2, 2, b"ab")),
            (Header(b"ab"), struct.pack("<HI2s", 3, 2, b"ab")),
            (Close(), struct.pack("<H", 4)),
            (Text("ab"), struct.pack("<HI2s", 5, 2, b"ab")),
            (Query("ab", 9), struct.pack("<HQQQ2s", 6, 0, 9, 2, b"ab")),
            (Response(9, "ab"), struct.pack("<HQQ2s", 7, 9, 2, b"ab")),
            (Error("ab"), struct.pack("<HQ2s", 8, 2, b"ab")),
            (DependencyQuery("ab"), struct.pack("<HQ2s", 1019, 2, b"ab")),
        ],
    )
    def test_of_texts(self, message, expected):
        assert serialise(message) == expected

    def test_of_acquisition(self):
        acquisition = an_acquisition(center_sample=9, flags=1 << 63)
        data = serialise(acquisition)
        assert len(data) == 2 + 340 + 4 * 3 * 2 + 8 * 2 * 3
        assert struct.unpack_from("<HHQ", data) == (1008, 1, 1 << 63)
        assert struct.unpack_from("<HHH", data, 2 + 34) == (3, 2, 2)
        assert struct.unpack_from("<H", data, 2 + 172) == (9,)
        assert struct.unpack_from("<H", data, 2 + 242) == (11,)
        assert data[342:] == acquisition.traj.tobytes() + acquisition.data.tobytes()

    def test_of_image(self):
        image = Image.from_array(np.arange(12, dtype=np.uint16).reshape(3, 4), transpose=False)
        image.meta = ismrmrd.Meta(a="1")
        attributes = image.attribute_string.encode()
        data = serialise(image)
        assert struct.unpack_from("<HHH", data) == (1022, 1, 1)
        assert struct.unpack_from("<HHH", data, 2 + 16) == (4, 3, 1)
        assert struct.unpack_from("<IQ", data, 2 + 194) == (len(attributes), len(attributes))
        assert data[2 + 198 + 8 :] == attributes + image.data.tobytes()

    def test_of_waveform(self):
        data = serialise(a_waveform())
        assert struct.unpack("<HH6xQIIIHHfH2x", data[:42]) == (1026, 1, 0, 0, 0, 0, 5, 2, 0.0, 1)
        assert data[42:] == np.arange(10, dtype="<u4").tobytes()

    def test_attribute_length_on_the_wire_wins_over_the_one_in_the_image_header(self):
        data = bytearray(serialise(an_image(a="1")))
        struct.pack_into("<I", data, 2 + 194, 0)
        (image,) = parse(data)
        assert image.meta["a"] == "1"


class TestAgainstIsmrmrd:
    """ismrmrd's own serialiser as a second opinion."""

    PAIRS = (
        (EXAMPLES["acquisition"],) * 2,
        (EXAMPLES["acquisition without trajectory"],) * 2,
        (an_image(np.int16, a="1"),) * 2,
        (EXAMPLES["image without attributes"],) * 2,
        (an_image(np.complex128),) * 2,
        (EXAMPLES["waveform"],) * 2,
        (ConfigFile("default.xml"), ismrmrd.ConfigFile("default.xml")),
        (ConfigText("<a>µ</a>"), ismrmrd.ConfigText("<a>µ</a>")),
        (Text("größer"), "größer"),
    )

    @pytest.mark.parametrize(("ours", "theirs"), PAIRS)
    def test_same_bytes(self, ours, theirs):
        stream = io.BytesIO()
        ismrmrd.ProtocolSerializer(stream).serialize(theirs)
        assert serialise(ours) == stream.getvalue()

    @pytest.mark.parametrize(("ours", "theirs"), PAIRS)
    def test_they_read_what_we_write(self, ours, theirs):
        stream = io.BytesIO(wire(ours, Close()))
        assert list(ismrmrd.ProtocolDeserializer(stream).deserialize()) == [theirs]


class TestStrings:
    @pytest.mark.parametrize(
        ("code", "expected"),
        [(2, ConfigText("{}")), (3, Header(b"{}")), (5, Text("{}"))],
        ids=["config", "header", "text"],
    )
    @pytest.mark.parametrize("nuls", [0, 1, 3])
    def test_counted_nuls_are_no_part_of_a_string(self, code, expected, nuls):
        assert parse(struct.pack("<HI", code, 2 + nuls) + b"{}" + b"\0" * nuls) == [expected]

    def test_nuls_are_not_sent(self):
        assert wire(Text("a\0"), Header(b"a\0\0")) == wire(Text("a"), Header(b"a"))

    def test_nothing_but_nuls_is_empty(self):
        assert parse(struct.pack("<HI", 5, 3) + b"\0\0\0") == [Text("")]

    def test_a_length_of_zero_is_empty(self):
        assert parse(struct.pack("<HI", 5, 0)) == [Text("")]
        assert parse(struct.pack("<HI", 3, 0)) == [Header(b"")]

    @pytest.mark.parametrize("empty", [Text(""), Text("\0"), ConfigText("")])
    def test_no_empty_text_is_sent(self, empty):
        data = serialise(empty)
        assert data[2:] == b"\x01\0\0\0 "

    def test_text_that_is_not_utf8_is_taken_for_latin1(self):
        assert parse(struct.pack("<HI", 5, 6) + "größer".encode("latin-1")) == [Text("größer")]

    def test_half_a_surrogate_pair_does_not_stop_a_text(self):
        assert parse(serialise(Text("/data/\udcff"))) == [Text("/data/?")]

    def test_config_name_ends_at_its_first_nul(self):
        data = struct.pack("<H", 1) + b"default.xml\0" + b"\xff\xfe<left over>" * 80
        assert parse(data[: 2 + 1024]) == [ConfigFile("default.xml")]

    @pytest.mark.parametrize("name", [b"a" * 1024, b"\xff\xfe\0", b"a\nb\0", b"\x1b[2J\0"])
    def test_config_name_that_is_none(self, name):
        with pytest.raises(Malformed, match="CONFIG_FILE"):
            parse(struct.pack("<H1024s", 1, name))

    def test_longest_config_name(self):
        assert parse(serialise(ConfigFile("a" * 1023))) == [ConfigFile("a" * 1023)]

    @pytest.mark.parametrize("name", ["a" * 1024, "µ" * 512, "a\0b"])
    def test_config_name_that_cannot_be_sent(self, name):
        with pytest.raises(Malformed, match="config name"):
            serialise(ConfigFile(name))


def oversize_messages():
    head = ismrmrd.ImageHeader(version=1, data_type=ismrmrd.DATATYPE_CXDOUBLE, channels=65535)
    head.matrix_size = (65535, 65535, 65535)
    acquisition = ismrmrd.AcquisitionHeader(version=1, number_of_samples=65535, active_channels=65535)
    trajectory = ismrmrd.AcquisitionHeader(version=1, number_of_samples=65535, trajectory_dimensions=65535)
    waveform = ismrmrd.WaveformHeader(version=1, number_of_samples=65535, channels=65535)
    small = bytes(ismrmrd.ImageHeader(version=1, data_type=ismrmrd.DATATYPE_FLOAT, channels=1))
    yield from ((f"{code} of 2**32 - 1", struct.pack("<HI", code, 2**32 - 1)) for code in (2, 3, 5))
    for length in (2**32 - 1, 2**62, 2**64 - 1):
        yield f"query of {length}", struct.pack("<HQQQ", 6, 0, 0, length)
        yield f"response of {length}", struct.pack("<HQQ", 7, 0, length)
        yield f"error of {length}", struct.pack("<HQ", 8, length)
        yield f"dependency query of {length}", struct.pack("<HQ", 1019, length)
        yield f"image attributes of {length}", struct.pack("<H", 1022) + small + struct.pack("<Q", length)
    yield "image", struct.pack("<H", 1022) + bytes(head)
    yield "acquisition", struct.pack("<H", 1008) + bytes(acquisition)
    yield "trajectory", struct.pack("<H", 1008) + bytes(trajectory)
    yield "waveform", struct.pack("<H", 1026) + bytes(waveform)


OVERSIZE = dict(oversize_messages())


class TestLimits:
    @pytest.mark.parametrize("data", OVERSIZE.values(), ids=OVERSIZE.keys())
    def test_refused_at_once_and_for_nothing(self, data):
        tracemalloc.start()
        try:
            with pytest.raises(TooLarge, match=r"declares \d+ bytes, the limit is \d+"):
                parse(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 2**20

    def test_memory_grows_with_what_came_not_with_what_was_declared(self):
        head = ismrmrd.ImageHeader(version=1, data_type=ismrmrd.DATATYPE_FLOAT, channels=1)
        head.matrix_size = (16384, 16384, 1)
        parser = Parser(role="client")
        tracemalloc.start()
        try:
            assert list(parser.feed(struct.pack("<H", 1022) + bytes(head) + bytes(8) + bytes(1000))) == []
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 2**20

    @pytest.mark.parametrize(
        ("limit", "message"),
        [
            ("config_text", ConfigText("x" * 100)),
            ("header", Header(b"x" * 100)),
            ("text", Text("x" * 100)),
            ("text", Response(1, "x" * 100)),
            ("text", Error("x" * 100)),
            ("query", Query("x" * 100, 1)),
            ("meta", DependencyQuery("x" * 100)),
            ("acquisition", an_acquisition(channels=3, samples=4, dimensions=1, scan_counter=1)),
            ("image", an_image(np.float32, (1, 1, 5, 5))),
            ("waveform", a_waveform(channels=5, samples=5)),
        ],
        ids=lambda value: value if isinstance(value, str) else type(value).__name__,
    )
    def test_exact(self, limit, message):
        size = 8 * 12 + 4 * 4 if limit == "acquisition" else 100
        assert parse(serialise(message), **{limit: size}) == [message]
        with pytest.raises(TooLarge, match=f"declares {size} bytes, the limit is {size - 1}"):
            parse(serialise(message), **{limit: size - 1})

    def test_all_positive(self):
        assert all(getattr(Limits(), field.name) > 0 for field in fields(Limits))


class TestOrder:
    def test_a_scan_passes(self):
        assert parse(wire(*SCAN), role="server") == list(SCAN)

    def test_states(self):
        parser = Parser()
        seen = [parser.state]
        for message in (ConfigFile("x"), Text("y"), Header(b"z"), an_acquisition(), Close()):
            list(parser.feed(serialise(message)))
            seen.append(parser.state)
        assert seen == [State.CONFIG, State.HEADER, State.HEADER, State.STREAM, State.STREAM, State.CLOSED]

    @pytest.mark.parametrize(
        ("messages", "text"),
        [
            ((Header(b""),), "Received ISMRMRD header before config file."),
            ((*OPENING, Header(b"")), "Received second ISMRMRD header. Only one allowed."),
            ((ConfigFile("a"), ConfigFile("a")), "Received second config file. Only one allowed."),
            ((*OPENING, ConfigText("a")), "Received second config file. Only one allowed."),
            ((an_acquisition(),), "Received ACQUISITION before config and ISMRMRD header."),
            ((ConfigFile("a"), an_acquisition()), "Received ACQUISITION before ISMRMRD header."),
            ((ConfigFile("a"), a_waveform()), "Received WAVEFORM before ISMRMRD header."),
            ((ConfigFile("a"), an_image()), "Received IMAGE before ISMRMRD header."),
            ((*OPENING, Response(1, "a")), "Received RESPONSE, which a client does not send."),
            ((*OPENING, Error("a")), "Received ERROR, which a client does not send."),
            ((DependencyQuery("a"),), "Received DEPENDENCY_QUERY, which a client does not send."),
        ],
    )
    def test_violations(self, messages, text):
        parser = Parser()
        stream = parser.feed(wire(*messages))
        assert [next(stream) for _ in messages[:-1]] == list(messages[:-1])
        with pytest.raises(OutOfOrder) as caught:
            next(stream)
        assert str(caught.value) == text

    def test_a_violation_is_told_before_the_body_came(self):
        with pytest.raises(OutOfOrder):
            parse(struct.pack("<H", 1008), role="server")

    @pytest.mark.parametrize("before", [(), OPENING[:1], OPENING], ids=["config", "header", "stream"])
    @pytest.mark.parametrize("message", [Query("a", 1), Text("a"), Close()], ids=["query", "text", "close"])
    def test_allowed_at_any_time(self, before, message):
        assert parse(wire(*before, message), role="server") == [*before, message]

    def test_a_client_takes_any_order(self):
        messages = [an_image(), Header(b"x"), Header(b"x"), Text("a"), ConfigFile("a"), Close()]
        assert parse(wire(*messages)) == messages


class TestEnds:
    def test_closed(self):
        parser = Parser()
        assert list(parser.feed(wire(ConfigFile("a"), Close()))) == [ConfigFile("a"), Close()]
        assert parser.end() is Ending.CLOSED

    @pytest.mark.parametrize("messages", [(), OPENING])
    def test_vanished(self, messages):
        parser = Parser()
        assert list(parser.feed(wire(*messages))) == list(messages)
        assert parser.end() is Ending.VANISHED

    def test_truncated_says_where(self):
        parser = Parser(role="client")
        list(parser.feed(acquisition_bytes()[:-1]))
        with pytest.raises(Truncated, match="inside ACQUISITION: 71 of the next 72 bytes"):
            parser.end()

    def test_broken(self):
        parser = Parser()
        with pytest.raises(UnknownMessage):
            list(parser.feed(b"\xff\xff"))
        assert parser.end() is Ending.BROKEN

    def test_what_follows_close_is_ignored(self):
        parser = Parser()
        assert list(parser.feed(wire(Close()) + b"\xff\xff garbage")) == [Close()]
        assert list(parser.feed(b"more")) == []
        assert parser.end() is Ending.CLOSED

    def test_what_follows_an_error_is_ignored(self):
        parser = Parser()
        with pytest.raises(UnknownMessage):
            list(parser.feed(b"\xff\xff"))
        assert list(parser.feed(wire(*SCAN))) == []
        assert parser.state is State.BROKEN

    def test_draining_a_peer_costs_no_memory(self):
        parser = Parser()
        list(parser.feed(wire(Close())))
        piece = bytes(2**16)
        tracemalloc.start()
        try:
            for _ in range(100):
                list(parser.feed(piece))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 2**16

    def test_messages_before_an_error_are_delivered(self):
        stream = Parser().feed(wire(*OPENING) + b"\xff\xff")
        assert [next(stream), next(stream)] == list(OPENING)
        with pytest.raises(UnknownMessage):
            next(stream)

    def test_messages_not_taken_come_next_time(self):
        parser = Parser()
        assert next(parser.feed(wire(*SCAN))) == SCAN[0]
        assert list(parser.feed(b"")) == list(SCAN[1:])


class TestNonsense:
    @pytest.mark.parametrize(
        ("data", "hint"),
        [
            (b"GET / HTTP/1.1\r\n", "17735: this looks like an HTTP GET request"),
            (b"\x16\x03\x01\x02\x00", "TLS"),
            (b"\x00\x01default.xml", "256: this looks like a big-endian id"),
            (struct.pack("<H", 1023), "ReconData, which is not supported"),
            (struct.pack("<H", 1030), "NDArray, which is not supported"),
            (struct.pack("<H", 0), "unknown message id 0: this is not an MRD v1 stream"),
            (wire(Text("a")) + b"zz", "unknown message id 31354 after TEXT"),
        ],
    )
    def test_unknown_ids_are_named(self, data, hint):
        with pytest.raises(UnknownMessage, match=hint):
            parse(data)

    def test_wrong_number_of_samples_is_noticed(self):
        data = bytearray(acquisition_bytes() * 2)
        struct.pack_into("<H", data, 2 + 34, 2)
        with pytest.raises(UnknownMessage, match="after ACQUISITION"):
            parse(data)

    @pytest.mark.parametrize("flag", [ismrmrd.ACQ_COMPRESSION1, ismrmrd.ACQ_COMPRESSION2])
    def test_compressed_acquisitions_are_refused(self, flag):
        with pytest.raises(Malformed, match=f"compressed .flag {flag}."):
            parse(acquisition_bytes(flags=1 << (flag - 1)))

    @pytest.mark.parametrize("version", [0, 1, 8, 15])
    def test_versions_that_writers_use(self, version):
        (acquisition,) = parse(acquisition_bytes(version=version))
        assert acquisition.version == version

    @pytest.mark.parametrize("make", [an_acquisition, a_waveform, an_image])
    def test_versions_that_nobody_writes(self, make):
        data = bytearray(serialise(make()))
        struct.pack_into("<H", data, 2, 0x3F80)
        with pytest.raises(Malformed, match="version 16256"):
            parse(data)

    def test_reserved_bytes_of_a_query(self):
        with pytest.raises(Malformed, match="Unsupported value in reserved bytes"):
            parse(struct.pack("<HQQQ", 6, 1, 0, 0))

    def test_every_kind_is_an_inrecon_error(self):
        kinds = (Truncated, UnknownMessage, OutOfOrder, TooLarge, Malformed)
        assert all(issubclass(kind, ProtocolError) for kind in kinds)
        assert issubclass(ProtocolError, InreconError)


def image_bytes(attributes=b"", data_type=ismrmrd.DATATYPE_FLOAT, pixels=b"\0" * 4):
    head = ismrmrd.ImageHeader(version=1, data_type=data_type, channels=1)
    head.matrix_size = (1, 1, 1)
    return struct.pack("<H", 1022) + bytes(head) + struct.pack("<Q", len(attributes)) + attributes + pixels


class TestImages:
    @pytest.mark.parametrize(
        ("data_type", "dtype"),
        [(1, "<u2"), (2, "<i2"), (3, "<u4"), (4, "<i4"), (5, "<f4"), (6, "<f8"), (7, "<c8"), (8, "<c16")],
    )
    def test_every_data_type_by_its_bytes(self, data_type, dtype):
        pixel = np.array([3], dtype)
        data = image_bytes(data_type=data_type, pixels=pixel.tobytes())
        image, after = parse(data + serialise(Text("in step")))
        assert after == Text("in step")
        assert image.data.shape == (1, 1, 1, 1)
        assert image.data.ravel() == pixel
        assert image.data_type == data_type
        assert serialise(image) == data

    def test_int32_extremes_survive(self):
        extremes = np.array([[-(2**31), 2**31 - 1]])
        image = Image.from_array(extremes, transpose=False)
        data = serialise(image)
        assert data.endswith(extremes.astype("<i4").tobytes())
        assert len(data) == 2 + 198 + 8 + 2 * 4
        assert parse(data) == [image]

    def test_integers_beyond_int32_are_not_sent(self):
        with pytest.raises(Malformed, match="do not fit int32"):
            serialise(Image.from_array(np.array([2**31]), transpose=False))

    @pytest.mark.parametrize("data_type", [0, 9, 65535])
    def test_unknown_data_type(self, data_type):
        with pytest.raises(Malformed, match=f"data type {data_type}; known are 1 .. 8"):
            parse(image_bytes(data_type=data_type))

    def test_attributes_may_end_in_nuls(self):
        (image,) = parse(image_bytes(an_image(a="µ").attribute_string.encode() + b"\0"))
        assert image.meta == {"a": "µ"}

    def test_attributes_of_nothing_but_a_nul(self):
        (image,) = parse(image_bytes(b"\0"))
        assert image.meta == {}

    def test_attributes_in_latin1(self):
        raw = "<ismrmrdMeta><meta><name>a</name><value>µ</value></meta></ismrmrdMeta>".encode("latin-1")
        (image,) = parse(image_bytes(raw))
        assert image.meta == {"a": "µ"}

    @pytest.mark.parametrize(
        "attributes",
        [
            b"plain text",
            b"<other/>",
            b"<ismrmrdMeta><meta></meta></ismrmrdMeta>",
            b"<ismrmrdMeta>",
            b"a\0b",
            b"<a>" * 100_000,
        ],
    )
    def test_attributes_that_are_none(self, attributes):
        with pytest.raises(Malformed, match="not ISMRMRD Meta XML"):
            parse(image_bytes(attributes))

    def test_attributes_with_entities(self):
        bomb = b'<!DOCTYPE a [<!ENTITY b "bbbb">]><ismrmrdMeta><meta><name>&b;</name></meta></ismrmrdMeta>'
        with pytest.raises(Malformed, match="DOCTYPE"):
            parse(image_bytes(bomb))


class TestArrays:
    def test_parsed_arrays_are_the_receivers_own(self):
        data = bytearray(wire(an_acquisition(), an_image(), a_waveform()))
        messages = list(Parser(role="client").feed(data))
        data[:] = bytes(len(data))
        assert messages == [an_acquisition(), an_image(), a_waveform()]
        for message in messages:
            message.data[:] = 0
        messages[0].traj[:] = 0

    def test_a_view_that_is_not_contiguous_is_sent_in_order(self):
        data = np.arange(6, dtype=np.complex64).reshape(2, 3)
        head = Acquisition.from_array(data).getHead()
        assert serialise(Acquisition(head, np.asfortranarray(data))) == serialise(Acquisition(head, data))

    def test_double_precision_is_sent_as_single(self):
        data = np.arange(6, dtype=np.complex64).reshape(2, 3)
        head = Acquisition.from_array(data).getHead()
        assert serialise(Acquisition(head, data.astype(complex))) == serialise(Acquisition(head, data))

    def test_an_array_that_contradicts_its_header_is_not_sent(self):
        head = an_acquisition(channels=2, samples=3).getHead()
        with pytest.raises(Malformed, match="header declares"):
            serialise(Acquisition(head, np.zeros((2, 4), np.complex64)))

    def test_a_large_message_in_small_pieces(self):
        acquisition = an_acquisition(channels=32, samples=4096, dimensions=0)
        assert parse(serialise(acquisition), step=1000) == [acquisition]

    def test_what_is_no_message(self):
        with pytest.raises(TypeError, match="str is not a message"):
            serialise("text")


def survives(data, role, step):
    """Parse to the end; whatever else than `ProtocolError` is raised fails the test."""
    parser = Parser(Limits(image=2**20, acquisition=2**20), role=role)
    try:
        for start in range(0, len(data), step):
            for _ in parser.feed(data[start : start + step]):
                pass
        parser.end()
    except ProtocolError as error:
        assert str(error)  # noqa: PT017 - most inputs raise, some do not; both are right


SCRAPS = [
    "<ismrmrdMeta>",
    "</ismrmrdMeta>",
    "<meta>",
    "</meta>",
    "<name>",
    "</name>",
    "<value>",
    "</value>",
    "a",
    "&lt;",
    "&#0;",
    "<!--",
    "-->",
]
SCRAPS += [" ", "<?xml version='1.0' encoding='x'?>"]
printable = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_categories=["Cc"]), max_size=9)
roles = st.sampled_from(["server", "client"])
steps = st.sampled_from([1, 13, 4096])
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


class TestAnyBytes:
    @fuzz
    @given(data=st.binary(max_size=2000), role=roles, step=steps)
    def test_garbage(self, data, role, step):
        survives(data, role, step)

    @fuzz
    @given(kind=st.sampled_from(MessageId), data=st.binary(min_size=1, max_size=1500), role=roles, step=steps)
    def test_garbage_behind_an_id(self, kind, data, role, step):
        opening = wire(*OPENING) if role == "server" else b""
        survives(opening + struct.pack("<H", kind) + data * 3, role, step)

    @fuzz
    @given(edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4), st.binary(max_size=4)), max_size=4), step=steps)
    def test_mutated_scans(self, edits, step):
        data = wire(*SCAN)
        for where, cut, put in edits:
            at = int(where * len(data))
            data = data[:at] + put + data[at + cut :]
        survives(data, "server", step)

    @fuzz
    @given(xml=st.lists(st.sampled_from(SCRAPS), max_size=12))
    def test_attributes_of_images(self, xml):
        survives(image_bytes("".join(xml).encode()), "client", 4096)


class TestAnyPieces:
    @fuzz
    @given(cuts=st.lists(st.integers(0, len(wire(*SCAN))), max_size=12))
    def test_a_scan_comes_back_however_it_is_cut(self, cuts):
        data = wire(*SCAN)
        edges = [0, *sorted(cuts), len(data)]
        parser = Parser()
        messages = [m for a, b in pairwise(edges) for m in parser.feed(data[a:b])]
        assert messages == list(SCAN)
        assert parser.end() is Ending.CLOSED


class TestAnyMessage:
    @fuzz
    @given(text=words, number=st.integers(0, 2**64 - 1))
    def test_texts_come_back(self, text, number):
        messages = [
            Text(text),
            ConfigText(text),
            Error(text),
            DependencyQuery(text),
            Query(text, number),
            Response(number, text),
            Header(text.encode()),
        ]
        assert parse(wire(*messages)) == messages

    @fuzz
    @given(channels=st.integers(0, 4), samples=st.integers(0, 9), dimensions=st.integers(0, 4))
    def test_acquisitions_and_waveforms_come_back(self, channels, samples, dimensions):
        messages = [an_acquisition(channels, samples, dimensions), a_waveform(channels, samples)]
        assert parse(wire(*messages)) == messages

    @fuzz
    @given(
        shape=st.tuples(*[st.integers(0, 3)] * 4),
        dtype=st.sampled_from(["u2", "i2", "u4", "i8", "f4", "f8", "c8", "c16"]),
        meta=st.dictionaries(st.sampled_from(["DataRole", "WindowCenter", "_"]), printable),
    )
    def test_images_come_back(self, shape, dtype, meta):
        image = an_image(dtype, shape, **meta)
        assert parse(serialise(image)) == [image]
