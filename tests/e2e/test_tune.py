"""`inrecon tune`: raw files in, a hyperparameter file out that a replay then uses; broken off, resumed, shared."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import yaml
from hearing import hear_interrupts
from optuna.trial import TrialState

from inrecon.simulate import simulate_scan, write_ismrmrd
from inrecon.testing import write_quick_default
from inrecon_server.cli import main


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a raw file and hyperparameter files of a network that is quick to fit."""
    write_ismrmrd(tmp_path / "raw.h5", simulate_scan(shape=(32, 28), coils=3, acceleration=2, acs=10))
    (tmp_path / "files").mkdir()
    write_quick_default(tmp_path / "files", iterations=30, learning_rate=2e-2)
    return tmp_path


def command(place: Path, *more: object) -> list[str]:
    output, files = place / "files" / "brain.yaml", place / "files"
    given = ["tune", place / "raw.h5", "-o", output, "--hyperparameters", files, "--device", "cpu", *more]
    return list(map(str, given))


def trials(place: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="brain", storage=f"sqlite:///{place / 'files' / 'brain.db'}").trials


def test_a_scan_gets_a_file_and_the_next_scan_uses_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(place, "--trials", 5, "--sampler", "quasi_random")) == 0
    told = capsys.readouterr().out
    assert "1 trials to the end, 4 dropped on the way, 0 failed; 520 iterations" in told
    assert "nothing better than the values of default was found" in told

    written = yaml.safe_load((place / "files" / "brain.yaml").read_text())
    assert written["provenance"]["from"] == "tuned"
    assert written["provenance"]["trials"] == 5
    assert written["values"]["levels"] == 3
    assert trials(place)[0].user_attrs["origin"] == "default"
    best = min(t.value for t in trials(place) if t.state == TrialState.COMPLETE and t.value is not None)
    assert written["provenance"]["loss"] == pytest.approx(best, rel=1e-2)
    page = (place / "files" / "brain.html").read_text()
    assert "Hyperparameters of brain" in page

    assert main(["check", str(place / "files")]) == 0
    report = place / "report.json"
    options = ["-o", str(place / "out.h5"), "--hyperparameters", str(place / "files"), "--report", str(report)]
    assert main(["replay", str(place / "raw.h5"), *options]) == 0
    (image,) = json.loads(report.read_text())
    assert image["entry"] == "brain"
    assert image["hyperparameters"]["learning_rate"] == written["values"]["learning_rate"]
    assert image["hyperparameters"]["iterations"] == 30


