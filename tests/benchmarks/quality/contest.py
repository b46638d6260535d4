"""All entrants on one scan: a row for each, and the picture of their images."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from inrecon.errors import InreconError
from quality.bart import Bart
from quality.entrants import Entrant
from quality.judge import Candidate
from quality.opponents import Opponent, Trial, converged
from quality.results import Row
from quality.runner import run_apart
from quality.scans import Scan


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What is the same for all scans; `bart` may be None if no entrant is BART's.

    With `prove_convergence` the best of BART is run a second time with twice the iterations.
    """

    entrants: list[Entrant]
    bart: Bart | None
    device: str
    hyperparameters: Path | None
    prove_convergence: bool

    def rows(self, scan: Scan, *, where: str, remarks: list[str]) -> Iterator[Row]:
        """A row for every entrant; one that fails has a row that says so. Adds to `remarks`; progress on stderr."""
        opponent = None if self.bart is None else Opponent(scan=scan, bart=self.bart)
        for entrant in self.entrants:
            tell(f"{where}: {entrant.label}")
            try:
                row = self._row(scan, entrant, opponent, remarks=remarks)
                tell(f"{where}: {entrant.label}: " + ", ".join(f"{k} {v:.4g}" for k, v in row.scores.items()))
            except InreconError as error:
                tell(f"{where}: {entrant.label} failed: {error}")
                row = Row(
                    case=scan.case.name,
                    acceleration=scan.acceleration,
                    label=entrant.label,
                    is_bart=entrant.is_bart,
                    note=f"failed: {error}",
                )
            yield row

    def _row(self, scan: Scan, entrant: Entrant, opponent: Opponent | None, *, remarks: list[str]) -> Row:
        if not entrant.is_bart or opponent is None:
            return self._by_inrecon(scan, entrant)
        if entrant.method.endswith("_fixed"):
            return _by_bart(scan, entrant, opponent.fixed(entrant.method.removesuffix("_fixed")), curve=[])
        best, curve = opponent.best(entrant.method)
        if self.prove_convergence:
            remarks.append(converged(opponent, best))
        return _by_bart(scan, entrant, best, curve=curve)

    def _by_inrecon(self, scan: Scan, entrant: Entrant) -> Row:
        outcome = run_apart(scan.raw, entrant, device=self.device, hyperparameters=self.hyperparameters)
        scores = scan.judge.scores(Candidate(image=outcome.image, maps=scan.maps))
        report = outcome.report
        return Row(
            case=scan.case.name,
            acceleration=scan.acceleration,
            label=entrant.label,
            is_bart=False,
            scores=scores,
            merit=scan.judge.merit(scores),
            seconds=outcome.seconds,
            peak_mib=outcome.peak_mib,
            validation_loss=report["validation_loss"],
            iterations=report["iterations"],
            note=report["fallback"] or "",
            details={"report": report, "grown_mib": outcome.grown_mib, "device_mib": outcome.device_mib},
            image=outcome.image,
        )


def _by_bart(scan: Scan, entrant: Entrant, trial: Trial, *, curve: list[Trial]) -> Row:
    return Row(
        case=scan.case.name,
        acceleration=scan.acceleration,
        label=entrant.label,
        is_bart=True,
        scores=trial.scores,
        merit=trial.merit,
        seconds=trial.seconds,
        iterations=trial.iterations,
        note=trial.command,
        details={"curve": [{"weight": t.weight, "iterations": t.iterations, "merit": t.merit} for t in curve]},
        image=trial.candidate.image,
    )


def draw(folder: Path, scan: Scan, rows: list[Row]) -> None:
    """Write ``<case>.png``: the reference where there is one, the images, their errors five times brighter."""
    from inrecon_server.picture import side_by_side

    images = {row.label: row.image for row in rows if row.image is not None}
    reference, support = scan.judge.truth or (None, None)
    if images:
        folder.mkdir(parents=True, exist_ok=True)
        side_by_side(
            folder / f"{scan.case.name}.png",
            reference=reference,
            images=images,
            support=support,
            title=f"{scan.case.name}, acceleration {scan.acceleration:.1f}",
        )


def tell(text: str) -> None:
    """A line on stderr, at once."""
    sys.stderr.write(f"inrecon bench: {text}\n")
    sys.stderr.flush()
