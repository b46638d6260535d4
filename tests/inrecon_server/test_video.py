"""Images to videos: what a frame shows, in one window throughout, and how fast."""

from __future__ import annotations

from pathlib import Path

import ismrmrd
import numpy as np
import pytest
from PIL import Image as Picture

from inrecon_server.files import NoVideo
from inrecon_server.video import Film, Kind, write_video


def image(values: float | np.ndarray, *, scale: float = 1.0, shape: tuple[int, int] = (16, 24), **head: int):
    data = np.broadcast_to(np.asarray(values, np.float32), (1, 1, *shape)) if np.ndim(values) < 3 else values[None]
    made = ismrmrd.Image.from_array(np.ascontiguousarray(data), transpose=False)
    made.image_series_index = 1
    for name, value in head.items():
        setattr(made, name, value)
    made.meta = ismrmrd.Meta({"GADGETRON_ScaleRatio": str(scale)})
    return made


def of(images: list[ismrmrd.Image], *, counter: bool = False) -> np.ndarray:
    return np.stack(list(Film.of(images).pictures(counter=counter)))


def gif(path: Path) -> tuple[list[np.ndarray], list[int]]:
    with Picture.open(path) as picture:
        frames, durations = [], []
        for number in range(picture.n_frames):
            picture.seek(number)
            frames.append(np.asarray(picture.convert("L")))
            durations.append(picture.info["duration"])
    return frames, durations


def test_the_window_is_one_for_all_frames() -> None:
    ramp = np.linspace(0, 1, 24)
    shown = of([image(level * ramp, repetition=n) for n, level in enumerate([1.0, 0.5, 0.25, 1.0])])
    assert shown.shape == (4, 16, 24)
    assert shown.dtype == np.uint8
    np.testing.assert_allclose(shown[0], np.broadcast_to(255 * ramp, (16, 24)), atol=1)
    np.testing.assert_allclose(shown[1] / 255, shown[0] / 255 / 2, atol=0.01)
    assert np.array_equal(shown[0], shown[3])


def test_one_bright_frame_does_not_darken_the_others() -> None:
    shown = of([image(10.0 if n == 0 else 1.0, repetition=n) for n in range(40)])
    assert (shown == 255).all()


def test_a_series_that_took_over_goes_on_in_the_same_greys() -> None:
    shown = of([image(100, scale=100, repetition=0), image(30, scale=30, repetition=1, image_series_index=101)])
    assert shown.shape == (2, 16, 24)
    assert np.array_equal(shown[0], shown[1])


def test_frames_come_in_the_order_of_their_arrival_however_they_are_counted() -> None:
    levels = {65534: 0.25, 65535: 0.5, 0: 0.75, 1: 1.0}
    shown = of([image(level, repetition=n) for n, level in levels.items()])
    np.testing.assert_allclose(shown[:, 0, 0] / 255, list(levels.values()), atol=0.1)
    begun_anew = of([image(0.2 * (n + 1), repetition=n % 3) for n in range(5)])
    assert (np.diff(begun_anew[:, 0, 0].astype(int)) > 0).all()


def test_each_slice_contrast_and_comparison_is_a_tile_that_stays_until_its_next() -> None:
    first = [image(1.0 + n, slice=n, repetition=0) for n in (1, 0)]
    later = [image(1.5, slice=0, repetition=1), image(2.0, slice=0, repetition=1, image_series_index=10_001)]
    shown = of([*first, *later])
    assert shown.shape == (2, 32, 48)
    tiles = shown.reshape(2, 2, 16, 2, 24).swapaxes(2, 3).reshape(2, 4, -1)
    assert (tiles == tiles[..., :1]).all()
    np.testing.assert_allclose(tiles[..., 0], np.array([[0.5, 1, 0, 0], [0.75, 1, 1, 0]]) * 255, atol=15)


def test_of_one_repetition_several_images_follow_one_another() -> None:
    assert len(of([image(float(n), repetition=0) for n in range(5)])) == 5


def test_partitions_are_tiles() -> None:
    volume = np.arange(1, 5, dtype=np.float32)[:, None, None] * np.ones((4, 16, 24), np.float32)
    shown = of([image(volume, repetition=n) for n in (0, 1)])
    assert shown.shape == (2, 32, 48)
    assert len(np.unique(shown)) == 4


def test_tiles_of_other_sizes_have_room() -> None:
    shown = of([image(1.0), image(1.0, shape=(8, 8), image_series_index=2), image(1.0, repetition=1)])
    assert shown.shape == (2, 16, 48)
    assert (shown[:, :8, 24:32] == 255).all()
    assert shown[:, :, 24:].sum() == 2 * 64 * 255


