"""An anatomy-like object and the coils around it, in fractions of the field of view.

Positions are ``(u, v)`` in [-1, 1) along x (left to right) and y (front to back) of a field of view with the centre
at pixel ``n // 2``, so one seed gives one head at every matrix size. Nothing here is piecewise flat: tissue carries
random texture of several scales, the finest 150 cycles a field of view, so total variation has no head start.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from inrecon.errors import InvalidFrame

Real = NDArray[np.float64]

# T2-weighted signal, cerebrospinal fluid 1.
FAT, BONE, MARROW, FLUID, GREY, WHITE, DEEP_GREY, PALLIDUM = 0.62, 0.04, 0.24, 1.0, 0.58, 0.40, 0.47, 0.31
HEAD = (0.70, 0.86)  # semi-axes of the head
EDGE = 0.006  # half width of a tissue boundary: about half a pixel at 192 pixels


def brain_phantom(shape: tuple[int, int], *, seed: int = 0) -> NDArray[np.complex128]:
    """An axial, T2-weighted head ``(y, x)``: complex, largest magnitude about 1, exactly zero outside the head.

    Scalp, skull, folded cortex, ventricles, deep nuclei and vessels; texture of several scales; smooth phase with
    a bump in front, where air spaces disturb the field of a real head. Raises `InvalidFrame` for an empty shape.
    """
    if min(shape) < 1:
        raise InvalidFrame(f"a phantom needs a positive shape, not {shape}")
    rng = np.random.default_rng(seed)
    u, v = positions(shape)
    field = random_fields(rng, shape)
    u, v = u + 0.008 * field(3.0), v + 0.008 * field(3.0)
    angle = np.arctan2(v, u)
    outline = 1 + sum(rng.normal(0, 0.007) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4))
    radius = np.hypot(u / HEAD[0], v / HEAD[1]) / outline

    signal = _brain(u, v, radius, field, rng)
    signal = _shell(signal, radius, field)
    shading = 1 + 0.12 * field(1.5) - 0.10 * v
    phase = 0.5 * field(2.0) + rng.normal(0, 0.5) * u + rng.normal(0, 0.5) * v + rng.uniform(-np.pi, np.pi)
    phase += 1.6 * np.exp(-((u / 0.30) ** 2 + ((v + 0.70) / 0.22) ** 2))
    image: NDArray[np.complex128] = np.where(radius < 1, signal * shading, 0) * np.exp(1j * phase)
    return image


def coil_maps(shape: tuple[int, int], coils: int, *, seed: int = 0) -> NDArray[np.complex128]:
    """Sensitivities ``(coils, y, x)`` of loops on a ring around the head, with unit root-sum-of-squares everywhere.

    Each is the transverse field of a circular loop whose axis points at the head, by the law of Biot and Savart,
    with receiver phases, radii and places drawn from `seed`. What all coils share belongs to the object.
    Raises `InvalidFrame` for no coils or an empty shape.
    """
    if coils < 1 or min(shape) < 1:
        raise InvalidFrame(f"coil maps need at least one coil and a positive shape, not {coils} coils on {shape}")
    rng = np.random.default_rng(seed)
    u, v = positions(shape)
    loop_radius = min(0.62, 4.6 / coils)
    maps = np.empty((coils, *shape), np.complex128)
    for coil in range(coils):
        angle = 2 * np.pi * (coil + rng.uniform(-0.12, 0.12)) / coils
        away, loop = 1.2 * rng.uniform(0.97, 1.08), loop_radius * rng.uniform(0.9, 1.1)
        maps[coil] = _loop_field(u, v, angle=angle, away=away, loop=loop) * np.exp(2j * np.pi * rng.uniform())
    maps /= np.linalg.norm(maps, axis=0)
    return maps


def positions(shape: tuple[int, int]) -> tuple[Real, Real]:
    """Pixel positions ``(u, v)``, each broadcastable to `shape`, in halves of the field of view."""
    rows, columns = (2 * (np.arange(n) - n // 2) / n for n in shape)
    return columns[None, :], rows[:, None]


def _loop_field(u: Real, v: Real, *, angle: float, away: float, loop: float) -> NDArray[np.complex128]:
    """Transverse field of a current loop; its lower half mirrors the upper, so half the segments do."""
    steps, segments = 10, np.zeros(np.broadcast(u, v).shape, np.complex128)
    outward, along = np.exp(1j * angle), 1j * np.exp(1j * angle)
    for phi in np.pi * (np.arange(steps) + 0.5) / steps:
        centre = away * outward + loop * np.cos(phi) * along
        height = loop * np.sin(phi)
        x, y = u - centre.real, v - centre.imag
        distance = np.sqrt(x**2 + y**2 + height**2) ** 3
        current = -np.sin(phi) * along
        # dl x R with dl = (current, cos phi) and R = (x, y, -height)
        across = -current.imag * height - np.cos(phi) * y
        upward = np.cos(phi) * x + current.real * height
        segments += (across - 1j * upward) / distance
    return segments


def random_fields(rng: np.random.Generator, shape: tuple[int, int]) -> Callable[..., Real]:
    """A maker of random fields of unit variance, band-limited in cycles a field of view."""

    def field(high: float, low: float = 0.0) -> Real:
        reach = int(np.ceil(high))
        orders = np.arange(-reach, reach + 1)
        k = np.hypot(orders[:, None], orders)
        band = np.exp(-((k / high) ** 4)) * (k >= low) * (k > 0)
        spectrum = band * (rng.normal(size=k.shape) + 1j * rng.normal(size=k.shape))
        # One matrix of waves an axis: exact on any grid, coarser ones included (they fold as a camera would).
        waves = [np.exp(2j * np.pi * np.outer((np.arange(n) - n // 2) / n, orders)) for n in shape]
        values: Real = (waves[0] @ spectrum @ waves[1].T).real / np.linalg.norm(band)
        return values

    return field


def inside(distance: Real) -> Real:
    """1 where `distance` is negative, 0 where it is positive, a ramp of a tissue boundary's width between."""
    return np.clip(0.5 - distance / (2 * EDGE), 0, 1)


