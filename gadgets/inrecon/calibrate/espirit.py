"""ESPIRiT: coil sensitivities as eigenvectors of the calibration data's own consistency condition.

Uecker et al., "ESPIRiT - an eigenvalue approach to autocalibrating parallel MRI", Magn Reson Med 71:990-1001 (2014).
"""

from __future__ import annotations

import torch

from inrecon.calibrate.fourier import fourier_matrix, image_on_grid
from inrecon.errors import CalibrationFailed
from inrecon.frame import CoilMaps

_SMALLEST_BLOCK = 6
_FEWEST_FOR_NOISE = 4
_NOISE_EDGE = 1.75
_BRIGHT = 0.15
_POWER_ITERATIONS = 16
_FOLDED_SHARE = 0.005
_LARGE_BLOCK = 12
_FOLDED, _SECOND_CROP = 0.97, 0.9
# The few kernels of a small block raise second eigenvalues a little in scans that fit, too.
_FOLDED_SMALL, _SECOND_CROP_SMALL = 0.99, 0.95


def espirit(
    calibration: torch.Tensor,
    shape: tuple[int, int],
    *,
    kernel: int = 6,
    singular_threshold: float = 0.015,
    crop: float = 0.95,
) -> CoilMaps:
    """ESPIRiT maps on an image grid of `shape` ``(rows, columns)``: one set, or two where the field of view folds.

    `calibration` ``(coils, rows, columns)`` complex, fully sampled, centred; its scale does not matter. `kernel` is
    the width in samples of the k-space patches, along each axis at most a third of the block (a wide kernel on a block
    of few lines sees too few patches). `singular_threshold` is the smallest singular value of the calibration matrix
    that counts as signal, relative to the largest; where the block's own noise lies higher, the noise decides.

    `crop` is the smallest eigenvalue (1 = fully consistent) inside the support. A tight support keeps SENSE well
    conditioned, so it is near the tight end of what is in use; pixels that are bright at low resolution belong to
    the support whatever their eigenvalue, because signal outside the support contradicts the data.

    The phase of the maps is relative to the coil combination with the most energy: the image has the phase that
    this combination sees, and the maps are smooth where it sees anything.

    Where parts of an object larger than the field of view lie on one another, a second eigenvalue is near 1, and its
    eigenvectors are a second set; the combination with the second most energy sets its phase. It is given if the second
    eigenvalue exceeds 0.97 in 0.5 % of the support, wherever it exceeds 0.9 in there; of a block with fewer than 12
    samples a side, 0.99 and 0.95. Fewer than 4 coils cannot tell. The first set is the same with and without it.

    Raises `CalibrationFailed` if the block is too small, zero or not finite.
    """
    block, widths = _checked(calibration, kernel)
    low_resolution = image_on_grid(block * _block_window(block.shape[1:], like=block), shape)
    consistency = _consistency_matrices(_lag_kernels(block, widths, singular_threshold), shape)
    eighth = _eighth_power(consistency)
    csm, eigenvalue = _dominant_eigenpairs(consistency, eighth, low_resolution)
    brightness = torch.linalg.vector_norm(low_resolution, dim=0)
    support = (eigenvalue > crop) | (brightness > _BRIGHT * brightness.max())
    first = _with_phase_of(_principal_combination(block), csm) * support
    second = None
    if len(block) >= _FEWEST_FOR_NOISE:
        large = min(block.shape[1:]) >= _LARGE_BLOCK
        folded, second_crop = (_FOLDED, _SECOND_CROP) if large else (_FOLDED_SMALL, _SECOND_CROP_SMALL)
        # What the first eigenvalue leaves of the power's trace bounds the second: hardly a pixel of most scans passes.
        rest = eighth.diagonal(dim1=-2, dim2=-1).real.sum(-1) - eigenvalue**8
        candidates = support & (rest > second_crop**8)
        second = _second_set(consistency, csm, candidates, area=int(support.sum()), folded=folded, crop=second_crop)
    if second is None:
        return CoilMaps(csm=first, support=support, estimated_by="espirit")
    second = _with_phase_of(_principal_combination(block, rank=2), second)
    return CoilMaps(csm=torch.stack([first, second]), support=support, estimated_by="espirit")


