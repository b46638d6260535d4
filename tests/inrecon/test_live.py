"""Slices of interventional streams, frame after frame: where priors come from, how long they last, what follows."""

import dataclasses
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from inrecon import stream
from inrecon.acquire import raw_frames
from inrecon.errors import FitDiverged, InvalidFrame
from inrecon.events import Event, FallBack, Warned, listening
from inrecon.frame import Frame, Live, RawFrame, Reconstruction, Request
from inrecon.hyperparams import HyperparameterFiles, write_entry
from inrecon.live import Followed, Slice, Stream, is_complete, mean_of, slices
from inrecon.live.slices import STALE_FRAMES
from inrecon.methods import CGSense, ResidualINR, ResidualTikhonov, ResidualTV
from inrecon.methods.residual import ResidualMethod
from inrecon.quality import nrmse, psnr, scale_to
from inrecon.simulate import Intervention, simulate_intervention

QUICK = ResidualTV(iterations=20)
FRAMES = 7


@cache
def simulated(**changes: Any) -> Intervention:
    usual = {"shape": (64, 64), "coils": 8, "frames": FRAMES, "acceleration": 4, "acs": 8, "snr": 40.0}
    return simulate_intervention(**{**usual, **changes})


@cache
def frames_of(**changes: Any) -> list[RawFrame]:
    made = simulated(**changes)
    return raw_frames(made.header, made.all_acquisitions())


def a_slice(method: ResidualMethod = QUICK, *, prior_frames: int = 3) -> Slice:
    return Slice(method=method, prior_frames=prior_frames, device="cpu")


def follow(frames: list[RawFrame], one: Slice | None = None) -> tuple[list[Followed], list[Event]]:
    """What becomes of `frames`, and what is told of it but for fits that end."""
    one = one or a_slice()
    heard: list[Event] = []
    with listening(heard.append):
        followed = [one.next(raw) for raw in frames]
    return followed, [event for event in heard if isinstance(event, (Warned, FallBack))]


@cache
def usual() -> tuple[list[Followed], list[Event]]:
    """What becomes of the usual frames."""
    return follow(frames_of())


def sent(followed: Followed, image: torch.Tensor | None = None) -> NDArray[np.float32]:
    """Magnitude of the image as it is sent, or of another."""
    image = followed.fit.image if image is None else image
    whole = stream.as_acquired(followed.measurement, followed.frame.maps.csm, image, scale=1.0)
    magnitude: NDArray[np.float32] = np.abs(whole.numpy())
    return magnitude


def changed_error(image: NDArray[np.float32], truth: NDArray[Any], support: NDArray[np.bool_], where: Any) -> float:
    found = image * scale_to(image, truth, support)
    return float(np.linalg.norm((found - np.abs(truth))[where]) / np.linalg.norm(truth[where]))


def displaced(raw: RawFrame, millimetres: float) -> RawFrame:
    """`raw` of a slice that lies elsewhere, by its header."""
    head = ismrmrd.AcquisitionHeader.from_buffer_copy(raw.reference)
    head.position[2] += millimetres
    return dataclasses.replace(raw, reference=bytes(head))


@cache
def mirror_image() -> Intervention:
    """The usual stream, of an object that is mirrored."""
    usual = simulated()
    scene = dataclasses.replace(usual.scene, rest=np.ascontiguousarray(usual.scene.rest[:, :, ::-1]))
    return dataclasses.replace(usual, scene=scene)


@cache
def mirrored() -> list[RawFrame]:
    """Its frames from number 4 on."""
    other = mirror_image()
    return raw_frames(other.header, other.all_acquisitions())[4:]


def is_its_own_image(followed: Followed) -> bool:
    """Whether the prior is the image, or that where the object is."""
    image, prior = followed.fit.image, followed.prior.image
    return bool(prior.any()) and torch.equal(prior, torch.where(prior == 0, 0, image))


