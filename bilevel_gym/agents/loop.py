"""The loop that every agent learns in, written once: x from the agent, a step of the environment, a word back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Self

import gymnasium as gym
import numpy as np

from bilevel_gym.agents.progress import Progress
from bilevel_gym.arguments import checked
from bilevel_gym.errors import InvalidProblem

__all__ = ["Agent", "Answer", "Callback", "OuterEnv", "unwrapped"]

OuterEnv = gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any]
"""One outer environment, or a batch of them whose x's have a leading axis [N, D]."""


class Agent(ABC):
    """What acts on an outer environment: ``act`` says x, ``tell`` hears what came of it, and ``learn`` is the loop around the two.

    Args:
        env: an outer environment, or wrappers around one; agents that can, also take a batch of them.
    """

    def __init__(self, env: OuterEnv) -> None:
        self.env = env
        self.bilevel: Any = unwrapped(env)
        """The environment without wrappers; it is where a checkpoint finds the state."""

    @abstractmethod
    def act(self, observation: Any = None, info: Mapping[str, Any] | None = None) -> np.ndarray:
        """The next x, inside the action space: [D], or [N, D] for a batch."""

    @abstractmethod
    def tell(self, x: np.ndarray, reward: float | np.ndarray) -> None:
        """Take note of what the environment answered to x: a number, or [N]."""

    def take_back(self) -> None:  # noqa: B027  # an agent whose ``act`` leaves nothing has nothing to do here
        """Undo the last ``act``, whose x the environment has not taken: nothing is left of it."""

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Named numbers about the last upper step, beyond those of the environment's ``info``."""

    @abstractmethod
    def get_state(self) -> dict[str, Any]:
        """All that is the agent's own, as plain data; the environment's state is its own."""

    @abstractmethod
    def set_state(self, state: dict[str, Any]) -> None:
        """Go back to what ``get_state`` returned."""

    @checked
    def learn(self, total_steps: int, callback: Callback | None = None, progress_bar: bool = False) -> Self:
        """Train for a number of upper steps, from where the environment stands (it is reset where it never was).

        Args:
            total_steps: steps of the environment.
            callback: called after each; the numbers that it gets are means over a batch.
            progress_bar: whether to show one, with the objective.

        Returns:
            the agent.

        Raises:
            InvalidProblem: a negative number of steps, or none.
            BaseException: what a step of the environment raises; the agent is as before that step then.
            InvalidAction: what ``act`` and ``tell`` raise.
        """
        if total_steps < 0:
            raise InvalidProblem(f"total_steps is {total_steps}: it must not be negative")
        observation, info = _go_on(self.env)
        with Progress(total_steps, shown=progress_bar) as progress:
            for _ in range(total_steps):
                x = self.act(observation, info)
                try:
                    observation, reward, terminated, truncated, info = self.env.step(x)
                except BaseException:
                    self.take_back()
                    raise
                self.tell(x, reward if isinstance(reward, np.ndarray) else float(reward))
                seen = {"objective": -_mean(reward), **_numbers(info)}
                if np.any(terminated) or np.any(truncated):
                    observation, info = _go_on(self.env)
                progress.advance(seen)
                if callback is not None and callback(self, {**seen, **self.metrics()}) is False:
                    break
        return self


Answer = bool | Mapping[str, float] | None
"""False ends the training; a mapping is more metrics, for the callbacks after this one (see ``callbacks.together``)."""

Callback = Callable[[Agent, Mapping[str, float]], Answer]
"""Called after each upper step with the agent and its metrics."""


def unwrapped(env: Any) -> Any:
    """What is inside of all wrappers.

    Raises:
        InvalidProblem: it is no environment, but perhaps its id.
    """
    if not isinstance(env, gym.Env | gym.vector.VectorEnv):
        cure = f"gym.make({env!r})" if isinstance(env, str) else "gym.make('bilevel/…')"
        raise InvalidProblem(f"an agent acts on an environment, and {env!r} is none: give {cure}")
    return env.unwrapped


def _go_on(env: OuterEnv) -> tuple[Any, dict[str, Any]]:
    """A new episode where the last one stood: the same x and, on a bilevel environment, the same follower."""
    x = getattr(env.unwrapped, "x", None)
    return env.reset() if x is None else env.reset(options={"x": x, "keep": True})


def _mean(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float(np.mean(value))


def _numbers(info: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in ``info``, and the means of its arrays; masks, whose names begin with an underscore, are left out."""
    return {
        name: _mean(value)
        for name, value in info.items()
        if isinstance(value, int | float) or (isinstance(value, np.ndarray) and value.dtype.kind in "fiu" and name[0] != "_")
    }
