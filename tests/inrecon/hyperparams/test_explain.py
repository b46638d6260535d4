"""Why a scan gets the file that it gets: the choice itself, and the lines that tell it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inrecon.errors import NoHyperparameters, UnknownName
from inrecon.frame import Live, Protocol, Request
from inrecon.hyperparams import Entry, HyperparameterFiles, explain
from inrecon.hyperparams.match import Match
from inrecon.hyperparams.schema import LiveSection
from inrecon.testing import scan_protocol


def files(**matches: dict[str, Any]) -> HyperparameterFiles:
    return HyperparameterFiles(entries=tuple(entry(name, match) for name, match in matches.items()))


def entry(name: str, match: dict[str, Any]) -> Entry:
    return Entry(
        name=name,
        file=f"files/{name}.yaml",
        sha256="0" * 16,
        match=Match.model_validate(match),
        method="cg_sense",
        normalisation="kspace_max",
        values={"regularisation": 0.01},
        presets={"fast": {"iterations": 10}},
        provenance={"from": "by hand", "source": "made up"},
    )


FOUND = """\
The scan
  protocol          knee_T2
  sequence          TSE
  anatomy           (the header does not say)
  vendor            SIEMENS
  field_strength_T  2.89
  trajectory        cartesian
  matrix            256 x 320
  acceleration      4.26667
  coils             16

It takes knee (files/knee.yaml)
  protocol      knee_T2  fits knee_t1 or knee_t2
  acceleration  4.26667  fits 4 or more

Not taken
  loose    matches, too, but does not name the protocol in full
  default  matches, too, but does not name the protocol in full
  brain    anatomy: (the header does not say), not brain or head
  many     coils: 16, not 20 .. 32
  wide     matrix.x: 320, not 240 .. 272

Method cg_sense, preset fast
  regularisation  0.01  the file
  noise_factor    2.0   asked for
  iterations      10    preset fast