class TestPriors:
    def test_the_first_full_frame_is_the_prior_and_its_own_image(self) -> None:
        first, *_ = frames_of()
        assert is_complete(first)
        (followed,), events = follow([first])
        assert events == []
        assert followed.prior.source == "the fully sampled frame of repetition 0"
        assert followed.frame.prior is None
        assert is_its_own_image(followed)
        assert torch.equal(followed.fit.image, CGSense().fit(followed.frame).image)
        assert "prior" in followed.fit.remark
        assert psnr(sent(followed), simulated().truth(0), simulated().support(0)) > 35

    def test_the_frames_after_it_are_compared_with_it(self) -> None:
        followed, events = usual()
        assert not any(isinstance(event, FallBack) for event in events)
        for one in followed[1:]:
            assert one.prior is followed[0].prior
            assert one.frame.prior is not None
            assert torch.equal(one.frame.prior, one.prior.image)
            assert one.measurement.scale == followed[0].measurement.scale
            assert one.fit.validation_loss is not None
            assert one.fallbacks == ()

    def test_a_full_frame_in_mid_stream_is_the_new_one(self) -> None:
        full = frames_of(pattern="full")[4]
        followed, events = follow([*frames_of()[:2], full, frames_of()[5]])
        assert events == []
        assert [one.prior.source for one in followed] == [
            *2 * ["the fully sampled frame of repetition 0"],
            *2 * ["the fully sampled frame of repetition 4"],
        ]

    @pytest.mark.parametrize("pattern", ["interleaved", "uniform"])
    def test_without_a_full_frame_it_is_the_mean_of_the_first_few(self, pattern: str) -> None:
        """What moves is blurred in it, and it is better than the first frame by itself, if other lines come."""
        still = {"pattern": pattern, "first_full": False, "motion": 0.0, "needle": False}
        frames = frames_of(**still)[:4]
        assert not any(is_complete(raw) for raw in frames)
        followed, _ = follow(frames)
        numbers = [1, 2, 3, 3]
        assert [one.prior.source for one in followed] == [
            f"the mean of {n} frames from repetition 0 on" for n in numbers
        ]
        assert is_its_own_image(followed[0])
        assert all(one.prior is followed[2].prior for one in followed[3:])
        first, *_, last = (
            nrmse(sent(one), simulated(**still).truth(0), simulated(**still).support(0)) for one in followed
        )
        assert last < (0.6 if pattern == "interleaved" else 0.9) * first

    def test_a_slice_that_has_moved_gets_a_new_one_and_says_so(self) -> None:
        raws = frames_of()
        moved = [displaced(raw, 5.0) for raw in raws[2:5]]
        followed, events = follow([*raws[:2], *moved])
        assert [event.text for event in events if isinstance(event, Warned)] == [
            "slice 0, repetition 2: the slice has moved: a new prior is made"
        ]
        assert followed[1].prior.source == "the fully sampled frame of repetition 0"
        assert followed[2].prior.source == "the mean of 1 frames from repetition 2 on"
        assert followed[-1].prior.source == "the mean of 3 frames from repetition 2 on"

    def test_other_coils_need_a_new_one_and_that_is_said(self) -> None:
        raws = frames_of()
        fewer = dataclasses.replace(raws[2].imaging, kspace=raws[2].imaging.kspace[:5])
        followed, events = follow([*raws[:2], dataclasses.replace(raws[2], imaging=fewer, noise=None)])
        (text,) = [event.text for event in events if isinstance(event, Warned) and "coils after" in event.text]
        assert text == "slice 0, repetition 2: the slice has 5 coils after 8: a new prior is made"
        assert followed[2].prior.source == "the mean of 1 frames from repetition 2 on"

    def test_a_wrong_position_in_one_header_costs_no_prior(self) -> None:
        raws = frames_of()
        followed, events = follow([*raws[:2], displaced(raws[2], 500.0), *raws[3:5]])
        texts = [event.text for event in events if isinstance(event, Warned)]
        assert texts == [
            "slice 0, repetition 2: the slice has moved: a new prior is made",
            "slice 0, repetition 3: the slice has moved: the prior that was left there serves again",
        ]
        assert followed[3].prior is followed[0].prior
        undisturbed, _ = usual()
        truth, support = simulated().truth(4), simulated().support(4)
        assert psnr(sent(followed[4]), truth, support) > psnr(sent(undisturbed[4]), truth, support) - 1

    def test_one_that_was_only_half_made_is_not_kept_for_a_return(self) -> None:
        raws = frames_of(first_full=False)
        followed, _ = follow([*raws[:2], displaced(raws[2], 500.0), *raws[3:5]])
        assert followed[3].prior.source == "the mean of 1 frames from repetition 3 on"

    def test_a_place_that_the_first_header_did_not_tell_is_that_of_the_next(self) -> None:
        raws = frames_of()
        nowhere = displaced(raws[0], float("nan"))
        followed, events = follow([nowhere, raws[1], displaced(raws[2], 5.0)])
        assert torch.equal(followed[1].prior.image, followed[0].prior.image)
        assert [event.text for event in events if isinstance(event, Warned)] == [
            "slice 0, repetition 2: the slice has moved: a new prior is made"
        ]

    def test_in_a_stream_whose_headers_never_tell_the_place_it_is_made_once(self) -> None:
        followed, events = follow([displaced(raw, float("nan")) for raw in frames_of()[:3]])
        assert events == []
        assert followed[2].prior is followed[1].prior is followed[0].prior

    def test_a_header_that_does_not_say_where_it_is_moves_nothing(self) -> None:
        raws = frames_of()
        followed, events = follow([*raws[:2], displaced(raws[2], float("nan"))])
        assert events == []
        assert followed[2].prior is followed[0].prior

    def test_the_rounding_of_headers_moves_nothing(self) -> None:
        raws = frames_of()
        followed, events = follow([*raws[:2], displaced(raws[2], 0.01)])
        assert events == []
        assert followed[2].prior is followed[0].prior

    def test_one_that_stops_fitting_is_replaced_and_that_is_told(self) -> None:
        other, later = mirror_image(), mirrored()
        followed, events = follow([*frames_of()[:4], *later, *later, *later, *later])
        reasons = [event.reason for event in events if isinstance(event, FallBack) and event.room == "prior"]
        assert reasons
        assert all("the prior does not fit" in reason for reason in reasons)
        assert reasons[0] in followed[4].fallbacks
        assert followed[3].prior.source == "the fully sampled frame of repetition 0"
        # The first of them may have been an accident.
        assert any("far from what came before" in reason for reason in followed[4].fallbacks)
        assert followed[12].prior.source == "the fully sampled frame of repetition 0"
        assert followed[13].prior.source == f"the mean of {STALE_FRAMES} frames from repetition 5 on"
        assert followed[14].prior is followed[13].prior
        assert psnr(sent(followed[3]), other.truth(3), other.support(3)) < 15
        for index, one in enumerate(followed[4:], start=4):
            number = 4 + (index - 4) % 3
            truth, support = other.truth(number), other.support(number)
            linear = psnr(sent(one, CGSense().fit(one.frame).image), truth, support)
            assert psnr(sent(one), truth, support) > linear - (2 if one.fallbacks else 0)

    def test_forgetting_begins_again(self) -> None:
        raws, one = frames_of(), a_slice()
        follow(raws[:3], one)
        one.forget()
        assert one.prior is None
        (followed,), _ = follow(raws[3:4], one)
        assert followed.prior.source == "the mean of 1 frames from repetition 3 on"

    def test_they_go_on_in_another_process(self) -> None:
        """As bytes, and no more of them than what they hold: an image, maps, matrices."""
        raws, one = frames_of(), a_slice()
        first, second = follow(raws[:2], one)[0]
        packed = pickle.dumps(first.prior)
        held = first.prior.image.nbytes + first.prior.maps.csm.nbytes + first.prior.maps.support.nbytes
        assert len(packed) < held + 10_000
        another = a_slice()
        another.prior = pickle.loads(packed)
        assert torch.equal(another.next(raws[1]).fit.image, second.fit.image)