def ellipse(u: Real, v: Real, *, centre: tuple[float, float], axes: tuple[float, float], tilt: float = 0.0) -> Real:
    """Distance (nearly) to the edge of an ellipse, negative inside."""
    x, y = u - centre[0], v - centre[1]
    x, y = x * np.cos(tilt) + y * np.sin(tilt), y * np.cos(tilt) - x * np.sin(tilt)
    distance: Real = (np.hypot(x / axes[0], y / axes[1]) - 1) * min(axes)
    return distance


def paint(signal: Real, colour: Real | float, distance: Real) -> Real:
    """`signal` with `colour` where `distance` is negative."""
    cover = inside(distance)
    return signal * (1 - cover) + colour * cover


def _folds(u: Real, v: Real, radius: Real, rng: np.random.Generator) -> Real:
    """A random field whose zero lines run like sulci: plane waves in coordinates stretched along the radius."""
    stretch = (0.55 + 0.45 * radius) / np.maximum(radius, 0.2)
    x, y = u / HEAD[0] * stretch, v / HEAD[1] * stretch
    waves: Real = np.zeros_like(radius)
    for direction in np.arange(24) * (np.pi / 24):
        k = rng.normal(27, 4.0)
        waves += np.cos(k * (x * np.cos(direction) + y * np.sin(direction)) + rng.uniform(0, 2 * np.pi))
    folds: Real = waves / np.sqrt(12)
    return folds


