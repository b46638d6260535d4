"""What the server is told to do: by a YAML file, the environment and options, the later over the earlier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    DirectoryPath,
    Field,
    FilePath,
    HttpUrl,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.networks import IPvAnyNetwork

from inrecon.errors import InreconError, first_line
from inrecon.registry import did_you_mean
from inrecon_server.logs import LogFormat

ENVIRONMENT = "INRECON_"
"""The setting `port` is the environment variable ``INRECON_PORT``; several values have commas between them."""
STORAGE = "GADGETRON_STORAGE_ADDRESS"
"""What Gadgetron calls the setting `storage_address`; empty where it has none."""
FILE = "settings"
"""The name under which option and environment give the YAML file."""


class InvalidSettings(InreconError):
    """A setting that does not exist, or a value that it cannot have."""


def _parts(value: object) -> object:
    """What stands between the commas of a text."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class ServerSettings(BaseModel):
    """How to serve; fields are in the order in which a person would ask for them.

    `port` 0 is any free one, and so is `http_port`, where metrics and health are told. `workers` processes
    reconstruct, each with a GPU of its own where there are as many; one of which nothing is heard at a frame for
    `hang_s` is ended and replaced. Frames of real-time streams have `realtime_workers` processes of their own, started
    when the first such stream comes, and scans at work at the same device stand still meanwhile (0: these frames wait
    for their turn, too). `hyperparameters` is a folder of files (None: the shipped ones), read anew for each
    scan. `default_config` runs where a client names a configuration that does not exist; without it, such a client is
    refused. `deadline_s` is for scans that ask for none. A scan of a protocol that no hyperparameter file is about is
    searched on for `tune_seconds`, and what is found kept in `candidates`. The noise of a scan is kept `state_hours`
    long for later ones: in memory, in `state_folder`, where a restart does not lose it, and by Gadgetron's storage
    server at `storage_address`. Priors of interventional streams are kept as long, in memory only.

    With `savedata` every session is kept as a raw file in `savedata_folder`; without it, those whose clients ask for
    ``savedataonly``. Such files are deleted after `savedata_days`, and the oldest of them where they are more than
    `savedata_gib` together (None: never).

    3D Slicer and other clients of OpenIGTLink get the images of live streams at `igtl_port` (None: nowhere).

    Clients may come from the networks in `allow` (all, if there is none), by TLS with `tls_certificate` and `tls_key`
    (PEM), showing certificates of the authority in `tls_clients`. There are at most `max_connections`; the readouts of
    all that wait for the end of their frames take `memory_gib` at most (half of the machine's memory), what one of them
    sends `scan_gib` and `scan_s`. A client that neither sends nor takes anything for `idle_s` is let go. Scans at work
    when the server is told to stop have `shutdown_grace_s` to end.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=9002, ge=0, le=65535)
    http_host: str = "127.0.0.1"
    http_port: int = Field(default=9003, ge=0, le=65535)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int = Field(default=1, ge=1, le=64)
    realtime_workers: int = Field(default=1, ge=0, le=64)
    hang_s: float = Field(default=300.0, gt=0, le=1e6)
    hyperparameters: DirectoryPath | None = None
    default_config: str | None = None
    deadline_s: float | None = Field(default=None, gt=0, le=86400)
    tune_seconds: float | None = Field(default=None, gt=0, le=86400)
    candidates: DirectoryPath | None = None
    state_folder: DirectoryPath | None = None
    state_hours: float = Field(default=48.0, gt=0, le=1e5)
    storage_address: HttpUrl | None = None
    allow: Annotated[tuple[IPvAnyNetwork, ...], BeforeValidator(_parts)] = ()
    tls_certificate: FilePath | None = None
    tls_key: FilePath | None = None
    tls_clients: FilePath | None = None
    savedata: bool = False
    savedata_folder: DirectoryPath | None = None
    savedata_days: float | None = Field(default=None, gt=0, le=1e6)
    savedata_gib: float | None = Field(default=None, gt=0, le=1e9)
    igtl_host: str = "127.0.0.1"
    igtl_port: int | None = Field(default=None, ge=0, le=65535)
    max_connections: int = Field(default=16, ge=1, le=10_000)
    memory_gib: float | None = Field(default=None, gt=0, le=1e6)
    scan_gib: float = Field(default=1024.0, gt=0, le=1e9)
    scan_s: float = Field(default=86_400.0, gt=0, le=1e9)
    idle_s: float = Field(default=600.0, gt=0, le=1e6)
    shutdown_grace_s: float = Field(default=30.0, ge=0, le=1e6)
    log_file: Path | None = None
    log_format: LogFormat = "text"
    verbose: bool = False

    @field_validator("storage_address")
    @classmethod
    def _no_more_than_an_address(cls, address: HttpUrl | None) -> HttpUrl | None:
        if address is not None and (address.username or address.password or address.query or address.fragment):
            raise ValueError("must be http(s)://host[:port][/path] and no more")
        return address

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.tune_seconds is None) != (self.candidates is None):
            raise ValueError("tune_seconds and candidates go together")
        if self.tls_certificate is None and (self.tls_key or self.tls_clients):
            raise ValueError("tls_key and tls_clients need a tls_certificate")
        if self.savedata_folder is None and (self.savedata or self.savedata_days or self.savedata_gib):
            raise ValueError("savedata, savedata_days and savedata_gib need savedata_folder")
        return self


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """Settings, and for those that were given, where: ``settings file``, ``environment`` or ``option``."""

    settings: ServerSettings
    sources: Mapping[str, str]

    def lines(self) -> list[str]:
        """Every setting with its value and source."""
        return [f"{name} = {value} ({self.sources.get(name, 'default')})" for name, value in self.settings]


def resolve(options: Mapping[str, Any], environment: Mapping[str, str]) -> Resolved:
    """The settings from `options` of the command (None where not given), `environment`, and the file that one of them
    names; raises `InvalidSettings`, and OSError for a file that cannot be read."""
    told = {name: value for name, value in options.items() if value is not None}
    variables: dict[str, Any] = {
        name.removeprefix(ENVIRONMENT).lower(): value
        for name, value in environment.items()
        if name.startswith(ENVIRONMENT)
    }
    if environment.get(STORAGE):
        variables.setdefault("storage_address", environment[STORAGE])
    file = told.pop(FILE, variables.pop(FILE, None))
    told_by = {"settings file": {} if file is None else _read(Path(file)), "environment": variables, "option": told}
    sources = {name: source for source, values in told_by.items() for name in values}
    values = {name: value for given in told_by.values() for name, value in given.items()}
    try:
        return Resolved(settings=ServerSettings.model_validate(values), sources=sources)
    except ValidationError as error:
        raise InvalidSettings("; ".join(_in_words(dict(problem), sources) for problem in error.errors())) from error


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidSettings(f"{file} is not text in UTF-8") from error
    content = _plain(text, str(file))
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InvalidSettings(f"{file} must hold lines of `setting: value`")
    return content


def _plain(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidSettings(f"{where} is not valid YAML: {first_line(error)}") from error


def _in_words(problem: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        hint = did_you_mean(name, sorted(ServerSettings.model_fields))
        return f"there is no setting {name!r} ({sources.get(name, '')}){': ' + hint.rstrip(' :;') if hint else ''}"
    text = str(problem["msg"]).removeprefix("Value error, ")
    if not name:
        return text
    top = str(problem["loc"][0])
    text = text if text.startswith("URL") else f"{text[0].lower()}{text[1:]}"
    return f"{name} ({sources.get(top, 'default')}): {text}, not {problem['input']!r}"
