"""A bilevel task out of an environment of your own: what should a heater be told to care about?

    python examples/wrap_your_env.py            # half a minute, leaves room.csv
    python examples/wrap_your_env.py --quick

The environment is an ordinary Gymnasium one, a room with a heater. Each step reports two terms of a reward in its ``info``: comfort and
thrift. x shares weights out between them, the follower (discrete soft actor-critic) learns to heat under that reward, and the owner, who
wants to be neither cold nor poor, judges whole days by a function of hers. SoBiRL chooses x; every x that it tries is in room.csv.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import torch
import typer

from bilevel_gym import agents, wrap_env, wrappers
from bilevel_gym.objectives import SampledReturn
from bilevel_gym.solvers import DiscreteSAC
from bilevel_gym.types import Trajectory


class Room(gym.Env[np.ndarray, np.int64]):
    """A room in winter: half an hour a step, the heater is off, on, or roaring. It is written in NumPy and knows nothing of x."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Somewhere between cold and warm."""
        super().reset(seed=seed)
        self.inside, self.outside = self.np_random.uniform(14.0, 22.0), self.np_random.uniform(-5.0, 5.0)
        return self._seen(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Heat, and lose heat."""
        self.outside += self.np_random.normal(0.0, 0.3)
        self.inside += 0.1 * (self.outside - self.inside) + 1.6 * float(action)
        terms = {"comfort": -(((self.inside - 21.0) / 5.0) ** 2), "thrift": -float(action) / 2.0}
        return self._seen(), sum(terms.values()), False, False, terms

    def _seen(self) -> np.ndarray:
        return np.array([(self.inside - 21.0) / 5.0, self.outside / 5.0], np.float32)


def wellbeing(days: Trajectory) -> torch.Tensor:
    """What a day is worth to the owner: hours between 19 and 23 degrees, less what the heating costs. [N, T] → [N]."""
    pleasant = (days.states[..., 0].abs() < 0.4).float()
    return (0.5 * pleasant - 0.2 * days.actions.float()).sum(-1)


def main(quick: Annotated[bool, typer.Option("--quick", help="Fewer steps.")] = False) -> None:
    """Wrap, learn, and print how the weights moved."""
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp()) if quick else Path()
    follower = DiscreteSAC(
        steps=400, num_envs=4, update_every=2, updates_per_step=0.5, learning_starts=200, batch_size=64, hidden=(32, 32), learning_rate=3e-3
    )
    env: gym.Env[Any, Any] = wrap_env(
        Room,  # or an id, or a vector environment
        reward="terms",
        terms=("comfort", "thrift"),
        objective=SampledReturn(wellbeing, trajectories=8 if quick else 32),  # wellbeing by itself would do, on 8 days
        horizon=48,
        discount=0.9,
        temperature=0.05,
        solver=follower,
    )
    env = wrappers.RecordUpperSteps(env, folder / "room.csv")
    env.reset(seed=0, options={"x": np.array([-0.3, 0.3], np.float32)})  # thrift before comfort
    agent = agents.sobirl(env, learning_rate=0.01, window="reset", updates_per_step=5, warmup_updates=0)
    agent.learn(4 if quick else 40)
    record = env.columns
    shares = 2.0 / (1.0 + np.exp(record["x"][:, ::-1] - record["x"]))
    print("upper step   comfort   thrift   a day is worth")
    for row in range(0, len(shares), 1 if quick else 5):
        print(f"{row:10d}   {shares[row, 0]:7.2f}  {shares[row, 1]:7.2f}   {-record['objective'][row]:14.2f}")
    env.close()
    print(f"every step is in {env.path.name}")


if __name__ == "__main__":
    typer.run(main)