def _checked(calibration: torch.Tensor, kernel: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """The block with largest magnitude 1, and the kernel widths ``(rows, columns)`` that suit its size."""
    if calibration.ndim != 3 or 0 in calibration.shape:
        raise CalibrationFailed(f"calibration must be (coils, rows, columns), not {tuple(calibration.shape)}")
    rows, columns = calibration.shape[1:]
    if min(rows, columns) < _SMALLEST_BLOCK:
        raise CalibrationFailed(
            f"a calibration block of {rows} x {columns} samples is too small:"
            f" at least {_SMALLEST_BLOCK} x {_SMALLEST_BLOCK} are needed"
        )
    largest = float(calibration.abs().max())
    if not 0 < largest < float("inf"):
        raise CalibrationFailed(f"the calibration block is zero or not finite: its largest magnitude is {largest}")
    return calibration.to(torch.complex64) / largest, (min(kernel, rows // 3), min(kernel, columns // 3))


def _lag_kernels(block: torch.Tensor, widths: tuple[int, int], threshold: float) -> torch.Tensor:
    """Consistency condition as convolution kernels ``(row lags, column lags, coils, coils)`` over k-space.

    Patches of k-space lie in the row space of the calibration matrix, so projecting onto it changes none of them:
    averaging the projected patches gives the condition ``k_c(n) = sum_d sum_l h_cd(l) k_d(n + l)``, Eqs. (8)-(11). The
    kernels are collected over lags before any Fourier transform, instead of one image-sized transform per kernel.
    """
    coils, (height, width) = block.shape[0], widths
    patches = block.unfold(1, height, 1).unfold(2, width, 1).permute(1, 2, 0, 3, 4).reshape(-1, coils * height * width)
    squared, vectors = torch.linalg.eigh(patches.mT @ patches.conj())
    smallest = max(threshold, _noise_floor(squared, coils, len(patches)))
    signal = vectors[:, squared > smallest**2 * squared[-1]]
    projector = (signal @ signal.mH).reshape(coils, height, width, coils, height, width) / (height * width)
    lags = block.new_zeros(2 * height - 1, 2 * width - 1, coils, coils)
    for row in range(height):
        for column in range(width):
            rows = slice(height - 1 - row, 2 * height - 1 - row)
            columns = slice(width - 1 - column, 2 * width - 1 - column)
            lags[rows, columns] += projector[:, row, column].permute(2, 3, 0, 1)
    return lags


def _noise_floor(squared: torch.Tensor, coils: int, patches: int) -> float:
    """Relative singular value below which a vector is more noise than signal, from the ascending `squared` ones.

    The signal of smooth coils fills about ``1 / coils`` of the space, so with a few coils the median is one of noise.
    """
    if coils < _FEWEST_FOR_NOISE:
        return 0.0
    spectrum = squared[-patches:].clamp_min(0)
    return _NOISE_EDGE * float((spectrum[len(spectrum) // 2] / spectrum[-1]).sqrt())


def _consistency_matrices(lags: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Fourier transform of the lag kernels: Hermitian ``(rows, columns, coils, coils)``, one a pixel, Eq. (15)."""
    height, width, coils, _ = lags.shape
    rows, columns = (
        fourier_matrix(size, n, sign=-1, like=lags) for size, n in zip((height, width), shape, strict=True)
    )
    return (rows @ (columns @ lags.reshape(height, width, -1)).reshape(height, -1)).reshape(*shape, coils, coils)


def _eighth_power(matrices: torch.Tensor) -> torch.Tensor:
    squared = matrices @ matrices
    fourth = squared @ squared
    return fourth @ fourth


def _dominant_eigenpairs(
    matrices: torch.Tensor, eighth: torch.Tensor, start: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest eigenvalue ``(rows, columns)`` of each matrix and its unit eigenvector ``(coils, rows, columns)``.

    Power iteration with the `eighth` power of the matrices, which lie between 0 and 1, from the low-resolution coil
    images: these are eigenvectors already where object and sensitivities are smooth.
    """
    vector = start.permute(1, 2, 0).unsqueeze(-1)
    for _ in range(_POWER_ITERATIONS):
        vector = eighth @ vector
        vector = vector / torch.linalg.vector_norm(vector, dim=-2, keepdim=True).clamp_min(1e-30)
    eigenvalue = (vector.mH @ (matrices @ vector)).real[..., 0, 0]
    return vector.squeeze(-1).permute(2, 0, 1), eigenvalue


def _second_set(
    matrices: torch.Tensor, csm: torch.Tensor, candidates: torch.Tensor, *, area: int, folded: float, crop: float
) -> torch.Tensor | None:
    """Unit eigenvectors ``(coils, rows, columns)`` orthogonal to `csm`, zero where their eigenvalue is too small.

    They are looked for in the pixels `candidates` ``(rows, columns)`` of a support of `area` pixels. None if the
    eigenvalue is above `folded` in too small a part of it: the field of view does not fold.
    """
    if int(candidates.sum()) < _FOLDED_SHARE * area:
        return None
    first = csm.permute(1, 2, 0)[candidates].unsqueeze(-1)
    beside = torch.eye(len(csm), dtype=csm.dtype, device=csm.device) - first @ first.mH
    eigenvalues, vectors = torch.linalg.eigh(beside @ matrices[candidates] @ beside)
    largest = eigenvalues[:, -1]
    if int((largest > folded).sum()) < _FOLDED_SHARE * area:
        return None
    second = torch.zeros_like(csm)
    second[:, candidates] = (vectors[..., -1] * (largest > crop)[:, None]).T
    return second


def _block_window(shape: torch.Size, *, like: torch.Tensor) -> torch.Tensor:
    """Separable window ``(rows, columns)`` that falls to zero just outside a block of `shape`."""
    rows, columns = (
        torch.hann_window(n + 2, periodic=False, dtype=like.real.dtype, device=like.device)[1:-1] for n in shape
    )
    return rows[:, None] * columns


def _principal_combination(block: torch.Tensor, *, rank: int = 1) -> torch.Tensor:
    """Unit weights ``(coils,)`` of the coil combination with the most energy, or the `rank`-th most.

    The largest weight is real.
    """
    samples = block.flatten(1)
    weights: torch.Tensor = torch.linalg.eigh(samples @ samples.mH).eigenvectors[:, -rank]
    largest = weights[weights.abs().argmax()]
    return weights * (largest.conj() / largest.abs())


def _with_phase_of(weights: torch.Tensor, csm: torch.Tensor) -> torch.Tensor:
    """`csm` turned pixel by pixel so that its combination by conjugate `weights` is real and positive."""
    combined = torch.einsum("c,crk->rk", weights.conj(), csm)
    return csm * torch.polar(torch.ones_like(combined.real), -combined.angle())
