"""One scan, from its configuration to its last image: what is asked for, what has come, what is owed. No I/O."""

import logging
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import ParamSpec

from inrecon import __version__
from inrecon.acquire import Accumulator, parse_header
from inrecon.errors import InreconError
from inrecon.events import Event, listening
from inrecon.frame import RawFrame, Request
from inrecon_server.config import ConfigError, Configuration, Wishes, amend, configure, names
from inrecon_server.notices import News, Notice, notice_of
from inrecon_server.protocol import (
    Acquisition,
    ConfigFile,
    ConfigText,
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
from inrecon_server.worker import InlineTuning, Job, JobResult, Progress

log = logging.getLogger(__name__)

Step = RawFrame | Notice | Response

P = ParamSpec("P")


class Session:
    """The life of one scan; whoever drives it carries the messages, runs the jobs and sends what it is told to.

    `receive` takes the client's messages but CLOSE, `finish` its CLOSE; both give the steps to take. `job` and `take`
    turn a frame into a job and the job's result into notices, strictly one job at a time and in the frames' order.

    `wishes` go over whatever configuration the client sends. `can_save`: whether there is a folder for the readouts of
    a client that wants them kept.
    """

    def __init__(
        self,
        *,
        hyperparameters: Path | None,
        device: str,
        default_config: str | None = None,
        inline_tuning: InlineTuning | None = None,
        wishes: Wishes | None = None,
        can_save: bool = False,
    ) -> None:
        self._wishes = wishes or Wishes()
        self._can_save = can_save
        self._hyperparameters = hyperparameters
        self._device = device
        self._inline_tuning = inline_tuning
        self._default_config = default_config
        self._configuration: Configuration | None = None
        self._refused: InreconError | None = None
        self._header: bytes | None = None
        self._accumulator: Accumulator | None = None
        self._settled = False
        self._progress = Progress()
        self._started = time.monotonic()
        self._news = News()
        self._images = 0
        self._failed = 0

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

        CLOSE without a header asks only whether the server is there: there is nothing to do.
        """
        if self._header is None or self._is_null:
            self._check_saving()
            return
        yield from self._settle()
        if self._accumulator is not None:
            yield from self._heard(self._accumulator.finish)

    def job(self, raw: RawFrame) -> Job:
        """The job that makes images of `raw`."""
        if self._configuration is None:
            raise RuntimeError("a frame before its configuration")
        return Job(
            raw=raw,
            request=self._configuration.request,
            progress=self._progress,
            hyperparameters=self._hyperparameters,
            device=self._device,
            inline_tuning=self._inline_tuning,
        )

    def take(self, result: JobResult) -> Iterator[Notice]:
        """Keep what the next job needs of `result`; gives what is worth telling."""
        self._progress = result.progress
        self._images += len(result.images)
        self._failed += not result.images
        for notice in result.notices:
            yield from self._news.of(notice)

    def summary(self) -> Iterator[Notice]:
        """What to say at the end of a scan."""
        if self._accumulator is None or not self._settled:
            return
        seconds = time.monotonic() - self._started
        failed = f", {self._failed} frames failed" if self._failed else ""
        text = f"{self._images} images in {seconds:.1f} s{failed}; {self._accumulator.summary()}"
        yield Notice(level="INFO", text=text)

    def tell(self, notice: Notice) -> Text | Error | None:
        """`notice` in the form that the peer understands; None if it must not be told."""
        if self._configuration is None or not self._configuration.from_gadgetron:
            return Text(f"{notice.level:<8}{notice.text}")
        # Gadgetron ends a scan when an external module sends it a text.
        return Error(notice.text) if notice.level == "ERROR" else None

    @property
    def request(self) -> Request | None:
        """What the client asks for, as far as it is known by now."""
        return None if self._configuration is None else self._configuration.request

    @property
    def saves_only(self) -> bool:
        """Whether the client wants its readouts kept, and nothing else."""
        return self._configuration is not None and self._configuration.saves_only

    @property
    def _is_null(self) -> bool:
        return self._configuration is not None and self._configuration.is_null

    def _configure(self, text: str) -> Iterator[Notice]:
        try:
            self._configuration = self._wishes.over(configure(text))
        except InreconError as error:
            if self._default_config is None:
                # Told when data comes: Gadgetron's client asks after noise with a chain of its own and then CLOSE, and
                # FIRE may name the configuration after the header.
                self._refused = error
                return
            self._configuration = self._wishes.over(configure(self._default_config))
            yield Notice(level="WARNING", text=f"{error}; {self._configuration.name!r} is used")
        yield from self._ignored(self._configuration)

    def _amend(self, text: str) -> Iterator[Notice]:
        if not text.lstrip().startswith("{"):
            log.info("a text of %d characters from the client has no meaning here", len(text))
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
        if self._header is not None and self._accumulator is None and not self._is_null:
            self._accumulator = Accumulator(parse_header(self._header))

    def _add(self, acquisition: Acquisition) -> Iterator[Step]:
        if self._is_null:
            self._check_saving()
            return
        yield from self._settle()
        if self._accumulator is not None:
            yield from self._heard(self._accumulator.add, acquisition)

    def _check_saving(self) -> None:
        if self.saves_only and self._header is not None and not self._can_save:
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
        yield from notices
        yield from frames

    def _settle(self) -> Iterator[Notice]:
        """Hold the sender to the configuration from now on."""
        if self._refused is not None:
            raise self._refused
        if self._settled or self._configuration is None:
            return
        self._settled = True
        request = self._configuration.request
        method = "by protocol" if request.method is None else repr(request.method)
        yield Notice(
            level="INFO",
            text=f"inrecon {__version__}, configuration {self._configuration.name}: method {method}, "
            f"preset {request.preset}, images {request.dtype}",
        )


def _answer(query: str) -> str:
    """What a client wants to know that may ask any server for its version."""
    match query:
        case "ismrmrd::version":
            return version("ismrmrd")
        case "gadgetron::version":
            return f"inrecon {__version__}"
        case "gadgetron::info":
            return f"inrecon {__version__}\nconfigurations: {', '.join(names())}\n"
    return "Unknown query"
