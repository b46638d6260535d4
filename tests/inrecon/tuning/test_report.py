"""Reports: the page is parsed, its figures are compared with the study, its images are decoded."""

import base64
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image
from plotly.offline import get_plotlyjs

from inrecon.errors import InvalidFrame
from inrecon.methods import methods
from inrecon.tuning.report import write_report
from inrecon.tuning.search import search_space

SPACE: dict[str, BaseDistribution] = dict(search_space(methods["bilevel_inr"]))
VOID = {"meta", "img", "br"}
HOSTILE = "<script src='http://x.example/a.js'></script>&\"<img onerror=alert(1)>"


class Page(HTMLParser):
    """The tags and texts of a page without the library; fails where tags don't close in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        whole = path.read_text(encoding="utf-8")
        assert whole.count(get_plotlyjs()) == 1
        self.source = whole.replace(get_plotlyjs(), "")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        assert self.source.startswith("<!DOCTYPE html>")
        self.feed(self.source)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" not in self._open and "style" not in self._open:
            self.text += data

    def figure(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Traces by name, and the layout."""
        found = re.search(rf'Plotly\.newPlot\(\s*"{name}",\s*', self.source)
        assert found
        traces, end = json.JSONDecoder().raw_decode(self.source, found.end())
        layout, _ = json.JSONDecoder().raw_decode(self.source[end:].lstrip(" ,\n"))
        return {trace["name"]: trace for trace in traces}, layout

    def images(self) -> list[NDArray[np.uint8]]:
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(s.split(",")[1])))) for s in sources]


def raced(trials: int, *, seed: int = 0) -> optuna.Study:
    """Two in three trials dropped after 20 iterations, every ninth failed; the loss depends on the learning rate."""
    random, study = np.random.default_rng(seed), optuna.create_study()
    for number in range(trials):
        unit = dict(zip(SPACE, random.random(len(SPACE)), strict=True))
        loss = 0.2 + 2 * (unit["learning_rate"] - 0.6) ** 2
        params = {name: span.low * (span.high / span.low) ** unit[name] for name, span in search_space_items()}
        if number % 9 == 8:
            add(study, TrialState.FAIL, {20: math.inf}, params)
        elif number % 3:
            add(study, TrialState.PRUNED, {20: 1.5 * loss}, params)
        else:
            add(study, TrialState.COMPLETE, {20: 1.5 * loss, 60: 1.2 * loss, 200: loss}, params)
    return study


def search_space_items() -> list[tuple[str, FloatDistribution]]:
    return list(search_space(methods["bilevel_inr"]).items())


def add(
    study: optuna.Study, state: TrialState, losses: dict[int, float], params: Mapping[str, float] | None = None
) -> None:
    values = {name: span.low for name, span in search_space_items()} if params is None else dict(params)
    value = losses[max(losses)] if state == TrialState.COMPLETE else None
    study.add_trial(
        create_trial(state=state, params=values, distributions=dict(SPACE), intermediate_values=losses, value=value)
    )


def report(
    path: Path,
    study: optuna.Study,
    *,
    title: str = "a search",
    facts: Mapping[str, str] | None = None,
    images: Mapping[str, NDArray[np.floating]] | None = None,
    transfer: Sequence[Mapping[str, str]] = (),
) -> Page:
    write_report(path / "r.html", study, title=title, facts=facts or {}, images=images or {}, transfer=transfer)
    return Page(path / "r.html")


def test_nothing_is_fetched_and_the_order_is_that_of_reading(tmp_path: Path) -> None:
    page = report(
        tmp_path,
        raced(30),
        facts={"sampler": "gp_ucb"},
        images={"tuned": np.ones((4, 4))},
        transfer=[{"scan": "other", "loss": "0.3"}],
    )
    assert not re.search(r"""(?:src|href)\s*=(?!"data:)|@import|url\(|https?://""", page.source)
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "base"}
    policies = [a["content"] or "" for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policies[0].startswith("default-src 'none'")
    parts = ["a search", "30 trials", "Search history", "Learning curves", "Each field", "Importance"]
    places = [page.text.rindex(part) for part in [*parts, "Images", "Transfer", "Provenance"]]
    assert places == sorted(places)
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names)) == 2 + len(SPACE)


def test_the_same_study_gives_the_same_page(tmp_path: Path) -> None:
    assert report(tmp_path, raced(30)).source == report(tmp_path, raced(30)).source


def test_the_summary_counts(tmp_path: Path) -> None:
    study = raced(36)
    study.ask()
    page = report(tmp_path, study)
    spent = sum(max(trial.intermediate_values, default=0) for trial in study.trials)
    assert "37 trials: 12 finished, 20 dropped, 4 failed, 1 under way." in page.text
    assert f"{spent:,} iterations were spent" in page.text
    assert f"trial {study.best_trial.number} has the best loss on held-out samples, {study.best_value:.4g}" in page.text
    assert f"{study.best_params['weight_offset']:.4g}" in page.text
    assert "τ" in page.text
    assert "λ_Enc" in page.text


def test_the_figures_hold_the_losses(tmp_path: Path) -> None:
    study = raced(30)
    page = report(tmp_path, study)
    history, _ = page.figure("history")
    spent = np.cumsum([max(trial.intermediate_values) for trial in study.trials])
    finished = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert history["finished"]["x"] == [spent[trial.number] for trial in finished]
    assert history["finished"]["y"] == [trial.value for trial in finished]
    so_far = history["best so far"]
    assert so_far["y"] == sorted(so_far["y"], reverse=True)
    assert so_far["y"][-1] == study.best_value
    assert so_far["x"][-1] == spent[-1]
    assert history["dropped"]["line"]["color"] != history["finished"]["line"]["color"]
    assert "failed" not in history
    curves, layout = page.figure("curves")
    assert curves["best"]["x"] == [20, 60, 200]
    assert curves["best"]["y"] == list(study.best_trial.intermediate_values.values())
    assert curves["finished"]["x"] == [20, 60, 200, None] * len(finished)
    assert layout["xaxis"]["tickvals"] == [20, 60, 200]


