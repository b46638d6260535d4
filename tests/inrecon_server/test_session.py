"""The life of one scan, without sockets and without a worker."""

import pickle
from collections.abc import Iterable
from pathlib import Path

import pytest
from ismrmrd import ACQ_IS_NOISE_MEASUREMENT, Meta

from inrecon.errors import InreconError, InvalidHeader
from inrecon.events import FallBack
from inrecon.frame import Key, RawFrame, Request, Series
from inrecon.simulate import SimulatedScan, simulate_scan
from inrecon_server.config import Wishes
from inrecon_server.frame_queue import NewPrior
from inrecon_server.job import JobResult, Progress
from inrecon_server.kept_priors import KeptPriors, PriorNotFound
from inrecon_server.notices import MAX_WARNINGS, PERIOD_S, News, Notice, notice_of
from inrecon_server.protocol import (
    ConfigFile,
    ConfigText,
    DependencyQuery,
    Error,
    Header,
    Message,
    Query,
    Response,
    Text,
)
from inrecon_server.scan_state import ScanState
from inrecon_server.session import Session, Step, Terms


@pytest.fixture(scope="module")
def scan() -> SimulatedScan:
    return simulate_scan(shape=(16, 16), coils=2, acceleration=1, acs=8, slices=2, repetitions=2)


def named(scan: SimulatedScan, measurement: str, *, noise: str = "") -> bytes:
    """The header of `scan` as measurement `measurement`, which depends on `noise`."""
    dependency = f"<dependencyType>noise</dependencyType><measurementID>{noise}</measurementID>"
    text = scan.header.decode().replace(">simulated<", f">{measurement}<")
    start = "</protocolName>"
    return text.replace(start, f"{start}<measurementDependency>{dependency}</measurementDependency>").encode()


def session(
    *messages: Message,
    default_config: str | None = None,
    state: ScanState | None = None,
    can_save: bool = False,
    **more: object,
) -> Session:
    terms = Terms(
        hyperparameters=Path("/nowhere"),
        device="cpu",
        default_config=default_config,
        state=state or ScanState(),
        can_save=can_save,
    )
    new = Session(terms, **more)
    receive(new, messages)
    return new


def receive(session: Session, messages: Iterable[Message]) -> list[Step]:
    return [step for message in messages for step in session.receive(message)]


def frames(steps: Iterable[Step]) -> list[RawFrame]:
    return [step for step in steps if isinstance(step, RawFrame)]


def texts(steps: Iterable[object]) -> list[str]:
    return [f"{step.level} {step.text}" for step in steps if isinstance(step, Notice)]


def test_every_frame_of_the_scan_becomes_one_job_and_early(scan: SimulatedScan) -> None:
    running = session(ConfigFile("cg_sense"), Header(scan.header))
    early = frames(receive(running, scan.acquisitions))
    late = frames(running.finish())
    assert len(early) + len(late) == len(scan.reference) == 4
    assert len(early) >= 2
    job = running.job(early[0], complete_at=0.0)
    assert job.request.method == "cg_sense"
    assert job.progress == Progress()
    assert pickle.loads(pickle.dumps(job)).raw.key == early[0].key


def test_the_start_is_told_once(scan: SimulatedScan) -> None:
    running = session(ConfigFile("cg_sense"), Header(scan.header))
    told = texts(receive(running, scan.acquisitions))
    assert len([text for text in told if text.startswith("INFO")]) == 1
    assert "cg_sense" in told[0]


def test_progress_passes_from_result_to_next_job(scan: SimulatedScan) -> None:
    running = session(ConfigFile("inr"), Header(scan.header))
    first, *_ = [*frames(receive(running, scan.acquisitions)), *frames(running.finish())]
    progress = Progress(series={0: Series(images=3, scale=2.0)}, hyperparameters=b"as read")
    assert list(running.take(JobResult(progress=progress, images=(b"i",)))) == []
    assert running.job(first, complete_at=0.0).progress == progress


def test_what_is_asked_for_is_told_once_before_the_first_frame(scan: SimulatedScan) -> None:
    running = session(ConfigFile("inr_imri"), Header(scan.header))
    steps = receive(running, scan.acquisitions)
    (asked,) = [step for step in steps if isinstance(step, Request)]
    assert asked.priority == "realtime"
    assert steps.index(asked) < steps.index(frames(steps)[0])


