"""The demo on a small scan: a server process, three configurations, pictures and numbers."""

from __future__ import annotations

import dataclasses
import sys
from functools import partial
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
from PIL import Image as Picture

from inrecon.simulate import simulate_intervention, simulate_scan
from inrecon_server.cli import main
from inrecon_server.demo import DemoFailed, demo
from inrecon_server.imri_demo import imri_demo

SMALL = partial(simulate_scan, shape=(48, 48), coils=4, acceleration=3, acs=12)
SMALL_STREAM = partial(simulate_intervention, shape=(48, 48), coils=4, acceleration=2, acs=8)


def rows_of(out: str) -> dict[str, list[str]]:
    """The printed table, by method."""
    rows = (line.strip("│ ").split("│") for line in out.splitlines() if line.startswith("│"))
    return {name.strip(): cells for name, *cells in rows}


def columns(out: str) -> dict[str, list[float]]:
    """The printed table, by method, where all of it is numbers."""
    return {name: [float(number) for number in numbers] for name, numbers in rows_of(out).items()}


def test_the_demo_leaves_a_scan_images_a_picture_and_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo(tmp_path / "demo", preset="fast", simulate=SMALL)
    table = columns(capsys.readouterr().out)
    assert list(table) == ["zero-filled", "CG-SENSE", "INR"]
    for psnr, ssim, nrmse, seconds in table.values():
        assert 5 < psnr < 60
        assert 0 < ssim <= 1
        assert 0 < nrmse < 1
        assert seconds > 0
    assert table["INR"][0] > table["zero-filled"][0] + 1
    assert table["CG-SENSE"][0] > table["zero-filled"][0] + 1
    for config in ("zero_filled", "cg_sense", "inr"):
        with ismrmrd.File(tmp_path / f"demo/{config}.h5", "r") as file:
            (image,) = file["images"]["image_1"].images
        assert image.data.shape == (1, 1, 48, 48)
    with Picture.open(tmp_path / "demo/comparison.png") as picture:
        assert picture.width > picture.height > 300

    # The scan that it left is a raw file like any other.
    demo(tmp_path / "again", raw=tmp_path / "demo/scan.h5", preset="fast")
    assert all(len(numbers) == 1 for numbers in columns(capsys.readouterr().out).values())
    assert (tmp_path / "again/comparison.png").exists()
    with (
        ismrmrd.File(tmp_path / "demo/cg_sense.h5", "r") as first,
        ismrmrd.File(tmp_path / "again/cg_sense.h5", "r") as again,
    ):
        first_pixels, pixels = (file["images"]["image_1"].images[0].data for file in (first, again))
    assert np.array_equal(first_pixels, pixels)


def test_a_demo_whose_scan_is_refused_says_why(tmp_path: Path) -> None:
    scan = SMALL()
    radial = dataclasses.replace(scan, header=scan.header.replace(b"cartesian", b"radial"))
    with pytest.raises(DemoFailed, match=r"zero_filled: ERROR .*radial"):
        demo(tmp_path, simulate=lambda: radial)


@pytest.mark.parametrize("package", ["matplotlib", "skimage"])
def test_without_the_extra_packages_the_demo_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["demo", "--output", str(tmp_path / "demo")]) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"inrecon: the demo needs {package}: pip install inrecon[demo]"
    assert not (tmp_path / "demo").exists()


def test_an_intervention_is_shown_as_it_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imri_demo(tmp_path, frames=6, rate=20, preset="fast", simulate=SMALL_STREAM)
    table = rows_of(capsys.readouterr().out)
    assert list(table) == ["CG-SENSE", "residual TV, fixed prior", "INR"]
    for images, psnr, changed, *latency in table.values():
        count = int(images.split(" of 6")[0])
        assert 1 <= count <= 6
        assert 10 < float(psnr) < 60
        assert 0 < float(changed) < 2
        median, high, largest = map(float, latency)
        assert 0 <= median <= high <= largest < 60
    for name in ("cg_sense", "residual_tv", "inr"):
        with ismrmrd.File(tmp_path / f"{name}.h5", "r") as file:
            repetitions = [image.repetition for image in file["images"]["image_1"].images]
        assert repetitions == sorted(set(repetitions))
        assert repetitions[-1] == 5
    with Picture.open(tmp_path / "intervention.png") as picture:
        assert picture.width > picture.height > 300


def test_an_intervention_that_is_refused_says_why(tmp_path: Path) -> None:
    def radial(frames: int) -> object:
        stream = SMALL_STREAM(frames=frames)
        return dataclasses.replace(stream, header=stream.header.replace(b"cartesian", b"radial"))

    with pytest.raises(DemoFailed, match=r"CG-SENSE: ERROR .*radial"):
        imri_demo(tmp_path, frames=2, rate=100, simulate=radial)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["raw.h5"], "takes no raw file"), (["--rate", "0"], "above 0"), (["--frames", "1"], "2 frames")],
)
def test_what_is_no_stream_is_told(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--imri", *arguments]) == 2
    assert told in capsys.readouterr().err