def test_the_counter_hides_nothing() -> None:
    images = [image(1.0, repetition=n, shape=(8, 8)) for n in (3, 14)]
    with_counter = of(images, counter=True)
    assert (with_counter[:, :8, :8] == 255).all()
    strips = with_counter[:, 8:]
    assert strips.any(axis=(1, 2)).all()
    assert not np.array_equal(*strips)


def test_one_frame_is_no_video() -> None:
    with pytest.raises(NoVideo, match="one frame only"):
        Film.of([image(1.0, slice=n) for n in range(3)])


def test_what_is_too_large_is_told() -> None:
    images = [image(1.0, shape=(3000, 3000), slice=n, repetition=r) for n in range(5) for r in range(2)]
    with pytest.raises(NoVideo, match="9000 x 6000 pixels are too many"):
        next(Film.of(images).pictures(counter=False))


def test_black_images_are_black() -> None:
    assert not of([image(0.0, repetition=n) for n in (0, 1)]).any()


@pytest.mark.parametrize(
    ("stamps", "vendor", "rate"),
    [
        ([0, 40, 80, 120], "SIEMENS", 10.0),
        ([0, 40, 80, 121], "Siemens Healthineers", 10.0),
        ([0, 40, 80, 400], "SIEMENS", None),  # a pause: something else is counted, or it was no stream
        ([0, 0, 0, 0], "SIEMENS", None),
        ([34_559_990, 30, 70, 110], "SIEMENS", None),  # over midnight
        ([0, 1, 2, 3], "SIEMENS", None),  # 400 a second
        ([0, 40, 80, 120], "inrecon", None),
        ([0, 40, 80, 120], None, None),
    ],
)
def test_time_stamps_are_believed_where_they_can_be(stamps: list[int], vendor: str | None, rate: float | None) -> None:
    images = [image(1.0, repetition=n, acquisition_time_stamp=stamp) for n, stamp in enumerate(stamps)]
    assert Film.of(images).rate(vendor) == rate


def film(frames: int = 7, shape: tuple[int, int] = (33, 47)) -> Film:
    rows, columns = np.indices(shape)
    return Film.of(
        [image((rows + 3 * columns + 20 * n).astype(float), shape=shape, repetition=n) for n in range(frames)]
    )


def test_a_gif_holds_the_frames_to_the_grey_and_takes_the_time_that_it_should(tmp_path: Path) -> None:
    write_video(tmp_path / "any.part", film(), kind="gif", rate=15.0, counter=False)
    frames, durations = gif(tmp_path / "any.part")
    assert np.array_equal(frames, list(film().pictures(counter=False)))
    assert sum(durations) == 470  # 7 / 15 s, in hundredths
    assert set(durations) <= {60, 70}


def test_an_mp4_holds_the_frames_nearly_so(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="MP4 needs the extra video")
    write_video(tmp_path / "any.part", film(), kind="mp4", rate=12.5, counter=False)
    with av.open(str(tmp_path / "any.part")) as file:
        (stream,) = file.streams
        assert (stream.codec_context.name, float(stream.average_rate)) == ("h264", 12.5)
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
    assert [frame.shape for frame in frames] == [(34, 48, 3)] * 7
    for frame, meant in zip(frames, film().pictures(counter=False), strict=True):
        assert np.abs(frame[:33, :47].astype(int) - meant[..., None]).mean() < 4


def test_greys_of_an_mp4_are_those_that_were_meant(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="MP4 needs the extra video")
    levels = np.array([0, 16, 64, 128, 200, 235, 255], float)
    bars = np.tile(np.repeat(levels, 16), (16, 1))
    shown = Film.of([image(bars, shape=bars.shape, repetition=n) for n in range(3)])
    write_video(tmp_path / "any.part", shown, kind="mp4", rate=10.0, counter=False)
    with av.open(str(tmp_path / "any.part")) as file:
        for frame in file.decode(video=0):
            np.testing.assert_allclose(frame.to_ndarray(format="rgb24")[8, 8::16, 0], levels, atol=2)


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_what_does_not_move_is_a_video_too(tmp_path: Path, kind: Kind) -> None:
    if kind == "mp4":
        pytest.importorskip("av", reason="MP4 needs the extra video")
    still = Film.of([image(np.indices((16, 24))[0].astype(float), repetition=n) for n in range(5)])
    write_video(tmp_path / "still", still, kind=kind, rate=10.0, counter=False)
    if kind == "gif":
        _, durations = gif(tmp_path / "still")
        assert sum(durations) == 500
    assert (tmp_path / "still").stat().st_size > 100
