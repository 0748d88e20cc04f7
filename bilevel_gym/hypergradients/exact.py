"""The exact hyper-gradient of an explicit objective on a table."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bilevel_gym.hypergradients.fit import not_explicit, refusal, values_of
from bilevel_gym.numerics import adjoint
from bilevel_gym.types import Evaluation, Hypergradient, Oracle, Problem, Response

__all__ = ["Exact"]


@dataclass(frozen=True)
class Exact:
    """One adjoint solve and one backward pass, whatever D is (mathematics §3).

    With h = ∇_πf:  c = ∇²Ω*(Q/τ) h / τ,  u = (I − γP_π)^{-T} Pᵀc,  z = c + γ π⊙u,  ∇φ = ∇_x f + (∂backup(x, V*)/∂x)ᵀ z.

    Exact at a solved response, for x in the reward and in P alike; at an unsolved one the error is of the order of gap/τ, so pair it
    with ``solvers.SoftPolicyIteration``, whose LU it reuses.

    Cost: O(S²A) and one vector-Jacobian product; O(S³) more where the response brings no factor.
    """

    def supports(self, problem: Problem) -> str | None:
        """None, or the reason why the problem does not fit."""
        return refusal(not_explicit(problem), problem)

    def init(self, oracle: Oracle) -> None:
        """No state."""
        return

    def __call__(self, oracle: Oracle, x: Tensor, response: Response, evaluation: Evaluation, state: None) -> tuple[Hypergradient, None]:
        """∇φ(x) at a response: x [B, D] → [B, D]."""
        problem = oracle.problem
        value = values_of(response)
        direct, h = problem.objective.gradient(problem, x, response.policy)
        cotangent = problem.regularizer.hessian_product(response.policy, h) / problem.regularizer.temperature
        z = adjoint(problem.at(x), response.policy, cotangent, response.factor)
        implicit = problem.backup_vjp(x, value, z)
        return Hypergradient(direct + implicit, direct, implicit), None
