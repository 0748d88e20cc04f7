"""The exact hyper-gradient of a linear-quadratic follower."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bilevel_gym.hypergradients.fit import not_a_regulator, refusal
from bilevel_gym.linear_quadratic import cost_to_go, soft_feedback
from bilevel_gym.numerics import gradients
from bilevel_gym.types import Evaluation, Hypergradient, Oracle, Problem, Response

__all__ = ["ExactRiccati"]


@dataclass(frozen=True)
class ExactRiccati:
    """The implicit function theorem on the Riccati equation, by one differentiable Newton step from its solution.

    Newton's step evaluates the gain and improves on it: P(x) = cost_to_go(K*; Q_x, R_x) with K* held fixed, then K(x) and Σ(x) from
    P(x) and R_x. At the solution the step changes nothing, and its derivative is that of the solution: K* is a stationary point of
    the cost to go, so ∂P*/∂x = ∂P(x)/∂x. Then ∇φ = ∇_x f + (∂(K, Σ)/∂x)ᵀ∇_{K,Σ} f in one backward pass.

    At an unsolved response the error is of the order of gap, as for ``Exact``.

    Cost: two linear systems of n² unknowns, O(n⁶), and their transposes.
    """

    def supports(self, problem: Problem) -> str | None:
        """None, or the reason why the problem does not fit."""
        return refusal(not_a_regulator(problem), problem)

    def init(self, oracle: Oracle) -> None:
        """No state."""
        return

    def __call__(self, oracle: Oracle, x: Tensor, response: Response, evaluation: Evaluation, state: None) -> tuple[Hypergradient, None]:
        """∇φ(x) at a response: x [B, D] → [B, D]."""
        problem = oracle.problem
        world, temperature = problem.world, problem.regularizer.temperature
        dynamics = (world.state_matrix, world.action_matrix, world.discount)

        def through_policy(leaf: Tensor) -> Tensor:
            state_cost, action_cost = problem.reward.weights(leaf)
            ahead = cost_to_go(response.policy.gain, state_cost, action_cost, *dynamics)
            value: Tensor = problem.objective.value(problem, x, soft_feedback(ahead, action_cost, *dynamics, temperature))
            return value

        (direct,) = gradients(lambda leaf: problem.objective.value(problem, leaf, response.policy), x)
        (implicit,) = gradients(through_policy, x)
        return Hypergradient(direct + implicit, direct, implicit), None
