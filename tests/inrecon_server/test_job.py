"""A job: what becomes of a frame, whatever goes wrong with it."""

import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from inrecon.acquire import raw_frames
from inrecon.attempts import FEW_COILS, ways_for
from inrecon.condition import MOST_COILS
from inrecon.errors import DeviceBroken, InvalidFrame
from inrecon.events import FallBack, FitFinished, FitProgressed, Warned, observe
from inrecon.frame import Frame, Key, Reconstruction, Request
from inrecon.hyperparams import HyperparameterFiles
from inrecon.methods import CGSense, Method, methods
from inrecon.simulate import simulate_scan
from inrecon.testing import write_quick_default
from inrecon_server.job import InlineTuning, Job, JobResult, Progress, run_job
from inrecon_server.notices import Notice, notice_of
from inrecon_server.protocol import Image, Parser


def errors(result: JobResult) -> list[str]:
    return [notice.text for notice in result.notices if notice.level == "ERROR"]


def test_a_job_gives_an_image_for_the_wire_and_what_the_next_needs(job: Job) -> None:
    first = run_job(job)
    second = run_job(replace(job, progress=first.progress))
    parser = Parser(role="client")
    images = [message for data in (*first.images, *second.images) for message in parser.feed(data)]
    assert all(isinstance(image, Image) for image in images)
    assert [image.image_index for image in images] == [1, 2]
    (one,), (other,) = first.progress.series.values(), second.progress.series.values()
    assert one.scale == other.scale
    assert errors(first) == errors(second) == []


def test_an_error_of_a_stream_says_of_which_frame_it_is(job: Job) -> None:
    imaging = job.raw.imaging
    wrong = replace(job.raw, imaging=replace(imaging, kspace=1e25 * imaging.kspace), key=Key(slice=2, repetition=7))
    (alone,) = errors(run_job(replace(job, raw=wrong)))
    (of_stream,) = errors(run_job(replace(job, raw=wrong, stream="one")))
    assert "the largest sample" in alone
    assert of_stream == f"slice 2, repetition 7: {alone}"


def test_a_scan_keeps_the_hyperparameters_it_began_with(job: Job, tmp_path: Path) -> None:
    begun = Progress(hyperparameters=pickle.dumps(HyperparameterFiles.load()))
    assert run_job(replace(job, hyperparameters=tmp_path, progress=begun)).images
    assert "no hyperparameter files" in errors(run_job(replace(job, hyperparameters=tmp_path)))[0]


def test_a_scan_is_tuned_once_and_all_its_frames_use_what_was_found(job: Job, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "candidates").mkdir()
    write_quick_default(tmp_path / "files", iterations=20)
    tuning = InlineTuning(seconds=1e-3, folder=tmp_path / "candidates")
    job = replace(job, request=Request(), hyperparameters=tmp_path / "files", inline_tuning=tuning)
    first = run_job(job)
    (candidate,) = (tmp_path / "candidates").glob("*.yaml")
    assert any(f"kept as {candidate.stem}" in notice.text for notice in first.notices)
    candidate.unlink()
    second = run_job(replace(job, progress=first.progress))
    assert not candidate.exists()
    parser = Parser(role="client")
    images = [message for data in (*first.images, *second.images) for message in parser.feed(data)]
    assert [f"<value>{candidate.stem}</value>" in image.attribute_string for image in images] == [True, True]


def test_a_search_that_fails_costs_no_frame_and_is_not_begun_again(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def out_of_memory(*_: object, **__: object) -> None:
        begun.append(1)
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr("inrecon.tuning.inline.compete", out_of_memory)
    request = Request(overrides={"iterations": 2, "levels": 2})
    job = replace(job, request=request, inline_tuning=InlineTuning(seconds=1e-3, folder=tmp_path))
    first = run_job(job)
    assert len(first.images) == 1
    assert any("cannot be tuned here: CUDA out of memory" in notice.text for notice in first.notices)
    assert run_job(replace(job, progress=first.progress)).images
    assert len(begun) == 1


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (Request(method="cg_sens"), "did you mean 'cg_sense'"),
        (Request(method="cg_sense", overrides={"iteration": "3"}), "no field 'iteration'"),
    ],
)
def test_what_is_wrong_with_a_job_becomes_a_notice(job: Job, request_: Request, told: str) -> None:
    result = run_job(replace(job, request=request_))
    assert result.images == ()
    assert told in errors(result)[0]


