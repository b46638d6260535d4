"""A long interventional stream through a server: latency, misses and memory, alone and beside an inline scan.

    python tests/benchmarks/live/stream.py [--frames 1000] [--rate HZ] [--method NAME] [--preset NAME] [--alone]

The frames are those of a simulated stream of a hundred, again and again, as repetitions that go on counting. They come
at the rate of their acquisition: readouts of a frame times the repetition time. Prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ismrmrd
import numpy as np

from inrecon.frame import PRESETS
from inrecon.simulate import Intervention, simulate_intervention, simulate_scan
from inrecon_server.client import send
from inrecon_server.demo import running_server
from inrecon_server.pacing import Watched, live_configuration, watch

MADE = 100
SAMPLES = 20
"""How often a stream's memory is looked at."""
MIB = 2**20


@dataclass
class Endless:
    """The frames of `stream` as `count` repetitions; has a `look` at the server's memory on the way."""

    stream: Intervention
    count: int
    look: Callable[[], dict[str, float]]
    memory: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._made = [self.stream.acquisitions(frame) for frame in range(self.stream.frames)]

    def __iter__(self) -> Iterator[Sequence[ismrmrd.Acquisition]]:
        counter = 0
        for number in range(self.count):
            # The first frame, and with it the noise readouts, comes once.
            readouts = self._made[number if number == 0 else 1 + (number - 1) % (len(self._made) - 1)]
            for readout in readouts:
                readout.idx.repetition = number
                readout.scan_counter = counter
                readout.acquisition_time_stamp = int(counter * self.stream.repetition_time_ms / 2.5)
                readout.clearFlag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
                counter += 1
            if number % max(self.count // SAMPLES, 1) == 0:
                self.memory.append({"frame": number, **self.look()})
            yield readouts
        self.memory.append({"frame": self.count, **self.look()})


def server_memory() -> dict[str, float]:
    """Resident MiB of the server that this process has started: its front, and all the processes below it."""
    children: dict[int, list[int]] = {}
    resident: dict[int, float] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            facts = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:
            continue  # it has ended meanwhile
        number = int(status.parent.name)
        children.setdefault(int(facts["PPid"]), []).append(number)
        resident[number] = float(facts.get("VmRSS", "0").split()[0]) / 1024
    front = max(children[os.getpid()], key=lambda child: resident[child])
    pending, below = list(children.get(front, [])), list[float]()
    while pending:
        child = pending.pop()
        below.append(resident[child])
        pending += children.get(child, [])
    return {"front": resident[front], "workers": sum(below), "processes": len(below)}


@contextmanager
def inline_scans(port: int, *, size: int, seconds: float) -> Iterator[list[float]]:
    """A scan with the configuration ``inr``, wanted within so many `seconds`, sent over and over until the end of the
    block; gives the seconds that each took."""
    scan, took, over = simulate_scan(shape=(size, size), coils=8), list[float](), threading.Event()
    parameters = json.dumps({"parameters": {"deadline": seconds}})

    def go_on() -> None:
        while not over.is_set():
            started = time.perf_counter()
            result = send(scan.header, scan.acquisitions, port=port, config="inr", parameters=parameters)
            if result.images:
                took.append(time.perf_counter() - started)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield took
    finally:
        over.set()
        thread.join()


def facts(found: Watched, endless: Endless, *, period_s: float, beside: Sequence[float]) -> dict[str, Any]:
    """What a run comes to."""
    latency = [found.latency_s[frame] for frame in sorted(found.latency_s)]
    middle, high, largest = np.percentile(latency, (50, 99, 100)) if latency else (float("nan"),) * 3
    warnings = [text for text in found.result.texts if not text.startswith("INFO")]
    return {
        "frames": endless.count,
        "period (s)": period_s,
        "images": len(found.images),
        "without image": endless.count - len(found.images),
        "late": sum(seconds > period_s for seconds in latency),
        "latency (s): median": float(middle),
        "99 %": float(high),
        "largest": float(largest),
        "sender late (s)": found.late_s,
        "front (MiB)": [endless.memory[at]["front"] for at in (0, 1, -1)],
        "workers (MiB)": [endless.memory[at]["workers"] for at in (0, 1, -1)],
        "processes": [endless.memory[at]["processes"] for at in (0, 1, -1)],
        "inline scans": len(beside),
        "s each": float(np.mean(beside)) if beside else 0.0,
        "latencies": latency,
        "memory": endless.memory,
        "problem": found.result.problem,
        "warnings": len(warnings),
        "first warnings": warnings[:20],
    }


def table(runs: dict[str, dict[str, Any]]) -> str:
    """A column for each run; of memory at the beginning, after a twentieth of the stream, and at the end."""
    heads = [name for name in next(iter(runs.values())) if name not in ("latencies", "memory", "first warnings")]
    lines = [f"| | {' | '.join(runs)} |", "|---" * (1 + len(runs)) + "|"]
    lines += [f"| {head} | {' | '.join(_cell(run[head]) for run in runs.values())} |" for head in heads]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(f"{one:.0f}" for one in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Both runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=1000, metavar="N", help="(%(default)s)")
    parser.add_argument("--rate", type=float, metavar="HZ", help="frames a second (that of the acquisition)")
    parser.add_argument("--size", type=int, default=128, metavar="N", help="matrix (%(default)s)")
    parser.add_argument("--coils", type=int, default=24, metavar="N", help="(%(default)s)")
    parser.add_argument("--method", metavar="NAME", help="(that of the hyperparameter file)")
    parser.add_argument("--preset", choices=PRESETS, default="standard", help="(%(default)s)")
    parser.add_argument("--deadline", type=float, metavar="S", help="in which an image is wanted (none)")
    parser.add_argument("--inline-size", type=int, default=256, metavar="N", help="of the scan beside (%(default)s)")
    parser.add_argument("--inline-deadline", type=float, default=20, metavar="S", help="of its image (%(default)g)")
    parser.add_argument("--alone", action="store_true", help="without the run beside an inline scan")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value")
    options = parser.parse_args(arguments)
    stream = simulate_intervention(
        shape=(options.size, options.size), coils=options.coils, frames=max(2, min(MADE, options.frames))
    )
    lines = int(stream.lines[-1].sum()) * stream.slices
    period_s = 1 / options.rate if options.rate else lines * stream.repetition_time_ms / 1000
    asked = {"preset": options.preset, "method": options.method, "deadline": options.deadline}
    config = live_configuration(**{name: value for name, value in asked.items() if value is not None})
    runs: dict[str, dict[str, Any]] = {}
    with TemporaryDirectory() as folder, running_server(Path(folder) / "server.log") as (host, port):
        watch(stream.header, [stream.acquisitions(0)], period_s=0, config="zero_filled", host=host, port=port)
        for name in ("alone",) if options.alone else ("alone", "beside inline scans"):
            endless = Endless(stream, options.frames, server_memory)
            if name == "alone":
                found = watch(stream.header, endless, period_s=period_s, config=config, host=host, port=port)
                took: list[float] = []
            else:
                with inline_scans(port, size=options.inline_size, seconds=options.inline_deadline) as took:
                    found = watch(stream.header, endless, period_s=period_s, config=config, host=host, port=port)
            runs[name] = facts(found, endless, period_s=period_s, beside=took)
            if options.json:
                options.json.write_text(json.dumps(runs, indent=1) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
