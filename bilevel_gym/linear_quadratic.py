"""Discounted linear-quadratic control with an entropy bonus: the algebra that world, solver, objective and gradient share.

States s [n] and actions a [m] are vectors, s' = As + Ba + w with w ~ N(0, W), and a step costs sᵀQs + aᵀRa. The soft value is
−(sᵀPs + c), and everything below broadcasts over leading axes [B] of Q, R and P.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import e, pi

import torch
from torch import Tensor

__all__ = ["GaussianFeedback", "cost_to_go", "soft_feedback"]


@dataclass(frozen=True)
class GaussianFeedback:
    """π(a | s) = N(−Ks, Σ), the form of every soft-optimal policy of a linear-quadratic problem.

    Args:
        gain: [B, m, n] K.
        covariance: [B, m, m] Σ, positive definite.
    """

    gain: Tensor
    covariance: Tensor

    @property
    def entropy(self) -> Tensor:
        """½ log det(2πeΣ), the same in every state, negative where the policy is narrow: [B]."""
        entropy: Tensor = 0.5 * torch.logdet(2.0 * pi * e * self.covariance)
        return entropy

    def mean(self, observations: Tensor) -> Tensor:
        """−Ks: [N, n] → [N, m]."""
        return -(observations @ self.gain.mT)

    def sample(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one action for each observation: [N, n] → [N, m]."""
        noise = torch.randn(observations.shape[0], self.gain.shape[-2], generator=generator, dtype=self.gain.dtype, device=generator.device)
        drawn: Tensor = self.mean(observations) + noise.to(self.gain.device) @ torch.linalg.cholesky(self.covariance).mT
        return drawn


def soft_feedback(
    value: Tensor, action_cost: Tensor, state_matrix: Tensor, action_matrix: Tensor, discount: float, temperature: float
) -> GaussianFeedback:
    """What is soft-greedy with respect to −sᵀPs: with M = R + γBᵀPB,  K = γM⁻¹BᵀPA  and  Σ = (τ/2) M⁻¹.

    Q(s,a) is −(a + Ks)ᵀM(a + Ks) up to a term in s alone, and π ∝ exp(Q/τ).

    Args:
        value: [B, n, n] P.
        action_cost: [B, m, m] R.
        state_matrix: [n, n] A.
        action_matrix: [n, m] B.
        discount: γ.
        temperature: τ.

    Returns:
        the policy. Cost: O((n + m)³).
    """
    ahead = discount * action_matrix.mT @ value
    curvature = action_cost + ahead @ action_matrix
    return GaussianFeedback(torch.linalg.solve(curvature, ahead @ state_matrix), 0.5 * temperature * torch.linalg.inv(curvature))


def cost_to_go(
    gain: Tensor, state_cost: Tensor, action_cost: Tensor, state_matrix: Tensor, action_matrix: Tensor, discount: float
) -> Tensor:
    """P with sᵀPs = Σ_t γ^t (s_tᵀQs_t + a_tᵀRa_t) along s' = (A − BK)s, a = −Ks: the Lyapunov equation, by one linear system.

        P = Q + KᵀRK + γ(A − BK)ᵀP(A − BK)

    Args:
        gain: [B, m, n] K, with √γ(A − BK) stable.
        state_cost: [B, n, n] Q.
        action_cost: [B, m, m] R.
        state_matrix: [n, n] A.
        action_matrix: [n, m] B.
        discount: γ.

    Returns:
        [B, n, n] P, differentiable in all of them. Cost: O(n⁶): for small systems.
    """
    closed = state_matrix - action_matrix @ gain
    size = closed.shape[-1]
    across = closed.mT
    product = torch.einsum("...ij,...kl->...ikjl", across, across).flatten(-4, -3).flatten(-2)
    right = state_cost + gain.mT @ action_cost @ gain
    system = torch.eye(size * size, dtype=closed.dtype, device=closed.device) - discount * product
    solved: Tensor = torch.linalg.solve(system, right.flatten(-2).unsqueeze(-1)).unflatten(-2, (size, size)).squeeze(-1)
    return solved
