"""An axial abdomen as balanced SSFP shows it, at rest, in fractions of the field of view (see `phantom`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from inrecon.errors import InvalidFrame
from inrecon.simulate.phantom import Real, ellipse, paint, positions, random_fields

# Signal by the ratio of T2 to T1, fluid 1.
FAT, SKIN, MUSCLE, MESENTERY, LIVER, SPLEEN, KIDNEY, CORTEX = 0.80, 0.45, 0.26, 0.55, 0.42, 0.50, 0.62, 0.52
BLOOD, FLUID, BONE, MARROW, WALL, GAS, LESION = 0.85, 1.0, 0.06, 0.42, 0.38, 0.03, 0.72
BODY = (0.88, 0.68)  # semi-axes of the trunk
SPINE = (0.0, 0.34)
AORTA = (0.075, 0.175)
LIVER_CENTRE = (-0.40, -0.06)
TARGET = (-0.44, 0.02)  # centre of the lesion
TOWARDS_SKIN = (-0.45, -0.89)  # from the lesion, the way that the needle comes


def abdomen_phantom(shape: tuple[int, int], *, index: int = 0, seed: int = 0) -> NDArray[np.complex128]:
    """Slice `index` of a trunk ``(y, x)``: complex, largest magnitude about 1.3, exactly zero outside the skin.

    Fat under the skin, muscles, liver with vessels and a lesion at `TARGET`, stomach with a gas bubble, bowel, spleen,
    kidneys, aorta and vena cava, spine; texture of several scales; smooth phase. Slices have their texture, shapes and
    vessels for themselves and their organs in the same places. Raises `InvalidFrame` for an empty shape.
    """
    if min(shape) < 1:
        raise InvalidFrame(f"a phantom needs a positive shape, not {shape}")
    rng = np.random.default_rng((seed, index, 3))
    u, v = positions(shape)
    field = random_fields(rng, shape)
    u, v = u + 0.010 * field(3.0), v + 0.010 * field(3.0)
    angle = np.arctan2(v, u)
    outline = 1 - (0.015 * index) % 0.1 + sum(rng.normal(0, 0.006) * np.cos(k * angle) for k in (2, 3, 4))
    radius = (np.abs(u / BODY[0]) ** 2.3 + np.abs(v / BODY[1]) ** 2.3) ** (1 / 2.3) / outline

    signal = _organs(u, v, field, rng)
    signal = _trunk(signal, u, v, radius, field)
    signal *= 1 + 0.03 * field(9.0) + 0.035 * field(40.0, 8.0) + 0.03 * field(150.0, 40.0)
    shading = 1 + 0.10 * field(1.5)
    phase = 0.6 * field(2.0) + rng.normal(0, 0.5) * u + rng.normal(0, 0.5) * v + rng.uniform(-np.pi, np.pi)
    image: NDArray[np.complex128] = np.where(radius < 1, np.maximum(signal, 0.01) * shading, 0) * np.exp(1j * phase)
    return image


def _organs(u: Real, v: Real, field: Callable[..., Real], rng: np.random.Generator) -> Real:
    """What lies within the muscles, painted from the back of the picture to its front."""
    wobble = 0.012 * field(8.0)
    signal = MESENTERY * (1 + 0.10 * field(14.0) + 0.12 * field(50.0, 12.0))
    for _ in range(14):  # loops of bowel
        centre = (rng.uniform(-0.05, 0.60), rng.uniform(-0.30, 0.18))
        axes, tilt = (rng.uniform(0.05, 0.10), rng.uniform(0.04, 0.06)), rng.uniform(0, np.pi)
        loop = ellipse(u, v, centre=centre, axes=axes, tilt=tilt) + wobble
        signal = paint(signal, WALL, loop - 0.012)
        signal = paint(signal, rng.choice([0.9, 0.6, GAS], p=[0.45, 0.4, 0.15]) * (1 + 0.1 * field(30.0, 5.0)), loop)
    for side in (-1, 1):
        kidney = ellipse(u, v, centre=(0.37 * side, 0.29), axes=(0.12, 0.15), tilt=0.4 * side) + wobble
        signal = paint(signal, CORTEX * (1 + 0.05 * field(30.0)), kidney)
        signal = paint(signal, KIDNEY * (1 + 0.10 * field(22.0, 5.0)), kidney + 0.03)
        pelvis = ellipse(u, v, centre=(0.33 * side, 0.28), axes=(0.03, 0.05), tilt=0.4 * side) + 0.6 * wobble
        signal = paint(signal, FLUID, pelvis)
    spleen = ellipse(u, v, centre=(0.60, 0.12), axes=(0.13, 0.24), tilt=0.15) + wobble
    signal = paint(signal, SPLEEN * (1 + 0.05 * field(20.0)), spleen)
    stomach = ellipse(u, v, centre=(0.34, -0.24), axes=(0.25, 0.16), tilt=0.25) + wobble
    signal = paint(signal, WALL, stomach - 0.02)
    signal = paint(signal, 0.85 * FLUID * (1 + 0.08 * field(18.0)), stomach)
    signal = paint(signal, GAS, np.maximum(stomach + 0.01, v + 0.32 + 0.3 * wobble))  # the bubble floats on top
    signal = _liver(signal, u, v, field, rng)
    for centre, axes in ((AORTA, (0.045, 0.045)), ((-0.105, 0.165), (0.060, 0.040))):
        vessel = ellipse(u, v, centre=centre, axes=axes) + 0.2 * wobble
        signal = paint(signal, WALL, vessel - 0.008)
        signal = paint(signal, BLOOD * (1 + 0.05 * field(20.0)), vessel)
    return signal


def _liver(signal: Real, u: Real, v: Real, field: Callable[..., Real], rng: np.random.Generator) -> Real:
    """Two lobes, vessels where a random field is near zero, wider towards the hilum, and the lesion."""
    right = ellipse(u, v, centre=LIVER_CENTRE, axes=(0.36, 0.42), tilt=0.15)
    left = ellipse(u, v, centre=(-0.02, -0.30), axes=(0.26, 0.14), tilt=-0.2)
    liver = np.minimum(right, left) + 0.014 * field(6.0)
    signal = paint(signal, LIVER * (1 + 0.05 * field(6.0) + 0.05 * field(70.0, 12.0)), liver)
    hilum = np.hypot(u + 0.14, v + 0.02)
    width = np.maximum(0.020 - 0.022 * hilum, 0.004)
    for high in (5.0, 9.0):
        tree = field(high)
        slope = np.hypot(*np.gradient(tree, 2 / len(tree), 2 / tree.shape[1])) + 1.0  # a change per unit of length
        vessel = np.maximum(np.abs(tree) / slope - width, np.abs(field(high)) * 0.1 - 0.08)
        signal = paint(signal, BLOOD * (1 + 0.06 * field(20.0)), np.maximum(vessel, liver + 0.03))
    gall = ellipse(u, v, centre=(-0.16, -0.17), axes=(0.05, 0.08), tilt=0.5)
    signal = paint(signal, FLUID, gall + 0.006 * field(8.0))
    axes = (rng.uniform(0.050, 0.062), rng.uniform(0.045, 0.055))
    lesion = ellipse(u, v, centre=TARGET, axes=axes, tilt=rng.uniform(0, np.pi)) + 0.004 * field(20.0)
    signal = paint(signal, 0.6 * LIVER, lesion - 0.012)
    return paint(signal, LESION * (1 + 0.12 * field(40.0, 8.0)), lesion)


def _trunk(signal: Real, u: Real, v: Real, radius: Real, field: Callable[..., Real]) -> Real:
    """Wall of muscle, ribs, spine with the muscles beside it, fat and skin around."""
    ripple = 0.006 * field(10.0)
    lobules = FAT * (1 + 0.08 * field(12.0) + 0.10 * field(60.0, 14.0))
    fibres = MUSCLE * (1 + 0.15 * field(60.0, 8.0))
    signal = paint(signal, fibres, 0.820 - radius + ripple)
    angle = np.arctan2(v, u)
    rib = np.maximum(np.abs(radius - 0.855) - 0.016, 0.05 * (0.55 - np.cos(11 * angle)))
    signal = paint(signal, MARROW * (1 + 0.2 * field(50.0)), rib)
    for side in (-1, 1):
        beside = ellipse(u, v, centre=(0.19 * side, 0.46), axes=(0.17, 0.10), tilt=-0.15 * side) + ripple
        signal = paint(signal, fibres, np.maximum(beside, radius - 0.9))
    for colour, centre, axes in (
        (BONE, SPINE, (0.135, 0.115)),
        (MARROW * (1 + 0.15 * field(50.0, 8.0)), SPINE, (0.120, 0.100)),
        (BONE, (0.0, 0.545), (0.020, 0.075)),
        (BONE, (0.0, 0.465), (0.062, 0.050)),
        (FLUID, (0.0, 0.465), (0.048, 0.036)),
        (0.6, (0.0, 0.470), (0.024, 0.018)),
    ):
        signal = paint(signal, colour, ellipse(u, v, centre=centre, axes=axes) + 0.4 * ripple)
    signal = paint(signal, lobules, 0.895 + 0.03 * np.cos(2 * angle) - radius + ripple)
    return paint(signal, SKIN, 0.988 - radius)
