"""PARL: the implicit function theorem on the logits of the policy, second derivatives and all."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.hypergradients.fit import action_values_of, not_softmax, refusal
from bilevel_gym.hypergradients.penalty import over_states
from bilevel_gym.numerics import ArrayLike, backup, conjugate_gradient, expect_next, factorize, policy_value, push_forward, solve_transposed
from bilevel_gym.types import MDP, Evaluation, Factor, Hypergradient, Oracle, Problem, Response

__all__ = ["SecondOrder"]


@dataclass(frozen=True)
class SecondOrder:
    """∇̂φ = ∇_xf + ∇²_{xθ}J v,  (−∇²_{θθ}J + δI) v = ∇_θf, with J(x, θ) = Σ_s ν_s V^{π_θ}_x(s) (mathematics §7).

    π_θ = softmax(θ), or ∝ μ exp(θ) under KL. −∇²J is singular, for shifting the logits of a state moves no policy, and away from the follower's optimum it is indefinite. So v
    comes from conjugate gradients on the damped system, which stop before a direction of negative curvature; ``stats`` says how far
    they came and what curvature they met. With a solved response and δ → 0 this is the exact hyper-gradient, for x in the reward and
    in P; δ > 0 takes the share δ/(δ + c) off a component of curvature c, and c is as small as τ m_s π_sa, m the visits from ν: a nearly
    deterministic policy is damped most. On the problems of the tests the default δ costs at most .3 % of the gradient.

    Source: PARL (Chakraborty et al., "PARL: a unified framework for policy alignment in reinforcement learning from human feedback",
    ICLR 2024), its hyper-gradient. No usable code was released: this is a re-implementation. Chosen here: the exact tabular J and its
    products in closed form, ν of full support, so that no state's curvature vanishes, and conjugate gradients for the inverse.

    Args:
        damping: δ ≥ 0.
        iterations: of conjugate gradients, at most.
        tolerance: on ‖∇_θf − (−∇²J + δI)v‖ / ‖∇_θf‖.
        distribution: ν, [S], or [C, S] for each of C contexts; None takes uniform weights.

    Raises:
        InvalidProblem: a number that is out of range.

    Cost: one LU, then O(S²A) an iteration; two vector-Jacobian products.
    """

    _: KW_ONLY
    damping: float = 1e-6
    iterations: int = 100
    tolerance: float = 1e-8
    distribution: ArrayLike | None = None

    def __post_init__(self) -> None:
        if not self.damping >= 0 or self.iterations < 1 or not self.tolerance > 0:
            raise InvalidProblem(
                f"damping is {self.damping}, iterations {self.iterations} and tolerance {self.tolerance}: at least 0, at least 1, and positive"
            )

    def supports(self, problem: Problem) -> str | None:
        """None, or the reason why the problem does not fit."""
        return refusal(not_softmax(problem), problem)

    def init(self, oracle: Oracle) -> None:
        """No state.

        Raises:
            InvalidProblem: ν is not a positive distribution over the states.
        """
        over_states(oracle.problem, self.distribution)

    def __call__(self, oracle: Oracle, x: Tensor, response: Response, evaluation: Evaluation, state: None) -> tuple[Hypergradient, None]:
        """∇̂φ(x) at θ = Q/τ of the response: x [B, D] → [B, D].

        ``stats`` has, of the worst system in a batch: ``cg_residual`` ‖∇_θf − (−∇²J + δI)v‖/‖∇_θf‖, ``cg_residual_undamped`` the same
        with δ = 0, ``cg_iterations``, and ``cg_curvature``, the smallest pᵀ(−∇²J)p/‖p‖² of the directions tried.
        """
        problem = oracle.problem
        point = _at(problem, x, action_values_of(response), over_states(problem, self.distribution))
        direct, h = problem.objective.gradient(problem, x, point.policy)
        right = problem.regularizer.hessian_product(point.policy, h)
        solved = conjugate_gradient(
            lambda flat: -_along(point, flat.view_as(right)).gradient.flatten(-2),
            right.flatten(-2),
            iterations=self.iterations,
            tolerance=self.tolerance,
            damping=self.damping,
        )
        moved = _along(point, solved.solution.view_as(right))
        implicit = _mixed(problem, x, point, moved)
        size = right.flatten(-2).norm(dim=-1).clamp_min(1e-300)
        stats = {
            "cg_residual": float((solved.residual / size).max()),
            "cg_residual_undamped": float(((right + moved.gradient).flatten(-2).norm(dim=-1) / size).max()),
            "cg_iterations": float(solved.iterations.max()),
            "cg_curvature": float(solved.curvature.min()),
        }
        return Hypergradient(direct + implicit, direct, implicit, stats), None


class _Point(NamedTuple):
    """The policy π_θ and what its derivatives are made of."""

    mdp: MDP
    policy: Tensor
    """[B, S, A]."""
    factor: Factor
    """Of I − γP_π."""
    value: Tensor
    """[B, S] V^π."""
    visits: Tensor
    """[B, S] m = (I − γP_π)^{-T}ν."""
    advantage: Tensor
    """[B, S, A] Q^π − τ∇Ω(π), less its mean under π: zero at the optimum, and ∇_θJ = m⊙π⊙advantage."""


class _Tangent(NamedTuple):
    """Derivatives along a direction of θ."""

    policy: Tensor
    value: Tensor
    visits: Tensor
    gradient: Tensor
    """[B, S, A] of ∇_θJ: the product with the Hessian."""


def _at(problem: Problem, x: Tensor, q: Tensor, distribution: Tensor) -> _Point:
    """The point θ = Q/τ."""
    mdp, policy = problem.at(x), problem.regularizer.policy(q)
    factor = factorize(mdp, policy)
    value = policy_value(mdp, policy, factor)
    visits = solve_transposed(factor, distribution.expand_as(value))
    surplus = backup(mdp, value) - q  # τ∇Ω(π) = τθ = Q up to a constant in each state
    return _Point(mdp, policy, factor, value, visits, surplus - (policy * surplus).sum(-1, keepdim=True))


def _along(point: _Point, v: Tensor) -> _Tangent:
    """The derivatives of π, V^π, m and ∇_θJ along v [B, S, A], by the product rule.

    π' = Hv,  V' = (I − γP_π)⁻¹ Σ_a π'⊙advantage,  m' = γ(I − γP_π)^{-T} Pᵀ(m⊙π'),  (Q^π − τθ)' = γPV' − τv.
    """
    mdp, regularizer, m = point.mdp, point.mdp.regularizer, point.visits.unsqueeze(-1)
    policy = regularizer.hessian_product(point.policy, v)
    gained = (policy * point.advantage).sum(-1)
    value = solve_transposed(point.factor, gained, transposed=False)
    visits = mdp.discount * solve_transposed(point.factor, push_forward(mdp.transition, m * policy))
    turned = regularizer.hessian_product(point.policy, mdp.discount * expect_next(mdp.transition, value) - regularizer.temperature * v)
    gradient = visits.unsqueeze(-1) * point.policy * point.advantage
    gradient = gradient + m * (policy * point.advantage - point.policy * gained.unsqueeze(-1) + turned)
    return _Tangent(policy, value, visits, gradient)


def _mixed(problem: Problem, x: Tensor, point: _Point, tangent: _Tangent) -> Tensor:
    """∇²_{xθ}J v: the derivative of ∇_xJ = (∂backup(x, V^π)/∂x)ᵀ(m⊙π) along v, [B, D].

    ∇_xJ is linear in m⊙π and bilinear in it and V^π, so half a difference over any step is its derivative, exactly.
    """
    mass = point.visits.unsqueeze(-1) * point.policy
    change = tangent.visits.unsqueeze(-1) * point.policy + point.visits.unsqueeze(-1) * tangent.policy
    ahead = problem.backup_vjp(x, point.value + tangent.value, mass + change)
    behind = problem.backup_vjp(x, point.value - tangent.value, mass - change)
    return 0.5 * (ahead - behind)
