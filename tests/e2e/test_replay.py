"""A raw file replayed is the same file sent over TCP: the same pixels, and a report of how they came to be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import ismrmrd
import numpy as np
import pytest
from PIL import Image as Picture
from PIL import ImageSequence

from inrecon.simulate import SimulatedScan, simulate_scan, write_ismrmrd
from inrecon_server.cli import main
from inrecon_server.files import open_raw

if TYPE_CHECKING:
    from conftest import RunningServer

PHANTOM = Path(__file__).parents[2] / ".." / "shared" / "data" / "phantom_14ch_bssfp_R3_noise.h5"
FEW_ITERATIONS = '<configuration><property name="iterations" value="30"/></configuration>'
REPORTED = {
    *("series", "index", "slice", "repetition", "contrast", "method", "entry", "hyperparameters", "device", "backend"),
    *("seconds", "iterations", "stopped_by", "training_loss", "validation_loss", "fallback"),
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def movie() -> SimulatedScan:
    return simulate_scan(shape=(40, 32), coils=4, acceleration=2, acs=12, slices=2, repetitions=2, pattern="random")


@pytest.fixture
def raw(tmp_path: Path, movie: SimulatedScan) -> Path:
    write_ismrmrd(tmp_path / "raw.h5", movie)
    return tmp_path / "raw.h5"


def replay(raw: Path, *arguments: str, code: int = 0) -> list[ismrmrd.Image]:
    out = raw.with_name("out.h5")
    assert main(["replay", str(raw), "-o", str(out), "--device", "cpu", *arguments]) == code
    with ismrmrd.File(out, "r") as file:
        return list(file["images"]["image_1"].images)


def test_a_prior_of_an_earlier_scan_is_not_passed_over_in_silence(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replay(raw, "--config", '{"parameters": {"config": "inr_imri", "method": "zero_filled", "prior": "patient 1"}}')
    told = capsys.readouterr().err
    assert "known to a server only" in told
    assert "patient 1" not in told


def meta_but_times(image: ismrmrd.Image) -> dict[str, object]:
    return {name: value for name, value in image.meta.items() if "seconds" not in name}


@pytest.mark.parametrize("config", ["zero_filled", "cg_sense", FEW_ITERATIONS])
def test_replayed_and_sent_over_tcp_the_pixels_are_the_same(
    server: RunningServer, movie: SimulatedScan, raw: Path, config: str
) -> None:
    sent = server.send(movie, config=config).images
    replayed = replay(raw, "-c", config)
    assert len(sent) == len(replayed) == 4
    for one, other in zip(sent, replayed, strict=True):
        assert one.data.dtype == other.data.dtype
        assert np.array_equal(one.data, other.data)
        assert meta_but_times(one) == meta_but_times(other)
        heads = one.getHead(), other.getHead()
        for head in heads:
            head.attribute_string_len = 0
        assert bytes(heads[0]) == bytes(heads[1])


def test_so_are_those_that_the_command_send_keeps(server: RunningServer, raw: Path) -> None:
    kept = raw.with_name("sent.h5")
    assert main(["send", str(raw), "-p", str(server.port), "-c", "cg_sense", "-o", str(kept)]) == 0
    with ismrmrd.File(kept, "r") as file:
        sent = [image.data.copy() for image in file["images"]["image_1"].images]
    assert np.array_equal(sent, [image.data for image in replay(raw, "-c", "cg_sense")])


def test_a_real_scan_replayed_is_the_one_sent(server: RunningServer, tmp_path: Path) -> None:
    if not PHANTOM.exists():
        pytest.skip(f"needs {PHANTOM.name}, which is not distributed")
    (tmp_path / "raw.h5").write_bytes(PHANTOM.read_bytes())
    kept = tmp_path / "sent.h5"
    assert main(["send", str(PHANTOM), "-p", str(server.port), "-c", "cg_sense", "-o", str(kept)]) == 0
    (replayed,) = replay(tmp_path / "raw.h5", "-c", "cg_sense")
    with ismrmrd.File(kept, "r") as file:
        assert np.array_equal(file["images"]["image_1"].images[0].data, replayed.data)
    assert replayed.data.max() > 1000


def test_the_command_line_goes_over_the_configuration(raw: Path) -> None:
    report = raw.with_name("report.json")
    arguments = ["--method", "bilevel_inr", "--preset", "fast", "--set", "iterations=12", "--set", "seed=3"]
    images = replay(raw, "-c", "cg_sense", "--dtype", "complex", "--report", str(report), *arguments)
    assert all(image.data.dtype == np.complex64 for image in images)
    for entry in json.loads(report.read_text()):
        assert entry["method"] == "bilevel_inr"
        assert (entry["hyperparameters"]["iterations"], entry["hyperparameters"]["seed"]) == (12, 3)


def test_the_report_has_an_object_for_each_image_and_each_image_a_png(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, pngs = raw.with_name("report.json"), raw.with_name("pictures")
    images = replay(raw, "-c", "cg_sense", "--report", str(report), "--png", str(pngs))
    entries = json.loads(report.read_text())
    assert all(set(entry) >= REPORTED for entry in entries)
    assert [entry["fallback"] for entry in entries] == [None] * 4
    names = "image_series_index", "image_index", "slice", "repetition"
    assert [[getattr(image, name) for name in names] for image in images] == [
        [entry[name] for name in ("series", "index", "slice", "repetition")] for entry in entries
    ]
    for entry in entries:
        assert {"condition", "calibrate", "fit", "image"} <= set(entry["seconds"])
    assert sorted(path.name for path in pngs.iterdir()) == [f"image_1_{n:04d}.png" for n in (1, 2, 3, 4)]
    for image, path in zip(images, sorted(pngs.iterdir()), strict=True):
        shown, meant = np.asarray(Picture.open(path)).ravel(), image.data.ravel().astype(float)
        assert np.corrcoef(shown, meant)[0, 1] > 0.99
    told = capsys.readouterr()
    assert told.out.startswith("4 images in")
    assert told.err == ""


def test_a_fall_back_is_told_once_and_reported_for_each_image(
    raw: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from inrecon.errors import FitDiverged
    from inrecon.methods import BilevelINR

    def diverge(self, frames):
        return [FitDiverged("the fit diverged") for _ in frames]

    monkeypatch.setattr(BilevelINR, "fit_slices", diverge)
    report = raw.with_name("report.json")
    assert len(replay(raw, "--method", "bilevel_inr", "--report", str(report))) == 4
    assert [entry["fallback"] for entry in json.loads(report.read_text())] == ["the fit diverged; CG-SENSE instead"] * 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("inrecon: warning: fall-back (fit): the fit diverged")


def test_what_is_complete_before_a_broken_readout_is_kept(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_raw(raw) as file:
        second = next(n for n, readout in enumerate(file.acquisitions()) if readout.idx.repetition == 1)
    with h5py.File(raw, "r+") as file:
        row = file["dataset/data"][second]
        row["data"][5] = np.nan
        file["dataset/data"][second] = row
    assert [image.repetition for image in replay(raw, "-c", "cg_sense", code=1)] == [0, 0]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("inrecon: ")
    assert "is not complete" in last
    assert "finite" in last


def test_without_an_image_there_is_no_output(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(raw, "r+") as file:
        noise = file["dataset/data"][:32]
        del file["dataset/data"]
        file.create_dataset("dataset/data", data=noise)
    assert main(["replay", str(raw), "-o", str(raw.with_name("out.h5")), "-c", "cg_sense"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no image" in line
    assert "32 noise readouts" in line
    assert list(raw.parent.iterdir()) == [raw]


def test_a_replay_as_a_process_of_its_own(raw: Path) -> None:
    command = [sys.executable, "-m", "inrecon_server.cli", "replay", raw, "-o", raw.with_name("out.h5"), "-c"]
    done = subprocess.run([*command, "zero_filled"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("4 images in")


def frames_of(path: Path) -> list[np.ndarray]:
    if path.suffix == ".mp4":
        av = pytest.importorskip("av", reason="MP4 needs the extra video")
        with av.open(str(path)) as file:
            return [frame.to_ndarray(format="rgb24")[..., 0] for frame in file.decode(video=0)]
    with Picture.open(path) as picture:
        return [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(picture)]


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_repetitions_are_a_video_in_one_window(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    if kind == "mp4":
        pytest.importorskip("av", reason="MP4 needs the extra video")
    stream = simulate_scan(shape=(32, 32), coils=4, acceleration=2, acs=12, slices=2, repetitions=4, pattern="random")
    write_ismrmrd(tmp_path / "raw.h5", stream)
    video = tmp_path / f"movie.{kind}"
    images = replay(tmp_path / "raw.h5", "-c", "cg_sense", "--video", str(video), "--fps", "8")
    assert "a video of 4 frames, 8 a second" in capsys.readouterr().out
    frames = frames_of(video)
    assert [frame.shape for frame in frames] == [(32, 64)] * 4
    pairs = [np.hstack([image.data[0, 0] for image in images if image.repetition == n]) for n in range(4)]
    white = np.percentile([np.percentile(image.data, 99.9) for image in images], 90)
    for frame, pair in zip(frames, pairs, strict=True):
        error = np.abs(frame - 255 * np.clip(pair / white, 0, 1))
        assert error.max() < 1 if kind == "gif" else error.mean() < 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["movie." + kind, "out.h5", "raw.h5"]


def test_the_video_of_a_scan_by_siemens_is_as_fast_as_the_scan(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(raw, "r+") as file:
        file["dataset/xml"][0] = file["dataset/xml"][0].replace(b"<systemVendor>inrecon<", b"<systemVendor>SIEMENS<")
    replay(raw, "-c", "zero_filled", "--video", str(raw.with_name("movie.gif")), "--counter")
    told = capsys.readouterr().out
    assert "a video of 2 frames" in told
    assert told.rstrip().endswith("as they were acquired")
    assert frames_of(raw.with_name("movie.gif"))[0].shape == (52, 64)


def test_of_one_repetition_there_is_no_video_but_all_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_ismrmrd(tmp_path / "raw.h5", simulate_scan(shape=(32, 32), coils=2, acceleration=2, acs=12))
    video = tmp_path / "movie.gif"
    video.write_bytes(b"an earlier one")
    assert len(replay(tmp_path / "raw.h5", "-c", "zero_filled", "--video", str(video), code=1)) == 1
    assert f"{video} is not written: there is one frame only" in capsys.readouterr().err
    assert video.read_bytes() == b"an earlier one"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--video", "movie.avi"], "movie.avi: the name of a video ends in .gif or .mp4"),
        (["--video", "nowhere/movie.gif"], "nowhere/movie.gif cannot be written: No such file"),
        (["--video", "movie.gif", "--fps", "60"], "a GIF has 50 frames a second at most, not 60"),
        (["--video", "movie.gif", "--fps", "0"], "must be a number from 0.1 to 100, not '0'"),
        (["--fps", "5"], "--fps and --counter are of a --video"),
        (["--counter"], "--fps and --counter are of a --video"),
        (["--report", "m.gif", "--video", "m.gif"], "m.gif cannot hold both the report and the video"),
        (["-o", "./", "--video", "movie.gif"], "movie.gif is the name of one"),
    ],
)
def test_what_cannot_be_a_video_costs_no_reconstruction(
    raw: Path,
    arguments: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(raw.parent)
    try:
        code = main(["replay", str(raw), "-o", "out.h5", *arguments])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert list(raw.parent.iterdir()) == [raw]


def test_mp4_without_its_package_is_told(
    raw: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inrecon_server.batch.find_spec", lambda name: None)
    assert main(["replay", str(raw), "-o", str(raw.with_name("out.h5")), "--video", "movie.mp4"]) == 2
    assert "pip install 'inrecon[video]'" in capsys.readouterr().err


def test_of_several_files_there_is_a_folder_of_videos(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = raw.with_name("videos")
    assert main(["replay", str(raw), "-o", f"{raw.parent}/", "-c", "zero_filled", "--video", str(folder)]) == 2
    images = raw.with_name("images")
    assert main(["replay", str(raw), "-o", f"{images}/", "-c", "zero_filled", "--video", str(folder)]) == 0
    assert [path.name for path in folder.iterdir()] == ["raw.gif"]
    assert len(frames_of(folder / "raw.gif")) == 2
