"""The nouns that cross doors: frozen, keyword-only, checked once at the door and trusted inside.

Array axes: coils first, then ``(z, y, x)``; readouts as acquired ``(coils, readouts, samples)``.
k-space is centred (DC at ``n // 2``) wherever it crosses a door. Torch is imported for type checking
only, so that a process that merely collects readouts stays light.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from inrecon.errors import InvalidFrame

if TYPE_CHECKING:
    import torch

    from inrecon.operators import CartesianSense

Complex = NDArray[np.complex64]
Preset = Literal["fast", "standard", "quality"]
PRESETS: tuple[Preset, ...] = ("fast", "standard", "quality")
Dtype = Literal["complex", "float", "uint16"]
Priority = Literal["realtime", "inline", "replay"]
PRIORITIES: tuple[Priority, ...] = ("realtime", "inline", "replay")
"""The first goes first; of equals, whoever has waited longest."""
DTYPES: tuple[Dtype, ...] = ("complex", "float", "uint16")
FramePolicy = Literal["latest", "all"]
NO_PRIOR_HERE = "the prior of an earlier scan is known to a server only (inrecon serve): the stream makes its own"
"""What to tell where `Live.prior` names one and nobody keeps them."""


@dataclass(frozen=True, kw_only=True, order=True)
class Key:
    """Which image a frame becomes: ISMRMRD's counters that are not encoding steps or averages."""

    slice: int = 0
    contrast: int = 0
    phase: int = 0
    repetition: int = 0
    set: int = 0
    encoding_space: int = 0

    @property
    def of_any_repetition(self) -> Key:
        """The key that all repetitions have in common."""
        return replace(self, repetition=0)

    @property
    def in_words(self) -> str:
        """Which frame of a stream it is, as its sender is told."""
        return f"slice {self.slice}, repetition {self.repetition}"


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes of one encoding space, each as ``(x, y, z)`` like ISMRMRD's header; fields of view in mm."""

    encoded_matrix: tuple[int, int, int]
    encoded_fov_mm: tuple[float, float, float]
    recon_matrix: tuple[int, int, int]
    recon_fov_mm: tuple[float, float, float]

    def __post_init__(self) -> None:
        if min(self.encoded_matrix) < 1 or min(self.recon_matrix) < 1:
            raise InvalidFrame(f"matrix sizes must be positive: {self.encoded_matrix}, {self.recon_matrix}")
        if not all(0 < mm < 1e6 for mm in (*self.encoded_fov_mm, *self.recon_fov_mm)):
            raise InvalidFrame(f"fields of view must be positive: {self.encoded_fov_mm}, {self.recon_fov_mm} mm")

    @property
    def readout_size(self) -> int:
        """Samples along x once readout oversampling is removed: encoded x by the ratio of the fields of view."""
        ratio = min(1.0, self.recon_fov_mm[0] / self.encoded_fov_mm[0])
        return max(1, round(self.encoded_matrix[0] * ratio))

    def without_oversampling(self) -> Geometry:
        """The encoding space of readouts whose oversampling has been removed."""
        width_mm = min(self.encoded_fov_mm[0], self.recon_fov_mm[0])
        return replace(
            self,
            encoded_matrix=(self.readout_size, *self.encoded_matrix[1:]),
            encoded_fov_mm=(width_mm, *self.encoded_fov_mm[1:]),
        )


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The scan protocol as hyperparameters are looked up by it; None is 'the header does not say'.

    `matrix` is the encoded ``(y, x)`` after readout oversampling is removed; `acceleration` is measured
    (positions over sampled positions), not the header's nominal factor.
    """

    name: str | None
    sequence: str | None
    anatomy: str | None
    vendor: str | None
    field_strength_T: float | None
    trajectory: str
    matrix: tuple[int, int]
    acceleration: float
    coils: int


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What noise readouts told: `covariance` ``(coils, coils)`` of one complex sample (mean of n n^H).

    `samples` is the number of samples behind it; `sample_time_us` and `relative_bandwidth` (receiver
    noise bandwidth over sampling bandwidth) scale it to the imaging readouts. `coil_labels` names the coils in their
    order as the header does, which may name fewer or more than there are.
    """

    covariance: NDArray[np.complex128]
    samples: int
    sample_time_us: float
    relative_bandwidth: float
    coil_labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = self.covariance.shape
        if len(shape) != 2 or shape[0] != shape[1]:
            raise InvalidFrame(f"noise covariance must be square, not {shape}")
        if not np.isfinite(self.covariance).all():
            raise InvalidFrame("noise covariance is not finite")


