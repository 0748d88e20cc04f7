"""Conjugate gradients for systems that are known by their products."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["KrylovSolution", "conjugate_gradient"]


class KrylovSolution(NamedTuple):
    """What ``conjugate_gradient`` found, and how good it is."""

    solution: Tensor
    """[B, n] v."""
    residual: Tensor
    """[B] ‖b − (A + δI)v‖, as the recursion carries it: true until it falls to the rounding error of b."""
    iterations: Tensor
    """[B] steps taken, int64."""
    curvature: Tensor
    """[B] the smallest pᵀAp/pᵀp of the directions tried, δ not added; infinite where none was."""


def conjugate_gradient(
    product: Callable[[Tensor], Tensor],
    right: Tensor,
    *,
    iterations: int,
    tolerance: float,
    initial: Tensor | None = None,
    damping: float = 0.0,
) -> KrylovSolution:
    """Solve (A + δI)v = b for a symmetric A that is known by its products Ap (Hestenes and Stiefel, 1952).

    Each member of a batch stops by itself: at its tolerance, or before a step along a direction with pᵀ(A + δI)p ≤ 0 (or NaN), where
    the system is not positive definite and its solution so far is kept.

    Args:
        product: p ↦ Ap, [B, n] → [B, n]; it is asked for stopped members too, and their answers are not used.
        right: [B, n] b.
        iterations: steps at most; n suffice without rounding.
        tolerance: stop at ‖b − (A + δI)v‖ ≤ tolerance ‖b‖.
        initial: [B, n] the v to start from, zero by default.
        damping: δ ≥ 0.

    Returns:
        the solution with its certificate. Cost: a product for each step, and one for ``initial``.
    """
    solution = torch.zeros_like(right) if initial is None else initial
    residual = right if initial is None else right - product(initial) - damping * initial
    direction, squared = residual, _dot(residual, residual)
    target = (tolerance * right.norm(dim=-1, keepdim=True)) ** 2
    active = squared > target
    taken, curvature = active.long() * 0, torch.full_like(squared, torch.inf)
    for _ in range(iterations):
        if not active.any():
            break
        image = product(direction)
        length, bend = _dot(direction, direction), _dot(direction, image)
        curvature = torch.where(active, torch.minimum(curvature, bend / length), curvature)
        active = active & (bend + damping * length > 0.0)
        step = torch.where(active, squared / (bend + damping * length), 0.0)
        solution = solution + step * direction
        residual = torch.where(active, residual - step * (image + damping * direction), residual)
        before, squared = squared, _dot(residual, residual)
        direction = torch.where(active, residual + squared / before * direction, direction)
        taken = taken + active
        active = active & (squared > target)
    return KrylovSolution(solution, squared.squeeze(-1).sqrt(), taken.squeeze(-1), curvature.squeeze(-1))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ with the last axis kept: [B, n], [B, n] → [B, 1]."""
    return (a * b).sum(-1, keepdim=True)
