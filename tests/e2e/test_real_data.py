"""Real scanner data, as a file on disk, through the same rooms: images better than CG-SENSE, in the right place."""

import json
import subprocess
import sys
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
import torch

from inrecon.calibrate import espirit
from inrecon.quality import psnr
from inrecon_server.cli import main

SHARED = Path(__file__).parents[2] / ".." / "shared"


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"the real data set {name} is not at hand")
    return path


def images_of(raw: Path, output: Path, *options: str) -> list[ismrmrd.Image]:
    assert main(["replay", str(raw), "-o", str(output), "--device", "cpu", "--dtype", "complex", *options]) == 0
    with ismrmrd.File(str(output), "r") as file:
        return list(file["images"]["image_1"].images)


def centred_image(kspace: np.ndarray) -> np.ndarray:
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes), axes=axes, norm="ortho"), axes)


def test_a_brain_at_random_r4_beats_cg_sense_by_more_than_a_decibel(tmp_path: Path) -> None:
    source = shared("data/brain_16ch_96.npz")
    raw = tmp_path / "raw.h5"
    options = ["--pattern", "random", "--acceleration", "4", "--acs", "12", "--noise"]
    converter = [sys.executable, str(shared("tools/to_ismrmrd.py")), "cartesian", str(source), str(raw), *options]
    subprocess.run(converter, check=True, capture_output=True)
    kspace = np.load(source)["kspace"]
    reference = np.sqrt((np.abs(centred_image(kspace)) ** 2).sum(0))
    support = espirit(torch.from_numpy(kspace[:, 36:60, 36:60].copy()), (96, 96)).support.numpy()
    report = tmp_path / "report.json"
    (inr,) = images_of(raw, tmp_path / "inr.h5", "--report", str(report))
    (cg_sense,) = images_of(raw, tmp_path / "cg.h5", "--method", "cg_sense")
    gain = psnr(inr.data[0, 0], reference, support) - psnr(cg_sense.data[0, 0], reference, support)
    assert gain > 1
    (facts,) = json.loads(report.read_text())
    assert facts["fallback"] is None
    assert facts["method"] == "auto"


def test_a_scanner_file_with_partial_fourier_and_noise_comes_out_in_recon_space(tmp_path: Path) -> None:
    raw = shared("data/phantom_14ch_bssfp_R3_noise.h5")
    report = tmp_path / "report.json"
    (image,) = images_of(raw, tmp_path / "out.h5", "--method", "cg_sense", "--report", str(report))
    (facts,) = json.loads(report.read_text())
    assert image.data.shape == (1, 1, 144, 192)
    assert list(image.getHead().field_of_view) == [280, 210, 8]
    assert facts["prewhitened_by"] == "noise readouts"
    assert facts["coil_maps_by"] == "espirit"
    assert facts["fallback"] is None
    # Two bottles, the smaller one beside the larger one: the energy of the low-resolution image of the calibration
    # lines, reconstructed here by hand, lies where the image's does.
    with ismrmrd.File(str(raw), "r") as file:
        acquisitions = [a for a in file["dataset"].acquisitions if not a.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]
    kspace = np.zeros((14, 144, 384), np.complex64)
    for acquisition in acquisitions:
        line = acquisition.idx.kspace_encode_step_1 + 72 - 54
        if 72 - 24 <= line < 72 + 24:
            kspace[:, line] = acquisition.data
    low = np.sqrt((np.abs(centred_image(kspace)[:, :, 96:288]) ** 2).sum(0))
    high = np.abs(image.data[0, 0])
    similarity = (low * high).sum() / np.sqrt((low**2).sum() * (high**2).sum())
    assert similarity > 0.95
    shifted = np.roll(high, 4, axis=0)
    assert (low * shifted).sum() < (low * high).sum()