@dataclass(frozen=True, kw_only=True)
class Readouts:
    """Cartesian readouts placed on the encoded matrix.

    `kspace` ``(coils, readouts, samples)``, zero-filled along the readout to the encoded x with its centre at
    ``x // 2``; `lines` ``(readouts, 2)`` the placed ``(kz, ky)`` of each readout, each pair once; `acquired`
    ``(readouts, samples)`` False where a sample is a filled-in zero (asymmetric echo).
    """

    kspace: Complex
    lines: NDArray[np.int64]
    acquired: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.kspace.ndim != 3 or 0 in self.kspace.shape:
            raise InvalidFrame(f"k-space must be (coils, readouts, samples), not {self.kspace.shape}")
        if self.kspace.dtype != np.complex64:
            raise InvalidFrame(f"k-space must be complex64, not {self.kspace.dtype}")
        _, readouts, samples = self.kspace.shape
        if self.lines.shape != (readouts, 2) or self.acquired.shape != (readouts, samples):
            raise InvalidFrame(
                f"{readouts} readouts of {samples} samples with lines {self.lines.shape} and mask {self.acquired.shape}"
            )
        if not np.isfinite(self.kspace.view(np.float32)).all():
            raise InvalidFrame("k-space holds values that are not finite (NaN or infinity)")


