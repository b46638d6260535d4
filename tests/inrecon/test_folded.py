"""Fields of view smaller than the object, from readouts to image: what folds has two sets of coil maps."""

import dataclasses
import importlib

import ismrmrd
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from inrecon.acquire import raw_frames
from inrecon.frame import Frame, Geometry, Key, RawFrame, Readouts, Request
from inrecon.hyperparams import HyperparameterFiles
from inrecon.methods import BilevelINR, CGSense, methods
from inrecon.simulate import SimulatedScan, folded, simulate_scan
from inrecon.stream import Result, combined, frames_of, intensity, reconstruct
from inrecon.testing import folded_frame, relative_error, silent_protocol, simulated_frame
from inrecon.tuning.race import race
from inrecon.tuning.scans import judged_scans

QUICK = {"iterations": 150, "levels": 8, "log2_table_size": 12, "width": 32}
FOLDED = {"shape": (56, 56), "coils": 8, "acceleration": 2, "acs": 16, "field_of_view": 0.65, "seed": 1}


@pytest.fixture(scope="module")
def scan() -> SimulatedScan:
    return simulate_scan(**FOLDED)


def raw_of(scan: SimulatedScan) -> RawFrame:
    (raw,) = raw_frames(scan.header, scan.acquisitions)
    return raw


def reconstructed(raw: RawFrame, method: str, **overrides: object) -> Result:
    request = Request(method=method, dtype="complex", overrides=overrides)
    return reconstruct(raw, request=request, hyperparameters=HyperparameterFiles.load(), device="cpu", series={})


def errors(result: Result, scan: SimulatedScan) -> tuple[float, float]:
    """NRMSE of the magnitude where the object folds, and in the rest of it, at one scale."""
    found, truth = np.abs(result.images[0].data[0, 0]), np.abs(scan.reference[0])
    support, overlap = scan.support[0], scan.folded[0]
    scale = found[support] @ truth[support] / (found[support] @ found[support])
    regions = (overlap, support & ~overlap)
    return tuple(float(np.linalg.norm((scale * found - truth)[r]) / np.linalg.norm(truth[r])) for r in regions)


def with_one_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing folds."""
    monkeypatch.setattr(importlib.import_module("inrecon.calibrate.espirit"), "_FOLDED_SHARE", 1.0)


@pytest.mark.parametrize(("method", "overrides"), [("cg_sense", {}), ("auto", QUICK)])
def test_what_folds_is_reconstructed_as_well_as_the_rest(
    scan: SimulatedScan, method: str, overrides: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured: 0.02 in both regions; with one set 0.2 and more where it folds."""
    result = reconstructed(raw_of(scan), method, **overrides)
    two = errors(result, scan)
    assert result.reports[0]["coil_map_sets"] == 2
    assert result.reports[0]["fallback"] is None
    assert ismrmrd.Meta.deserialize(result.images[0].attribute_string)["inrecon_coil_map_sets"] == "2"
    with_one_set(monkeypatch)
    result = reconstructed(raw_of(scan), method, **overrides)
    one = errors(result, scan)
    assert result.reports[0]["coil_map_sets"] == 1
    assert two[0] < 0.25 * one[0]
    assert two[1] < one[1]
    assert max(two) < 0.05


