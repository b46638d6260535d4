"""Hyperparameter files: what is read, what is refused in which words, which file a scan gets, what that becomes."""

from __future__ import annotations

import dataclasses
import pickle
from fnmatch import fnmatchcase
from hashlib import sha256
from itertools import permutations, product
from pathlib import Path
from typing import Any, Literal

import ismrmrd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from inrecon import __version__
from inrecon.errors import InvalidProtocolFile, NoHyperparameters, UnknownName
from inrecon.events import Event, Warned, listening
from inrecon.frame import Frame, Live, Protocol, Reconstruction, Request
from inrecon.hyperparams import Entry, Finding, HyperparameterFiles, check
from inrecon.hyperparams.match import TRAJECTORIES, Match, globs_meet
from inrecon.hyperparams.snapshot import shipped_folder
from inrecon.methods import ResidualINR, ResidualTV
from inrecon.methods.method import InvalidHyperparameter, Method, bounded, methods, tunable
from inrecon.testing import scan_protocol

REPOSITORY = Path(__file__).parents[2]


@methods.register("toy_fit")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyFit(Method):
    step: float = tunable(1e-2, low=1e-5, high=1e-1, log=True)
    scale: float = tunable(1.5, low=1.0, high=2.0)
    weight: Literal["self", "none"] = "self"
    iterations: int = bounded(100, low=1, high=1000)
    first_half: int = 10

    def __post_init__(self) -> None:
        if self.first_half > self.iterations:
            raise InvalidHyperparameter("first_half must not exceed iterations")

    def fit(self, frame: Frame) -> Reconstruction:
        raise NotImplementedError


@methods.register("toy_stream")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyStream(ToyFit):
    delay: float = bounded(1.0, low=0.0, high=10.0)


@methods.register("toy_other")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyOther(Method):
    step: float = tunable(0.5, low=0.0, high=1.0)

    def fit(self, frame: Frame) -> Reconstruction:
        raise NotImplementedError


GOOD: dict[str, Any] = {
    "version": 1,
    "match": {"protocol": "knee"},
    "method": "toy_fit",
    "normalisation": "kspace_max",
    "values": {"step": 1e-3},
    "presets": {"fast": {"iterations": 20}},
    "provenance": {"from": "by hand", "source": "made up"},
}
DEFAULT = {**GOOD, "match": {}}


def write(folder: Path, /, **documents: Any) -> Path:
    for name, document in documents.items():
        text = document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def entries_for(folder: Path, /, **matches: dict[str, Any]) -> HyperparameterFiles:
    write(folder, **{name: {**GOOD, "match": match} for name, match in matches.items()})
    return HyperparameterFiles.load(folder)