@dataclass(frozen=True, kw_only=True)
class RawFrame:
    """One image's worth of readouts, as acquired: what `inrecon.acquire` gives.

    `imaging` holds what becomes the image (embedded calibration lines included); `calibration` holds
    calibration readouts of their own (separate or external), or None. `sample_time_us` is the imaging dwell
    time. `reference` is the serialised ISMRMRD acquisition header of the readout nearest the centre of
    k-space, or of the newest one of a sliding window; only acquire and image look inside. `average_count` is
    the mean number of averages a line.
    """

    imaging: Readouts
    calibration: Readouts | None
    noise: Noise | None
    sample_time_us: float
    key: Key
    geometry: Geometry
    protocol: Protocol
    reference: bytes
    average_count: float = 1.0

    def __post_init__(self) -> None:
        x, y, z = self.geometry.encoded_matrix
        for readouts in filter(None, (self.imaging, self.calibration)):
            if readouts.kspace.shape[2] != x:
                raise InvalidFrame(f"readouts of {readouts.kspace.shape[2]} samples in an encoded matrix of {x}")
            if (readouts.lines < 0).any() or (readouts.lines >= (z, y)).any():
                raise InvalidFrame("a readout lies outside the encoded matrix")
        if self.noise is not None and len(self.noise.covariance) != self.coils:
            raise InvalidFrame(f"noise of {len(self.noise.covariance)} coils for data of {self.coils}")
        if self.calibration is not None and self.calibration.kspace.shape[0] != self.coils:
            raise InvalidFrame(f"calibration of {self.calibration.kspace.shape[0]} coils for data of {self.coils}")

    @property
    def coils(self) -> int:
        """Number of coils."""
        return int(self.imaging.kspace.shape[0])


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A batch of 2-D problems, conditioned: what `inrecon.condition` gives, in torch on the fit's device.

    `kspace` ``(batch, coils, rows, columns)`` complex64, centred, zero where not sampled, noise white with
    standard deviation `noise_level` a complex sample (None if it could not be told) and the largest magnitude of the
    whole batch 1 (`scale` multiplies back to the units of the prewhitened data); `mask` ``(rows, columns)``;
    `calibration` ``(batch, coils, rows, columns)`` the fully sampled centre block (odd or even size, centred at ``n
    // 2`` of its own size), or None. `axes` tells what rows and columns are: a 2-D frame is one problem in ``(y,
    x)``, a 3-D frame is a batch over x of problems in ``(z, y)``.
    """

    kspace: torch.Tensor
    mask: torch.Tensor
    calibration: torch.Tensor | None
    scale: float
    noise_level: float | None
    prewhitened_by: Literal["noise readouts", "corners", "none"]
    unmix: torch.Tensor
    axes: Literal["yx", "zy"]

    def __post_init__(self) -> None:
        if self.kspace.ndim != 4 or self.mask.shape != self.kspace.shape[2:]:
            raise InvalidFrame(f"k-space {tuple(self.kspace.shape)} with mask {tuple(self.mask.shape)}")


@dataclass(frozen=True, kw_only=True)
class CoilMaps:
    """Coil sensitivities: `csm` ``(coils, rows, columns)`` complex64 with unit root-sum-of-squares inside
    `support` ``(rows, columns)`` bool and zero outside; `estimated_by` names how.

    Where the field of view folds, `csm` is ``(sets, coils, rows, columns)``: sets that are orthogonal at each pixel,
    the first as above, the others zero where nothing folds.
    """

    csm: torch.Tensor
    support: torch.Tensor
    estimated_by: Literal["espirit", "smooth sum of squares"]

    def __post_init__(self) -> None:
        if self.csm.ndim not in (3, 4) or self.support.shape != self.csm.shape[-2:]:
            raise InvalidFrame(f"coil maps {tuple(self.csm.shape)} with support {tuple(self.support.shape)}")

    @property
    def sets(self) -> int:
        """Sets of maps."""
        return self.csm.shape[:-3].numel()


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What a method fits: one 2-D problem.

    `kspace` in the range of `operator` (its own layout, see `operator.arrange`), scaled as in `Measurement`;
    `maps` on the image grid; `noise_level` the standard deviation of a complex k-space sample, or None. `held_out`
    ``(lines, columns)`` bool marks acquired samples, all coils together, that judge a fit: a `trial` is made of
    `training` and judged by `loss`, the image that is sent is made of all samples. `prior` is an image, on the same
    grid and in the same scale, that this one is expected to resemble.
    """

    kspace: torch.Tensor
    operator: CartesianSense
    maps: CoilMaps
    noise_level: float | None
    held_out: torch.Tensor | None = None
    prior: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if tuple(self.kspace.shape) != self.operator.range_shape:
            raise InvalidFrame(f"k-space {tuple(self.kspace.shape)} for an operator to {self.operator.range_shape}")
        if (*self.maps.csm.shape[:-3], *self.maps.csm.shape[-2:]) != self.operator.domain_shape:
            raise InvalidFrame(f"maps {tuple(self.maps.csm.shape)} for an operator on {self.operator.domain_shape}")
        if self.held_out is not None and self.held_out.shape != self.kspace.shape[1:]:
            raise InvalidFrame(f"held-out samples {tuple(self.held_out.shape)} of {tuple(self.kspace.shape[1:])}")
        if self.prior is not None and tuple(self.prior.shape) != self.operator.domain_shape:
            raise InvalidFrame(f"a prior {tuple(self.prior.shape)} for an operator on {self.operator.domain_shape}")

    @cached_property
    def training(self) -> Frame:
        """The frame without the samples that are held out."""
        if self.held_out is None:
            return self
        kept = ~self.held_out
        return replace(self, kspace=self.kspace * kept, operator=self.operator.restricted(kept), held_out=None)

    def with_first_set(self) -> Frame:
        """The frame with the first set of coil maps alone."""
        if self.maps.sets == 1:
            return self
        csm, prior = self.maps.csm[0], None if self.prior is None else self.prior[0]
        return replace(self, operator=self.operator.with_maps(csm), maps=replace(self.maps, csm=csm), prior=prior)

    @cached_property
    def power(self) -> float:
        """The mean of |y|^2 over the acquired samples, noise included."""
        samples = int(self.operator.sampled.sum()) * len(self.kspace)
        return float(self.kspace.abs().square().sum()) / max(samples, 1)

    @property
    def noise_share(self) -> float:
        """The noise's part of `power`, 0 to 1; 0 where the noise is not known."""
        if self.noise_level is None or self.power == 0:
            return 0.0
        return min(1.0, self.noise_level**2 / self.power)

    def residuals(self, image: torch.Tensor) -> torch.Tensor:
        """A x - y on the held-out samples, ``(samples,)``, each over (|y|^2 + mean |y|^2)^(1/2).

        The weights are the data's own, the same for every image: so the losses of all methods can be compared.
        """
        return self._weighed(self.operator.forward(image) - self.kspace)

    def loss(self, image: torch.Tensor) -> float | None:
        """Weighted error of `image` on the held-out samples, relative to that of no image.

        1 is an image of zeros; what noise there is in the samples bounds it from below. None if no samples are held
        out, or those that are hold nothing.
        """
        if self.held_out is None or not self.kspace[:, self.held_out].any():
            return None
        error, nothing = self.residuals(image), self._weighed(self.kspace)
        return float(error.abs().square().sum() / nothing.abs().square().sum())

    @property
    def noise_loss(self) -> float:
        """The part of `loss` that is the noise of the held-out samples themselves; 0 where it is not known."""
        if self.held_out is None or self.noise_level is None or not self.kspace[:, self.held_out].any():
            return 0.0
        noise = self._weighed(self.kspace.new_full(self.kspace.shape, self.noise_level))
        nothing = self._weighed(self.kspace)
        return float(noise.abs().square().sum() / nothing.abs().square().sum())

    def _weighed(self, kspace: torch.Tensor) -> torch.Tensor:
        """The held-out samples of `kspace`, ``(samples,)``, by the weights of `residuals`."""
        if self.held_out is None:
            raise InvalidFrame("no samples are held out of this frame")
        weight = (self.kspace[:, self.held_out].abs().square() + self.power).rsqrt()
        return (weight * kspace[:, self.held_out]).flatten()


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """What a method gives: `image` ``(rows, columns)`` complex64 in the scale of the frame's k-space, or ``(sets, rows,
    columns)`` where there are sets of coil maps; `losses` the training loss by iteration; `trial` the image that was
    made without the held-out samples, `validation_loss` its loss on them, both None if there were none; `backend` which
    implementation ran; `remark` what a reader of the report should know of the way the image was made."""

    image: torch.Tensor
    iterations: int
    stopped_by: str
    losses: tuple[float, ...] = ()
    trial: torch.Tensor | None = None
    validation_loss: float | None = None
    backend: str = "torch"
    remark: str = ""

    @property
    def training_loss(self) -> float | None:
        """The last training loss, or None if the method has none."""
        return self.losses[-1] if self.losses else None


