"""Files written by the program: read back as they were meant, or not written at all; whom their `match` is for."""

from __future__ import annotations

import dataclasses
import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from inrecon.errors import InvalidProtocolFile
from inrecon.frame import PRESETS, Live, Protocol, Request
from inrecon.hyperparams import Entry, HyperparameterFiles, check, match_for, write_entry
from inrecon.hyperparams.entry import read
from inrecon.hyperparams.match import TRAJECTORIES, Match
from inrecon.hyperparams.schema import FileProblems
from inrecon.methods import BilevelINR, ResidualTV, methods, tunable_fields
from inrecon.testing import scan_protocol

GIVEN: dict[str, Any] = {
    "match": {"sequence": "TSE", "matrix": {"y": [240, 272], "x": [240, 272]}, "field_strength_T": [2.7, 3.3]},
    "method": "bilevel_inr",
    "values": {"learning_rate": 9.3e-3, "weight_decay_mlp": 1e-7, "weight_offset": 0.8, "weight_form": "squares"},
    "presets": {"quality": {"iterations": 1000, "members": 3}, "fast": {"iterations": 200}},
    "provenance": {"data": "one knee", "from": "tuned", "source": "held-out samples", "date": "2026-03-02"},
}
TEXT = """\
# Knee, turbo spin echo, 3 T.
version: 1
match:
  sequence: TSE
  field_strength_T: [2.7, 3.3]
  matrix: {y: [240, 272], x: [240, 272]}
method: bilevel_inr
normalisation: kspace_max
values:
  learning_rate: 9.3e-3
  weight_decay_mlp: 1.0e-7
  weight_offset: 0.8
  weight_form: squares
presets:
  fast: {iterations: 200}
  quality: {iterations: 1000, members: 3}
provenance:
  from: tuned
  source: held-out samples
  data: one knee
  date: '2026-03-02'
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# --- what is written


def test_a_file_looks_like_those_that_come_with_inrecon(tmp_path: Path) -> None:
    write_entry(tmp_path / "knee.yaml", **GIVEN, comment="Knee, turbo spin echo, 3 T.")
    assert (tmp_path / "knee.yaml").read_text(encoding="utf-8") == TEXT
    assert list(contents(tmp_path)) == ["knee.yaml"]


def test_the_entry_given_is_the_one_that_a_server_loads(tmp_path: Path) -> None:
    written = write_entry(tmp_path / "knee.yaml", **GIVEN)
    assert HyperparameterFiles.load(tmp_path).entries == (written,)
    assert written.resolve(Request(preset="quality")).values["members"] == 3


def test_the_shipped_files_can_be_written_anew(tmp_path: Path) -> None:
    for entry in HyperparameterFiles.load().entries:
        document = yaml.safe_load(Path(entry.file).read_text(encoding="utf-8"))
        written = write_entry(
            tmp_path / Path(entry.file).name,
            match=document.get("match", {}),
            method=entry.method,
            values=entry.values,
            presets=entry.presets,
            provenance=entry.provenance,
            live=entry.live and entry.live.model_dump(),
        )
        assert dataclasses.replace(written, file=entry.file, sha256=entry.sha256) == entry
    assert check(tmp_path) == []


def kept(kind: Any, metadata: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a field of this type and metadata takes."""
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    span = metadata.get("tunable")
    low, high = (span.low, span.high) if span else metadata["bounds"]
    return st.integers(int(low), int(high)) if kind is int else st.floats(low, high)


