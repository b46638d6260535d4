"""Seconds of each preset of the default entry on a scan of 256 x 256 with 8 coils, PSNR beside them, as a table.

    python tests/benchmarks/preset_times.py [METHOD]

The scan is simulated (uniform R=6 with 24 centre lines) and goes the way of `inrecon replay`.
"""

from __future__ import annotations

import sys
import time

import torch

from inrecon.acquire import raw_frames
from inrecon.frame import PRESETS, Request
from inrecon.hyperparams import HyperparameterFiles
from inrecon.quality import psnr
from inrecon.simulate import simulate_scan
from inrecon.stream import choose_device, reconstruct, warm_up


def main() -> None:
    """Run and print."""
    method = sys.argv[1] if len(sys.argv) > 1 else None
    device = choose_device("auto")
    scan = simulate_scan(shape=(256, 256), coils=8, acceleration=6, acs=24, seed=1)
    raw = raw_frames(scan.header, scan.acquisitions)[0]
    files = HyperparameterFiles.load()
    warm_up(device)
    print(f"{device}, {torch.get_num_threads()} threads")
    print("| method, preset | s | PSNR |\n|---|---|---|")
    wanted = [Request(method="cg_sense", dtype="complex")]
    wanted += [Request(method=method, preset=preset, dtype="complex") for preset in PRESETS]
    for request in wanted:
        started = time.perf_counter()
        result = reconstruct(raw, request=request, hyperparameters=files, device=device, series={})
        seconds = time.perf_counter() - started
        name = result.reports[0]["method"]
        quality = psnr(result.images[0].data[0, 0], scan.reference[0], scan.support[0])
        print(f"| {name}, {request.preset} | {seconds:.1f} | {quality:.2f} |", flush=True)


if __name__ == "__main__":
    main()
