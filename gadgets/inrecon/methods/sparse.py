"""What regularised least squares without a network share: the weight, the stop, what is announced."""

from __future__ import annotations

import dataclasses
import time
from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch

from inrecon.deadline import DEADLINE, time_left
from inrecon.errors import FitDiverged
from inrecon.events import FitProgressed, observe
from inrecon.frame import Frame, Reconstruction
from inrecon.methods.method import Method, announced

CHECK_EVERY = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseMethod(Method):
    """argmin |A x - y|^2 / 2 + weight R(x) for a convex R that is a norm of something sparse.

    The weight is `regularisation` times the largest magnitude of A^H y, for the aliasing that missing samples leave,
    plus `noise_factor` times the standard deviation of a complex k-space sample, where it is known (all transforms are
    unitary, so it is also that of a wavelet coefficient). So one setting holds over image scales and noise levels.
    Ends when an iteration changes the image by less than `tolerance` of its norm.
    """

    name: ClassVar[str]
    regularisation: float
    noise_factor: float
    iterations: int
    tolerance: float

    @abstractmethod
    def iterates(self, frame: Frame, *, back_projection: torch.Tensor, weight: float) -> Iterator[torch.Tensor]:
        """Image after image without an end, each nearer to the minimiser; `back_projection` is A^H y."""

    def weight(self, frame: Frame, *, back_projection: torch.Tensor) -> float:
        """The weight of R for `frame`, from A^H y and the noise level."""
        noise = 0.0 if frame.noise_level is None else self.noise_factor * frame.noise_level
        return self.regularisation * float(back_projection.abs().max()) + noise

    def fit(self, frame: Frame) -> Reconstruction:
        """At most `iterations` steps; raises `FitDiverged` when the image is not finite."""
        started = time.perf_counter()
        image, done, stopped_by = self._run(frame)
        result = Reconstruction(image=image, iterations=done, stopped_by=stopped_by)
        return announced(result, method=self.name, started=started)

    def _run(self, frame: Frame) -> tuple[torch.Tensor, int, str]:
        """Image, iterations done and the reason of the stop."""
        image = back_projection = frame.operator.adjoint(frame.kspace)
        if not back_projection.any():  # nothing to scale by; zero is the minimiser
            return image, 1, "converged"
        weight = self.weight(frame, back_projection=back_projection)
        iterates = self.iterates(frame, back_projection=back_projection, weight=weight)
        for iteration in range(1, self.iterations + 1):
            last, image = image, next(iterates)
            if iteration % CHECK_EVERY and iteration != self.iterations:
                continue
            observe(FitProgressed(iteration=iteration, iterations=self.iterations))
            size, change = (float(torch.linalg.vector_norm(a)) for a in (image, image - last))
            if not size < float("inf"):
                raise FitDiverged(f"{self.name} diverged: its image is not finite after {iteration} iterations")
            if change <= self.tolerance * size:
                return image, iteration, "converged"
            if time_left() <= 0:
                return image, iteration, DEADLINE
        return image, self.iterations, "iterations"


def shrunk(values: torch.Tensor, threshold: torch.Tensor | float, *, magnitude: torch.Tensor) -> torch.Tensor:
    """`values` with `threshold` taken off their `magnitude`, zero where it is smaller: the proximal map of the norm."""
    tiny = torch.finfo(magnitude.dtype).tiny
    return values * (1 - threshold / magnitude.clamp(min=tiny)).clamp(min=0)
