"""The whole thing once: a scan, a server process, a client, and the images of three methods side by side."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import ismrmrd
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from inrecon.errors import InreconError
from inrecon.frame import Preset
from inrecon.simulate import SimulatedScan, simulate_scan, write_ismrmrd
from inrecon_server.client import send
from inrecon_server.files import open_raw, replacing, write_images

CONFIGS = {"zero_filled": "zero-filled", "cg_sense": "CG-SENSE", "inr": "INR"}
_LISTENING = "listening on "
_STOP_S = 20


class DemoFailed(InreconError):
    """The server did not start, or did not do what the demo asked of it."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back for one configuration: magnitude images, and the `seconds` from first byte to CLOSE."""

    images: tuple[ismrmrd.Image, ...]
    seconds: float


def demo(
    output: Path,
    *,
    raw: Path | None = None,
    preset: Preset = "standard",
    simulate: Callable[[], SimulatedScan] = simulate_scan,
) -> None:
    """Reconstruct a simulated scan, or the file `raw`, through a server; leaves files in `output`, prints a table.

    Files: ``scan.h5`` (the simulated readouts), one HDF5 file of images for each configuration, ``comparison.png``
    and the server's log. Raises `DemoFailed` and `UnreadableFile`.
    """
    if missing := [name for name in ("matplotlib", "skimage") if find_spec(name) is None]:
        raise DemoFailed(f"the demo needs {' and '.join(missing)}: pip install inrecon[demo]")
    started = time.perf_counter()
    console = Console(markup=False, highlight=False, soft_wrap=True)
    if raw is not None:
        with open_raw(raw):
            pass  # an unreadable file is told before a server is started for it
    output.mkdir(parents=True, exist_ok=True)
    truth = None
    if raw is None:
        console.print("simulating a scan")
        raw, truth = output / "scan.h5", simulate()
        with replacing(raw) as temporary:
            write_ismrmrd(temporary, truth)
    with running_server(output / "server.log") as (host, port):
        console.print(f"a server is listening on {host}:{port}; sending {raw}")
        # The first scan waits until the server's other process has loaded torch: not what is to be timed.
        _ask(raw, "zero_filled", host=host, port=port, preset=preset, console=None)
        answers = {
            name: _ask(raw, config, host=host, port=port, preset=preset, console=console)
            for config, name in CONFIGS.items()
        }
    for config, name in CONFIGS.items():
        with replacing(output / f"{config}.h5") as temporary:
            write_images(temporary, answers[name].images)
    _draw(output / "comparison.png", answers, truth)
    console.print(_table(answers, truth))
    console.print(f"{output / 'comparison.png'} shows them; the demo took {time.perf_counter() - started:.1f} s")


@contextmanager
def running_server(log: Path) -> Iterator[tuple[str, int]]:
    """A server process on a free port, logging to `log`; gives its address once it listens, and stops it."""
    command = [sys.executable, "-m", "inrecon_server.cli", "serve", "--port", "0", "--http-port", "0"]
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,  # noqa: S603  our own
    ):
        try:
            first = process.stdout.readline() if process.stdout is not None else ""
            if not first.startswith(_LISTENING):
                raise DemoFailed(f"the server did not start; {log} says why")
            host, _, port = first.removeprefix(_LISTENING).strip().rpartition(":")
            yield host, int(port)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _ask(raw: Path, config: str, *, host: str, port: int, preset: Preset, console: Console | None) -> Answer:
    """Send the file as a client would; raises `DemoFailed` unless images come back."""
    # Integer images have a scale for each series; these are to be compared.
    parameters = f'{{"parameters": {{"dtype": "float", "preset": "{preset}"}}}}'
    started = time.perf_counter()
    waiting = console.status(f"{config}: waiting for its images") if console is not None else nullcontext()
    with open_raw(raw) as file, waiting:
        result = send(file.header, file.acquisitions(), host=host, port=port, config=config, parameters=parameters)
    seconds = time.perf_counter() - started
    errors = [text for text in result.texts if text.startswith("ERROR")]
    if errors or not result.images or result.problem:
        raise DemoFailed(f"{config}: {'; '.join(errors) or result.problem or 'the server sent no image'}")
    if console is not None:
        for text in result.texts:
            if text.startswith("WARNING"):
                console.print(f"{config}: {text}")
        console.print(f"{config}: {len(result.images)} images in {seconds:.1f} s")
    return Answer(images=tuple(result.images), seconds=seconds)


def _middle(images: tuple[ismrmrd.Image, ...]) -> NDArray[np.number]:
    """The middle partition ``(y, x)`` of the middle image."""
    volume = images[len(images) // 2].data[0]
    plane: NDArray[np.number] = volume[len(volume) // 2]
    return plane


def _draw(path: Path, answers: dict[str, Answer], truth: SimulatedScan | None) -> None:
    from inrecon_server.picture import side_by_side  # matplotlib is an extra

    images = {name: _middle(answer.images) for name, answer in answers.items()}
    frame = 0 if truth is None else len(truth.reference) // 2
    side_by_side(
        path,
        reference=None if truth is None else truth.reference[frame],
        images=images,
        support=None if truth is None else truth.support[frame],
        title="inrecon" if truth is None else f"simulated scan, {truth.acceleration:.1f} times accelerated",
    )


def _table(answers: dict[str, Answer], truth: SimulatedScan | None) -> Table:
    """Seconds, and how near the images are to the truth where it is known."""
    quality = () if truth is None else ("PSNR (dB)", "SSIM", "NRMSE")
    table = Table("method", *quality, "seconds")
    for name, answer in answers.items():
        table.add_row(name, *(() if truth is None else _measured(answer, truth)), f"{answer.seconds:.2f}")
    return table


def _measured(answer: Answer, truth: SimulatedScan) -> tuple[str, str, str]:
    from inrecon.quality import measure  # scikit-image is an extra

    frame = len(truth.reference) // 2
    found = measure(_middle(answer.images), truth.reference[frame], truth.support[frame])
    return f"{found.psnr:.2f}", f"{found.ssim:.3f}", f"{found.nrmse:.3f}"
