"""`inrecon bench quality`: cases are checked, scans are what a scanner sends, judges rank, BART is run once."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from quality import bart, contest, entrants, markdown, opponents, runner
from quality.bart import Bart, BartFailed, read_cfl, write_cfl
from quality.cases import CASES, Case, Goals, InvalidCases, load
from quality.judge import Candidate, maps_of
from quality.opponents import Trial, searched
from quality.results import Row, failing, margins, mean_psnr
from quality.runner import run_apart
from quality.sampling import sampled
from quality.scans import image_of, scan_of

from inrecon.condition import condition
from inrecon.errors import FitDiverged, InreconError
from inrecon.frame import Request
from inrecon.hyperparams import HyperparameterFiles
from inrecon.simulate import folded
from inrecon.stream import reconstruct
from inrecon_server import cli

HEAD = {"matrix": [32, 28], "coils": 4, "seed": 3}


def case(**changes: object) -> Case:
    values = {"name": "head", "generated": HEAD, "pattern": "uniform", "acceleration": 2, "centre": 12, "noise": 1e-3}
    return Case.model_validate(values | changes)


def own_data(folder: Path) -> Case:
    """A case of a data file that brings its own mask: every second column, and the centre."""
    kspace = np.stack([a.imaging.kspace for a in [scan_of(case(pattern="full"), data=None).raw]])[0]
    mask = np.zeros(kspace.shape[1:], bool)
    mask[:, ::2] = mask[8:24, 6:22] = True
    np.savez(folder / "own.npz", kspace=kspace, mask=mask)
    return Case(name="own", data="own.npz", pattern="own", centre=16, held_out=0.1)


def cg_sense(raw, **overrides):
    request = Request(method="cg_sense", dtype="complex", overrides=overrides)
    result = reconstruct(raw, request=request, hyperparameters=HyperparameterFiles.load(), device="cpu", series={})
    return np.asarray(result.images[0].data).reshape(tuple(condition(raw, device="cpu").mask.shape))


def written(folder: Path, **benchmark: object) -> Path:
    path = folder / "cases.yaml"
    path.write_text(yaml.safe_dump(benchmark))
    return path


def row(label: str, *, merit: float, ssim: float, case: str = "a", is_bart: bool = False) -> Row:
    scores = {"psnr": merit, "ssim": ssim}
    return Row(case=case, acceleration=4, label=label, is_bart=is_bart, scores=scores, merit=merit)


def test_the_cases_that_ship_are_valid_and_those_without_data_can_be_made() -> None:
    benchmark = load(CASES)
    assert len(benchmark.cases) >= 15
    generated = [case for case in benchmark.cases if case.generated is not None]
    assert len(generated) >= 5
    for one in generated:
        assert sampled(one, one.generated.matrix, own=None).any()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"acceleratoin": 4}, "did you mean 'acceleration'"),
        ({"generated": HEAD | {"coil": 3}}, "did you mean 'coils'"),
        ({"data": "x.npz"}, "either data or generated"),
        ({"pattern": "spiral"}, "'uniform', 'random', 'poisson'"),
        ({"pattern": "own"}, "held_out go together"),
        ({"acceleration": 2.5}, "must be whole"),
        ({"pattern": "poisson", "partial_fourier": 0.75}, "leaves out lines"),
        ({"pattern": "poisson", "field_of_view": 0.75}, "leaves out lines"),
    ],
)
def test_a_wrong_case_is_refused_with_what_would_be_right(tmp_path: Path, wrong: dict, said: str) -> None:
    right = case().model_dump(exclude_unset=True)
    with pytest.raises(InvalidCases, match=said):
        load(written(tmp_path, cases=[right | wrong]))


def test_names_of_cases_stand_once(tmp_path: Path) -> None:
    right = case().model_dump(exclude_unset=True, mode="json")
    with pytest.raises(InvalidCases, match="stand twice: head"):
        load(written(tmp_path, cases=[right, right]))


def test_every_unknown_key_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidCases, match="known are cases, goals"):
        load(written(tmp_path, cases=[case().model_dump(exclude_unset=True, mode="json")], scans=[]))


def test_methods_are_read_with_preset_and_fields() -> None:
    plain, full = entrants.parse("cg_sense, bilevel_inr:quality:seed=1:iterations=30")
    assert (plain.method, plain.preset, plain.overrides) == ("cg_sense", "standard", {})
    assert (full.method, full.preset, full.overrides) == ("bilevel_inr", "quality", {"seed": "1", "iterations": "30"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cg_sens", "known are"),
        ("bilevel_inr:slow", "neither a preset"),
        ("bart_l1:fast", "leave preset"),
        ("cg_sense:iterations=0", "must lie in"),
        ("cg_sense:iteration=9", "has no field"),
    ],
)
def test_a_wrong_method_is_refused(text: str, said: str) -> None:
    with pytest.raises(InreconError, match=said):
        entrants.parse(text)


def test_an_ablation_names_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "ablation.yaml"
    path.write_text("plain: {method: cg_sense}\nlong: {method: cg_sense, overrides: {iterations: 90}}\n")
    assert [(e.label, e.overrides) for e in entrants.read_ablation(path)] == [
        ("plain", {}),
        ("long", {"iterations": 90}),
    ]
    path.write_text("plain: {method: cg_sense, override: {}}\n")
    with pytest.raises(InvalidCases, match="did you mean 'overrides'"):
        entrants.read_ablation(path)


@pytest.mark.parametrize("pattern", ["uniform", "random", "full"])
def test_lines_are_sampled_whole_and_the_centre_with_them(pattern: str) -> None:
    one = case(pattern=pattern, acceleration=4)
    mask = sampled(one, (32, 28), own=None)
    assert (mask.any(1) == mask.all(1)).all()
    assert mask[10:22].all()
    assert mask.all() == (pattern == "full")


def test_partial_fourier_leaves_out_the_first_lines() -> None:
    mask = sampled(case(pattern="full", partial_fourier=0.75), (32, 28), own=None)
    assert not mask[:8].any()
    assert mask[8:].all()
    with pytest.raises(InvalidCases, match="centre lines"):
        sampled(case(centre=30, partial_fourier=0.75), (32, 28), own=None)


def test_a_scan_has_the_lines_of_the_full_one_and_the_noise_that_was_added() -> None:
    whole = scan_of(case(pattern="full", acceleration=1, seed=5), data=None)
    part = scan_of(case(seed=5), data=None)
    kept = part.raw.imaging.lines[:, 1]
    assert len(kept) < len(whole.raw.imaging.lines)
    np.testing.assert_array_equal(part.raw.imaging.kspace, whole.raw.imaging.kspace[:, kept])
    clean = scan_of(case(pattern="full", acceleration=1, seed=5, noise=0), data=None)
    added = whole.raw.imaging.kspace - clean.raw.imaging.kspace
    largest = np.abs(clean.raw.imaging.kspace).max()
    assert np.sqrt((np.abs(added) ** 2).mean()) == pytest.approx(1e-3 * largest, rel=0.03)
    np.testing.assert_allclose(np.sqrt(whole.raw.noise.covariance.diagonal().real), 1e-3 * largest, rtol=0.06)
    assert clean.raw.noise is None


def test_the_reference_is_what_all_samples_give() -> None:
    full = scan_of(case(pattern="full", acceleration=1, noise=1e-6), data=None)
    image = cg_sense(full.raw, regularisation=0)
    assert full.judge.scores(Candidate(image=image, maps=maps_of(full.raw)))["psnr"] > 35
    few = scan_of(case(acceleration=4), data=None)
    assert few.judge.scores(Candidate(image=cg_sense(few.raw), maps=maps_of(few.raw)))["psnr"] < 35


def test_a_region_has_an_error_of_its_own() -> None:
    judge = scan_of(case(regions={"left": [8, 24, 8, 14], "right": [8, 24, 14, 20]}), data=None).judge
    spoilt = judge.truth[0].copy()
    spoilt[8:24, 8:14] *= 1.2
    scores = judge.scores(Candidate(image=spoilt, maps=np.zeros((1, 32, 28), np.complex64)))
    assert scores["nrmse left"] + scores["nrmse right"] == pytest.approx(0.2, rel=0.1)  # one scale for the whole image
    assert scores["nrmse left"] > scores["nrmse right"] > 0


def test_a_field_of_view_that_folds_has_the_root_sum_of_squares_for_reference() -> None:
    head = {"generated": HEAD | {"matrix": [64, 48]}, "noise": 1e-6, "centre": 16}
    whole = scan_of(case(**head, pattern="full", acceleration=1), data=None)
    part = scan_of(case(**head, pattern="full", acceleration=1, field_of_view=0.65), data=None)
    images = image_of(whole.raw.imaging.kspace)
    folds = np.linalg.norm(folded(images, 42), axis=0)
    assert part.judge.image.shape == (42, 48)
    assert np.linalg.norm(np.abs(part.judge.image) - folds) < 0.05 * np.linalg.norm(folds)
    assert part.maps.shape == (2, 4, 42, 48)
    few = scan_of(case(**head, field_of_view=0.65), data=None)
    for scan, least in ((part, 40), (few, 25)):
        image = cg_sense(scan.raw, regularisation=0)
        assert scan.judge.scores(Candidate(image=image, maps=scan.maps))["psnr"] > least


def test_a_poisson_disc_is_a_plane_of_a_3d_scan() -> None:
    head = HEAD | {"matrix": [48, 40]}
    scan = scan_of(case(generated=head, pattern="poisson", acceleration=3, centre=12), data=None)
    assert scan.raw.geometry.encoded_matrix == (1, 40, 48)
    assert scan.raw.imaging.kspace.shape[2] == 1
    assert scan.acceleration == pytest.approx(3, rel=0.2)
    measurement = condition(scan.raw, device="cpu")
    assert measurement.axes == "zy"
    assert tuple(measurement.calibration.shape[2:]) == (12, 12)
    image = cg_sense(scan.raw)
    assert scan.judge.scores(Candidate(image=image, maps=maps_of(scan.raw)))["psnr"] > 20


def test_held_out_samples_are_not_fitted_and_rank_images(tmp_path: Path) -> None:
    one = own_data(tmp_path)
    scan = scan_of(one, data=tmp_path)
    everything = int(np.load(tmp_path / "own.npz")["mask"].sum())
    aside = int(scan.judge.mask.sum())
    assert len(scan.raw.imaging.lines) == everything - aside
    assert 0.05 < aside / (everything - 16 * 16) < 0.15
    assert not (scan.judge.mask & scan.judge.measurement.mask).any()
    maps = maps_of(scan.raw)
    image = cg_sense(scan.raw)
    good = scan.judge.scores(Candidate(image=image, maps=maps))
    blurred = np.abs(image).mean() + 0 * image
    bad = scan.judge.scores(Candidate(image=blurred, maps=maps))
    assert good["held-out error"] < 0.5 * bad["held-out error"]
    assert scan.judge.merit(good) > scan.judge.merit(bad)
    twice = scan.judge.scores(Candidate(image=2j * image, maps=maps))
    assert twice["held-out error"] == pytest.approx(good["held-out error"], rel=1e-4)


def test_held_out_samples_are_those_of_the_conditioned_coils(tmp_path: Path) -> None:
    scan = scan_of(own_data(tmp_path), data=tmp_path)
    full = torch.from_numpy(np.load(tmp_path / "own.npz")["kspace"])
    unmixed = torch.einsum("av,vrc->arc", scan.judge.measurement.unmix, scan.judge.kspace)
    factor = torch.vdot(unmixed.flatten(), (full * scan.judge.mask).flatten()).abs()
    norms = torch.linalg.vector_norm(unmixed) * torch.linalg.vector_norm(full * scan.judge.mask)
    assert factor / norms > 0.99


def test_a_data_file_that_is_missing_is_no_scan(tmp_path: Path) -> None:
    assert scan_of(Case(name="x", data="x.npz", pattern="full", centre=8), data=tmp_path) is None
    assert scan_of(Case(name="x", data="x.npz", pattern="full", centre=8), data=None) is None


def test_a_method_in_a_process_of_its_own_gives_the_image_that_it_gives_here() -> None:
    scan = scan_of(case(), data=None)
    (entrant,) = entrants.parse("cg_sense:iterations=20")
    outcome = run_apart(scan.raw, entrant, device="cpu", hyperparameters=None)
    np.testing.assert_allclose(outcome.image, cg_sense(scan.raw, iterations=20), rtol=1e-4, atol=1e-4)
    assert outcome.report["iterations"] <= 20
    assert 50 < outcome.peak_mib < 5000
    assert 0 < outcome.seconds < 20


def test_margins_are_over_the_best_of_bart_in_psnr_and_in_ssim() -> None:
    rows = [
        row("bart_l1", merit=30, ssim=0.95, is_bart=True),
        row("bart_tv", merit=31, ssim=0.94, is_bart=True),
        row("ours", merit=31.5, ssim=0.94),
        row("ours", merit=40, ssim=0.99, case="without an opponent"),
    ]
    (margin,) = margins(rows)
    assert (margin.opponent, margin.merit) == ("bart_tv", 0.5)
    assert margin.ssim == pytest.approx(-0.01)
    assert failing([margin], Goals()) == ["ours on a: SSIM -0.010, goal +0.000"]
    assert len(failing([margin], Goals(psnr_margin_each=0.6, psnr_margin_mean=0.6))) == 3
    held_out = replace(margin, case="b", merit=-9.0, ssim=None)
    assert mean_psnr([margin, held_out]) == 0.5
    assert mean_psnr([held_out]) is None
    text = markdown.document(rows, goals=Goals(), remarks=["a remark"])
    assert "| a | bart_tv: 31.00 | +0.50 (-0.0100) |" in text
    assert "- a remark" in text


@pytest.mark.parametrize("optimum", [1e-4, 3e-3, 0.3])
def test_a_search_widens_its_grid_until_the_best_lies_inside(optimum: float) -> None:
    def run(weight: float) -> Trial:
        merit = -abs(np.log(weight / optimum))
        return Trial(
            command="",
            name="",
            weight=weight,
            iterations=1,
            block=24,
            crop=0.8,
            merit=merit,
            scores={},
            seconds=0,
            candidate=Candidate(image=np.zeros((1, 1), np.complex64), maps=np.zeros((1, 1, 1), np.complex64)),
        )

    trials = searched(run, opponents.SOLVERS["bart_l1"].start)
    best = max(trials, key=lambda trial: trial.merit)
    assert best.weight == pytest.approx(optimum, rel=0.25)
    assert min(t.weight for t in trials) < best.weight < max(t.weight for t in trials)


def test_arrays_come_back_from_cfl_as_they_went(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = (rng.normal(size=(3, 5, 4)) + 1j * rng.normal(size=(3, 5, 4))).astype(np.complex64)
    write_cfl(str(tmp_path / "a"), array)
    np.testing.assert_array_equal(read_cfl(str(tmp_path / "a")), array)
    write_cfl(str(tmp_path / "b"), array[:1])
    np.testing.assert_array_equal(read_cfl(str(tmp_path / "b")), array[0])
    sets = np.stack([array, 2 * array])
    write_cfl(str(tmp_path / "c"), sets)
    np.testing.assert_array_equal(read_cfl(str(tmp_path / "c")), sets)
    assert (tmp_path / "c.hdr").read_text().splitlines()[1].startswith("5 4 1 3 2 1")


def fake_bart(folder: Path, monkeypatch: pytest.MonkeyPatch, *, script: str) -> Path:
    """A `bart` on the PATH that notes each call and runs `script`."""
    program, calls = folder / "bin" / "bart", folder / "calls"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nif [ "$1" = version ]; then echo v0; exit; fi\necho "$@" >> {calls}\n{script}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return calls


def test_bart_runs_once_for_the_same_command_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = 'for last; do :; done; cp "$4.cfl" "$last.cfl"; cp "$4.hdr" "$last.hdr"'  # bart NAME -x -y IN OUT
    calls = fake_bart(tmp_path, monkeypatch, script=copy)
    opponent = Bart(cache=tmp_path / "cache", threads=1)
    array = np.arange(24, dtype=np.complex64).reshape(2, 3, 4)
    for data in (array, array, array + 1):
        np.testing.assert_array_equal(opponent.run("copy", ["-x", "-y"], [data]).array, data)
    assert len(calls.read_text().splitlines()) == 2
    opponent.run("copy", ["-x", "-z"], [array])
    assert len(calls.read_text().splitlines()) == 3


def test_what_bart_says_when_it_fails_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_bart(tmp_path, monkeypatch, script="echo out of luck >&2; exit 1")
    with pytest.raises(BartFailed, match="out of luck"):
        Bart(cache=tmp_path / "cache").run("pics", [], [np.zeros((1, 2, 2), np.complex64)])
    assert not list((tmp_path / "cache").glob("*"))


def test_a_benchmark_writes_table_values_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contest, "run_apart", runner.run_here)
    tiny = case(regions={"middle": [12, 20, 10, 18]}).model_dump(exclude_unset=True, mode="json")
    absent = {"name": "absent", "data": "none.npz", "pattern": "full", "centre": 8}
    outputs = {"--markdown": tmp_path / "t.md", "--json": tmp_path / "v.json", "--pictures": tmp_path / "pictures"}
    arguments = ["bench", "quality", "--cases", str(written(tmp_path, cases=[absent, tiny])), "--device", "cpu"]
    arguments += ["--methods", "cg_sense,cg_sense:iterations=1"]
    assert cli.main([*arguments, *(str(part) for pair in outputs.items() for part in pair)]) == 0
    table = capsys.readouterr().out
    assert outputs["--markdown"].read_text() == table
    assert "| head (1.5) | cg_sense |" in table
    assert "absent was skipped" in table
    values = json.loads(outputs["--json"].read_text())
    assert [row["label"] for row in values["rows"]] == ["cg_sense", "cg_sense:iterations=1"]
    assert values["rows"][0]["scores"]["psnr"] > values["rows"][1]["scores"]["psnr"]
    assert "nrmse middle" in values["rows"][0]["scores"]
    assert values["environment"]["torch"] == torch.__version__
    assert (outputs["--pictures"] / "head.png").read_bytes().startswith(b"\x89PNG")


def test_a_method_that_fails_has_a_row_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise FitDiverged("the loss rose")

    monkeypatch.setattr(contest, "run_apart", fail)
    tiny = case().model_dump(exclude_unset=True, mode="json")
    cases = str(written(tmp_path, cases=[tiny]))
    assert cli.main(["bench", "quality", "--cases", cases, "--methods", "cg_sense"]) == 1
    assert "| failed: the loss rose |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [
        ["--only", "nothing"],
        ["--only", "brain_16ch-random-4", "--methods", "cg_sense"],
        ["--cases", "missing.yaml"],
        ["--methods", "cg_sense,cg_sense"],
    ],
)
def test_what_cannot_be_done_is_said(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "quality", *wrong]) == 2
    assert "inrecon bench: " in capsys.readouterr().err


def test_without_a_source_checkout_there_are_no_benchmarks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "site-packages" / "inrecon_server" / "cli.py"))
    assert cli.main(["bench", "quality"]) == 2
    assert capsys.readouterr().err == (
        "inrecon: benchmarks run from a source checkout; an installed inrecon does not bring them\n"
    )


@pytest.mark.skipif(not bart.installed(), reason="BART is not installed")
def test_bart_has_two_sets_of_maps_where_the_field_of_view_folds(tmp_path: Path) -> None:
    head = HEAD | {"matrix": [64, 48]}
    scan = scan_of(case(generated=head, centre=16, field_of_view=0.65), data=None)
    opponent = opponents.Opponent(scan=scan, bart=Bart(cache=tmp_path, threads=1))
    trial = opponent.fixed("bart_l2")
    assert trial.command.startswith("ecalib -m2 ")
    assert trial.candidate.maps.shape == (2, 4, 42, 48)
    assert trial.merit > 20


@pytest.mark.skipif(not bart.installed(), reason="BART is not installed")
def test_bart_is_tuned_against_the_judge_and_beats_its_fixed_settings(tmp_path: Path) -> None:
    scan = scan_of(case(), data=None)
    opponent = opponents.Opponent(scan=scan, bart=Bart(cache=tmp_path, threads=1))
    best, curve = opponent.best("bart_l2")
    assert best.merit == max(trial.merit for trial in curve) > opponent.fixed("bart_l2").merit - 1e-9
    assert best.merit > 20
    weights = [trial.weight for trial in curve]
    assert weights == sorted(weights)
