"""The streams of the benchmark: a YAML file, checked before anything runs, and what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from quality.cases import InvalidCases, Strict, checked, read_yaml
from quality.scans import image_of

from inrecon.calibrate import espirit
from inrecon.simulate import Intervention, repaint, simulate_intervention
from inrecon.simulate.intervention import StreamPattern

CASES = Path(__file__).with_name("cases.yaml")
CALIBRATION = 24
"""Side of the centre of k-space that the coil maps of measured data come from."""


class Case(Strict):
    """One stream, as `simulate_intervention` has it, or the measured object in the file `data` (``kspace`` ``(coils,
    rows, columns)``, centred) as `repaint` has it, whose matrix and coils are its own.

    From the part `shift` of the stream on the patient lies elsewhere. `seeds` is how often the stream is drawn.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    data: str | None = None
    matrix: tuple[Annotated[int, Field(ge=16)], Annotated[int, Field(ge=16)]] = (128, 128)
    coils: Annotated[int, Field(ge=1)] = 24
    frames: Annotated[int, Field(ge=8)] = 40
    acceleration: Annotated[int, Field(ge=1)] = 6
    centre: Annotated[int, Field(ge=0)] = 6
    pattern: StreamPattern = "uniform"
    motion: Annotated[float, Field(ge=0)] = 1
    needle: bool = True
    snr: Annotated[float, Field(gt=0)] = 40
    shift: Annotated[float, Field(gt=0, lt=1)] | None = None
    first_full: bool = True
    seeds: Annotated[int, Field(ge=1)] = 1

    @property
    def shift_at(self) -> int | None:
        """The first frame after the shift."""
        return None if self.shift is None else round(self.shift * self.frames)


class Benchmark(Strict):
    """All cases of a file."""

    cases: Annotated[list[Case], Field(min_length=1)]


def load(path: Path) -> list[Case]:
    """The cases in a YAML file; raises `InvalidCases`."""
    cases = checked(Benchmark, read_yaml(path), where=str(path)).cases
    names = [case.name for case in cases]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidCases(f"{path}: case names stand twice: {', '.join(twice)}")
    return cases


def stream_of(case: Case, *, seed: int, data: Path | None) -> Intervention | None:
    """The stream of a case; None where its data file is not at hand."""
    if case.data is not None and (data is None or not (data / case.data).exists()):
        return None
    settings = {
        "frames": case.frames,
        "acceleration": case.acceleration,
        "acs": case.centre,
        "pattern": case.pattern,
        "motion": case.motion,
        "needle": case.needle,
        "snr": case.snr,
        "shift_at": case.shift_at,
        "first_full": case.first_full,
        "seed": seed,
    }
    if data is None or case.data is None:
        return simulate_intervention(shape=case.matrix, coils=case.coils, **settings)
    with np.load(data / case.data) as file:
        kspace = file["kspace"].astype(np.complex64)
    _, rows, columns = kspace.shape
    centre = (slice(n // 2 - CALIBRATION // 2, n // 2 + CALIBRATION // 2) for n in (rows, columns))
    maps = espirit(torch.from_numpy(kspace[:, *centre].copy()), (rows, columns)).csm.numpy()
    return repaint((maps.conj() * image_of(kspace)).sum(0), maps, **settings)
