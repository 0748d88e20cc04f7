"""``bilevel/QuadraticBilevel-v0``: the bilevel problem of which everything is known."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.arguments import checked
from bilevel_gym.envs.bilevel_env import BilevelEnv
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.numerics import as_table, matvec
from bilevel_gym.objectives import ExplicitObjective
from bilevel_gym.problem import ConvexProblem
from bilevel_gym.rewards import Box
from bilevel_gym.solvers import GradientDescentSolver
from bilevel_gym.types import LowerSolver

__all__ = ["QuadraticFunction", "TrackingObjective", "draw_quadratic_bilevel", "quadratic_bilevel"]


@checked
def quadratic_bilevel(
    *,
    dimension: int = 10,
    size: int = 20,
    condition: float = 10.0,
    ridge: float = 0.1,
    steps: int = 10,
    solver: LowerSolver | None = None,
    solve_on_reset: bool = True,
    device: str = "cpu",
    render_mode: str | None = None,
) -> BilevelEnv:
    """A quadratic lower level and a quadratic upper objective, so that y*(x), φ, ∇φ and x* have closed forms.

    Description:
        The smallest problem on which AID can be seen at work and be measured. ``reset(seed)`` draws the instance: A has a random
        eigenbasis and eigenvalues uniform in [1, condition], the two ends included; B has standard normal entries over √D; c and t are
        standard normal.
    x:
        R^10 in the box [−10, 10]^10; it starts standard normal.
    Lower level:
        g(x, y) = ½yᵀAy − yᵀ(Bx + c), y in R^20, hence y*(x) = A⁻¹(Bx + c), μ = 1 and L = 10. A step runs 10 gradient steps of size
        2/(μ + L) from the last y.
    Upper objective:
        f(x, y) = ½‖y − t‖² + ½ρ‖x‖², ρ = .1.
    Observation:
        ``objective`` [1], ``gap`` [1] (‖∇_y g‖), ``x`` [D], float64.
    Reward:
        −f(x, y).
    Reference value:
        x* = −(MᵀM + ρI)⁻¹Mᵀ(A⁻¹c − t) with M = A⁻¹B, which is ``problem.objective.optimum``. ``info`` has ``distance``
        = ‖x − x*‖ and ``response_error`` = ‖y − y*(x)‖.

    Args:
        dimension: D.
        size: n, the number of entries of y.
        condition: L/μ ≥ 1.
        ridge: ρ > 0.
        steps: N inner gradient steps.
        solver: a solver object instead of them.
        solve_on_reset: whether a reset runs the N steps at the first x, or leaves y = 0.
        device: where the matrices live.
        render_mode: ``"rgb_array"`` (x above y) or ``"ansi"``.

    Version history:
        v0: the first.
    """
    draw = partial(draw_quadratic_bilevel, dimension=dimension, size=size, condition=condition, ridge=ridge, device=device)
    return BilevelEnv(draw, solver or GradientDescentSolver(steps=steps), solve_on_reset=solve_on_reset, render_mode=render_mode)


@dataclass(frozen=True)
class QuadraticFunction:
    """g(x, y) = ½yᵀAy − yᵀ(Bx + c)."""

    hessian: Tensor
    """[n, n] A, symmetric and positive definite."""
    coupling: Tensor
    """[n, D] B."""
    offset: Tensor
    """[n] c."""

    @property
    def size(self) -> int:
        """n."""
        return self.offset.shape[-1]

    def value(self, x: Tensor, y: Tensor) -> Tensor:
        """g: [B, D], [B, n] → [B]. Cost: O(n² + nD)."""
        return (y * (0.5 * matvec(self.hessian, y) - matvec(self.coupling, x) - self.offset)).sum(-1)

    def curvature(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and the largest eigenvalue of A: [B], [B]."""
        low, high = self._ends
        return low.expand(x.shape[:-1]), high.expand(x.shape[:-1])

    def answer(self, x: Tensor) -> Tensor:
        """y*(x) = A⁻¹(Bx + c): [B, D] → [B, n]. Cost: O(n³)."""
        solved: Tensor = torch.linalg.solve(self.hessian, (matvec(self.coupling, x) + self.offset).unsqueeze(-1))
        return solved.squeeze(-1)

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor]:
        eigenvalues = torch.linalg.eigvalsh(self.hessian)
        return eigenvalues[0], eigenvalues[-1]


@dataclass(frozen=True)
class TrackingObjective(ExplicitObjective):
    """f(x, y) = ½‖y − t‖² + ½ρ‖x‖²."""

    target: Tensor
    """[n] t."""
    ridge: float
    """ρ > 0."""
    optimum: Tensor
    """[D] x*, which ``distance`` is measured from; f does not read it."""

    def value(self, problem: Any, x: Tensor, policy: Tensor) -> Tensor:
        """f: [B, D], [B, n] → [B]."""
        return 0.5 * ((policy - self.target).square().sum(-1) + self.ridge * x.square().sum(-1))

    def metrics(self, problem: Any, x: Tensor, policy: Tensor) -> dict[str, float]:
        """How far x is from x*, and y from y*(x)."""
        return {
            "distance": float((x - self.optimum).norm()),
            "response_error": float((policy - problem.lower.answer(x)).norm()),
        }


def draw_quadratic_bilevel(
    rng: np.random.Generator, *, dimension: int = 10, size: int = 20, condition: float = 10.0, ridge: float = 0.1, device: str = "cpu"
) -> ConvexProblem:
    """One instance, with x* worked out.

    Args:
        rng: the source of the instance.
        dimension: D.
        size: n ≥ 1; for n = 1 the only eigenvalue is 1.
        condition: L/μ ≥ 1.
        ridge: ρ > 0.
        device: where the matrices live.

    Raises:
        InvalidProblem: a number out of range.
    """
    if min(dimension, size) < 1 or not 1.0 <= condition < float("inf") or not 0.0 < ridge < float("inf"):
        raise InvalidProblem(
            f"dimension is {dimension}, size {size}, condition {condition} and ridge {ridge}: at least 1, 1, 1, and a positive ridge"
        )
    eigenvalues = rng.uniform(1.0, condition, size)
    eigenvalues[-1], eigenvalues[0] = condition, 1.0
    basis, _ = np.linalg.qr(rng.standard_normal((size, size)))
    hessian = (basis * eigenvalues) @ basis.T
    coupling = rng.standard_normal((size, dimension)) / np.sqrt(dimension)
    offset, target = rng.standard_normal((2, size))
    moved = np.linalg.solve(hessian, coupling)
    error = target - np.linalg.solve(hessian, offset)
    optimum = np.linalg.solve(moved.T @ moved + ridge * np.eye(dimension), moved.T @ error)
    lower = QuadraticFunction(*(as_table(table, device) for table in ((hessian + hessian.T) / 2.0, coupling, offset)))
    return ConvexProblem(
        lower, TrackingObjective(as_table(target, device), ridge, as_table(optimum, device)), Box(dimension, 10.0, device=device)
    )
