"""An intervention through a server: frames at the pace of an acquisition, and what is seen of the needle, and when."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table

from inrecon.frame import Preset
from inrecon.simulate import Intervention, simulate_intervention
from inrecon_server.demo import DemoFailed, running_server
from inrecon_server.files import replacing, write_images
from inrecon_server.pacing import Watched, live_configuration, watch

FIRST = "first frame again"
LINEAR, RESIDUAL, NETWORK = "CG-SENSE", "residual TV, fixed prior", "INR"
FILES = {LINEAR: "cg_sense", RESIDUAL: "residual_tv", NETWORK: "inr"}

Image = NDArray[np.number]


def imri_demo(
    output: Path,
    *,
    frames: int = 20,
    rate: float = 1.0,
    preset: Preset = "standard",
    simulate: Callable[..., Intervention] = simulate_intervention,
) -> None:
    """Send a simulated intervention of so many `frames`, `rate` a second, once for each method; leaves files in
    `output`, prints a table.

    Images are wanted within a frame's time. Files: images of each method (HDF5), ``intervention.png`` and the server's
    log. Raises `DemoFailed`.
    """
    if missing := [name for name in ("matplotlib", "skimage") if find_spec(name) is None]:
        raise DemoFailed(f"the demo needs {' and '.join(missing)}: pip install inrecon[demo]")
    started = time.perf_counter()
    console = Console(markup=False, highlight=False, soft_wrap=True)
    output.mkdir(parents=True, exist_ok=True)
    console.print(f"simulating an intervention of {frames} frames")
    stream = simulate(frames=frames)
    ahead = [stream.acquisitions(frame) for frame in range(frames)]
    answers: dict[str, Watched] = {}
    with running_server(output / "server.log") as (host, port):
        console.print(f"a server is listening on {host}:{port}; sending {rate:g} frames a second")
        # The first scan waits until the server's other process has loaded torch: not what is to be timed.
        watch(stream.header, ahead[:1], period_s=0, config="zero_filled", host=host, port=port)
        for name, config in _configurations(1 / rate, preset).items():
            with console.status(f"{name}: a stream of {frames / rate:.0f} s"):
                found = watch(stream.header, ahead, period_s=1 / rate, config=config, host=host, port=port)
            _check(name, found, last=frames - 1)
            warnings = [text for text in found.result.texts if text.startswith("WARNING")]
            if warnings:
                console.print(f"{name}: {len(warnings)} warnings, the first: {warnings[0]}")
            answers[name] = found
    for name, answer in answers.items():
        with replacing(output / f"{FILES[name]}.h5") as temporary:
            write_images(temporary, answer.result.images)
    _draw(output / "intervention.png", answers, stream)
    console.print(_table(answers, stream))
    console.print(f"{output / 'intervention.png'} shows them; the demo took {time.perf_counter() - started:.1f} s")


def _configurations(period_s: float, preset: Preset) -> dict[str, str]:
    """By method; that of the last one is ``inr_imri``, whose method is the hyperparameter file's."""
    wanted = {"deadline": period_s}
    return {
        LINEAR: live_configuration(method="cg_sense", **wanted),
        RESIDUAL: live_configuration(method="residual_tv", displacement=0, **wanted),
        NETWORK: live_configuration(preset=preset, **wanted),
    }


def _check(name: str, found: Watched, *, last: int) -> None:
    """Raises `DemoFailed` unless images came, that of the last frame among them, which nothing newer replaces."""
    errors = [text for text in found.result.texts if text.startswith("ERROR")]
    if errors or found.result.problem or last not in found.images:
        raise DemoFailed(f"{name}: {'; '.join(errors) or found.result.problem or 'the last frame has no image'}")


def _plane(found: Watched, frame: int) -> Image:
    """``(y, x)`` of a frame."""
    plane: Image = found.images[frame].data[0, 0]
    return plane


def _draw(path: Path, answers: Mapping[str, Watched], stream: Intervention) -> None:
    from inrecon_server.picture import intervention  # matplotlib is an extra

    late = max(set.intersection(*(set(answer.images) for answer in answers.values())))
    first = stream.truth(0)
    intervention(
        path,
        reference=stream.truth(late),
        before=first,
        images={FIRST: first, **{name: _plane(answer, late) for name, answer in answers.items()}},
        support=stream.support(late),
        changed=stream.changed(late),
        latency_s={name: list(answer.latency_s.values()) for name, answer in answers.items()},
        title=f"simulated intervention, frame {late}",
    )


def _table(answers: Mapping[str, Watched], stream: Intervention) -> Table:
    """How many frames have an image, how good these are (but the first one, which is fully sampled), how soon."""
    from inrecon.quality import change_error, psnr  # scikit-image is an extra

    heads = ("PSNR (dB)", "error in changed region", "latency (s): median", "95 %", "largest")
    table = Table(Column("method", no_wrap=True), "images", *heads)
    for name, answer in answers.items():
        quality, errors = [], []
        for frame in sorted(set(answer.images) - {0}):
            image, truth, support = _plane(answer, frame), stream.truth(frame), stream.support(frame)
            quality.append(psnr(image, truth, support))
            changed = stream.changed(frame)
            if changed.any():
                errors.append(change_error(image, truth, stream.truth(0), support=support, changed=changed))
        latency = np.percentile(list(answer.latency_s.values()), (50, 95, 100))
        means = (f"{np.mean(quality):.2f}", f"{np.mean(errors):.3f}" if errors else "-")
        images = f"{len(answer.images)} of {stream.frames}"
        table.add_row(name, images, *means, *(f"{seconds:.2f}" for seconds in latency))
    return table
