"""τΩ on the simplex, seen through its convex conjugate: value, policy and Hessian product (mathematics §2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem

__all__ = ["Shannon"]


@dataclass(frozen=True)
class Shannon:
    """Negative Shannon entropy, Ω(p) = Σ_a p_a log p_a: soft values are logsumexp, policies are softmax.

    Args:
        temperature: τ > 0, in units of the reward.

    Raises:
        InvalidProblem: τ is not a positive finite number.
    """

    temperature: float

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature < float("inf"):
            raise InvalidProblem(
                f"temperature is {self.temperature}: it must be positive and finite; for a nearly greedy follower use a small one such as 1e-3"
            )

    def conjugate(self, q: Tensor) -> Tensor:
        """τ logsumexp(q/τ), read off the greedy action as q_a − τ log π_a: [B, S, A] → [B, S].

        There log π_a lies in [−log A, 0], so nothing overflows or cancels at any temperature, and it is quicker than ``logsumexp``.
        """
        return torch.sub(q.amax(-1), torch.log_softmax(q / self.temperature, -1).amax(-1), alpha=self.temperature)

    def policy(self, q: Tensor) -> Tensor:
        """softmax(q/τ): [B, S, A] → [B, S, A], rows sum to one."""
        return torch.softmax(q / self.temperature, -1)

    def hessian_product(self, policy: Tensor, h: Tensor) -> Tensor:
        """π⊙(h − ⟨π, h⟩), a product with diag π − ππᵀ that never forms it: [B, S, A] → [B, S, A]."""
        return policy * (h - (policy * h).sum(-1, keepdim=True))

    def penalty(self, policy: Tensor) -> Tensor:
        """τ Σ_a π log π ≤ 0: [B, S, A] → [B, S]."""
        negative_entropy: Tensor = torch.special.xlogy(policy, policy).sum(-1)
        return self.temperature * negative_entropy
