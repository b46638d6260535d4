"""A case of the quality benchmark as a search sees it, and what values of hyperparameters are worth on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from quality.cases import Case, InvalidCases
from quality.judge import Candidate
from quality.scans import Scan, scan_of

from inrecon.frame import RawFrame, Request
from inrecon.hyperparams import HyperparameterFiles
from inrecon.methods import build
from inrecon.stream import choose_device, reconstruct
from inrecon.tuning import Scans, judged_scans, race

METHOD = "bilevel_inr"
JUDGED_AT = 400
"""Iterations after which values are compared, those of the paper's cheaper setting."""

Values = Mapping[str, float]


@dataclass(kw_only=True)
class Bed:
    """One case: `scans` judge by held-out samples, `oracle` by the fully sampled image."""

    scan: Scan
    scans: Scans
    oracle: Scans
    device: str
    _losses: dict[tuple[tuple[str, float], ...], float] = field(default_factory=dict)

    @classmethod
    def of(cls, case: Case, *, data: Path | None, device: str) -> Bed | None:
        """The bed of a case; None where its data file is not at hand. Raises `InvalidCases` for what has no oracle."""
        if case.planar or case.folds:
            raise InvalidCases(f"case {case.name}: an oracle needs whole lines, and a field of view that does not fold")
        whole = case.model_copy(update={"pattern": "full", "acceleration": 1})
        scan, full = scan_of(case, data=data), scan_of(whole, data=data)
        if scan is None or full is None:
            return None
        chosen = choose_device(device)
        return cls(
            scan=scan,
            scans=judged_scans([scan.raw], device=chosen),
            oracle=judged_scans([scan.raw], device=chosen, full=[full.raw]),
            device=chosen,
        )

    @property
    def name(self) -> str:
        """The case's."""
        return self.scan.case.name

    def loss(self, values: Values) -> float:
        """On held-out samples, of a network fitted for `JUDGED_AT` iterations."""
        key = tuple(sorted(values.items()))
        if key not in self._losses:
            candidate = race([build(METHOD, values)], self.scans.groups)
            candidate.advance(JUDGED_AT)
            (self._losses[key],) = candidate.losses()
        return self._losses[key]

    def psnr(self, values: Values) -> float:
        """Of the image that the preset `standard` makes of all samples with `values`, in dB."""
        request = Request(method=METHOD, dtype="complex", overrides=dict(values))
        files = HyperparameterFiles.load()
        raw: RawFrame = self.scan.raw
        result = reconstruct(raw, request=request, hyperparameters=files, device=self.device, series={})
        image = np.asarray(result.images[0].data).reshape(self.scan.maps.shape[1:])
        return self.scan.judge.scores(Candidate(image=image, maps=self.scan.maps))["psnr"]
