"""What a feedback costs in a linear-quadratic problem of the designer's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel_gym.linear_quadratic import GaussianFeedback, cost_to_go
from bilevel_gym.types import Evaluation, Problem, Response

__all__ = ["RegulationCost"]


@dataclass(frozen=True, eq=False)
class RegulationCost:
    """f(x, π) = E Σ_t γ^t ( s_tᵀQ̄s_t + a_tᵀR̄a_t − τ̄ H(π) ), in closed form for π = N(−Ks, Σ).

    With P̄ the cost to go of K,  f = tr(P̄S₀) + ( tr(R̄Σ) − τ̄ H(π) + γ tr(P̄(BΣBᵀ + W)) ) / (1 − γ).

    With τ̄ = τ the follower that has the designer's weights for its own is optimal, and f has its minimum there. Without the entropy it
    is not: a narrower policy would cost the designer less.

    Args:
        state_cost: [n, n] Q̄.
        action_cost: [m, m] R̄.
        temperature: τ̄ ≥ 0.
    """

    state_cost: Tensor
    action_cost: Tensor
    temperature: float

    def value(self, problem: Problem, x: Tensor, policy: GaussianFeedback) -> Tensor:
        """f, which does not depend on x but through the policy: [B]."""
        world = problem.world
        ahead = cost_to_go(policy.gain, self.state_cost, self.action_cost, world.state_matrix, world.action_matrix, world.discount)
        spread = world.action_matrix @ policy.covariance @ world.action_matrix.mT + world.noise
        running = _trace(self.action_cost, policy.covariance) - self.temperature * policy.entropy
        total: Tensor = _trace(ahead, world.start) + (running + world.discount * _trace(ahead, spread)) / (1.0 - world.discount)
        return total

    def start(self) -> None:
        """No memory: nothing is sampled."""
        return

    def evaluate(
        self, problem: Problem, x: Tensor, response: Response, memory: None, generator: torch.Generator
    ) -> tuple[Evaluation, None]:
        """f at the response: exact, no samples, no environment steps."""
        return Evaluation(self.value(problem, x, response.policy)), None


def _trace(left: Tensor, right: Tensor) -> Tensor:
    """tr(left · right) of symmetric matrices: [B]."""
    return (left * right).sum((-2, -1))
