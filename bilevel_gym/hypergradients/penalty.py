"""PBRL: the lower level as a penalty, which a policy of the upper level's own pays for not being optimal."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bilevel_gym.arguments import check_numbers
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.hypergradients.fit import action_values_of, not_softmax, refusal, values_of
from bilevel_gym.numerics import ArrayLike, adjoint, as_table, backup, factorize, policy_value, solve_transposed
from bilevel_gym.types import MDP, Evaluation, Factor, Hypergradient, Oracle, Problem, Response

__all__ = ["Kind", "Penalty", "PenaltyState", "over_states"]

Kind = Literal["value", "bellman"]
"""What is penalised: the value that is lost by not being optimal, or the same in each state by itself."""


def over_states(problem: Problem, distribution: ArrayLike | None) -> Tensor:
    """ν as a table, [S] or [C, S]; uniform where none is given.

    Raises:
        InvalidProblem: ν is not a distribution over the states, or leaves one of them out.
    """
    start, states = problem.world.start, problem.world.states
    if distribution is None:
        return torch.full((states,), 1.0 / states, dtype=start.dtype, device=start.device)
    table = as_table(distribution, start.device)
    if table.shape not in ((states,), start.shape):
        raise InvalidProblem(
            f"distribution has shape {tuple(table.shape)}: it must be ({states},), or {tuple(start.shape)} as the start is"
        )
    if not bool((table > 0).all() & ((table.sum(-1) - 1.0).abs() < 1e-8).all()):
        raise InvalidProblem("distribution must be positive in every state, with sum one: what happens in a state of weight 0 is lost")
    return table


@dataclass(frozen=True)
class PenaltyState:
    """What the estimator keeps between calls."""

    logits: Tensor | None = None
    """[B, S, A] θ of the own policy; None before the first call."""
    updates: int = 0
    """Calls so far."""


class _Setting(NamedTuple):
    """What stays while the own policy moves."""

    problem: Problem
    x: Tensor
    mdp: MDP
    response: Response
    weights: Tensor
    """[B, S] ν, that of a context times its weight."""


@dataclass(frozen=True)
class Penalty:
    """F_λ(x, π) = f(x, π) + λ p(x, π), descended in a policy π of the estimator's own and, as ∇_xF_λ, in x (mathematics §7).

    * ``"value"``: p = V*_x(ν) − V^π_x(ν), with ν = ρ by default. ∇_xp is a difference of occupancies by the envelope theorem, for x
      in P too: ∇_xV^π(ν) = (∂backup(x, V^π)/∂x)ᵀ(m⊙π), m = (I − γP_π)^{-T}ν, at the response π̂ and at π. ∇_πp = −m⊙(Q^π − τ∇Ω(π)).
    * ``"bellman"``: p = Σ_s ν_s ( V*_s − ⟨π_s, Q*_s⟩ + τΩ(π_s) ), ν uniform by default. Q* depends on x through an adjoint: its
      cotangent is ν⊙(π* − π). ∇_πp = −ν⊙(Q* − τ∇Ω(π)), a strongly convex problem in each state, and no linear system.

    The value penalty is the Bellman penalty weighed by m instead of ν. Both constrain π only where their weight is positive: where
    the episode never gets from ρ, the value penalty leaves π free, and a ν of full support mends that. With π at a minimum of
    F_λ(x, ·), ∇_xF_λ is ∇φ up to O(1/λ).

    Source: PBRL (Shen, Yang and Chen, "Principled penalty-based methods for bilevel reinforcement learning and RLHF", ICML 2024), its
    gradients of the two penalties. No code was released: this is a re-implementation, of the exact (tabular) algorithm. Chosen here:
    π = softmax(θ), or ∝ μ exp(θ) under KL, and plain gradient steps in θ; π moves before x, not with it; its step is η/λ, because the
    curvature of F_λ grows like λ; π starts as the first response, where p = 0; λ is constant, or grows by ``growth`` λ each call.

    The curvature of p at π* is at most τ max_s m_s / 2 (or ν_s), so η has to stay below 4 / (τ max_s m_s); where π* is nearly
    deterministic it is far less than that bound, and π follows slowly. Then λp holds x back: raise η and ``policy_steps``, or lower λ.
    With a λ too small for what f gains by it, π leaves the follower's optimum: f(x, π) and f(x, π̂), both reported, come apart.

    Args:
        kind: ``"value"`` or ``"bellman"``.
        penalty: λ > 0.
        growth: by what share of λ it grows each call, 0 for a constant λ.
        policy_learning_rate: η > 0.
        policy_steps: steps on θ in each call.
        distribution: ν, [S], or [C, S] for each of C contexts; None takes ρ for the value penalty and uniform weights for the other.

    Raises:
        InvalidProblem: a kind that does not exist, or a number that is out of range.

    Cost: a step on θ is O(S²A + S³) for the value penalty, O(SA) for the other, and ∇_πf; then one vector-Jacobian product for each of
    π and π̂, or one adjoint solve and one of them.
    """

    kind: Kind = "value"
    _: KW_ONLY
    penalty: float = 10.0
    growth: float = 0.0
    policy_learning_rate: float = 1.0
    policy_steps: int = 1
    distribution: ArrayLike | None = None

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.kind not in ("value", "bellman"):
            raise InvalidProblem(f"kind is {self.kind!r}: choose 'value' or 'bellman'")
        if not (0.0 < self.penalty < float("inf") and 0.0 < self.policy_learning_rate < float("inf")):
            raise InvalidProblem(f"penalty is {self.penalty} and policy_learning_rate {self.policy_learning_rate}: both must be positive")
        if not self.growth >= 0 or self.policy_steps < 1:
            raise InvalidProblem(f"growth is {self.growth} and policy_steps {self.policy_steps}: at least 0 and 1")

    def supports(self, problem: Problem) -> str | None:
        """None, or the reason why the problem does not fit."""
        return refusal(not_softmax(problem), problem)

    def init(self, oracle: Oracle) -> PenaltyState:
        """No policy yet: the first call takes the response's.

        Raises:
            InvalidProblem: ν is not a positive distribution over the states.
        """
        self._distribution(oracle.problem)
        return PenaltyState()

    def __call__(
        self, oracle: Oracle, x: Tensor, response: Response, evaluation: Evaluation, state: PenaltyState
    ) -> tuple[Hypergradient, PenaltyState]:
        """∇_xF_λ at x and at the own policy after its steps: x [B, D] → [B, D].

        ``stats`` has f(x, π) and f(x, π̂), p(x, π) and λ; means over a batch.
        """
        q, problem = action_values_of(response), oracle.problem
        regularizer, objective, tau = problem.regularizer, problem.objective, problem.regularizer.temperature
        distribution, contexts = self._distribution(problem), problem.world.context_weights
        weights = distribution if contexts is None else contexts.unsqueeze(-1) * distribution
        setting = _Setting(problem, x, problem.at(x), response, weights)
        scale = self.penalty * (1.0 + self.growth * state.updates)
        theta = q / tau if state.logits is None else state.logits
        for _ in range(self.policy_steps):
            policy = regularizer.policy(tau * theta)
            _, h = objective.gradient(problem, x, policy)
            mass, q = _pull(self.kind, setting, policy)
            # τ∇Ω(π) = τθ up to a constant in each state, which the Hessian product takes away.
            uphill = regularizer.hessian_product(policy, h / scale - mass.unsqueeze(-1) * (q - tau * theta))
            theta = theta - self.policy_learning_rate * uphill
        policy = regularizer.policy(tau * theta)
        direct, _ = objective.gradient(problem, x, policy)
        lost, by_x = (_value_penalty if self.kind == "value" else _bellman_penalty)(setting, policy)
        stats = {
            "objective_own": float(objective.value(problem, x, policy).mean()),
            "objective_response": float(evaluation.value.mean()),
            "penalty": float(problem.over_contexts((distribution * lost).sum(-1)).mean()),
            "penalty_weight": scale,
        }
        return Hypergradient(direct + scale * by_x, direct, scale * by_x, stats), PenaltyState(theta, state.updates + 1)

    def _distribution(self, problem: Problem) -> Tensor:
        start: Tensor = problem.world.start
        return start if self.kind == "value" and self.distribution is None else over_states(problem, self.distribution)


def _value_penalty(setting: _Setting, policy: Tensor) -> tuple[Tensor, Tensor]:
    """V^π̂ − V^π [B, S], and the gradient of its sum under ν in x [B, D], π̂ and π held fixed."""
    best = setting.response.policy
    best_value, best_visits = _play(setting, best, setting.response.factor)
    value, visits = _play(setting, policy)
    earned = setting.problem.backup_vjp(setting.x, best_value, best_visits.unsqueeze(-1) * best)
    missed = setting.problem.backup_vjp(setting.x, value, visits.unsqueeze(-1) * policy)
    return best_value - value, earned - missed


def _bellman_penalty(setting: _Setting, policy: Tensor) -> tuple[Tensor, Tensor]:
    """V*_s − ⟨π_s, Q*_s⟩ + τΩ(π_s) [B, S], and the gradient of its sum under ν in x [B, D]."""
    problem, response, regularizer = setting.problem, setting.response, setting.problem.regularizer
    value, q = values_of(response), action_values_of(response)
    lost = regularizer.conjugate(q) - (policy * q).sum(-1) + regularizer.penalty(policy)
    cotangent = setting.weights.unsqueeze(-1) * (response.policy - policy)
    z = adjoint(setting.mdp, response.policy, cotangent, response.factor)
    return lost, problem.backup_vjp(setting.x, value, z)


def _play(setting: _Setting, policy: Tensor, factor: Factor | None = None) -> tuple[Tensor, Tensor]:
    """V^π, and the visits m = (I − γP_π)^{-T}ν of the states: [B, S] both."""
    factor = factorize(setting.mdp, policy) if factor is None else factor
    value = policy_value(setting.mdp, policy, factor)
    return value, solve_transposed(factor, setting.weights.expand_as(value))


def _pull(kind: Kind, setting: _Setting, policy: Tensor) -> tuple[Tensor, Tensor]:
    """Weights w [B, S] and values q [B, S, A] with ∇_πp = −w⊙(q − τ∇Ω(π))."""
    if kind == "value":
        value, visits = _play(setting, policy)
        return visits, backup(setting.mdp, value)
    return setting.weights, action_values_of(setting.response)
