"""An estimator of your own: a few terms of a series in the place of the linear solve.

    python examples/own_estimator.py            # half a minute
    python examples/own_estimator.py --quick

The exact hyper-gradient needs u = (I − γP_π)^{-T} Pᵀc = Σ_k (γP_πᵀ)^k Pᵀc. Cut off after K terms, it looks K steps ahead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import gymnasium as gym
import torch
import typer

import bilevel_gym  # noqa: F401  # registers the ids
from bilevel_gym.agents import HypergradientAgent
from bilevel_gym.agents.gradient_descent import GradientDescent
from bilevel_gym.hypergradients import Exact
from bilevel_gym.numerics import push_forward
from bilevel_gym.types import Hypergradient


@dataclass(frozen=True)
class Neumann:
    """z ← c + γ π⊙Pᵀz, K times from z = c (mathematics §3)."""

    terms: int

    def supports(self, problem: Any) -> str | None:
        """What ``Exact`` takes."""
        return Exact().supports(problem)

    def init(self, oracle: Any) -> None:
        """No state."""

    def __call__(self, oracle: Any, x: torch.Tensor, response: Any, evaluation: Any, state: None) -> tuple[Hypergradient, None]:
        """∇̂φ: [D]."""
        problem, policy = oracle.problem, response.policy
        mdp = problem.at(x)
        direct, h = problem.objective.gradient(problem, x, policy)
        z = c = problem.regularizer.hessian_product(policy, h) / problem.regularizer.temperature
        for _ in range(self.terms):
            z = c + mdp.discount * policy * push_forward(mdp.transition, z).unsqueeze(-1)
        implicit = problem.backup_vjp(x, response.value, z)
        return Hypergradient(direct + implicit, direct, implicit), None


def main(quick: Annotated[bool, typer.Option("--quick", help="Fewer steps.")] = False) -> None:
    """How wrong it is, and whether that matters, on four rooms with a discount of .99."""
    print("terms   error of ∇φ   objective after training")
    for terms in (0, 3, 10, 30, 100, 300):
        env = gym.make("bilevel/FourRoomsIncentive-v0")
        env.reset(seed=0)
        bilevel: Any = env.unwrapped
        asked = (bilevel.oracle, bilevel.x, bilevel.response, bilevel.evaluation, None)
        truth, found = Exact()(*asked)[0].value, Neumann(terms)(*asked)[0].value
        agent = HypergradientAgent(env, Neumann(terms), partial(GradientDescent, lr=0.5, max_norm=1.0))
        agent.learn(5 if quick else 200)
        error = float((found - truth).norm() / truth.norm())
        print(f"{terms:5d}   {error:11.2e}   {float(bilevel.evaluation.value):.4f}")


if __name__ == "__main__":
    typer.run(main)
