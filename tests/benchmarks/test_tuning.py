"""`inrecon bench tuning`: searches and hypotheses on a small head, and what cannot be run."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from quality.cases import Case, InvalidCases
from tuning import bed, hypotheses, searches, workers
from tuning.bed import Bed
from tuning.main import main

from inrecon.tuning import Plan

HEAD = {"matrix": [32, 28], "coils": 4, "seed": 3}


def case(name: str, **changes: object) -> Case:
    usual = {"generated": HEAD, "pattern": "uniform", "acceleration": 2, "centre": 12, "noise": 1e-3}
    return Case.model_validate({"name": name, **usual, **changes})


@pytest.fixture
def beds(monkeypatch: pytest.MonkeyPatch) -> list[Bed]:
    """Two heads, on which networks are judged after a few iterations."""
    for module in (bed, searches):
        monkeypatch.setattr(module, "JUDGED_AT", 4)
    monkeypatch.setattr(searches, "RUNGS", (2, 4))
    monkeypatch.setattr(searches, "PAPER_STARTUP", 2)
    monkeypatch.setattr(Bed, "psnr", lambda self, values: 30 + 1e3 * values["learning_rate"])
    found = [Bed.of(case(name, generated=HEAD | {"seed": n}), data=None, device="cpu") for n, name in enumerate("ab")]
    return [one for one in found if one is not None]


def test_a_bed_judges_by_samples_and_by_the_whole(beds: list[Bed]) -> None:
    first = beds[0]
    values = searches.shipped()
    assert first.loss(values) == first.loss(dict(reversed(values.items())))
    assert first.scans.judged[0].reference is None
    assert first.oracle.judged[0].reference is not None
    assert first.oracle.judged[0].frame.held_out is None


@pytest.mark.parametrize("name", ["random", "paper"])
def test_a_search_tells_what_it_has_spent_and_when_it_found_what(beds: list[Bed], name: str) -> None:
    row = searches.row(beds[0], name, trials=4, seed=0)
    whole = 4 * 4
    assert row["iterations"] == whole if name == "paper" else row["iterations"] < whole
    spent = [iterations for iterations, _, _ in row["curve"]]
    assert spent == sorted(spent)
    assert spent[-1] <= row["iterations"]
    assert row["loss"] == beds[0].loss(row["values"]) == row["curve"][-1][2]
    assert row["psnr"] == beds[0].psnr(row["values"])


def test_runs_are_drawn_and_put_in_a_table(beds: list[Bed], tmp_path: Path) -> None:
    rows = [searches.shipped_row(beds[0]), *(searches.row(beds[0], "random", trials=2, seed=seed) for seed in (0, 1))]
    searches.draw(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    lines = searches.table(rows).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["defaults", "random"]
    assert ".." in lines[3]


def test_values_of_each_are_tried_on_all(beds: list[Bed]) -> None:
    found: dict[str, dict] = {"values": {}, "psnr": {}}
    for _ in hypotheses.crossed(beds, found, trials=2):
        pass
    assert set(found["values"]) == {hypotheses.SHIPPED, "a", "a, oracle", "b", "b, oracle"}
    assert set(found["psnr"]["a"]) == {hypotheses.SHIPPED, "a", "a, oracle", "b"}
    rows = hypotheses.table(found["psnr"]).splitlines()
    assert rows[2].startswith(f"| a | {found['psnr']['a']['a']:.2f} | ")


def test_workers_share_a_search_and_are_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers, "Plan", functools.partial(Plan, batch=2, rungs=(2, 4)))
    assert main(["workers", "--size", "32", "--trials", "4", "--device", "cpu"]) == 0
    alone, together = capsys.readouterr().out.splitlines()[2:]
    assert alone.startswith("| this process | 4 | ")
    assert " | 1.00 | " in alone
    assert together.startswith("| 2 processes | 4 | ")


def test_a_scan_of_points_has_no_oracle() -> None:
    with pytest.raises(InvalidCases, match="needs whole lines"):
        Bed.of(case("points", pattern="poisson"), data=None, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["searches", "--cases", "brain"], "no case is called 'brain'"),
        (["searches", "--searches", "grid"], "unknown search grid"),
        (["hypotheses"], "brain_8ch_230x180.npz is not at hand"),
    ],
)
def test_what_cannot_be_run_is_told(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert told in capsys.readouterr().err
