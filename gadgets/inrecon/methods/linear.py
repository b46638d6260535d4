"""Linear reconstructions: the images a scanner would have had, and the fall-back of every fit."""

from __future__ import annotations

import dataclasses

import torch

from inrecon.frame import Frame, Reconstruction
from inrecon.methods.method import Method, bounded, methods
from inrecon.operators import conjugate_gradient


@methods.register("zero_filled")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroFilled(Method):
    """A^H y: missing samples taken as zero."""

    def fit(self, frame: Frame) -> Reconstruction:
        """One adjoint."""
        return Reconstruction(image=frame.operator.adjoint(frame.kspace), iterations=1, stopped_by="closed form")


@methods.register("cg_sense")
@dataclasses.dataclass(frozen=True, kw_only=True)
class CGSense(Method):
    """argmin |A x - y|^2 + regularisation |x|^2 by conjugate gradients (Pruessmann et al. 2001)."""

    regularisation: float = bounded(1e-2, low=0.0, high=1e3)
    iterations: int = bounded(30, low=1, high=1000)

    def fit(self, frame: Frame) -> Reconstruction:
        """At most `iterations` steps from zero."""
        image, done = conjugate_gradient(
            frame.operator.gram,
            frame.operator.adjoint(frame.kspace),
            weight=self.regularisation,
            iterations=self.iterations,
        )
        stopped_by = "iterations" if done == self.iterations else "converged"
        return Reconstruction(image=image, iterations=done, stopped_by=stopped_by)


def data_consistent(frame: Frame, *, prior: torch.Tensor, weight: float, iterations: int) -> torch.Tensor:
    """argmin |A x - y|^2 + weight |x - prior|^2, from `prior` on."""
    operator = frame.operator
    right_hand_side = operator.adjoint(frame.kspace) + weight * prior
    return conjugate_gradient(operator.gram, right_hand_side, weight=weight, start=prior, iterations=iterations)[0]
