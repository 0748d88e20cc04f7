"""Rewards by perceptrons, on states and actions or with one output an action."""

from __future__ import annotations

from typing import Protocol, Self, Unpack

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.rewards.all_actions import AllActionsReward
from bilevel_gym.rewards.architecture import Perceptron
from bilevel_gym.rewards.network import NetworkOptions, NetworkReward

__all__ = ["BoxWorld", "DiscreteMLPReward", "DiscreteWorld", "MLPReward"]


class BoxWorld(Protocol):
    """What a network on states and actions asks of a world: the sizes, and the box of actions."""

    @property
    def observation_size(self) -> int:
        """Numbers in an observation."""
        ...

    @property
    def action_size(self) -> int:
        """Numbers in an action."""
        ...

    @property
    def action_low(self) -> Tensor:
        """[action] the lower corner of the box of actions."""
        ...

    @property
    def action_high(self) -> Tensor:
        """[action] the upper corner."""
        ...


class DiscreteWorld(Protocol):
    """What a network on flat observations alone asks of a world: the sizes, and where its tensors live."""

    @property
    def observation_size(self) -> int:
        """Numbers in an observation."""
        ...

    @property
    def action_count(self) -> int:
        """A."""
        ...

    @property
    def device(self) -> str | torch.device:
        """Where its tensors live."""
        ...


class MLPReward(NetworkReward):
    """r_x(s, a) = scale · tanh(network_x(s, a)), a perceptron with leaky ReLU layers; x is its flat parameter vector.

    The input is the observation followed by the action, moved from its box to [−1, 1]. x holds, layer by layer, the weight
    [out, in] row by row and then the bias [out].

    Args:
        observation_size: numbers in an observation.
        action_size: numbers in an action.
        hidden: widths of the hidden layers.
        slope: of the leaky ReLU where its input is negative.
        action_low: [action] the lower corner of the box of actions; −1 by default.
        action_high: [action] the upper corner; 1 by default.
        **options: see ``NetworkReward``.

    Raises:
        InvalidProblem: a size, the scale or the bound is not positive and finite, or a corner has the wrong shape.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        *,
        hidden: tuple[int, ...] = (64, 64),
        slope: float = 0.01,
        action_low: Tensor | None = None,
        action_high: Tensor | None = None,
        **options: Unpack[NetworkOptions],
    ) -> None:
        if min(observation_size, action_size) < 1:
            raise InvalidProblem(f"the sizes of an observation ({observation_size}) and of an action ({action_size}) must be positive")
        self.observation_size, self.action_size, self.hidden = observation_size, action_size, tuple(hidden)
        super().__init__(Perceptron((observation_size + action_size, *hidden, 1), slope), **options)
        low = torch.full((action_size,), -1.0) if action_low is None else action_low
        high = torch.full((action_size,), 1.0) if action_high is None else action_high
        if low.shape != (action_size,) or high.shape != (action_size,) or not bool((low < high).all()):
            raise InvalidProblem(f"action_low {tuple(low.shape)} and action_high {tuple(high.shape)} must be [{action_size}], low < high")
        low, high = (edge.to(device=self.device, dtype=self.dtype) for edge in (low, high))
        self._slope, self._offset = 2.0 / (high - low), -(low + high) / (high - low)
        self._moves = bool((self._slope != 1.0).any() | (self._offset != 0.0).any())

    @classmethod
    def for_world(
        cls, world: BoxWorld, *, hidden: tuple[int, ...] = (64, 64), slope: float = 0.01, **options: Unpack[NetworkOptions]
    ) -> Self:
        """A network that fits a world's observations and actions, on its device unless another is named."""
        options.setdefault("device", world.action_low.device)
        corners = {"action_low": world.action_low, "action_high": world.action_high}
        return cls(world.observation_size, world.action_size, hidden=hidden, slope=slope, **corners, **options)

    def along_each(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """Each member's r at state-action pairs: states [..., observation] and actions [..., action] → [K, ...]."""
        return self._outputs(x, self._inputs(x, states, actions))

    def _inputs(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        if actions.shape[-1:] != (self.action_size,):
            raise InvalidProblem(f"actions have shape {tuple(actions.shape)}: they must be [..., {self.action_size}]")
        scaled = torch.addcmul(self._offset, actions, self._slope) if self._moves else actions
        return torch.cat([self._observed(x, states), scaled.to(x.dtype)], -1)

    def _observation_shape(self) -> tuple[int, ...]:
        return (self.observation_size,)


class DiscreteMLPReward(AllActionsReward):
    """r_x(s, ·) of A actions by a perceptron on the observation; x is its flat parameter vector, laid out as ``MLPReward``'s.

    Args:
        observation_size: numbers in an observation.
        action_count: A.
        hidden: widths of the hidden layers.
        slope: of the leaky ReLU where its input is negative.
        **options: see ``NetworkReward``.

    Raises:
        InvalidProblem: a size, the scale or the bound is not positive and finite.
    """

    def __init__(
        self,
        observation_size: int,
        action_count: int,
        *,
        hidden: tuple[int, ...] = (64, 64),
        slope: float = 0.01,
        **options: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(Perceptron((observation_size, *hidden, action_count), slope), **options)
        self.observation_size, self.action_count, self.hidden = observation_size, action_count, tuple(hidden)

    @classmethod
    def for_world(
        cls, world: DiscreteWorld, *, hidden: tuple[int, ...] = (64, 64), slope: float = 0.01, **options: Unpack[NetworkOptions]
    ) -> Self:
        """A network that fits a world's observations and actions, on its device unless another is named."""
        options.setdefault("device", world.device)
        return cls(world.observation_size, world.action_count, hidden=hidden, slope=slope, **options)