class TestStreams:
    """What a process knows of a stream, and what others tell it."""

    def images(self, one: Stream, raws: list[RawFrame]) -> list[dict[str, Any]]:
        request = Request(live=Live(), method="residual_tv", overrides={"iterations": 10})
        files = HyperparameterFiles.load()
        results = [one.reconstruct(raw, request=request, hyperparameters=files, series={}) for raw in raws]
        return [dict(result.reports[0]) for result in results]

    def test_a_prior_that_another_process_has_made_takes_the_place_of_its_own(self) -> None:
        raws = [*frames_of()[:3], renumbered(frames_of()[0], 3), renumbered(frames_of()[4], 4)]
        one, other = Stream("cpu", name="a"), Stream("cpu", name="a")
        self.images(one, raws[:2])
        other.restore(one.priors)
        (report,) = self.images(other, raws[2:3])
        assert report["prior"] == "the fully sampled frame of repetition 0"
        self.images(other, raws[3:4])
        one.restore(other.priors)
        (report,) = self.images(one, raws[4:])
        assert report["prior"] == "the fully sampled frame of repetition 3"

    def test_what_is_forgotten_is_so_for_all_processes(self) -> None:
        raws, one, other = frames_of(), Stream("cpu", name="a"), Stream("cpu", name="a")
        self.images(one, raws[:2])
        one.forget(raws[1])
        one.restore(one.priors)
        other.restore(one.priors)
        for process in (one, other):
            (report,) = self.images(process, raws[2:3])
            assert report["prior"] == "the mean of 1 frames from repetition 2 on"

    def test_that_of_another_stream_is_called_so_and_put_in_question(self) -> None:
        raws = frames_of()
        one, alike, unlike = (Stream("cpu", name=name) for name in ("a", "b", "c"))
        self.images(one, raws[:1])
        alike.restore(one.priors)
        (report,) = self.images(alike, raws[1:2])
        assert report["prior"] == "of an earlier scan: the fully sampled frame of repetition 0"
        unlike.restore(one.priors)
        mirrored = [
            dataclasses.replace(raw, imaging=dataclasses.replace(raw.imaging, kspace=raw.imaging.kspace.conj()))
            for raw in raws[1:3]
        ]
        heard: list[Event] = []
        with listening(heard.append):
            first, second = self.images(unlike, mirrored)
        assert any("of another scan does not fit" in event.text for event in heard if isinstance(event, Warned))
        assert first["prior"] == "the mean of 1 frames from repetition 1 on"
        assert second["prior"] == "the mean of 2 frames from repetition 1 on"


