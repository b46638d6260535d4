"""Linear solvers on operators."""

from collections.abc import Callable, Sequence

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


def shifted_conjugate_gradients(
    gram: Callable[[torch.Tensor], torch.Tensor],
    right_hand_side: torch.Tensor,
    *,
    weights: Sequence[float],
    iterations: int,
    tolerance: float = 1e-6,
) -> torch.Tensor:
    """Solve (G + weight I) x = b for many `weights` at the price of one, ``(weights, ...)``.

    The Krylov space is the same for all: the residuals for larger weights are multiples, by zeta, of that for the
    smallest (Jegerlehner, hep-lat/9612014, Eqs. 2.42 to 2.44). Stops when the residual of the smallest weight, which
    falls the slowest, is below `tolerance` times that of zero.
    """
    shape = (-1, *[1] * right_hand_side.ndim)
    shifts = torch.tensor([weight - min(weights) for weight in weights], dtype=torch.float64)
    directions = torch.stack([right_hand_side] * len(weights))
    solutions = torch.zeros_like(directions)
    residual = direction = right_hand_side
    zeta, last_zeta = torch.ones_like(shifts), torch.ones_like(shifts)
    energy, last_step, growth = float(_energy(residual)), 1.0, 0.0
    goal = tolerance**2 * energy
    for _ in range(iterations):
        if energy <= goal:
            break
        image = gram(direction) + min(weights) * direction
        step = energy / float(_inner(direction, image))
        slower = step * growth * (last_zeta - zeta) + last_zeta * last_step * (1 + shifts * step)
        # Of a solution that has long converged, zeta is too small for a number: zero over zero.
        next_zeta = (zeta * last_zeta * last_step / slower).nan_to_num()
        ratio = (next_zeta / zeta).nan_to_num()
        solutions += (step * ratio).to(solutions).view(shape) * directions
        residual = residual - step * image
        energy, last_energy = float(_energy(residual)), energy
        growth = energy / last_energy
        direction = residual + growth * direction
        directions = (growth * ratio**2).to(solutions).view(shape) * directions
        directions += next_zeta.to(solutions).view(shape) * residual
        zeta, last_zeta, last_step = next_zeta, zeta, step
    return solutions


def _inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vecdot(a.flatten(), b.flatten()).real


def _energy(a: torch.Tensor) -> torch.Tensor:
    return _inner(a, a)