def test_frames_of_one_stream_are_told_from_those_of_others_and_scans_have_none(scan: SimulatedScan) -> None:
    streams = []
    for config in ("inr_imri", "inr_imri", "inr"):
        running = session(ConfigFile(config), Header(scan.header))
        found = [*frames(receive(running, scan.acquisitions)), *frames(running.finish())]
        (stream,) = {running.job(raw, complete_at=0.0).stream for raw in found}
        streams.append(stream)
    assert len(set(streams)) == 3
    assert streams[2] is None


def test_priors_of_all_results_pass_to_the_next_job(scan: SimulatedScan) -> None:
    running = session(ConfigFile("inr_imri"), Header(scan.header))
    first, *_ = frames(receive(running, scan.acquisitions))
    for priors in ({Key(slice=0): b"a", Key(slice=1): b"b"}, {Key(slice=1): b"c"}, {}):
        assert list(running.take(JobResult(progress=Progress(priors=priors), images=(b"i",)))) == []
    assert running.job(first, complete_at=0.0).progress.priors == {Key(slice=0): b"a", Key(slice=1): b"c"}


def test_a_new_prior_is_begun_in_its_turn_not_when_the_text_comes(scan: SimulatedScan) -> None:
    running = session(ConfigFile("inr_imri"), Header(scan.header))
    raw, *_ = frames(receive(running, scan.acquisitions))
    before = running.job(raw, complete_at=0.0)
    told = receive(running, [Text('{"parameters": {"new_prior": "true", "preset": "fast"}}')])
    assert [type(step) for step in told] == [Notice, Notice, NewPrior]
    assert "'preset'" in texts(told)[1]
    series = {0: Series(images=3, scale=2.0)}
    list(running.take(JobResult(progress=Progress(series=series, priors={Key(): b"a"}), images=(b"i",))))
    assert running.job(raw, complete_at=0.0).stream == before.stream
    running.begin_anew()
    after = running.job(raw, complete_at=0.0)
    assert after.stream != before.stream
    assert after.progress == Progress(series=series)


def test_what_is_kept_of_a_stream_are_priors_of_its_own_not_those_of_the_scan_it_names() -> None:
    scan = simulate_scan(shape=(16, 16), coils=2, acceleration=1, acs=8, repetitions=2)
    kept = KeptPriors()
    earlier = {Key(slice=0): b"a", Key(slice=1): b"b"}
    kept.keep("earlier", earlier)
    running = Session(Terms(device="cpu", priors=kept))
    asked = ConfigText('{"parameters": {"config": "inr_imri", "prior": "earlier"}}')
    header = Header(named(scan, measurement="this one"))
    raw, *_ = frames(receive(running, [asked, header, *scan.acquisitions]))
    assert running.job(raw, complete_at=0.0).progress.priors == earlier
    list(running.take(JobResult(progress=Progress(priors=dict(earlier)), images=(b"i",))))
    with pytest.raises(PriorNotFound):
        kept.of("this one")
    list(running.take(JobResult(progress=Progress(priors={**earlier, Key(slice=1): b"c"}), images=(b"i",))))
    assert kept.of("this one") == {Key(slice=1): b"c"}
    assert kept.of("earlier") == earlier


def test_a_warning_is_told_once_their_number_is_bounded_and_that_is_told_once(scan: SimulatedScan) -> None:
    running = session(ConfigFile("inr"), Header(scan.header))
    told = []
    for number in range(1000):
        notices = (Notice(level="WARNING", text="always"), Notice(level="WARNING", text=str(number)))
        told += texts(running.take(JobResult(progress=Progress(), notices=notices)))
    numbers = [f"WARNING {number}" for number in range(MAX_WARNINGS - 1)]
    assert told == ["WARNING always", *numbers, "WARNING further warnings are not shown"]


