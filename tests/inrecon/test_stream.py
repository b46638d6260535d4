"""From readouts to image through all rooms, on every device there is."""

import dataclasses
import itertools
import re
from collections.abc import Sequence

import ismrmrd
import numpy as np
import pytest
import torch

from inrecon.acquire import raw_frames
from inrecon.errors import FitDiverged, InreconError, UnknownName
from inrecon.events import Event, FallBack, listening
from inrecon.frame import (
    Frame,
    Geometry,
    Key,
    RawFrame,
    Readouts,
    Reconstruction,
    Request,
    SeriesBySpace,
)
from inrecon.hyperparams import HyperparameterFiles
from inrecon.methods import BilevelINR
from inrecon.methods.method import InvalidHyperparameter
from inrecon.methods.total_variation import TotalVariation
from inrecon.quality import psnr
from inrecon.simulate import SimulatedScan, simulate_scan
from inrecon.stream import Report, Result, choose_device, reconstruct
from inrecon.testing import silent_protocol

QUICK = {"iterations": 60, "levels": 10, "log2_table_size": 14, "width": 32}


@pytest.fixture(scope="module")
def hyperparameters() -> HyperparameterFiles:
    return HyperparameterFiles.load()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA GPU")
    name: str = request.param
    return name


def images_of(
    scan: SimulatedScan, request: Request, hyperparameters: HyperparameterFiles, device: str = "cpu"
) -> list[Result]:
    series: SeriesBySpace = {}
    results: list[Result] = []
    for raw in raw_frames(scan.header, scan.acquisitions):
        results.append(reconstruct(raw, request=request, hyperparameters=hyperparameters, device=device, series=series))
        series = results[-1].series
    return results


def quality(result: Result, scan: SimulatedScan, index: int = 0) -> float:
    return psnr(result.images[0].data[0, 0], scan.reference[index], scan.support[index])


@pytest.fixture(scope="module")
def scan() -> SimulatedScan:
    return simulate_scan(shape=(64, 56), coils=6, acceleration=3, acs=16, seed=1)


def test_each_method_is_worth_its_name(scan: SimulatedScan, hyperparameters: HyperparameterFiles, device: str) -> None:
    requests = [
        Request(method="zero_filled", dtype="float"),
        Request(method="cg_sense", dtype="float"),
        Request(dtype="float", overrides=QUICK | {"iterations": 400}),
    ]
    figures = [quality(images_of(scan, request, hyperparameters, device)[0], scan) for request in requests]
    assert figures == sorted(figures)


def test_the_devices_agree(scan: SimulatedScan, hyperparameters: HyperparameterFiles, device: str) -> None:
    request = Request(method="cg_sense", dtype="complex")
    here = images_of(scan, request, hyperparameters, device)[0].images[0].data
    there = images_of(scan, request, hyperparameters)[0].images[0].data
    assert np.abs(here - there).max() < 1e-3 * np.abs(there).max()


def test_the_same_scan_gives_the_same_bits(scan: SimulatedScan, hyperparameters: HyperparameterFiles) -> None:
    request = Request(dtype="complex", overrides=QUICK)
    first, second = (images_of(scan, request, hyperparameters)[0].images[0] for _ in range(2))
    assert np.array_equal(first.data, second.data)


def test_every_slice_of_every_repetition_comes_out_in_recon_space(hyperparameters: HyperparameterFiles) -> None:
    scan = simulate_scan(shape=(48, 40), coils=4, acceleration=2, acs=12, slices=2, repetitions=2, oversampling=True)
    results = images_of(scan, Request(method="cg_sense"), hyperparameters)
    assert [result.images[0].data.shape for result in results] == [(1, 1, 48, 40)] * 4
    assert [(r.images[0].repetition, r.images[0].slice) for r in results] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [result.images[0].image_index for result in results] == [1, 2, 3, 4]
    assert {result.images[0].image_series_index for result in results} == {1}
    for index, result in enumerate(results):
        assert quality(result, scan, index) > 20


