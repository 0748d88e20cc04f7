"""Live copies of an environment, stepped side by side."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

__all__ = ["Env", "Simulation", "Transition"]

Env = gym.Env[Any, Any]


class Transition(NamedTuple):
    """What one step of N parallel episodes brought."""

    following: Tensor
    """[N, observation] s': the *last* observation of an episode that has just ended, never the first of the next one."""
    rewards: Tensor
    """[N] the true reward, which only teachers and metrics may read."""
    terminated: Tensor
    """[N] bool: s' is an end, so its value is 0."""
    truncated: Tensor
    """[N] bool: the horizon was reached; s' has a value, and a learner must bootstrap from it."""


class Simulation:
    """N live copies of an environment; an episode that ends starts anew within the same step (SAME_STEP autoreset).

    Args:
        envs: the copies.
        device: where the tensors go.
    """

    def __init__(self, envs: list[Env], device: torch.device) -> None:
        self.envs = envs
        self.device = device
        self._observations: Tensor | None = None

    @property
    def ready(self) -> bool:
        """Whether an action may follow: False before the first ``reset``, and after a step that an exception cut short."""
        return self._observations is not None

    @property
    def observations(self) -> Tensor:
        """[N, observation] what to act on next.

        Raises:
            RuntimeError: there is nothing to act on; call ``reset``.
        """
        if self._observations is None:
            raise RuntimeError("no episode is under way; call reset(seed) first")
        return self._observations

    def reset(self, seed: int) -> Tensor:
        """Start N episodes, which depend on the seed alone: [N, observation]."""
        seeds = np.random.SeedSequence(seed).generate_state(len(self.envs))
        rows = [env.reset(seed=int(number))[0] for env, number in zip(self.envs, seeds, strict=True)]
        self._observations = self._float(rows)
        return self._observations

    def step(self, actions: Tensor) -> Transition:
        """Play one action in each copy.

        Args:
            actions: [N, action], in the environment's units.

        Returns:
            what came of it; ``observations`` has moved on to what follows.
        """
        moves = actions.detach().cpu().numpy()
        following, current, rewards, terminated, truncated = [], [], [], [], []
        self._observations = None  # an exception in here leaves some copies a step ahead: no action may follow then
        for env, move in zip(self.envs, moves, strict=True):
            observation, reward, ended, stopped, _ = env.step(move)
            following.append(observation)
            rewards.append(float(reward))
            terminated.append(ended)
            truncated.append(stopped)
            current.append(env.reset()[0] if ended or stopped else observation)
        final = self._float(following)
        restarted = any(terminated) or any(truncated)
        self._observations = self._float(current) if restarted else final
        return Transition(final, self._float(rewards), self._bool(terminated), self._bool(truncated))

    def close(self) -> None:
        """Close every copy."""
        for env in self.envs:
            env.close()

    def _float(self, rows: list[Any]) -> Tensor:
        return torch.from_numpy(np.asarray(rows, dtype=np.float32)).to(self.device)

    def _bool(self, flags: list[bool]) -> Tensor:
        return torch.tensor(flags, dtype=torch.bool, device=self.device)