def test_a_device_that_does_not_exist_becomes_a_notice(job: Job) -> None:
    assert "unknown device" in errors(run_job(replace(job, device="tpu")))[0]


@pytest.mark.parametrize("wrong", [TypeError, KeyError, AttributeError])
def test_a_bug_everywhere_costs_one_frame_and_its_details_stay_in_the_log(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wrong: type[Exception]
) -> None:
    from inrecon import stream

    def broken(*_: object, **__: object) -> None:
        raise wrong("secret detail")

    monkeypatch.setattr(stream, "reconstruct", broken)
    (error,) = errors(run_job(job))
    assert f"internal error ({wrong.__name__})" in error
    assert "secret detail" not in error
    assert "secret detail" in caplog.text
    assert "Traceback" in caplog.text


def test_fall_backs_of_one_kind_are_told_once_for_all_planes_of_a_job(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inrecon import stream

    def hundreds(*_: object, **__: object) -> None:
        for plane in range(300):
            observe(FallBack(room="fit", reason=f"diverged: loss {plane / 7:.3g} after {plane} iterations"))
            observe(FallBack(room="calibrate", reason=f"diverged: loss {plane / 7:.3g} after {plane} iterations"))
        raise InvalidFrame("enough")

    monkeypatch.setattr(stream, "reconstruct", hundreds)
    fit, calibrate, error = run_job(job).notices
    assert "fall-back (fit): diverged: loss 0 after 0 iterations" in fit.text
    assert "fall-back (calibrate)" in calibrate.text
    assert error.text == "enough"


def test_warnings_and_fall_backs_are_told_and_progress_is_not() -> None:
    assert notice_of(Warned(text="w")) == Notice(level="WARNING", text="w")
    told = notice_of(FallBack(room="fit", reason="diverged"))
    assert told is not None
    assert told.level == "WARNING"
    assert "fit" in told.text
    assert "diverged" in told.text
    assert notice_of(FitProgressed(iteration=1, iterations=2)) is None
    assert notice_of(FitFinished(method="m", iterations=1, stopped_by="s", seconds=1.0, validation_loss=None)) is None


@pytest.fixture
def unruly(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[Frame], Reconstruction]]:
    """A method called ``unruly`` that does what stands under "fit" here."""
    does: dict[str, Callable[[Frame], Reconstruction]] = {}

    @dataclass(frozen=True, kw_only=True)
    class Unruly(Method):
        def fit(self, frame: Frame) -> Reconstruction:
            return does["fit"](frame)

    monkeypatch.setitem(methods._entries, "unruly", Unruly)
    return does


def warnings_of(result: JobResult) -> list[str]:
    return [notice.text for notice in result.notices if notice.level == "WARNING"]


def test_a_bug_in_a_fit_costs_the_fit_and_not_the_image(job: Job, unruly: dict) -> None:
    def broken(_: Frame) -> Reconstruction:
        raise KeyError("secret detail")

    unruly["fit"] = broken
    result = run_job(replace(job, request=Request(method="unruly")))
    assert len(result.images) == 1
    assert errors(result) == []
    (told,) = warnings_of(result)
    assert "internal error (KeyError)" in told
    assert "CG-SENSE instead" in told
    assert result.reports[0]["fallback"] in told
    assert b"secret" not in result.images[0]


def test_what_does_not_fit_into_memory_is_tried_with_fewer_coils(unruly: dict) -> None:
    scan = simulate_scan(shape=(32, 32), coils=10, acceleration=2, acs=12)
    (raw,) = raw_frames(scan.header, scan.acquisitions)
    seen = []

    def greedy(frame: Frame) -> Reconstruction:
        seen.append(len(frame.maps.csm))
        if len(frame.maps.csm) > FEW_COILS:
            torch.empty(1 << 48)  # more than any allocator gives
        return CGSense().fit(frame)

    unruly["fit"] = greedy
    asked = Request(method="unruly")
    result = run_job(Job(raw=raw, request=asked, progress=Progress(), hyperparameters=None, device="cpu"))
    assert seen[0] > FEW_COILS >= seen[1]
    assert len(result.images) == 1
    assert errors(result) == []
    reason = f"the frame did not fit into memory; reconstructed with {FEW_COILS} coils instead"
    assert warnings_of(result) == [f"fall-back (memory): {reason}"]
    assert result.reports[0]["fallback"] == reason
    assert result.fallbacks == ("memory",)


