"""Data consistency as a layer: x = argmin |A x - y|^2 + weight |x - z|^2, differentiable in z."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from inrecon.frame import Frame
from inrecon.operators import CartesianSense, ColumnSense, conjugate_gradient

# 256 MiB, 322 x 322 pixels. At 320 x 320 on a CPU, making the inverses takes what 100 solves save against conjugate
# gradients, of the 300 in a fit, and it grows with the third power of the rows.
MOST_INVERSE_ENTRIES = 2**25
STARTING_ITERATIONS = 50

Solver = Callable[[torch.Tensor], torch.Tensor]


class DataConsistency:
    """x of `frame.training` for an image z.

    Where whole lines are sampled the problem falls into one for each image column, solved exactly, as long as the
    inverses fit into memory. Samples that are held out would break the lines, so their values are imputed (as in
    expectation maximisation): A x of the caller's last x in their place. Their own values have no part in any x, and an
    x that is its own imputation is the one of the training samples. Elsewhere, at most `iterations` of conjugate
    gradients on the training samples, each from its last solution on: 5 do what 13 from zero do.
    """

    def __init__(self, frame: Frame, *, weight: float, iterations: int) -> None:
        training = frame.training
        self._weight = weight
        self._data = training.operator.adjoint(training.kspace)
        self.start, _ = conjugate_gradient(
            training.operator.gram, self._data, weight=weight, iterations=STARTING_ITERATIONS
        )
        self._right_hand_side, self._imputed = self._data, None
        *sets_and_rows, columns = frame.operator.domain_shape
        if not frame.operator.sampled.all() or math.prod(sets_and_rows) ** 2 * columns > MOST_INVERSE_ENTRIES:
            self.solve: Solver = IterativeSolver(training.operator.gram, weight, iterations)
            self._solve_gradient: Solver = IterativeSolver(training.operator.gram, weight, iterations)
            return
        self.solve = self._solve_gradient = ColumnSolver(frame.operator, weight=weight)
        if frame.held_out is not None:
            self._imputed = frame.operator.restricted(frame.held_out)
            self.impute(self._imputed.forward(self.start))

    def __call__(self, prior: torch.Tensor) -> torch.Tensor:
        """x for z = `prior`; for z = 0 it is `start`."""
        image: torch.Tensor = ImplicitSolve.apply(  # type: ignore[no-untyped-call]
            prior, self._right_hand_side, self._weight, self.solve, self._solve_gradient
        )
        return image

    def impute(self, predicted: torch.Tensor) -> None:
        """Take the values of held-out samples, where such are needed, from `predicted`: A x of the last x."""
        if self._imputed is not None:
            self._right_hand_side = self._data + self._imputed.adjoint(predicted)


class ImplicitSolve(torch.autograd.Function):
    """x = M^-1 (b + weight z), M Hermitian, differentiated implicitly.

    The gradient with respect to z is weight M^-1 g: one more solve, and nothing of the first one is stored.
    `apply(z, b, weight, solve, solve_gradient)`, both solvers M^-1.
    """

    @staticmethod
    def forward(
        ctx: Any,
        prior: torch.Tensor,
        right_hand_side: torch.Tensor,
        weight: float,
        solve: Solver,
        solve_gradient: Solver,
    ) -> torch.Tensor:
        """M^-1 (b + weight z)."""
        ctx.weight, ctx.solve_gradient = weight, solve_gradient
        return solve(right_hand_side + weight * prior)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        """Weight M^-1 g."""
        return ctx.weight * ctx.solve_gradient(gradients[0]), None, None, None, None


class IterativeSolver:
    """(G + weight I)^-1 by conjugate gradients that begin at the last solution."""

    def __init__(self, gram: Solver, weight: float, iterations: int) -> None:
        self._gram, self._weight, self._iterations = gram, weight, iterations
        self._last: torch.Tensor | None = None

    def __call__(self, right_hand_side: torch.Tensor) -> torch.Tensor:
        """An image for an image."""
        self._last, _ = conjugate_gradient(
            self._gram, right_hand_side, weight=self._weight, start=self._last, iterations=self._iterations
        )
        return self._last


class ColumnSolver:
    """(A^H A + weight I)^-1 of whole lines, column by column of the image; the inverses are made once."""

    def __init__(self, operator: CartesianSense, *, weight: float) -> None:
        self._operator = ColumnSense.of(operator)
        self._weight = weight
        self._inverses = self._operator.inverses(weight)

    def __call__(self, right_hand_side: torch.Tensor) -> torch.Tensor:
        """An image for an image."""
        return self._operator.solve(self._inverses, right_hand_side, weight=self._weight)
