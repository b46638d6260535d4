"""Reconstructions side by side in a PNG, with their errors where the truth is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from inrecon.errors import InvalidFrame
from inrecon.quality import change_error, measure, psnr, scale_to

Image = NDArray[np.number]

ERROR_GAIN = 5
MARGIN = 6
GROUND, INK, QUIET, ACCENT = "#000000", "#f2f2f2", "#b4b8be", "#e69f00"
LINES = ("#56b4e9", "#e69f00", "#cc79a7", "#009e73")
PANEL_INCHES, CAPTION_INCHES, TITLE_INCHES, DOTS_PER_INCH = 3.0, 0.55, 0.4, 150


def side_by_side(
    path: Path,
    *,
    reference: Image | None,
    images: Mapping[str, Image],
    support: NDArray[np.bool_] | None,
    title: str,
) -> None:
    """Write a PNG of the magnitudes of `images` ``(rows, columns)``, named, in one grey window.

    With a `reference` that one comes first, every image is scaled to it (least squares inside `support`) and carries
    its PSNR and SSIM, and a second row shows the magnitude of each error inside `support`, five times brighter.
    Without one there are neither, and each image is shown by its own brightness. `support` None means everywhere.
    Raises `InvalidFrame` for no images or unequal shapes.
    """
    everything = [*images.values(), *([] if reference is None else [reference])]
    shapes = {image.shape for image in everything}
    if not images or len(shapes) != 1 or everything[0].ndim != 2:
        raise InvalidFrame(f"a picture needs images of one two-dimensional shape, not {sorted(shapes)}")
    if reference is None:
        figure = _without_truth(images, title=title)
    else:
        inside = np.ones(reference.shape, bool) if support is None else support
        figure = _with_truth(images, reference, inside, title=title)
    figure.savefig(path, format="png")


def intervention(
    path: Path,
    *,
    reference: Image,
    before: Image,
    images: Mapping[str, Image],
    support: NDArray[np.bool_],
    changed: NDArray[np.bool_],
    latency_s: Mapping[str, Sequence[float]],
    title: str,
) -> None:
    """Write a PNG of a frame of an interventional stream: `reference` is its truth, `before` that of the first frame.

    As `side_by_side` has it, but each image carries its error in the region that has `changed`, over that of `before`,
    and the errors are grey, in one window, that region outlined. Below the reference is a histogram of `latency_s`,
    the seconds that images took, by method. Raises `InvalidFrame` for unequal shapes.
    """
    near = _around(support)
    figure, panels = _sheet(2, 1 + len(images), support[near].shape, title=title)
    white = _peak(np.abs(reference)[support])
    truth = np.abs(reference) / white
    _show(panels[0, 0], truth[near], name="truth", note=f"errors below are {ERROR_GAIN} times brighter")
    for (above, below), (name, image) in zip(panels.T[1:], images.items(), strict=True):
        note = f"PSNR {psnr(image, truth, support):.1f} dB"
        if changed.any():
            error = change_error(image, truth, np.abs(before) / white, support=support, changed=changed)
            note = f"changed region {error:.2f}    {note}"
            below.contour(changed[near], levels=[0.5], colors=[ACCENT], linewidths=0.6, alpha=0.7)
        fitted = np.abs(image) * scale_to(image, truth, support)
        _show(above, fitted[near], name=name, note=note)
        below.imshow(np.abs(fitted - truth)[near], cmap="gray", vmin=0, vmax=1 / ERROR_GAIN)
    _latencies(panels[1, 0], latency_s)
    figure.savefig(path, format="png")


def _around(support: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The box of `support` and a little beyond."""
    ends = [(int(at.min()), int(at.max())) for at in np.nonzero(support)]
    down, across = (slice(max(first - MARGIN, 0), last + 1 + MARGIN) for first, last in ends)
    return down, across


