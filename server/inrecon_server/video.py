"""Images of a stream as a video, GIF or MP4: each slice a tile, one grey window throughout."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeAlias

import ismrmrd
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageDraw

from inrecon.image import SERIES_STEP, bright_end
from inrecon.stream import COMPARED_SPACE
from inrecon_server.files import NoVideo

Kind = Literal["gif", "mp4"]
Grey: TypeAlias = NDArray[np.uint8]

USUAL_RATE = 10.0
_SIDE_MAX = 8192
_BRIGHT_FRAMES = 90
_TICK_S = 0.0025
_PLAUSIBLE_RATES = 0.2, 100.0
_UNEVEN = 3.0
_STRIP_ROWS, _STRIP_COLUMNS = 12, 48

_Tile: TypeAlias = tuple[int, ...]
_Time: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Film:
    """What a video is made of: for each of `times`, in order of arrival, the image of each tile that has a new one.

    A tile is a partition of a slice, contrast, set and series; series that took over from one another are one. A time
    is a repetition and phase, of which a sliding window, or counters that begin anew, may give several images. `tops`
    are white by encoding space, in units of signal.
    """

    times: dict[_Time, dict[_Tile, ismrmrd.Image]]
    tiles: tuple[_Tile, ...]
    tops: dict[int, float]

    @classmethod
    def of(cls, images: Sequence[ismrmrd.Image]) -> Film:
        """`images`, in the order in which they came; raises `NoVideo` if no tile has a second one."""
        times: dict[_Time, dict[_Tile, ismrmrd.Image]] = defaultdict(dict)
        bright: dict[int, list[float]] = defaultdict(list)
        for image in images:
            series = image.image_series_index - 1
            place = series // COMPARED_SPACE, series % SERIES_STEP, image.set, image.contrast, image.slice
            bright[place[1]].append(bright_end(_magnitude(image)))
            again = 0
            while (*place, 0) in times[image.repetition, image.phase, again]:
                again += 1
            for z in range(image.data.shape[1]):
                times[image.repetition, image.phase, again][(*place, z)] = image
        if len(times) < 2:
            raise NoVideo("there is one frame only, which makes no video")
        return cls(
            times=dict(times),
            tiles=tuple(sorted({tile for shown in times.values() for tile in shown})),
            tops={space: float(np.percentile(ends, _BRIGHT_FRAMES)) or 1.0 for space, ends in bright.items()},
        )

    def rate(self, vendor: str | None) -> float | None:
        """Frames a second by the time stamps of their readouts; None where these cannot be what they seem.

        Only of Siemens it is known what they count: 2.5 ms.
        """
        if vendor is None or "siemens" not in vendor.lower():
            return None
        stamps = [min(image.acquisition_time_stamp for image in shown.values()) for shown in self.times.values()]
        gaps = np.diff(np.array(stamps, np.int64))
        middle = float(np.median(gaps))
        if gaps.min() <= 0 or gaps.max() > _UNEVEN * middle:
            return None
        rate = 1 / (_TICK_S * middle)
        return rate if _PLAUSIBLE_RATES[0] <= rate <= _PLAUSIBLE_RATES[1] else None

    def pictures(self, *, counter: bool) -> Iterator[Grey]:
        """The frames ``(rows, columns)``: the tiles row by row in a grid that is about as high as wide, each with its
        latest image, and below them the repetition if `counter`. Raises `NoVideo` if they are too large."""
        sizes = [image.data.shape[2:] for shown in self.times.values() for image in shown.values()]
        rows, columns = max(size[0] for size in sizes), max(size[1] for size in sizes)
        across = math.ceil(math.sqrt(len(self.tiles) * rows / columns))
        down = math.ceil(len(self.tiles) / across)
        sheet = np.zeros((down * rows, across * columns), np.uint8)
        if max(sheet.shape) > _SIDE_MAX:
            raise NoVideo(f"{sheet.shape[1]} x {sheet.shape[0]} pixels are too many for a video; {_SIDE_MAX} a side")
        for (repetition, _, _), shown in self.times.items():
            for tile, image in shown.items():
                place = self.tiles.index(tile)
                grey = _grey(image, tile[-1], top=self.tops[tile[1]])
                row, column = place // across * rows, place % across * columns
                sheet[row : row + rows, column : column + columns] = 0
                sheet[row : row + len(grey), column : column + grey.shape[1]] = grey
            yield _with_strip(sheet, f"rep {repetition}") if counter else sheet.copy()


def write_video(path: Path, film: Film, *, kind: Kind, rate: float, counter: bool) -> None:
    """Write `film` at `rate` frames a second; a file at `path` is replaced. Raises `NoVideo`.

    MP4 is H.264, and a row or column of black is added to an odd number.
    """
    if kind == "gif":
        _write_gif(path, film.pictures(counter=counter), rate=rate)
    else:
        _write_mp4(path, film.pictures(counter=counter), rate=rate)


def _write_gif(path: Path, pictures: Iterator[Grey], *, rate: float) -> None:
    frames = [Picture.fromarray(grey) for grey in pictures]
    # GIF counts hundredths of a second: rounded one by one they would add up to another rate.
    ends = [round(100 * number / rate) for number in range(len(frames) + 1)]
    durations = [10 * (end - begin) for begin, end in pairwise(ends)]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _write_mp4(path: Path, pictures: Iterator[Grey], *, rate: float) -> None:
    import av

    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as file:
        stream = file.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000), options={"crf": "12"})
        stream.pix_fmt = "yuv420p"
        for number, grey in enumerate(pictures):
            even = np.pad(grey, [(0, size % 2) for size in grey.shape])
            if number == 0:
                stream.height, stream.width = even.shape
            # Through RGB, whose range of greys nobody doubts.
            frame = av.VideoFrame.from_ndarray(np.repeat(even[..., np.newaxis], 3, axis=-1), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def _magnitude(image: ismrmrd.Image) -> NDArray[np.float32]:
    """The magnitude ``(z, y, x)`` of the first channel in units of signal, whatever the series' scale."""
    try:
        scale = float(image.meta["GADGETRON_ScaleRatio"])
    except (KeyError, TypeError, ValueError):
        scale = 1.0
    magnitude: NDArray[np.float32] = (np.abs(image.data[0]) / (scale or 1.0)).astype(np.float32)
    return magnitude


def _grey(image: ismrmrd.Image, z: int, *, top: float) -> Grey:
    grey: Grey = np.rint(255 * np.clip(_magnitude(image)[z] / top, 0, 1)).astype(np.uint8)
    return grey


def _with_strip(sheet: Grey, text: str) -> Grey:
    rows, columns = sheet.shape
    canvas = np.pad(sheet, ((0, _STRIP_ROWS), (0, max(0, _STRIP_COLUMNS - columns))))
    strip = Picture.new("L", (canvas.shape[1], _STRIP_ROWS))
    ImageDraw.Draw(strip).text((2, 0), text, fill=255)
    canvas[rows:] = np.asarray(strip)
    return canvas
