import contextlib
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inrecon.acquire import Encoding, Limits, NotCartesian, parse_header
from inrecon.errors import InvalidHeader
from inrecon.events import listening

REAL_FILE = Path(__file__).parents[2] / ".." / "shared" / "data" / "phantom_14ch_bssfp_R3_noise.h5"

BODY = """<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
  <subjectInformation><patientID>p1</patientID></subjectInformation>
  <studyInformation><studyID>s1</studyID><bodyPartExamined>HEAD</bodyPartExamined></studyInformation>
  <measurementInformation>
    <measurementID>m1</measurementID><patientPosition>HFS</patientPosition><protocolName>t2_tse</protocolName>
    <measurementDependency>
      <dependencyType>SenMap</dependencyType><measurementID>m9</measurementID>
    </measurementDependency>
    <measurementDependency>
      <dependencyType>NOISE</dependencyType><measurementID>m7</measurementID>
    </measurementDependency>
  </measurementInformation>
  <acquisitionSystemInformation>
    <systemVendor>ACME</systemVendor><systemFieldStrength_T>1.5</systemFieldStrength_T>
    <relativeReceiverNoiseBandwidth>0.9</relativeReceiverNoiseBandwidth><receiverChannels>16</receiverChannels>
    <coilLabel><coilNumber>22</coilNumber><coilName>Head:H2</coilName></coilLabel>
    <coilLabel><coilNumber>21</coilNumber><coilName>Head:H1</coilName></coilLabel>
    <deviceID>d1</deviceID>
  </acquisitionSystemInformation>
  <experimentalConditions><H1resonanceFrequency_Hz>63866217</H1resonanceFrequency_Hz></experimentalConditions>
  <encoding>
    <encodedSpace>
      <matrixSize><x>384</x><y>144</y><z>12</z></matrixSize>
      <fieldOfView_mm><x>560</x><y>210</y><z>96</z></fieldOfView_mm>
    </encodedSpace>
    <reconSpace>
      <matrixSize><x>192</x><y>144</y><z>10</z></matrixSize>
      <fieldOfView_mm><x>280</x><y>210</y><z>80</z></fieldOfView_mm>
    </reconSpace>
    <encodingLimits>
      <kspace_encoding_step_1><minimum>2</minimum><maximum>105</maximum><center>54</center></kspace_encoding_step_1>
      <kspace_encoding_step_2><minimum>0</minimum><maximum>9</maximum><center>5</center></kspace_encoding_step_2>
      <average><minimum>0</minimum><maximum>1</maximum><center>0</center></average>
      <slice><minimum>0</minimum><maximum>2</maximum><center>0</center></slice>
      <contrast><minimum>0</minimum><maximum>3</maximum><center>0</center></contrast>
      <phase><minimum>0</minimum><maximum>4</maximum><center>0</center></phase>
      <repetition><minimum>0</minimum><maximum>5</maximum><center>0</center></repetition>
      <set><minimum>0</minimum><maximum>6</maximum><center>0</center></set>
    </encodingLimits>
    <trajectory>cartesian</trajectory>
    <parallelImaging>
      <accelerationFactor>
        <kspace_encoding_step_1>3</kspace_encoding_step_1><kspace_encoding_step_2>2</kspace_encoding_step_2>
      </accelerationFactor>
      <calibrationMode>separate</calibrationMode>
    </parallelImaging>
  </encoding>
  <sequenceParameters><TR>5</TR><sequence_type>TSE</sequence_type></sequenceParameters>
</ismrmrdHeader>"""
XML = '<?xml version="1.0" encoding="utf-8"?>\n' + BODY
ELEMENTS = sorted(set(re.findall(r"<(\w+)>", BODY)))
LIMITS_1 = "<minimum>2</minimum><maximum>105</maximum><center>54</center>"
SPACE = re.compile(r"<encodedSpace>.*</encodedSpace>", re.DOTALL)


def swapped(old: str, new: str, xml: str = XML) -> bytes:
    assert old in xml
    return xml.replace(old, new, 1).encode()


