"""The agent that leaves x alone, on the true reward: what any leader's follower could reach at best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import gymnasium as gym
import numpy as np

from bilevel_gym import checkpoint
from bilevel_gym.agents.identity import refuse_other
from bilevel_gym.agents.loop import Agent, Callback, OuterEnv
from bilevel_gym.envs import with_true_reward

__all__ = ["Ceiling"]


class Ceiling(Agent):
    """Steps the twin of an environment whose reward is the true one (``envs.with_true_reward``), at the x where it starts.

    ``agent.env`` is the twin. Where ``learn`` finds that it never was reset, it is, with a seed drawn from the random numbers of the
    environment that was given, which stay as they are: whoever seeds that one has seeded this.

    Args:
        env: an outer environment on a simulator, or wrappers around one.
        temperature: τ in units of the true reward of a step; None takes the environment's own.

    Raises:
        UnsupportedProblem: the environment has no simulator.
        InvalidProblem: the temperature is not positive.
    """

    def __init__(self, env: OuterEnv, temperature: float | None = None) -> None:
        super().__init__(with_true_reward(env, temperature))
        self._given: Any = env

    def act(self, observation: Any = None, info: Mapping[str, Any] | None = None) -> np.ndarray:
        """The x where the twin stands: [1]; the twin must have been reset."""
        if self.bilevel.x is None:
            raise gym.error.ResetNeeded("call agent.env.reset() before agent.act()")
        x: np.ndarray = self.bilevel.x.cpu().numpy().copy()
        return x

    def tell(self, x: np.ndarray, reward: float | np.ndarray) -> None:
        """Nothing is learnt from it."""

    def metrics(self) -> dict[str, float]:
        """None beyond the environment's."""
        return {}

    def get_state(self) -> dict[str, Any]:
        """The temperature, which must be the same; the environment's state is its own."""
        return {"temperature": checkpoint.pack(self.bilevel.problem.regularizer), "dimension": 1}

    def set_state(self, state: dict[str, Any]) -> None:
        """See that the state is of such an agent.

        Raises:
            CheckpointError: it is of another temperature.
        """
        refuse_other((state["temperature"], state["dimension"]), (self.get_state()["temperature"], 1))

    def learn(self, total_steps: int, callback: Callback | None = None, progress_bar: bool = False) -> Self:
        """As for every agent, on the twin."""
        if self.bilevel.x is None:
            stream = np.random.Generator(self._given.np_random.bit_generator.jumped())
            self.env.reset(seed=int(stream.integers(2**31)))
        return super().learn(total_steps, callback, progress_bar)
