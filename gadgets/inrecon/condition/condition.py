"""The steps of conditioning, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from inrecon.condition.compress import compression_matrix
from inrecon.condition.grid import Grid, centre_block, gridded, width
from inrecon.condition.noise import noise_of
from inrecon.condition.sparks import without_sparks
from inrecon.errors import InvalidFrame
from inrecon.frame import Measurement, RawFrame

LARGEST = 1e15
"""Magnitude of a sample; energies of a whole frame are sums of squares in single precision."""

MOST_COILS = 12
"""To how many coils a scan is compressed, unless fewer will do."""


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What `condition` found for one frame, to be done to others of the same scan, which so have the same coils and the
    same scale: `width` pixels along x, coils mixed by `mixing` ``(virtual coils, coils)``; `noise_level` is that of
    single readouts; the rest as in `Measurement`."""

    width: int
    mixing: torch.Tensor
    unmix: torch.Tensor
    scale: float
    noise_level: float | None
    prewhitened_by: Literal["noise readouts", "corners", "none"]

    def why_not(self, raw: RawFrame) -> str:
        """Why the same cannot be done to `raw`; nothing if it can."""
        if raw.coils != self.mixing.shape[1]:
            return f"has {raw.coils} coils after {self.mixing.shape[1]}"
        if width(raw) != self.width:
            return f"has {width(raw)} pixels along x after {self.width}"
        return ""

    def apply(self, raw: RawFrame) -> Measurement:
        """Another frame without sparks, conditioned in the same way; raises `InvalidFrame` if it has other coils or no
        signal."""
        _check_magnitudes(raw)
        if raw.coils != self.mixing.shape[1]:
            raise InvalidFrame(f"a frame of {raw.coils} coils after one of {self.mixing.shape[1]}")
        if not raw.imaging.kspace.any():
            raise InvalidFrame("the frame's samples are all zero")
        device = self.mixing.device
        imaging = gridded(raw.imaging, raw.geometry, x=self.width, device=device, mixing=self.mixing)
        return self.measurement(imaging, None, averages=raw.average_count)

    def measurement(self, imaging: Grid, block: Grid | None, *, averages: float) -> Measurement:
        """What is measured, of data and calibration block whose coils are mixed already."""
        level = self.noise_level
        return Measurement(
            kspace=imaging.kspace / self.scale,
            mask=imaging.mask,
            calibration=None if block is None else block.kspace / self.scale,
            scale=self.scale,
            noise_level=None if level is None else level / averages**0.5,
            prewhitened_by=self.prewhitened_by,
            unmix=self.unmix,
            axes=imaging.axes,
        )


def condition(
    raw: RawFrame, *, device: torch.device | str, energy: float = 0.999, max_coils: int = MOST_COILS
) -> Measurement:
    """`conditioned`, for a scan whose frames are conditioned one by one."""
    return conditioned(raw, device=device, energy=energy, max_coils=max_coils)[0]


def conditioned(
    raw: RawFrame, *, device: torch.device | str, energy: float = 0.999, max_coils: int = MOST_COILS
) -> tuple[Measurement, Conditioning]:
    """Mend sparks, remove readout oversampling, cut a 3-D scan into 2-D problems, compress the coils, prewhiten, scale.

    Coils are compressed in units of their own noise, but before correlations are removed: virtual coils that keep
    `energy` of the calibration data (Huang et al. 2008), at most `max_coils`, then hold nearly all of the intensity as
    acquired, whatever the noise covariance is. Noise is then whitened by the scan's noise readouts, or by the outermost
    samples of the data where there are none; the same matrices go to calibration readouts of their own. Where those
    make no block, the imaging readouts are searched for one. 99.9 % of energy, not the customary 99 %, is worth 0.3 to
    0.7 dB to CG-SENSE on real brains and up to 2.7 dB on simulated scans. Raises `InvalidFrame` if all k-space is zero
    or too large.
    """
    _check_magnitudes(raw)
    raw, x = without_sparks(raw), width(raw)
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
    found = Conditioning(
        width=x,
        mixing=mixing,
        unmix=torch.linalg.pinv(gains) @ compression.mH @ torch.linalg.inv(whiten),
        scale=scale,
        noise_level=None if noise.level is None else noise.level * raw.average_count**0.5 / scale,
        prewhitened_by=noise.known_by,
    )
    calibration = None if block is None else block.mixed(mixing)
    return found.measurement(kspace, calibration, averages=raw.average_count), found


def _check_magnitudes(raw: RawFrame) -> None:
    peak = max(float(np.abs(part.kspace).max()) for part in (raw.imaging, raw.calibration) if part is not None)
    if peak > LARGEST:
        raise InvalidFrame(f"the largest sample has a magnitude of {peak:.3g}: beyond {LARGEST:g} its square overflows")
