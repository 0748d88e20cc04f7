"""The two kinds of actions that a simulator may take: a point of a box, or one of finitely many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.frames import to_stacks
from bilevel_gym.types import Policy
from bilevel_gym.worlds.policies import LinearPolicy, SoftmaxPolicy, UniformChoice, UniformPolicy, feature_count

__all__ = ["BoxActions", "Choices", "action_kind"]


@dataclass(frozen=True)
class BoxActions:
    """Actions [action] in a box, float32 in the environment's units."""

    low: Tensor
    """[action] the lower corner."""
    high: Tensor
    """[action] the upper corner."""

    @property
    def sizes(self) -> dict[str, Any]:
        """What a world of this kind shows of its actions."""
        return {"action_size": len(self.low), "action_low": self.low, "action_high": self.high}

    def uniform(self) -> UniformPolicy:
        """Uniform in the box."""
        return UniformPolicy(self.low, self.high)

    def exploratory(self, observation_shape: tuple[int, ...], generator: torch.Generator) -> LinearPolicy:
        """A random linear feedback of random gain and noise, from nearly still to bang-bang (see ``LinearPolicy.random``)."""
        return LinearPolicy.random(feature_count(observation_shape), self.low, self.high, generator)

    def quadrature(self, policy: Policy, states: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``count`` draws of weight 1/count, from one call of the policy: actions [K, n, action], weights [K, n]."""
        repeated = states.expand(count, *states.shape).flatten(0, 1)
        with torch.no_grad():
            actions = policy.sample(repeated, generator)
        weights = torch.full((count, states.shape[0]), 1.0 / count, dtype=actions.dtype, device=actions.device)
        return actions.unflatten(0, weights.shape), weights


@dataclass(frozen=True)
class Choices:
    """Actions 0, …, A−1, int64."""

    count: int
    """A."""
    device: torch.device
    """Where actions live."""

    chunk = 1024
    """States that a policy is asked about at once: pixels are large."""

    @property
    def sizes(self) -> dict[str, Any]:
        """What a world of this kind shows of its actions."""
        return {"action_count": self.count}

    def uniform(self) -> UniformChoice:
        """1/A each."""
        return UniformChoice(self.count)

    def exploratory(self, observation_shape: tuple[int, ...], generator: torch.Generator) -> SoftmaxPolicy:
        """A random softmax of random gain, from nearly uniform to nearly greedy (see ``SoftmaxPolicy.random``)."""
        return SoftmaxPolicy.random(observation_shape, self.count, generator, self.device)

    def quadrature(self, policy: Any, states: Any, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """All actions with their probabilities, so that the mean is exact, in parts: actions [A, n], weights [A, n]."""
        with torch.no_grad():
            weights = torch.cat([policy.probabilities(to_stacks(part)) for part in states.split(self.chunk)])
        return torch.arange(self.count, device=weights.device)[:, None].expand(-1, len(weights)), weights.mT


def action_kind(space: gym.Space[Any], name: str, device: torch.device) -> BoxActions | Choices:
    """What a space of actions is.

    Args:
        space: of one environment.
        name: of the environment, for the message.
        device: where actions live.

    Raises:
        InvalidProblem: it is neither a flat bounded box nor a finite set.
    """
    if isinstance(space, gym.spaces.Discrete):
        return Choices(int(space.n), device)
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1 or not space.is_bounded() or bool((space.low == space.high).any()):
        raise InvalidProblem(
            f"{name} has actions {space}: a flat Box with finite bounds that differ or a Discrete space is needed; give a function that makes it {_cure(space)}"
        )
    return BoxActions(*(torch.from_numpy(edge.astype(np.float32)).to(device) for edge in (space.low, space.high)))


def _cure(space: gym.Space[Any]) -> str:
    """What to wrap it in."""
    wrapper = "in gymnasium.wrappers.TransformAction(env, function, space), where"
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return f"{wrapper} space is a Box with the bounds that make sense and function passes actions on, or scales them"
    if isinstance(space, gym.spaces.MultiDiscrete | gym.spaces.MultiBinary):
        return f"{wrapper} space is Discrete, a number for each combination, and function turns the number into it (numpy.unravel_index)"
    return f"{wrapper} space is a flat Box or Discrete, and function turns its actions into those of the environment"
