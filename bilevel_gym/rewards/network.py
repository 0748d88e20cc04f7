"""Reward networks whose flat parameter vector is x."""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.numerics import split_flat

__all__ = ["BoxWorld", "MLPReward"]


class BoxWorld(Protocol):
    """What a reward network asks of a world: the sizes, and the box of actions."""

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


class MLPReward:
    """r_x(s, a) = scale · tanh(network_x(s, a)), a perceptron with leaky ReLU layers; x is its flat parameter vector.

    The input is the raw observation followed by the action, moved from its box to [−1, 1]. The output is bounded by a tanh and
    not by a clip: beyond a clip the gradient in x is zero, and a reward that starts there never moves. x holds, layer by layer,
    the weight [out, in] row by row and then the bias [out].

    Args:
        observation_size: numbers in an observation.
        action_size: numbers in an action.
        hidden: widths of the hidden layers.
        scale: the bound of |r_x|.
        slope: of the leaky ReLU where its input is negative.
        bound: x lies in [−bound, bound]^D.
        action_low: [action] the lower corner of the box of actions; −1 by default.
        action_high: [action] the upper corner; 1 by default.
        device: where x lives.

    Raises:
        InvalidProblem: a size, the scale or the bound is not positive and finite, or a corner has the wrong shape.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        *,
        hidden: tuple[int, ...] = (64, 64),
        scale: float = 1.0,
        slope: float = 0.01,
        bound: float = 10.0,
        action_low: Tensor | None = None,
        action_high: Tensor | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        sizes = (observation_size + action_size, *hidden, 1)
        if min(observation_size, action_size, *sizes) < 1:
            raise InvalidProblem(f"the sizes {sizes} of the layers must be positive")
        if not (0.0 < scale < float("inf") and 0.0 < bound < float("inf")):
            raise InvalidProblem(f"scale is {scale} and bound is {bound}: both must be positive and finite, such as 1 and 10")
        self.observation_size, self.action_size, self.hidden = observation_size, action_size, tuple(hidden)
        self.scale, self.slope, self.bound = float(scale), float(slope), float(bound)
        self.dtype = torch.float32
        self.device = torch.device(device)
        low = torch.full((action_size,), -1.0) if action_low is None else action_low
        high = torch.full((action_size,), 1.0) if action_high is None else action_high
        if low.shape != (action_size,) or high.shape != (action_size,) or not bool((low < high).all()):
            raise InvalidProblem(f"action_low {tuple(low.shape)} and action_high {tuple(high.shape)} must be [{action_size}], low < high")
        low, high = (edge.to(device=self.device, dtype=self.dtype) for edge in (low, high))
        self._centre, self._half = (low + high) / 2.0, (high - low) / 2.0
        self._layers = list(pairwise(sizes))
        self._shapes = [shape for inputs, outputs in self._layers for shape in ((outputs, inputs), (outputs,))]
        self.dimension = sum((inputs + 1) * outputs for inputs, outputs in self._layers)

    @classmethod
    def for_world(
        cls,
        world: BoxWorld,
        *,
        hidden: tuple[int, ...] = (64, 64),
        scale: float = 1.0,
        slope: float = 0.01,
        bound: float = 10.0,
        device: str | torch.device | None = None,
    ) -> Self:
        """A network that fits a world's observations and actions, on its device unless another is named."""
        return cls(
            world.observation_size,
            world.action_size,
            hidden=hidden,
            scale=scale,
            slope=slope,
            bound=bound,
            action_low=world.action_low,
            action_high=world.action_high,
            device=world.action_low.device if device is None else device,
        )

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The box of x: two arrays [D] of float32."""
        return np.full(self.dimension, -self.bound, np.float32), np.full(self.dimension, self.bound, np.float32)

    def initial(self, generator: torch.Generator) -> Tensor:
        """Weights and biases uniform in ±1/√(fan-in), as ``torch.nn.Linear`` draws them: [D]."""
        unit = 2.0 * torch.rand(self.dimension, generator=generator, dtype=self.dtype, device=generator.device).to(self.device) - 1.0
        for part, (inputs, _) in zip(unit.split([(inputs + 1) * outputs for inputs, outputs in self._layers]), self._layers, strict=True):
            part.mul_(inputs**-0.5)
        return unit.clamp_(-self.bound, self.bound)

    def parameters(self, x: Tensor) -> list[Tensor]:
        """Weights [B, out, in] and biases [B, out] in turn, views of x [B, D]: nothing is copied."""
        return split_flat(x, self._shapes)

    def along(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """r_x at state-action pairs, differentiable in x, by one batched forward pass.

        Args:
            x: [D], or [B, D] for a population.
            states: [..., observation], or [B, ..., observation]; the axis B may be 1 where all members see the same pairs.
            actions: [..., action], likewise, in the environment's units.

        Returns:
            [...], or [B, ...]. Cost: O(pairs · D).
        """
        scaled = (actions - self._centre) / self._half
        inputs = torch.cat([states.to(x.dtype), scaled.to(x.dtype)], -1)
        parameters = self.parameters(x)
        return self._single(inputs, parameters) if x.ndim == 1 else self._population(inputs, parameters)

    def _single(self, inputs: Tensor, parameters: list[Tensor]) -> Tensor:
        units = inputs.reshape(-1, inputs.shape[-1])
        for index in range(0, len(parameters), 2):
            units = functional.linear(self._activate(units, index), parameters[index], parameters[index + 1])
        return self.scale * torch.tanh(units.view(inputs.shape[:-1]))

    def _population(self, inputs: Tensor, parameters: list[Tensor]) -> Tensor:
        """The same with one batched product a layer: [B or 1, ..., in] → [B, ...]."""
        members = parameters[0].shape[0]
        units = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1]).expand(members, -1, -1)
        for index in range(0, len(parameters), 2):
            units = torch.baddbmm(parameters[index + 1].unsqueeze(-2), self._activate(units, index), parameters[index].mT)
        return self.scale * torch.tanh(units.view(members, *inputs.shape[1:-1]))

    def _activate(self, units: Tensor, index: int) -> Tensor:
        return units if index == 0 else functional.leaky_relu(units, self.slope)
