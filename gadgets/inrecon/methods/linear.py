"""Linear reconstructions: the images a scanner would have had, and the fall-back of every fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from inrecon.frame import Frame, Reconstruction
from inrecon.methods.method import Method, bounded, methods
from inrecon.operators import conjugate_gradient, shifted_conjugate_gradients


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
    """argmin |A x - y|^2 + weight |x|^2 by conjugate gradients (Pruessmann et al. 2001).

    The weight is `regularisation`, for what coil maps leave unexplained, plus `noise_factor` times noise variance over
    signal power, where noise is known or bounded: near the best value, chosen against the reference, of real brain
    scans from low to high noise (a factor of 300 in variance).
    """

    regularisation: float = bounded(1e-3, low=0.0, high=1e3)
    noise_factor: float = bounded(5.0, low=0.0, high=1e3)
    iterations: int = bounded(50, low=1, high=1000)

    def fit(self, frame: Frame) -> Reconstruction:
        """At most `iterations` steps from zero."""
        image, done = conjugate_gradient(
            frame.operator.gram,
            frame.operator.adjoint(frame.kspace),
            weight=self._weight(frame),
            iterations=self.iterations,
        )
        stopped_by = "iterations" if done == self.iterations else "converged"
        return Reconstruction(image=image, iterations=done, stopped_by=stopped_by)

    def _weight(self, frame: Frame) -> float:
        """The Tikhonov weight; the signal's mean power a pixel is the energy of k-space over the support."""
        energy = float(torch.linalg.vector_norm(frame.kspace)) ** 2
        if frame.noise_level is None or energy == 0:
            return self.regularisation
        power = energy / max(int(frame.maps.support.sum()), 1)
        return self.regularisation + self.noise_factor * frame.noise_level**2 / power


def data_consistent(frame: Frame, *, prior: torch.Tensor, weights: Sequence[float], iterations: int) -> torch.Tensor:
    """argmin |A x - y|^2 + weight |x - prior|^2 for each of `weights`: stacked, from `prior` on."""
    operator = frame.operator
    missing = operator.adjoint(frame.kspace - operator.forward(prior))
    return prior + shifted_conjugate_gradients(operator.gram, missing, weights=weights, iterations=iterations)
