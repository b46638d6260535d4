"""Interventional streams: an abdomen, or a measured object, that moves while a needle advances."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from inrecon.errors import InvalidFrame
from inrecon.simulate.abdomen import TARGET, TOWARDS_SKIN, abdomen_phantom
from inrecon.simulate.header import Examination, scan_header
from inrecon.simulate.live import Intervention
from inrecon.simulate.motion import Motion
from inrecon.simulate.moving import Array, Mask, MovingObject, way_in
from inrecon.simulate.needle import Needle, Place
from inrecon.simulate.phantom import coil_maps
from inrecon.simulate.readouts import noise_colour
from inrecon.simulate.sampling import Pattern, centre_block, sampled_lines
from inrecon.simulate.transforms import linear, zero_filled

StreamPattern = Literal["uniform", "interleaved", "random", "full"]

ABDOMEN = Examination(
    body_part="ABDOMEN",
    sequence="bSSFP",
    repetition_time_ms=4.0,
    echo_time_ms=2.0,
    field_strength_T=0.55,
    resonance_Hz=23_400_000,
    field_of_view_mm=294.4,  # 2.3 mm at 128 pixels
)
NOISE_READOUTS = 32
MOST_FRAMES = 2**16  # repetitions count in 16 bits


def simulate_intervention(
    *,
    shape: tuple[int, int] = (128, 128),
    coils: int = 24,
    frames: int = 100,
    acceleration: int = 6,
    acs: int = 6,
    pattern: StreamPattern = "uniform",
    first_full: bool = True,
    snr: float = 40.0,
    oversampling: bool = True,
    motion: float = 1.0,
    breath: float = 10.0,
    needle: bool = True,
    slices: int = 1,
    shift_at: int | None = None,
    noise_readouts: bool = True,
    protocol: str = "simulated_imri",
    seed: int = 0,
) -> Intervention:
    """An abdomen at 0.55 T, balanced SSFP, 294 x 294 mm of matrix `shape` ``(y, x)``, and a needle on its way to a
    lesion in the liver.

    `pattern`, `acceleration` and `acs` pick the lines of a frame: "uniform" the same in each, "interleaved" one line
    further from frame to frame, "random" drawn anew, dense near the centre, "full" all; `first_full` makes the first
    frame a full one. `motion` is that of breath, pulse and bowel: 0 none, 1 of a quiet patient, 3 large; `breath` the
    number of frames that a breath takes; from frame `shift_at` on the patient lies 8 mm and 3 degrees elsewhere. The
    `needle`, in slice ``slices // 2``, arrives after 60 % of the frames. A frame is one moment for each of its slices,
    however long its readouts take. `snr` as in `simulate_scan`, of the first frame; infinite for no noise and no noise
    readouts. `seed` draws everything. `oversampling` doubles the samples of readouts and their field of view.

    The truth of a frame is cut from an object of twice the resolution. Raises `InvalidFrame` for an impossible stream.
    """
    stream = _Stream(
        shape=shape, slices=slices, frames=frames, acceleration=acceleration, acs=acs, pattern=pattern,
        first_full=first_full, snr=snr, oversampling=oversampling, motion=motion, breath=breath, shift_at=shift_at,
        noise_readouts=noise_readouts, protocol=protocol, seed=seed, examination=ABDOMEN,
    )  # fmt: skip
    fine, maps = (4 * shape[0], 4 * shape[1]), coil_maps((2 * shape[0], 2 * shape[1]), coils, seed=seed)
    rest = np.stack([abdomen_phantom(fine, index=index, seed=seed).astype(np.complex64) for index in range(slices)])
    return stream.of(rest, maps.astype(np.complex64), way=(TARGET, TOWARDS_SKIN) if needle else None)


def repaint(
    image: NDArray[np.complexfloating[Any, Any]],
    csm: NDArray[np.complexfloating[Any, Any]],
    *,
    frames: int = 100,
    acceleration: int = 6,
    acs: int = 6,
    pattern: StreamPattern = "uniform",
    first_full: bool = True,
    snr: float = 40.0,
    oversampling: bool = True,
    motion: float = 0.0,
    breath: float = 10.0,
    needle: bool = True,
    target: tuple[float, float] = (0.15, 0.10),
    towards: tuple[float, float] = (-0.7, -0.7),
    pixel_mm: float = 2.3,
    anatomy: str | None = None,
    shift_at: int | None = None,
    noise_readouts: bool = True,
    protocol: str = "repainted",
    seed: int = 0,
) -> Intervention:
    """A stream of a measured object: `image` ``(y, x)`` complex, with coil maps `csm` ``(coils, y, x)`` that it was
    measured with, of unit root-sum-of-squares where the object is and zero elsewhere.

    The needle ends at `target`, ``(u, v)`` from -1 to 1 along x and y, and comes from the direction `towards`, from
    where the maps end. Square pixels of `pixel_mm` make millimetres of what is painted. The object outside of the maps
    is not seen: `motion`, in the manner of an abdomen, and a shift move parts of it there. The noise of the image moves
    with it; that of the readouts, `snr`, comes on top. For the rest see `simulate_intervention`.

    The image is interpolated by zero-filling, the maps linearly. Raises `InvalidFrame` for an impossible stream, or
    for an image and maps that do not fit or are not finite.
    """
    if image.ndim != 2 or csm.ndim != 3 or csm.shape[1:] != image.shape:
        raise InvalidFrame(f"coil maps {csm.shape} for an image {image.shape}")
    if not (np.isfinite(image).all() and np.isfinite(csm).all()):
        raise InvalidFrame("an image to be repainted, or its coil maps, holds values that are not finite")
    rows, columns = image.shape
    stream = _Stream(
        shape=(rows, columns), slices=1, frames=frames, acceleration=acceleration, acs=acs, pattern=pattern,
        first_full=first_full, snr=snr, oversampling=oversampling, motion=motion, breath=breath, shift_at=shift_at,
        noise_readouts=noise_readouts, protocol=protocol, seed=seed, aspect=rows / columns,
        examination=replace(ABDOMEN, body_part=anatomy, field_of_view_mm=pixel_mm * columns),
    )  # fmt: skip
    inside = linear(rows, 4) @ (np.linalg.norm(csm, axis=0) > 0.5) @ linear(columns, 4).T >= 0.5
    rest = np.where(inside, zero_filled(image, 4), 0).astype(np.complex64)[None]
    up, across = (linear(n, 2) for n in image.shape)
    maps = (up @ csm @ across.T).astype(np.complex64)
    return stream.of(rest, maps, way=(target, towards) if needle else None)


@dataclass(frozen=True, kw_only=True)
class _Stream:
    """What both kinds of stream are told, and how that becomes an `Intervention`."""

    shape: tuple[int, int]
    slices: int
    frames: int
    acceleration: int
    acs: int
    pattern: StreamPattern
    first_full: bool
    snr: float
    oversampling: bool
    motion: float
    breath: float
    shift_at: int | None
    noise_readouts: bool
    protocol: str
    seed: int
    examination: Examination
    aspect: float = 1.0

    def __post_init__(self) -> None:
        if self.pattern not in get_args(StreamPattern):
            raise InvalidFrame(f"pattern must be one of {', '.join(get_args(StreamPattern))}, not {self.pattern!r}")
        if not 1 <= self.frames <= MOST_FRAMES or self.slices < 1 or min(self.shape) < 8:
            raise InvalidFrame(
                f"a simulated stream needs 1 to {MOST_FRAMES} frames of at least one slice and 8 x 8 pixels, not "
                f"{self.frames}, {self.slices} and {self.shape}"
            )
        if not (self.snr > 0 and 0 <= self.motion < np.inf and 1 <= self.breath < np.inf):
            raise InvalidFrame(
                "a simulated stream needs an SNR above 0, motion of at least 0 and breaths of at least a frame, not "
                f"{self.snr}, {self.motion} and {self.breath}"
            )

    def of(self, rest: Array, maps: Array, *, way: tuple[Place, Place] | None) -> Intervention:
        """`rest` and `maps` as `MovingObject` and `Intervention` have them; `way` the needle's target and direction."""
        rows, columns = self.shape
        half_mm, samples = self.examination.field_of_view_mm / 2, columns * (2 if self.oversampling else 1)
        needle = None
        if way is not None:
            entry = way_in(rest[self.slices // 2], *way, aspect=self.aspect)
            needle = Needle(entry=entry, target=way[0], frames=self.frames, unit_mm=half_mm)
        motion = Motion(amount=self.motion, breath=self.breath, shift_at=self.shift_at, half_mm=half_mm, seed=self.seed)
        calibration = np.zeros(rows, bool)
        if self.pattern != "full":
            calibration[centre_block(rows, self.acs)] = True
        silent = Intervention(
            header=self._header(samples, len(maps)),
            csm=maps[:, rows % 2 :: 2, columns % 2 :: 2],
            lines=self._lines(),
            calibration=calibration,
            scene=MovingObject(rest=rest, motion=motion, needle=needle, aspect=self.aspect),
            maps=maps,
            samples=samples,
            colour=np.zeros((len(maps), len(maps)), np.complex128),
            noise_readouts=0,
            repetition_time_ms=self.examination.repetition_time_ms,
            seed=self.seed,
        )
        if np.isinf(self.snr):
            return silent
        signal = np.mean([np.abs(silent.truth(0, i))[silent.support(0, i)].mean() for i in range(self.slices)])
        colour = noise_colour(len(maps), np.random.default_rng((self.seed, 1))) * (signal / self.snr)
        return replace(silent, colour=colour, noise_readouts=NOISE_READOUTS if self.noise_readouts else 0)

    def _lines(self) -> Mask:
        pattern: Pattern = "uniform" if self.pattern == "interleaved" else self.pattern
        masks = [
            sampled_lines(
                self.shape[0],
                pattern=pattern,
                acceleration=self.acceleration,
                acs=self.acs,
                offset=frame if self.pattern == "interleaved" else 0,
                seed=self.seed + frame,
            )
            for frame in range(self.frames)
        ]
        if self.first_full:
            masks[0][:] = True
        return np.stack(masks)

    def _header(self, samples: int, coils: int) -> bytes:
        return scan_header(
            shape=self.shape,
            samples=samples,
            lines=self.shape[0],
            centre_line=self.shape[0] // 2,
            coils=coils,
            acceleration=None if self.pattern == "full" else self.acceleration,
            slices=self.slices,
            repetitions=self.frames,
            protocol=self.protocol,
            field_of_view=self.aspect,
            examination=self.examination,
        )
