"""The command `inrecon`. What needs torch or draws is imported by the sub-command that needs it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from inrecon.errors import InreconError
from inrecon_server.arguments import MISUSED, build_parser

if TYPE_CHECKING:
    from inrecon.hyperparams import Entry, HyperparameterFiles
    from inrecon.tuning import Plan, Scans
    from inrecon_server.batch import Done, FileJob
    from inrecon_server.config import Wishes

log = logging.getLogger(__name__)

_FAILED, _INTERRUPTED = 1, 130
_OF_A_STUDY = ("sampler", "storage", "study", "jobs", "ray")


class Failed(InreconError):
    """What was asked for was tried, and did not succeed, or not wholly."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command and give the exit code.

    0: done; 1: the scan, the server or the files asked about have failed; 2: what was asked for cannot be done (no such
    file, no such method, output not writable); 130: interrupted. All but 0 come with a line on stderr.
    """
    # OpenMP's idle threads spin by default, which on a busy machine costs more than the work itself.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = build_parser(_COMMANDS).parse_args(arguments)
    try:
        code: int = options.run(options)
    except KeyboardInterrupt:
        return _complain("interrupted", _INTERRUPTED)
    except Failed as error:
        return _complain(str(error), _FAILED)
    except InreconError as error:
        return _complain(str(error), MISUSED)
    except OSError as error:
        from inrecon_server.files import words

        return _complain(words(error), MISUSED)
    return code


def _complain(text: str, code: int) -> int:
    sys.stderr.write(f"inrecon: {text}\n")
    return code


def _warn(text: str) -> None:
    sys.stderr.write(f"inrecon: warning: {text}\n")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _serve(options: argparse.Namespace) -> int:
    from inrecon_server.logs import log_to_stderr
    from inrecon_server.server import serve
    from inrecon_server.settings import resolve

    resolved = resolve({name: value for name, value in vars(options).items() if name != "run"}, os.environ)
    settings = resolved.settings
    if settings.candidates is not None:
        _check_candidates(settings.candidates, used=settings.hyperparameters)
    for folder in filter(None, (settings.candidates, settings.state_folder, settings.savedata_folder)):
        TemporaryFile(dir=folder).close()  # what cannot be written is told now rather than when something is lost
    with _stderr_to(settings.log_file):
        log_to_stderr("DEBUG" if settings.verbose else "INFO", settings.log_format)

        def listening(host: str, port: int) -> None:
            log.info("settings: %s", ", ".join(resolved.lines()))
            _say(f"listening on {host}:{port}")

        try:
            serve(settings, on_listening=listening)
        except OSError as error:
            raise InreconError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from error
    return 0


def _check_candidates(folder: Path, *, used: Path | None) -> None:
    if find_spec("optuna") is None:
        raise InreconError("tuning needs the package optuna: pip install 'inrecon[tune]'")
    from inrecon.hyperparams.snapshot import shipped_folder

    if folder.resolve().is_relative_to((used or shipped_folder()).resolve()):
        raise InreconError(f"candidates in {folder} would be used unseen: it is inside of {used or shipped_folder()}")


@contextmanager
def _stderr_to(path: Path | None) -> Iterator[None]:
    """Send stderr to the end of a file: that of the worker process, too, which inherits it."""
    if path is None:
        yield
        return
    with path.open("a", encoding="utf-8") as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _replay(options: argparse.Namespace) -> int:
    from inrecon_server.batch import FileJob, NoImage, places, reconstruct_file

    if options.video is None and (options.fps or options.counter):
        raise InreconError("--fps and --counter are of a --video")
    wishes, elsewhere = _wishes(options), options.ray is not None
    _check_config(options.config, wishes)
    jobs = [
        FileJob(
            place,
            group=options.group,
            config=options.config,
            wishes=wishes,
            hyperparameters=options.hyperparameters and options.hyperparameters.resolve(),
            device=options.device,
            fps=options.fps,
            counter=options.counter,
        )
        for place in places(
            options.raw, options.output, options.report, options.png, options.video, elsewhere=elsewhere
        )
    ]
    if len(jobs) > 1 or options.ray:
        return _replay_many(options, jobs)
    try:
        done = reconstruct_file(jobs[0])
    except NoImage as error:
        raise Failed(str(error)) from error
    _tell(done, preset=options.preset)
    if done.problem:
        raise Failed(done.problem)
    return 0


def _stream(options: argparse.Namespace) -> int:
    from inrecon_server.notices import Notice
    from inrecon_server.streamed import opened, reconstruct_stream

    def tell(notice: Notice) -> None:
        sys.stderr.write(f"inrecon: {notice.level.lower()}: {notice.text}\n")

    wishes = _wishes(options)
    _check_config(options.config, wishes)
    with opened(options.input, options.output) as (source, sink):
        try:
            problem = reconstruct_stream(
                source,
                sink,
                config=options.config,
                wishes=wishes,
                hyperparameters=options.hyperparameters,
                device=options.device,
                tell=tell,
            )
        except BrokenPipeError as error:
            raise Failed("whoever reads the images has gone") from error
    if problem:
        raise Failed(problem)
    return 0


def _tell(done: Done, *, preset: str | None, name: str = "") -> None:
    """What became of a raw file, its `name` before each line."""
    if preset:
        for method in done.without_preset:
            _warn(f"{name}preset {preset!r} has no values for method {method!r}")
    _say(f"{name}{done.summary}")


def _replay_many(options: argparse.Namespace, jobs: Sequence[FileJob]) -> int:
    """Many files at a time, each with its own outputs in the folders that were given; one that fails stops no other."""
    from inrecon_server.batch import reconstruct_files
    from inrecon_server.tasks import tasks_on

    failed = 0
    for job, ended in reconstruct_files(jobs, tasks_on(options.ray, size=options.jobs, device=options.device)):
        raw, done = job.place.raw, ended.answer
        if done is not None:
            for text in done.told:
                sys.stderr.write(f"inrecon: {raw}: {text}\n")
            _tell(done, preset=options.preset, name=f"{raw}: ")
        if problem := ended.problem or done.problem:
            failed += 1
            _complain(f"{raw}: {problem}", _FAILED)
    if failed:
        raise Failed(f"{failed} of {len(jobs)} files failed, or not all of their images could be made")
    return 0


def _wishes(options: argparse.Namespace) -> Wishes:
    """What the command line sets over the configuration."""
    from inrecon_server.config import Wishes

    return Wishes(method=options.method, preset=options.preset, dtype=options.dtype, overrides=dict(options.settings))


def _check_config(config: str | None, wishes: Wishes) -> None:
    """Tell now what is wrong with a configuration that was given; raises `ConfigError`."""
    from inrecon_server.config import configure, requested

    if config is not None:
        requested(config, wishes)
        if ignored := configure(config).ignored:
            _warn(f"unknown parameters are ignored: {', '.join(ignored)}")


def _send(options: argparse.Namespace) -> int:
    from inrecon_server.client import ConnectionFailedError, send
    from inrecon_server.config import makes_images
    from inrecon_server.door import client_tls
    from inrecon_server.files import open_raw, replacing, write_images
    from inrecon_server.protocol import Message, Text

    def hear(message: Message) -> None:
        if isinstance(message, Text):
            _say(message.text)

    if options.tls_ca is None and (options.tls_certificate or options.tls_key):
        raise InreconError("--tls-certificate and --tls-key need --tls-ca")
    tls = options.tls_ca and client_tls(options.tls_ca, options.tls_certificate, options.tls_key)
    wanted = makes_images(options.config)
    if (options.output is not None) != wanted:
        raise InreconError("images need an --output" if wanted else f"{options.config} makes no images for --output")
    place = replacing(options.output, source=options.raw) if wanted else nullcontext()
    with open_raw(options.raw, group=options.group) as raw, place as images:
        try:
            result = send(
                raw.header,
                raw.acquisitions(),
                host=options.address,
                port=options.port,
                config=options.config,
                timeout_s=options.timeout,
                tls=tls,
                on_answer=hear,
            )
        except ConnectionFailedError as error:
            raise Failed(str(error)) from error
        if images is not None:
            if not result.images:
                raise Failed("the server sent no image" + (f": {result.problem}" if result.problem else ""))
            write_images(images, result.images)
    asked = options.output or "what was asked for"
    if result.problem:
        raise Failed(f"{asked} may not be complete: {result.problem}")
    if any(text.startswith("ERROR") for text in result.texts):
        raise Failed(f"{asked} may not be complete: the server told of an error")
    return 0


def _tune(options: argparse.Namespace) -> int:
    try:
        from inrecon_server.tasks import tasks_on
        from inrecon_server.tune import Data, Search, open_study, search_with
        from inrecon_server.tuned import current_values, fixed_values, write_results
    except ModuleNotFoundError as error:
        raise InreconError(f"tuning needs the package {error.name}: pip install 'inrecon[tune]'") from error
    from inrecon.hyperparams import HyperparameterFiles
    from inrecon.tuning import RUNGS, Plan

    if options.verify and (given := [name for name in _OF_A_STUDY if getattr(options, name) is not None]):
        raise InreconError(f"--verify searches shortly and here: it takes no --{given[0]}")
    output: Path | None = options.output and options.output.resolve()
    if output is not None and not output.parent.is_dir():
        raise InreconError(f"there is no folder {output.parent}")
    data = Data(
        files=tuple(path.resolve() for path in options.raw),
        group=options.group,
        oracle=options.oracle and options.oracle.resolve(),
        device=options.device,
        folds=options.folds,
        slices=options.slices,
    )
    files = HyperparameterFiles.load(options.hyperparameters)
    scans = data.load()
    entry = files.look_up(scans.protocol)
    method = options.method or entry.method
    plan = Plan(
        method=method,
        trials=options.trials or (60 if output else 15),
        rungs=RUNGS[-1:] if options.whole else RUNGS,
        fixed=fixed_values(entry, method),
    )
    if output is None:
        return _verify(scans, plan, entry=entry, files=files, seed=options.seed)
    search = Search(
        data=data,
        plan=plan,
        storage=options.storage or f"sqlite:///{output.with_suffix('.db')}",
        study=options.study or output.stem,
        sampler=options.sampler or "gp_ucb",
        seed=options.seed,
    )
    alone = options.ray is None and options.jobs in (None, 1)
    tasks = None if alone else tasks_on(options.ray, size=options.jobs, device=options.device)
    study = open_study(search, sha256=scans.sha256, candidates=current_values(files, method))
    try:
        search_with(search, study, scans, tasks=tasks)
    except KeyboardInterrupt:
        kept = len(study.get_trials(deepcopy=False))
        _warn(f"{kept} trials are kept in {search.storage}; the same command goes on with them")
        raise
    folder = options.hyperparameters
    for line in write_results(search, study, scans, entry=entry, files=files, output=output, folder=folder):
        _say(line)
    return 0


def _verify(scans: Scans, plan: Plan, *, entry: Entry, files: HyperparameterFiles, seed: int) -> int:
    """Whether `entry` is as good on `scans` as others are."""
    from inrecon.methods.method import related
    from inrecon.tuning import verify
    from inrecon_server.tuned import current_values

    if not related(plan.method, entry.method):
        raise InreconError(f"{entry.name} says nothing of the method {plan.method!r}")
    candidates = current_values(files, plan.method, first=entry)
    verified = verify(scans, plan, name=entry.name, candidates=candidates, seed=seed)
    for line in verified.lines():
        _say(line)
    if not verified.holds:
        told = f"clearly better would be {', '.join(verified.better)}" if verified.better else "nothing can be fitted"
        raise Failed(f"{entry.name} does not hold for this scan: {told}")
    _say(f"{entry.name} holds for this scan")
    return 0


def _explain(options: argparse.Namespace) -> int:
    from inrecon.acquire import raw_frames
    from inrecon.hyperparams import HyperparameterFiles, explain
    from inrecon_server.batch import request_for
    from inrecon_server.files import open_raw

    wishes = _wishes(options)
    _check_config(options.config, wishes)
    files = HyperparameterFiles.load(options.hyperparameters)
    with open_raw(options.raw, group=options.group) as raw:
        request, notices = request_for(raw, options.config, wishes)
        protocols = dict.fromkeys(frame.protocol for frame in raw_frames(raw.header, raw.acquisitions()))
    if not protocols:
        raise Failed(f"{options.raw} holds no frame")
    for notice in notices:
        _say(notice.text)
    for protocol in protocols:
        for line in explain(protocol, files, request).lines():
            _say(line)
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
    from inrecon_server.imri_demo import imri_demo

    if options.imri and options.raw is not None:
        raise InreconError("--imri simulates its stream: it takes no raw file")
    if not 0 < options.rate < 1e4 or options.frames < 2:
        raise InreconError("--imri needs at least 2 frames, and a rate above 0")
    try:
        if options.imri:
            imri_demo(options.output, frames=options.frames, rate=options.rate, preset=options.preset)
        else:
            demo(options.output, raw=options.raw, preset=options.preset)
    except DemoFailed as error:
        raise Failed(str(error)) from error
    return 0


def _bench(options: argparse.Namespace) -> int:
    benchmarks = Path(__file__).parents[2] / "tests" / "benchmarks"
    if not (benchmarks / options.suite).is_dir():
        raise InreconError("benchmarks run from a source checkout; an installed inrecon does not bring them")
    sys.path.insert(0, str(benchmarks))
    code: int = import_module(f"{options.suite}.main").main(options.rest)
    return code


def _doctor(_: argparse.Namespace) -> int:
    from inrecon_server.doctor import findings

    for name, finding in findings():
        _say(f"{name:<16} {finding}")
    return 0


_COMMANDS = {
    "serve": _serve,
    "replay": _replay,
    "stream": _stream,
    "send": _send,
    "tune": _tune,
    "explain": _explain,
    "check": _check,
    "demo": _demo,
    "bench": _bench,
    "doctor": _doctor,
}

if __name__ == "__main__":
    sys.exit(main())
