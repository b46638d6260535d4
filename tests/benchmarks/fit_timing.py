"""Seconds of the fit at 384 x 384 x 12 on every device there is, beside CG-SENSE in the same run, as a table.

    python tests/benchmarks/fit_timing.py [ITERATIONS]

The scan is simulated (R=6 with 24 centre lines). Rows are interleaved twice and the faster time of each is printed,
PSNR beside it.
"""

import platform
import sys
import time

import torch

from inrecon.acquire import raw_frames
from inrecon.calibrate import espirit
from inrecon.condition import condition
from inrecon.frame import Frame, Reconstruction
from inrecon.methods import BilevelINR, CGSense, Method
from inrecon.operators import CartesianSense
from inrecon.quality import psnr
from inrecon.simulate import SimulatedScan, simulate_scan


def frame_of(scan: SimulatedScan, device: str) -> tuple[Frame, dict[str, float]]:
    """The conditioned, calibrated frame and the seconds of each step."""
    raw = raw_frames(scan.header, scan.acquisitions)[0]
    started = time.perf_counter()
    measurement = condition(raw, device=device)
    conditioned = time.perf_counter()
    if measurement.calibration is None:
        raise SystemExit("the simulated scan has no calibration lines")
    maps = espirit(measurement.calibration[0], scan.reference.shape[1:])
    if device == "cuda":
        torch.cuda.synchronize()
    calibrated = time.perf_counter()
    operator = CartesianSense(maps.csm, measurement.mask)
    frame = Frame(
        kspace=operator.arrange(measurement.kspace[0]),
        operator=operator,
        maps=maps,
        noise_level=measurement.noise_level,
    )
    return frame, {"condition": conditioned - started, "calibrate": calibrated - conditioned}


def timed(method: Method, frame: Frame, device: str) -> tuple[float, Reconstruction]:
    """Wall seconds of one fit, and what it gave."""
    started = time.perf_counter()
    reconstruction = method.fit(frame)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, reconstruction


def device_name(device: str) -> str:
    """What the table calls the device."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def main() -> None:
    """Print the table."""
    iterations = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    scan = simulate_scan(shape=(384, 384), coils=12, acceleration=6, acs=24)
    methods: dict[str, Method] = {
        "CG-SENSE": CGSense(),
        "bilevel_inr, set-up and first iteration": BilevelINR(iterations=1),
        "bilevel_inr": BilevelINR(iterations=iterations),
    }
    print("| device | what | seconds | iterations | PSNR (dB) |\n|---|---|---|---|---|")
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        frame, seconds = frame_of(scan, device)
        timed(BilevelINR(iterations=2), frame, device)
        for step, value in seconds.items():
            print(f"| {device_name(device)} | {step} | {value:.3f} | | |")
        runs = [{name: timed(method, frame, device) for name, method in methods.items()} for _ in range(2)]
        for name in methods:
            best = min(run[name][0] for run in runs)
            result = runs[0][name][1]
            quality = psnr(result.image.cpu().numpy(), scan.reference[0], scan.support[0])
            print(f"| {device_name(device)} | {name} | {best:.3f} | {result.iterations} | {quality:.2f} |")


if __name__ == "__main__":
    main()