def test_every_fact_is_read():
    scan = parse_header(XML.encode())
    assert (scan.protocol_name, scan.sequence, scan.anatomy) == ("t2_tse", "TSE", "HEAD")
    assert (scan.vendor, scan.field_strength_T) == ("ACME", 1.5)
    assert scan.relative_bandwidth == 0.9
    assert (scan.measurement_id, scan.device_id, scan.subject_id, scan.study_id) == ("m1", "d1", "p1", "s1")
    assert scan.coil_labels == ("Head:H2", "Head:H1")
    assert scan.noise_dependencies == ("m7",)
    (encoding,) = scan.encodings
    assert encoding.geometry.encoded_matrix == (384, 144, 12)
    assert encoding.geometry.encoded_fov_mm == (560, 210, 96)
    assert encoding.geometry.recon_matrix == (192, 144, 10)
    assert encoding.geometry.recon_fov_mm == (280, 210, 80)
    assert encoding.matrix == (144, 192)
    assert encoding.step_1 == Limits(minimum=2, maximum=105, center=54)
    assert encoding.step_2 == Limits(minimum=0, maximum=9, center=5)
    assert (encoding.averages, encoding.calibration_mode) == (2, "separate")
    assert encoding.calibrates_apart


@pytest.mark.parametrize(
    "wrap",
    [
        lambda body: body.encode() + b"\0",
        lambda body: body.encode() + b"\0\0\n\0",
        lambda body: b"\xef\xbb\xbf" + body.encode(),
        lambda body: b'<?xml version="1.0" encoding="ascii"?>' + body.encode(),
        lambda body: b'\xef\xbb\xbf<?xml version="1.0" encoding="ascii"?>' + body.encode(),
        lambda body: body.encode("latin-1"),
        lambda body: b'<?xml version="1.0" encoding="utf-8"?>\n' + body.encode("latin-1") + b"\0",
    ],
    ids=["NUL", "NULs", "byte order mark", "wrong declaration", "both", "Latin-1", "Latin-1 declared UTF-8"],
)
def test_wrappings_and_encodings_do_not_change_the_scan(wrap):
    body = BODY.replace("t2_tse", "Schädel")
    assert parse_header(wrap(body)) == parse_header(body.encode())
    assert parse_header(wrap(body)).protocol_name == "Schädel"


@pytest.mark.parametrize("parent", ["encoding", "measurementInformation", "encodedSpace", "sequenceParameters"])
def test_unknown_elements_do_not_change_the_scan(parent):
    extended = swapped(f"<{parent}>", f"<{parent}><vendorThing a='1'><deep>7</deep></vendorThing>")
    assert parse_header(extended) == parse_header(XML.encode())


def test_what_the_header_does_not_say_is_none_or_a_stated_default():
    bare = re.sub(
        r"\s*<(subjectInformation|studyInformation|measurementInformation|acquisitionSystemInformation|sequenceParameters)>.*?</\1>",
        "",
        XML,
        flags=re.DOTALL,
    )
    bare = re.sub(r"<parallelImaging>.*</parallelImaging>", "", bare, flags=re.DOTALL)
    bare = re.sub(r"<encodingLimits>.*</encodingLimits>", "<encodingLimits/>", bare, flags=re.DOTALL)
    scan = parse_header(bare.encode())
    (encoding,) = scan.encodings
    assert scan == type(scan)(encodings=scan.encodings)
    assert scan.relative_bandwidth == 0.793
    assert encoding.step_1 == Limits(minimum=0, maximum=143, center=72)
    assert encoding.step_2 == Limits(minimum=0, maximum=11, center=6)
    assert (encoding.averages, encoding.calibration_mode) == (None, None)
    assert not encoding.calibrates_apart


def test_limits_of_zeros_count_as_unstated_where_there_is_more_than_one_line():
    zeros = parse_header(swapped(LIMITS_1, "<minimum>0</minimum><maximum>0</maximum><center>0</center>"))
    assert zeros.encodings[0].step_1 == Limits(minimum=0, maximum=143, center=72)


