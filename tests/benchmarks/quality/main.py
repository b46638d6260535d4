"""`inrecon bench quality`: arguments, the loop over cases and methods, and where the results go."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from inrecon.errors import InreconError
from quality import bart, entrants, markdown
from quality.bart import Bart
from quality.cases import CASES, Benchmark, InvalidCases, chosen, load
from quality.contest import Contest, draw, tell
from quality.entrants import Entrant
from quality.facts import Environment, as_json, environment
from quality.results import Row
from quality.scans import scan_of

FAILED, MISUSED = 1, 2
METHODS = "cg_sense,bilevel_inr:standard,auto:standard,bart_l2,bart_l1,bart_tv,bart_l1_fixed,bart_tv_fixed"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and give the exit code: 1 if a method failed on a case, 2 for what cannot be done."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except InreconError as error:
        tell(str(error))
    except OSError as error:
        tell(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
    return MISUSED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="inrecon bench quality",
        description="Image quality by case and method: PSNR, SSIM, NRMSE, seconds, memory, margins over BART.",
    )
    parser.add_argument("--cases", type=Path, default=CASES, metavar="FILE.yaml", help="(those of the benchmark)")
    parser.add_argument("--only", default="*", metavar="PATTERNS", help="names of cases, such as 'brain_8ch-*,head-*'")
    parser.add_argument("--shared", type=Path, metavar="DIR", help="folder whose data/ has the array files")
    parser.add_argument("--methods", metavar="LIST", help=f"METHOD[:PRESET][:FIELD=VALUE]..., by commas ({METHODS})")
    parser.add_argument("--ablation", type=Path, metavar="FILE.yaml", help="name: {method, preset, overrides}")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write what is printed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value, and where it was measured")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write a PNG a case: images and errors")
    parser.add_argument("--hyperparameters", type=Path, metavar="DIR", help="(those of inrecon itself)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    parser.add_argument("--cache", type=Path, default=bart.CACHE, metavar="DIR", help="BART's results (%(default)s)")
    parser.add_argument("--bart-threads", type=int, default=2, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--prove-convergence", action="store_true", help="run the best of BART with twice the iterations, too"
    )
    return parser


def _run(options: argparse.Namespace) -> int:
    benchmark = load(options.cases)
    contestants = _contestants(options)
    cases = chosen(benchmark, options.only)
    bart_needed = any(entrant.is_bart for entrant in contestants)
    contest = Contest(
        entrants=contestants,
        bart=Bart(cache=options.cache, threads=options.bart_threads) if bart_needed else None,
        device=options.device,
        hyperparameters=options.hyperparameters,
        prove_convergence=options.prove_convergence,
    )
    made = environment(options.device, bart=None if contest.bart is None else contest.bart.version)
    rows: list[Row] = []
    remarks: list[str] = []
    for number, case in enumerate(cases, 1):
        scan = scan_of(case, data=options.shared and options.shared / "data")
        if scan is None:
            remarks.append(f"{case.name} was skipped: {case.data} is not at hand (--shared)")
            tell(remarks[-1])
            continue
        here = list(contest.rows(scan, where=f"[{number}/{len(cases)}] {case.name}", remarks=remarks))
        rows += here
        if options.pictures:
            draw(options.pictures, scan, here)
        _write(
            options, benchmark, rows, made=made, remarks=remarks
        )  # a run that is broken off has not been for nothing
    if not rows:
        raise InvalidCases("no case could run: their data are not at hand (--shared)")
    sys.stdout.write(_write(options, benchmark, rows, made=made, remarks=remarks))
    return FAILED if any(row.merit is None for row in rows) else 0


def _write(
    options: argparse.Namespace, benchmark: Benchmark, rows: list[Row], *, made: Environment, remarks: list[str]
) -> str:
    """Bring the files that were asked for up to date; gives the Markdown."""
    text = markdown.document(rows, goals=benchmark.goals, remarks=remarks)
    if options.markdown:
        options.markdown.write_text(text)
    if options.json:
        options.json.write_text(as_json(rows, benchmark, made, remarks))
    return text


def _contestants(options: argparse.Namespace) -> list[Entrant]:
    """Those of the command line and of the ablation file; the usual ones if there are neither."""
    found = [] if options.ablation is None else entrants.read_ablation(options.ablation)
    if options.methods is not None or not found:
        found = entrants.parse(METHODS if options.methods is None else options.methods) + found
    labels = [entrant.label for entrant in found]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice or not found:
        raise InvalidCases(f"methods stand twice: {', '.join(twice)}" if twice else "no method is named")
    return found
