"""Quadratic costs of continuous states and actions, by their log weights."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.rewards.box import Box

__all__ = ["QuadraticCost"]


class QuadraticCost(Box):
    """r_x(s, a) = −(sᵀQ_x s + aᵀR_x a) with diagonal Q_x and R_x: x are the logarithms of their n + m weights, states first.

    Args:
        states: n.
        actions: m.
        bound: x lies in [−bound, bound]^(n+m).
        device: where x lives.

    Raises:
        InvalidProblem: a size is not positive, or the bound not positive and finite.
    """

    def __init__(self, states: int, actions: int, *, bound: float = 3.0, device: str | torch.device = "cpu") -> None:
        if min(states, actions) < 1 or not bound > 0.0:
            raise InvalidProblem(f"states is {states}, actions {actions} and bound {bound}: each must be positive")
        super().__init__(states + actions, bound, device=device)
        self.states, self.actions = states, actions

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Q_x and R_x: [B, D] → [B, n, n], [B, m, m]."""
        state, action = x.exp().split((self.states, self.actions), -1)
        return torch.diag_embed(state), torch.diag_embed(action)

    def along(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """r_x at state-action pairs: [D], [..., n], [..., m] → [...]."""
        state, action = x.exp().split((self.states, self.actions), -1)
        cost: Tensor = states.square() @ state + actions.square() @ action
        return -cost
