"""How near an image is to a reference: PSNR, SSIM and NRMSE as the papers measure them.

All compare magnitudes inside the support, after the image has been multiplied by the factor that brings it nearest
to the reference in least squares. So scale and phase, global or smooth, do not count. The peak (data range) is the
largest less the smallest magnitude of the reference with zeros outside the support. The arithmetic is scikit-image's
(Yu, Fessler, Jiang, IEEE TMI 2026, section IV.B); it comes with the extra ``inrecon[demo]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from skimage.metrics import normalized_root_mse, peak_signal_noise_ratio, structural_similarity

from inrecon.errors import InvalidFrame

Real = NDArray[np.float64]

SSIM_WINDOW = 7


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One image against its reference: `psnr` in dB, `ssim` up to 1, `nrmse` a fraction of the reference's norm."""

    psnr: float
    ssim: float
    nrmse: float


def measure(image: ArrayLike, reference: ArrayLike, support: ArrayLike) -> Quality:
    """All three measures of `image`; arguments and errors as in `psnr`."""
    return Quality(
        psnr=psnr(image, reference, support),
        ssim=ssim(image, reference, support),
        nrmse=nrmse(image, reference, support),
    )


def psnr(image: ArrayLike, reference: ArrayLike, support: ArrayLike) -> float:
    """Peak signal-to-noise ratio in dB over the pixels of `support`; infinite where the two agree.

    `image` and `reference` ``(rows, columns)``, complex or real; `support` the same shape, boolean. Raises
    `InvalidFrame` for unequal shapes, fewer than 7 rows or columns, values that are not finite, an empty support, or
    a reference without contrast.
    """
    fitted, truth, inside = _fitted(image, reference, support)
    with np.errstate(divide="ignore"):
        ratio = peak_signal_noise_ratio(truth[inside], fitted[inside], data_range=np.ptp(truth))  # type: ignore[no-untyped-call]
    return float(ratio)


def ssim(image: ArrayLike, reference: ArrayLike, support: ArrayLike) -> float:
    """Structural similarity: the mean over `support` of the map (uniform window of 7 pixels) of the two images with
    zeros outside the support; arguments and errors as in `psnr`."""
    fitted, truth, inside = _fitted(image, reference, support)
    _, similarity = structural_similarity(  # type: ignore[no-untyped-call]
        truth, fitted, win_size=SSIM_WINDOW, data_range=np.ptp(truth), full=True
    )
    return float(similarity[inside].mean())


def nrmse(image: ArrayLike, reference: ArrayLike, support: ArrayLike) -> float:
    """Norm of the difference over the norm of the reference, in `support`; arguments and errors as in `psnr`."""
    fitted, truth, inside = _fitted(image, reference, support)
    return float(normalized_root_mse(truth[inside], fitted[inside], normalization="euclidean"))


def change_error(
    image: ArrayLike, reference: ArrayLike, before: ArrayLike, *, support: ArrayLike, changed: ArrayLike
) -> float:
    """The error of `image` where the object has `changed` since `before`, over the error of `before` there: 0 where the
    change is shown as it is, 1 where nothing of it is.

    PSNR of a whole image says little of the part that has changed, if that is small. Scale and phase do not count, as
    above: the scale is that in `support`, beyond which `changed` may reach. Raises `InvalidFrame` as `psnr` does, and
    where nothing has changed.
    """
    where = np.asarray(changed, bool)
    fitted, truth, old = (np.abs(np.asarray(values, np.complex128)) for values in (image, reference, before))
    if not fitted.shape == truth.shape == old.shape == where.shape:
        raise InvalidFrame(f"images {fitted.shape}, {truth.shape} and {old.shape} for a region {where.shape}")
    largest = float(np.linalg.norm((old - truth)[where]))
    if largest == 0:
        raise InvalidFrame("nothing has changed, so there is nothing to measure by")
    return float(np.linalg.norm((scale_to(image, reference, support) * fitted - truth)[where])) / largest


def scale_to(image: ArrayLike, reference: ArrayLike, support: ArrayLike) -> float:
    """The factor that brings the magnitude of `image` nearest to that of `reference` in `support` (least squares).

    0 for an image of zeros; arguments and errors as in `psnr`.
    """
    found, truth, _ = _magnitudes(image, reference, support)
    return _scale(found, truth)


def _scale(found: Real, truth: Real) -> float:
    power = float(np.vdot(found, found))
    return float(np.vdot(found, truth)) / power if power > 0 else 0.0


def _fitted(image: ArrayLike, reference: ArrayLike, support: ArrayLike) -> tuple[Real, Real, NDArray[np.bool_]]:
    found, truth, inside = _magnitudes(image, reference, support)
    return found * _scale(found, truth), truth, inside


def _magnitudes(image: ArrayLike, reference: ArrayLike, support: ArrayLike) -> tuple[Real, Real, NDArray[np.bool_]]:
    """Both magnitudes with zeros outside the support, and the support, all checked."""
    inside = np.asarray(support, bool)
    moduli = [np.abs(np.asarray(values, np.complex128)) for values in (image, reference)]
    if inside.ndim != 2 or min(inside.shape) < SSIM_WINDOW or any(m.shape != inside.shape for m in moduli):
        raise InvalidFrame(
            f"image {moduli[0].shape}, reference {moduli[1].shape} and support {inside.shape} must be of one "
            f"two-dimensional shape of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels"
        )
    found, truth = (np.where(inside, modulus, 0.0) for modulus in moduli)
    if not (np.isfinite(found).all() and np.isfinite(truth).all()):
        raise InvalidFrame("an image to be measured holds values that are not finite (NaN or infinity)")
    if np.ptp(truth) == 0:
        raise InvalidFrame("a reference without contrast, or an empty support, leaves nothing to measure against")
    return found, truth, inside
