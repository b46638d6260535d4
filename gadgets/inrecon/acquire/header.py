"""The bytes of an ISMRMRD header to a checked `Scan`."""

import math
import re
import sys
import warnings
from collections.abc import Iterable
from typing import Any, TypeVar

from ismrmrd.xsd import fieldOfViewMm, ismrmrdHeader
from xsdata.exceptions import ConverterWarning, ParserError
from xsdata.formats.dataclass.context import XmlContext
from xsdata.formats.dataclass.parsers import XmlParser
from xsdata.formats.dataclass.parsers.config import ParserConfig
from xsdata.formats.dataclass.parsers.handlers import XmlEventHandler

from inrecon.acquire.scan import (
    CALIBRATION_MODES,
    FRAME_BYTES_LIMIT,
    SAMPLE_BYTES,
    CalibrationMode,
    Encoding,
    Limits,
    NotCartesian,
    Scan,
)
from inrecon.errors import InvalidFrame, InvalidHeader
from inrecon.frame import Geometry

NAMESPACE = "http://www.ismrm.org/ISMRMRD"
RELATIVE_BANDWIDTH = 0.793  # what Gadgetron assumes where a header does not say
_CONTEXT = XmlContext()  # what xsdata learns of the schema's classes, once
_COUNTER_MAX = 2**16 - 1  # counters and sizes are unsigned short on the wire
# A scanner doubles or quadruples the matrix; far more would let a small scan ask for any amount of memory.
MOST_INTERPOLATION = 8
_UNSTATED_SLICE_MM = 1.0

T = TypeVar("T")


def parse_header(xml: bytes) -> Scan:
    """The scan that an ISMRMRD XML header describes.

    Takes UTF-8 or Latin-1, NUL-terminated or not, and unknown elements. Raises `InvalidHeader` if it is not such a
    header, declares a document type or entities, describes no Cartesian encoding space, or one of sizes that cannot be
    reconstructed.
    """
    header = _deserialise(_decode(xml))
    if not header.encoding:
        raise InvalidHeader("the header has no encoding section; one for each encoding space is needed")
    system = header.acquisitionSystemInformation
    measurement = header.measurementInformation
    return Scan(
        encodings=_encodings(header.encoding),
        protocol_name=_text(_get(measurement, "protocolName")),
        sequence=_text(_get(header.sequenceParameters, "sequence_type")),
        anatomy=_text(_get(header.studyInformation, "bodyPartExamined")),
        vendor=_text(_get(system, "systemVendor")),
        field_strength_T=_number(_get(system, "systemFieldStrength_T")),
        relative_bandwidth=_number(_get(system, "relativeReceiverNoiseBandwidth")) or RELATIVE_BANDWIDTH,
        coil_labels=tuple(_text(_get(label, "coilName")) or "" for label in _get(system, "coilLabel") or ()),
        measurement_id=_text(_get(measurement, "measurementID")),
        device_id=_text(_get(system, "deviceID")),
        subject_id=_text(_get(header.subjectInformation, "patientID")),
        study_id=_text(_get(header.studyInformation, "studyID")),
        noise_dependencies=_noise_dependencies(_get(measurement, "measurementDependency") or ()),
    )


def _decode(xml: bytes) -> str:
    body = xml.strip(b"\0 \t\r\n")
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = body.decode("latin-1")
    # The declared encoding is often wrong, and the parser is given UTF-8 in any case.
    text = re.sub(r"^<\?xml[^>]*\?>", "", text, count=1)
    if re.search(r"<!(DOCTYPE|ENTITY)", text, flags=re.IGNORECASE):
        raise InvalidHeader("the header declares a document type or entities (<!DOCTYPE, <!ENTITY); ISMRMRD has none")
    return text


def _deserialise(text: str) -> Any:
    """An `ismrmrdHeader`, by the standard library's parser so that an installed lxml changes nothing."""
    config = ParserConfig(fail_on_unknown_properties=False, class_factory=_built)
    parser = XmlParser(config=config, context=_CONTEXT, handler=XmlEventHandler)
    try:
        with warnings.catch_warnings():
            # A value of the wrong kind stays text; the fields that matter are checked below, and the warning's own
            # text would carry patient data into logs.
            warnings.simplefilter("ignore", ConverterWarning)
            header = parser.from_string(text, ismrmrdHeader)
    except ParserError as error:
        raise InvalidHeader(f"the header is not well-formed ISMRMRD XML: {error}") from error
    except TypeError as error:
        raise InvalidHeader(f"the header lacks mandatory elements: {_missing(str(error), text)}") from error
    except ValueError as error:
        raise InvalidHeader("the header holds a value that ISMRMRD does not know") from error
    if not isinstance(header, ismrmrdHeader):
        raise InvalidHeader(f"the header's root element is not ismrmrdHeader but {type(header).__name__}")
    return header


def _built(kind: type[T], fields: dict[str, Any]) -> T:
    """An element of the schema; a field of view may lack the thickness of its slice."""
    if issubclass(kind, fieldOfViewMm):
        fields = {"z": None, **fields}
    return kind(**fields)


def _missing(error: str, text: str) -> str:
    """The names that a constructor's complaint quotes, in words."""
    if NAMESPACE not in text:
        return f"nothing in it is in the namespace {NAMESPACE}"
    where = error.partition(".__init__")[0].removesuffix("Type")
    names = re.findall(r"'(\w+)'", error)
    return f"{', '.join(names)} in {where}"


def _noise_dependencies(dependencies: Iterable[Any]) -> tuple[str, ...]:
    found = (
        _text(_get(one, "measurementID")) for one in dependencies if _choice(_get(one, "dependencyType")) == "noise"
    )
    return tuple(dict.fromkeys(measurement for measurement in found if measurement))


