"""`inrecon bench live`: arguments, the loop over streams, frames and methods, and where the results go."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality.cases import InvalidCases, checked
from quality.facts import environment

from inrecon import live
from inrecon.errors import InreconError
from inrecon.simulate import Intervention
from inrecon.stream import choose_device, warm_up
from live.cases import CASES, Case, load, stream_of
from live.contestants import PRIOR_FRAMES, Contestant, Opening, Run, parse
from live.judge import Course, Moment
from live.plot import draw
from live.results import Row, table

FAILED, MISUSED = 1, 2
METHODS = (
    "copy,cg_sense,tv,residual_tikhonov:displacement=0,residual_tv:displacement=0,residual_tv,residual_inr,"
    "fine_tuned:every=7,fine_tuned:iterations=40:every=7,fine_tuned:iterations=60:towards=1e-3:every=7"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and give the exit code: 1 if a method failed on a stream, 2 for what cannot be done."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except (InreconError, OSError) as error:
        tell(str(error))
    return MISUSED


def tell(text: str) -> None:
    """A line on stderr."""
    sys.stderr.write(f"inrecon bench live: {text}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="inrecon bench live",
        description="Interventional streams by method: PSNR, errors in what has changed and around the needle.",
    )
    parser.add_argument("--cases", type=Path, default=CASES, metavar="FILE.yaml", help="(those of the benchmark)")
    parser.add_argument("--only", default="*", metavar="PATTERNS", help="names of cases, such as 'R*,shift'")
    parser.add_argument("--shared", type=Path, metavar="DIR", help="folder whose data/ has the array files")
    parser.add_argument(
        "--methods", default=METHODS, metavar="LIST", help="METHOD[:FIELD=VALUE]..., by commas (%(default)s)"
    )
    parser.add_argument("--frames", type=int, metavar="N", help="of every stream, instead of the case's own")
    parser.add_argument("--seeds", type=int, metavar="N", help="draws of every stream, instead of the case's own")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write what is printed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value, and where it was measured")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write a PNG a case: scores by frame")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="of a CPU (PyTorch's own choice)")
    return parser


def _run(options: argparse.Namespace) -> int:
    contestants = parse(options.methods)
    changes = {name: value for name in ("frames", "seeds") if (value := getattr(options, name)) is not None}
    cases = [
        checked(Case, case.model_dump() | changes, where=case.name)
        for case in load(options.cases)
        if any(fnmatch(case.name, pattern.strip()) for pattern in options.only.split(","))
    ]
    if not cases:
        raise InvalidCases(f"no case is called {options.only!r}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    warm_up(device)
    made = environment(device, bart=None)
    rows: list[Row] = []
    remarks = [f"{made['threads']} thread(s) of {made['cpu']}, device {made['device']}, commit {made['commit']}"]
    for number, case in enumerate(cases, 1):
        here: list[Row] = []
        for seed in range(case.seeds):
            stream = stream_of(case, seed=seed, data=options.shared and options.shared / "data")
            if stream is None:
                remarks.append(f"{case.name} was skipped: {case.data} is not at hand (--shared)")
                tell(remarks[-1])
                break
            tell(f"[{number}/{len(cases)}] {case.name}, seed {seed}: {case.frames} frames")
            here += compared(case, stream, contestants, seed=seed, device=device)
        rows += here
        if options.plots and here:
            options.plots.mkdir(parents=True, exist_ok=True)
            draw(here, options.plots / f"{case.name}.png")
        # A run that is broken off has not been for nothing.
        _write(options, rows, {"environment": made, "cases": [c.model_dump() for c in cases], "remarks": remarks})
    if not rows:
        raise InvalidCases("no case could run: their data are not at hand (--shared)")
    sys.stdout.write(table(rows, remarks))
    return FAILED if any(row.failure for row in rows) else 0


def compared(
    case: Case, stream: Intervention, contestants: Sequence[Contestant], *, seed: int, device: str
) -> list[Row]:
    """All contestants on one stream, frame by frame; one that fails is left out from then on."""
    rows = [Row(case=case.name, seed=seed, label=one.label, shift_at=case.shift_at) for one in contestants]
    moments = iter(Course(stream))
    gathered = list(islice(moments, 1 if case.first_full else PRIOR_FRAMES))
    raw = live.mean_of([moment.raw for moment in gathered]) if len(gathered) > 1 else gathered[0].raw
    opening = Opening(raw=raw, prior=live.begin(raw, source="the first frames", device=device).prior, device=device)
    runs = [one.on(opening) for one in contestants]
    for run in runs:
        for moment in gathered:
            run.begin(moment)
    for moment in moments:
        for run, row in zip(runs, rows, strict=True):
            if row.failure is None:
                _take(run, moment, row)
    for row in rows:
        tell(f"{case.name}, seed {seed}: {row.label}: {row.failure or _in_short(row)}")
    return rows


def _take(run: Run, moment: Moment, row: Row) -> None:
    """One frame, timed from readouts to image."""
    started = time.perf_counter()
    try:
        answer = run.next(moment)
    except InreconError as error:
        row.failure = str(error)
        return
    if answer is None:
        return
    image = answer[0].abs().cpu().numpy()
    row.seconds.append(time.perf_counter() - started)
    row.frames.append(moment.number)
    row.scores.append(moment.scores(image.astype(np.float64)))
    row.others += answer[1]


def _in_short(row: Row) -> str:
    means = {measure: row.mean(measure) for measure in ("psnr", "changed", "needle")}
    return ", ".join(f"{name} {value:.4g}" for name, value in means.items() if value is not None)


def _write(options: argparse.Namespace, rows: list[Row], facts: dict[str, Any]) -> None:
    if options.markdown:
        options.markdown.write_text(table(rows, facts["remarks"]))
    if options.json:
        document = json.loads(
            json.dumps(facts | {"rows": [row.facts() for row in rows]}), parse_constant=lambda _: None
        )
        options.json.write_text(json.dumps(document, indent=1) + "\n")
