"""Gradient steps on a strongly convex function: the follower of AID."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.numerics import gradients
from bilevel_gym.solvers.base import fitting_solver, iterate, step_limit
from bilevel_gym.types import Budget, Response

__all__ = ["GradientDescentSolver"]


@dataclass(frozen=True)
class GradientDescentSolver:
    """y ← y − α ∇_y g(x, y), N times from where y stands: the inner loop of AID (mathematics §7).

    ‖∇_y g‖ is the certificate: ‖y − y*(x)‖ ≤ ‖∇_y g(x, y)‖/μ, μ from ``problem.lower.curvature(x)``.

    Args:
        steps: N at most, and exactly so many where no tolerance is given; None goes on to the tolerance.
        step_size: α; None takes 2/(μ + L), the best constant one, with which the error shrinks by (L − μ)/(L + μ) a step. Above
            2/L it diverges.
        tolerance: stop once ‖∇_y g‖ is below it (in every problem of a batch), or a step is lost in the rounding of y.

    Raises:
        InvalidProblem: a number that is not positive, or neither ``steps`` nor ``tolerance``.

    Cost: steps + 1 gradients of g.
    """

    _: KW_ONLY
    steps: int | None = None
    step_size: float | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "step_size", "tolerance"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise InvalidProblem(f"{name} is {limit}: it must be positive")
        if self.steps is None and self.tolerance is None:
            raise InvalidProblem("neither steps nor tolerance is given: say when the inner loop ends, such as steps=10")

    def start(self, problem: Any) -> Response:
        """The follower before it has seen any x: y = 0.

        Raises:
            UnsupportedProblem: the lower level is a decision problem.
        """
        if not hasattr(problem, "lower"):
            raise UnsupportedProblem(
                f"{type(self).__name__} minimises a function g(x, y), and this lower level is a decision problem; use {fitting_solver(problem)}"
            )
        domain = problem.domain
        nowhere = torch.full((), torch.inf, dtype=domain.dtype, device=domain.device)
        return Response(policy=torch.zeros(problem.lower.size, dtype=domain.dtype, device=domain.device), gap=nowhere)

    @torch.no_grad()
    def solve(
        self,
        problem: Any,
        x: Tensor,
        *,
        warm: Response | None = None,
        budget: Budget | None = None,
        generator: torch.Generator | None = None,
    ) -> Response:
        """The follower's answer to x, warm-started at ``warm.policy``.

        Args:
            problem: a ``ConvexProblem``, or one like it.
            x: [B, D].
            warm: an earlier response, or None for y = 0.
            budget: a further limit on the number of steps.
            generator: not used, the solve is deterministic.

        Returns:
            y as ``policy`` [B, n], and ‖∇_y g‖ as ``gap`` [B].

        Raises:
            InvalidProblem: a budget of no steps, or steps that diverge.
            UnsupportedProblem: the lower level is a decision problem.
        """
        warm = self.start(problem) if warm is None else warm
        convexity, smoothness = problem.lower.curvature(x)
        rate = (2.0 / (convexity + smoothness) if self.step_size is None else torch.full_like(smoothness, self.step_size)).unsqueeze(-1)

        def slope(y: Tensor) -> Tensor:
            return gradients(partial(problem.lower.value, x), y)[0]

        def step(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            y = state[0] - rate * state[1]
            return y, slope(y)

        def certified(state: tuple[Tensor, Tensor]) -> Tensor:
            met: Tensor = state[1].norm(dim=-1) <= (self.tolerance or 0.0)
            return met

        def done(state: tuple[Tensor, Tensor]) -> bool:
            y, moved = state[0], rate * state[1]
            lost = moved.norm(dim=-1) <= 8.0 * torch.finfo(y.dtype).eps * y.norm(dim=-1)
            return bool((certified(state) | lost | ~moved.isfinite().all(-1)).all())

        y = warm.policy.expand(*x.shape[:-1], problem.lower.size)
        state, steps, _ = iterate(step, (y, slope(y)), limit=step_limit(self.steps, budget), done=None if self.tolerance is None else done)
        gap = state[1].norm(dim=-1)
        if not gap.isfinite().all():
            raise InvalidProblem(
                f"‖∇_y g‖ is not finite after {steps} inner steps: give a step_size below 2/L = {2.0 / float(smoothness.max()):.3g}, or None, or look for a NaN in g"
            )
        return Response(state[0], gap=gap, steps=steps, converged=self.tolerance is not None and bool(certified(state).all()))
