"""The ISMRMRD header of a simulated scan."""

from __future__ import annotations

from dataclasses import dataclass

import ismrmrd.xsd as xsd

SLICE_MM = 5.0
RELATIVE_NOISE_BANDWIDTH = 0.793


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What is scanned and how; `field_of_view_mm` is that along x, `body_part` None where nobody says."""

    body_part: str | None
    sequence: str
    repetition_time_ms: float
    echo_time_ms: float
    field_strength_T: float
    resonance_Hz: int
    field_of_view_mm: float


HEAD = Examination(
    body_part="BRAIN",
    sequence="TurboSpinEcho",
    repetition_time_ms=4000.0,
    echo_time_ms=100.0,
    field_strength_T=3.0,
    resonance_Hz=127_731_000,
    field_of_view_mm=220.0,
)


def scan_header(
    *,
    shape: tuple[int, int],
    samples: int,
    lines: int,
    centre_line: int,
    coils: int,
    acceleration: int | None,
    slices: int,
    repetitions: int,
    protocol: str,
    field_of_view: float = 1.0,
    examination: Examination = HEAD,
) -> bytes:
    """ISMRMRD XML of a Cartesian 2-D scan of matrix `shape` ``(y, x)``; `field_of_view` is that along y over that of
    the `examination`, along x.

    `samples` a readout (more than x: oversampling), `lines` counted from 0 with k-space's centre at `centre_line`;
    `acceleration` None for a scan without parallel imaging.
    """
    rows, columns = shape
    width_mm = examination.field_of_view_mm
    height_mm = width_mm * field_of_view
    limits = xsd.encodingLimitsType(
        kspace_encoding_step_0=_limit(samples, samples // 2),
        kspace_encoding_step_1=_limit(lines, centre_line),
        slice=_limit(slices),
        repetition=_limit(repetitions),
    )
    encoding = xsd.encodingType(
        encodedSpace=_space(samples, rows, width_mm * samples / columns, height_mm),
        reconSpace=_space(columns, rows, width_mm, height_mm),
        encodingLimits=limits,
        trajectory=xsd.trajectoryType.CARTESIAN,
        parallelImaging=None if acceleration is None else _parallel(acceleration),
    )
    header = xsd.ismrmrdHeader(
        studyInformation=xsd.studyInformationType(bodyPartExamined=examination.body_part),
        measurementInformation=xsd.measurementInformationType(
            measurementID="simulated", patientPosition=xsd.patientPositionType.HFS, protocolName=protocol
        ),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            systemVendor="inrecon",
            systemModel="simulation",
            systemFieldStrength_T=examination.field_strength_T,
            relativeReceiverNoiseBandwidth=RELATIVE_NOISE_BANDWIDTH,
            receiverChannels=coils,
            coilLabel=[xsd.coilLabelType(coilNumber=coil, coilName=f"loop{coil}") for coil in range(coils)],
        ),
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=examination.resonance_Hz),
        encoding=[encoding],
        sequenceParameters=xsd.sequenceParametersType(
            TR=[examination.repetition_time_ms],
            TE=[examination.echo_time_ms],
            sequence_type=examination.sequence,
        ),
    )
    xml: str = xsd.ToXML(header, encoding="utf-8")
    return xml.encode()


def _limit(count: int, centre: int = 0) -> xsd.limitType:
    return xsd.limitType(minimum=0, maximum=count - 1, center=centre)


def _space(x: int, y: int, width_mm: float, height_mm: float) -> xsd.encodingSpaceType:
    return xsd.encodingSpaceType(
        matrixSize=xsd.matrixSizeType(x=x, y=y, z=1),
        fieldOfView_mm=xsd.fieldOfViewMm(x=width_mm, y=height_mm, z=SLICE_MM),
    )


def _parallel(acceleration: int) -> xsd.parallelImagingType:
    return xsd.parallelImagingType(
        accelerationFactor=xsd.accelerationFactorType(kspace_encoding_step_1=acceleration, kspace_encoding_step_2=1),
        calibrationMode=xsd.calibrationModeType.EMBEDDED,
    )