def test_what_never_fits_into_memory_becomes_the_marked_fall_back(job: Job, unruly: dict) -> None:
    unruly["fit"] = lambda _: torch.empty(1 << 48)
    result = run_job(replace(job, request=Request(method="unruly")))
    assert len(result.images) == 1
    assert "fall-back (fit): the fit failed" in warnings_of(result)[-1]
    assert "memory" in result.reports[0]["fallback"]


def test_on_a_gpu_the_cpu_is_tried_before_the_fit_is_given_up() -> None:
    tried = [(way.device, way.max_coils, way.fits) for way in ways_for("cuda", fits=True)]
    most, few = MOST_COILS, FEW_COILS
    assert tried == [("cuda", most, True), ("cuda", few, True), ("cpu", most, True), ("cpu", few, False)]


def test_a_device_that_is_broken_is_left_to_another_process(job: Job, unruly: dict) -> None:
    def broken(_: Frame) -> Reconstruction:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    unruly["fit"] = broken
    with pytest.raises(DeviceBroken, match="illegal memory access"):
        run_job(replace(job, request=Request(method="unruly")))


def test_what_stands_in_for_a_fit_is_not_tuned_first(job: Job, tmp_path: Path) -> None:
    tuning = InlineTuning(seconds=1e-3, folder=tmp_path)
    for changed in ({"no_fit": "the process died"}, {"due": time.monotonic() + 60}):
        asked = replace(job, request=Request(overrides={"iterations": 2, "levels": 2}), inline_tuning=tuning, **changed)
        assert run_job(asked).images
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_of_the_sender_is_told_and_not_tried_again(job: Job, unruly: dict) -> None:
    calls = []

    def wrong(_: Frame) -> Reconstruction:
        calls.append(1)
        raise InvalidFrame("this is no frame")

    unruly["fit"] = wrong
    assert errors(run_job(replace(job, request=Request(method="unruly")))) == ["this is no frame"]
    assert len(calls) == 1


def test_without_a_fit_the_image_is_that_of_cg_sense_and_says_why(job: Job) -> None:
    plain = run_job(replace(job, request=Request(method="cg_sense", dtype="float")))
    request = Request(method="bilevel_inr", dtype="float")
    instead = run_job(replace(job, request=request, no_fit="the process died"))
    assert warnings_of(instead) == ["fall-back (fit): the process died; CG-SENSE instead"]
    one, other = (image_in(result) for result in (plain, instead))
    np.testing.assert_array_equal(one.data, other.data)
    assert other.meta["inrecon_fallback"] == "the process died; CG-SENSE instead"


def test_a_job_whose_time_is_over_is_not_fitted(job: Job) -> None:
    late = run_job(replace(job, request=Request(method="bilevel_inr"), due=time.monotonic() - 1))
    assert len(late.images) == 1
    assert "no time was left for the fit" in warnings_of(late)[0]


def test_hyperparameter_files_that_break_leave_those_from_before(job: Job, tmp_path: Path) -> None:
    write_quick_default(tmp_path, iterations=2)
    job = replace(job, request=Request(), hyperparameters=tmp_path)
    first = run_job(job)
    assert first.last_good is not None
    (tmp_path / "default.yaml").write_text("version: 2\n")
    assert "default.yaml" in errors(run_job(job))[0]
    again = run_job(replace(job, last_good=first.last_good))
    np.testing.assert_array_equal(image_in(again).data, image_in(first).data)
    assert again.last_good is None
    assert "those from before are" in warnings_of(again)[0]
    assert "default.yaml" in warnings_of(again)[0]


def test_a_file_that_leads_nowhere_is_named(job: Job, tmp_path: Path) -> None:
    (tmp_path / "default.yaml").symlink_to(tmp_path / "gone.yaml")
    assert "default.yaml" in errors(run_job(replace(job, hyperparameters=tmp_path)))[0]


def image_in(result: JobResult) -> Image:
    (data,) = result.images
    (image,) = Parser(role="client").feed(data)
    assert isinstance(image, Image)
    return image