def renumbered(raw: RawFrame, repetition: int) -> RawFrame:
    return dataclasses.replace(raw, key=dataclasses.replace(raw.key, repetition=repetition))


class TestHyperparameters:
    """Those of the file that the frame's protocol gets, by its section for streams."""

    def report(self, raw: RawFrame, folder: Path, section: dict[str, Any], request: Request) -> dict[str, Any]:
        write_entry(
            folder / "default.yaml",
            match={},
            method="cg_sense",
            values={"iterations": 7},
            presets={},
            provenance={"from": "by hand", "source": "made up"},
            live=section,
        )
        files = HyperparameterFiles.load(folder)
        result = Stream("cpu").reconstruct(raw, request=request, hyperparameters=files, series={})
        return dict(result.reports[0])

    def test_a_frame_gets_the_values_for_streams(self, tmp_path: Path) -> None:
        section = {"method": "residual_tikhonov", "values": {"regularisation": 0.2}}
        request = Request(live=Live(), overrides={"displacement": 4})
        report = self.report(frames_of()[0], tmp_path, section, request)
        assert report["method"] == "residual_tikhonov"
        assert report["hyperparameters"] == {"regularisation": 0.2, "displacement": 4}
        assert report["sources"] == {"regularisation": "entry", "displacement": "request"}
        assert "prior" in report

    def test_the_method_for_streams_may_be_one_without_a_prior(self, tmp_path: Path) -> None:
        section = {"method": "zero_filled"}
        report = self.report(frames_of()[0], tmp_path, section, Request(live=Live()))
        assert report["method"] == "zero_filled"
        assert "prior" not in report

    def test_a_frame_that_can_have_no_prior_gets_sense_and_says_so(self, tmp_path: Path) -> None:
        raw = frames_of()[0]
        acquired = raw.imaging.acquired.copy()
        acquired[:, :8] = False
        partial = dataclasses.replace(raw, imaging=dataclasses.replace(raw.imaging, acquired=acquired))
        request = Request(live=Live(), overrides={"displacement": 4})
        report = self.report(partial, tmp_path, {"values": {"tv_weight": 0.3}}, request)
        assert report["method"] == "cg_sense"
        assert "no prior" in report["fallback"]


