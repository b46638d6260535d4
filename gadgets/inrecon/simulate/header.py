"""The ISMRMRD header of a simulated scan."""

from __future__ import annotations

import ismrmrd.xsd as xsd

FIELD_OF_VIEW_MM = 220.0
SLICE_MM = 5.0
RELATIVE_NOISE_BANDWIDTH = 0.793
FIELD_STRENGTH_T = 3.0
RESONANCE_HZ = 127_731_000


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
    field_of_view: float,
) -> bytes:
    """ISMRMRD XML of a Cartesian 2-D scan of matrix `shape` ``(y, x)`` and 220 x 220 mm, or the part `field_of_view` of
    that along y.

    `samples` a readout (more than x: oversampling), `lines` counted from 0 with k-space's centre at `centre_line`;
    `acceleration` None for a scan without parallel imaging.
    """
    rows, columns = shape
    height_mm = FIELD_OF_VIEW_MM * field_of_view
    limits = xsd.encodingLimitsType(
        kspace_encoding_step_0=_limit(samples, samples // 2),
        kspace_encoding_step_1=_limit(lines, centre_line),
        slice=_limit(slices),
        repetition=_limit(repetitions),
    )
    encoding = xsd.encodingType(
        encodedSpace=_space(samples, rows, FIELD_OF_VIEW_MM * samples / columns, height_mm),
        reconSpace=_space(columns, rows, FIELD_OF_VIEW_MM, height_mm),
        encodingLimits=limits,
        trajectory=xsd.trajectoryType.CARTESIAN,
        parallelImaging=None if acceleration is None else _parallel(acceleration),
    )
    header = xsd.ismrmrdHeader(
        studyInformation=xsd.studyInformationType(bodyPartExamined="BRAIN"),
        measurementInformation=xsd.measurementInformationType(
            measurementID="simulated", patientPosition=xsd.patientPositionType.HFS, protocolName=protocol
        ),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            systemVendor="inrecon",
            systemModel="simulation",
            systemFieldStrength_T=FIELD_STRENGTH_T,
            relativeReceiverNoiseBandwidth=RELATIVE_NOISE_BANDWIDTH,
            receiverChannels=coils,
            coilLabel=[xsd.coilLabelType(coilNumber=coil, coilName=f"loop{coil}") for coil in range(coils)],
        ),
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=RESONANCE_HZ),
        encoding=[encoding],
        sequenceParameters=xsd.sequenceParametersType(TR=[4000.0], TE=[100.0], sequence_type="TurboSpinEcho"),
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