"""


def test_the_lines_tell_what_was_chosen_why_and_what_becomes_of_it() -> None:
    folder = files(
        default={},
        knee={"protocol": ["knee_t1", "knee_t2"], "acceleration": [4, float("inf")]},
        loose={"sequence": "tse", "vendor": "siemens", "coils": [1, 64]},
        brain={"anatomy": ["brain", "head"], "coils": [32, 32]},
        wide={"matrix": {"y": [240, 272], "x": [240, 272]}},
        many={"coils": [20, 32]},
    )
    scan = scan_protocol(anatomy=None, acceleration=4.26667)
    told = explain(scan, folder, Request(preset="fast", overrides={"noise_factor": 2})).lines()
    assert told == FOUND.splitlines()


def test_of_two_that_match_the_one_with_fewer_fields_is_told_so() -> None:
    told = explain(scan_protocol(), files(default={}, knee={"sequence": "tse"}), Request()).lines()
    assert "  default  matches, too, but constrains 0 fields, not 1" in told


def test_of_equals_the_first_by_name_is_told_so() -> None:
    told = explain(scan_protocol(), files(beta={"sequence": "tse"}, alpha={"coils": [16, 16]}), Request()).lines()
    assert "It takes alpha (files/alpha.yaml)" in told
    assert "  beta  matches, too, but no better than alpha, the first by name" in told


def test_the_default_alone_is_told_so() -> None:
    told = explain(scan_protocol(), files(default={}), Request()).lines()
    assert "  which is for every scan that no other file matches" in told
    assert "Not taken" not in told


def test_that_no_file_matches_is_an_explanation() -> None:
    told = explain(scan_protocol(anatomy=None), files(brain={"anatomy": "brain"}), Request())
    assert told.chosen is told.resolved is None
    assert told.lines()[-4:] == [
        "No file matches it; a file default.yaml would.",
        "",
        "Not taken",
        "  brain  anatomy: (the header does not say), not brain",
    ]


def test_a_method_without_fields_is_told_so() -> None:
    told = explain(scan_protocol(), files(default={}), Request(method="zero_filled")).lines()
    assert told[-2:] == ["Method zero_filled, preset standard", "  which has no fields"]


def test_a_frame_of_a_stream_gets_the_section_for_streams() -> None:
    section = LiveSection(method="residual_tikhonov", values={"displacement": 4})
    folder = HyperparameterFiles(entries=(dataclasses.replace(entry("default", {}), live=section),))
    told = explain(scan_protocol(), folder, Request(live=Live())).lines()
    assert told[-3:] == [
        "Method residual_tikhonov, preset standard, as a frame of an interventional stream",
        "  displacement    4     the file",
        "  regularisation  0.03  default of the method",
    ]


def test_a_request_that_cannot_be_met_is_refused() -> None:
    with pytest.raises(UnknownName, match="did you mean 'cg_sense'"):
        explain(scan_protocol(), files(default={}), Request(method="cg_sens"))


def test_what_a_header_holds_cannot_steer_a_terminal() -> None:
    scan = scan_protocol(name="knee\x1b[2J\r\n\u202efake", sequence="\x07" * 9, anatomy="x" * 5000)
    told = explain(scan, files(default={}, a={"anatomy": "x*"}, b={"sequence": "\x07\x1b"}), Request()).lines()
    assert all(line.isprintable() for line in told)
    assert max(map(len, told)) < 200
    assert "  protocol          knee\ufffd[2J\ufffd\ufffd\ufffdfake" in told


# Laws

names = st.sampled_from(["a", "ab", "b"])
globs = st.text(alphabet="ab*?", min_size=1, max_size=3)
spans = st.tuples(st.integers(1, 4), st.integers(0, 2)).map(lambda pair: [pair[0], pair[0] + pair[1]])
matches = st.fixed_dictionaries(
    {}, optional={"protocol": globs, "sequence": globs, "coils": spans, "matrix": st.fixed_dictionaries({"y": spans})}
)
protocols = st.builds(
    scan_protocol,
    name=names | st.none(),
    sequence=names | st.none(),
    coils=st.integers(1, 6),
    matrix=st.tuples(st.integers(1, 6), st.just(8)),
)


@given(st.lists(matches, max_size=5), protocols)
@settings(deadline=None)
def test_an_explanation_agrees_with_the_look_up(fields: list[dict[str, Any]], scan: Protocol) -> None:
    folder = files(**{f"e{number}": match for number, match in enumerate(fields)})
    told = explain(scan, folder, Request())
    try:
        taken = folder.look_up(scan)
    except NoHyperparameters:
        assert told.chosen is told.resolved is None
        assert told.runners_up == ()
    else:
        assert told.chosen is not None
        assert told.chosen.entry is taken
        assert told.resolved == taken.resolve(Request())
    # Without the one that was taken, the next is.
    if told.runners_up:
        rest = HyperparameterFiles(entries=tuple(one for one in folder.entries if one is not taken))
        assert rest.look_up(scan) is told.runners_up[0].entry


@given(st.lists(matches, max_size=5), protocols)
@settings(deadline=None)
def test_every_entry_is_accounted_for(fields: list[dict[str, Any]], scan: Protocol) -> None:
    folder = files(**{f"e{number}": match for number, match in enumerate(fields)})
    told = explain(scan, folder, Request())
    taken = [told.chosen] if told.chosen else []
    places = [*taken, *told.runners_up, *told.refused]
    assert sorted(one.entry.name for one in places) == [one.name for one in folder.entries]
    assert all(one.entry.match.rank(scan) is not None for one in (*taken, *told.runners_up))
    for one in told.refused:
        assert one.entry.match.rank(scan) is None
        assert one.misfit is not None
        assert any(line.startswith(f"  {one.entry.name}  {one.misfit.field}: ") for line in told.lines())


@pytest.mark.parametrize("preset", ["fast", "standard", "quality"])
def test_every_value_is_told_with_its_source(preset: Any) -> None:
    told = explain(scan_protocol(), HyperparameterFiles.load(), Request(preset=preset, overrides={"seed": 7}))
    assert told.resolved is not None
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in told.lines()[-len(told.resolved.values) :]}
    assert rows.keys() == told.resolved.values.keys()
    assert {name: value for name, (value, _) in rows.items()} == {k: str(v) for k, v in told.resolved.values.items()}
    assert rows["iterations"][1] == f"preset {preset}"
    assert rows["seed"] == ["7", "asked for"]
    assert rows["learning_rate"][1] == "the file"
    assert rows["levels"][1] == "default of the method"