def test_brighter_slices_and_other_encoding_spaces_have_series_of_their_own(
    hyperparameters: HyperparameterFiles,
) -> None:
    scan = simulate_scan(shape=(48, 40), coils=4, acceleration=2, acs=12)
    (raw,) = raw_frames(scan.header, scan.acquisitions)
    dim = dataclasses.replace(
        raw, imaging=dataclasses.replace(raw.imaging, kspace=raw.imaging.kspace * np.float32(0.1))
    )
    other = dataclasses.replace(raw, key=dataclasses.replace(raw.key, encoding_space=1))
    series: SeriesBySpace = {}
    images = []
    for frame in (dim, raw, other, raw):
        request = Request(method="cg_sense")
        result = reconstruct(frame, request=request, hyperparameters=hyperparameters, device="cpu", series=series)
        series = result.series
        images += result.images
    assert [(image.image_series_index, image.image_index) for image in images] == [(1, 1), (101, 1), (2, 1), (101, 2)]
    assert max(image.data.max() for image in images) < 4095
    assert np.array_equal(images[1].data, images[3].data)


def test_partial_fourier_lands_where_it_belongs(hyperparameters: HyperparameterFiles) -> None:
    full = simulate_scan(shape=(48, 48), coils=4, acceleration=1, acs=16, pattern="full")
    partial = simulate_scan(shape=(48, 48), coils=4, acceleration=1, acs=16, pattern="full", partial_fourier=0.75)
    request = Request(method="cg_sense", dtype="float")
    assert quality(images_of(full, request, hyperparameters)[0], full) > 30
    assert quality(images_of(partial, request, hyperparameters)[0], partial) > 22


def test_provenance_is_in_report_and_meta(scan: SimulatedScan, hyperparameters: HyperparameterFiles) -> None:
    result = images_of(scan, Request(overrides={**QUICK, "iterations": 200}), hyperparameters)[0]
    (report,) = result.reports
    assert report["method"] == "auto"
    assert report["entry"] == "default"
    assert report["hyperparameters"]["iterations"] == 200
    assert report["sources"]["iterations"] == "request"
    assert report["iterations"] == 200
    assert report["fallback"] is None
    assert report["prewhitened_by"] == "noise readouts"
    assert report["coil_maps_by"] == "espirit"
    assert report["training_loss"] > 0
    assert report["validation_loss"] > 0
    assert {"condition", "calibrate", "fit", "image"} <= set(report["seconds"])
    meta = ismrmrd.Meta.deserialize(result.images[0].attribute_string)
    assert meta["inrecon_method"] == "auto"
    assert meta["inrecon_entry_sha256"] == report["entry_sha256"]
    assert meta["inrecon_hyperparameter_iterations"] == "200 (request)"
    assert "inrecon_fallback" not in meta


def test_a_fit_further_from_held_out_samples_than_cg_sense_is_not_sent(
    scan: SimulatedScan, hyperparameters: HyperparameterFiles
) -> None:
    expected = images_of(scan, Request(method="cg_sense", dtype="float"), hyperparameters)[0]
    begun = Request(method="bilevel_inr", dtype="float", overrides={**QUICK, "iterations": 2, "closing_weight": 0})
    result = images_of(scan, begun, hyperparameters)[0]
    assert np.array_equal(result.images[0].data, expected.images[0].data)
    assert "held-out samples are nearer to CG-SENSE" in result.reports[0]["fallback"]
    assert ismrmrd.Meta.deserialize(result.images[0].attribute_string)["inrecon_fallback"]


def test_an_image_that_nothing_judges_is_sent(scan: SimulatedScan, hyperparameters: HyperparameterFiles) -> None:
    """One of a method that is not judged, or of a scan with too few samples to hold any out."""
    (report,) = images_of(scan, Request(method="cg_sense"), hyperparameters)[0].reports
    assert (report["fallback"], report["validation_loss"]) == (None, None)
    small = simulate_scan(shape=(8, 16), coils=2, acceleration=1, acs=8, pattern="full")
    (report,) = images_of(small, Request(overrides={**QUICK, "iterations": 2, "closing_weight": 0}), hyperparameters)[
        0
    ].reports
    assert (report["fallback"], report["validation_loss"]) == (None, None)


