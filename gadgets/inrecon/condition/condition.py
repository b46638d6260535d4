"""The steps of conditioning, in order."""

from __future__ import annotations

import torch

from inrecon.condition.compress import compression_matrix
from inrecon.condition.grid import centre_block, gridded
from inrecon.condition.noise import whitening
from inrecon.errors import InvalidFrame
from inrecon.frame import Measurement, RawFrame


def condition(raw: RawFrame, *, device: torch.device | str, energy: float = 0.99, max_coils: int = 12) -> Measurement:
    """Prewhiten, remove readout oversampling, cut a 3-D scan into 2-D problems, compress the coils, scale.

    Noise is whitened by the scan's noise readouts, or by the outermost samples of the data where there are none; the
    same matrices go to calibration readouts of their own. The virtual coils (Huang et al. 2008) that keep `energy` of
    the calibration data's energy stay, at most `max_coils`. Where calibration readouts of their own make no block, the
    imaging readouts are searched for one. Raises `InvalidFrame` if all k-space is zero.
    """
    imaging = gridded(raw.imaging, raw.geometry, device=device)
    white = whitening(raw)
    matrix = torch.from_numpy(white.matrix).to(torch.complex64).to(device)
    block = None if raw.calibration is None else centre_block(gridded(raw.calibration, raw.geometry, device=device))
    block = block or centre_block(imaging)
    source = imaging if block is None else block
    compression = compression_matrix(source.mixed(matrix).kspace, energy=energy, most=max_coils)
    mixing = compression @ matrix
    kspace = imaging.mixed(mixing)
    scale = float(kspace.kspace.abs().max())
    if not 0 < scale < float("inf"):
        raise InvalidFrame(f"the frame's samples are all zero, or overflow: the largest magnitude is {scale}")
    return Measurement(
        kspace=kspace.kspace / scale,
        mask=kspace.mask,
        calibration=None if block is None else block.mixed(mixing).kspace / scale,
        scale=scale,
        noise_level=None if white.noise_level is None else white.noise_level / scale,
        prewhitened_by=white.by,
        unmix=torch.linalg.pinv(matrix) @ compression.mH,
        axes=kspace.axes,
    )
