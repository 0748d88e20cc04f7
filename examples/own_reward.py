"""A reward model of your own: two lamps, whose places are x. They draw the follower out of its way, through the cell that the leader likes.

    python examples/own_reward.py            # some seconds, leaves lamps.png
    python examples/own_reward.py --quick

A reward model on a table says how r_x looks (``at``) and what its derivative is (``vjp``); where x lives, ``rewards.Box`` says.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from bilevel_gym import BilevelEnv, BilevelProblem, agents, numerics, objectives, regularizers, rewards, solvers, worlds


class Lamps(rewards.Box):
    """r_sa(x) = base_sa + bright · Σ_i exp(−‖place of s − x_i‖²/2w²), x_i the places of the lamps on the map, from its middle."""

    def __init__(self, places: np.ndarray, base: Tensor, *, lamps: int = 2, bright: float = 0.05, width: float = 1.5) -> None:
        super().__init__(2 * lamps, bound=float(np.abs(places).max()), spread=2.0)
        self.places, self.base, self.bright, self.width = torch.as_tensor(places, dtype=self.dtype), base, bright, width

    def at(self, x: Tensor) -> Tensor:
        """[B, D] → [B, S, A]."""
        away = self.places[:, None] - x.unflatten(-1, (-1, 2)).unsqueeze(-3)
        light = self.bright * torch.exp(-away.square().sum(-1) / (2 * self.width**2)).sum(-1)
        return self.base + light.unsqueeze(-1)

    def vjp(self, x: Tensor, cotangent: Tensor) -> Tensor:
        """[B, S, A] → [B, D], by a backward pass."""
        return numerics.vjp(self.at, x, cotangent)

    def along(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """[...], [...] → [...]."""
        return self.at(x)[..., states, actions]


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer steps.")] = False,
    output: Annotated[Path, typer.Option(help="The picture.")] = Path("lamps.png"),
) -> None:
    """Move the lamps, and draw where they lead the follower."""
    world = worlds.open_grid(side=9, discount=0.95)
    places = world.grid.cells - world.grid.cells.mean(0)
    target = world.grid.state(1, 7)
    liked = -np.eye(world.states)[target][:, None].repeat(4, 1)
    assert world.true_reward is not None
    problem = BilevelProblem(world, Lamps(places, world.true_reward), regularizers.Shannon(0.02), objectives.ReturnObjective(liked))
    env = BilevelEnv(problem, solvers.SoftPolicyIteration(), render_mode="rgb_array")
    env.reset(seed=1)
    visits = -float(env.evaluation.value)
    agents.exact(env, learning_rate=0.5).learn(30 if quick else 300)
    from PIL import Image

    Image.fromarray(env.render()).save(output)
    assert env.x is not None
    row, column = world.grid.cells.mean(0)
    lamps = ", ".join(f"({row + r:.1f}, {column + c:.1f})" for r, c in env.x.view(-1, 2).tolist())
    print(f"discounted visits of (1, 7): {visits:.3f}, then {-float(env.evaluation.value):.3f}; lamps at {lamps}; drawn in {output}")
    assert math.isfinite(visits)


if __name__ == "__main__":
    typer.run(main)