def test_a_guarded_image_is_reported_with_the_loss_that_it_has(
    scan: SimulatedScan, hyperparameters: HyperparameterFiles
) -> None:
    heard: list[Event] = []
    with listening(heard.append):
        begun = Request(method="bilevel_inr", overrides={**QUICK, "iterations": 2, "closing_weight": 0})
        result = images_of(scan, begun, hyperparameters)[0]
    (fallback,) = (event for event in heard if isinstance(event, FallBack))
    assert fallback.room == "fit"
    linear, fitted = re.findall(r"\d\.\d+", fallback.reason)
    assert float(linear) < float(fitted)
    assert result.reports[0]["validation_loss"] == pytest.approx(float(linear), rel=1e-3)


def test_one_slice_of_a_scan_that_diverges_leaves_the_others(
    hyperparameters: HyperparameterFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices = simulate_scan(shape=(48, 40), coils=4, acceleration=2, acs=12, slices=3)
    linear = images_of(slices, Request(method="cg_sense", dtype="float"), hyperparameters)
    expected = images_of(slices, Request(method="tv", dtype="float"), hyperparameters)
    fit, calls = TotalVariation.fit, itertools.count()

    def second_diverges(self: TotalVariation, frame: Frame) -> Reconstruction:
        if next(calls) == 1:
            raise FitDiverged("tv diverged: tested here")
        return fit(self, frame)

    monkeypatch.setattr(TotalVariation, "fit", second_diverges)
    results = images_of(slices, Request(method="tv", dtype="float"), hyperparameters)
    reason = "tv diverged: tested here; CG-SENSE instead"
    assert [result.reports[0]["fallback"] for result in results] == [None, reason, None]
    for result, like in zip(results, (expected[0], linear[1], expected[2]), strict=True):
        assert np.array_equal(result.images[0].data, like.images[0].data)


def test_auto_tells_what_the_image_is_made_of(
    scan: SimulatedScan, hyperparameters: HyperparameterFiles, device: str
) -> None:
    request = Request(dtype="float", overrides={**QUICK, "iterations": 200})
    result = images_of(scan, request, hyperparameters, device)[0]
    (report,) = result.reports
    assert report["method"] == "auto"
    assert report["sources"]["learning_rate"] == "entry"
    assert report["fallback"] is None
    losses = dict(text.split(" ") for text in report["remark"].split("losses: ")[1].removesuffix(")").split(", "))
    assert set(losses) == {"bilevel_inr", "cg_sense", "tv", "l1_wavelet"}
    assert report["validation_loss"] <= float(losses["cg_sense"])
    meta = ismrmrd.Meta.deserialize(result.images[0].attribute_string)
    assert meta["inrecon_remark"] == report["remark"]
    assert quality(result, scan) > quality(
        images_of(scan, Request(method="cg_sense", dtype="float"), hyperparameters)[0], scan
    )


def test_other_methods_have_nothing_to_remark(scan: SimulatedScan, hyperparameters: HyperparameterFiles) -> None:
    result = images_of(scan, Request(method="cg_sense"), hyperparameters)[0]
    assert result.reports[0]["remark"] is None
    assert "inrecon_remark" not in ismrmrd.Meta.deserialize(result.images[0].attribute_string)


def test_auto_sends_an_image_without_the_network_if_that_diverges(
    scan: SimulatedScan, hyperparameters: HyperparameterFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(self: BilevelINR, frames: Sequence[Frame]) -> list[FitDiverged]:
        return [FitDiverged("bilevel_inr diverged: tested here") for _ in frames]

    monkeypatch.setattr(BilevelINR, "fit_slices", diverge)
    heard: list[Event] = []
    with listening(heard.append):
        (report,) = images_of(scan, Request(), hyperparameters)[0].reports
    assert report["fallback"] is None
    assert report["remark"].endswith("without bilevel_inr: bilevel_inr diverged: tested here")
    reasons = [event.reason for event in heard if isinstance(event, FallBack)]
    assert reasons == ["bilevel_inr diverged: tested here; auto goes on without it"]


def test_a_diverged_fit_gives_cg_sense_marked_as_such(
    scan: SimulatedScan, hyperparameters: HyperparameterFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(self: BilevelINR, frames: Sequence[Frame]) -> list[FitDiverged]:
        return [FitDiverged("bilevel_inr diverged: tested here") for _ in frames]

    expected = images_of(scan, Request(method="cg_sense", dtype="float"), hyperparameters)[0]
    monkeypatch.setattr(BilevelINR, "fit_slices", diverge)
    heard: list[Event] = []
    with listening(heard.append):
        result = images_of(scan, Request(method="bilevel_inr", dtype="float"), hyperparameters)[0]
    assert np.array_equal(result.images[0].data, expected.images[0].data)
    assert result.reports[0]["fallback"] == "bilevel_inr diverged: tested here; CG-SENSE instead"
    assert ismrmrd.Meta.deserialize(result.images[0].attribute_string)["inrecon_fallback"]
    assert [event.room for event in heard if isinstance(event, FallBack)] == ["fit"]


def test_a_scan_without_calibration_lines_still_gives_an_image(hyperparameters: HyperparameterFiles) -> None:
    scan = simulate_scan(shape=(48, 48), coils=4, acceleration=2, acs=0, seed=2)
    heard: list[Event] = []
    with listening(heard.append):
        result = images_of(scan, Request(method="cg_sense", dtype="float"), hyperparameters)[0]
    assert [event.room for event in heard if isinstance(event, FallBack)] == ["calibrate"]
    assert "no calibration lines" in result.reports[0]["fallback"]
    assert result.reports[0]["coil_maps_by"] == "smooth sum of squares"
    assert np.isfinite(result.images[0].data).all()
    assert result.images[0].data.any()


def test_a_wrong_override_is_refused(scan: SimulatedScan, hyperparameters: HyperparameterFiles) -> None:
    with pytest.raises(InvalidHyperparameter, match="iterations"):
        images_of(scan, Request(overrides={"iterations": 0}), hyperparameters)


def test_devices_by_name() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UnknownName, match="known are auto, cpu, cuda"):
        choose_device("tpu")


def centred_fft(array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(array, axes), axes=axes, norm="ortho"), axes)


def volume_frame(object_: np.ndarray, mask: np.ndarray, *, coils: int = 4) -> RawFrame:
    """A 3-D scan of `object_` (z, y, x) with fully sampled readout and the phase encoding `mask` (z, y)."""
    z, y, x = object_.shape
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in object_.shape), indexing="ij"))
    angle = 2 * np.pi * np.arange(coils)[:, None, None, None] / coils
    csm = np.exp(-(((grid[1] - np.cos(angle)) ** 2) + (grid[2] - np.sin(angle)) ** 2 + 0.3 * grid[0] * np.cos(angle)))
    kspace = centred_fft(csm * np.exp(1j * angle) * object_, (1, 2, 3))
    lines = np.argwhere(mask)
    rng = np.random.default_rng(0)
    readouts = kspace[:, lines[:, 0], lines[:, 1]]
    readouts = readouts + 1e-3 * (rng.standard_normal(readouts.shape) + 1j * rng.standard_normal(readouts.shape))
    return RawFrame(
        imaging=Readouts(
            kspace=readouts.astype(np.complex64), lines=lines, acquired=np.ones((len(lines), x), dtype=bool)
        ),
        calibration=None,
        noise=None,
        sample_time_us=5.0,
        key=Key(),
        geometry=Geometry(
            encoded_matrix=(x, y, z), encoded_fov_mm=(x, y, z), recon_matrix=(x, y, z), recon_fov_mm=(x, y, z)
        ),
        protocol=silent_protocol(matrix=(y, x), coils=coils, acceleration=mask.size / mask.sum()),
        reference=bytes(ismrmrd.AcquisitionHeader()),
    )