def test_limits_of_one_step_are_stated():
    one = parse_header(swapped(LIMITS_1, "<minimum>7</minimum><maximum>7</maximum><center>7</center>"))
    assert one.encodings[0].step_1 == Limits(minimum=7, maximum=7, center=7)


def test_several_encodings_keep_their_order():
    encoding = re.search(r"<encoding>.*</encoding>", XML, re.DOTALL)
    second = encoding.group().replace("<y>144</y>", "<y>160</y>")
    scan = parse_header(XML.replace(encoding.group(), encoding.group() + second).encode())
    assert [e.geometry.encoded_matrix[1] for e in scan.encodings] == [144, 160]


OTHER_TRAJECTORIES = ["radial", "goldenangle", "spiral", "epi", "other", "helix"]


@pytest.mark.parametrize("trajectory", OTHER_TRAJECTORIES)
def test_a_scan_of_other_trajectories_only_is_refused_by_their_names(trajectory):
    with pytest.raises(InvalidHeader, match=f"cartesian.*{trajectory}"):
        parse_header(swapped("<trajectory>cartesian", f"<trajectory>{trajectory}"))


@pytest.mark.parametrize("trajectory", OTHER_TRAJECTORIES)
@pytest.mark.parametrize("limits", [LIMITS_1, LIMITS_1.replace(">54<", ">1000<")], ids=["sound", "of another meaning"])
def test_another_trajectory_beside_a_cartesian_one_keeps_its_number(trajectory, limits):
    section = re.search(r"<encoding>.*</encoding>", XML, re.DOTALL).group()
    other = section.replace("<trajectory>cartesian", f"<trajectory>{trajectory}").replace(LIMITS_1, limits)
    (cartesian,) = parse_header(XML.encode()).encodings
    for pair, index in (((other, section), 0), ((section, other), 1)):
        encodings = parse_header(XML.replace(section, "".join(pair)).encode()).encodings
        assert encodings[index] == NotCartesian(trajectory=trajectory)
        assert encodings[1 - index] == cartesian


TWO_D = XML.replace("<z>12</z>", "<z>1</z>").replace("<z>10</z>", "<z>1</z>")


@pytest.mark.parametrize(
    ("encoded", "recon", "expected"),
    [
        ("<z>0</z>", "<z>5</z>", (5, 5)),
        ("<z>4</z>", "<z>0</z>", (4, 4)),
        ("<z>0</z>", "<z>0</z>", (1, 1)),
        ("", "", (1, 1)),
        ("", "<z>5</z>", (5, 5)),
        ("<z>NaN</z>", "<z>-1</z>", (1, 1)),
        ("<z>6</z>", "<z>3</z>", (6, 3)),
    ],
)
def test_a_slice_may_have_no_thickness(encoded, recon, expected):
    xml = swapped("<z>80</z>", recon, swapped("<z>96</z>", encoded, TWO_D).decode())
    geometry = parse_header(xml).encodings[0].geometry
    assert (geometry.encoded_fov_mm[2], geometry.recon_fov_mm[2]) == expected
    assert (geometry.encoded_fov_mm[:2], geometry.recon_fov_mm[:2]) == ((560, 210), (280, 210))


@pytest.mark.parametrize("thickness", ["<z>96</z>", "<z>80</z>"])
@pytest.mark.parametrize("unstated", ["<z>0</z>", ""])
def test_a_volume_must_have_one(thickness, unstated):
    with pytest.raises(InvalidHeader, match="fields of view must be positive"):
        parse_header(swapped(thickness, unstated))


@pytest.mark.parametrize(
    ("limits", "lines"),
    [
        (LIMITS_1, 104 * 10),
        ("<minimum>0</minimum><maximum>143</maximum><center>72</center>", 144 * 10),
        ("<minimum>0</minimum><maximum>150</maximum><center>72</center>", 144 * 10),
        ("<minimum>0</minimum><maximum>143</maximum><center>70</center>", 142 * 10),
        ("<minimum>0</minimum><maximum>143</maximum><center>80</center>", 136 * 10),
    ],
)
def test_a_full_frame_has_the_lines_that_limits_and_matrix_share(limits, lines):
    (encoding,) = parse_header(swapped(LIMITS_1, limits)).encodings
    assert encoding.lines == lines


