"""Soft policy iteration on a linear-quadratic problem: Newton's method on the Riccati equation."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.linear_quadratic import GaussianFeedback, cost_to_go, soft_feedback
from bilevel_gym.regularizers import Shannon
from bilevel_gym.solvers.base import fitting_solver, iterate, step_limit
from bilevel_gym.types import Budget, Problem, Response

__all__ = ["Riccati"]


class _Newton(NamedTuple):
    policy: GaussianFeedback
    gap: Tensor
    scale: Tensor


@dataclass(frozen=True)
class Riccati:
    """P ← cost to go of K,  K ← γM⁻¹BᵀPA  with  M = R_x + γBᵀPB,  from the K that is there; the answer is N(−Ks, (τ/2) M⁻¹).

        P = Q_x + KᵀR_xK + γ(A − BK)ᵀP(A − BK)

    Maximum-entropy control with a quadratic cost: the soft value is −(sᵀPs + c), and P does not depend on τ. Evaluating and improving
    a gain is Newton's method on the Riccati equation (Kleinman, 1968); every gain on the way is stable where the first one is, as K = 0
    is and as an answer to another x is. Convergence is quadratic at the end: 5 steps or so, 3 from a warm start. ``gap`` is the largest
    entry of the Riccati residual of the P that the answer was read off.

    Args:
        sweeps: Newton steps at most; exactly so many where ``tolerance`` is None.
        tolerance: stop once ``gap`` is below it, or at the rounding error of P.

    Raises:
        InvalidProblem: a limit that is not positive.

    Cost: O(n⁶ + m³) a step, one linear system of n² unknowns.
    """

    _: KW_ONLY
    sweeps: int | None = 100
    tolerance: float | None = 1e-12

    def __post_init__(self) -> None:
        if self.sweeps is not None and self.sweeps < 1:
            raise InvalidProblem(f"sweeps is {self.sweeps}: a solve takes one step at least")
        if self.tolerance is not None and not self.tolerance > 0:
            raise InvalidProblem(f"tolerance is {self.tolerance}: it must be positive, such as 1e-12, or None")

    def start(self, problem: Problem) -> Response:
        """The follower before it has seen any x: no feedback, and the noise that suits P = 0 and unit weights.

        Raises:
            UnsupportedProblem: the world is not linear-Gaussian, the reward not a quadratic cost, or the regularizer not Shannon's.
        """
        if not (hasattr(problem.world, "state_matrix") and hasattr(problem.reward, "weights")):
            raise UnsupportedProblem(f"Riccati solves linear-Gaussian worlds with a quadratic cost; use {fitting_solver(problem)}")
        if not isinstance(problem.regularizer, Shannon):
            raise UnsupportedProblem(
                f"the Gaussian answer is the one under Shannon entropy, not {type(problem.regularizer).__name__}; use regularizers.Shannon(temperature)"
            )
        nothing = torch.zeros_like(problem.world.state_matrix)
        _, action_cost = problem.reward.weights(torch.zeros(problem.dimension, dtype=nothing.dtype, device=nothing.device))
        return Response(policy=_improve(problem, nothing, action_cost), gap=nothing.new_full((), torch.inf))

    @torch.no_grad()
    def solve(
        self,
        problem: Problem,
        x: Tensor,
        *,
        warm: Response | None = None,
        budget: Budget | None = None,
        generator: torch.Generator | None = None,
    ) -> Response:
        """The follower's answer to x, warm-started at the gain of ``warm.policy``.

        Args:
            problem: a linear-quadratic one.
            x: [B, D].
            warm: an earlier response, or None for a cold start.
            budget: a further limit on the number of steps.
            generator: not used, the solve is deterministic.

        Returns:
            a ``GaussianFeedback``, and ``gap`` [B].

        Raises:
            InvalidProblem: a budget of no steps.
        """
        first: GaussianFeedback = (self.start(problem) if warm is None else warm).policy
        weights = problem.reward.weights(x)
        limit = step_limit(self.sweeps, budget)

        def done(state: _Newton) -> bool:
            rounding = 8.0 * torch.finfo(x.dtype).eps * state.scale
            return bool((state.gap <= rounding.clamp_min(self.tolerance or 0.0)).all())

        begin = _Newton(first, torch.full_like(x[..., 0], torch.inf), torch.zeros_like(x[..., 0]))
        state, steps, _ = iterate(
            lambda state: _step(problem, weights, state), begin, limit=limit, done=done if self.tolerance is not None else None
        )
        converged = self.tolerance is not None and bool((state.gap <= self.tolerance).all())
        return Response(policy=state.policy, gap=state.gap, steps=steps, converged=converged)


def _step(problem: Problem, weights: tuple[Tensor, Tensor], state: _Newton) -> _Newton:
    """Evaluate the gain, improve on it, and look how far the improved one takes P."""
    world, (state_cost, action_cost) = problem.world, weights
    value = cost_to_go(state.policy.gain, state_cost, action_cost, world.state_matrix, world.action_matrix, world.discount)
    policy = _improve(problem, value, action_cost)
    closed = world.state_matrix - world.action_matrix @ policy.gain
    backup = state_cost + policy.gain.mT @ action_cost @ policy.gain + world.discount * closed.mT @ value @ closed
    return _Newton(policy, (backup - value).abs().amax((-2, -1)), value.abs().amax((-2, -1)))


def _improve(problem: Problem, value: Tensor, action_cost: Tensor) -> GaussianFeedback:
    world = problem.world
    return soft_feedback(value, action_cost, world.state_matrix, world.action_matrix, world.discount, problem.regularizer.temperature)
