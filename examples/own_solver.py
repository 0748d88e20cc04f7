"""A follower of your own: one that you write, and one from Stable-Baselines3.

    python examples/own_solver.py            # a minute or two
    python examples/own_solver.py --quick

A solver is any object with ``start`` and ``solve``. It says how far from its best response it is (``gap``), and nothing of gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import gymnasium as gym
import torch
import typer

import bilevel_gym  # noqa: F401  # registers the ids
from bilevel_gym import agents, numerics, solvers
from bilevel_gym.errors import UnsupportedProblem
from bilevel_gym.types import Response


@dataclass(frozen=True)
class QLearning:
    """Soft Q-learning: it never sees P, only where each (s, a) led to this time."""

    rounds: int
    rate: float = 0.2

    def start(self, problem: Any) -> Response:
        """Q = 0."""
        return solvers.SoftPolicyIteration().start(problem)

    def solve(self, problem: Any, x: torch.Tensor, *, warm: Response | None, budget: Any, generator: torch.Generator) -> Response:
        """Go on from the last Q, so many times around all (s, a)."""
        mdp, q = problem.at(x), (warm or self.start(problem)).q.clone()
        for _ in range(self.rounds):
            following = torch.multinomial(mdp.transition.flatten(0, 1), 1, generator=generator).view_as(q)
            q += self.rate * (mdp.reward + mdp.discount * mdp.regularizer.conjugate(q)[following] - q)
        value = mdp.regularizer.conjugate(q)
        gap = (mdp.regularizer.conjugate(numerics.backup(mdp, value)) - value).abs().amax()  # an honest one, by the P that it did not see
        return Response(mdp.regularizer.policy(q), value, q, gap=gap, steps=self.rounds, env_steps=self.rounds * q.numel())


def by_hand(steps: int) -> None:
    """M-SoBiRL on a follower that learns from samples, beside one that is solved."""
    print("M-SoBiRL on RandomMDP, whose optimum is 1")
    for name, solver in (
        ("solved exactly", "policy_iteration"),
        ("Q-learning, 5 rounds a step", QLearning(5)),
        ("1 round a step", QLearning(1)),
    ):
        env = gym.make("bilevel/RandomMDP-v0", solver=solver, dimension=20)
        env.reset(seed=0)
        first = float(env.unwrapped.evaluation.value)  # type: ignore[attr-defined]
        bilevel = agents.m_sobirl(env, learning_rate=0.01).learn(steps).bilevel
        print(f"  {name:28s} f {first:7.3f} → {float(bilevel.evaluation.value):7.3f}   gap {float(bilevel.response.gap):.1e}")


def from_stable_baselines(steps: int) -> None:
    """SAC is a soft follower, and SoBiRL takes it; PPO is not, and the formula is refused with the reason, but a search works."""
    from stable_baselines3 import PPO, SAC

    small: dict[str, Any] = {"policy_kwargs": {"net_arch": [16]}}
    soft = solvers.from_sb3(SAC, steps=50, learning_starts=40, batch_size=32, **small)
    hard = solvers.from_sb3(PPO, steps=64, n_steps=64, batch_size=32, **small)
    print("reward from preferences on Pendulum, with followers of Stable-Baselines3")
    for recipe, solver in ((agents.sobirl, soft), (agents.sobirl, hard), (agents.random_search, hard)):
        env = gym.make("bilevel/PendulumPreference-v0", preset="tiny", solver=solver)
        env.reset(seed=0)
        heading = f"  {recipe.__name__} on {solver.algorithm.__name__}:"
        try:
            bilevel = recipe(env).learn(steps).bilevel
            metrics = bilevel.evaluation.metrics
            print(f"{heading} f {float(bilevel.evaluation.value):.3f}, true return {metrics['true_return']:.0f} after {steps} steps")
        except UnsupportedProblem as error:
            print(f"{heading} {error}")


def main(quick: Annotated[bool, typer.Option("--quick", help="Fewer steps.")] = False) -> None:
    """Both."""
    torch.set_num_threads(1)
    by_hand(50 if quick else 2000)
    from_stable_baselines(2 if quick else 30)


if __name__ == "__main__":
    typer.run(main)
