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
