"""r_x less what an action does to the upper level's loss: what a policy of the upper level's own is paid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.hypergradients.critics import Critic
from bilevel_gym.hypergradients.sensitivities import centred
from bilevel_gym.numerics import rewards_of
from bilevel_gym.types import Problem

__all__ = ["ChargedReward"]


@dataclass(frozen=True)
class ChargedReward:
    """r_x(s,a) − weight·( L(s,a) − E_{a'~π} L(s,a') ), a ``RewardModel`` on batches of steps that solvers score, ``types.Drawing`` too.

    Args:
        problem: whose r_x it is.
        critic: of L.
        fitted: what it has learnt.
        policy: π.
        weight: of the charge.
        action_samples: draws for the mean under π, where actions are continuous; their noise has mean zero.
        generator: their source, on the device of x.
    """

    problem: Problem
    critic: Critic
    fitted: Any
    policy: Any
    weight: float
    action_samples: int
    generator: torch.Generator

    @property
    def dimension(self) -> int:
        """D."""
        return self.problem.dimension

    @property
    def dtype(self) -> torch.dtype:
        """Of x."""
        return self.problem.domain.dtype

    @property
    def device(self) -> torch.device:
        """Where x lives."""
        return self.problem.domain.device

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The box of x."""
        return self.problem.domain.bounds

    def initial(self, generator: torch.Generator) -> Tensor:
        """A random x to start from: [D]."""
        return self.problem.domain.initial(generator)

    def along(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """At state-action pairs: [n, *observation], [n, *action] → [n]."""
        rewards: Tensor = self.problem.reward.along(x, states, actions)
        return self._charged(rewards, states, actions)

    def of_transitions(self, x: Tensor, played: Any) -> Tensor:
        """Of a batch of steps, where r_x may be read from what was played: [n]."""
        return self._charged(rewards_of(self.problem.reward, x, played), played.states, played.actions)

    def _charged(self, rewards: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        advantage = centred(self.problem, self.critic, self.fitted, self.policy, states, actions, self.action_samples, self.generator)
        return rewards - self.weight * advantage.to(rewards.dtype)
