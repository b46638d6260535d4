"""The scans that judge hyperparameters: frames with samples held out, or with the truth beside them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from inrecon.errors import InvalidFrame
from inrecon.frame import Frame, Protocol, RawFrame
from inrecon.methods import CGSense, hold_out
from inrecon.stream import frames_of

FRACTION = 0.2
"""The part of the samples that judges, as in the bilevel paper (section III-D)."""

Item = TypeVar("Item")


class NotTunable(InvalidFrame):
    """Scans that tell nothing about hyperparameters: too few samples, or of several protocols."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A frame, and what judges its images: its held-out samples or, in oracle mode, `reference` ``(rows, columns)``."""

    frame: Frame
    reference: torch.Tensor | None = None

    def loss(self, image: torch.Tensor) -> float | None:
        """`Frame.loss`, or the NRMSE of the magnitude inside the support, after a least-squares scale."""
        if self.reference is None:
            return self.frame.loss(image)
        found, truth = magnitude(image)[self.frame.maps.support], self.reference[self.frame.maps.support]
        scale = (found @ truth) / (found @ found).clamp(min=torch.finfo(found.dtype).tiny)
        return float(torch.linalg.vector_norm(scale * found - truth) / torch.linalg.vector_norm(truth))


@dataclass(frozen=True, kw_only=True)
class Scans:
    """What hyperparameters are judged by: `groups` of frames that can be fitted side by side, one for each frame and
    fold; the `protocol` that they have in common (of the first one: coils and acceleration may vary), and a `sha256`
    of the readouts."""

    groups: tuple[tuple[Judged, ...], ...]
    protocol: Protocol
    sha256: str

    @property
    def judged(self) -> list[Judged]:
        """All of them."""
        return [judged for group in self.groups for judged in group]


def judged_scans(
    raws: Iterable[RawFrame],
    *,
    device: str,
    folds: int = 1,
    slices: int = 3,
    full: Iterable[RawFrame] | None = None,
) -> Scans:
    """At most `slices` frames of `raws`, each `folds` times with other samples held out.

    Of more frames, those at even distances are taken, for neighbours tell the same. A fifth of the samples is held out,
    in stretches of readouts (`hold_out`): the paper's single samples rank images worse. With `full`, the same frames
    fully sampled, nothing is held out and their images judge (the paper's oracle). Raises `NotTunable` for scans of
    different protocols, for too few samples, and for a `full` that does not fit; and what `frames_of` raises.
    """
    given = list(raws)
    chosen = _evenly(given, slices)
    if not chosen:
        raise NotTunable("there is no frame to tune on")
    for raw in given:
        _same(given[0].protocol, raw.protocol)
    if full is None:
        frames = _evenly([frame for raw in chosen for frame in frames_of(raw, device=device)], slices)
        judged = [Judged(frame=hold_out(frame, FRACTION, seed=fold)) for frame in frames for fold in range(folds)]
        if any(one.loss(one.frame.kspace.new_zeros(one.frame.operator.domain_shape)) is None for one in judged):
            raise NotTunable("the scan has too few samples, or too dark ones, to hold a fifth of them out")
    else:
        judged = _evenly(_with_truth(chosen, list(full), device=device), slices)
    return Scans(groups=tuple(map(tuple, _alike(judged))), protocol=chosen[0].protocol, sha256=_hash(chosen))


def _with_truth(raws: Sequence[RawFrame], full: Sequence[RawFrame], *, device: str) -> list[Judged]:
    """The frames of `raws`, each beside the image of the frame of `full` with the same key."""
    by_key = {raw.key: raw for raw in full}
    judged = []
    for raw in raws:
        whole = by_key.get(raw.key)
        if whole is None:
            raise NotTunable(f"the fully sampled file has no frame {raw.key}")
        for frame, truth in zip(frames_of(raw, device=device), frames_of(whole, device=device), strict=True):
            if truth.operator.grid != frame.operator.grid:
                raise NotTunable(f"the fully sampled frame is {truth.operator.grid}, the other {frame.operator.grid}")
            if not truth.operator.mask.all():
                raise NotTunable("the file that was called fully sampled is not")
            image = magnitude(CGSense(regularisation=0.0, noise_factor=0.0).fit(truth).image)
            judged.append(Judged(frame=replace(frame, held_out=None), reference=image))
    return judged


def magnitude(image: torch.Tensor) -> torch.Tensor:
    """``(rows, columns)``: the root sum of squares over sets of coil maps, which are orthogonal."""
    return image.abs() if image.ndim == 2 else torch.linalg.vector_norm(image, dim=0)


def _evenly(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of `items`, the middle of each of as many equal parts."""
    if len(items) <= count:
        return list(items)
    return [items[(2 * part + 1) * len(items) // (2 * count)] for part in range(count)]


def _same(first: Protocol, other: Protocol) -> None:
    for name in ("sequence", "anatomy", "field_strength_T", "trajectory"):
        if getattr(first, name) != getattr(other, name):
            raise NotTunable(
                f"the scans are of different protocols: {name} is {getattr(first, name)!r} and {getattr(other, name)!r}"
            )


def _alike(judged: Sequence[Judged]) -> list[list[Judged]]:
    """Frames with the same samples, coils and sets of maps together: what `LowerLevel` can fit side by side."""
    groups: dict[tuple[object, ...], list[Judged]] = defaultdict(list)
    for one in judged:
        operator = one.frame.operator
        groups[operator.domain_shape, operator.range_shape, operator.mask.cpu().numpy().tobytes()].append(one)
    return list(groups.values())


def _hash(raws: Sequence[RawFrame]) -> str:
    """Of the readouts alone, so that nothing about a patient is in it."""
    found = hashlib.sha256()
    for raw in raws:
        found.update(raw.imaging.kspace.tobytes())
        found.update(raw.imaging.lines.tobytes())
    return found.hexdigest()[:16]
