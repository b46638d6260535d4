"""The steps of conditioning, in order."""

from __future__ import annotations

import torch

from inrecon.condition.compress import compression_matrix
from inrecon.condition.grid import centre_block, gridded, width
from inrecon.condition.noise import noise_of
from inrecon.errors import InvalidFrame
from inrecon.frame import Measurement, RawFrame

MOST_COILS = 12
"""To how many coils a scan is compressed, unless fewer will do."""


def condition(
    raw: RawFrame, *, device: torch.device | str, energy: float = 0.999, max_coils: int = MOST_COILS
) -> Measurement:
    """Remove readout oversampling, cut a 3-D scan into 2-D problems, compress the coils, prewhiten, scale.

    Coils are compressed in units of their own noise, but before correlations are removed: virtual coils that keep
    `energy` of the calibration data (Huang et al. 2008), at most `max_coils`, then hold nearly all of the intensity as
    acquired, whatever the noise covariance is. Noise is then whitened by the scan's noise readouts, or by the outermost
    samples of the data where there are none; the same matrices go to calibration readouts of their own. Where those
    make no block, the imaging readouts are searched for one. 99.9 % of energy, not the customary 99 %, is worth 0.3 to
    0.7 dB to CG-SENSE on real brains and up to 2.7 dB on simulated scans. Raises `InvalidFrame` if all k-space is zero.
    """
    x = width(raw)
    imaging = gridded(raw.imaging, raw.geometry, x=x, device=device)
    block = None
    if raw.calibration is not None:
        block = centre_block(gridded(raw.calibration, raw.geometry, x=x, device=device))
    block = block or centre_block(imaging)
    noise = noise_of(raw)
    gains = torch.from_numpy(noise.gains).to(torch.complex64).to(device)
    compression = compression_matrix((block or imaging).mixed(gains).kspace, energy=energy, most=max_coils)
    compressed = compression @ gains
    whitening = noise.whitening(compressed.cpu().to(torch.complex128).numpy())
    whiten = torch.from_numpy(whitening).to(torch.complex64).to(device)
    mixing = whiten @ compressed
    kspace = imaging.mixed(mixing)
    scale = float(kspace.kspace.abs().max())
    if not 0 < scale < float("inf"):
        raise InvalidFrame(f"the frame's samples are all zero, or overflow: the largest magnitude is {scale}")
    return Measurement(
        kspace=kspace.kspace / scale,
        mask=kspace.mask,
        calibration=None if block is None else block.mixed(mixing).kspace / scale,
        scale=scale,
        noise_level=None if noise.level is None else noise.level / scale,
        prewhitened_by=noise.known_by,
        unmix=torch.linalg.pinv(gains) @ compression.mH @ torch.linalg.inv(whiten),
        axes=kspace.axes,
    )
