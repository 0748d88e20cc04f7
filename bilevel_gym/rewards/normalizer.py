"""Means and variances of what the follower does, as they enter r_x."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Buffers", "Moments"]

SMALLEST = 1e-4
"""The least standard deviation that is divided by: what never moved is not blown up when it first does."""


@dataclass(frozen=True)
class Moments:
    """Mean and variance of all values so far."""

    count: int
    """Values seen."""
    mean: Tensor
    """[*shape]."""
    variance: Tensor
    """[*shape], with the divisor n."""

    @classmethod
    def none(cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Moments:
        """Of nothing: 0 and 1, which change nothing."""
        return cls(0, torch.zeros(shape, dtype=dtype, device=device), torch.ones(shape, dtype=dtype, device=device))

    def joined(self, values: Tensor) -> Moments:
        """With more values, [n, *shape] (Chan, Golub, LeVeque, 1979, for the sum of two samples' squares)."""
        fresh, total = len(values), self.count + len(values)
        if not fresh:
            return self
        variance, mean = torch.var_mean(values, 0, correction=0)
        share = fresh / total
        between = (mean - self.mean).square() * (share * (1.0 - share))
        return Moments(total, torch.lerp(self.mean, mean, share), torch.lerp(self.variance, variance, share) + between)

    def standardized(self, values: Tensor) -> Tensor:
        """(values − mean)/deviation: [..., *shape] → the same."""
        return (values - self.mean) / self.variance.sqrt().clamp_min(SMALLEST)


@dataclass(frozen=True)
class Buffers:
    """What a reward model has measured: environment state, constant in ∇x, the same for solver and objective within an upper step."""

    observations: Moments | None = None
    """Of the observations, all that were seen."""
    rewards: Moments | None = None
    """[K] of each member's r, at the current x over the last look at the follower."""
    channels: Tensor | None = None
    """[2, C] or [2, K, C] the batch norm's mean and variance, at the current x over the last look at the follower."""
