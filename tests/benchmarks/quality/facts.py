"""Where and with what results were made, and the results with every value, as JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from inrecon import __version__
from inrecon.stream import choose_device
from quality.cases import Benchmark
from quality.results import Row, failing, margins

Environment = dict[str, Any]
"""Facts about machine and software by name, ready for JSON."""

_CPU_INFO = Path("/proc/cpuinfo")


def environment(device: str, *, bart: str | None) -> Environment:
    """Versions, machine and date; `bart` its version, None if it did not take part."""
    chosen = choose_device(device)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "inrecon": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "bart": bart,
        "device": torch.cuda.get_device_name() if chosen == "cuda" else "cpu",
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def as_json(rows: list[Row], benchmark: Benchmark, made: Environment, remarks: list[str]) -> str:
    """Everything but the images."""
    found = margins(rows)
    document = {
        "environment": made,
        "goals": benchmark.goals.model_dump(),
        "cases": [case.model_dump() for case in benchmark.cases],
        "rows": [_facts(row) for row in rows],
        "margins": [asdict(margin) for margin in found],
        "goals not reached": failing(found, benchmark.goals),
        "remarks": remarks,
    }
    finite = json.loads(json.dumps(document), parse_constant=lambda _: None)  # JSON has no infinity
    return json.dumps(finite, indent=1) + "\n"


def _facts(row: Row) -> dict[str, Any]:
    return {name: value for name, value in vars(row).items() if name != "image"}


def _commit() -> str | None:
    """The commit of the source checkout, with ``-dirty`` where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def _cpu() -> str:
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
