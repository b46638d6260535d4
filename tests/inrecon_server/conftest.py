"""A small frame as a job."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests find what is beside them

from inrecon.acquire import raw_frames
from inrecon.frame import Request
from inrecon.simulate import simulate_scan
from inrecon_server.job import Job, Progress


@pytest.fixture(scope="session")
def job() -> Job:
    """One frame of 32 x 32 pixels and four coils, for a method that takes no time."""
    scan = simulate_scan(shape=(32, 32), coils=4, acceleration=2, acs=12)
    (raw,) = raw_frames(scan.header, scan.acquisitions)
    return Job(raw=raw, request=Request(method="zero_filled"), progress=Progress(), hyperparameters=None, device="cpu")
