"""The inexact hyper-gradient of M-SoBiRL: the adjoint is amortized over the outer iterations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.hypergradients.fit import not_explicit, refusal, values_of
from bilevel_gym.numerics import as_table, backup, expect_next, push_forward, staying
from bilevel_gym.types import MDP, Evaluation, Hypergradient, Oracle, Problem, Response

__all__ = ["Implicit"]


@dataclass(frozen=True)
class Implicit:
    """w_k ≈ A_k⁻¹b_k by gradient steps on ½‖A_k w − b_k‖², carried from one outer iteration to the next (mathematics §4).

        A_k = (I − γP_{π_k})ᵀ,   b_k = Uᵀ(π_k⊙∇_πf),   U_{sa,s'} = 1[s=s'] − γP_sas'
        w_k = w_{k−1} − ξ (A_kᵀA_k w_{k−1} − A_kᵀb_k)
        ∇̂φ = ∇_xf + τ⁻¹ (∂backup/∂x)ᵀ(π_k⊙∇_πf − p_k⊙w_k),   p_k = softmax(backup(x_k, V_k)/τ)

    Source: M-SoBiRL (Yang, Gao, Yuan, AISTATS 2025). p_k are the weights of ∇_xF(x_k, V_k); they equal π_k once the lower level has
    converged, and not before. Under KL p_k ∝ μ exp(backup/τ), and all else is the same.

    Args:
        step_size: ξ; None takes 1/(‖A‖₁‖A‖_∞) ≤ 1/‖A‖₂², which never diverges. A fixed ξ above 2/‖A‖₂² does.
        initial: w_0, [S] or of any shape that expands to the values', [B, S]; zeros by default (the authors draw a standard normal).
        adjoint_steps: gradient steps on w in each outer iteration; the paper takes one.

    Raises:
        InvalidProblem: a step size or number of steps that is not positive.

    Cost: O(S²A) an outer iteration and one vector-Jacobian product; no linear system is solved.
    """

    step_size: float | None = None
    initial: Any = None
    adjoint_steps: int = 1

    def __post_init__(self) -> None:
        if self.step_size is not None and not self.step_size > 0:
            raise InvalidProblem(f"step_size is {self.step_size}: it must be positive, or None for the largest safe one")
        if self.adjoint_steps < 1:
            raise InvalidProblem(f"adjoint_steps is {self.adjoint_steps}: take one at least")

    def supports(self, problem: Problem) -> str | None:
        """None, or the reason why the problem does not fit."""
        reason = not_explicit(problem)
        if reason is None and not problem.regularizer.entropic:
            reason = f"the recursion on w holds for the Shannon entropy and for KL, not for {type(problem.regularizer).__name__}"
        return refusal(reason, problem)

    def init(self, oracle: Oracle) -> Tensor:
        """w_0: [B, S].

        Raises:
            InvalidProblem: ``initial`` does not have one number for each state.
        """
        start: Tensor = oracle.problem.world.start
        if self.initial is None:
            return torch.zeros_like(start)
        w = as_table(self.initial, start.device).to(start.dtype).clone()
        if w.shape[-1:] != start.shape[-1:] or not bool(w.isfinite().all()):
            raise InvalidProblem(f"initial has shape {tuple(w.shape)}: w has one finite number for each state, [S] = [{start.shape[-1]}]")
        return w

    def __call__(
        self, oracle: Oracle, x: Tensor, response: Response, evaluation: Evaluation, state: Tensor
    ) -> tuple[Hypergradient, Tensor]:
        """∇̂φ(x_k, π_k, V_k, w_k), and w_k: x [B, D] → [B, D].

        Raises:
            InvalidProblem: w is of another batch than the values.
        """
        problem = oracle.problem
        value = values_of(response)
        try:
            state = state.expand_as(value)
        except RuntimeError as error:
            raise InvalidProblem(f"initial has shape {tuple(state.shape)}: w is {list(value.shape)} here, as the values are") from error
        tau = problem.regularizer.temperature
        mdp = problem.at(x)
        direct, h = problem.objective.gradient(problem, x, response.policy)
        weighted = response.policy * h
        w = self._descend(mdp, response.policy, weighted, state)
        weights = problem.regularizer.policy(backup(mdp, value))
        implicit = problem.backup_vjp(x, value, (weighted - weights * w.unsqueeze(-1)) / tau)
        return Hypergradient(direct + implicit, direct, implicit), w

    def _descend(self, mdp: MDP, policy: Tensor, weighted: Tensor, w: Tensor) -> Tensor:
        """Gradient steps on ½‖Aw − b‖²; nothing is formed: Aw − b = w − Σ_a(π⊙h) − γPᵀ(π⊙w − π⊙h)."""
        gamma, transition = mdp.discount, mdp.transition
        summed = weighted.sum(-1)
        step = _safe_step(mdp, policy) if self.step_size is None else self.step_size
        for _ in range(self.adjoint_steps):
            residual = w - summed - gamma * push_forward(transition, policy * w.unsqueeze(-1) - weighted)
            w = w - step * (residual - gamma * (policy * expect_next(transition, residual)).sum(-1))
        return w


def _safe_step(mdp: MDP, policy: Tensor) -> Tensor:
    """1/(‖A‖₁‖A‖_∞) with A = (I − γP_π)ᵀ: [B, 1].

    |I − γP_π| is I + γP_π less twice γ times its diagonal: its row and column sums need no matrix.
    """
    gamma, transition = mdp.discount, mdp.transition
    once = 1.0 - 2.0 * gamma * (policy * staying(transition)).sum(-1)
    by_row = once + gamma * (policy * expect_next(transition, torch.ones_like(mdp.start))).sum(-1)
    by_column = once + gamma * push_forward(transition, policy)
    return 1.0 / (by_row.amax(-1) * by_column.amax(-1)).unsqueeze(-1)
