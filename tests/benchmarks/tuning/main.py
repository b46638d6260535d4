"""`inrecon bench tuning`: arguments, the three experiments, and where their results go."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from quality.cases import CASES, InvalidCases, chosen, load
from quality.facts import environment

from inrecon.errors import InreconError
from tuning import hypotheses, searches, workers
from tuning.bed import Bed

MISUSED = 2
SEARCHED = "brain_16ch-random-4"
TUNED = "brain_8ch-uniform-6,brain_8ch-random-4,brain_16ch-random-4"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and give the exit code, 2 for what cannot be done."""
    options = _parser().parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        options.run(options)
    except InreconError as error:
        sys.stderr.write(f"inrecon bench tuning: {error}\n")
        return MISUSED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="inrecon bench tuning",
        description="What a search for hyperparameters costs and finds, and where it holds.",
    )
    parts = parser.add_subparsers(metavar="EXPERIMENT", required=True)
    compared = parts.add_parser("searches", help="samplers and the paper's search side by side")
    compared.add_argument("--searches", default=",".join(searches.SEARCHES), metavar="LIST", help="(%(default)s)")
    compared.add_argument("--seeds", type=int, default=3, metavar="N", help="(%(default)s)")
    compared.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the best loss by iterations spent")
    compared.set_defaults(run=_searches, cases=SEARCHED)
    crossed = parts.add_parser("hypotheses", help="tuned values beside the oracle's and those of other scans")
    crossed.set_defaults(run=_hypotheses, cases=TUNED)
    shared_out = parts.add_parser("workers", help="one search by one process, by several, and on a Ray cluster")
    shared_out.add_argument("--size", type=int, default=128, metavar="N", help="of the simulated head (%(default)s)")
    shared_out.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (%(default)s)")
    shared_out.add_argument("--ray", metavar="ADDRESS", help="a Ray cluster, or auto for that of this machine")
    shared_out.set_defaults(run=_workers)
    for part in (compared, crossed):
        part.add_argument("--cases", metavar="LIST", help="of the quality benchmark (%(default)s)")
        part.add_argument("--shared", type=Path, metavar="DIR", help="folder whose data/ has the array files")
    for part in (compared, crossed, shared_out):
        part.add_argument("--trials", type=int, default=60, metavar="N", help="(%(default)s)")
        part.add_argument("--json", type=Path, metavar="FILE", help="write every value, and where it was measured")
        part.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    return parser


def _searches(options: argparse.Namespace) -> None:
    names = options.searches.split(",")
    if unknown := sorted(set(names) - set(searches.SEARCHES)):
        raise InvalidCases(f"unknown search {', '.join(unknown)}: known are {', '.join(searches.SEARCHES)}")
    rows: list[dict[str, Any]] = []
    for bed in _beds(options):
        rows.append(searches.shipped_row(bed))
        for seed in range(options.seeds):
            for name in names:
                rows.append(searches.row(bed, name, trials=options.trials, seed=seed))
                _save(options, rows)
    sys.stdout.write(searches.table(rows))
    if options.plot:
        searches.draw(rows, options.plot)


def _hypotheses(options: argparse.Namespace) -> None:
    found: dict[str, Any] = {"values": {}, "psnr": {}}
    for _ in hypotheses.crossed(_beds(options), found, trials=options.trials):
        _save(options, found)
    sys.stdout.write(hypotheses.table(found["psnr"]))


def _workers(options: argparse.Namespace) -> None:
    rows = []
    for name, crew in workers.crews(options.jobs, options.ray, options.device).items():
        rows.append(workers.timed(name, crew, size=options.size, trials=options.trials, device=options.device))
        _save(options, rows)
    sys.stdout.write(workers.table(rows))


def _beds(options: argparse.Namespace) -> list[Bed]:
    found = []
    for case in chosen(load(CASES), options.cases):
        bed = Bed.of(case, data=options.shared and options.shared / "data", device=options.device)
        if bed is None:
            raise InvalidCases(f"case {case.name} cannot run: {case.data} is not at hand (--shared)")
        found.append(bed)
    return found


def _save(options: argparse.Namespace, results: object) -> None:
    """What there is so far: a run that is broken off has not been for nothing."""
    if options.json:
        document = {"environment": environment(options.device, bart=None), "results": results}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
