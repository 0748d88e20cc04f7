"""An upper-level agent of your own: the outer environment is an ordinary Gymnasium environment, so anything acts on it.

    python examples/own_agent.py            # a minute or two
    python examples/own_agent.py --quick

A leader's mixed policy in a Markov game, whose follower best-responds: x are the leader's logits, the reward is the leader's value.
PPO and CMA-ES know nothing of that. The last line is what an agent reaches that knows the problem and its gradient.
"""

from __future__ import annotations

from typing import Annotated, Any

import cmaes
import gymnasium as gym
import numpy as np
import torch
import typer
from stable_baselines3 import PPO

import bilevel_gym  # noqa: F401  # registers the ids
from bilevel_gym import agents

ID = "bilevel/StackelbergGame-v0"


def evolve(env: gym.Env[Any, Any], steps: int, seed: int = 0) -> None:
    """CMA-ES: ask for a generation of x's, try each by a step, tell what they were worth."""
    low, high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]
    search = cmaes.CMA(mean=np.zeros(len(low)), sigma=2.0, bounds=np.stack([low, high], -1), seed=seed)
    env.reset(seed=seed)
    for _ in range(steps // search.population_size):
        tried = [search.ask() for _ in range(search.population_size)]
        search.tell([(x, -float(env.step(x)[1])) for x in tried])


def reinforce(env: gym.Env[Any, Any], steps: int, seed: int = 0) -> None:
    """Stable-Baselines3's PPO, as on any other environment; a step is worth only its own reward, hence gamma 0."""
    PPO("MultiInputPolicy", env, n_steps=64, batch_size=32, gamma=0.0, gae_lambda=0.0, learning_rate=1e-2, seed=seed).learn(steps)


class Record(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps every objective that it sees."""

    seen: list[float]

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.seen = []

    def step(self, action: Any) -> Any:
        """A step, and a note of −reward."""
        answer = self.env.step(action)
        self.seen.append(-float(answer[1]))
        return answer


def main(quick: Annotated[bool, typer.Option("--quick", help="Fewer steps.")] = False) -> None:
    """Both, and how they came along."""
    torch.set_num_threads(1)
    steps = 320 if quick else 6400
    print(f"mean objective in each tenth of {steps} upper steps")
    for name, learn in (("CMA-ES", evolve), ("PPO", reinforce)):
        env = Record(gym.make(ID))
        learn(env, steps)
        tenths = [float(np.mean(part)) for part in np.array_split(env.seen, 10)]
        print(f"{name:7s}" + "".join(f"{value:7.2f}" for value in tenths))
    known = gym.make(ID)
    known.reset(seed=0)
    agents.exact(known, learning_rate=1.0).learn(steps // 10)
    print(f"exact hyper-gradient, {steps // 10} steps: {float(known.unwrapped.evaluation.value):.2f}")  # type: ignore[attr-defined]


if __name__ == "__main__":
    typer.run(main)
