"""Reward networks whose flat parameter vector is x."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Protocol, Self, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.numerics import split_flat
from bilevel_gym.rewards.perceptron import Perceptron

__all__ = ["AllActionsReward", "BoxWorld", "DiscreteMLPReward", "DiscreteWorld", "MLPReward", "Network", "NetworkOptions", "NetworkReward"]


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
    """What a network on observations alone asks of a world: how many actions there are, and where its tensors live."""

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


class Network(Protocol):
    """An architecture: what a list of parameters computes, for one x or for a population."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input."""
        ...

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the parameters."""
        ...

    @property
    def fans(self) -> list[int]:
        """For each parameter the fan-in of its layer, which its first draw is scaled by."""
        ...

    def __call__(self, parameters: Sequence[Tensor], inputs: Tensor) -> Tensor:
        """[n, *input] → [n, out]; with parameters [B, ...] and inputs [B or 1, n, *input] → [B, n, out]."""
        ...


class NetworkOptions(TypedDict, total=False):
    """What every reward network takes."""

    scale: float
    """The bound of |r_x|, 1 by default."""
    bound: float
    """x lies in [−bound, bound]^D, 10 by default."""
    device: str | torch.device
    """Where x lives, the CPU by default."""


class NetworkReward(ABC):
    """r_x = scale · tanh(network_x(·)); x is the flat parameter vector of the network, whose parameters are views of it.

    The output is bounded by a tanh and not by a clip: beyond a clip the gradient in x is zero, and a reward that starts there never
    moves. x holds the network's parameters in turn, each row by row.

    Args:
        network: the architecture.
        scale: the bound of |r_x|.
        bound: x lies in [−bound, bound]^D.
        device: where x lives.

    Raises:
        InvalidProblem: the scale or the bound is not positive and finite.
    """

    def __init__(self, network: Network, *, scale: float = 1.0, bound: float = 10.0, device: str | torch.device = "cpu") -> None:
        if not (0.0 < scale < float("inf") and 0.0 < bound < float("inf")):
            raise InvalidProblem(f"scale is {scale} and bound is {bound}: both must be positive and finite, such as 1 and 10")
        self.network = network
        self.scale, self.bound = float(scale), float(bound)
        self.dtype = torch.float32
        self.device = torch.device(device)
        self._shapes = network.shapes
        self.dimension = sum(map(prod, self._shapes))

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The box of x: two arrays [D] of float32."""
        return np.full(self.dimension, -self.bound, np.float32), np.full(self.dimension, self.bound, np.float32)

    def initial(self, generator: torch.Generator) -> Tensor:
        """Weights and biases uniform in ±1/√(fan-in), as ``torch.nn.Linear`` draws them: [D]."""
        unit = 2.0 * torch.rand(self.dimension, generator=generator, dtype=self.dtype, device=generator.device).to(self.device) - 1.0
        for part, fan in zip(self.parameters(unit), self.network.fans, strict=True):
            part.mul_(fan**-0.5)
        return unit.clamp_(-self.bound, self.bound)

    def parameters(self, x: Tensor) -> list[Tensor]:
        """The network's parameters, views of x: [B, D] → list of [B, *shape]; nothing is copied.

        Raises:
            InvalidProblem: x is neither [D] nor [B, D].
        """
        if x.ndim not in (1, 2) or x.shape[-1] != self.dimension:
            raise InvalidProblem(f"x has shape {tuple(x.shape)}: it must be [{self.dimension}], or [B, {self.dimension}] for a population")
        return split_flat(x, self._shapes)

    @abstractmethod
    def along(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """r_x at state-action pairs, differentiable in x: [...], or [B, ...] for a population."""

    def _score(self, x: Tensor, inputs: Tensor) -> Tensor:
        """scale · tanh(network_x(inputs)), by one forward pass: [..., *input] → [..., out], with x [B, D] [B or 1, ...] → [B, ...]."""
        shape, members = self.network.input_shape, x.ndim - 1
        lead = inputs.shape[: inputs.ndim - len(shape)]
        if inputs.shape[len(lead) :] != shape or len(lead) < members or (members and lead[0] not in (1, len(x))):
            axes = f"[{len(x)} or 1, ..., " if members else "[..., "
            raise InvalidProblem(f"the network's inputs have shape {tuple(inputs.shape)}: they must be {axes}{', '.join(map(str, shape))}]")
        rows = inputs.reshape(*lead[:members], prod(lead[members:]), *shape)
        outputs = self.network(self.parameters(x), rows)
        return self.scale * torch.tanh(outputs.view(*x.shape[:-1], *lead[members:], outputs.shape[-1]))


class MLPReward(NetworkReward):
    """r_x(s, a) = scale · tanh(network_x(s, a)), a perceptron with leaky ReLU layers; x is its flat parameter vector.

    The input is the raw observation followed by the action, moved from its box to [−1, 1]. x holds, layer by layer, the weight
    [out, in] row by row and then the bias [out].

    Args:
        observation_size: numbers in an observation.
        action_size: numbers in an action.
        hidden: widths of the hidden layers.
        slope: of the leaky ReLU where its input is negative.
        action_low: [action] the lower corner of the box of actions; −1 by default.
        action_high: [action] the upper corner; 1 by default.
        **options: see ``NetworkOptions``.

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
        super().__init__(Perceptron((observation_size + action_size, *hidden, 1), slope), **options)
        self.observation_size, self.action_size, self.hidden = observation_size, action_size, tuple(hidden)
        low = torch.full((action_size,), -1.0) if action_low is None else action_low
        high = torch.full((action_size,), 1.0) if action_high is None else action_high
        if low.shape != (action_size,) or high.shape != (action_size,) or not bool((low < high).all()):
            raise InvalidProblem(f"action_low {tuple(low.shape)} and action_high {tuple(high.shape)} must be [{action_size}], low < high")
        low, high = (edge.to(device=self.device, dtype=self.dtype) for edge in (low, high))
        self._centre, self._half = (low + high) / 2.0, (high - low) / 2.0

    @classmethod
    def for_world(
        cls, world: BoxWorld, *, hidden: tuple[int, ...] = (64, 64), slope: float = 0.01, **options: Unpack[NetworkOptions]
    ) -> Self:
        """A network that fits a world's observations and actions, on its device unless another is named."""
        options.setdefault("device", world.action_low.device)
        corners = {"action_low": world.action_low, "action_high": world.action_high}
        return cls(world.observation_size, world.action_size, hidden=hidden, slope=slope, **corners, **options)

    def along(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """r_x at state-action pairs, differentiable in x, by one batched forward pass.

        Args:
            x: [D], or [B, D] for a population.
            states: [..., observation], or [B, ..., observation]; the axis B may be 1 where all members see the same pairs.
            actions: [..., action], likewise, in the environment's units.

        Returns:
            [...], or [B, ...]. Cost: O(pairs · D).

        Raises:
            InvalidProblem: a shape does not fit.
        """
        scaled = (actions - self._centre) / self._half
        return self._score(x, torch.cat([states.to(x.dtype), scaled.to(x.dtype)], -1)).squeeze(-1)


class AllActionsReward(NetworkReward):
    """r_x(s, ·) = scale · tanh(network_x(s)), one output an action: one forward pass gives r_x for all actions, and E_π r for nothing more."""

    def all_actions(self, x: Tensor, states: Tensor) -> Tensor:
        """r_x(s, ·), differentiable in x, by one batched forward pass.

        Args:
            x: [D], or [B, D] for a population.
            states: [..., *observation], or [B, ..., *observation]; the axis B may be 1 where all members see the same states.

        Returns:
            [..., A], or [B, ..., A].

        Raises:
            InvalidProblem: a shape does not fit.
        """
        return self._score(x, self._inputs(x, states))

    def along(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """r_x at state-action pairs, differentiable in x: one entry of ``all_actions`` for each.

        Args:
            x: [D], or [B, D] for a population.
            states: [..., *observation], or [B or 1, ..., *observation].
            actions: [...] int64, likewise.

        Returns:
            [...], or [B, ...]. Cost: that of ``all_actions``.

        Raises:
            InvalidProblem: a shape does not fit.
        """
        scores = self.all_actions(x, states)
        if actions.ndim != scores.ndim - 1:
            raise InvalidProblem(f"actions have shape {tuple(actions.shape)}: they must be numbers of actions, {list(scores.shape[:-1])}")
        return scores.gather(-1, actions.expand(scores.shape[:-1]).unsqueeze(-1)).squeeze(-1)

    def _inputs(self, x: Tensor, states: Tensor) -> Tensor:
        """The one place where states become a network's input."""
        return states.to(x.dtype)


class DiscreteMLPReward(AllActionsReward):
    """r_x(s, ·) of A actions by a perceptron on the observation; x is its flat parameter vector, laid out as ``MLPReward``'s.

    Args:
        observation_size: numbers in an observation.
        action_count: A.
        hidden: widths of the hidden layers.
        slope: of the leaky ReLU where its input is negative.
        **options: see ``NetworkOptions``.

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
