"""One scan, from its configuration to its last image: what is asked for, what has come, what is owed.

No I/O, but for what is kept from scan to scan: `receive` of anything but acquisitions, and `finish`, may wait for that.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import ParamSpec
from uuid import uuid4

from ismrmrd import ACQ_IS_NOISE_MEASUREMENT

from inrecon import __version__
from inrecon.acquire import LEFT_TO_GADGETRON, Accumulator, LiveAccumulator, Memory, Scan, collector, parse_header
from inrecon.errors import ConfigError, InreconError
from inrecon.events import Event, listening
from inrecon.frame import Key, Noise, RawFrame, Request
from inrecon_server.config import Configuration, Wishes, amend, asks_for_prior, beside_prior, configure, names
from inrecon_server.frame_queue import NewPrior
from inrecon_server.job import InlineTuning, Job, JobResult, Progress
from inrecon_server.kept_priors import KeptPriors, PriorNotFound
from inrecon_server.noise_query import answer, measurement_asked_for
from inrecon_server.notices import News, Notice, notice_of
from inrecon_server.protocol import (
    Acquisition,
    ConfigFile,
    ConfigText,
    DependencyQuery,
    Error,
    Header,
    Image,
    Message,
    OutOfOrder,
    Query,
    Response,
    Text,
    Waveform,
)
from inrecon_server.scan_state import NoiseNotFound, ScanState

log = logging.getLogger(__name__)

Step = RawFrame | NewPrior | Notice | Request | Response | DependencyQuery

P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What every scan finds at a server: settings, and what it shares with others.

    `memory` lends to the buffers of all scans, `state` and `priors` are what is kept from one to the next. `can_save`:
    whether there is a folder for the readouts of a client that wants them kept.
    """

    hyperparameters: Path | None = None
    device: str = "auto"
    default_config: str | None = None
    inline_tuning: InlineTuning | None = None
    deadline_s: float | None = None
    memory: Memory | None = None
    state: ScanState = field(default_factory=ScanState)
    priors: KeptPriors = field(default_factory=KeptPriors)
    can_save: bool = False