def _encodings(sections: Iterable[Any]) -> tuple[Encoding | NotCartesian, ...]:
    found = tuple(_encoding(section, f"encoding {i}") for i, section in enumerate(sections))
    others = [encoding.trajectory for encoding in found if isinstance(encoding, NotCartesian)]
    if len(others) == len(found):
        raise InvalidHeader(
            f"no encoding of the header is 'cartesian', which alone this version reconstructs, but {', '.join(others)}"
        )
    return found


def _encoding(encoding: Any, where: str) -> Encoding | NotCartesian:
    trajectory = _choice(_get(encoding, "trajectory"))
    if trajectory != "cartesian":
        return NotCartesian(trajectory=trajectory)
    geometry = _geometry(encoding, where)
    _, y, z = geometry.encoded_matrix
    limits = _get(encoding, "encodingLimits")
    average = getattr(_get(limits, "average"), "maximum", None)
    return Encoding(
        geometry=geometry,
        step_1=_limits(_get(limits, "kspace_encoding_step_1"), y, f"{where}, kspace_encoding_step_1"),
        step_2=_limits(_get(limits, "kspace_encoding_step_2"), z, f"{where}, kspace_encoding_step_2"),
        averages=None if average is None else _counter(average, f"{where}, encodingLimits average maximum") + 1,
        calibration_mode=_calibration_mode(_get(encoding, "parallelImaging")),
    )


def _geometry(encoding: Any, where: str) -> Geometry:
    encoded, recon = _get(encoding, "encodedSpace"), _get(encoding, "reconSpace")
    matrix = _matrix(encoded, f"{where}, encodedSpace matrixSize")
    slice_mm = (_slice_mm(recon) or _slice_mm(encoded) or _UNSTATED_SLICE_MM) if matrix[2] == 1 else math.nan
    recon_matrix = _matrix(recon, f"{where}, reconSpace matrixSize")
    if any(fine > MOST_INTERPOLATION * coarse > 0 for fine, coarse in zip(recon_matrix, matrix, strict=True)):
        raise InvalidHeader(
            f"{where}: a reconSpace matrix of {recon_matrix} from an encodedSpace matrix of {matrix}; "
            f"images are interpolated {MOST_INTERPOLATION} times at most"
        )
    try:
        return Geometry(
            encoded_matrix=matrix,
            encoded_fov_mm=_fov(encoded, slice_mm=slice_mm),
            recon_matrix=recon_matrix,
            recon_fov_mm=_fov(recon, slice_mm=slice_mm),
        )
    except InvalidFrame as error:
        raise InvalidHeader(f"{where}: {error}") from error


def _matrix(space: Any, where: str) -> tuple[int, int, int]:
    size = _get(space, "matrixSize")
    x, y, z = (_counter(_get(size, axis), f"{where} {axis}") for axis in "xyz")
    needed = x * y * z * SAMPLE_BYTES
    if needed > FRAME_BYTES_LIMIT:
        raise InvalidHeader(
            f"{where}: {x} x {y} x {z} samples take {needed / 2**30:.1f} GiB a coil; "
            f"the limit is {FRAME_BYTES_LIMIT / 2**30:.0f} GiB"
        )
    return x, y, z


def _slice_mm(space: Any) -> float | None:
    return _number(_get(_get(space, "fieldOfView_mm"), "z"))


def _fov(space: Any, *, slice_mm: float) -> tuple[float, float, float]:
    """Field of view; along z it is `slice_mm` where a space does not say, as many of a 2-D scan do not."""
    fov = _get(space, "fieldOfView_mm")
    x, y = (mm if isinstance(mm, float) else math.nan for mm in (_get(fov, axis) for axis in "xy"))
    return x, y, _slice_mm(space) or slice_mm


def _limits(limit: Any, size: int, where: str) -> Limits:
    """Limits of a phase-encoding step, the whole matrix where the header does not say.

    All zeros for more than one line is what a header holds whose writer filled nothing in.
    """
    names = ("minimum", "maximum", "center")
    low, high, center = (_counter(getattr(limit, name, 0), f"{where} {name}") for name in names)
    if low == high == center == 0:
        return Limits(minimum=0, maximum=size - 1, center=size // 2)
    if size > 1 and not low <= center <= high:
        raise InvalidHeader(f"{where}: the center, {center}, must lie in the range of the limits, {low} to {high}")
    return Limits(minimum=low, maximum=high, center=center)


def _calibration_mode(parallel: Any) -> CalibrationMode | None:
    mode = _get(parallel, "calibrationMode")
    if mode is None:
        return None
    name = _choice(mode)
    return next((known for known in CALIBRATION_MODES if known == name), "other")


def _get(section: Any, name: str) -> Any:
    """An element of a section that may be missing, or of another type than the schema's (xsi:nil, xsi:type)."""
    return getattr(section, name, None)


def _choice(value: Any) -> str:
    """An enumeration's member, or the text that is none, in small letters."""
    return str(getattr(value, "value", value)).lower()


def _text(value: Any) -> str | None:
    return str(value).strip() or None if value is not None else None


def _number(value: Any) -> float | None:
    """A positive finite number, or None for anything else."""
    return float(value) if isinstance(value, int | float) and 0 < value <= sys.float_info.max else None


def _counter(value: Any, where: str) -> int:
    if not isinstance(value, int) or not 0 <= value <= _COUNTER_MAX:
        raise InvalidHeader(f"{where} must be a whole number from 0 to {_COUNTER_MAX}, not {str(value)[:20]!r}")
    return value
