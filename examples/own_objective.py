"""An upper objective of your own: the follower shall be everywhere equally often.

    python examples/own_objective.py            # some seconds
    python examples/own_objective.py --quick

A model-based f is one function of x and π in torch; its gradients come by a backward pass, and ``hypergradients.Exact`` does the rest.
"""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from torch import Tensor

from bilevel_gym import BilevelEnv, BilevelProblem, agents, numerics, objectives, regularizers, rewards, solvers, testing, worlds
from bilevel_gym.hypergradients import Exact

MAP = ["S...#....", "....#....", "....#....", ".........", "....#....", "....#...."]
SHADES = " .:-=+*#%@"


class Evenness(objectives.ExplicitObjective):
    """f(x, π) = Σ_s d_s log d_s + price ‖x‖², d = (1 − γ)(I − γP_π)^{-T} ρ the share of time in each state."""

    def __init__(self, price: float = 1e-3) -> None:
        self.price = price

    def visits(self, problem: BilevelProblem, x: Tensor, policy: Tensor) -> Tensor:
        """d: [S, A] → [S]."""
        moved = numerics.policy_transition(problem.world.transition_at(x), policy)
        system = torch.eye(len(moved), dtype=moved.dtype) - problem.world.discount * moved
        return (1 - problem.world.discount) * torch.linalg.solve(system.mT, problem.world.start)

    def value(self, problem: BilevelProblem, x: Tensor, policy: Tensor) -> Tensor:
        """f: [D], [S, A] → []."""
        visits = self.visits(problem, x, policy)
        return (visits * visits.log()).sum(-1) + self.price * x.square().sum(-1)


def draw(world: worlds.GridWorld, visits: Tensor) -> list[str]:
    """The map, the darker the longer the follower is there."""
    rank = (visits / visits.max() * (len(SHADES) - 1)).round().long().tolist()
    lines = [["█"] * len(MAP[0]) for _ in MAP]
    for (row, column), shade in zip(world.grid.cells.tolist(), rank, strict=True):
        lines[row][column] = SHADES[shade]
    return ["".join(symbol * 2 for symbol in line) for line in lines]


def main(quick: Annotated[bool, typer.Option("--quick", help="Fewer steps.")] = False) -> None:
    """Check the gradient, train, and draw where the follower is before and after."""
    world = worlds.GridWorld(MAP, 0.95, goals="")
    table = torch.eye(world.states, dtype=torch.float64)[:, None].expand(-1, 4, -1)  # x is a reward for being in each cell
    objective = Evenness()
    problem = BilevelProblem(world, rewards.LinearReward(table), regularizers.Shannon(0.3), objective)
    testing.check_hypergradient(problem, torch.zeros(world.states, dtype=torch.float64), Exact())
    env = BilevelEnv(problem, solvers.SoftPolicyIteration(), initial_x=[0.0] * world.states)
    env.reset(seed=0)
    assert env.x is not None
    first = draw(world, objective.visits(problem, env.x, env.response.policy))
    value = float(env.evaluation.value)
    agents.exact(env, learning_rate=0.1).learn(50 if quick else 500)
    last = draw(world, objective.visits(problem, env.x, env.response.policy))
    print("the follower left alone   the same, with a reward for being in the right places")
    print("\n".join(f"{left:25s} {right}" for left, right in zip(first, last, strict=True)))
    print(f"f {value:.3f}, then {float(env.evaluation.value):.3f}; nothing is more even than {-torch.log(torch.tensor(world.states)):.3f}")


if __name__ == "__main__":
    typer.run(main)
