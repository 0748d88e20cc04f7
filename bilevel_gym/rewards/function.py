"""Rewards that are any differentiable function of x, in any box."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.numerics import ArrayLike, as_table, stack_functions, vjp

__all__ = ["FunctionReward"]


class FunctionReward:
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

    dtype = torch.float64

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        low: ArrayLike,
        high: ArrayLike,
        *,
        start: tuple[float, float] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.function = function
        self.device = torch.device(device)
        self.low, self.high, self.start = as_table(low, device), as_table(high, device), start
        if self.low.ndim != 1 or not len(self.low) or self.low.shape != self.high.shape:
            raise InvalidProblem(
                f"low has shape {tuple(self.low.shape)} and high {tuple(self.high.shape)}: give both as [D], one number or more"
            )
        if not bool((self.low < self.high).all() & self.low.isfinite().all() & self.high.isfinite().all()):
            raise InvalidProblem("the box of x must be finite, with low below high in every coordinate")
        if start is not None and not (float(self.low.max()) <= start[0] <= start[1] <= float(self.high.min())):
            raise InvalidProblem(f"start is {start}: x must start inside the box, between two numbers in order")

    @property
    def dimension(self) -> int:
        """D."""
        return len(self.low)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The box of x: two arrays [D]."""
        return self.low.cpu().numpy(), self.high.cpu().numpy()

    def initial(self, generator: torch.Generator) -> Tensor:
        """A uniform x between the two numbers of ``start``: [D]."""
        unit = torch.rand(self.dimension, generator=generator, dtype=self.dtype, device=self.device)
        return torch.lerp(self.low, self.high, unit) if self.start is None else self.start[0] + (self.start[1] - self.start[0]) * unit

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
