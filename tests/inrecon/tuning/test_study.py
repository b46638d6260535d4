"""A search: what is asked, raced and told, by one worker or several; and the samplers that it may ask."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import optuna
import pytest
from optuna.study import Study
from optuna.trial import Trial, TrialState

from inrecon.acquire import raw_frames
from inrecon.errors import UnknownName
from inrecon.frame import RawFrame
from inrecon.methods import BilevelINR, tunable_fields
from inrecon.simulate import simulate_scan
from inrecon.tuning import (
    SAMPLERS,
    Judged,
    NotTunable,
    Plan,
    Scans,
    compete,
    judged_scans,
    make_sampler,
    search_space,
)
from inrecon.tuning.study import retry

SMALL = {"levels": 4, "log2_table_size": 9, "base_resolution": 4, "width": 8, "pixel_shift": 0.0}
PLAN = Plan(method="bilevel_inr", trials=11, batch=4, rungs=(3, 6, 9), reduction=2, fixed=SMALL)


def scanned(*, seed: int = 0, **scan: object) -> list[RawFrame]:
    usual: dict[str, object] = {"shape": (40, 36), "coils": 4, "acceleration": 2, "acs": 10, "seed": seed}
    simulated = simulate_scan(**{**usual, **scan})  # type: ignore[arg-type]
    return raw_frames(simulated.header, simulated.acquisitions)


@pytest.fixture(scope="module")
def scans() -> Scans:
    return judged_scans(scanned(), device="cpu")


def study_with(sampler: str = "random", *, seed: int = 0) -> Study:
    return optuna.create_study(sampler=make_sampler(sampler, seed=seed))


def states(study: Study) -> dict[str, int]:
    names = [trial.state.name for trial in study.trials]
    return {name: names.count(name) for name in names}


def test_every_trial_planned_is_told_with_its_curve(scans: Scans) -> None:
    study = study_with()
    spent = compete(study, PLAN, scans, worker="me")
    # Batches of 4, 4 and 3; half of each, rounded up, goes on.
    assert states(study) == {"PRUNED": 8, "COMPLETE": 3}
    steps = [list(trial.intermediate_values) for trial in study.trials]
    assert sorted(map(len, steps)) == [1] * 5 + [2] * 3 + [3] * 3
    assert all(list(PLAN.rungs)[: len(step)] == step for step in steps)
    assert spent == sum(step[-1] for step in steps)
    for trial in study.trials:
        assert trial.user_attrs["worker"] == "me"
        assert set(trial.params) == set(tunable_fields(BilevelINR))
        if trial.state == TrialState.COMPLETE:
            assert trial.value == trial.intermediate_values[9]


def test_the_better_half_of_a_batch_goes_on(scans: Scans) -> None:
    study = study_with()
    compete(study, dataclasses.replace(PLAN, trials=4), scans, worker="me")
    for rung, following in ((3, 6), (6, 9)):
        there = [trial for trial in study.trials if rung in trial.intermediate_values]
        on = [trial.intermediate_values[rung] for trial in there if following in trial.intermediate_values]
        off = [trial.intermediate_values[rung] for trial in there if following not in trial.intermediate_values]
        assert max(on) <= min(off)


def test_one_rung_fits_all_to_the_end(scans: Scans) -> None:
    study = study_with()
    assert compete(study, dataclasses.replace(PLAN, rungs=(9,), trials=5), scans, worker="me") == 45
    assert states(study) == {"COMPLETE": 5}


def test_values_in_use_are_never_dropped(scans: Scans) -> None:
    study = study_with()
    slow = {name: getattr(BilevelINR(), name) for name in tunable_fields(BilevelINR)} | {"learning_rate": 1e-5}
    study.enqueue_trial(slow, user_attrs={"origin": "default"})
    study.enqueue_trial(slow | {"weight_decay_mlp": 2e-7})
    compete(study, dataclasses.replace(PLAN, trials=8, batch=8, reduction=4), scans, worker="me")
    assert list(study.trials[0].intermediate_values) == [3, 6, 9]
    assert list(study.trials[1].intermediate_values) == [3]


def nan_in(group: Sequence[Judged]) -> tuple[Judged, ...]:
    frames = [dataclasses.replace(one.frame, kspace=one.frame.kspace * math.nan) for one in group]
    return tuple(dataclasses.replace(one, frame=frame) for one, frame in zip(group, frames, strict=True))


def test_a_search_in_which_nothing_can_be_fitted_ends(scans: Scans) -> None:
    hopeless = dataclasses.replace(scans, groups=tuple(map(nan_in, scans.groups)))
    with pytest.raises(NotTunable, match="the loss of none was a number"):
        compete(study_with(), PLAN, hopeless, worker="me")


def test_what_is_in_the_queue_comes_first(scans: Scans) -> None:
    study = study_with()
    values = {name: getattr(BilevelINR(), name) for name in tunable_fields(BilevelINR)}
    study.enqueue_trial(values)
    compete(study, dataclasses.replace(PLAN, trials=2), scans, worker="me")
    assert study.trials[0].params == pytest.approx(values)


def test_a_search_goes_on_where_it_was_and_ends_where_it_was_to_end(scans: Scans) -> None:
    study = study_with()
    compete(study, dataclasses.replace(PLAN, trials=5), scans, worker="first")
    before = study.trials
    compete(study, PLAN, scans, worker="second")
    assert study.trials[:5] == before
    assert len(study.trials) == 11
    assert compete(study, PLAN, scans, worker="third") == 0


def test_a_worker_that_is_interrupted_leaves_nothing_running(scans: Scans) -> None:
    study = study_with()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compete(study, PLAN, scans, worker="me", on_rung=interrupt)
    assert states(study) == {"FAIL": 2, "PRUNED": 2}
    compete(study, PLAN, scans, worker="me")
    assert sum(trial.state != TrialState.FAIL for trial in study.trials) == 11


def test_trials_of_a_worker_that_is_gone_come_again_but_not_for_ever(scans: Scans) -> None:
    study = study_with()
    for _ in range(4):
        lost = study.ask(dict(search_space(BilevelINR)))
        retry(study, [study.trials[lost.number]])
    assert [trial.user_attrs.get("retried", 0) for trial in study.trials] == [0, 1, 2, 0, 1]
    assert [trial.state.name for trial in study.trials] == ["FAIL"] * 4 + ["WAITING"]
    first = study.trials[0].params
    assert [trial.params == first for trial in study.trials[:4]] == [True, True, True, False]


def test_the_pulse_of_running_trials_is_felt(scans: Scans) -> None:
    beats: list[int] = []

    def feel(trial: Trial) -> None:
        beats.append(trial.number)

    compete(study_with(), dataclasses.replace(PLAN, trials=4), scans, worker="me", beat=feel)
    assert set(beats) == {0, 1, 2, 3}


def bowl(trial: Trial) -> float:
    """A loss over the search space of `bilevel_inr` with its minimum, 0.1, in the middle of each range."""
    total = 0.0
    for name, span in search_space(BilevelINR).items():
        value = trial.suggest_float(name, span.low, span.high, log=span.log)
        low, high, at = (math.log(v) if span.log else v for v in (span.low, span.high, value))
        total += ((at - low) / (high - low) - 0.5) ** 2
    trial.report(0.1 + total, 100)
    return 0.1 + total


def test_the_model_finds_the_bottom_of_a_bowl_and_the_same_one_again() -> None:
    found: dict[str, list[float]] = {}
    for sampler in ("gp_ucb", "random"):
        studies = [study_with(sampler, seed=seed) for seed in (0, 1)]
        for study in studies:
            study.optimize(bowl, n_trials=36)
        found[sampler] = [study.best_value for study in studies]
    assert max(found["gp_ucb"]) < 0.13 < min(found["random"])
    again = study_with("gp_ucb", seed=1)
    again.optimize(bowl, n_trials=36)
    assert again.best_value == found["gp_ucb"][1]


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_every_sampler_stays_within_the_ranges(name: str) -> None:
    study = study_with(name)
    study.optimize(bowl, n_trials=24)
    spans = search_space(BilevelINR)
    for trial in study.trials:
        assert all(spans[field].low <= value <= spans[field].high for field, value in trial.params.items())
    assert len({trial.params["learning_rate"] for trial in study.trials}) > 20


def test_an_unknown_sampler_is_named_with_those_that_there_are() -> None:
    with pytest.raises(UnknownName, match="unknown sampler 'sobol': known are gp_ucb"):
        make_sampler("sobol", seed=0)


def test_folds_hold_out_other_samples_of_the_same_frames() -> None:
    found = judged_scans(scanned(slices=4), device="cpu", folds=2, slices=2)
    assert [len(group) for group in found.groups] == [4]
    frames = [one.frame for one in found.judged]
    assert all(frame.held_out is not None for frame in frames)
    masks = [frame.held_out.tolist() for frame in frames if frame.held_out is not None]
    assert masks[0] == masks[2] != masks[1] == masks[3]
    assert not (frames[0].kspace == frames[2].kspace).all()


def test_the_hash_is_of_the_readouts() -> None:
    first, again, other = (judged_scans(scanned(seed=seed), device="cpu").sha256 for seed in (0, 0, 1))
    assert first == again != other


def full_and_less() -> tuple[list[RawFrame], list[RawFrame]]:
    return scanned(acceleration=1, pattern="full", snr=200.0), scanned(snr=200.0)


def test_in_oracle_mode_the_truth_judges_and_nothing_is_held_out() -> None:
    full, less = full_and_less()
    found = judged_scans(less, device="cpu", full=full)
    (one,) = found.judged
    assert one.frame.held_out is None
    assert one.reference is not None
    assert one.loss(one.reference.to(one.frame.kspace.dtype)) == pytest.approx(0, abs=1e-6)
    study = study_with()
    compete(study, dataclasses.replace(PLAN, trials=4), found, worker="me")
    assert all(0 < value < 2 for trial in study.trials for value in trial.intermediate_values.values())


def other_sequence() -> list[RawFrame]:
    first, second = scanned()[0], scanned(seed=1)[0]
    return [first, dataclasses.replace(second, protocol=dataclasses.replace(second.protocol, anatomy="KNEE"))]


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "nothing": (lambda: judged_scans([], device="cpu"), "no frame"),
    "mixed protocols": (lambda: judged_scans(other_sequence(), device="cpu"), "different protocols: anatomy"),
    "too few samples": (
        lambda: judged_scans(scanned(shape=(8, 8), acs=4, acceleration=2), device="cpu"),
        "too few samples",
    ),
    "truth undersampled": (
        lambda: judged_scans(scanned(), device="cpu", full=scanned()),
        "fully sampled is not",
    ),
    "truth of another size": (
        lambda: judged_scans(scanned(), device="cpu", full=scanned(shape=(44, 36), acceleration=1, pattern="full")),
        "fully sampled frame is",
    ),
    "truth of another frame": (
        lambda: judged_scans(scanned(slices=2), device="cpu", full=full_and_less()[0]),
        "has no frame",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_scans_that_tell_nothing_are_refused(case: str) -> None:
    call, text = REFUSED[case]
    with pytest.raises(NotTunable, match=text):
        call()
