"""The opponent: BART's ESPIRiT and `pics`, each result kept on disk, for they are slow."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrecon.errors import InreconError

Complex = NDArray[np.complex64]

CACHE = Path.home() / ".cache" / "inrecon-bench"


class BartFailed(InreconError):
    """BART is not installed, or a command of it failed."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a command gave, and the seconds that it took when it was run."""

    array: Complex
    seconds: float


class Bart:
    """Commands of `bart`, run once each: results are found again by a hash of version, command and inputs."""

    def __init__(self, *, cache: Path = CACHE, threads: int = 2) -> None:
        if not installed():
            raise BartFailed("'bart' is not on the PATH: install BART, or leave the methods bart_... out")
        self._cache = cache
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        self.version = subprocess.run(["bart", "version"], capture_output=True, text=True, check=True).stdout.strip()

    def maps(self, kspace: Complex, *, block: int, crop: float, sets: int = 1) -> Output:
        """ESPIRiT maps ``(coils, rows, columns)`` from the centre of `kspace`, of the same shape; with `sets` before
        the coils if there are more than one.

        `block` limits the side of the calibration block, `crop` is the smallest eigenvalue of the support.
        """
        return self.run("ecalib", [f"-m{sets}", "-r", str(block), "-c", f"{crop:g}"], [kspace])

    def pics(self, kspace: Complex, maps: Complex, options: Sequence[str]) -> Output:
        """The image ``(rows, columns)``, or that of each set of `maps`, by `pics` with `options`, in the intensity of
        `kspace`."""
        return self.run("pics", [*options, "-S"], [kspace, maps])

    def run(self, program: str, options: Sequence[str], inputs: Sequence[Complex]) -> Output:
        """The array that `program` makes of `inputs`, ``([sets,] coils, rows, columns)`` each; axes of one set or coil
        are dropped."""
        digest = hashlib.sha256(" ".join([self.version, program, *options]).encode())
        for array in inputs:
            digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        kept = self._cache / f"{digest.hexdigest()[:32]}.npz"
        if kept.exists():
            with np.load(kept) as file:
                return Output(array=file["array"], seconds=float(file["seconds"]))
        output = self._execute(program, options, inputs)
        self._keep(kept, output)
        return output

    def _execute(self, program: str, options: Sequence[str], inputs: Sequence[Complex]) -> Output:
        with tempfile.TemporaryDirectory() as folder:
            names = [str(Path(folder) / f"in{index}") for index in range(len(inputs))]
            for name, array in zip(names, inputs, strict=True):
                write_cfl(name, array)
            result = str(Path(folder) / "out")
            command = ["bart", program, *options, *names, result]
            started = time.perf_counter()
            done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - started
            if done.returncode != 0:
                told = (done.stderr or done.stdout).strip().splitlines()
                raise BartFailed(f"bart {program} {' '.join(options)} failed: {told[-1] if told else done.returncode}")
            return Output(array=read_cfl(result), seconds=seconds)

    def _keep(self, path: Path, output: Output) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
            np.savez(file, array=output.array, seconds=output.seconds)
        Path(file.name).replace(path)  # whole or absent, whoever else fills the same cache


def installed() -> bool:
    """Whether `bart` is on the PATH."""
    return shutil.which("bart") is not None


def write_cfl(name: str, array: Complex) -> None:
    """``([sets,] coils, rows, columns)`` as BART has it: rows, columns, one slice, coils, sets, the first fastest."""
    *sets, coils, rows, columns = array.shape
    sizes = [rows, columns, 1, coils, *sets] + [1] * (12 - len(sets))
    Path(f"{name}.hdr").write_text("# Dimensions\n" + " ".join(map(str, sizes)) + "\n")
    np.moveaxis(array, (-2, -1), (0, 1)).swapaxes(2, -1).astype(np.complex64).ravel("F").tofile(f"{name}.cfl")


def read_cfl(name: str) -> Complex:
    """The array of `write_cfl`, without the axes of coils and sets where there is one only."""
    rows, columns, _, coils, sets, *_ = (int(n) for n in Path(f"{name}.hdr").read_text().splitlines()[1].split())
    array = np.fromfile(f"{name}.cfl", np.complex64).reshape((rows, columns, coils, sets), order="F")
    several = tuple(n for n in (sets, coils) if n > 1)
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1).reshape(*several, rows, columns))
