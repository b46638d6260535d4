"""The command `inrecon`. What needs torch or draws is imported by the sub-command that needs it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from inrecon import __version__
from inrecon.errors import InreconError
from inrecon.frame import DTYPES, PRESETS, Request

_DEVICES = ("auto", "cpu", "cuda")
_FAILED, _MISUSED, _INTERRUPTED = 1, 2, 130


class Failed(InreconError):
    """What was asked for was tried, and did not succeed, or not wholly."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command and give the exit code.

    0: done; 1: the scan, the server or the files asked about have failed; 2: what was asked for cannot be done (no such
    file, no such method, output not writable); 130: interrupted. All but 0 come with a line on stderr.
    """
    # OpenMP's idle threads spin by default, which on a busy machine costs more than the work itself.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except KeyboardInterrupt:
        return _complain("interrupted", _INTERRUPTED)
    except Failed as error:
        return _complain(str(error), _FAILED)
    except InreconError as error:
        return _complain(str(error), _MISUSED)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return _complain(f"{error.strerror or error}{where}", _MISUSED)
    return code


def _complain(text: str, code: int) -> int:
    sys.stderr.write(f"inrecon: {text}\n")
    return code


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class _Parser(argparse.ArgumentParser):
    """argparse, with its errors in one line like all others."""

    def error(self, message: str) -> NoReturn:
        self.exit(_MISUSED, f"inrecon: {message} ('{self.prog} --help' says more)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="inrecon", description="Online MRI reconstruction with scan-specific neural representations.")
    parser.add_argument("--version", action="version", version=f"inrecon {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_serve(commands.add_parser("serve", help="reconstruct what clients and scanners send over TCP"))
    _add_replay(commands.add_parser("replay", help="reconstruct a raw file without a server"))
    _add_send(commands.add_parser("send", help="send a raw file to a server and keep its images"))
    _add_check(commands.add_parser("check", help="say what is wrong with hyperparameter files"))
    _add_demo(commands.add_parser("demo", help="simulate a scan and compare methods through a server"))
    doctor = commands.add_parser("doctor", help="show versions, devices and files that were found")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-H", "--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("-p", "--port", type=_port, default=9002, help="port, 0 for any free one (%(default)s)")
    parser.add_argument(
        "-d", "--defaultConfig", metavar="NAME", help="runs where a client names a configuration that does not exist"
    )
    _add_machine(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    parser.add_argument("-l", "--logfile", type=Path, metavar="FILE", help="log to the end of FILE instead of stderr")
    parser.set_defaults(run=_serve)


def _add_replay(parser: argparse.ArgumentParser) -> None:
    _add_raw(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.h5", help="where the images go")
    parser.add_argument("-c", "--config", default="inr", help="name or text of a configuration (%(default)s)")
    parser.add_argument("--method", metavar="NAME", help="method to use instead of the configuration's")
    parser.add_argument("--preset", choices=PRESETS, help="how much time to spend")
    parser.add_argument(
        "--set",
        action="append",
        type=_setting,
        default=[],
        metavar="FIELD=VALUE",
        dest="settings",
        help="set a field of the method; may be repeated",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="type of the images")
    _add_machine(parser)
    parser.add_argument("--png", type=Path, metavar="DIR", help="write each image as PNG, too")
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="write what was done to each image")
    parser.set_defaults(run=_replay)


def _add_send(parser: argparse.ArgumentParser) -> None:
    _add_raw(parser)
    parser.add_argument("-a", "--address", default="127.0.0.1", metavar="HOST", help="the server's (%(default)s)")
    parser.add_argument("-p", "--port", type=_port, default=9002, help="the server's (%(default)s)")
    parser.add_argument("-c", "--config", default="inr", help="name or text of a configuration (%(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.h5", help="where the images go")
    parser.set_defaults(run=_send)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=_folder, nargs="?", metavar="DIR", help="default: the files of inrecon itself")
    parser.set_defaults(run=_check)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("raw", type=Path, nargs="?", metavar="RAW.h5", help="default: a simulated scan")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--preset", choices=PRESETS, default="standard", help="how much time to spend (%(default)s)")
    parser.set_defaults(run=_demo)


def _add_raw(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("raw", type=Path, metavar="RAW.h5", help="ISMRMRD raw file")
    parser.add_argument("-g", "--group", default="dataset", help="HDF5 group of the raw data (%(default)s)")


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hyperparameters",
        type=_folder,
        metavar="DIR",
        help="folder of hyperparameter files (those of inrecon itself)",
    )
    parser.add_argument("--device", choices=_DEVICES, default="auto", help="where to compute (%(default)s)")


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text!r}")
    return int(text)


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return Path(text)


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name.strip() and equals and value.strip()):
        raise argparse.ArgumentTypeError(f"must be field=value, as in iterations=200, not {text!r}")
    return name.strip(), value.strip()


def _serve(options: argparse.Namespace) -> int:
    from inrecon_server.server import ServerSettings, serve

    settings = ServerSettings(
        host=options.host,
        port=options.port,
        device=options.device,
        hyperparameters=options.hyperparameters,
        default_config=options.defaultConfig,
    )
    with _stderr_to(options.logfile):
        logging.basicConfig(
            level="DEBUG" if options.verbose else "INFO", format="%(asctime)s %(levelname)-8s %(name)s: %(message)s"
        )
        try:
            serve(settings, on_listening=lambda host, port: _say(f"listening on {host}:{port}"))
        except OSError as error:
            raise InreconError(f"cannot listen on {options.host}:{options.port}: {error.strerror}") from error
    return 0


@contextmanager
def _stderr_to(path: Path | None) -> Iterator[None]:
    """Send stderr to the end of a file: that of the worker process, too, which inherits it."""
    if path is None:
        yield
        return
    with path.open("a", encoding="utf-8") as log:
        saved = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _replay(options: argparse.Namespace) -> int:
    from inrecon_server.files import open_raw, replacing, write_images, write_pngs

    request = _request(options)
    with open_raw(options.raw, group=options.group) as raw, ExitStack() as outputs:
        images = outputs.enter_context(replacing(options.output, source=options.raw))
        report = options.report and outputs.enter_context(replacing(options.report, source=options.raw))
        if options.png:
            options.png.mkdir(parents=True, exist_ok=True)

        from inrecon_server.replay import replay, write_report

        outcome = replay(raw, request=request, hyperparameters=options.hyperparameters, device=options.device)
        if not outcome.images:
            raise Failed(f"no image: {outcome.problem or outcome.summary}")
        write_images(images, outcome.images)
        if report:
            write_report(report, outcome.reports)
        if options.png:
            write_pngs(options.png, outcome.images)
    _say(outcome.summary)
    if outcome.problem:
        raise Failed(f"{options.output} is not complete: {outcome.problem}")
    return 0


def _request(options: argparse.Namespace) -> Request:
    """What the configuration asks for, with what the command line sets over it."""
    from inrecon_server.config import ConfigError, configure

    configuration = configure(options.config)
    if configuration.is_null and options.method is None:
        raise ConfigError(f"the configuration {configuration.name!r} makes no images")
    if configuration.ignored:
        sys.stderr.write(f"inrecon: warning: unknown parameters are ignored: {', '.join(configuration.ignored)}\n")
    given: Mapping[str, Any] = {
        name: value for name in ("method", "preset", "dtype") if (value := getattr(options, name)) is not None
    }
    overrides = {**configuration.request.overrides, **dict(options.settings)}
    return replace(configuration.request, **given, overrides=overrides)


def _send(options: argparse.Namespace) -> int:
    from inrecon_server.client import ConnectionFailedError, send
    from inrecon_server.files import open_raw, replacing, write_images
    from inrecon_server.protocol import Message, ProtocolError, Text

    def hear(message: Message) -> None:
        if isinstance(message, Text):
            _say(message.text)

    with open_raw(options.raw, group=options.group) as raw, replacing(options.output, source=options.raw) as images:
        try:
            result = send(
                raw.header,
                raw.acquisitions(),
                host=options.address,
                port=options.port,
                config=options.config,
                on_answer=hear,
            )
        except (ConnectionFailedError, ProtocolError) as error:
            raise Failed(str(error)) from error
        if not result.images:
            raise Failed("the server sent no image" + ("" if result.closed else ", and no CLOSE"))
        write_images(images, result.images)
    if not result.closed:
        raise Failed(f"{options.output} may not be complete: the server went away without CLOSE")
    if any(text.startswith("ERROR") for text in result.texts):
        raise Failed(f"{options.output} may not be complete: the server told of an error")
    return 0


def _check(options: argparse.Namespace) -> int:
    from inrecon.hyperparams import check

    findings = check(options.folder)
    for finding in findings:
        _say(str(finding))
    wrong = sum(finding.kind in ("error", "overlap") for finding in findings)
    if wrong:
        raise Failed(f"{wrong} of {len(findings)} findings must be put right")
    if not findings:
        _say("nothing to find fault with")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from inrecon_server.demo import DemoFailed, demo

    try:
        demo(options.output, raw=options.raw, preset=options.preset)
    except DemoFailed as error:
        raise Failed(str(error)) from error
    return 0


def _doctor(_: argparse.Namespace) -> int:
    from inrecon_server.doctor import findings

    for name, finding in findings():
        _say(f"{name:<16} {finding}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