class Session:
    """The life of one scan; whoever drives it carries the messages, runs the jobs and sends what it is told to.

    `receive` takes the client's messages but CLOSE, `finish` its CLOSE; both give the steps to take: among them, once,
    before the first frame, what is asked for. `job` and `take` turn a frame into a job and the job's result into
    notices, strictly one job at a time and in the frames' order; `begin_anew` is for `NewPrior`, in its turn between
    two jobs. `images` and `failed` count images made and frames of which none could be, `skipped` (for the driver to
    set) those that a newer one took the place of. `wishes` go over whatever configuration the client sends.
    """

    def __init__(self, terms: Terms, *, wishes: Wishes | None = None) -> None:
        self._terms = terms
        self._wishes = wishes or Wishes()
        self._configuration: Configuration | None = None
        self._refused: InreconError | None = None
        self._asked_for: str | None = None
        self._header: bytes | None = None
        self._scan: Scan | None = None
        self._accumulator: Accumulator | LiveAccumulator | None = None
        self._noise: Noise | str = ""
        self._kept_noise: Noise | None = None
        self._not_noise = 0
        self._settled = False
        self._progress = Progress()
        self._named_priors: Mapping[Key, bytes] = {}
        self._kept_priors: Mapping[Key, bytes] = {}
        self._stream = uuid4().hex
        self._started = time.monotonic()
        self._news = News()
        self.images = 0
        self.failed = 0
        self.skipped = 0

    def receive(self, message: Message) -> Iterator[Step]:
        """What to do now that `message` has come; raises `InreconError` if the scan cannot go on."""
        match message:
            case Acquisition():
                yield from self._add(message)
            case Waveform():
                pass
            case ConfigFile(name=text) | ConfigText(text=text):
                yield from self._configure(text)
            case Header(xml=xml):
                self._header = xml
                self._parse_header()
            case Text(text=text):
                yield from self._amend(text)
            case Query(name=name, correlation_id=correlation_id):
                yield Response(correlation_id, _answer(name))
            case Image() if not self._is_null:
                raise OutOfOrder("this server reconstructs from raw acquisitions; it does not take images")

    def finish(self) -> Iterator[Step]:
        """What to do now that the client has sent CLOSE; raises `InreconError` as `receive` does.

        CLOSE without a header asks only whether the server is there: there is nothing to do, unless the configuration
        asks after noise.
        """
        if self._asked_for is not None:
            yield self._answer_of_noise(self._asked_for)
        if self._header is None or self._is_null:
            self._check_saving()
            return
        yield from self._settle()
        if self._accumulator is not None and self._scan is not None:
            # Before the last frames, which may wait long for the worker.
            yield from self._keep_noise(self._accumulator, self._scan)
            yield from self._heard(self._accumulator.finish)

    @property
    def configuration_name(self) -> str:
        """One of the names that there are, or of the kinds of text."""
        return "none" if self._configuration is None else self._configuration.name

    @property
    def request(self) -> Request:
        """What is asked for, once that is settled."""
        if self._configuration is None:
            raise RuntimeError("there is no configuration yet")
        return self._configuration.request

    def job(self, raw: RawFrame, *, complete_at: float) -> Job:
        """The job that makes images of `raw`, the last readout of which came at that time of the monotonic clock."""
        request = self.request
        deadline_s = self._terms.deadline_s if request.deadline_s is None else request.deadline_s
        return Job(
            raw=raw,
            request=request,
            due=None if deadline_s is None else complete_at + deadline_s,
            progress=self._progress,
            hyperparameters=self._terms.hyperparameters,
            device=self._terms.device,
            inline_tuning=self._terms.inline_tuning,
            stream=None if request.live is None else self._stream,
        )

    def take(self, result: JobResult) -> Iterator[Notice]:
        """Keep what the next job needs of `result`; gives what is worth telling."""
        priors = {**self._progress.priors, **result.progress.priors}
        self._progress = replace(result.progress, priors=priors)
        own = {key: prior for key, prior in priors.items() if self._named_priors.get(key) != prior}
        if own != self._kept_priors and self._scan is not None and self._scan.measurement_id is not None:
            self._kept_priors = own
            self._terms.priors.keep(self._scan.measurement_id, own)
        self.images += len(result.images)
        self.failed += not result.images
        for notice in result.notices:
            yield from self._news.of(notice)

    def begin_anew(self) -> None:
        """Forget what frames were compared with: those of the next jobs have a prior of their own."""
        self._stream = uuid4().hex
        self._progress = replace(self._progress, priors={})

    def summary(self) -> Iterator[Notice]:
        """What to say at the end of a scan."""
        if self._accumulator is None or not self._settled:
            return
        seconds = time.monotonic() - self._started
        failed = f", {self.failed} frames failed" if self.failed else ""
        failed += f", {self.skipped} skipped for newer ones" if self.skipped else ""
        left_out = f", {self._not_noise} that are not noise" if self._not_noise else ""
        text = f"{self.images} images in {seconds:.1f} s{failed}; {self._accumulator.summary()}{left_out}"
        yield Notice(level="INFO", text=text)

    def close(self) -> None:
        """Give up what is not finished, and the memory that it holds."""
        if self._accumulator is not None:
            self._accumulator.close()

    def tell(self, notice: Notice) -> Text | Error | None:
        """`notice` in the form that the peer understands; None if it must not be told."""
        if self._configuration is None or not self._configuration.from_gadgetron:
            return Text(f"{notice.level:<8}{notice.text}")
        # Gadgetron ends a scan when an external module sends it a text.
        return Error(notice.text) if notice.level == "ERROR" else None

    @property
    def makes_images(self) -> bool:
        """Whether images are wanted, as far as is known by now."""
        return self._configuration is not None and self._configuration.makes_images

    @property
    def saves_only(self) -> bool:
        """Whether the client wants its readouts kept, and nothing else."""
        return self._configuration is not None and self._configuration.saves_only

    @property
    def _keeps_noise_only(self) -> bool:
        return self._configuration is not None and self._configuration.keeps_noise_only

    @property
    def _is_null(self) -> bool:
        return self._configuration is not None and self._configuration.is_null

    def _configure(self, text: str) -> Iterator[Notice]:
        self._asked_for = measurement_asked_for(text)
        if self._asked_for is not None:
            self._refused = ConfigError("the configuration asks after the noise of a measurement, and makes no images")
            return
        try:
            self._configuration = self._wishes.over(configure(text))
        except InreconError as error:
            if self._terms.default_config is None:
                # Told when data comes: Gadgetron's client asks after noise with a chain of its own and then CLOSE, and
                # FIRE may name the configuration after the header.
                self._refused = error
                return
            self._configuration = self._wishes.over(configure(self._terms.default_config))
            yield Notice(level="WARNING", text=f"{error}; {self._configuration.name!r} is used")
        yield from self._ignored(self._configuration)

    def _amend(self, text: str) -> Iterator[Step]:
        if not text.lstrip().startswith("{"):
            log.info("a text of %d characters from the client has no meaning here", len(text))
        elif self._settled and self.request.live is not None and asks_for_prior(text):
            yield Notice(level="INFO", text="a new prior is made, as was asked for")
            if others := beside_prior(text):
                ignored = ", ".join(map(repr, others))
                yield Notice(
                    level="WARNING", text=f"beside new_prior, these cannot change any more; ignored: {ignored}"
                )
            yield NewPrior()
        elif self._settled:
            yield Notice(level="WARNING", text="the configuration cannot change after the first readout; ignored")
        else:
            amended = amend(self._configuration or Configuration(name="", request=Request()), text)
            yield from self._ignored(amended)
            if amended.name:
                self._configuration, self._refused = self._wishes.over(amended), None
                self._parse_header()

    def _ignored(self, configuration: Configuration) -> Iterator[Notice]:
        if configuration.ignored:
            ignored = ", ".join(map(repr, configuration.ignored))
            yield Notice(level="WARNING", text=f"unknown parameters are ignored: {ignored}")

    def _parse_header(self) -> None:
        if self._header is not None and self._scan is None and not self._is_null:
            self._scan = parse_header(self._header)
            self._noise = self._noise_for(self._scan)

    def _noise_for(self, scan: Scan) -> Noise | str:
        """What is kept of the noise that `scan` names, or why there is nothing."""
        if self._configuration is not None and self._configuration.from_gadgetron:
            return LEFT_TO_GADGETRON
        try:
            self._kept_noise = self._terms.state.noise_for(scan)
        except NoiseNotFound as error:
            return str(error)
        return self._kept_noise

    def _keep_noise(self, accumulator: Accumulator | LiveAccumulator, scan: Scan) -> Iterator[Notice]:
        noise = accumulator.noise
        if noise is None and self._keeps_noise_only:
            yield Notice(level="WARNING", text="there were no noise readouts: nothing is kept")
        # A scan that has its own noise need not be named by another one.
        if noise is not None and (scan.measurement_id is not None or not accumulator.summary().imaging):
            yield from self._terms.state.keep(noise, scan)

    def _answer_of_noise(self, measurement_id: str) -> DependencyQuery:
        try:
            return answer(self._terms.state.noise_of(measurement_id))
        except NoiseNotFound as error:
            log.info("a client asks after noise: %s", error)
            return answer(None)

    def _add(self, acquisition: Acquisition) -> Iterator[Step]:
        if self._is_null:
            self._check_saving()
            return
        yield from self._settle()
        if self._keeps_noise_only and not acquisition.is_flag_set(ACQ_IS_NOISE_MEASUREMENT):
            self._not_noise += 1
        elif self._accumulator is not None:
            yield from self._heard(self._accumulator.add, acquisition)

    def _check_saving(self) -> None:
        if self.saves_only and self._header is not None and not self._terms.can_save:
            raise ConfigError(
                "this server keeps no readouts: it was started without a folder for them (savedata_folder)"
            )

    def _heard(self, collect: Callable[P, list[RawFrame]], *args: P.args, **kwargs: P.kwargs) -> Iterator[Step]:
        """The frames that `collect` gives, after what was announced meanwhile."""
        notices: list[Notice] = []

        def hear(event: Event) -> None:
            if (notice := notice_of(event)) is not None:
                notices.extend(self._news.of(notice))

        with listening(hear):
            frames = collect(*args, **kwargs)
        if frames and self._kept_noise is not None:
            kept, self._kept_noise = self._kept_noise, None
            if frames[0].noise is not None and self._accumulator is not None and self._accumulator.noise is None:
                text = f"the noise of an earlier measurement is used: {kept.samples} samples"
                notices.append(Notice(level="INFO", text=text))
        yield from notices
        yield from frames

    def _settle(self) -> Iterator[Notice | Request]:
        """Hold the sender to the configuration from now on."""
        if self._refused is not None:
            raise self._refused
        if self._settled or self._configuration is None:
            return
        self._settled = True
        request = self._configuration.request
        if self._scan is not None:
            # Not before: what is asked for may still change after the header.
            self._accumulator = collector(
                self._scan, live=request.live, kept_noise=self._noise, memory=self._terms.memory
            )
            if not self._keeps_noise_only:
                yield request
        method = "by protocol" if request.method is None else repr(request.method)
        asked = f"method {method}, preset {request.preset}, images {request.dtype}"
        if self._keeps_noise_only:
            asked = "noise is kept for later scans, no images are made"
        yield Notice(level="INFO", text=f"inrecon {__version__}, configuration {self._configuration.name}: {asked}")
        if request.live is not None and request.live.prior is not None:
            yield self._named_prior(request.live.prior)

    def _named_prior(self, measurement_id: str) -> Notice:
        try:
            self._named_priors = self._terms.priors.of(measurement_id)
        except PriorNotFound as error:
            return Notice(level="WARNING", text=str(error))
        self._progress = replace(self._progress, priors=self._named_priors)
        return Notice(level="INFO", text="frames are compared with the prior of an earlier scan")


def machine_memory() -> int:
    """The machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _answer(query: str) -> str:
    """What a client wants to know that may ask any server for its version."""
    match query:
        case "ismrmrd::version":
            return version("ismrmrd")
        case "gadgetron::version" | "gadgetron::build":
            return f"inrecon {__version__}"
        case "gadgetron::info":
            return f"inrecon {__version__}\nconfigurations: {', '.join(names())}\n"
        case "gadgetron::info::memory":
            return str(machine_memory())
        case "gadgetron::info::python":
            return "1"
        case "gadgetron::info::matlab":
            return "0"
    return "Unknown query"
