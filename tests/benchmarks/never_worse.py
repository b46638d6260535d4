"""Is the image that is sent ever worse than the linear one? Simulated scans drawn at random, `auto` beside CG-SENSE.

    python tests/benchmarks/never_worse.py [SCANS] [METHOD] [JSON]

Each scan has a matrix, coil count (1 to 32), pattern, acceleration, centre, partial Fourier and noise of its own
(seeded), and goes the way of `inrecon replay` with the preset `fast`. About half of a scan's lines lie outside the
centre: nothing acquired can judge what a method makes of a k-space that was not sampled anywhere. Prints how far METHOD
is above CG-SENSE in PSNR: the worst ten scans, the mean, and how many are more than 0.1 dB below.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from inrecon.acquire import raw_frames
from inrecon.frame import Request
from inrecon.hyperparams import HyperparameterFiles
from inrecon.quality import psnr
from inrecon.simulate import SimulatedScan, simulate_scan
from inrecon.stream import choose_device, reconstruct


def drawn(seed: int) -> tuple[SimulatedScan, dict[str, float | str]]:
    """A scan and what it is."""
    rng = np.random.default_rng((seed, 7))
    rows, columns = (int(n) for n in rng.integers(40, 112, 2))
    acceleration = int(rng.integers(2, 7))
    facts: dict[str, float | str] = {
        "coils": int(rng.choice([1, 2, 3, 4, 6, 8, 12, 16, 24, 32])),
        "pattern": str(rng.choice(["uniform", "random"])),
        "acceleration": acceleration,
        "acs": min(int(rng.integers(8, 20)), max(8, rows // (2 * acceleration))),
        "snr": float(np.exp(rng.uniform(np.log(2), np.log(200)))),
        "partial_fourier": float(rng.choice([1.0, 1.0, 1.0, 0.8])),
    }
    return simulate_scan(shape=(rows, columns), seed=seed, **facts), facts | {"rows": rows, "columns": columns}  # type: ignore[arg-type]


def image_of(scan: SimulatedScan, method: str, files: HyperparameterFiles) -> tuple[np.ndarray, dict[str, object]]:
    """The image ``(y, x)`` and its report."""
    raw = raw_frames(scan.header, scan.acquisitions)[0]
    request = Request(method=method, preset="fast", dtype="complex")
    result = reconstruct(raw, request=request, hyperparameters=files, device=choose_device("auto"), series={})
    return result.images[0].data[0, 0], result.reports[0]


def main() -> None:
    """Run and print."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    method = sys.argv[2] if len(sys.argv) > 2 else "auto"
    files = HyperparameterFiles.load()
    rows = []
    for seed in range(count):
        scan, facts = drawn(seed)
        found = {}
        started = time.perf_counter()
        for name in ("cg_sense", method):
            image, report = image_of(scan, name, files)
            found[name] = psnr(image, scan.reference[0], scan.support[0])
        gain = found[method] - found["cg_sense"]
        rows.append({"seed": seed, **facts, **found, "gain": gain, "remark": report["remark"] or report["fallback"]})
        print(f"{seed} {gain:+.2f} dB, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    rows.sort(key=lambda row: row["gain"])
    for row in rows[:10]:
        print(row)
    gains = np.array([row["gain"] for row in rows])
    print(f"{count} scans: {method} above CG-SENSE by {gains.mean():.2f} dB on the mean, {gains.min():.2f} at least;")
    print(f"more than 0.1 dB below it on {(gains < -0.1).sum()}")
    if len(sys.argv) > 3:
        Path(sys.argv[3]).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
