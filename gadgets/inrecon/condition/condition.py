"""The steps of conditioning, in order."""

from __future__ import annotations

import torch

from inrecon.condition.compress import compression_matrix
from inrecon.condition.grid import centre_block, gridded
from inrecon.condition.prewhiten import corner_covariance, imaging_covariance, whitening_matrix
from inrecon.errors import InvalidFrame
from inrecon.frame import Measurement, RawFrame


def condition(raw: RawFrame, *, device: torch.device | str, energy: float = 0.99, max_coils: int = 12) -> Measurement:
    """Prewhiten, remove readout oversampling, cut a 3-D scan into 2-D problems, compress the coils, scale.

    Noise is whitened to variance 1 a complex sample (Pruessmann et al. 2001) by the scan's noise readouts, or by the
    outermost samples of the data where there are none; the same matrices go to calibration readouts. The virtual coils
    (Huang et al. 2008) that keep `energy` of the calibration data's energy stay, at most `max_coils`. Raises
    `InvalidFrame` if all k-space is zero.
    """
    imaging = gridded(raw.imaging, raw.geometry, device=device)
    calibration = imaging if raw.calibration is None else gridded(raw.calibration, raw.geometry, device=device)
    if raw.noise is not None:
        covariance = imaging_covariance(raw.noise, raw.sample_time_us).to(imaging.kspace.device)
    else:
        covariance = corner_covariance(imaging.kspace, imaging.mask)
    whitening = whitening_matrix(covariance)
    block = centre_block(calibration)
    source = imaging if block is None else block
    compression = compression_matrix(source.mixed(whitening).kspace, energy=energy, most=max_coils)
    mixing = compression @ whitening
    kspace = imaging.mixed(mixing)
    scale = float(kspace.kspace.abs().max())
    if scale == 0:
        raise InvalidFrame("all samples of the frame are zero")
    return Measurement(
        kspace=kspace.kspace / scale,
        mask=kspace.mask,
        calibration=None if block is None else block.mixed(mixing).kspace / scale,
        scale=scale,
        noise_level=raw.average_count**-0.5 / scale,
        prewhitened_by="corners" if raw.noise is None else "noise readouts",
        unmix=torch.linalg.solve(whitening, compression.mH),
        axes=kspace.axes,
    )
