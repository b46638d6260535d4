"""`inrecon bench live`: cases are streams, scores know what has changed, methods follow, and what cannot be run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from live import cases, contestants, fine_tuning, main, results, stream
from live.cases import CASES, Case
from live.contestants import Opening
from live.judge import Course, Moment
from quality.cases import InvalidCases

from inrecon import live as slices
from inrecon.errors import InreconError
from inrecon.methods import BilevelINR, ResidualTV
from inrecon_server import cli

SMALL = {"name": "small", "matrix": (96, 96), "coils": 4, "frames": 8, "acceleration": 2, "centre": 8}
TINY_NETWORK = "levels=2:hidden_layers=1:width=8:log2_table_size=8"


@pytest.fixture(scope="module")
def moments() -> list[Moment]:
    stream = cases.stream_of(Case.model_validate(SMALL), seed=0, data=None)
    return list(Course(stream))


@pytest.fixture(scope="module")
def opening(moments: list[Moment]) -> Opening:
    prior = slices.begin(moments[0].raw, source="the first frame", device="cpu").prior
    return Opening(raw=moments[0].raw, prior=prior, device="cpu")


def test_the_cases_are_streams_that_can_be_made() -> None:
    found = cases.load(CASES)
    assert found[0].seeds > 1
    assert {case.pattern for case in found} == {"uniform", "interleaved", "random"}
    shifted = next(case for case in found if case.shift is not None)
    assert shifted.shift_at == 20
    measured = [case for case in found if case.data is not None]
    assert measured
    assert all(cases.stream_of(case, seed=0, data=Path("nowhere")) is None for case in measured)


def test_a_measured_object_is_repainted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    down, across = np.mgrid[-1:1:48j, -1:1:48j]
    coils = np.stack([np.exp(-((down - y) ** 2) - (across - x) ** 2) for y in (-1, 1) for x in (-1, 1)])
    images = coils * (down**2 + across**2 < 0.6) * (1 + 0.2 * rng.random((48, 48)))
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(images, (1, 2)), norm="ortho"), (1, 2))
    np.savez(tmp_path / "disc.npz", kspace=kspace)
    stream = cases.stream_of(Case(name="disc", data="disc.npz", frames=8, motion=0), seed=0, data=tmp_path)
    assert stream is not None
    truth, inside = np.abs(stream.truth(0)), stream.support(0)
    assert np.corrcoef(truth[inside], np.linalg.norm(images, axis=0)[inside])[0, 1] > 0.99


def test_an_image_is_judged_where_something_has_changed(moments: list[Moment]) -> None:
    assert [moment.number for moment in moments] == list(range(8))
    assert moments[0].scores(moments[0].truth) == {"psnr": np.inf}
    last = moments[-1]
    perfect = last.scores(3 * last.truth)
    assert perfect["psnr"] > 100
    assert (perfect["changed"], perfect["needle"]) == pytest.approx((0, 0), abs=1e-6)
    assert (perfect["contrast"], moments[3].scores(moments[3].truth)["tip"]) == pytest.approx((1, 1))
    # The first frame again lacks all that has changed, the truth without the needle nothing but that.
    assert 0.8 < last.scores(last.first)["changed"] < 1.05
    assert last.scores(last.bare)["contrast"] == pytest.approx(0, abs=0.1)
    assert last.scores(last.bare)["needle"] == pytest.approx(1, abs=0.1)


def test_methods_follow_and_others_start_anew(moments: list[Moment], opening: Opening) -> None:
    names = "copy,cg_sense,residual_tv:displacement=0"
    scores = {}
    for one in contestants.parse(names):
        run = one.on(opening)
        run.begin(moments[0])
        answers = [(moment, run.next(moment)) for moment in moments[1:4]]
        scores[one.label] = [moment.scores(image.abs().numpy().astype(float)) for moment, (image, _) in answers]
    copied, linear, followed = ([one["changed"] for one in scores[name]] for name in names.split(","))
    assert np.mean(copied) > 0.9 > np.mean(linear)
    assert np.mean(followed) < 0.9


def test_a_network_is_trained_once_and_tuned_from_there(moments: list[Moment], opening: Opening) -> None:
    text = (
        f"fine_tuned:pretraining=30:iterations=5:{TINY_NETWORK},fine_tuned:pretraining=30:iterations=1:{TINY_NETWORK}"
    )
    first, second = (one.on(opening) for one in contestants.parse(text))
    assert len(opening.pretrained) == 1
    once, again = (first.next(moments[2])[0] for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, second.next(moments[2])[0])
    (tuned,) = opening.pretrained.values()
    frame = fine_tuning.whole(opening.prior.conditioning.apply(moments[2].raw), opening.prior.maps)
    begun = tuned.tuned(frame, iterations=0, towards=0.0)
    near, free = (tuned.tuned(frame, iterations=20, towards=towards) for towards in (10.0, 0.0))
    assert torch.linalg.vector_norm(near - begun) < 0.5 * torch.linalg.vector_norm(free - begun)


def test_only_some_frames_are_tuned(moments: list[Moment], opening: Opening) -> None:
    (one,) = contestants.parse(f"fine_tuned:pretraining=1:iterations=1:every=3:{TINY_NETWORK}")
    run = one.on(opening)
    assert [run.next(moment) is not None for moment in moments] == [n % 3 == 0 for n in range(8)]


def test_recovery_is_counted_from_the_shift() -> None:
    row = results.Row(case="a", seed=0, label="m", shift_at=3, frames=[1, 2, 3, 4, 5])
    row.scores = [{"psnr": psnr} for psnr in (30.0, 30.0, 20.0, 28.9, 29.1)]
    assert row.recovery == 2
    assert "recovered after 2 frames" in results.table([row], [])
    row.scores[-1] = {"psnr": 25.0}
    assert row.recovery is None
    assert "not recovered" in results.table([row], [])


def test_methods_that_leave_frames_out_are_compared_in_what_they_have() -> None:
    scores = [{"psnr": 20.0, "changed": 0.4}, {"psnr": 30.0, "changed": 0.2}]
    often = results.Row(case="a", seed=0, label="often", shift_at=None, frames=[1, 2], scores=scores)
    seldom = results.Row(case="a", seed=0, label="seldom", shift_at=None, frames=[2], scores=scores[1:])
    rows = results.table([often, seldom], []).splitlines()[2:]
    assert [line.split(" | ")[-2] for line in rows] == ["30.00 / 0.200"] * 2
    assert results.table([often], []).splitlines()[2].split(" | ")[-2] == "-"


def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    streams = [SMALL | {"name": "shifted", "shift": 0.5, "matrix": [32, 32]}, {"name": "lost", "data": "nothing.npz"}]
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump({"cases": streams}))
    arguments = ["bench", "live", "--cases", str(tmp_path / "cases.yaml"), "--methods", "copy,residual_tv:iterations=4"]
    outputs = ["--markdown", "table.md", "--json", "values.json", "--plots", "plots"]
    outputs = [text if text.startswith("--") else str(tmp_path / text) for text in outputs]
    assert cli.main([*arguments, *outputs, "--seeds", "2", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "table.md").read_text()
    assert "| shifted | residual_tv:iterations=4 |" in printed
    assert "lost was skipped: nothing.npz is not at hand" in printed
    rows = json.loads((tmp_path / "values.json").read_text())["rows"]
    assert [(row["seed"], row["label"]) for row in rows] == [
        (seed, label) for seed in (0, 1) for label in ("copy", "residual_tv:iterations=4")
    ]
    assert all(row["frames"] == list(range(1, 8)) and row["mean"]["psnr"] > 10 for row in rows)
    assert (tmp_path / "plots/shifted.png").read_bytes().startswith(b"\x89PNG")


def test_a_method_that_fails_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.model_validate(SMALL)

    def broken(_: object, __: object) -> None:
        raise InreconError("broken")

    monkeypatch.setattr(contestants.Following, "next", broken)
    found = contestants.parse("copy,residual_tv")
    copied, followed = main.compared(case, cases.stream_of(case, seed=0, data=None), found, seed=0, device="cpu")
    assert (len(copied.frames), copied.failure) == (7, None)
    assert (len(followed.frames), followed.failure) == (0, "broken")
    assert "broken" in results.table([copied, followed], [])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--only", "R7"], "no case is called 'R7'"),
        (["--methods", "residual"], "unknown method 'residual': known are copy, fine_tuned, "),
        (["--methods", "copy,copy"], "methods stand twice: copy"),
        (["--methods", "residual_tv:displacement"], "methods have fields"),
        (["--methods", "residual_tv:points=3"], "has no field 'points'"),
        (["--methods", "fine_tuned:iterations=many"], "invalid literal"),
        (["--frames", "2"], "greater than or equal to 8"),
        (["--only", "brain"], "their data are not at hand"),
    ],
)
def test_what_cannot_be_run_is_told(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(arguments) == 2
    assert told in capsys.readouterr().err


def test_fields_of_a_network_are_those_of_the_paper() -> None:
    (one,) = contestants.parse("fine_tuned:seed=3")
    assert isinstance(one.how, fine_tuning.FineTuning)
    assert one.how.iterations == 500
    assert one.how.network == BilevelINR(**fine_tuning.PUBLISHED, seed=3)
    assert one.how.network.hidden_layers == 6
    with pytest.raises(InvalidCases):
        contestants.parse("")
    assert contestants.parse("residual_tv")[0].how == ResidualTV()


def test_a_stream_goes_on_counting() -> None:
    made = cases.stream_of(Case.model_validate(SMALL | {"matrix": (32, 32)}), seed=0, data=None)
    endless = stream.Endless(made, 20, dict)
    told = [(r.idx.repetition, r.scan_counter, r.acquisition_time_stamp) for readouts in endless for r in readouts]
    repetitions, counters, stamps = zip(*told, strict=True)
    assert sorted(set(repetitions)) == list(range(20))
    assert counters == tuple(range(len(told)))
    assert list(stamps) == sorted(stamps)


def test_a_long_stream_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind = [
        "--frames",
        "5",
        "--rate",
        "20",
        "--size",
        "32",
        "--coils",
        "4",
        "--method",
        "cg_sense",
        "--inline-size",
        "32",
    ]
    stream.main([*kind, "--inline-deadline", "1", "--json", str(tmp_path / "values.json")])
    assert capsys.readouterr().out.startswith("| | alone | beside inline scans |")
    runs = json.loads((tmp_path / "values.json").read_text())
    for run in runs.values():
        assert run["images"] + run["without image"] == run["frames"] == 5
        assert run["images"] >= 1
        assert run["largest"] >= run["latency (s): median"] > 0
        assert min(run["front (MiB)"]) > 20
        assert min(run["workers (MiB)"]) > 100
    assert runs["beside inline scans"]["inline scans"] >= 1