def test_after_a_while_as_many_warnings_are_told_again_and_how_many_were_not() -> None:
    clock = [0.0]
    news = News(clock=lambda: clock[0])
    first = [told.text for n in range(70) for told in news.of(Notice(level="WARNING", text=f"first {n}"))]
    assert first[-1] == "further warnings are not shown"
    clock[0] = PERIOD_S
    later = [told.text for n in range(70) for told in news.of(Notice(level="WARNING", text=f"later {n}"))]
    assert later[:2] == ["20 warnings were not shown", "later 0"]
    assert len(later) == 1 + MAX_WARNINGS + 1
    assert list(news.of(Notice(level="WARNING", text="later 0"))) == []
    clock[0] = 2 * PERIOD_S
    for expected in (["20 warnings were not shown", "later 0"], []):
        again = [told.text for told in news.of(Notice(level="WARNING", text="later 0"))]
        assert again == expected


def test_errors_and_information_are_told_however_much_was_said(scan: SimulatedScan) -> None:
    running = session(ConfigFile("inr"), Header(scan.header))
    warnings = tuple(Notice(level="WARNING", text=str(number)) for number in range(2 * MAX_WARNINGS))
    list(running.take(JobResult(progress=Progress(), notices=warnings)))
    for _ in range(2 * MAX_WARNINGS):
        both = (Notice(level="INFO", text="i"), Notice(level="ERROR", text="e"))
        assert texts(running.take(JobResult(progress=Progress(), notices=both))) == ["INFO i", "ERROR e"]


def test_fall_backs_that_differ_in_numbers_only_are_told_once_in_a_scan(scan: SimulatedScan) -> None:
    running = session(ConfigFile("inr"), Header(scan.header))
    told = []
    for room, reason in [
        ("fit", "loss 1.5e-3 at 7"),
        ("fit", "loss 2 at 80"),
        ("calibrate", "loss 2 at 80"),
        ("fit", "x"),
    ]:
        notice = notice_of(FallBack(room=room, reason=reason))
        assert notice is not None
        told += texts(running.take(JobResult(progress=Progress(), notices=(notice,))))
    assert [text.removeprefix("WARNING fall-back ") for text in told] == [
        "(fit): loss 1.5e-3 at 7",
        "(calibrate): loss 2 at 80",
        "(fit): x",
    ]


def test_the_summary_counts_images_failures_and_readouts(scan: SimulatedScan) -> None:
    running = session(ConfigFile("inr"), Header(scan.header))
    receive(running, scan.acquisitions)
    list(running.take(JobResult(progress=Progress(), images=(b"a", b"b"))))
    list(running.take(JobResult(progress=Progress(), notices=(Notice(level="ERROR", text="diverged"),))))
    (summary,) = texts(running.summary())
    assert summary.startswith("INFO 2 images in")
    assert "1 frames failed" in summary
    assert "imaging readouts" in summary


def test_a_close_without_a_header_is_no_error() -> None:
    for first in ([], [ConfigFile("no_such")], [ConfigText("<configuration><gadget/></configuration>")]):
        running = session(*first)
        assert list(running.finish()) == []
        assert list(running.summary()) == []


def test_an_unknown_configuration_ends_the_scan_when_data_comes(scan: SimulatedScan) -> None:
    running = session(ConfigFile("cg_sens"), Header(scan.header))
    with pytest.raises(InreconError, match="did you mean 'cg_sense'"):
        receive(running, scan.acquisitions[:1])
    with pytest.raises(InreconError, match="did you mean 'cg_sense'"):
        list(session(ConfigFile("cg_sens"), Header(scan.header)).finish())


def test_the_default_configuration_runs_only_where_it_was_set_and_says_so(scan: SimulatedScan) -> None:
    running = Session(Terms(device="cpu", default_config="zero_filled"))
    (told,) = texts(receive(running, [ConfigFile("cg_sens")]))
    assert told.startswith("WARNING")
    assert "'zero_filled' is used" in told
    assert frames([*receive(running, [Header(scan.header), *scan.acquisitions]), *running.finish()])


def test_fire_names_the_configuration_after_the_header(scan: SimulatedScan) -> None:
    running = session(ConfigFile("openrecon"), Header(scan.header))
    told = receive(running, [Text('{"parameters": {"config": "cg_sense", "preset": "fast", "foo": 1}}')])
    assert texts(told) == ["WARNING unknown parameters are ignored: 'foo'"]
    first, *_ = frames([*receive(running, scan.acquisitions), *running.finish()])
    assert running.job(first, complete_at=0.0).request.method == "cg_sense"
    assert running.job(first, complete_at=0.0).request.preset == "fast"


