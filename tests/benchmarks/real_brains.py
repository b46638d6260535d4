"""Image quality and seconds on two real brains, undersampled afterwards: `inrecon replay` of each method, as a table.

    python tests/benchmarks/real_brains.py SHARED [PRESET]

SHARED holds ``data/*.npz`` and ``tools/to_ismrmrd.py``. The reference is the fully sampled scan, its coils combined by
ESPIRiT maps of its own centre; figures are over the support of those maps (`inrecon.quality`).
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import ismrmrd
import numpy as np
import torch

from inrecon.calibrate import espirit
from inrecon.quality import measure
from inrecon_server.cli import main as inrecon

BRAIN_8 = "brain_8ch_230x180.npz --line-axis x --acs 16"
BRAIN_16 = "brain_16ch_96.npz"
CASES = {
    "8-coil brain, uniform R=6, 16 centre lines": f"{BRAIN_8} --acceleration 6",
    "8-coil brain, uniform R=8, 16 centre lines": f"{BRAIN_8} --acceleration 8",
    "8-coil brain, random R=4, 16 centre lines": f"{BRAIN_8} --acceleration 4 --pattern random",
    "16-coil brain, random R=4, 12 centre lines": f"{BRAIN_16} --acceleration 4 --pattern random --acs 12",
    "16-coil brain, uniform R=4, 16 centre lines": f"{BRAIN_16} --acceleration 4 --acs 16",
}


def reference_of(data: Path, *, transposed: bool) -> tuple[np.ndarray, np.ndarray]:
    """The fully sampled image ``(y, x)`` and the support of its maps."""
    kspace = torch.from_numpy(np.load(data)["kspace"])
    if transposed:
        kspace = kspace.transpose(1, 2)
    rows, columns = kspace.shape[1:]
    block = kspace[:, rows // 2 - 12 : rows // 2 + 12, columns // 2 - 12 : columns // 2 + 12]
    maps = espirit(block, (rows, columns))
    shifted = torch.fft.ifftshift(kspace, dim=(1, 2))
    images = torch.fft.fftshift(torch.fft.ifft2(shifted, norm="ortho"), dim=(1, 2))
    return (maps.csm.conj() * images).sum(0).numpy(), maps.support.numpy()


def row(shared: Path, case: str, options: str, folder: Path, preset: str) -> str:
    """One line of the table."""
    data, *rest = options.split()
    raw = folder / "raw.h5"
    raw.unlink(missing_ok=True)
    tool = [sys.executable, str(shared / "tools" / "to_ismrmrd.py"), "cartesian", str(shared / "data" / data)]
    subprocess.run([*tool, str(raw), *rest, "--noise"], check=True, capture_output=True)
    reference, support = reference_of(shared / "data" / data, transposed="--line-axis" in rest)
    cells = [case]
    for method in (["--method", "cg_sense"], ["--preset", preset]):
        output, report = folder / "images.h5", folder / "report.json"
        command = ["replay", str(raw), "-o", str(output), "--dtype", "complex", "--report", str(report), *method]
        if inrecon(command) != 0:
            raise SystemExit(f"inrecon {' '.join(command)} failed")
        with ismrmrd.File(str(output), "r") as file:
            image = file["images"]["image_1"].images[0].data[0, 0]
        quality = measure(image, reference, support)
        (facts,) = json.loads(report.read_text())
        cells += [f"{quality.psnr:.2f} / {quality.ssim:.3f}", f"{facts['seconds']['fit']:.1f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    shared, preset = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "standard"
    print(f"| scan | CG-SENSE: PSNR (dB) / SSIM | s | INR, {preset} | s |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for case, options in CASES.items():
            print(row(shared, case, options, Path(folder), preset), flush=True)


if __name__ == "__main__":
    main()