def test_marginals_are_at_the_last_rung_that_most_reached(tmp_path: Path) -> None:
    study = raced(30)
    page = report(tmp_path, study)
    assert "after 20 iterations" in page.text
    for place, (name, span) in enumerate(search_space_items()):
        traces, layout = page.figure(f"field-{place}")
        assert layout["xaxis"]["type"] == ("log" if span.log else "linear")
        assert layout["xaxis"]["title"]["text"].startswith(name)
        assert traces["best"]["x"] == [study.best_params[name]]
        assert traces["best"]["y"] == [study.best_trial.intermediate_values[20]]
        dropped = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
        assert traces["dropped"]["x"] == [trial.params[name] for trial in dropped]


def test_importance_finds_the_field_that_matters_or_says_why_not(tmp_path: Path) -> None:
    shares = report(tmp_path, raced(60)).text.split("Importance of the fields")[1]
    places = {name: shares.index(name) for name in SPACE}
    assert min(places, key=places.__getitem__) == "learning_rate"
    assert "it takes 20 trials" in report(tmp_path, raced(12)).text
    alike = optuna.create_study()
    for _ in range(25):
        add(alike, TrialState.COMPLETE, {20: 0.5})
    assert "nearly all trials are equal" in report(tmp_path, alike).text


@pytest.mark.parametrize("losses", [{20: math.inf}, {20: math.nan}, {20: 0.5, 60: -math.inf}, {}])
def test_without_a_finite_loss_there_are_words(tmp_path: Path, losses: dict[int, float]) -> None:
    study = optuna.create_study()
    add(study, TrialState.FAIL, losses)
    page = report(tmp_path, study)
    assert "nothing to draw" in page.text
    assert "newPlot" not in page.source
    assert "0 trials" in report(tmp_path, optuna.create_study()).text


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED])
@pytest.mark.parametrize("loss", [0.5, 0.0, -1.0])
def test_one_trial_is_drawn(tmp_path: Path, state: TrialState, loss: float) -> None:
    study = optuna.create_study()
    add(study, state, {20: loss})
    page = report(tmp_path, study)
    _, layout = page.figure("history")
    assert layout["yaxis"]["type"] == ("log" if loss > 0 else "linear")
    assert ("trials that got furthest" in page.text) == (state == TrialState.PRUNED)


def test_what_is_not_finite_is_left_out_of_the_figures(tmp_path: Path) -> None:
    study = raced(10)
    add(study, TrialState.FAIL, {20: 0.4, 60: math.nan})
    page = report(tmp_path, study)
    assert "Left out: 2 without a finite loss" in page.text
    assert page.figure("curves")[0]["failed"]["y"] == [None, 0.4, None]
    assert not re.search(r"\b(?:NaN|Infinity)\b", page.source)


def test_text_from_outside_stays_text(tmp_path: Path) -> None:
    study = optuna.create_study()
    span = FloatDistribution(1.0, 2.0)
    trial = create_trial(params={HOSTILE: 1.5}, distributions={HOSTILE: span}, intermediate_values={20: 0.5}, value=0.5)
    study.add_trial(trial)
    page = report(
        tmp_path,
        study,
        title=HOSTILE,
        facts={HOSTILE: HOSTILE},
        images={HOSTILE: np.ones((4, 4))},
        transfer=[{HOSTILE: HOSTILE}],
    )
    assert page.text.count(HOSTILE) == 8  # title twice, field, caption, and twice in each table
    assert [attributes for tag, attributes in page.tags if tag == "script" and attributes] == []
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [HOSTILE]
    assert "<" not in page.figure("field-0")[1]["xaxis"]["title"]["text"]


def test_images_share_one_grey_window(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 64 * 32).reshape(64, 32)
    spoilt = ramp.copy()
    spoilt[0, :3] = math.nan, math.inf, -math.inf
    bright, dim, holed = report(tmp_path, raced(3), images={"a": ramp, "b": ramp / 2, "c": spoilt}).images()
    assert bright.shape == (64, 32)
    assert bright.max() == 255
    np.testing.assert_allclose(dim, bright / 2.0, atol=2)
    np.testing.assert_array_equal(holed[1:], bright[1:])


@pytest.mark.parametrize("image", [np.ones(3), np.ones((1, 2, 2)), np.ones((0, 4))])
def test_what_is_no_image_or_no_table_is_refused_and_the_old_page_stays(
    tmp_path: Path, image: NDArray[np.floating]
) -> None:
    (tmp_path / "r.html").write_text("old")
    with pytest.raises(InvalidFrame, match="two-dimensional"):
        report(tmp_path, raced(3), images={"a": image})
    with pytest.raises(ValueError, match="equal keys"):
        report(tmp_path, raced(3), transfer=[{"a": "1"}, {"b": "1"}])
    assert (tmp_path / "r.html").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["r.html"]


def test_a_page_that_cannot_take_its_place_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "r.html").mkdir()
    with pytest.raises(OSError, match=r"r\.html"):
        report(tmp_path, raced(3))
    assert [file.name for file in tmp_path.iterdir()] == ["r.html"]