HINTS = get_type_hints(BilevelINR)
values = st.fixed_dictionaries(
    {},
    optional={
        field.name: kept(HINTS[field.name], field.metadata)
        for field in dataclasses.fields(BilevelINR)
        if field.metadata or get_origin(HINTS[field.name]) is Literal
    },
)
presets = st.dictionaries(st.sampled_from(PRESETS), values)
facts = st.text(max_size=300) | st.integers() | st.floats(allow_nan=False) | st.booleans()
provenances = st.fixed_dictionaries(
    {"from": st.sampled_from(["tuned", "by hand"]), "source": st.text(min_size=1, max_size=300)},
    optional={"data": facts, "date": st.dates().map(str), "y": facts, "0": facts, "1e-3": facts, "a: b # c": facts},
)
globs = st.text(min_size=1, max_size=200)
spans = st.tuples(st.floats(0, 1e300) | st.integers(0, 999), st.floats(0, allow_infinity=True)).map(sorted)
spans = spans.filter(lambda span: span[0] < float("inf"))
matches = st.fixed_dictionaries(
    {"sequence": globs | st.lists(globs, min_size=1, max_size=9)},
    optional={
        "protocol": globs,
        "trajectory": st.sampled_from(TRAJECTORIES),
        "acceleration": spans,
        "matrix": st.fixed_dictionaries({"y": spans}, optional={"x": spans}),
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@given(matches, values, presets, provenances, st.text(max_size=200))
@settings(deadline=None, max_examples=50)
def test_what_is_written_is_read_back(
    folder: Path,
    match: dict[str, Any],
    values: dict[str, Any],
    presets: dict[str, Any],
    provenance: dict[str, Any],
    comment: str,
) -> None:
    path = folder / "law.yaml"
    written = write_entry(
        path,
        match=match,
        method="bilevel_inr",
        values=values,
        presets=presets,
        provenance=provenance,
        comment=comment,
    )
    entry = read(path)
    assert entry == written
    assert entry.match == Match.model_validate(match)
    assert (entry.values, entry.presets, entry.provenance) == (values, presets, provenance)


@given(st.floats(allow_nan=False))
@settings(deadline=None, max_examples=50)
def test_any_yaml_reads_a_number_as_that_number(folder: Path, number: float) -> None:
    path = folder / "law.yaml"
    write_entry(path, **GIVEN | {"provenance": {**GIVEN["provenance"], "number": number}})
    read_back = yaml.safe_load(path.read_bytes())["provenance"]["number"]
    assert isinstance(read_back, float)
    assert read_back == number
    assert len(path.read_text().rpartition("number: ")[2].strip()) <= max(len(repr(number)) + 2, len("-.inf"))


def test_numbers_take_no_more_room_than_they_need(tmp_path: Path) -> None:
    numbers = {"a": 1e-05, "b": 0.00026, "c": 0.001, "d": 16.0, "e": 1e6, "f": 1e22, "g": 0.0, "h": -1.25e-9, "i": 5}
    write_entry(tmp_path / "knee.yaml", **GIVEN | {"provenance": {**GIVEN["provenance"], **numbers}})
    lines = (tmp_path / "knee.yaml").read_text(encoding="utf-8").splitlines()[-len(numbers) :]
    texts = ["1.0e-5", "2.6e-4", "0.001", "16.0", "1.0e+6", "1.0e+22", "0.0", "-1.25e-9", "5"]
    assert [line.split(": ")[1] for line in lines] == texts


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    entry = write_entry(tmp_path / "knee.yaml", **GIVEN | {"values": {"learning_rate": np.float64(1e-3)}})
    assert entry.values == {"learning_rate": 1e-3}


def test_long_texts_are_broken_at_spaces(tmp_path: Path) -> None:
    source = " ".join(f"word{number}" for number in range(60))
    entry = write_entry(tmp_path / "knee.yaml", **GIVEN | {"provenance": {"from": "tuned", "source": source}})
    assert entry.provenance["source"] == source
    assert max(map(len, (tmp_path / "knee.yaml").read_text(encoding="utf-8").splitlines())) <= 120


@pytest.mark.parametrize("comment", ["two\nlines: here", "a\x1b[31mb\x00", "\u2028x: 1", "\r\nversion: 2"])
def test_a_comment_stays_in_its_line(tmp_path: Path, comment: str) -> None:
    write_entry(tmp_path / "knee.yaml", **GIVEN, comment=comment)
    first, second, *_ = (tmp_path / "knee.yaml").read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ")
    assert first.isprintable()
    assert second == "version: 1"


def test_the_default_is_written_without_a_match(tmp_path: Path) -> None:
    assert write_entry(tmp_path / "default.yaml", **GIVEN | {"match": {}}).match == Match()


def test_values_for_streams_are_written(tmp_path: Path) -> None:
    section = {"values": {"tv_weight": 0.3, "displacement": 4}, "method": "residual_tv"}
    written = write_entry(tmp_path / "knee.yaml", **GIVEN, live=section)
    assert TEXT.replace(
        "provenance:\n",
        "live:\n  method: residual_tv\n  values: {tv_weight: 0.3, displacement: 4}\nprovenance:\n",
    ).endswith((tmp_path / "knee.yaml").read_text(encoding="utf-8"))
    assert read(tmp_path / "knee.yaml") == written
    assert written.resolve(Request(live=Live())).method == ResidualTV(tv_weight=0.3, displacement=4)


# --- what is not written

ELSEWHERE = {"match": {"protocol": "elsewhere"}}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"values": {"learning_rat": 1e-3}}, "knee.yaml", "values.learning_rat: unknown field of method 'bilevel_inr'"),
    ({"values": {"learning_rate": 1.0}}, "knee.yaml", "bilevel_inr.learning_rate must lie in 1e-05 .. 0.05, not 1"),
    ({"values": {"learning_rate": [1]}}, "knee.yaml", "values.learning_rate: must be one number, text or true/false"),
    ({"values": {"learning_rate": 3j}}, "knee.yaml", "cannot hold 3j: values are numbers, texts and true/false"),
    ({"presets": {"fats": {}}}, "knee.yaml", "presets.fats: must be 'fast', 'standard' or 'quality'"),
    ({"method": "bilevel"}, "knee.yaml", "unknown method 'bilevel'"),
    ({"live": {"values": {"tv_weight": 9}}}, "knee.yaml", "residual_inr.tv_weight must lie in 0.01 .. 5, not 9"),
    ({"match": {}}, "knee.yaml", "match: needs at least one field"),
    ({"match": {"sequnce": "TSE"}}, "knee.yaml", "match.sequnce: unknown field; did you mean 'sequence'?"),
    ({}, "default.yaml", "match: must not stand in the default file"),
    ({"provenance": {"from": "tuned"}}, "knee.yaml", "provenance.source: is missing"),
    ({"provenance": {"from": "tuned", "source": "x" * 70_000}}, "knee.yaml", "is larger than 65536 bytes"),
    (ELSEWHERE, "knee.yml", "has the same name as {folder}/knee.yaml: choose another one"),
    (ELSEWHERE, "sub/knee.yaml", "has the same name as {folder}/knee.yaml: choose another one"),
    (ELSEWHERE, "sub/broken.yaml", "has the same name as {folder}/broken.yaml: choose another one"),
    (
        {"match": {"coils": [8, 64], "acceleration": [5, 6]}},
        "new.yaml",
        "match: can match the same scan as {folder}/hip.yaml, equally well: constrain one of them further",
    ),
    ({}, "knee.txt", "would not be read: names of hyperparameter files end in .yaml"),
    ({}, ".knee.yaml", "would not be read"),
]


