"""GRAPPA: missing k-space from acquired neighbours of all coils (Griswold et al., Magn Reson Med 47:1202, 2002)."""

from __future__ import annotations

import dataclasses

import torch

from inrecon.errors import CalibrationFailed
from inrecon.frame import Frame, Reconstruction
from inrecon.methods.method import InvalidHyperparameter, Method, bounded, methods, tunable
from inrecon.operators import CartesianSense

Anchor = tuple[int, int]
Geometry = tuple[Anchor, ...]
"""Acquired neighbours of a missing sample, as offsets ``(rows, columns)`` from it."""


@methods.register("grappa")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Grappa(Method):
    """Fill k-space by y_j(k) = sum_{c, o} n_{j, c, o} y_c(k + o), then combine the coils' images by the maps.

    One set of weights n for each geometry of offsets o. Where whole lines are acquired, a missing line is made of
    the `lines` nearest ones, half of them on each side, and of `columns` samples of each (an odd number); otherwise a
    missing sample is made of what was acquired up to `radius` positions away along either axis. The weights solve

        min_n sum_k |sum_{c, o} n_{c, o} y_c(k + o) - y_j(k)|^2 + regularisation * (mean of the diagonal) * |n|^2

    over every k of the scan where the sample and all its neighbours were acquired: calibration lines, together with
    the regular lines around them. A geometry with fewer such k than `overdetermination` times its unknowns gives up
    its furthest neighbours, one by one. Outside the acquired region (partial Fourier, partial echo) k-space stays zero.

    The coils are combined with the frame's maps, by each of their sets, so that the intensity is CG-SENSE's.
    """

    regularisation: float = tunable(1e-2, low=1e-8, high=1e-1, log=True)
    lines: int = bounded(4, low=2, high=16)
    columns: int = bounded(5, low=1, high=31)
    radius: int = bounded(3, low=1, high=8)
    overdetermination: float = bounded(2.0, low=1.0, high=100.0)
    max_geometries: int = bounded(400, low=1, high=100_000)

    def __post_init__(self) -> None:
        if self.columns % 2 == 0:
            raise InvalidHyperparameter(f"grappa.columns must be odd, as many on either side, not {self.columns}")

    def fit(self, frame: Frame) -> Reconstruction:
        """Fill and combine; raises `CalibrationFailed` where the sampling pattern leaves a kernel undetermined."""
        mask = frame.operator.mask
        filled = self._filled(frame.operator.centred(frame.kspace), mask)
        everywhere = CartesianSense(frame.maps.csm, torch.ones_like(mask))
        image = everywhere.adjoint(everywhere.arrange(filled))
        return Reconstruction(image=image, iterations=1, stopped_by="closed form")

    def judged(self, frame: Frame) -> Reconstruction:
        """`fit`, without a loss: kernels serve the pattern as acquired, not one with readouts taken out."""
        return self.fit(frame)

    def _filled(self, kspace: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Centred k-space ``(coils, rows, columns)`` with every missing sample of the acquired region."""
        inside = acquired_region(mask)
        whole_lines = bool((inside == mask)[mask.any(1)].all())
        groups = _line_groups(mask, inside, self.lines) if whole_lines else _point_groups(mask, inside, self.radius)
        if len(groups) > self.max_geometries:
            raise CalibrationFailed(
                f"grappa would need {len(groups)} kernels for this sampling pattern, more than max_geometries = "
                f"{self.max_geometries}: it serves regular patterns, not random or Poisson-disc ones"
            )
        half = self.columns // 2 if whole_lines else 0
        grid = _Grid.around(kspace, mask, groups, half=half)
        filled = grid.kspace.clone()
        for geometry, positions in groups.items():
            sources, equations = self._equations(geometry, grid, half=half)
            kernel = calibrated_kernel(
                grid.gathered(equations, sources), grid.kspace[:, equations].T, regularisation=self.regularisation
            )
            targets = grid.flat(positions)
            filled[:, targets] = (grid.gathered(targets, sources) @ kernel).T
        return grid.cropped(filled)

    def _equations(self, geometry: Geometry, grid: _Grid, *, half: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Flat offsets of the largest kernel that can be calibrated, and the positions that do it.

        Raises `CalibrationFailed` if not even two neighbours can.
        """
        anchors = sorted(geometry, key=_distance)
        while len(anchors) >= 2:
            sources = grid.offsets([(r, c + d) for r, c in anchors for d in range(-half, half + 1)])
            equations = grid.complete(sources)
            if len(equations) >= self.overdetermination * len(sources) * len(grid.kspace):
                return sources, equations
            anchors.pop()
        raise CalibrationFailed(
            f"grappa cannot calibrate a kernel for a missing sample with neighbours at {_listed(geometry)} (rows, "
            "columns): too few places where sample and neighbours were acquired; more calibration lines or a regular "
            "pattern would help"
        )


def calibrated_kernel(sources: torch.Tensor, targets: torch.Tensor, *, regularisation: float) -> torch.Tensor:
    """argmin |sources n - targets|^2 + regularisation * mean(diag(sources^H sources)) |n|^2, ``(unknowns, coils)``.

    `sources` ``(equations, unknowns)``, `targets` ``(equations, coils)``; solved in double precision, since the normal
    equations square the condition number.
    """
    matrix = sources.to(torch.complex128)
    normal = matrix.mH @ matrix
    mean = normal.diagonal().real.mean().clamp_min(1e-100)
    normal.diagonal().add_(regularisation * mean)
    kernel: torch.Tensor = torch.linalg.solve(normal, matrix.mH @ targets.to(torch.complex128))
    return kernel.to(sources.dtype)


def acquired_region(mask: torch.Tensor) -> torch.Tensor:
    """Positions with acquired ones (or themselves) towards all four corners: the mask without its gaps."""
    region = torch.ones_like(mask)
    for axes in ((), (0,), (1,), (0, 1)):
        region &= (mask.flip(axes).int().cumsum(0).cumsum(1) > 0).flip(axes)
    return region


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Grid:
    """k-space and mask, flattened, with a margin around them into which no kernel reaches further."""

    kspace: torch.Tensor
    mask: torch.Tensor
    shape: tuple[int, int]
    margin: Anchor

    @classmethod
    def around(
        cls, kspace: torch.Tensor, mask: torch.Tensor, groups: dict[Geometry, torch.Tensor], *, half: int
    ) -> _Grid:
        """Pad for the largest of the groups' geometries, each offset widened by `half` columns."""
        anchors = [anchor for geometry in groups for anchor in geometry]
        margin = (max((abs(r) for r, _ in anchors), default=0), max((abs(c) for _, c in anchors), default=0) + half)
        pad = (margin[1], margin[1], margin[0], margin[0])
        padded = torch.nn.functional.pad(kspace, pad)
        return cls(
            kspace=padded.flatten(1),
            mask=torch.nn.functional.pad(mask, pad).flatten(),
            shape=(padded.shape[1], padded.shape[2]),
            margin=margin,
        )

    def flat(self, positions: torch.Tensor) -> torch.Tensor:
        """Indices of `positions` ``(n, 2)`` of the unpadded grid."""
        return (positions[:, 0] + self.margin[0]) * self.shape[1] + positions[:, 1] + self.margin[1]

    def offsets(self, steps: list[Anchor]) -> torch.Tensor:
        """Differences of indices of `steps`."""
        return torch.tensor([r * self.shape[1] + c for r, c in steps], device=self.mask.device)

    def complete(self, offsets: torch.Tensor) -> torch.Tensor:
        """Indices of acquired samples that have acquired ones at all `offsets`."""
        found = self.mask.nonzero()[:, 0]
        for offset in offsets:
            found = found[self.mask[found + offset]]
        return found

    def gathered(self, positions: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """All coils' samples at `offsets` from `positions`: ``(positions, coils * offsets)``."""
        return self.kspace[:, positions[:, None] + offsets].transpose(0, 1).flatten(1)

    def cropped(self, flat: torch.Tensor) -> torch.Tensor:
        """``(coils, rows, columns)`` without the margin."""
        (rows, columns), (r, c) = self.shape, self.margin
        return flat.unflatten(1, self.shape)[:, r : rows - r, c : columns - c]


def _line_groups(mask: torch.Tensor, inside: torch.Tensor, lines: int) -> dict[Geometry, torch.Tensor]:
    """Positions ``(n, 2)`` of missing lines by the `lines` acquired lines nearest to them, half on each side."""
    acquired = mask.any(1).nonzero()[:, 0]
    members: dict[Geometry, list[torch.Tensor]] = {}
    for row in (inside.any(1) & ~mask.any(1)).nonzero()[:, 0]:
        before, after = (row - acquired[acquired < row]).flip(0), acquired[acquired > row] - row
        near = [-int(d) for d in before[: lines // 2]] + [int(d) for d in after[: (lines + 1) // 2]]
        columns = inside[row].nonzero()[:, 0]
        positions = torch.stack([row.expand_as(columns), columns], 1)
        members.setdefault(tuple((d, 0) for d in sorted(near)), []).append(positions)
    return {geometry: torch.cat(positions) for geometry, positions in members.items()}


def _point_groups(mask: torch.Tensor, inside: torch.Tensor, radius: int) -> dict[Geometry, torch.Tensor]:
    """Positions ``(n, 2)`` of missing samples by the acquired ones at most `radius` rows and columns away."""
    size = 2 * radius + 1
    padded = torch.nn.functional.pad(mask, (radius, radius, radius, radius))
    missing = (inside & ~mask).nonzero()
    windows = padded.unfold(0, size, 1).unfold(1, size, 1)[missing[:, 0], missing[:, 1]].flatten(1)
    patterns, member = windows.unique(dim=0, return_inverse=True)
    return {
        tuple((int(i) // size - radius, int(i) % size - radius) for i in pattern.nonzero()[:, 0]): missing[member == n]
        for n, pattern in enumerate(patterns)
    }


def _distance(anchor: Anchor) -> int:
    return anchor[0] ** 2 + anchor[1] ** 2


def _listed(geometry: Geometry) -> str:
    shown = ", ".join(map(str, geometry[:4]))
    return f"{shown}, ..." if len(geometry) > 4 else shown or "no place nearby"