def _brain(u: Real, v: Real, radius: Real, field: Callable[..., Real], rng: np.random.Generator) -> Real:
    """Everything inside the skull: white matter, then what lies on it, from the inside out."""
    depth = 0.848 - radius + 0.008 * field(14.0)  # below the cortex' outer surface
    side = np.abs(u + 0.012 * np.sin(5 * v))
    texture = 1 + 0.035 * field(9.0) + 0.03 * field(40.0, 8.0) + 0.03 * field(150.0, 40.0)

    white = WHITE * (1 + 0.05 * field(5.0))
    grey = GREY * (1 + 0.05 * field(24.0, 3.0))
    fissure = side - 0.004 - 0.004 * np.abs(field(12.0)) + 1.5 * np.maximum(0.29 - np.abs(v + 0.02), 0)
    sylvian = np.abs(v + 0.10 - 0.25 * (side - 0.45) + 0.02 * field(10.0)) + 2 * np.maximum(0.38 - side, 0) - 0.006
    folds = np.abs(_folds(u, v, radius, rng)) / 24  # a slope of about 1 at the zero lines
    buried = np.maximum(depth - 0.23 - 0.06 * field(6.0), 0)  # how far below the reach of the sulci
    sulcus = np.minimum.reduce([folds + 1.5 * buried - 0.004 - 0.004 * np.abs(field(10.0)), fissure, sylvian])
    ribbon = np.minimum(sulcus - 0.026, depth - 0.034) + 0.006 * field(20.0, 3.0)
    signal = paint(white, grey, ribbon)
    signal = _deep(signal, u, v, field)
    signal = paint(signal, FLUID, sulcus)
    for _ in range(40):  # perivascular spaces and vessels in the fluid: a pixel or two across
        place, size = rng.uniform(-0.5, 0.5, 2) * (1, 1.2), rng.uniform(0.003, 0.006)
        spot = ellipse(u, v, centre=(place[0], place[1]), axes=(size, 2 * size), tilt=rng.uniform(0, np.pi))
        signal = paint(signal, rng.choice([0.75, 0.2], p=[0.85, 0.15]), spot)
    signal *= texture
    return paint(signal, FLUID * (1 + 0.04 * field(30.0)), depth)


def _deep(signal: Real, u: Real, v: Real, field: Callable[..., Real]) -> Real:
    """Nuclei and ventricles, both sides alike but for a wobble."""
    wobble = 0.012 * field(6.0)
    side = np.abs(u + 0.01 * field(4.0))
    parts = (
        (DEEP_GREY, (0.245, -0.02), (0.075, 0.16), -0.25),  # putamen
        (PALLIDUM, (0.190, 0.00), (0.036, 0.085), -0.35),
        (DEEP_GREY, (0.105, 0.10), (0.075, 0.105), -0.35),  # thalamus
        (DEEP_GREY, (0.135, -0.20), (0.040, 0.085), -0.45),  # caudate
        (FLUID, (0.072, -0.215), (0.030, 0.105), -0.35),  # frontal horn
        (FLUID, (0.205, 0.285), (0.040, 0.120), -0.40),  # atrium
        (FLUID, (0.000, 0.080), (0.012, 0.095), 0.0),  # third ventricle
    )
    for colour, centre, axes, tilt in parts:
        signal = paint(signal, colour, ellipse(side, v, centre=centre, axes=axes, tilt=tilt) + wobble)
    plexus = ellipse(side, v, centre=(0.200, 0.270), axes=(0.018, 0.055), tilt=-0.4) + 0.012 * field(50.0, 10.0)
    return paint(signal, 0.55, plexus)


def _shell(signal: Real, radius: Real, field: Callable[..., Real]) -> Real:
    """Skull with its marrow, and a scalp with fat lobules, around the brain."""
    ripple = 0.003 * field(10.0)
    signal = paint(signal, BONE * (1 + 0.3 * field(60.0)), 0.876 - radius + ripple)
    marrow = np.abs(radius - 0.905 - ripple) - 0.010 - 0.004 * field(16.0)
    signal = paint(signal, MARROW * (1 + 0.25 * field(60.0, 10.0)), marrow)
    lobules = FAT * (1 + 0.10 * field(16.0) + 0.14 * field(80.0, 16.0))
    signal = paint(signal, lobules, 0.936 - radius + ripple)
    return np.maximum(paint(signal, 0.35, 0.985 - radius), 0.01)