@pytest.fixture
def inhabited(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    write_entry(tmp_path / "knee.yaml", **GIVEN)
    write_entry(tmp_path / "hip.yaml", **GIVEN | {"match": {"coils": [1, 16], "anatomy": "hip"}})
    (tmp_path / "broken.yaml").write_text("words", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(("changes", "name", "complaint"), REFUSED)
def test_what_a_server_would_refuse_changes_nothing(
    inhabited: Path, changes: dict[str, Any], name: str, complaint: str
) -> None:
    before = contents(inhabited)
    with pytest.raises(FileProblems) as raised:
        write_entry(inhabited / name, **GIVEN | changes, folder=inhabited)
    text = str(raised.value)
    assert text.startswith(str(inhabited / name))
    assert complaint.format(folder=inhabited) in text
    assert "\n" not in text
    assert isinstance(raised.value, InvalidProtocolFile)
    assert contents(inhabited) == before


def test_a_file_may_take_the_place_of_its_own_earlier_version(inhabited: Path) -> None:
    entry = write_entry(inhabited / "sub" / ".." / "knee.yaml", **GIVEN | {"values": {"learning_rate": 1e-3}})
    assert read(inhabited / "knee.yaml").values == entry.values == {"learning_rate": 1e-3}


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow beyond a few bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_leaves_the_earlier_version(inhabited: Path) -> None:
    before = contents(inhabited)
    path = inhabited / "knee.yaml"
    with pytest.raises(OSError, match="cannot be written: File too large") as raised, full_disk():
        write_entry(path, **GIVEN | {"values": {"learning_rate": 1e-3}})
    assert raised.value.filename == str(path)
    assert contents(inhabited) == before


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such folder") as raised:
        write_entry(tmp_path / "gone" / "knee.yaml", **GIVEN)
    assert raised.value.filename == str(tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_place_of_the_file_stays(tmp_path: Path) -> None:
    (tmp_path / "knee.yaml").mkdir()
    with pytest.raises(IsADirectoryError, match="cannot be written"):
        write_entry(tmp_path / "knee.yaml", **GIVEN)
    assert [file.name for file in tmp_path.iterdir()] == ["knee.yaml"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match="cannot be written: Permission denied") as raised:
            write_entry(tmp_path / "knee.yaml", **GIVEN)
    finally:
        tmp_path.chmod(0o700)
    assert raised.value.filename == str(tmp_path / "knee.yaml")


def test_permissions_are_those_of_any_new_file_or_of_the_file_replaced(tmp_path: Path) -> None:
    path = tmp_path / "knee.yaml"
    (tmp_path / "plain").touch()
    write_entry(path, **GIVEN)
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    path.chmod(0o604)
    write_entry(path, **GIVEN)
    assert path.stat().st_mode & 0o777 == 0o604


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "knee.yaml").symlink_to(tmp_path / "stored")
    write_entry(tmp_path / "files" / "knee.yaml", **GIVEN)
    assert (tmp_path / "files" / "knee.yaml").is_symlink()
    assert read(tmp_path / "stored").values == GIVEN["values"]


# --- for whom it is

texts = st.none() | st.text(max_size=250) | st.sampled_from(["T2*", "[ax] fl?", "TSE", "ß" * 190])
protocols = st.builds(
    Protocol,
    name=texts,
    sequence=texts,
    anatomy=texts,
    vendor=texts,
    field_strength_T=st.none() | st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    trajectory=st.sampled_from([*TRAJECTORIES, "cones"]),
    matrix=st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
    acceleration=st.floats(1, 1e6),
    coils=st.integers(1, 512),
)


@given(protocols)
@settings(deadline=None)
def test_a_match_is_constrained_and_fits_the_scan_that_it_was_made_for(scan: Protocol) -> None:
    match = Match.model_validate(match_for(scan))
    assert match.rank(scan) is not None
    assert match.constrained >= 3


@given(protocols)
@settings(deadline=None, max_examples=50)
def test_a_match_can_be_written(folder: Path, scan: Protocol) -> None:
    entry = write_entry(folder / "law.yaml", **GIVEN | {"match": match_for(scan)})
    assert entry.match.rank(scan) is not None


def test_a_match_holds_what_the_header_says_and_ranges_around_the_numbers() -> None:
    assert match_for(scan_protocol()) == {
        "sequence": "TSE",
        "anatomy": "KNEE",
        "field_strength_T": [2.6, 3.18],
        "trajectory": "cartesian",
        "matrix": {"y": [231, 281], "x": [288, 352]},
        "acceleration": [3.15, 5.67],
        "coils": [12, 20],
    }
    assert match_for(scan_protocol(acceleration=1.2))["acceleration"] == [1.0, 1.62]


@pytest.mark.parametrize(
    "other",
    [
        {"sequence": "EPI"},
        {"anatomy": "HIP"},
        {"field_strength_T": 1.5},
        {"trajectory": "epi"},
        {"matrix": (256, 256)},
        {"matrix": (320, 320)},
        {"acceleration": 2.0},
        {"coils": 32},
        {"anatomy": None},
    ],
)
def test_a_match_is_not_for_other_scans(other: dict[str, Any]) -> None:
    assert Match.model_validate(match_for(scan_protocol())).rank(scan_protocol(**other)) is None


def test_the_name_serves_where_the_header_does_not_say_what_the_scan_is() -> None:
    assert "protocol" not in match_for(scan_protocol(sequence=None))
    assert match_for(scan_protocol(sequence=None, anatomy=None))["protocol"] == "knee_T2"
    assert set(match_for(scan_protocol(name=None, sequence="", anatomy=None, field_strength_T=None))) == {
        "trajectory",
        "matrix",
        "acceleration",
        "coils",
    }


def entry(number: int, match: Mapping[str, object]) -> Entry:
    return Entry(
        name=f"e{number}",
        file=f"e{number}.yaml",
        sha256="0" * 16,
        match=Match.model_validate(match),
        method="bilevel_inr",
        normalisation="kspace_max",
        values={},
        presets={},
        provenance={},
    )


def test_vendor_and_name_are_added_where_they_are_needed_to_come_first() -> None:
    scan = scan_protocol()
    first = match_for(scan)
    assert match_for(scan, beside=[entry(0, {"sequence": "TSE"})]) == first
    second = match_for(scan, beside=[entry(0, first)])
    assert second == {**first, "vendor": "SIEMENS"}
    third = match_for(scan, beside=[entry(0, first), entry(1, second)])
    assert third == {**second, "protocol": "knee_T2"}


def test_a_scan_of_a_shipped_protocol_gets_the_file_tuned_for_it(tmp_path: Path) -> None:
    scan = scan_protocol(sequence="bSSFP", anatomy="HEAD", matrix=(256, 256))
    shipped = HyperparameterFiles.load().entries
    for one in shipped:
        (tmp_path / Path(one.file).name).write_bytes(Path(one.file).read_bytes())
    write_entry(tmp_path / "ours.yaml", **GIVEN | {"match": match_for(scan, beside=shipped)})
    assert HyperparameterFiles.load(tmp_path).look_up(scan).name == "ours"
    assert check(tmp_path) == []


near = st.builds(
    scan_protocol,
    name=st.sampled_from(["knee_T2", "knee", "T2*", None]),
    vendor=st.sampled_from(["SIEMENS", None]),
    sequence=st.sampled_from(["TSE", "EPI", None]),
    acceleration=st.sampled_from([4.2, 5.0, 9.0]),
)


@given(near, st.lists(st.tuples(near, st.booleans(), st.booleans()), max_size=4))
@settings(deadline=None)
def test_beside_others_a_match_comes_first_or_is_refused_as_a_tie(
    scan: Protocol, others: list[tuple[Protocol, bool, bool]]
) -> None:
    beside = []
    for number, (other, vendor, name) in enumerate(others):
        more = {"vendor": other.vendor} if vendor and other.vendor else {}
        more |= {"protocol": other.name} if name and other.name else {}
        beside.append(entry(number, match_for(other) | more))
    ours = Match.model_validate(match_for(scan, beside=beside))
    rank = ours.rank(scan)
    assert rank is not None
    if scan.name in {"knee_T2", "knee"} and scan.vendor:
        assert all((one.match.rank(scan) or (False, 0)) < rank or one.match.ties(ours) for one in beside)


def test_all_fields_worth_tuning_can_be_written(tmp_path: Path) -> None:
    for name in methods.names():
        ends = {field: span.high for field, span in tunable_fields(methods[name]).items()}
        given_values = GIVEN | {"method": name, "values": ends, "presets": {}}
        assert write_entry(tmp_path / "knee.yaml", **given_values).values == ends