def _latencies(axes: Axes, latency_s: Mapping[str, Sequence[float]]) -> None:
    """How long images took, in the place of an image."""
    inset = axes.inset_axes((0.14, 0.2, 0.82, 0.76), facecolor=GROUND)
    longest = max((seconds for times in latency_s.values() for seconds in times), default=1.0)
    edges = np.linspace(0, longest, 21).tolist()
    colours = [LINES[number % len(LINES)] for number in range(len(latency_s))]
    inset.hist(list(latency_s.values()), bins=edges, stacked=True, color=colours, label=list(latency_s))
    inset.set_xlabel("seconds from last readout to image", color=INK, fontsize=9)
    inset.set_ylabel("frames", color=INK, fontsize=9)
    inset.tick_params(colors=QUIET, labelsize=8)
    inset.legend(fontsize=8, labelcolor=INK, frameon=False)


def _without_truth(images: Mapping[str, Image], *, title: str) -> Figure:
    figure, panels = _sheet(1, len(images), next(iter(images.values())).shape, title=title)
    for axes, (name, image) in zip(panels[0], images.items(), strict=True):
        modulus = np.abs(image)
        _show(axes, modulus / _peak(modulus), name=name)
    return figure


def _with_truth(images: Mapping[str, Image], reference: Image, inside: NDArray[np.bool_], *, title: str) -> Figure:
    figure, panels = _sheet(2, 1 + len(images), reference.shape, title=title)
    truth = np.abs(reference) / _peak(np.abs(reference)[inside])
    _show(panels[0, 0], truth, name="reference", note="fully sampled")
    for (above, below), (name, image) in zip(panels.T[1:], images.items(), strict=True):
        quality = measure(image, truth, inside)
        fitted = np.abs(image) * scale_to(image, truth, inside)
        _show(above, fitted, name=name, note=f"PSNR {quality.psnr:.1f} dB    SSIM {quality.ssim:.3f}")
        errors = below.imshow(np.where(inside, np.abs(fitted - truth), 0), cmap="inferno", vmin=0, vmax=1 / ERROR_GAIN)
    _error_scale(figure, panels[1, 0], errors)
    return figure


def _sheet(rows: int, columns: int, shape: tuple[int, ...], *, title: str) -> tuple[Figure, NDArray[np.object_]]:
    """A dark figure with a grid of panels without axes."""
    tall = PANEL_INCHES * shape[0] / shape[1]
    size = (PANEL_INCHES * columns, TITLE_INCHES + CAPTION_INCHES + rows * tall)
    layout = ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.03)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, facecolor=GROUND, layout=layout)
    figure.suptitle(title, color=INK, fontsize=14, wrap=True)
    panels = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"wspace": 0.02, "hspace": 0.02})
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[], facecolor=GROUND)
        axes.spines[:].set_visible(False)
    return figure, panels


def _peak(modulus: NDArray[np.floating]) -> float:
    """What is shown white: the few brightest pixels must not darken the picture."""
    return float(np.percentile(modulus, 99.7)) or 1.0


def _show(axes: Axes, modulus: NDArray[np.floating], *, name: str, note: str = "") -> None:
    """A magnitude image, 1 white, over its name and a note in smaller type."""
    axes.imshow(modulus, cmap="gray", vmin=0, vmax=1)
    axes.set_xlabel(name, color=INK, fontsize=12, labelpad=4)
    axes.annotate(
        note,
        (0.5, 0),
        xytext=(0, -23),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="center",
        va="top",
        color=QUIET,
        fontsize=10,
    )


def _error_scale(figure: Figure, axes: Axes, errors: AxesImage) -> None:
    """What the colours of the error maps mean, in the panel below the reference."""
    bar = axes.inset_axes((0.86, 0.12, 0.045, 0.76))
    ticks = np.linspace(0, 1 / ERROR_GAIN, 5)
    figure.colorbar(errors, cax=bar, ticks=ticks, format=PercentFormatter(xmax=1, decimals=0))
    bar.yaxis.set_ticks_position("left")
    bar.tick_params(colors=QUIET, labelsize=10)
    bar.spines[:].set_visible(False)
    axes.text(0.62, 0.56, f"error x {ERROR_GAIN}", color=INK, fontsize=12, ha="right", transform=axes.transAxes)
    axes.text(0.62, 0.44, "per cent of white", color=QUIET, fontsize=10, ha="right", transform=axes.transAxes)
