"""Rewards that are any differentiable function of x, in any box."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.numerics import ArrayLike, stack_functions, vjp
from bilevel_gym.rewards.box import CornerBox

__all__ = ["FunctionReward"]


class FunctionReward(CornerBox):
    """r_x = function(x), for an x that lives in a box of its own such as payments ≥ 0 or rates in [0, 2].

    The counterpart of ``worlds.ControlledWorld``: written in torch, the derivative is one backward pass.

    Args:
        function: x [B, D] → r_x [B, S, A]; with contexts x is [B, 1, D] and r_x [B, C, S, A]. A ``numerics.TableFunction`` can be
            stacked to a batch.
        low: [D] the lower corner of the box.
        high: [D] the upper corner.
        start: two numbers between which x starts, uniformly, in every coordinate; None takes the whole box.
        device: where x lives.

    Raises:
        InvalidProblem: the corners are not finite, not of one length, or not in order; ``start`` leaves the box.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        low: ArrayLike,
        high: ArrayLike,
        *,
        start: tuple[float, float] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(low, high, start=start, device=device)
        self.function = function

    def at(self, x: Tensor) -> Tensor:
        """r_x: [B, D] → [B, S, A]."""
        return self.function(x)

    def vjp(self, x: Tensor, cotangent: Tensor) -> Tensor:
        """(∂r_x/∂x)ᵀ cotangent, by one backward pass: [B, S, A] → [B, D]."""
        return vjp(self.function, x, cotangent)

    def along(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """r_x at state-action pairs: x [B, D], states and actions [...] → [B, ...]."""
        return self.function(x)[..., states, actions]

    @classmethod
    def stack(cls, rewards: Sequence[FunctionReward]) -> FunctionReward:
        """Rewards with one box as a batch.

        Raises:
            InvalidProblem: their boxes differ.
            UnsupportedProblem: their functions cannot be stacked.
        """
        first = rewards[0]
        if not all(
            reward.start == first.start and torch.equal(reward.low, first.low) and torch.equal(reward.high, first.high)
            for reward in rewards
        ):
            raise InvalidProblem("rewards are stacked where x has one box: give them the same low, high and start")
        functions = stack_functions([reward.function for reward in rewards])
        return cls(functions, first.low, first.high, start=first.start, device=first.device)
