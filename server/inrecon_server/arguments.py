"""The arguments of the command `inrecon`: which there are, and what they may be."""

from __future__ import annotations

import argparse
import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from inrecon import __version__
from inrecon.frame import DTYPES, PRESETS

MISUSED = 2
"""Exit code where what was asked for cannot be done."""

_DEVICES = ("auto", "cpu", "cuda")


class _Parser(argparse.ArgumentParser):
    """argparse, with its errors in one line like all others."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISUSED, f"inrecon: {message} ('{self.prog} --help' says more)\n")


def build_parser(runs: Mapping[str, Callable[[argparse.Namespace], int]]) -> argparse.ArgumentParser:
    """The parser of the whole command; ``run`` of what it gives is the function of `runs` for the sub-command."""
    parser = _Parser(prog="inrecon", description="Online MRI reconstruction with scan-specific neural representations.")
    parser.add_argument("--version", action="version", version=f"inrecon {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_serve(commands.add_parser("serve", help="reconstruct what clients and scanners send over TCP"))
    _add_replay(commands.add_parser("replay", help="reconstruct a raw file without a server"))
    _add_stream(commands.add_parser("stream", help="reconstruct an MRD stream: stdin to stdout, pipes or files"))
    _add_send(commands.add_parser("send", help="send a raw file to a server and keep its images"))
    _add_tune(commands.add_parser("tune", help="find the hyperparameters of a protocol from raw scans of it"))
    _add_explain(commands.add_parser("explain", help="say which hyperparameter file a scan gets, and why"))
    _add_check(commands.add_parser("check", help="say what is wrong with hyperparameter files"))
    _add_demo(commands.add_parser("demo", help="simulate a scan and compare methods through a server"))
    _add_bench(commands.add_parser("bench", help="compare methods on many scans (from a source checkout)"))
    commands.add_parser("doctor", help="show versions, devices and files that were found")
    for name, command in commands.choices.items():
        command.set_defaults(run=runs[name])
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    """Options without defaults of their own: where one is not given, the environment or a file may say it."""
    parser.add_argument("-H", "--host", help="address to listen on (127.0.0.1)")
    parser.add_argument("-p", "--port", type=_port, help="port, 0 for any free one (9002)")
    parser.add_argument("--http-port", type=_port, help="where metrics and health are told, on this machine (9003)")
    parser.add_argument(
        "--igtl-port", type=_port, help="where 3D Slicer gets the images of live streams, on this machine (nowhere)"
    )
    parser.add_argument(
        "-d",
        "--defaultConfig",
        metavar="NAME",
        dest="default_config",
        help="runs where a client names a configuration that does not exist",
    )
    _add_hyperparameters(parser)
    parser.add_argument("--device", choices=_DEVICES, help="where to compute (auto)")
    parser.add_argument(
        "--tune-seconds",
        type=_seconds,
        metavar="SECONDS",
        help="search so long on a scan of a protocol that no hyperparameter file is about; needs --candidates",
    )
    parser.add_argument(
        "--candidates",
        type=_folder,
        metavar="DIR",
        help="where that is kept, for a person to look at",
    )
    parser.add_argument(
        "--state",
        type=_folder,
        metavar="DIR",
        dest="state_folder",
        help="keep the noise of noise scans there, so that a restart does not lose it",
    )
    parser.add_argument(
        "-s", "--savedata", action="store_true", default=None, help="keep every session as a raw file, in the folder:"
    )
    parser.add_argument(
        "-S",
        "--savedataFolder",
        type=_folder,
        metavar="DIR",
        dest="savedata_folder",
        help="where sessions are kept; without -s those whose clients ask for it",
    )
    parser.add_argument("-v", "--verbose", action="store_true", default=None, help="log more")
    parser.add_argument(
        "-l", "--logfile", type=Path, metavar="FILE", dest="log_file", help="log to the end of FILE instead of stderr"
    )
    parser.add_argument(
        "--settings",
        type=Path,
        metavar="FILE.yaml",
        help="read these settings, and more, from a file; options and environment (INRECON_PORT=...) come before it",
    )


def _add_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("raw", type=Path, nargs="+", metavar="RAW.h5", help="ISMRMRD raw files")
    _add_group(parser)
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT.h5",
        help="where the images go; of several files, or ending in /, a folder, as are --png, --report and --video then",
    )
    _add_request(parser, otherwise="the one recorded in the file, or inr")
    _add_machine(parser)
    _add_tasks(parser, what="raw files at a time")
    parser.add_argument("--png", type=Path, metavar="DIR", help="write each image as PNG, too")
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="write what was done to each image")
    parser.add_argument(
        "--video",
        type=Path,
        metavar="FILE.gif|.mp4",
        help="write repetitions as a video, too; where the images go to a folder, a folder of GIFs",
    )
    parser.add_argument(
        "--fps", type=_rate, metavar="N", help="its frames a second (those of the scan, if they are known; 10)"
    )
    parser.add_argument("--counter", action="store_true", help="write the repetition below its frames")


def _add_stream(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", "--input", type=Path, metavar="PATH", help="file or named pipe to read (stdin)")
    parser.add_argument("-o", "--output", type=Path, metavar="PATH", help="file or named pipe to write (stdout)")
    _add_request(parser, otherwise="inr; what the stream itself carries comes before it")
    _add_machine(parser)


def _add_send(parser: argparse.ArgumentParser) -> None:
    _add_raw(parser)
    parser.add_argument("-a", "--address", default="127.0.0.1", metavar="HOST", help="the server's (%(default)s)")
    parser.add_argument("-p", "--port", type=_port, default=9002, help="the server's (%(default)s)")
    parser.add_argument(
        "--tls-ca", type=Path, metavar="FILE.pem", help="by TLS, trusting this authority's certificates"
    )
    parser.add_argument("--tls-certificate", type=Path, metavar="FILE.pem", help="shown to a server that wants one")
    parser.add_argument("--tls-key", type=Path, metavar="FILE.pem", help="its key, if that is in a file of its own")
    parser.add_argument("-c", "--config", default="inr", help="name or text of a configuration (%(default)s)")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.h5", help="where the images go, if there are any")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=600.0,
        metavar="SECONDS",
        help="how long the server may be silent once it has everything (%(default)g)",
    )


def _add_explain(parser: argparse.ArgumentParser) -> None:
    _add_raw(parser)
    _add_request(parser, otherwise="the one recorded in the file, or inr")
    _add_hyperparameters(parser)


def _add_tune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("raw", type=Path, nargs="+", metavar="RAW.h5", help="ISMRMRD raw files of one protocol")
    _add_group(parser)
    purpose = parser.add_mutually_exclusive_group(required=True)
    purpose.add_argument("-o", "--output", type=Path, metavar="PROTOCOL.yaml", help="the hyperparameter file to write")
    purpose.add_argument(
        "--verify", action="store_true", help="search shortly, and say whether the file that the scans have still holds"
    )
    parser.add_argument("--method", metavar="NAME", help="method to tune (that of the entry which the scan has now)")
    parser.add_argument("--trials", type=_count, metavar="N", help="candidates in all (60; 15 to verify)")
    parser.add_argument("--sampler", metavar="NAME", help="gp_ucb (default), gp, tpe, quasi_random or random")
    parser.add_argument("--whole", action="store_true", help="fit every candidate to the end instead of dropping some")
    parser.add_argument(
        "--folds", type=_count, default=1, metavar="N", help="choices of what is held out (%(default)s)"
    )
    parser.add_argument("--slices", type=_count, default=3, metavar="N", help="frames used, at most (%(default)s)")
    parser.add_argument("--oracle", type=Path, metavar="FULL.h5", help="the same frames fully sampled: judge by these")
    parser.add_argument("--storage", metavar="URL", help="where the study is kept (a file beside the output)")
    parser.add_argument("--study", metavar="NAME", help="its name there (that of the output)")
    _add_tasks(parser, what="processes that fit")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampler (%(default)s)")
    _add_machine(parser)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=_folder, nargs="?", metavar="DIR", help="default: the files of inrecon itself")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("raw", type=Path, nargs="?", metavar="RAW.h5", help="default: a simulated scan")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--preset", choices=PRESETS, default="standard", help="how much time to spend (%(default)s)")
    parser.add_argument("--imri", action="store_true", help="an interventional stream at the pace of its acquisition")
    parser.add_argument("--frames", type=_count, default=20, metavar="N", help="of --imri (%(default)s)")
    parser.add_argument("--rate", type=float, default=1.0, metavar="HZ", help="frames a second of --imri (%(default)g)")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", choices=("quality", "tuning", "live"), help="which benchmark")
    parser.add_argument(
        "rest",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="its own arguments; 'inrecon bench SUITE --help' lists them",
    )


def _add_raw(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("raw", type=Path, metavar="RAW.h5", help="ISMRMRD raw file")
    _add_group(parser)


def _add_group(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-g", "--group", default="dataset", help="HDF5 group of the raw data (%(default)s)")


def _add_tasks(parser: argparse.ArgumentParser, *, what: str) -> None:
    parser.add_argument(
        "-j", "--jobs", type=_count, metavar="N", help=f"{what} (1; on a Ray cluster as many as it has cores or GPUs)"
    )
    parser.add_argument("--ray", metavar="ADDRESS", help="on the Ray cluster there ('auto': the one of this machine)")


def _add_request(parser: argparse.ArgumentParser, *, otherwise: str) -> None:
    """`otherwise`: which configuration there is without the option."""
    parser.add_argument("-c", "--config", help=f"name or text of a configuration ({otherwise})")
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


def _add_hyperparameters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hyperparameters",
        type=_folder,
        metavar="DIR",
        help="folder of hyperparameter files (those of inrecon itself)",
    )


def _add_machine(parser: argparse.ArgumentParser) -> None:
    _add_hyperparameters(parser)
    parser.add_argument("--device", choices=_DEVICES, default="auto", help="where to compute (%(default)s)")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text!r}")
    return seconds


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0.1 <= rate <= 100:
        raise argparse.ArgumentTypeError(f"must be a number from 0.1 to 100, not {text!r}")
    return rate


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}")
    return int(text)


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