@dataclass(frozen=True, kw_only=True)
class Live:
    """How the frames of an interventional stream follow from its readouts, and one from another.

    With `policy` "latest" frames that wait while a newer one of their slice is complete are skipped, with "all" none
    is. A frame is the readouts of a repetition or, of streams whose lines interleave, the last `window` readouts of its
    slice, after every `step` of them (None: all of a window). `prior` is the measurement ID of an earlier scan that
    the first frame is compared with; without it that is the first fully sampled frame, or the mean of the first
    `prior_frames`.
    """

    policy: FramePolicy = "latest"
    window: int | None = None
    step: int | None = None
    prior: str | None = None
    prior_frames: int = 4


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the sender of a scan may ask for; None leaves the choice to the hyperparameter entry.

    `overrides` sets fields of the method by name, checked by the method. An image is wanted `deadline_s` seconds after
    the last of its readouts, None for when it is done; among scans that wait, the `priority` decides. `compare` asks
    for CG-SENSE's image as well, as a series of its own. `series_name` is what viewers shall call the series. `live`
    is for interventional streams, whose frames are told by how they differ from a prior image.
    """

    method: str | None = None
    preset: Preset = "standard"
    dtype: Dtype = "uint16"
    deadline_s: float | None = None
    priority: Priority = "inline"
    compare: bool = False
    series_name: str | None = None
    live: Live | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Series:
    """What images of one series share: its `index` on the wire, the number of `images` sent so far, and the one
    `scale` (grey values per unit of signal) that its first integer image fixed; None before that."""

    index: int = 1
    images: int = 0
    scale: float | None = None


SeriesBySpace = Mapping[int, Series]
"""The series of a scan that are open, by encoding space (those of comparison above all of these): images of one series
must have one matrix size."""
