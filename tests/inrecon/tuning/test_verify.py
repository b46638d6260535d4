"""Entries on new scans: what still holds, what does not; and a search on the scan itself where there is none."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from inrecon.acquire import raw_frames
from inrecon.events import Event, Warned, listening
from inrecon.frame import RawFrame, Request
from inrecon.hyperparams import HyperparameterFiles, check
from inrecon.methods import BilevelINR, tunable_fields
from inrecon.simulate import simulate_scan
from inrecon.testing import write_quick_default
from inrecon.tuning import Plan, Scans, Verified, judged_scans, tuned_for, verify

SMALL = {"levels": 4, "log2_table_size": 9, "base_resolution": 4, "width": 8, "pixel_shift": 0.0}
PLAN = Plan(method="bilevel_inr", trials=3, batch=3, rungs=(10, 100), fixed=SMALL)
GOOD = {name: getattr(BilevelINR(), name) for name in tunable_fields(BilevelINR)} | {"learning_rate": 3e-2}


@pytest.fixture(scope="module")
def raw() -> RawFrame:
    scan = simulate_scan(shape=(40, 36), coils=4, acceleration=2, acs=10)
    return raw_frames(scan.header, scan.acquisitions)[0]


@pytest.fixture(scope="module")
def scans(raw: RawFrame) -> Scans:
    return judged_scans([raw], device="cpu")


def test_an_entry_holds_unless_something_is_clearly_better(scans: Scans) -> None:
    bad = {**GOOD, "learning_rate": 1e-5}
    candidates = {"used": bad, "other": GOOD}
    verified = verify(scans, PLAN, name="used", candidates=candidates)
    assert set(verified.losses) == {"used", "other", "best of 3 others"}
    assert verified.losses["other"] < verified.losses["used"]
    assert "other" in verified.better
    assert "used" not in verified.better
    best = next(iter(verified.losses))
    assert dataclasses.replace(verified, name=best).holds
    assert not verified.holds
    assert verified.lines()[0].endswith(f"  {best}")
    assert verified.lines()[-1].endswith("  (CG-SENSE)")


def test_an_entry_that_fails_does_not_hold() -> None:
    failed = Verified(name="used", losses={"other": 0.5, "best of 3 others": math.inf, "used": math.inf}, linear=0.4)
    assert failed.better == ["other"]
    assert not Verified(name="used", losses={"used": math.inf, "other": math.inf}, linear=0.4).holds


@pytest.fixture
def files(tmp_path: Path) -> HyperparameterFiles:
    (tmp_path / "files").mkdir()
    write_quick_default(tmp_path / "files", iterations=40, **SMALL, learning_rate=1e-5)
    return HyperparameterFiles.load(tmp_path / "files")


def tuned(
    raw: RawFrame, files: HyperparameterFiles, folder: Path, **request: str
) -> tuple[HyperparameterFiles, list[str]]:
    """The files after a search of no more than a race's first rung, and what was announced."""
    heard: list[str] = []

    def hear(event: Event) -> None:
        if isinstance(event, Warned):
            heard.append(event.text)

    with listening(hear):
        found = tuned_for(raw, files, request=Request(**request), device="cpu", seconds=1e-3, folder=folder)  # type: ignore[arg-type]
    return found, heard


def test_a_protocol_without_a_file_is_tuned_on_its_own_scan(
    raw: RawFrame, scans: Scans, files: HyperparameterFiles, tmp_path: Path
) -> None:
    folder = tmp_path / "candidates"
    folder.mkdir()
    found, (told,) = tuned(raw, files, folder)
    entry = found.look_up(raw.protocol)
    assert entry.name.startswith("candidate_")
    assert f"kept as {entry.name}" in told
    assert not {"error", "overlap"} & {finding.kind for finding in check(folder)}
    resolved = entry.resolve(Request())
    assert resolved.values["iterations"] == 40
    # A network that hardly moves in the time is beaten by almost any other.
    default = files.look_up(raw.protocol).resolve(Request())
    losses = []
    for method in (default.method, resolved.method):
        fit = method.fit(scans.judged[0].frame)
        losses.append(scans.judged[0].loss(fit.image if fit.trial is None else fit.trial))
    assert losses[1] < losses[0]
    # The next scan of the protocol replaces the candidate, and nothing is accepted by itself.
    again, _ = tuned(raw, files, folder)
    assert again.look_up(raw.protocol).file == entry.file
    assert len(list(folder.iterdir())) == 1


def test_a_protocol_with_a_file_and_a_method_without_anything_to_tune_are_left_alone(
    raw: RawFrame, files: HyperparameterFiles, tmp_path: Path
) -> None:
    assert tuned(raw, files, tmp_path, method="cg_sense") == (files, [])
    found, _ = tuned(raw, files, tmp_path)
    assert tuned(raw, found, tmp_path) == (found, [])


def test_what_cannot_be_tuned_or_kept_is_told_and_the_default_stays(
    raw: RawFrame, files: HyperparameterFiles, tmp_path: Path
) -> None:
    same, (told,) = tuned(raw, files, tmp_path / "nowhere")
    assert same == files
    assert "cannot be tuned here: " in told
    kept = slice(None, 4)
    few = dataclasses.replace(
        raw.imaging,
        kspace=raw.imaging.kspace[:, kept] * 0,
        lines=raw.imaging.lines[kept],
        acquired=raw.imaging.acquired[kept],
    )
    same, told_of_few = tuned(dataclasses.replace(raw, imaging=few), files, tmp_path)
    assert same == files
    assert [text for text in told_of_few if "cannot be tuned here: " in text], told_of_few