def test_a_file_is_verified_on_a_new_scan(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify = ["tune", str(place / "raw.h5"), "--verify", "--hyperparameters", str(place / "files"), "--device", "cpu"]
    for option in (["--jobs", "2"], ["--sampler", "tpe"], ["--storage", "x"]):
        assert main([*verify, *option]) == 2
        assert f"it takes no {option[0]}" in capsys.readouterr().err
    assert main([*verify, "--method", "tv"]) == 2
    assert "default says nothing of the method 'tv'" in capsys.readouterr().err
    assert main([*verify, "--trials", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "default holds for this scan"
    write_quick_default(place / "files", iterations=30, learning_rate=1e-5)
    assert main([*verify, "--trials", "2"]) == 1
    assert "default does not hold for this scan: clearly better would be" in capsys.readouterr().err


def test_no_patient_is_in_what_is_written(place: Path) -> None:
    """The simulated header has a name like a patient's in no field but its own."""
    scan = simulate_scan(shape=(32, 28), coils=3, acceleration=2, acs=10)
    patient = "<patientName>Doe^Jane</patientName><patientID>PID-4711-XQ</patientID>"
    subject = f"<subjectInformation>{patient}</subjectInformation>"
    header = scan.header.decode() if isinstance(scan.header, bytes) else scan.header
    start = header.index("<", header.index("<ismrmrdHeader") + 1)
    named = header[:start] + subject + header[start:]
    changed = type(scan)(**{**scan.__dict__, "header": named.encode() if isinstance(scan.header, bytes) else named})
    write_ismrmrd(place / "raw.h5", changed)
    assert main(command(place, "--trials", 2)) == 0
    for file in (place / "files").iterdir():
        data = file.read_bytes()
        assert b"Jane" not in data
        assert b"PID-4711" not in data


def test_more_trials_are_added_to_those_that_there_are(place: Path) -> None:
    assert main(command(place, "--trials", 3)) == 0
    before = trials(place)
    assert main(command(place, "--trials", 5)) == 0
    after = trials(place)
    assert [trial.params for trial in after[:3]] == [trial.params for trial in before]
    assert len(after) == 5


@pytest.fixture(params=["processes", "ray"])
def workers(request: pytest.FixtureRequest) -> list[str]:
    """Options for two workers beside the process that was started."""
    return ["--jobs", "2"] if request.param == "processes" else ["--ray", request.getfixturevalue("ray_cluster")]


def test_workers_share_the_trials(place: Path, workers: list[str]) -> None:
    assert main(command(place, "--trials", 8, "--sampler", "random", *workers)) == 0
    found = [trial for trial in trials(place) if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(found) in (8, 9)
    assert os.getpid() not in {process_of(trial) for trial in found}


def process_of(trial: optuna.trial.FrozenTrial) -> int:
    """The process id of a trial's worker."""
    return int(trial.user_attrs["worker"].split(" ")[0].rpartition(":")[2])


def begun(place: Path, process: subprocess.Popen[str], count: int) -> list[optuna.trial.FrozenTrial]:
    """The trials as soon as there are so many."""
    while process.poll() is None:
        try:
            found = trials(place)
        except (KeyError, optuna.exceptions.StorageInternalError):
            continue
        if len(found) >= count:
            return found
    raise AssertionError(process.communicate())


def lost(found: list[optuna.trial.FrozenTrial]) -> list[optuna.trial.FrozenTrial]:
    """Those whose worker was gone; those whose loss was no number have failed, too."""
    failed = [trial for trial in found if trial.state == TrialState.FAIL and trial.params]
    return [trial for trial in failed if all(map(math.isfinite, trial.intermediate_values.values()))]


def come_again(found: list[optuna.trial.FrozenTrial]) -> bool:
    """Whether each that was lost has been tried again, or waits for it, with the values that it had got so far."""
    retried = [trial for trial in found if trial.user_attrs.get("retried")]
    again = [(trial.params or trial.system_attrs["fixed_params"]).items() for trial in retried]
    return all(any(trial.params.items() <= values for values in again) for trial in lost(found))


def start(place: Path, *more: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "inrecon_server.cli", *command(place, *more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )


def test_a_search_that_is_killed_goes_on_and_loses_only_what_was_running(place: Path) -> None:
    process = start(place, "--trials", 40, "--sampler", "random")
    before = begun(place, process, 16)
    process.kill()
    process.communicate()
    assert main(command(place, "--trials", 20, "--sampler", "random")) == 0
    after = trials(place)
    over = [trial for trial in before if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(over) >= 10
    assert [(t.params, t.value) for t in over] == [(after[t.number].params, after[t.number].value) for t in over]
    kept = [trial for trial in after if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(kept) == 20
    assert come_again(after)


def test_a_worker_that_is_killed_is_replaced_and_its_trials_are_tried_again(place: Path, workers: list[str]) -> None:
    process = start(place, "--trials", 24, "--sampler", "random", *workers)
    running = [trial for trial in begun(place, process, 4) if "worker" in trial.user_attrs]
    os.kill(process_of(running[0]), signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "dropped on the way" in out
    found = trials(place)
    # Of two workers that ask at the same time, both get the last one.
    assert sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in found) in (24, 25)
    assert {trial.user_attrs["worker"] for trial in lost(found)} == {running[0].user_attrs["worker"]}
    assert come_again(found)


def test_an_interrupt_keeps_the_trials_and_says_how_to_go_on(place: Path) -> None:
    process = start(place, "--trials", 400, "--sampler", "random")
    begun(place, process, 16)
    err = ""
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            _, err = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            continue  # a destructor that is interrupted swallows it
    assert process.returncode == 130, err
    assert "trials are kept in sqlite:" in err
    assert not (place / "files" / "brain.yaml").exists()
    left = [trial for trial in trials(place) if trial.state == TrialState.RUNNING]
    assert len(left) <= 1
    assert not any("worker" in trial.user_attrs for trial in left)


MISTAKES: dict[str, tuple[Callable[[Path], list[object]], str]] = {
    "no such method": (lambda _: ["--method", "magic"], "unknown method 'magic'"),
    "nothing to tune": (lambda _: ["--method", "zero_filled"], "'zero_filled' has no field to tune"),
    "no such sampler": (lambda _: ["--sampler", "sobol"], "unknown sampler 'sobol'"),
    "no such folder": (lambda place: ["-o", place / "nowhere" / "x.yaml"], "there is no folder"),
    "no such database": (lambda place: ["--storage", f"sqlite:///{place}/nowhere/x.db"], "cannot be used"),
    "no database at all": (lambda _: ["--storage", "somewhere"], "cannot be used"),
    "no driver": (lambda _: ["--storage", "postgresql://127.0.0.1:1/x"], "cannot be used"),
    "no such cluster": (lambda _: ["--ray", "127.0.0.1:1"], "there is no Ray cluster at 127.0.0.1:1"),
    "no such file": (lambda place: ["--oracle", place / "full.h5"], "there is no file"),
    "trials": (lambda _: ["--trials", "0"], "must be a whole number from 1 on"),
}


@pytest.mark.parametrize("case", list(MISTAKES))
def test_a_mistake_is_told_in_one_line_and_nothing_is_written(
    place: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more, text = MISTAKES[case]
    try:
        code = main(command(place, *more(place)))
    except SystemExit as ended:
        code = int(str(ended.code))
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
    assert not list((place / "files").glob("brain.y*"))


def test_a_study_of_other_data_is_not_gone_on_with(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(place, "--trials", 2)) == 0
    write_ismrmrd(place / "raw.h5", simulate_scan(shape=(32, 28), coils=3, acceleration=2, acs=10, seed=5))
    capsys.readouterr()
    assert main(command(place, "--trials", 2)) == 2
    assert "is of other data: give another --study" in capsys.readouterr().err
    assert len(trials(place)) == 2