@pytest.mark.parametrize("mode", ["embedded", "interleaved", "separate", "external", "other"])
def test_calibration_modes_are_the_schemas(mode):
    encoding = parse_header(swapped(">separate<", f">{mode}<")).encodings[0]
    assert encoding.calibration_mode == mode
    assert encoding.calibrates_apart == (mode in ("separate", "external"))


def test_an_unknown_calibration_mode_is_other():
    assert parse_header(swapped(">separate<", ">sometimes<")).encodings[0].calibration_mode == "other"


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("<x>384</x><y>144</y>", "<x>65535</x><y>65535</y>", r"65535 x 65535 x 12.*limit is 8 GiB"),
        ("<x>384</x>", "<x>0</x>", "positive"),
        ("<x>384</x>", "<x>-384</x>", "encoding 0, encodedSpace matrixSize x must be a whole number.*-384"),
        ("<x>384</x>", "<x>many</x>", "matrixSize x must be a whole number.*many"),
        ("<x>384</x>", "<x>3.5</x>", "matrixSize x must be a whole number.*3.5"),
        ("<x>384</x>", f"<x>{'9' * 400}</x>", "matrixSize x must be a whole number"),
        ("<x>192</x><y>144</y>", "<x>65535</x><y>65535</y>", "reconSpace.*limit is 8 GiB"),
        ("<x>560</x>", "<x>0</x>", "fields of view must be positive"),
        ("<x>560</x>", "<x>NaN</x>", "fields of view must be positive"),
        ("<x>560</x>", "<x>INF</x>", "fields of view must be positive"),
        ("<x>280</x>", "<x>-280</x>", "fields of view must be positive"),
        (LIMITS_1, LIMITS_1.replace(">54<", ">1<"), "kspace_encoding_step_1: the center, 1, must lie in .* 2 to 105"),
        (LIMITS_1, LIMITS_1.replace(">54<", ">106<"), "center, 106"),
        (LIMITS_1, LIMITS_1.replace(">105<", ">x<"), "kspace_encoding_step_1 maximum must be a whole number"),
        ("<maximum>1<", "<maximum>70000<", "average maximum must be a whole number from 0 to 65535"),
        ("<x>192</x>", "<x>30000</x>", "images are interpolated 8 times at most"),
        ("<matrixSize>", "<matrixSized>", "mismatched tag"),
    ],
)
def test_what_cannot_be_reconstructed_is_refused_with_the_reason(old, new, match):
    with pytest.raises(InvalidHeader, match=match):
        parse_header(swapped(old, new))


def test_no_encoding_is_refused():
    with pytest.raises(InvalidHeader, match="no encoding section"):
        parse_header(re.sub(r"<encoding>.*</encoding>", "", XML, flags=re.DOTALL).encode())


@pytest.mark.parametrize("missing", ["encodedSpace", "reconSpace", "trajectory", "experimentalConditions"])
def test_mandatory_elements_are_named(missing):
    with pytest.raises(InvalidHeader, match=f"lacks mandatory elements: {missing} in "):
        parse_header(re.sub(rf"<{missing}>.*</{missing}>", "", XML, flags=re.DOTALL).encode())


def test_a_header_outside_the_namespace_is_told_so():
    with pytest.raises(InvalidHeader, match=r"namespace http://www\.ismrm\.org/ISMRMRD"):
        parse_header(swapped(' xmlns="http://www.ismrm.org/ISMRMRD"', ""))


@pytest.mark.parametrize(
    "xml",
    [
        '<!DOCTYPE a [<!ENTITY b "c">]>' + BODY,
        '<?xml version="1.0"?>\n<!doctype a SYSTEM "file:///etc/passwd">' + BODY,
        BODY.replace("t2_tse", "<!ENTITY"),
    ],
)
def test_document_types_and_entities_are_refused(xml):
    with pytest.raises(InvalidHeader, match="DOCTYPE"):
        parse_header(xml.encode())