@pytest.mark.parametrize("live", [True, False])
def test_what_is_asked_for_after_the_header_decides_how_readouts_are_collected(live: bool) -> None:
    scan = simulate_scan(shape=(16, 16), coils=2, acceleration=1, acs=8, repetitions=3)
    first, amended = ("openrecon", "inr_imri") if live else ("inr_imri", "inr")
    running = session(ConfigFile(first), Header(scan.header), Text(f'{{"parameters": {{"config": "{amended}"}}}}'))
    doubled = [*scan.acquisitions[:-16], *scan.acquisitions[-32:]]
    steps = [*receive(running, doubled), *running.finish()]
    assert [frame.key.repetition for frame in frames(steps)] == ([0, 1, 2] if live else [0, 1, 1, 2])
    assert (running.request.live is not None) == live


def test_json_that_names_no_configuration_does_not_make_an_unknown_one_known(scan: SimulatedScan) -> None:
    running = session(ConfigFile("openrecon"), Header(scan.header), Text('{"parameters": {"preset": "fast"}}'))
    with pytest.raises(InreconError, match="'openrecon'"):
        receive(running, scan.acquisitions[:1])


QUESTION = '<c><gadget><name>NoiseSummary</name><property name="noise_file" value="m"/></gadget></c>'


def status(steps: Iterable[Step]) -> str:
    (step,) = steps
    assert isinstance(step, DependencyQuery)
    return str(Meta.deserialize(step.meta)["status"])


def test_noise_passes_from_scan_to_scan(scan: SimulatedScan) -> None:
    state = ScanState()
    assert status(session(ConfigText(QUESTION), state=state).finish()) == "failed"
    first = session(ConfigFile("inr"), Header(named(scan, "m")), *scan.acquisitions, state=state)
    (kept,) = texts(first.finish())
    assert kept.startswith("INFO the noise (2 channels,")
    assert status(session(ConfigText(QUESTION), state=state).finish()) == "success"
    assert status(session(ConfigText(QUESTION), state=state, default_config="inr").finish()) == "success"
    imaging = [one for one in scan.acquisitions if not one.is_flag_set(ACQ_IS_NOISE_MEASUREMENT)]
    later = session(ConfigFile("inr"), Header(named(scan, "n", noise="m")), state=state)
    steps = [*receive(later, imaging), *later.finish()]
    assert all(frame.noise is not None for frame in frames(steps))
    assert len([text for text in texts(steps) if "earlier measurement" in text]) == 1


def test_readouts_that_come_through_gadgetron_are_not_whitened_a_second_time(scan: SimulatedScan) -> None:
    state = ScanState()
    gadgetrons = ConfigText('<configuration><property name="peer" value="gadgetron"/></configuration>')
    list(session(gadgetrons, Header(named(scan, "m")), *scan.acquisitions, state=state).finish())
    assert status(session(ConfigText(QUESTION), state=state).finish()) == "success"
    running = session(gadgetrons, Header(named(scan, "n", noise="m")), state=state)
    steps = [*receive(running, scan.acquisitions[-16:]), *running.finish()]
    assert frames(steps)[-1].noise is None
    assert [text for text in texts(steps) if "left to Gadgetron's own gadgets" in text]


def test_noise_is_found_where_the_configuration_comes_after_the_header(scan: SimulatedScan) -> None:
    state = ScanState()
    list(session(ConfigFile("inr"), Header(named(scan, "m")), *scan.acquisitions, state=state).finish())
    running = session(ConfigFile("null"), Header(named(scan, "n", noise="m")), state=state)
    receive(running, [Text('{"parameters": {"config": "cg_sense"}}')])
    steps = [*receive(running, scan.acquisitions[-16:]), *running.finish()]
    assert frames(steps)[-1].noise is not None


@pytest.mark.parametrize("ended", [[], ["null"]])
def test_noise_of_a_scan_that_did_not_end_or_is_not_looked_at_is_not_kept(
    scan: SimulatedScan, ended: list[str]
) -> None:
    state = ScanState()
    running = session(ConfigFile(*(ended or ["inr"])), Header(named(scan, "m")), *scan.acquisitions, state=state)
    if ended:
        assert list(running.finish()) == []
    assert status(session(ConfigText(QUESTION), state=state).finish()) == "failed"