@pytest.mark.parametrize("method", ["cg_sense", "auto"])
def test_a_scan_that_does_not_fold_has_the_image_of_one_set(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = raw_of(simulate_scan(**{**FOLDED, "field_of_view": 1.0}))
    overrides = QUICK | {"iterations": 20} if method == "auto" else {}
    result = reconstructed(plain, method, **overrides)
    with_one_set(monkeypatch)
    assert result.reports[0]["coil_map_sets"] == 1
    assert np.array_equal(result.images[0].data, reconstructed(plain, method, **overrides).images[0].data)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_has_an_image_of_a_scan_that_folds(scan: SimulatedScan, name: str) -> None:
    known = {field.name for field in dataclasses.fields(methods[name])}
    quick = QUICK | {"iterations": 40}
    result = reconstructed(raw_of(scan), name, **{field: value for field, value in quick.items() if field in known})
    image = result.images[0].data[0, 0]
    assert image.shape == (56, 56)
    assert np.isfinite(image).all()
    assert max(errors(result, scan)) < 0.5


def test_imjense_tells_of_its_one_set(scan: SimulatedScan) -> None:
    (report,) = reconstructed(raw_of(scan), "imjense", iterations=20).reports
    assert report["remark"] == "one set of coil maps of its own, though the field of view folds"


def test_the_image_sent_is_that_of_the_coils_as_acquired() -> None:
    generator = torch.Generator().manual_seed(0)
    frame, images = folded_frame()
    unmix = torch.randn(5, 4, dtype=torch.complex64, generator=generator)
    measurement = type("Mixed", (), {"unmix": unmix})()
    sent = combined(measurement, frame.maps.csm, images)
    coils = torch.einsum("av,vrc->arc", unmix, (frame.maps.csm * images[:, None]).sum(0))
    torch.testing.assert_close(sent.abs(), torch.linalg.vector_norm(coils, dim=0))
    torch.testing.assert_close(sent, torch.polar(sent.abs(), images[0].angle()))
    first = frame.maps.csm[0]
    assert torch.equal(combined(measurement, first, images[0]), images[0] * intensity(measurement, first))


def volume() -> tuple[RawFrame, NDArray[np.bool_]]:
    """A 3-D scan (48, 40, 4), one plane after the other along x, and which of the planes fold along y."""
    wide = np.array([False, True, False, True])
    planes = []
    for seed, folds in enumerate(wide):
        share = 0.65 if folds else 1.0
        full = simulate_scan(
            shape=(48, 40), coils=6, pattern="full", snr=float("inf"), oversampling=False, field_of_view=share, seed=3
        )
        planes.append(np.stack([a.data for a in full.acquisitions], 1) * (1 + 0.1 * seed))
    hybrid = np.stack(planes, -1).transpose(0, 2, 1, 3)  # coils, kz, ky, x
    x = hybrid.shape[-1]
    kspace = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(hybrid, -1), axis=-1, norm="ortho"), -1)
    mask = np.random.default_rng(1).random(hybrid.shape[1:3]) < 0.6
    mask[12:28, 16:32] = True
    lines = np.argwhere(mask)
    rng = np.random.default_rng(0)
    readouts = kspace[:, lines[:, 0], lines[:, 1]]
    noise = 1e-3 * np.abs(readouts).std() * (rng.standard_normal((2, *readouts.shape)))
    raw = RawFrame(
        imaging=Readouts(
            kspace=(readouts + noise[0] + 1j * noise[1]).astype(np.complex64),
            lines=lines,
            acquired=np.ones((len(lines), x), dtype=bool),
        ),
        calibration=None,
        noise=None,
        sample_time_us=5.0,
        key=Key(),
        geometry=Geometry(
            encoded_matrix=(x, 48, 40), encoded_fov_mm=(x, 48, 40), recon_matrix=(x, 48, 40), recon_fov_mm=(x, 48, 40)
        ),
        protocol=silent_protocol(matrix=(48, x), coils=6, acceleration=mask.size / mask.sum()),
        reference=bytes(ismrmrd.AcquisitionHeader()),
    )
    return raw, wide


@pytest.mark.parametrize(("method", "overrides"), [("cg_sense", {}), ("auto", QUICK | {"iterations": 20})])
def test_planes_of_a_volume_fold_or_do_not_side_by_side(
    method: str, overrides: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing folds a plane is as it is without the others, but for the decay that all of them share."""
    raw, wide = volume()
    assert [frame.maps.sets == 2 for frame in frames_of(raw, device="cpu")] == wide.tolist()
    result = reconstructed(raw, method, **overrides)
    assert result.reports[0]["coil_map_sets"] == 2
    image = result.images[0].data[0]
    assert np.isfinite(image).all()
    with_one_set(monkeypatch)
    one = reconstructed(raw, method, **overrides).images[0].data[0]
    difference = np.abs(image - one).max((0, 1)) / np.abs(one).max()
    assert (difference[~wide] < 1e-3).all()
    assert (difference[wide] > 0.05).all()


def alone(frames: list[Frame]) -> list[torch.Tensor]:
    quick = BilevelINR(**QUICK | {"iterations": 20})
    return [quick.fit(frame).image for frame in frames]


def test_slices_with_one_and_two_sets_are_fitted_as_they_are_alone() -> None:
    frames = [simulated_frame()[0], folded_frame()[0], simulated_frame()[0], folded_frame()[0]]
    fits = BilevelINR(**QUICK | {"iterations": 20}).fit_slices(frames)
    assert [tuple(fit.image.shape) for fit in fits] == [(32, 24), (2, 32, 24)] * 2
    for fit, image in zip(fits, alone(frames), strict=True):
        assert relative_error(fit.image, image) < 1e-3


def test_scans_that_fold_can_be_tuned_on(scan: SimulatedScan) -> None:
    """By samples held out and by the fully sampled scan, whose magnitudes are those of both sets together."""
    full = simulate_scan(**{**FOLDED, "pattern": "full"})
    for truth in (None, [raw_of(full)]):
        judged = judged_scans([raw_of(scan)], device="cpu", full=truth)
        (one,) = judged.judged
        assert one.frame.maps.sets == 2
        image = CGSense().judged(one.frame)
        loss = one.loss(image.image if image.trial is None else image.trial)
        assert loss is not None
        assert loss < (0.05 if one.reference is not None else 1.0)
        running = race([BilevelINR(**QUICK), BilevelINR(**QUICK, learning_rate=1e-3)], judged.groups)
        running.advance(20)
        assert all(np.isfinite(running.losses()))


def test_folding_keeps_the_sum() -> None:
    images = np.random.default_rng(0).random((2, 9, 4)) + 0j
    inside = folded(images, 6)
    np.testing.assert_allclose(inside.sum(1), images.sum(1))
    np.testing.assert_array_equal(inside[:, 2], images[:, 3])  # the centres, 6 // 2 and 9 // 2, lie on one another