class Ruined(ResidualTikhonov):
    """A method that goes wrong: its images are noise."""

    def difference(self, frame: Frame) -> Any:
        honest = super().difference(frame)
        fit: Callable[..., Reconstruction] = honest.fit

        def wrong(frame: Frame, base: torch.Tensor, **problems: Any) -> Reconstruction:
            result = fit(frame, base, **problems)
            noise = result.image.flip(0, 1)
            return dataclasses.replace(result, image=noise, trial=noise, validation_loss=frame.loss(noise))

        honest.fit = wrong  # type: ignore[method-assign]
        return honest


class Diverging(ResidualTikhonov):
    """A method whose fits fail."""

    def difference(self, frame: Frame) -> Any:
        honest = super().difference(frame)

        def fails(*_: Any, **__: Any) -> Reconstruction:
            raise FitDiverged("it went astray")

        honest.fit = fails  # type: ignore[method-assign]
        return honest


def noisy(raw: RawFrame) -> RawFrame:
    """`raw` with a burst of noise all over it."""
    rng = np.random.default_rng(raw.key.repetition)
    real, imaginary = rng.standard_normal((2, *raw.imaging.kspace.shape))
    burst = (0.1 * np.abs(raw.imaging.kspace).max() * (real + 1j * imaginary)).astype(np.complex64)
    return dataclasses.replace(raw, imaging=dataclasses.replace(raw.imaging, kspace=raw.imaging.kspace + burst))


