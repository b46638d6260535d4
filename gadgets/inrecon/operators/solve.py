"""Linear solvers on operators."""

from collections.abc import Callable

import torch


def conjugate_gradient(
    gram: Callable[[torch.Tensor], torch.Tensor],
    right_hand_side: torch.Tensor,
    *,
    weight: float = 0.0,
    start: torch.Tensor | None = None,
    iterations: int = 30,
    tolerance: float = 1e-5,
) -> tuple[torch.Tensor, int]:
    """Solve (G + weight I) x = b for a positive semi-definite G by conjugate gradients (Hestenes and Stiefel, 1952).

    Stops when the residual norm is below `tolerance` times that of `right_hand_side`. Returns x and the
    number of iterations done.
    """
    x = torch.zeros_like(right_hand_side) if start is None else start
    residual = right_hand_side - (gram(x) + weight * x) if start is not None else right_hand_side
    direction = residual
    energy = _energy(residual)
    goal = tolerance**2 * _energy(right_hand_side)
    for iteration in range(iterations):
        if energy <= goal:
            return x, iteration
        image = gram(direction) + weight * direction
        step = energy / _inner(direction, image)
        x = x + step * direction
        residual = residual - step * image
        energy, last = _energy(residual), energy
        direction = residual + (energy / last) * direction
    return x, iterations


def _inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vecdot(a.flatten(), b.flatten()).real


def _energy(a: torch.Tensor) -> torch.Tensor:
    return _inner(a, a)
