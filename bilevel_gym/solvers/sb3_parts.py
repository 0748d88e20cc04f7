"""What Stable-Baselines3 asks for, made of our parts; imported by ``sb3`` when it is needed, for the package is optional."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor

__all__ = ["FollowerEnv", "Label", "Relabelled"]

Label = Callable[[Tensor, Tensor], Tensor]
"""r_x at states and actions in the environment's units: [n, *observation], [n, action] or [n] → [n]."""


class FollowerEnv(VecEnv):
    """N live episodes of a world, under r_x. It never starts any by itself: ``reset`` says where they stand.

    Args:
        world: for the spaces.
        num_envs: N.
        simulation: the episodes; None where nothing will be played.
        label: r_x.
    """

    def __init__(self, world: Any, num_envs: int, simulation: Any, label: Label) -> None:
        shape, pixels = world.observation_shape, len(world.observation_shape) == 3
        observations = spaces.Box(0, 255, shape, np.uint8) if pixels else spaces.Box(-np.inf, np.inf, shape, np.float32)
        super().__init__(num_envs, observations, _actions(world))
        self.simulation, self.label = simulation, label
        self._pending: Tensor | None = None

    def reset(self) -> np.ndarray:
        """[N, *observation] what to act on next."""
        return _numpy(self.simulation.observations)

    def step_async(self, actions: np.ndarray) -> None:
        """Take note of actions."""
        self._pending = torch.as_tensor(actions, device=self.simulation.device)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Play them: what to act on next, r_x, whether an episode ended, and how."""
        assert self._pending is not None
        states, actions = self.simulation.observations, self._pending
        moved = self.simulation.step(actions)
        ended = moved.terminated | moved.truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for index in ended.nonzero().flatten().tolist():
            cut = bool(moved.truncated[index]) and not bool(moved.terminated[index])
            infos[index] = {"terminal_observation": _numpy(moved.following[index]), "TimeLimit.truncated": cut}
        return self.reset(), _numpy(self.label(states, actions)), _numpy(ended), infos

    def close(self) -> None:
        """The simulation is not ours to close."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Of each copy."""
        if attr_name != "render_mode":
            raise AttributeError(f"the copies of this environment show no {attr_name}")
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """There is nothing to set."""
        raise AttributeError(f"the copies of this environment take no {attr_name}")

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """There is nothing to call."""
        raise AttributeError(f"the copies of this environment have no {method_name}")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """None is."""
        return [False] * self.num_envs


class Relabelled(ReplayBuffer):
    """A replay whose batches carry r_x of the moment at which they are sampled."""

    label: Label

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """A batch of transitions; its actions are as they were stored, which is scaled to [−1, 1] where they are continuous."""
        batch = super().sample(batch_size, env)
        rewards = self.label(batch.observations, self._played(batch.actions)).to(batch.rewards.dtype)
        return batch._replace(rewards=rewards.reshape(-1, 1))

    def copy(self) -> Relabelled:
        """Another one with the same transitions. Cost: what has been written."""
        other = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray) and len(value) == self.buffer_size:
                fresh = np.zeros_like(value)
                fresh[: self.size()] = value[: self.size()]
                setattr(other, name, fresh)
        return other

    def _played(self, stored: Tensor) -> Tensor:
        """In the environment's units: [n, action], or [n] int64."""
        if isinstance(self.action_space, spaces.Discrete):
            return stored.squeeze(-1).long()
        low, high = (torch.as_tensor(edge, device=stored.device) for edge in (self.action_space.low, self.action_space.high))  # type: ignore[attr-defined]
        return torch.lerp(low, high, 0.5 + 0.5 * stored)


def _actions(world: Any) -> spaces.Space[Any]:
    if hasattr(world, "action_count"):
        return spaces.Discrete(world.action_count)
    return spaces.Box(_numpy(world.action_low), _numpy(world.action_high), dtype=np.float32)


def _numpy(values: Tensor | Sequence[Any]) -> np.ndarray:
    return values.cpu().numpy().copy() if isinstance(values, Tensor) else np.asarray(values)