def complaint(folder: Path, document: Any, *, name: str = "knee") -> str:
    with pytest.raises(InvalidProtocolFile) as raised:
        HyperparameterFiles.load(write(folder, **{name: document}))
    return str(raised.value)


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with the field at the dotted `path` set to `value`, or removed if that is `...`."""
    document = pickle.loads(pickle.dumps(GOOD))
    *parents, last = path.split(".")
    inner = document
    for parent in parents:
        inner = inner.setdefault(parent, {})
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return document


# --- what is read


def test_an_entry_says_what_its_file_says(tmp_path: Path) -> None:
    write(tmp_path, knee=GOOD)
    (entry,) = HyperparameterFiles.load(tmp_path).entries
    data = (tmp_path / "knee.yaml").read_bytes()
    assert (entry.name, entry.file) == ("knee", str(tmp_path / "knee.yaml"))
    assert sha256(data).hexdigest().startswith(entry.sha256)
    assert len(entry.sha256) >= 12
    assert (entry.method, entry.values, entry.presets) == ("toy_fit", {"step": 1e-3}, {"fast": {"iterations": 20}})
    assert entry.provenance == {"from": "by hand", "source": "made up"}


def test_subfolders_are_read_and_hidden_and_other_files_are_not(tmp_path: Path) -> None:
    (tmp_path / "protocols").mkdir()
    write(tmp_path / "protocols", knee=GOOD)
    write(tmp_path, default=DEFAULT)
    (tmp_path / ".#knee.yaml").write_text("an editor's lock", encoding="utf-8")
    (tmp_path / "README.md").write_text("words", encoding="utf-8")
    (write(tmp_path, hip=GOOD) / "hip.yaml").rename(tmp_path / "hip.YML")
    assert {entry.name for entry in HyperparameterFiles.load(tmp_path).entries} == {"default", "hip", "knee"}


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", "1E-3", "+1e-03", "'1e-3'"])
def test_numbers_may_be_written_in_every_usual_way(tmp_path: Path, text: str) -> None:
    document = yaml.safe_dump(GOOD).replace("step: 0.001", f"step: {text}")
    assert f"step: {text}" in document
    write(tmp_path, knee=document)
    (value,) = HyperparameterFiles.load(tmp_path).entries[0].values.values()
    assert value == 1e-3
    assert isinstance(value, float)


def test_provenance_keeps_further_facts(tmp_path: Path) -> None:
    text = yaml.safe_dump(changed("provenance.volunteers", 3), sort_keys=False) + "  date: 2026-03-02\n"
    write(tmp_path, knee=text)
    provenance = HyperparameterFiles.load(tmp_path).entries[0].provenance
    assert (provenance["volunteers"], provenance["date"]) == (3, "2026-03-02")


def test_values_are_judged_together_with_those_they_go_with(tmp_path: Path) -> None:
    document = changed("values", {"first_half": 200, "iterations": 500})
    write(tmp_path, knee=document | {"presets": {"fast": {"first_half": 400}}})
    (entry,) = HyperparameterFiles.load(tmp_path).entries
    assert entry.resolve(Request(preset="fast")).method == ToyFit(first_half=400, iterations=500)


def test_a_snapshot_crosses_to_another_process_and_outlives_its_files(tmp_path: Path) -> None:
    files = HyperparameterFiles.load(write(tmp_path, default=DEFAULT, knee=GOOD))
    (tmp_path / "knee.yaml").unlink()
    arrived = pickle.loads(pickle.dumps(files))
    assert arrived == files
    assert arrived.look_up(scan_protocol(name="knee")).name == "knee"
    with pytest.raises(dataclasses.FrozenInstanceError):
        files.entries[0].values = {}  # type: ignore[misc]


# --- what is refused, and in which words

EMPTY = "is empty: give a value or delete the line"
MISTAKES = [
    ("version", ..., "version: is missing"),
    ("version", 2, "version: must be 1, not 2"),
    ("method", ..., "method: is missing"),
    ("method", "toy_fti", "method: unknown method 'toy_fti': did you mean 'toy_fit'?"),
    ("method", 3, "method: must be a text (numbers in quotes), not 3"),
    ("method", None, f"method: {EMPTY}"),
    ("normalisation", ..., "normalisation: is missing"),
    ("normalisation", "kspace_mx", "normalisation: must be 'kspace_max', not 'kspace_mx'; did you mean 'kspace_max'?"),
    ("mach", {}, "mach: unknown field; did you mean 'match'? the fields are live, match,"),
    ("match.sequnce", "TSE", "match.sequnce: unknown field; did you mean 'sequence'? the fields are acceleration,"),
    ("match", {}, "match: needs at least one field: only the file default.yaml may be for every scan"),
    ("match", "knee", "match: must hold indented lines of `field: value`, not 'knee'"),
    ("match.protocol", 7, "match.protocol: must be a text or a list of texts (numbers in quotes), not 7"),
    ("match.protocol", [], "match.protocol: must be a text or a list of texts (numbers in quotes), not []"),
    ("match.protocol", "a" * 300, "match.protocol: must be shorter than 200 characters"),
    ("match.anatomy", None, f"match.anatomy: {EMPTY}"),
    ("match.field_strength_T", 3, "match.field_strength_T: must be a range of two numbers, [low, high], not 3"),
    ("match.field_strength_T", [3], "match.field_strength_T: must be a range of two numbers, [low, high], not [3]"),
    ("match.coils", ["8", 16], "match.coils: must be a range of two numbers, [low, high], not ['8', 16]"),
    ("match.coils", [True, 16], "match.coils: must be a range of two numbers, [low, high], not [True, 16]"),
    ("match.coils", [16, 8], "match.coils: must be a range [low, high] with 0 <= low <= high, not [16, 8]"),
    ("match.acceleration", [-1, 8], "match.acceleration: must be a range [low, high] with 0 <= low <= high"),
    ("match.acceleration", [2, float("nan")], "match.acceleration: must be a range [low, high] with 0 <= low <= high"),
    ("match.acceleration", None, f"match.acceleration: {EMPTY}"),
    ("match.matrix", [256, 256], "match.matrix: must hold indented lines of `field: value`, not [256, 256]"),
    ("match.matrix", {}, "match.matrix: needs a range for y, for x, or for both"),
    ("match.matrix", {"z": [1, 1]}, "match.matrix.z: unknown field; the fields are x, y"),
    ("match.matrix", {"y": 256}, "match.matrix.y: must be a range of two numbers, [low, high], not 256"),
    ("match.trajectory", "cartesain", "match.trajectory: unknown trajectory 'cartesain': did you mean 'cartesian'?"),
    ("values.stepp", 1e-3, "values.stepp: unknown field of method 'toy_fit'; did you mean 'step'? the fields are"),
    ("values.step", 1.0, "values.step: toy_fit.step must lie in 1e-05 .. 0.1, not 1"),
    ("values.step", float("nan"), "values.step: toy_fit.step must lie in 1e-05 .. 0.1, not nan"),
    ("values.step", "large", "values.step: toy_fit.step must be float, not 'large'"),
    ("values.step", [1e-3], "values.step: must be one number, text or true/false, not [0.001]"),
    ("values.step", None, f"values.step: {EMPTY}"),
    ("values.weight", "selv", "values.weight: toy_fit.weight must be one of 'self', 'none', not 'selv'"),
    ("values.iterations", 20.5, "values.iterations: toy_fit.iterations must be int, not 20.5"),
    ("values.iterations", True, "values.iterations: toy_fit.iterations must be int, not True"),
    ("values", {"iterations": 20, "first_half": 30}, "values: first_half must not exceed iterations"),
    ("values", None, f"values: {EMPTY}"),
    ("values", [1], "values: must hold indented lines of `field: value`, not [1]"),
    ("presets.fats", {}, "presets.fats: must be 'fast', 'standard' or 'quality', not 'fats'; did you mean 'fast'?"),
    ("presets.quality", {"iteration": 9}, "presets.quality.iteration: unknown field of method 'toy_fit'; did you mean"),
    ("presets.quality", {"iterations": 9999}, "presets.quality.iterations: toy_fit.iterations must lie in 1 .. 1000"),
    ("presets.fast", {"iterations": 15, "first_half": 18}, "presets.fast: first_half must not exceed iterations"),
    ("presets.fast", 20, "presets.fast: must hold indented lines of `field: value`, not 20"),
    ("live.methd", "toy_fit", "live.methd: unknown field; did you mean 'method'? the fields are method, values"),
    ("live.method", "residual_inrr", "live.method: unknown method 'residual_inrr': did you mean 'residual_inr'?"),
    ("live.method", None, f"live.method: {EMPTY}"),
    ("live.values.tv_wieght", 1, "live.values.tv_wieght: unknown field of method 'residual_inr'; did you mean 'tv_w"),
    ("live.values.tv_weight", 9, "live.values.tv_weight: residual_inr.tv_weight must lie in 0.01 .. 5, not 9"),
    ("live.values.tv_weight", [1], "live.values.tv_weight: must be one number, text or true/false, not [1]"),
    (
        "live",
        {"method": "toy_fit", "values": {"iterations": 20, "first_half": 30}},
        "live.values: first_half must not exceed",
    ),
    ("live", None, f"live: {EMPTY}"),
    ("live", 0.25, "live: must hold indented lines of `field: value`, not 0.25"),
    ("provenance", ..., "provenance: is missing"),
    ("provenance.from", "guessed", "provenance.from: must be 'paper table II', 'method notes', 'tuned' or 'by hand',"),
    ("provenance.source", ..., "provenance.source: is missing"),
    ("provenance.data", ["a", "b"], "provenance.data: must be one number, text or true/false, not ['a', 'b']"),
]


@pytest.mark.parametrize(("path", "value", "message"), MISTAKES)
def test_a_mistake_is_told_with_file_field_and_right_names(
    tmp_path: Path, path: str, value: object, message: str
) -> None:
    text = complaint(tmp_path, changed(path, value))
    assert text.startswith(f"{tmp_path / 'knee.yaml'}: {message}")
    assert "\n" not in text


BAD_YAML = [
    ("", "must hold lines of `field: value`, not nothing"),
    ("just words", "must hold lines of `field: value`, not 'just words'"),
    ("- 1\n- 2\n", "must hold lines of `field: value`, not [1, 2]"),
    ("version: 1\n\tmethod: toy_fit\n", "is not valid YAML: line 2, column 1: found character '\\t'"),
    ("version: 1\nmatch: {protocol: knee\n", "is not valid YAML: line 3, column 1: "),
    ("match: {protocol: *knee}\n", "is not valid YAML: line 1, column 19: a word that begins with * needs quotes"),
    ("version: 1\nversion: 1\n", "line 2, column 1: field 'version' stands twice, first in line 1: keep one of them"),
    ("values:\n  step: 1\n  step: 2\n", "line 3, column 3: field 'step' stands twice, first in line 2"),
    ("values: {step: 1, step: 2}\n", "line 1, column 19: field 'step' stands twice, first in line 1"),
    ("values: {? [1] : 2}\n", "is not valid YAML: line 1, column 12: found unhashable key"),
    ("version: 1\n---\nversion: 1\n", "is not valid YAML: line 2, column 1: but found another document"),
    ("date: 2026-13-45\n", "is not valid YAML: month must be in 1..12"),
    ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor for the tag"),
    ("[" * 500, "is not a hyperparameter file: nested too deeply"),
    ("a: '" + "x" * 70_000 + "'", "is larger than 65536 bytes, the most a hyperparameter file may have"),
]


@pytest.mark.parametrize(("text", "message"), BAD_YAML)
def test_text_that_is_not_plain_yaml_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    told = complaint(tmp_path, text)
    assert told.startswith(str(tmp_path / "knee.yaml"))
    assert message in told


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "knee.yaml").write_bytes(b"version: \xff\xfe")
    with pytest.raises(InvalidProtocolFile, match=r"knee\.yaml: is not valid YAML"):
        HyperparameterFiles.load(tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "knee.yaml").symlink_to(tmp_path / "gone")
    with pytest.raises(InvalidProtocolFile, match=r"knee\.yaml: cannot be read: No such file"):
        HyperparameterFiles.load(tmp_path)


def test_the_default_is_for_every_scan(tmp_path: Path) -> None:
    assert "match: must not stand in the default file" in complaint(tmp_path, GOOD, name="default")


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "protocols").mkdir()
    write(tmp_path / "protocols", knee=GOOD)
    assert complaint(tmp_path, GOOD).endswith("has the same name as " + str(tmp_path / "knee.yaml: rename one of them"))


def test_loading_tells_all_mistakes_of_all_files(tmp_path: Path) -> None:
    write(tmp_path, ankle=changed("values.stepp", 1) | {"extra": 1})
    text = complaint(tmp_path, changed("values", {"stepp": 1, "scale": 9}))
    assert "ankle.yaml: extra" in text
    assert "knee.yaml: values.stepp" in text
    assert "knee.yaml: values.scale" in text


def test_mistakes_in_the_section_for_streams_are_told_with_all_others(tmp_path: Path) -> None:
    document = changed("values.stepp", 1) | {"method": "toy_fti", "live": {"values": {"network_tv": 9, "levels": 0}}}
    text = complaint(tmp_path, document)
    assert [line.split(": ")[1] for line in text.splitlines()] == [
        "method",
        "live.values.network_tv",
        "live.values.levels",
    ]


def test_the_error_can_cross_to_another_process(tmp_path: Path) -> None:
    with pytest.raises(InvalidProtocolFile) as raised:
        HyperparameterFiles.load(write(tmp_path, knee="words"))
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


# --- which file a scan gets

MATCHING = [
    {"protocol": "knee_t2"},
    {"protocol": "Knee*"},
    {"protocol": ["hip*", "*_T?"]},
    {"sequence": "tse"},
    {"anatomy": ["HIP", "knee"]},
    {"vendor": "siemens*"},
    {"field_strength_T": [2.5, 3.5]},
    {"trajectory": "Cartesian"},
    {"trajectory": ["radial", "cartesian"]},
    {"matrix": {"y": [256, 256]}},
    {"matrix": {"y": [200, 300], "x": [300, 340]}},
    {"acceleration": [4.2, 4.2]},
    {"acceleration": [4, float("inf")]},
    {"coils": [1, 16]},
]
NOT_MATCHING = [
    {"protocol": "knee"},
    {"protocol": "knee_t2?"},
    {"protocol": "knee_[tT]2"},
    {"sequence": "SSFP"},
    {"field_strength_T": [0.5, 1.5]},
    {"trajectory": "radial"},
    {"matrix": {"y": [256, 256], "x": [256, 256]}},
    {"matrix": {"x": [256, 256]}},
    {"acceleration": [4.3, 8]},
    {"coils": [17, 32]},
    {"sequence": "tse", "anatomy": "hip"},
]


@pytest.mark.parametrize(
    ("match", "expected"), [(m, "other") for m in MATCHING] + [(m, "default") for m in NOT_MATCHING]
)
def test_matching(tmp_path: Path, match: dict[str, Any], expected: str) -> None:
    assert entries_for(tmp_path, default={}, other=match).look_up(scan_protocol()).name == expected


@pytest.mark.parametrize(
    ("field", "match"),
    [
        ("name", {"protocol": "*"}),
        ("sequence", {"sequence": "*"}),
        ("anatomy", {"anatomy": "*"}),
        ("vendor", {"vendor": "*"}),
        ("field_strength_T", {"field_strength_T": [0, 20]}),
    ],
)
def test_what_the_header_does_not_say_matches_no_constraint(tmp_path: Path, field: str, match: dict[str, Any]) -> None:
    files = entries_for(tmp_path, default={}, other=match)
    assert files.look_up(scan_protocol()).name == "other"
    assert files.look_up(scan_protocol(**{field: None})).name == "default"


def test_brackets_in_a_protocol_name_stand_for_themselves(tmp_path: Path) -> None:
    files = entries_for(tmp_path, default={}, other={"protocol": "t2 [sag] *"})
    assert files.look_up(scan_protocol(name="T2 [sag] left")).name == "other"
    assert files.look_up(scan_protocol(name="T2 s left")).name == "default"


def test_the_more_specific_file_wins(tmp_path: Path) -> None:
    crowd = {"protocol": "knee*", "sequence": "tse", "coils": [1, 64], "vendor": "*", "field_strength_T": [1, 9]}
    files = entries_for(
        tmp_path, default={}, a_one={"sequence": "tse"}, b_crowd=crowd, c_exact={"protocol": ["hip*", "knee_t2"]}
    )
    assert files.look_up(scan_protocol()).name == "c_exact"
    assert files.look_up(scan_protocol(name="knee_t1")).name == "b_crowd"
    assert files.look_up(scan_protocol(name="hip")).name in {"a_one", "c_exact"}
    assert files.look_up(scan_protocol(sequence="EPI", name="x")).name == "default"


def test_of_two_exact_names_the_one_with_more_constraints_wins(tmp_path: Path) -> None:
    files = entries_for(tmp_path, a={"protocol": "knee_t2"}, b={"protocol": "knee_t2", "coils": [16, 16]})
    assert files.look_up(scan_protocol()).name == "b"
    assert files.look_up(scan_protocol(coils=8)).name == "a"


def test_between_equals_the_first_by_name_is_taken_and_a_warning_given(tmp_path: Path) -> None:
    files = entries_for(tmp_path, default={}, beta={"sequence": "tse"}, alpha={"coils": [1, 64]})
    heard: list[Event] = []
    with listening(heard.append):
        assert files.look_up(scan_protocol()).name == "alpha"
        assert files.look_up(scan_protocol(sequence="EPI")).name == "alpha"
    assert HyperparameterFiles(entries=files.entries[::-1]).look_up(scan_protocol()).name == "alpha"
    (warning,) = heard
    assert isinstance(warning, Warned)
    assert "alpha, beta match equally well; alpha was taken" in warning.text


def test_a_scan_that_nothing_matches_is_told_what_it_is(tmp_path: Path) -> None:
    files = entries_for(tmp_path, hip={"protocol": "hip"})
    with pytest.raises(
        NoHyperparameters, match=r"TSE, KNEE, 2\.89 T, cartesian, matrix 256 x 320, acceleration 4\.2, 16"
    ):
        files.look_up(scan_protocol())
    with pytest.raises(NoHyperparameters, match="unknown sequence, KNEE, unknown field strength"):
        files.look_up(scan_protocol(sequence=None, field_strength_T=None))


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_files_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoHyperparameters, match="no hyperparameter files"):
        HyperparameterFiles.load(tmp_path / name)


# Laws of matching

names = st.sampled_from(["a", "ab", "abb", "b", "ba"])
globs = st.text(alphabet="ab*?", min_size=1, max_size=4)
spans = st.tuples(st.integers(1, 4), st.integers(0, 2)).map(lambda pair: [pair[0], pair[0] + pair[1]])
match_fields = st.fixed_dictionaries(
    {},
    optional={
        "protocol": st.lists(globs, min_size=1, max_size=2),
        "sequence": globs,
        "coils": spans,
        "acceleration": spans,
    },
)
protocols = st.builds(
    scan_protocol, name=names | st.none(), sequence=names, coils=st.integers(1, 6), acceleration=st.floats(1, 6)
)


def entry(name: str, match: Match) -> Entry:
    return Entry(
        name=name,
        file=f"{name}.yaml",
        sha256="0" * 16,
        match=match,
        method="toy_fit",
        normalisation="kspace_max",
        values={},
        presets={},
        provenance={},
    )


@given(st.lists(match_fields, min_size=2, max_size=4), protocols)
def test_look_up_does_not_depend_on_the_order_of_files(fields: list[dict[str, Any]], scan: Protocol) -> None:
    entries = [entry(f"e{number}", Match.model_validate(match)) for number, match in enumerate(fields)]
    entries.append(entry("default", Match()))
    found = {HyperparameterFiles(entries=order).look_up(scan).name for order in permutations(entries)}
    assert len(found) == 1


@given(match_fields, match_fields, protocols)
def test_every_tie_at_look_up_is_an_overlap_found_beforehand(
    one: dict[str, Any], other: dict[str, Any], scan: Protocol
) -> None:
    a, b = Match.model_validate(one), Match.model_validate(other)
    assert a.ties(b) == b.ties(a)
    if a.rank(scan) is not None and a.rank(scan) == b.rank(scan):
        assert a.ties(b)


WORDS = ["".join(letters) for length in range(9) for letters in product("ab", repeat=length)]


@given(globs, globs)
def test_globs_meet_exactly_when_some_text_matches_both(one: str, other: str) -> None:
    # The shortest common text of two globs is no longer than both together.
    assert globs_meet(one, other) == any(fnmatchcase(word, one) and fnmatchcase(word, other) for word in WORDS)


def test_trajectories_are_those_of_ismrmrd() -> None:
    assert set(TRAJECTORIES) == {kind.value for kind in ismrmrd.xsd.trajectoryType}


# --- what a request makes of an entry


@pytest.fixture
def toy(tmp_path: Path) -> Entry:
    presets = {"fast": {"iterations": 20}, "quality": {"iterations": 900, "step": 5e-3}}
    return HyperparameterFiles.load(write(tmp_path, default=DEFAULT | {"presets": presets})).look_up(scan_protocol())


def test_later_layers_win_and_each_field_says_whence(toy: Entry) -> None:
    resolved = toy.resolve(Request(preset="quality", overrides={"scale": "1.25", "weight": "none"}))
    assert resolved.method == ToyFit(step=5e-3, scale=1.25, weight="none", iterations=900)
    assert (resolved.name, resolved.entry, resolved.sha256) == ("toy_fit", "default", toy.sha256)
    assert resolved.values == dataclasses.asdict(resolved.method)
    assert resolved.sources == {
        "step": "preset quality",
        "scale": "request",
        "weight": "request",
        "iterations": "preset quality",
        "first_half": "default",
    }
    assert toy.resolve(Request(preset="quality", overrides={"step": 1e-4})).sources["step"] == "request"


def test_a_preset_that_the_file_does_not_have_leaves_its_values(toy: Entry) -> None:
    resolved = toy.resolve(Request(preset="standard"))
    assert resolved.method == ToyFit(step=1e-3)
    assert resolved.sources["step"] == "entry"
    assert resolved.sources["iterations"] == "default"


def test_asking_for_the_method_of_the_entry_keeps_its_values(toy: Entry) -> None:
    assert toy.resolve(Request(method="toy_fit", preset="fast")) == toy.resolve(Request(preset="fast"))


def test_values_of_one_method_never_reach_another(toy: Entry) -> None:
    resolved = toy.resolve(Request(method="toy_other", preset="quality"))
    assert resolved.method == ToyOther()
    assert (resolved.name, resolved.sources) == ("toy_other", {"step": "default"})
    overridden = toy.resolve(Request(method="toy_other", overrides={"step": 0.25}))
    assert (overridden.values, overridden.sources) == ({"step": 0.25}, {"step": "request"})


@pytest.mark.parametrize("overrides", [{"stepp": 1}, {"step": 1.0}, {"weight": "selv"}, {"first_half": 500}])
def test_wrong_overrides_are_refused(toy: Entry, overrides: dict[str, object]) -> None:
    with pytest.raises(InvalidHyperparameter, match=next(iter(overrides))):
        toy.resolve(Request(overrides=overrides))


def test_an_unknown_method_is_refused(toy: Entry) -> None:
    with pytest.raises(UnknownName, match="did you mean 'toy_fit'"):
        toy.resolve(Request(method="toy_fitt"))


# --- what a frame of an interventional stream makes of it


def streaming(folder: Path, **changes: Any) -> Entry:
    return HyperparameterFiles.load(write(folder, default=DEFAULT | changes)).look_up(scan_protocol())


def live(**changes: Any) -> Request:
    return Request(live=Live(), **changes)


SECTION = {"method": "toy_stream", "values": {"delay": "2", "step": 1e-4}}


def test_the_section_for_streams_takes_the_place_of_values_and_presets(tmp_path: Path) -> None:
    entry = streaming(tmp_path, live=SECTION)
    resolved = entry.resolve(live(preset="fast", overrides={"scale": 1.25}))
    assert resolved.method == ToyStream(delay=2.0, step=1e-4, scale=1.25)
    assert (resolved.name, resolved.entry, resolved.sha256) == ("toy_stream", "default", entry.sha256)
    assert resolved.sources == {
        "delay": "entry",
        "step": "entry",
        "scale": "request",
        "weight": "default",
        "iterations": "default",
        "first_half": "default",
    }


def test_scans_take_no_notice_of_it(tmp_path: Path) -> None:
    resolved = streaming(tmp_path, live=SECTION).resolve(Request(preset="fast"))
    assert resolved.method == ToyFit(step=1e-3, iterations=20)


def test_values_for_streams_reach_methods_that_they_mean_something_to(tmp_path: Path) -> None:
    entry = streaming(tmp_path, live=SECTION)
    assert entry.resolve(live(method="toy_fit", preset="fast")).method == ToyFit(step=1e-4)
    assert entry.resolve(live(method="toy_other")).method == ToyOther()


def test_a_stream_that_asks_for_the_method_of_scans_gets_its_values(tmp_path: Path) -> None:
    entry = streaming(tmp_path, live={"values": {"tv_weight": 0.3, "network_tv": 0.4}})
    assert entry.resolve(live(method="toy_fit", preset="fast")).method == ToyFit(step=1e-3, iterations=20)
    assert entry.resolve(live()).method == ResidualINR(tv_weight=0.3, network_tv=0.4)
    assert entry.resolve(live(method="residual_tv")).method == ResidualTV(tv_weight=0.3)


def test_without_a_section_streams_have_the_usual_method(tmp_path: Path) -> None:
    resolved = streaming(tmp_path).resolve(live(preset="fast", overrides={"tv_weight": "0.5"}))
    assert resolved.method == ResidualINR(tv_weight=0.5)
    assert set(resolved.sources.values()) == {"default", "request"}


def test_without_a_section_values_for_a_method_of_streams_are_theirs(tmp_path: Path) -> None:
    values = {"method": "residual_tv", "values": {"tv_weight": 0.3}, "presets": {"fast": {"iterations": 9}}}
    assert streaming(tmp_path, **values).resolve(live(preset="fast")).method == ResidualINR(tv_weight=0.3, iterations=9)


# --- what `inrecon check` finds


def found(folder: Path, /, **documents: Any) -> list[tuple[str, str, str]]:
    findings = check(write(folder, **documents))
    return [(finding.kind, Path(finding.file).name, finding.field) for finding in findings]


def test_a_good_folder_has_no_findings(tmp_path: Path) -> None:
    assert found(tmp_path, default=DEFAULT, knee=GOOD) == []


def test_all_errors_of_all_files_are_found(tmp_path: Path) -> None:
    broken = changed("values", {"stepp": 1, "step": 7, "iterations": "many"})
    assert found(tmp_path, default="words", knee=broken, hip=changed("match.protocol", "hip")) == [
        ("error", "default.yaml", ""),
        ("error", "knee.yaml", "values.stepp"),
        ("error", "knee.yaml", "values.step"),
        ("error", "knee.yaml", "values.iterations"),
    ]


def test_a_missing_default_is_found(tmp_path: Path) -> None:
    assert found(tmp_path, knee=GOOD) == [("default", tmp_path.name, "")]


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    (finding,) = check(tmp_path)
    assert str(finding) == f"error: {tmp_path}: there are no hyperparameter files (*.yaml) in {tmp_path}"


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ({"protocol": "knee*"}, {"protocol": "*t2"}, True),
        ({"protocol": "knee"}, {"protocol": "KNEE"}, True),
        ({"protocol": "knee*"}, {"protocol": "hip*"}, False),
        ({"protocol": "knee_t2"}, {"protocol": "knee*"}, False),
        ({"protocol": ["knee_t2", "hip*"]}, {"protocol": "hip_*"}, True),
        ({"protocol": "knee*"}, {"sequence": "tse"}, True),
        ({"protocol": "knee"}, {"sequence": "tse"}, False),
        ({"sequence": "tse"}, {"sequence": "tse", "coils": [1, 8]}, False),
        ({"acceleration": [2, 4]}, {"acceleration": [4, 8]}, True),
        ({"acceleration": [2, 4]}, {"acceleration": [4.1, 8]}, False),
        ({"matrix": {"y": [128, 128]}}, {"matrix": {"x": [256, 256]}}, True),
        ({"matrix": {"y": [128, 128]}}, {"matrix": {"y": [256, 256]}}, False),
        ({"trajectory": ["cartesian", "epi"]}, {"trajectory": "epi"}, True),
        ({"trajectory": "radial"}, {"trajectory": "epi"}, False),
    ],
)
def test_overlaps(tmp_path: Path, one: dict[str, Any], other: dict[str, Any], overlap: bool) -> None:
    expected = [("overlap", "a.yaml", "match")] if overlap else []
    assert found(tmp_path, default=DEFAULT, a={**GOOD, "match": one}, b={**GOOD, "match": other}) == expected


@pytest.mark.parametrize(
    ("values", "at_edge"),
    [
        ({"step": 1e-5}, True),
        ({"step": 1.1e-5}, True),
        ({"step": 2e-5}, False),
        ({"step": 0.1}, True),
        ({"scale": 1.0}, True),
        ({"scale": 1.99}, True),
        ({"scale": 1.9}, False),
        ({"iterations": 1000}, False),
    ],
)
@pytest.mark.parametrize("where", ["values", "presets.quality"])
def test_values_at_the_edge_of_their_search_range(
    tmp_path: Path, values: dict[str, float], at_edge: bool, where: str
) -> None:
    document = changed(where, values)
    expected = [("edge", "knee.yaml", f"{where}.{next(iter(values))}")] if at_edge else []
    assert found(tmp_path, default=DEFAULT, knee=document) == expected


@pytest.mark.parametrize(("value", "at_edge"), [(5.0, True), (0.25, False)])
def test_values_for_streams_at_the_edge_of_the_range_of_their_method(
    tmp_path: Path, value: float, at_edge: bool
) -> None:
    expected = [("edge", "knee.yaml", "live.values.tv_weight")] if at_edge else []
    assert found(tmp_path, default=DEFAULT, knee=changed("live.values.tv_weight", value)) == expected


@pytest.mark.parametrize(
    ("origin", "version", "stale"),
    [
        ("tuned", "0.0.9", True),
        ("tuned", "0.0", True),
        ("tuned", __version__, False),
        ("tuned", ".".join(__version__.split(".")[:2]) + ".0.dev1", False),
        ("tuned", "999.0.0", False),
        ("tuned", "before the flood", False),
        ("tuned", "0", False),
        ("tuned", ..., False),
        ("by hand", "0.0.9", False),
        ("paper table II", "0.0.9", False),
    ],
)
def test_values_tuned_with_an_earlier_minor_release_are_stale(
    tmp_path: Path, origin: str, version: Any, stale: bool
) -> None:
    provenance = {"from": origin, "source": "made up"} | ({} if version is ... else {"version": version})
    expected = [("stale", "knee.yaml", "provenance.version")] if stale else []
    assert found(tmp_path, default=DEFAULT, knee={**GOOD, "provenance": provenance}) == expected


def test_a_stale_file_is_told_with_both_versions(tmp_path: Path) -> None:
    provenance = {"from": "tuned", "source": "made up", "version": "0.0.9"}
    (finding,) = check(write(tmp_path, default=DEFAULT, knee={**GOOD, "provenance": provenance}))
    assert str(finding) == (
        f"stale: {tmp_path / 'knee.yaml'}: provenance.version: tuned with inrecon 0.0.9, this is {__version__}: "
        "tuning anew may be worth it"
    )


# --- the files that come with inrecon


@pytest.fixture(scope="module")
def shipped() -> HyperparameterFiles:
    return HyperparameterFiles.load()


def test_the_shipped_files_are_those_of_the_repository(shipped: HyperparameterFiles) -> None:
    assert shipped_folder() == REPOSITORY / "hyperparams"
    on_disk = {str(file) for file in shipped_folder().rglob("*.yaml")}
    assert {entry.file for entry in shipped.entries} == on_disk


def test_the_shipped_files_have_no_finding() -> None:
    assert check() == list[Finding]()


@pytest.mark.parametrize("preset", ["fast", "standard", "quality"])
def test_every_shipped_entry_gives_a_method_for_every_preset(shipped: HyperparameterFiles, preset: Any) -> None:
    for one in shipped.entries:
        assert one.resolve(Request(preset=preset)).sources["iterations"] == f"preset {preset}"


BRAIN = {"anatomy": "HEAD", "matrix": (256, 256), "coils": 16}
SCANS = [
    ({**BRAIN, "sequence": "bSSFP", "acceleration": 4.6}, "brain_bssfp_3t", 2.6e-4),
    ({**BRAIN, "sequence": "TrueFISP", "acceleration": 6.2}, "brain_bssfp_3t", 2.6e-4),
    ({**BRAIN, "sequence": "TurboSpinEcho"}, "brain_t2w_tse_3t", 2.6e-4),
    (
        {"sequence": "SSFP", "anatomy": "heart", "field_strength_T": 0.55, "matrix": (272, 294), "coils": 15},
        "cardiac_t2w_bssfp_055t",
        2.6e-4,
    ),
    ({"sequence": "TSE", "anatomy": "prostate", "matrix": (384, 384), "coils": 12}, "prostate_t2w_tse_3t", 2.6e-4),
    (
        {"sequence": "bSSFP", "anatomy": None, "field_strength_T": 0.55, "matrix": (128, 128), "coils": 24},
        "imri_bssfp_055t",
        2.6e-4,
    ),
    ({"sequence": None, "anatomy": None, "field_strength_T": None}, "default", 2.6e-4),
]


@pytest.mark.parametrize(("scan", "name", "weight_decay_encoder"), SCANS)
def test_the_protocols_of_the_paper_find_their_entries(
    shipped: HyperparameterFiles, scan: dict[str, Any], name: str, weight_decay_encoder: float
) -> None:
    found_entry = shipped.look_up(scan_protocol(**scan))
    resolved = found_entry.resolve(Request())
    assert found_entry.name == name
    assert resolved.values["weight_decay_encoder"] == weight_decay_encoder
    assert resolved.values["weight_form"] == "squares"


def test_streams_of_the_protocol_of_interventions_have_values_of_their_own(shipped: HyperparameterFiles) -> None:
    scan = scan_protocol(sequence="bSSFP", anatomy=None, field_strength_T=0.55, matrix=(128, 128), coils=24)
    resolved = shipped.look_up(scan).resolve(live())
    assert (resolved.name, resolved.entry) == ("residual_inr", "imri_bssfp_055t")
    assert {name: resolved.values[name] for name, source in resolved.sources.items() if source == "entry"} == {
        "tv_weight": 0.25,
        "network_tv": 0.5,
        "displacement": 8,
    }


def test_every_example_in_the_readme_is_a_good_file(tmp_path: Path) -> None:
    examples = (REPOSITORY / "hyperparams" / "README.md").read_text(encoding="utf-8").split("```yaml\n")[1:]
    write(tmp_path, default=DEFAULT, **{f"example{n}": text.split("```")[0] for n, text in enumerate(examples)})
    assert len(examples) >= 2
    assert check(tmp_path) == []