def ellipsoid() -> tuple[np.ndarray, np.ndarray, RawFrame]:
    """An object (z, y, x), where it is, and its scan with points at random in two phase encodings."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (16, 28, 10)), indexing="ij")
    inside = (z / 0.8) ** 2 + (y / 0.7) ** 2 + (x / 0.9) ** 2 < 1
    object_ = inside * (1 + 0.5 * np.sin(6 * y + 3 * x) + 0.4 * z)
    mask = np.random.default_rng(1).random((16, 28)) < 0.6
    mask[3:13, 8:20] = True
    return object_, inside, volume_frame(object_, mask)


def test_a_volume_with_two_phase_encodings_is_a_batch_of_slices_along_the_readout(
    hyperparameters: HyperparameterFiles,
) -> None:
    object_, inside, raw = ellipsoid()
    request = Request(method="cg_sense", dtype="float")
    result = reconstruct(raw, request=request, hyperparameters=hyperparameters, device="cpu", series={})
    volume = result.images[0].data[0]
    assert volume.shape == (16, 28, 10)
    for index in range(2, 8):
        assert psnr(volume[:, :, index], object_[:, :, index], inside[:, :, index]) > 20


def test_one_plane_of_a_volume_that_diverges_leaves_the_others(
    hyperparameters: HyperparameterFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, raw = ellipsoid()

    def volume(method: str) -> tuple[np.ndarray, Report]:
        request = Request(method=method, dtype="complex")
        result = reconstruct(raw, request=request, hyperparameters=hyperparameters, device="cpu", series={})
        return result.images[0].data[0], result.reports[0]

    linear, _ = volume("cg_sense")
    expected, before = volume("tv")
    fit_slices = TotalVariation.fit_slices

    def fourth_diverges(self: TotalVariation, frames: Sequence[Frame]) -> list[Reconstruction | InreconError]:
        results = fit_slices(self, frames)
        results[3] = FitDiverged("tv diverged: tested here")
        return results

    monkeypatch.setattr(TotalVariation, "fit_slices", fourth_diverges)
    image, report = volume("tv")
    assert before["fallback"] is None
    assert report["fallback"] == "tv diverged: tested here; CG-SENSE instead"
    assert np.array_equal(image[:, :, 3], linear[:, :, 3])
    others = np.arange(10) != 3
    assert np.array_equal(image[:, :, others], expected[:, :, others])
    assert not np.array_equal(expected[:, :, others], linear[:, :, others])


def test_the_linear_image_comes_along_as_a_series_of_its_own(hyperparameters: HyperparameterFiles) -> None:
    scan = simulate_scan(shape=(32, 28), coils=4, acceleration=2, acs=10, repetitions=2)
    request = Request(method="bilevel_inr", dtype="float", compare=True, series_name="needle", overrides=QUICK)
    results = images_of(scan, request, hyperparameters)
    plain = images_of(scan, Request(method="cg_sense", dtype="float"), hyperparameters)
    for number, (result, linear) in enumerate(zip(results, plain, strict=True), start=1):
        fit, compared = result.images
        assert fit.image_series_index != compared.image_series_index
        assert fit.image_index == compared.image_index == number
        np.testing.assert_array_equal(compared.data, linear.images[0].data)
        assert not np.array_equal(fit.data, compared.data)
        assert [report["method"] for report in result.reports] == ["bilevel_inr", "cg_sense"]
        assert compared.meta["inrecon_method"] == "cg_sense"
        assert "inrecon_iterations" not in compared.meta
        assert fit.meta["SeriesDescriptionAdditional"] == compared.meta["SeriesDescriptionAdditional"] == "needle"


def test_nothing_is_compared_with_itself(hyperparameters: HyperparameterFiles) -> None:
    scan = simulate_scan(shape=(32, 28), coils=4, acceleration=2, acs=10)
    (result,) = images_of(scan, Request(method="cg_sense", compare=True), hyperparameters)
    assert len(result.images) == 1
