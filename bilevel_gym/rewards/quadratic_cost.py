"""Quadratic costs of continuous states and actions, by their log weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem

__all__ = ["QuadraticCost"]


class QuadraticCost:
    """r_x(s, a) = −(sᵀQ_x s + aᵀR_x a) with diagonal Q_x and R_x: x are the logarithms of their n + m weights, states first.

    Args:
        states: n.
        actions: m.
        bound: x lies in [−bound, bound]^(n+m).
        device: where x lives.

    Raises:
        InvalidProblem: a size or the bound is not positive.
    """

    dtype = torch.float64

    def __init__(self, states: int, actions: int, *, bound: float = 3.0, device: str | torch.device = "cpu") -> None:
        if min(states, actions) < 1 or not 0.0 < bound < float("inf"):
            raise InvalidProblem(f"states is {states}, actions {actions} and bound {bound}: each must be positive, and bound finite")
        self.states, self.actions, self.bound = states, actions, bound
        self.device = torch.device(device)

    @property
    def dimension(self) -> int:
        """D = n + m."""
        return self.states + self.actions

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The box of x: two arrays [D]."""
        return np.full(self.dimension, -self.bound), np.full(self.dimension, self.bound)

    def initial(self, generator: torch.Generator) -> Tensor:
        """A standard normal x, kept inside the box: [D]."""
        return torch.randn(self.dimension, generator=generator, dtype=self.dtype, device=self.device).clamp_(-self.bound, self.bound)

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Q_x and R_x: [B, D] → [B, n, n], [B, m, m]."""
        state, action = x.exp().split((self.states, self.actions), -1)
        return torch.diag_embed(state), torch.diag_embed(action)

    def along(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """r_x at state-action pairs: [D], [..., n], [..., m] → [...]."""
        state, action = x.exp().split((self.states, self.actions), -1)
        cost: Tensor = states.square() @ state + actions.square() @ action
        return -cost