def test_a_noise_scan_without_noise_is_told_so(scan: SimulatedScan) -> None:
    running = session(ConfigFile("default_measurement_dependencies"), Header(scan.header), *scan.acquisitions[-16:])
    assert texts(running.finish()) == ["WARNING there were no noise readouts: nothing is kept"]


def test_a_question_is_no_way_to_send_data(scan: SimulatedScan) -> None:
    running = session(ConfigText(QUESTION), Header(scan.header))
    with pytest.raises(InreconError, match="asks after the noise"):
        receive(running, scan.acquisitions[:1])


def test_the_configuration_does_not_change_in_the_middle(scan: SimulatedScan) -> None:
    running = session(ConfigFile("cg_sense"), Header(scan.header), scan.acquisitions[0])
    (told,) = texts(receive(running, [Text('{"parameters": {"config": "zero_filled"}}')]))
    assert "cannot change" in told
    first, *_ = frames([*receive(running, scan.acquisitions[1:]), *running.finish()])
    assert running.job(first, complete_at=0.0).request.method == "cg_sense"


def test_other_texts_of_the_client_change_nothing() -> None:
    assert receive(session(ConfigFile("cg_sense")), [Text("hello")]) == []


def test_a_header_that_is_none_ends_the_scan_at_once() -> None:
    with pytest.raises(InvalidHeader):
        session(ConfigFile("cg_sense"), Header(b"garbage"))


def test_null_reads_everything_and_says_nothing(scan: SimulatedScan) -> None:
    running = session(ConfigFile("null"), Header(b"garbage"))
    assert receive(running, scan.acquisitions) == []
    assert [*running.finish(), *running.summary()] == []


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("gadgetron::version", "inrecon"),
        ("ismrmrd::version", "1."),
        ("gadgetron::info", "cg_sense"),
        ("x", "Unknown query"),
    ],
)
def test_a_query_is_answered_under_its_number(name: str, answer: str) -> None:
    (response,) = receive(session(), [Query(name, 77)])
    assert isinstance(response, Response)
    assert response.correlation_id == 77
    assert answer in response.text


def test_a_client_is_told_in_texts_whose_level_fills_eight_characters() -> None:
    running = session(ConfigFile("inr"))
    assert running.tell(Notice(level="INFO", text="a")) == Text("INFO    a")
    assert running.tell(Notice(level="WARNING", text="a")) == Text("WARNING a")
    assert running.tell(Notice(level="ERROR", text="a")) == Text("ERROR   a")


def test_gadgetron_is_told_errors_only_and_in_its_own_form() -> None:
    running = session(ConfigText('<configuration><property name="peer" value="gadgetron"/></configuration>'))
    assert running.tell(Notice(level="INFO", text="a")) is None
    assert running.tell(Notice(level="WARNING", text="a")) is None
    assert running.tell(Notice(level="ERROR", text="a")) == Error("a")


def test_wishes_go_over_every_configuration(scan: SimulatedScan) -> None:
    wishes = Wishes(preset="fast", overrides={"iterations": "3"})
    for messages in (
        (ConfigFile("cg_sense"), Header(scan.header)),
        (ConfigFile("inr"), Header(scan.header), Text('{"parameters": {"config": "cg_sense", "preset": "quality"}}')),
    ):
        running = session(*messages, wishes=wishes)
        assert frames(receive(running, scan.acquisitions))
        assert running.request == Request(method="cg_sense", preset="fast", overrides={"iterations": "3"})


def test_a_method_that_is_wished_for_makes_images_of_what_asks_for_none(scan: SimulatedScan) -> None:
    running = session(ConfigFile("null"), Header(scan.header), wishes=Wishes(method="zero_filled"))
    assert frames(receive(running, scan.acquisitions))


def test_a_session_that_shall_only_be_kept_needs_someone_to_keep_it(scan: SimulatedScan) -> None:
    messages = ConfigFile("savedataonly"), Header(scan.header)
    kept = session(*messages, can_save=True)
    assert kept.saves_only
    assert receive(kept, scan.acquisitions) == list(kept.finish()) == []
    refused = session(*messages)
    with pytest.raises(InreconError, match="without a folder"):
        receive(refused, scan.acquisitions)
    with pytest.raises(InreconError, match="without a folder"):
        list(refused.finish())
    assert list(session(ConfigFile("savedataonly")).finish()) == []
