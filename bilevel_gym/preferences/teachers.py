"""Who compares two fragments."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor
from torch.nn import functional

from bilevel_gym.errors import InvalidProblem

__all__ = ["BradleyTerry", "cross_entropy"]


@dataclass(frozen=True)
class BradleyTerry:
    """P(d_1 ≻ d_2) = σ(β (R_1 − R_2)), R the sum of the true reward over the fragment (mathematics §8).

    Args:
        rationality: β ≥ 0 per unit of reward; infinity never errs, 0 flips a coin.

    Raises:
        InvalidProblem: β is negative or NaN.
    """

    rationality: float = 1.0

    def __post_init__(self) -> None:
        if not self.rationality >= 0.0:
            raise InvalidProblem(f"rationality is {self.rationality}: it must be 0 (a coin) or more, float('inf') never errs")

    def probability(self, returns: Tensor) -> Tensor:
        """P(d_1 ≻ d_2): true returns [..., 2] → [...]; ½ for equal ones."""
        margin = returns[..., 0] - returns[..., 1]
        if self.rationality == inf:
            return 0.5 * (1.0 + margin.sign())
        return torch.sigmoid(self.rationality * margin)

    def label(self, returns: Tensor, generator: torch.Generator) -> Tensor:
        """Draw y: true returns [M, 2] → [M], 1 where the first is preferred, 0 where the second is, ½ for a tie of the perfectly rational."""
        probability = self.probability(returns)
        if self.rationality == inf:
            return probability
        return torch.bernoulli(probability, generator=generator)


def cross_entropy(logit: Tensor, outcome: Tensor) -> Tensor:
    """−y log σ(z) − (1−y) log σ(−z) in its softplus form, 0 where y is NaN (a skipped query): [...] → [...].

    Args:
        logit: z, the learned returns' difference.
        outcome: y in {0, ½, 1}, or a probability.
    """
    preferred = outcome.nan_to_num()
    loss = preferred * functional.softplus(-logit) + (1.0 - preferred) * functional.softplus(logit)  # no cancellation at either end
    return torch.where(outcome.isnan(), torch.zeros_like(loss), loss)
