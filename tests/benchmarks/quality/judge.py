"""What an image is worth: against a reference, or by samples that it was not made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol as Interface

import numpy as np
import torch
from numpy.typing import NDArray

from inrecon.condition import condition
from inrecon.errors import InvalidFrame
from inrecon.frame import Measurement, RawFrame
from inrecon.operators import CartesianSense
from inrecon.quality import measure, scale_to
from inrecon.stream import coil_maps, combined, intensity

Complex = NDArray[np.complex64]
Box = tuple[int, int, int, int]

VALIDATION_OFFSET = 1e-4
"""That of the validation loss of Yu, Fessler and Jiang's published configuration."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An image ``(rows, columns)`` in the intensity of the coils as acquired, and the maps that it was made with."""

    image: Complex
    maps: Complex


class Judge(Interface):
    """Scores by name, and the one that counts, the larger the better."""

    @property
    def truth(self) -> tuple[Complex, NDArray[np.bool_]] | None:
        """Reference image and support ``(rows, columns)``, or None where there is no reference."""

    def scores(self, candidate: Candidate) -> dict[str, float]:
        """Every figure of merit of `candidate` by its name in the report."""

    def merit(self, scores: dict[str, float]) -> float:
        """What candidates are ranked by, in dB."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """`image` and `support` ``(rows, columns)``; `regions` boxes of pixels by name."""

    image: Complex
    support: NDArray[np.bool_]
    regions: dict[str, Box]

    @property
    def truth(self) -> tuple[Complex, NDArray[np.bool_]]:
        """Image and support."""
        return self.image, self.support

    def scores(self, candidate: Candidate) -> dict[str, float]:
        """PSNR, SSIM and NRMSE in the support, and the NRMSE in each region, all at one scale."""
        quality = measure(candidate.image, self.image, self.support)
        scale = scale_to(candidate.image, self.image, self.support)
        scores = {"psnr": quality.psnr, "ssim": quality.ssim, "nrmse": quality.nrmse}
        for name, (top, bottom, left, right) in self.regions.items():
            inside = np.zeros_like(self.support)
            inside[top:bottom, left:right] = True
            inside &= self.support
            truth = np.abs(self.image[inside])
            error = scale * np.abs(candidate.image[inside]) - truth
            scores[f"nrmse {name}"] = float(np.linalg.norm(error) / np.linalg.norm(truth))
        return scores

    def merit(self, scores: dict[str, float]) -> float:
        """PSNR."""
        return scores["psnr"]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Acquired samples that were kept aside, in the conditioned coils of the samples that were not.

    `measurement` is what methods fit; `kspace` ``(coils, rows, columns)`` has the samples of `mask`
    ``(rows, columns)``.
    """

    measurement: Measurement
    kspace: torch.Tensor
    mask: torch.Tensor

    @classmethod
    def of(cls, kept: RawFrame, everything: RawFrame) -> HeldOut:
        """The samples of `everything` that `kept` lacks, their coils mixed as `kept`'s are by conditioning."""
        measurement = condition(kept, device="cpu")
        grid, mask = _gridded(everything, tuple(measurement.mask.shape))
        inside = measurement.mask.numpy()
        conditioned = measurement.kspace[0].numpy()[:, inside].astype(np.complex128)
        acquired = grid[:, inside].astype(np.complex128)
        mixing = np.linalg.lstsq(acquired.T, conditioned.T, rcond=None)[0].T
        aside = torch.from_numpy(mask & ~inside)
        kspace = torch.from_numpy(np.einsum("vc,crk->vrk", mixing, grid).astype(np.complex64))
        return cls(measurement=measurement, kspace=kspace * aside, mask=aside)

    @property
    def truth(self) -> None:
        """There is none."""

    def scores(self, candidate: Candidate) -> dict[str, float]:
        """The weighted error on the samples kept aside, the image scaled to fit those that were not."""
        if candidate.maps.ndim != 3:
            raise InvalidFrame("an image of two sets of coil maps cannot be taken apart to predict samples")
        maps = torch.from_numpy(candidate.maps)
        shading = intensity(self.measurement, maps).numpy()
        image = np.divide(candidate.image, shading, out=np.zeros_like(candidate.image), where=shading > 0)
        fitted = CartesianSense(maps, self.measurement.mask)
        predicted = fitted.forward(torch.from_numpy(image))
        acquired = fitted.arrange(self.measurement.kspace[0])
        scale = torch.vdot(predicted.flatten(), acquired.flatten()) / torch.linalg.vector_norm(predicted) ** 2
        aside = CartesianSense(maps, self.mask)
        predicted = scale * aside.forward(torch.from_numpy(image))
        error = (predicted - aside.arrange(self.kspace)).abs().square()
        weighted = error / (predicted.abs().square() + VALIDATION_OFFSET)
        counted = aside.sampled.expand_as(weighted)
        return {"held-out error": float(weighted[counted].mean())}

    def merit(self, scores: dict[str, float]) -> float:
        """The held-out error in dB, its sign turned."""
        return float(-10 * np.log10(scores["held-out error"]))


def maps_of(raw: RawFrame) -> Complex:
    """The coil maps of conditioned data that `inrecon.stream` makes images of `raw` with, as `CoilMaps` has them."""
    return coil_maps(condition(raw, device="cpu"), 0, fallbacks=[]).csm.numpy()


def combined_of(measurement: Measurement, maps: Complex, image: Complex) -> Complex:
    """An image of conditioned coils with `maps`, or one of each of their sets, as `inrecon.stream` would send it."""
    sent: Complex = combined(measurement, torch.from_numpy(maps), torch.from_numpy(image)).numpy()
    return sent


def _gridded(raw: RawFrame, shape: tuple[int, ...]) -> tuple[Complex, NDArray[np.bool_]]:
    """Points of a plane of a 3-D scan back on their grid, and where they are."""
    kz, ky = raw.imaging.lines.T
    grid = np.zeros((raw.coils, *shape), np.complex64)
    grid[:, kz, ky] = raw.imaging.kspace[:, :, 0]
    mask = np.zeros(shape, bool)
    mask[kz, ky] = True
    return grid, mask