class TestFallingBack:
    @pytest.mark.parametrize("alone", [True, False])
    def test_a_fit_that_held_out_samples_find_worse_gives_way(
        self, alone: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """To an image of the frame alone, or to SENSE if that is no better."""
        if not alone:
            monkeypatch.setattr(slices, "ALONE", Ruined())
        followed, events = follow(frames_of()[:3], a_slice(Ruined()))
        for number, one in enumerate(followed[1:], start=1):
            expected = "an image without it" if alone else "nearer to SENSE"
            (reason,) = (reason for reason in one.fallbacks if expected in reason)
            assert any(isinstance(event, FallBack) and event.reason == reason for event in events)
            assert one.fit.trial is not None
            assert one.fit.validation_loss == one.frame.loss(one.fit.trial)
            truth, support = simulated().truth(number), simulated().support(number)
            assert psnr(sent(one), truth, support) > 25

    def test_a_fit_that_fails_does_too_and_the_stream_goes_on(self) -> None:
        followed, events = follow(frames_of()[:3], a_slice(Diverging()))
        assert len(followed) == 3
        assert sum(isinstance(event, FallBack) and "it went astray; SENSE" in event.reason for event in events) == 2
        assert any("it went astray" in reason for reason in followed[1].fallbacks)
        assert psnr(sent(followed[2]), simulated().truth(2), simulated().support(2)) > 25

    @pytest.mark.parametrize("method", [QUICK, ResidualINR(network_iterations=5)], ids=lambda method: method.name)
    def test_a_frame_that_something_was_wrong_with_is_marked_and_nothing_follows_from_it(
        self, method: ResidualMethod
    ) -> None:
        raws = frames_of()
        undisturbed, _ = follow(raws, a_slice(method))
        followed, _ = follow([*raws[:3], noisy(raws[3]), *raws[4:]], a_slice(method))
        (reason,) = (reason for reason in followed[3].fallbacks if "far from what came before" in reason)
        assert reason.startswith("slice 0, repetition 3")
        for number in range(4, FRAMES):
            assert followed[number].fallbacks == ()
            truth, support = simulated().truth(number), simulated().support(number)
            expected = psnr(sent(undisturbed[number]), truth, support)
            assert psnr(sent(followed[number]), truth, support) > expected - 1

    def test_it_says_nothing_of_the_prior_either(self) -> None:
        """A burst among frames that the prior does not fit is not part of the next one, and lets it come no later."""
        later = mirrored()
        without, _ = follow([*frames_of()[:4], *later, *later, *later, *later])
        followed, _ = follow([*frames_of()[:4], *later, *later[:2], noisy(later[2]), *later, *later, *later])
        new = [one.prior.source for one in without if "mean" in one.prior.source]
        assert [one.prior.source for one in followed if "mean" in one.prior.source][:1] == new[:1] != []

    def test_frames_that_are_all_far_are_how_things_are_now(self) -> None:
        raws = frames_of()
        followed, _ = follow([*raws[:3], *map(noisy, raws[3:])])
        assert any("far from" in reason for reason in followed[3].fallbacks)
        assert not any("far from" in reason for one in followed[4:] for reason in one.fallbacks)

    @pytest.mark.parametrize("first_full", [True, False])
    def test_a_frame_without_signal_is_refused_and_leaves_no_trace(self, first_full: bool) -> None:
        """Nor in a mean that is being gathered, wherever it comes."""
        raws = frames_of(first_full=first_full)[:2]
        lost = dataclasses.replace(raws[0].imaging, kspace=0 * raws[0].imaging.kspace)
        one, without = a_slice(), follow(raws)[0]
        for raw, expected in zip(raws, without, strict=True):
            with pytest.raises(InvalidFrame, match="all zero"):
                one.next(dataclasses.replace(raws[1], imaging=lost))
            assert torch.equal(one.next(raw).fit.image, expected.fit.image)


@pytest.mark.parametrize(
    ("method", "gain"),
    [(ResidualTikhonov(), 2.5), (ResidualTV(), 3.0), (ResidualINR(), 3.0)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_images_are_better_than_those_of_sense_where_tissue_changes_too(method: ResidualMethod, gain: float) -> None:
    """A breathing abdomen, and a needle on its way in."""
    followed, _ = follow(frames_of()[:5], a_slice(method))
    for number, one in enumerate(followed[1:], start=1):
        truth, support = simulated().truth(number), simulated().support(number)
        changed = simulated().changed(number) & support
        linear = sent(one, CGSense().fit(one.frame).image)
        assert psnr(sent(one), truth, support) > psnr(linear, truth, support) + gain
        if changed.sum() > 100:
            error = changed_error(sent(one), truth, support, changed)
            assert error < 0.1
            assert error < 0.8 * changed_error(linear, truth, support, changed)
            assert error < 0.3 * changed_error(sent(one, one.prior.image), truth, support, changed)


def test_same_bits_twice() -> None:
    one, two = usual()[0][:4], follow(frames_of()[:4])[0]
    assert all(torch.equal(a.fit.image, b.fit.image) for a, b in zip(one, two, strict=True))


def lines_of(raw: RawFrame) -> list[int]:
    return raw.imaging.lines[:, 1].tolist()


class TestMeans:
    def test_that_of_one_frame_is_the_frame(self) -> None:
        raw = frames_of()[1]
        mean = mean_of([raw])
        assert lines_of(mean) == sorted(lines_of(raw))
        order = np.argsort(raw.imaging.lines[:, 1])
        np.testing.assert_array_equal(mean.imaging.kspace, raw.imaging.kspace[:, order])
        np.testing.assert_array_equal(mean.imaging.acquired, raw.imaging.acquired[order])
        assert mean.average_count == raw.average_count

    def test_that_of_equals_is_as_they_are_with_less_noise(self) -> None:
        raw = frames_of()[1]
        mean = mean_of(3 * [raw])
        np.testing.assert_allclose(mean.imaging.kspace, mean_of([raw]).imaging.kspace, rtol=1e-5)
        assert mean.average_count == pytest.approx(3 * raw.average_count)

    def test_each_line_is_averaged_over_the_frames_that_have_it(self) -> None:
        raws = frames_of(pattern="interleaved", first_full=False)[:3]
        mean = mean_of(raws)
        assert lines_of(mean) == sorted({line for raw in raws for line in lines_of(raw)})
        for index, line in enumerate(lines_of(mean)):
            have = [raw.imaging.kspace[:, lines_of(raw).index(line)] for raw in raws if line in lines_of(raw)]
            np.testing.assert_allclose(mean.imaging.kspace[:, index], np.mean(have, axis=0), rtol=1e-4, atol=1e-6)
        rows = sum(len(lines_of(raw)) for raw in raws)
        assert mean.average_count == pytest.approx(rows / len(lines_of(mean)))
        assert mean.protocol.acceleration == pytest.approx(64 / len(lines_of(mean)))
        assert mean.key == raws[-1].key

    def test_the_order_of_the_frames_does_not_matter(self) -> None:
        raws = frames_of(pattern="interleaved", first_full=False)[:3]
        one, other = mean_of(raws), mean_of(raws[::-1])
        np.testing.assert_allclose(one.imaging.kspace, other.imaging.kspace, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(one.imaging.lines, other.imaging.lines)

    def test_samples_that_were_not_acquired_do_not_count(self) -> None:
        raw = frames_of()[1]
        acquired, kspace = raw.imaging.acquired.copy(), raw.imaging.kspace.copy()
        acquired[:, :20], kspace[:, :, :20] = False, 0
        partial = dataclasses.replace(raw.imaging, kspace=kspace, acquired=acquired)
        mean = mean_of([raw, dataclasses.replace(raw, imaging=partial)])
        np.testing.assert_allclose(mean.imaging.kspace, mean_of([raw]).imaging.kspace, rtol=1e-5)
        assert mean.imaging.acquired.all()
        alone = mean_of(2 * [dataclasses.replace(raw, imaging=partial)])
        assert not alone.imaging.acquired[:, :20].any()

    def test_interleaved_frames_make_a_full_one(self) -> None:
        raws = frames_of(pattern="interleaved", first_full=False)
        assert not is_complete(mean_of(raws[:2]))
        assert is_complete(mean_of(raws[:4]))


@pytest.mark.parametrize(
    ("lines", "complete"),
    [
        (range(64), True),
        (range(8, 64), True),
        (range(24, 40), False),
        (range(0, 64, 2), False),
        ([*range(40), 63], False),
    ],
)
def test_a_frame_without_gaps_that_spans_most_of_k_space_is_complete(lines: Any, complete: bool) -> None:
    whole = frames_of(pattern="full")[1]
    kept = np.isin(whole.imaging.lines[:, 1], list(lines))
    imaging = dataclasses.replace(
        whole.imaging,
        kspace=whole.imaging.kspace[:, kept],
        lines=whole.imaging.lines[kept],
        acquired=whole.imaging.acquired[kept],
    )
    assert is_complete(dataclasses.replace(whole, imaging=imaging)) == complete
