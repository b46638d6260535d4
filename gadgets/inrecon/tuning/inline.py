"""A short search on the very scan that is to be reconstructed, where its protocol has no hyperparameter file yet."""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from inrecon import __version__
from inrecon.errors import InreconError
from inrecon.events import Warned, observe
from inrecon.frame import Protocol, RawFrame, Request
from inrecon.hyperparams import Entry, HyperparameterFiles, match_for, write_entry
from inrecon.methods import Method, build, methods, tunable_fields
from inrecon.tuning.race import race
from inrecon.tuning.scans import Scans, judged_scans
from inrecon.tuning.search import from_unit, search_space
from inrecon.tuning.study import RUNGS

BATCH = 15
REDUCTION = 4

Values = Mapping[str, float]


def tuned_for(
    raw: RawFrame, files: HyperparameterFiles, *, request: Request, device: str, seconds: float, folder: Path
) -> HyperparameterFiles:
    """`files` and, if none of them is about scans like `raw`, an entry tuned on it for so many `seconds` (and what is
    under way then: a rung, a second or a few).

    The entry is kept in `folder` as a candidate, for a person to look at and move to the others; one of the same
    protocol is replaced. What has become of it is announced as `Warned`. Where the scan or the method cannot be tuned,
    or the folder cannot be written, it is that which is announced, and `files` are what comes back.
    """
    entry = files.look_up(raw.protocol)
    asked = methods[request.method or entry.method]
    related = issubclass(asked, methods[entry.method]) or issubclass(methods[entry.method], asked)
    if entry.match.rank(raw.protocol) != (False, 0) or not (related and tunable_fields(asked)):
        return files
    try:
        scans = judged_scans([raw], device=device)
        values, tried = _searched(scans, entry, method=request.method or entry.method, seconds=seconds)
        written = write_entry(
            folder / f"candidate_{_short_hash(raw.protocol)}.yaml",
            match=match_for(raw.protocol, beside=files.entries),
            method=entry.method,
            values={**entry.values, **values},
            presets={str(name): dict(preset) for name, preset in entry.presets.items()},
            provenance={
                "from": "tuned",
                "source": "a short search on one scan while it was reconstructed",
                "date": datetime.now(UTC).date().isoformat(),
                "version": __version__,
                "data_sha256": scans.sha256,
                "trials": tried,
            },
            comment="A candidate, to be looked at before it is used for other scans.",
        )
    except (InreconError, OSError) as error:
        observe(Warned(text=f"no hyperparameter file is about this protocol, and it cannot be tuned here: {error}"))
        return files
    told = f"{tried} candidates in {seconds:g} s; kept as {written.file}"
    observe(Warned(text=f"no hyperparameter file is about this protocol: tuned on this scan, {told}"))
    return HyperparameterFiles(entries=(*files.entries, written))


def _searched(scans: Scans, entry: Entry, *, method: str, seconds: float) -> tuple[Values, int]:
    """The best values that are found in time, those of `entry` among the candidates, and how many were tried."""
    end = time.monotonic() + seconds
    current = entry.resolve(Request(method=method)).values
    drawn = _drawn(method)
    first: Values = {name: float(str(current[name])) for name in tunable_fields(methods[method])}
    batch, best, least, tried = [first, *itertools.islice(drawn, BATCH - 1)], first, math.inf, 0
    while not tried or time.monotonic() < end:
        candidates = [build(method, {**current, **values}) for values in batch]
        number, loss, whole = _raced(candidates, scans, end)
        # A race that was cut short is no measure for one that was not; of the first there may be nothing else.
        if loss < least and (whole or not tried):
            best, least = batch[number], loss
        tried += len(batch)
        batch = list(itertools.islice(drawn, BATCH))
    return best, tried


def _raced(candidates: Sequence[Method], scans: Scans, end: float) -> tuple[int, float, bool]:
    """The number of the best one, its loss, and whether there was time to let it run to the last rung."""
    contest, running = race(candidates, scans.groups), list(range(len(candidates)))
    for rung in RUNGS:
        contest.advance(rung)
        losses = contest.losses()
        order = sorted(range(len(running)), key=losses.__getitem__)
        if rung == RUNGS[-1] or time.monotonic() >= end or not math.isfinite(losses[order[0]]):
            break
        kept = [place for place in order[: math.ceil(len(order) / REDUCTION)] if math.isfinite(losses[place])]
        contest.keep(kept)
        running = [running[place] for place in kept]
    return running[order[0]], losses[order[0]], rung == RUNGS[-1]


def _drawn(method: str) -> Iterator[Values]:
    """Quasi-random points of the search space of `method`, without an end."""
    space = search_space(methods[method])
    engine = torch.quasirandom.SobolEngine(len(space), scramble=True, seed=0)
    while True:
        (point,) = engine.draw(1).tolist()
        yield {name: from_unit(u, span) for u, (name, span) in zip(point, space.items(), strict=True)}


def _short_hash(protocol: Protocol) -> str:
    """Of what a match is made from: scans of one protocol have one candidate."""
    return hashlib.sha256(repr(match_for(protocol)).encode()).hexdigest()[:8]
