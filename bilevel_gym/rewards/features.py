"""Rewards that are linear in x, on worlds that are no tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from bilevel_gym.arguments import check_call
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.frames import to_stacks
from bilevel_gym.rewards.box import Box

__all__ = ["FeatureReward"]

Features = Callable[[Any, Tensor], Tensor]
"""φ: states [..., *observation] and actions [..., action] or [...] → [..., D]."""


class FeatureReward(Box):
    """r_x(s, a) = ⟨φ(s, a), x⟩, φ a function of yours: the counterpart of ``LinearReward`` where there is no table of features.

    Args:
        features: φ, in torch; it is called with batches of any shape. x weighs what it returns, so let all of them be of one size.
        dimension: D, features of a pair.
        bound: x lies in [−bound, bound]^D.
        spread: the standard deviation of the x to start from.
        device: where x lives.

    Raises:
        InvalidProblem: a number that is out of range.
    """

    def __init__(
        self, features: Features, dimension: int, *, bound: float = 10.0, spread: float = 1.0, device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(dimension, bound, spread=spread, device=device)
        self.dtype = torch.float32
        self.features = features

    @classmethod
    def for_world(cls, world: Any, features: Features | None = None, *, bound: float = 10.0, spread: float = 1.0) -> Self:
        """Features of a world's states and actions, counted by trying them on one of each.

        Args:
            world: with flat observations, or any where ``features`` are given, such as ``worlds.VectorWorld``.
            features: φ; None takes s and a side by side, a as an indicator vector where actions are finitely many.
            bound: x lies in [−bound, bound]^D.
            spread: the standard deviation of the x to start from.

        Raises:
            InvalidProblem: there are no features for pictures unless you give them, or they are not [..., D].
        """
        shape, count, device = tuple(world.observation_shape), getattr(world, "action_count", None), torch.device(world.device)
        if features is None and len(shape) != 1:
            raise InvalidProblem(f"observations {list(shape)} have no linear features of their own: give a function of (states, actions)")
        states = torch.zeros(1, *shape, dtype=torch.float32 if len(shape) == 1 else torch.uint8, device=device)
        actions = torch.zeros(1, dtype=torch.int64, device=device) if count else world.action_low[None]
        found = _Pair(count) if features is None else features
        check_call("the function of features", found, ["states", "actions"])
        tried = found(states, actions)
        if not isinstance(tried, Tensor):
            raise InvalidProblem(
                f"the features are {type(tried).__name__} objects: the function has to return a tensor [..., D], made by torch"
            )
        if tried.ndim != 2 or len(tried) != 1:
            raise InvalidProblem(
                f"the features of one state and action have shape {list(tried.shape)}: they must be [1, D], one row for each pair; stack them along the last axis"
            )
        return cls(found, tried.shape[-1], bound=bound, spread=spread, device=device)

    def along(self, x: Tensor, states: Any, actions: Tensor) -> Tensor:
        """r_x at state-action pairs, differentiable in x.

        Args:
            x: [D], or [B, D] for a population.
            states: [..., *observation], or [B or 1, ..., *observation].
            actions: [..., action] or [...], likewise.

        Returns:
            [...], or [B, ...].
        """
        seen = self.features(to_stacks(states), actions).to(x.dtype)
        return (seen * (x if x.ndim == 1 else x.view(len(x), *(1,) * (seen.ndim - 2), -1))).sum(-1)


@dataclass(frozen=True)
class _Pair:
    """s and a side by side, a as an indicator of one of ``count``."""

    count: int | None

    def __call__(self, states: Tensor, actions: Tensor) -> Tensor:
        """[..., observation + action]."""
        return torch.cat([states, actions if self.count is None else functional.one_hot(actions, self.count).to(states.dtype)], -1)