def test_document_types_hidden_by_utf_16_are_not_obeyed():
    bomb = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY b "t2">]>' + BODY.replace("t2_tse", "&b;")
    with pytest.raises(InvalidHeader):
        parse_header(bomb.encode("utf-16"))


@pytest.mark.parametrize("xml", [b"", b"\0", b"not xml", b"<a/>", XML.encode()[:1000], b"\xff\xfe\0\0", b"{}"])
def test_other_bytes_are_refused(xml):
    with pytest.raises(InvalidHeader):
        parse_header(xml)


def test_values_of_the_wrong_kind_that_do_not_matter_neither_refuse_nor_reach_a_log():
    heard = []
    with listening(heard.append):
        scan = parse_header(
            swapped("<studyInformation>", "<studyInformation><accessionNumber>secret</accessionNumber>")
        )
    assert scan == parse_header(XML.encode())
    assert heard == []


@pytest.mark.parametrize("value", ["-1", "0", "INF", "NaN", "strong"])
def test_senseless_system_facts_are_unknown(value):
    assert parse_header(swapped(">1.5<", f">{value}<")).field_strength_T is None
    assert parse_header(swapped(">0.9<", f">{value}<")).relative_bandwidth == 0.793


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("attribute", ['xsi:nil="true"', 'xsi:type="limitType"', 'xsi:type="accelerationFactorType"'])
def test_elements_of_another_type_are_survived(element, attribute):
    with contextlib.suppress(InvalidHeader):
        assert parse_header(XML.replace(f"<{element}>", f"<{element} {attribute}>").encode()).encodings


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(XML)), st.integers(0, 40), st.binary(max_size=12))
def test_any_damage_gives_a_scan_or_invalid_header(at, length, put):
    damaged = XML.encode()
    damaged = damaged[:at] + put + damaged[at + length :]
    try:
        scan = parse_header(damaged)
    except InvalidHeader:
        return
    assert all(0 < n <= 65535 for e in scan.encodings if isinstance(e, Encoding) for n in e.geometry.encoded_matrix)


@pytest.mark.parametrize("kind", ["Noise", "noise", "nOISE"])
def test_noise_scans_are_named_once_each_in_order_whatever_the_case(kind):
    names = "".join(
        f"<measurementDependency><dependencyType>{kind}</dependencyType><measurementID>{name}</measurementID>"
        "</measurementDependency>"
        for name in ("m3", "", " m7 ", "m2")
    )
    scan = parse_header(swapped("<measurementDependency>", f"{names}<measurementDependency>"))
    assert scan.noise_dependencies == ("m3", "m7", "m2")


def test_coils_keep_their_order_and_places_even_without_a_name():
    label = "<coilLabel><coilNumber>1</coilNumber><coilName/></coilLabel>"
    assert parse_header(swapped("<coilLabel>", f"{label}<coilLabel>")).coil_labels == ("", "Head:H2", "Head:H1")


def test_identifiers_do_not_show():
    shown = repr(parse_header(XML.encode()))
    assert "t2_tse" in shown
    for secret in ("m1", "m7", "d1", "p1", "s1"):
        assert f"'{secret}'" not in shown


def test_a_scan_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse_header(XML.encode()).vendor = "other"


def test_the_room_does_not_import_torch():
    code = "import sys, inrecon.acquire; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_scanners_header():
    if not REAL_FILE.exists():
        pytest.skip(f"{REAL_FILE.name} is not here")
    h5py = pytest.importorskip("h5py")
    with h5py.File(REAL_FILE, "r") as file:
        scan = parse_header(bytes(file["dataset/xml"][0]))
    (encoding,) = scan.encodings
    assert encoding.matrix == (144, 192)
    assert encoding.step_1 == Limits(minimum=0, maximum=105, center=54)
    assert encoding.calibration_mode == "embedded"
    assert (scan.sequence, scan.vendor) == ("SSFP", "SIEMENS")
