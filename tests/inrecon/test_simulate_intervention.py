"""Simulated interventional streams: what is streamed is what is true, whenever it is asked for."""

from functools import cache
from itertools import pairwise
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
import torch
from ismrmrd.xsd import CreateFromDocument
from numpy.typing import NDArray

from inrecon.acquire import raw_frames
from inrecon.calibrate import espirit
from inrecon.errors import InvalidFrame
from inrecon.frame import RawFrame
from inrecon.hyperparams import HyperparameterFiles
from inrecon.simulate import Intervention, abdomen_phantom, coil_maps, repaint, simulate_intervention

ROOT = Path(__file__).parents[2]
SHARED = ROOT / ".." / "shared"
SMALL = {"shape": (64, 48), "coils": 4, "frames": 8, "acceleration": 4, "acs": 8}
CLEAN = {**SMALL, "pattern": "full", "snr": np.inf}

painted = cache(abdomen_phantom)


@pytest.fixture(autouse=True)
def _painted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the time goes into objects at rest, and a few do for all tests."""
    monkeypatch.setattr("inrecon.simulate.intervention.abdomen_phantom", painted)


def frames_of(stream: Intervention) -> list[RawFrame]:
    return raw_frames(stream.header, stream.all_acquisitions())


def reconstructed(raw: RawFrame, csm: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """A fully sampled frame through the maps, in the convention of the file: explicit Fourier sums."""
    _, rows, columns = csm.shape
    coils, _, samples = raw.imaging.kspace.shape
    kspace = np.zeros((coils, rows, samples), complex)
    kspace[:, raw.imaging.lines[:, 1]] = raw.imaging.kspace

    def waves(pixels: int, orders: int) -> NDArray[np.complex128]:
        positions, k = np.arange(pixels) - pixels // 2, np.arange(orders) - orders // 2
        return np.exp(2j * np.pi * np.outer(positions, k) / orders) / np.sqrt(orders)

    return (csm.conj() * (waves(rows, rows) @ kspace @ waves(columns, samples).T)).sum(0)


def relative(found: NDArray[np.complex64], truth: NDArray[np.complex64]) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def same(one: list[ismrmrd.Acquisition], other: list[ismrmrd.Acquisition]) -> bool:
    return len(one) == len(other) and all(
        bytes(a.getHead()) == bytes(b.getHead()) and np.array_equal(a.data, b.data)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("index", [0, 5])
def test_the_abdomen_lies_inside_the_field_of_view_and_is_nowhere_flat(index: int) -> None:
    image = abdomen_phantom((256, 256), index=index, seed=2)
    np.testing.assert_array_equal(image, abdomen_phantom((256, 256), index=index, seed=2))
    magnitude = np.abs(image)
    body = magnitude > 0
    assert not body[[0, -1]].any()
    assert not body[:, [0, -1]].any()
    assert 0.3 < body.mean() < 0.6
    assert 1.0 < magnitude.max() < 1.6
    liver = magnitude[100:156, 50:90]
    assert np.median(np.abs(np.diff(liver, axis=1)) / liver[:, 1:]) > 0.01  # a piecewise flat object has median 0
    coarse = np.abs(abdomen_phantom((128, 128), index=index, seed=2))
    np.testing.assert_array_equal(body[::2, ::2], coarse > 0)


def test_what_neither_moves_nor_is_pierced_stays_the_same() -> None:
    stream = simulate_intervention(**SMALL, motion=0.0, needle=False)
    first = stream.truth(0)
    for frame in range(8):
        np.testing.assert_array_equal(stream.truth(frame), first)
        assert not stream.changed(frame).any()
        assert not stream.needle(frame).any()
        assert stream.tip(frame) is None


@pytest.mark.parametrize("shape", [(64, 48), (41, 33), (32, 45)])
@pytest.mark.parametrize("oversampling", [True, False])
def test_full_frames_without_noise_give_the_truth(shape: tuple[int, int], oversampling: bool) -> None:
    kind = {**CLEAN, "shape": shape, "frames": 4}
    stream = simulate_intervention(**kind, oversampling=oversampling, slices=2, motion=2.0, shift_at=3)
    raws = frames_of(stream)
    assert len(raws) == 8
    for raw in raws:
        truth = stream.truth(raw.key.repetition, raw.key.slice)
        assert relative(reconstructed(raw, stream.csm), truth) < 1e-5


@pytest.mark.parametrize("pattern", ["uniform", "interleaved", "random"])
def test_a_frame_is_the_same_whenever_it_is_asked_for(pattern: str) -> None:
    kind = {**SMALL, "pattern": pattern, "slices": 2, "shift_at": 5}
    stream, again = simulate_intervention(**kind), simulate_intervention(**kind)
    in_order = [stream.acquisitions(frame) for frame in range(8)]
    truths = [stream.truth(frame, 1) for frame in range(8)]
    for frame in (6, 0, 3, 6):
        assert same(again.acquisitions(frame), in_order[frame])
        np.testing.assert_array_equal(again.truth(frame, 1), truths[frame])
    assert same(list(again.all_acquisitions()), [one for frame in in_order for one in frame])
    other = simulate_intervention(**kind, seed=1)
    assert relative(other.truth(0), stream.truth(0)) > 0.1


def test_the_needle_advances_a_piece_a_frame_and_stays_at_its_target() -> None:
    stream = simulate_intervention(**{**CLEAN, "shape": (96, 96), "frames": 21}, motion=0.0)
    lengths = [int(stream.needle(frame).sum()) for frame in range(21)]
    assert lengths[0] == 0
    assert lengths[:13] == sorted(lengths[:13])
    assert lengths[12] > 12
    assert set(lengths[12:]) == {lengths[12]}
    tips = np.array([stream.tip(frame) for frame in range(1, 13)])
    steps = np.linalg.norm(np.diff(tips, axis=0), axis=1)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    assert steps[0] > 1
    whole = np.argwhere(stream.needle(20))
    assert np.linalg.norm(whole - tips[-1], axis=1).min() < 1


def test_what_has_changed_holds_the_needle_and_no_more_where_nothing_moves() -> None:
    stream = simulate_intervention(**{**CLEAN, "shape": (96, 96)}, motion=0.0)
    needle, changed = stream.needle(7), stream.changed(7)
    assert (changed & needle).sum() > 0.9 * needle.sum()
    near = np.argwhere(needle)
    away = [np.linalg.norm(near - place, axis=1).min() for place in np.argwhere(changed)]
    assert max(away) < 5
    bare = simulate_intervention(**{**CLEAN, "shape": (96, 96)}, motion=0.0, needle=False)
    darker = np.abs(stream.truth(7))[needle] / np.abs(bare.truth(7))[needle]
    assert np.median(darker) < 0.5


def test_the_needle_moves_with_the_tissue() -> None:
    still, moving = (
        simulate_intervention(**{**CLEAN, "shape": (96, 96), "frames": 21}, motion=motion) for motion in (0.0, 1.0)
    )
    apart = [np.subtract(moving.tip(frame), still.tip(frame)) for frame in range(12, 21)]
    assert max(np.linalg.norm(one) for one in apart) > 0.5
    for frame in range(12, 21):
        near = np.argwhere(moving.needle(frame))
        assert np.linalg.norm(near - moving.tip(frame), axis=1).min() < 1


def test_motion_grows_with_its_amount_and_leaves_the_coils_alone() -> None:
    parts = []
    for motion in (0.0, 1.0, 3.0):
        stream = simulate_intervention(**CLEAN, motion=motion, needle=False)
        parts.append(np.mean([stream.changed(frame).mean() for frame in range(8)]))
        np.testing.assert_allclose(stream.csm, coil_maps((128, 96), 4)[:, ::2, ::2].astype(np.complex64))
    assert parts[0] == 0
    assert 0.05 < parts[1] < parts[2]


def test_a_breath_moves_the_front_and_not_the_back() -> None:
    stream = simulate_intervention(**CLEAN, needle=False)
    tops = [np.flatnonzero(stream.support(frame).any(axis=1)) for frame in range(8)]
    assert min(rows[0] for rows in tops) < tops[0][0]
    assert {rows[-1] for rows in tops} == {tops[0][-1]}


def test_breaths_differ() -> None:
    motion = simulate_intervention(**CLEAN).scene.motion
    depths = [max(motion.breathing(10 * breath + step / 4) for step in range(40)) for breath in range(8)]
    assert max(depths) > 1.2 * min(depths) > 0.5
    assert motion.breathing(0) == 0


def test_a_shift_moves_all_of_the_object_from_its_frame_on() -> None:
    kind = {**CLEAN, "shape": (96, 96), "motion": 0.0}
    stream, plain = simulate_intervention(**kind, shift_at=5), simulate_intervention(**kind)
    for frame in range(5):
        np.testing.assert_array_equal(stream.truth(frame), plain.truth(frame))
    before, after = (np.argwhere(stream.support(frame)).mean(axis=0) for frame in (4, 5))
    assert np.linalg.norm(after - before) * 294.4 / 96 == pytest.approx(8, rel=0.1)
    np.testing.assert_array_equal(stream.support(5), stream.support(7))
    assert stream.changed(5)[stream.support(0)].mean() > 0.3
    moved = np.subtract(stream.tip(6), plain.tip(6))
    assert 1.5 < np.linalg.norm(moved) < 4.5
    near = np.argwhere(stream.needle(6))
    assert np.linalg.norm(near - stream.tip(6), axis=1).min() < 1


def test_slices_interleave_differ_and_one_of_them_has_the_needle() -> None:
    stream = simulate_intervention(**SMALL, slices=3)
    keys = [(raw.key.repetition, raw.key.slice) for raw in frames_of(stream)]
    assert keys == [(frame, index) for frame in range(8) for index in range(3)]
    assert relative(stream.truth(0, 1), stream.truth(0, 0)) > 0.1
    assert [bool(stream.needle(7, index).any()) for index in range(3)] == [False, True, False]
    readouts = [a for a in stream.acquisitions(4) if not a.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]
    assert {(a.idx.slice, a.position[2]) for a in readouts} == {(0, -5.0), (1, 0.0), (2, 5.0)}


def test_readouts_count_on_and_carry_their_flags() -> None:
    stream = simulate_intervention(**SMALL, slices=2, pattern="interleaved")
    readouts = list(stream.all_acquisitions())
    noise = [a.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT) for a in readouts]
    assert noise == sorted(noise, reverse=True)
    assert sum(noise) > 0
    assert [a.scan_counter for a in readouts] == list(range(len(readouts)))
    stamps = np.array([a.acquisition_time_stamp for a in readouts]) * 2.5
    np.testing.assert_allclose(stamps, 4.0 * np.arange(len(readouts)), atol=2.5)  # TR
    assert np.flatnonzero([a.is_flag_set(ismrmrd.ACQ_LAST_IN_MEASUREMENT) for a in readouts]) == [len(readouts) - 1]
    images = [(a, (a.idx.repetition, a.idx.slice)) for a, silent in zip(readouts, noise, strict=True) if not silent]
    last = {key: a for a, key in images}
    for a, key in images:
        assert a.is_flag_set(ismrmrd.ACQ_LAST_IN_SLICE) == (a is last[key])
        assert a.is_flag_set(ismrmrd.ACQ_LAST_IN_REPETITION) == (a is last[key] and key[1] == 1)
        line = a.idx.kspace_encode_step_1
        assert a.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING) == (28 <= line < 36)


@pytest.mark.parametrize("first_full", [True, False])
@pytest.mark.parametrize("pattern", ["uniform", "interleaved", "random", "full"])
def test_raw_frames_have_the_lines_of_the_pattern(pattern: str, first_full: bool) -> None:
    stream = simulate_intervention(**SMALL, pattern=pattern, first_full=first_full)
    raws = frames_of(stream)
    assert [raw.key.repetition for raw in raws] == list(range(8))
    lines = [set(raw.imaging.lines[:, 1]) for raw in raws]
    assert lines == [set(np.flatnonzero(one)) for one in stream.lines]
    assert (len(lines[0]) == 64) == (first_full or pattern == "full")
    for raw, one in zip(raws, lines, strict=True):
        assert raw.protocol.acceleration == pytest.approx(64 / len(one))
        assert raw.noise is not None
        assert set(range(28, 36)) <= one
    if pattern in ("uniform", "full"):
        assert all(one == lines[1] for one in lines[1:])
    else:
        assert all(one != other for one, other in pairwise(lines[1:]))
    if pattern == "interleaved":
        assert set.union(*lines[1:5]) == set(range(64))


def test_noise_has_the_level_that_is_asked_for() -> None:
    kind = {**SMALL, "pattern": "full", "frames": 2}
    noisy, clean = (simulate_intervention(**kind, snr=snr, noise_readouts=False) for snr in (20.0, np.inf))
    noise = np.stack([a.data - b.data for a, b in zip(noisy.all_acquisitions(), clean.all_acquisitions(), strict=True)])
    signal = np.abs(clean.truth(0)[clean.support(0)]).mean()
    assert signal / np.sqrt((np.abs(noise) ** 2).mean()) == pytest.approx(20, rel=0.03)


def test_noise_is_drawn_anew_for_each_readout() -> None:
    kind = {**SMALL, "slices": 2, "motion": 0.0, "needle": False}
    noisy, clean = (simulate_intervention(**kind, snr=snr, noise_readouts=False) for snr in (20.0, np.inf))
    pairs = zip(noisy.all_acquisitions(), clean.all_acquisitions(), strict=True)
    noise = np.stack([(a.data - b.data).ravel() for a, b in pairs])
    power = np.linalg.norm(noise, axis=1)
    alike = np.abs(noise @ noise.conj().T) / np.outer(power, power)
    assert alike[~np.eye(len(noise), dtype=bool)].max() < 0.35


def test_slices_of_a_frame_are_taken_one_after_the_other() -> None:
    kind = {**CLEAN, "slices": 2, "breath": 1.5, "needle": False}
    still, moving = simulate_intervention(**kind, motion=0.0), simulate_intervention(**kind)
    np.testing.assert_array_equal(moving.truth(0, 0), still.truth(0, 0))
    assert relative(moving.truth(0, 1), still.truth(0, 1)) > 0.05


def test_vessels_brighten_with_the_pulse() -> None:
    stream = simulate_intervention(**{**CLEAN, "shape": (96, 96)}, breath=1e6, needle=False)
    aorta = np.s_[54:59, 49:54]
    bright = np.array([np.abs(stream.truth(frame)[aorta]).mean() for frame in range(8)])
    pulse = [stream.scene.motion.pulse(frame) for frame in range(8)]
    np.testing.assert_allclose(bright / bright[0], 1 + 0.08 * np.array(pulse), atol=0.03)


def test_the_protocol_is_that_of_the_interventional_hyperparameters() -> None:
    stream = simulate_intervention(frames=2, snr=np.inf)
    raw = raw_frames(stream.header, stream.acquisitions(1))[0]
    entry = HyperparameterFiles.load(ROOT / "hyperparams").look_up(raw.protocol)
    assert entry.name == "imri_bssfp_055t"
    assert raw.geometry.recon_fov_mm[0] / 128 == pytest.approx(2.3)


def test_a_stream_is_made_when_it_is_asked_for() -> None:
    stream = simulate_intervention(**{**SMALL, "frames": 5000})
    kept = sum(one.nbytes for one in (stream.csm, stream.maps, stream.lines, stream.scene.rest))
    assert kept < 2e6
    assert {a.idx.repetition for a in stream.acquisitions(4999)} == {4999}


@pytest.mark.parametrize(
    "wrong",
    [
        {"frames": 0},
        {"frames": 2**16 + 1},
        {"slices": 0},
        {"shape": (4, 48)},
        {"coils": 0},
        {"snr": 0.0},
        {"snr": float("nan")},
        {"motion": -1.0},
        {"motion": float("nan")},
        {"breath": 0.0},
        {"pattern": "spiral"},
        {"acceleration": 0},
        {"acs": 65},
    ],
)
def test_impossible_streams_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidFrame):
        simulate_intervention(**{**SMALL, **wrong})


@pytest.mark.parametrize(("frame", "index"), [(-1, 0), (8, 0), (0, 1), (0, -1)])
def test_frames_that_are_not_there_are_refused(frame: int, index: int) -> None:
    stream = simulate_intervention(**SMALL)
    for method in (stream.truth, stream.changed, stream.support, stream.needle):
        with pytest.raises(InvalidFrame, match="8 frames"):
            method(frame, index)


@pytest.fixture
def painting() -> tuple[NDArray[np.complex64], NDArray[np.complex64]]:
    """An image and maps that end a little outside of it."""
    stream = simulate_intervention(**{**CLEAN, "shape": (72, 56)})
    near = np.abs(stream.truth(0)) > 0.02
    return stream.truth(0), stream.csm * near


def test_a_measured_image_is_repainted(painting: tuple[NDArray[np.complex64], NDArray[np.complex64]]) -> None:
    image, csm = painting
    stream = repaint(image, csm, frames=11, pattern="full", snr=np.inf)
    inside = stream.support(0)
    assert relative(stream.truth(0) * inside, image * inside) < 0.05
    for raw in frames_of(stream):
        assert relative(reconstructed(raw, stream.csm), stream.truth(raw.key.repetition)) < 1e-5
    np.testing.assert_allclose(stream.csm, csm)
    needle = stream.needle(10)
    assert needle.sum() > 10
    assert (needle & ~inside).sum() <= 2  # its blunt end
    assert (stream.changed(10) & needle).sum() > 0.7 * needle.sum()


def test_a_repainted_object_shifts_by_millimetres(
    painting: tuple[NDArray[np.complex64], NDArray[np.complex64]],
) -> None:
    stream = repaint(*painting, frames=11, snr=np.inf, shift_at=4, pixel_mm=4.0, towards=(1.0, -0.5), target=(0.1, 0.2))
    before, after = (np.argwhere(stream.support(frame)).mean(axis=0) for frame in (3, 4))
    assert np.linalg.norm(after - before) * 4 == pytest.approx(8, rel=0.15)
    for frame in (2, 10):
        assert np.linalg.norm(np.argwhere(stream.needle(frame)) - stream.tip(frame), axis=1).min() < 1
    settings = CreateFromDocument(stream.header).encoding[0].reconSpace
    assert (settings.fieldOfView_mm.x, settings.fieldOfView_mm.y) == pytest.approx((224, 288))


def test_a_measured_brain_is_repainted() -> None:
    source = SHARED / "data" / "brain_16ch_96.npz"
    if not source.exists():
        pytest.skip(f"the real data set {source.name} is not at hand")
    kspace = np.load(source)["kspace"]
    maps = espirit(torch.from_numpy(kspace[:, 36:60, 36:60].copy()), (96, 96))
    csm, inside, axes = maps.csm.numpy(), maps.support.numpy(), (-2, -1)
    coils = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes), axes=axes, norm="ortho"), axes)
    image = (csm.conj() * coils).sum(0)
    stream = repaint(image, csm, frames=11)
    assert relative(stream.truth(0) * inside, image * inside) < 0.02
    assert len(frames_of(stream)) == 11
    changed = stream.changed(10)
    assert 0.005 < changed.mean() < 0.1
    assert (changed & stream.needle(10)).sum() > 0.7 * stream.needle(10).sum()


@pytest.mark.parametrize(
    ("image", "csm"),
    [((16, 16), (2, 16, 17)), ((16, 16), (16, 16)), ((1, 16, 16), (2, 16, 16))],
)
def test_images_and_maps_that_do_not_fit_are_refused(image: tuple[int, ...], csm: tuple[int, ...]) -> None:
    with pytest.raises(InvalidFrame):
        repaint(np.ones(image, complex), np.ones(csm, complex))


def test_values_that_are_not_finite_are_refused() -> None:
    image = np.ones((16, 16), complex)
    with pytest.raises(InvalidFrame, match="not finite"):
        repaint(image * np.nan, np.ones((2, 16, 16), complex) / np.sqrt(2))
