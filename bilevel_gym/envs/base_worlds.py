"""The names by which tasks take a base world, so that a spec stays JSON; and what an expert does in one."""

from __future__ import annotations

import gymnasium as gym
import torch
from torch import Tensor

from bilevel_gym.errors import UnknownName
from bilevel_gym.numerics import factorize, solve_transposed
from bilevel_gym.objectives import QuadraticObjective
from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import LinearReward
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.types import MDP, Regularizer
from bilevel_gym.worlds import GridWorld, TabularWorld, chain, four_rooms, from_gymnasium

__all__ = ["base_world", "occupancy", "soft_optimal"]

GRID = (
    "S.#..",
    "..#.P",
    ".....",
    ".#.#.",
    ".P..G",
)
"""A small map: a start, a goal worth 1, and two pits worth −1."""

NAMES = ("chain", "grid", "four_rooms")


def base_world(name: str, *, discount: float, device: str | torch.device = "cpu") -> TabularWorld:
    """The world that a name stands for; it has a ``true_reward``.

    Args:
        name: ``"chain"`` (ten states, an end worth 1 and a nearer one worth .2), ``"grid"`` (5 × 5 with walls, two pits and a goal),
            ``"four_rooms"`` (two followers, one for each goal), or the id of any Gymnasium environment that carries its ``P``, such as
            ``"FrozenLake-v1"``, ``"CliffWalking-v1"`` or ``"Taxi-v4"``.
        discount: γ.
        device: where the tables live.

    Raises:
        UnknownName: neither a name of this table nor a registered id.
        UnsupportedProblem: an environment without a ``P``.
    """
    if name == "chain":
        return chain(10, discount, slip=0.1, rewards={"S": 0.2, "E": 1.0}, device=device)
    if name == "grid":
        return GridWorld(GRID, discount, slip=0.1, rewards={"P": -1.0}, device=device)
    if name == "four_rooms":
        return four_rooms(discount=discount, device=device)
    if name not in gym.registry:
        raise UnknownName("base world", name, [*NAMES, "FrozenLake-v1", "CliffWalking-v1", "Taxi-v4"])
    return from_gymnasium(name, discount=discount, device=device)


def soft_optimal(world: TabularWorld, regularizer: Regularizer, reward: Tensor) -> Tensor:
    """The soft-optimal policy for a reward [S, A]: [S, A], or [C, S, A]."""
    nothing = LinearReward(torch.zeros(world.states, world.actions, 1), reward, device=world.start.device)
    problem = BilevelProblem(world, nothing, regularizer, QuadraticObjective())
    policy: Tensor = SoftPolicyIteration().solve(problem, torch.zeros(1, dtype=torch.float64, device=world.start.device)).policy
    return policy


def occupancy(world: TabularWorld, policy: Tensor) -> Tensor:
    """d_sa = E Σ_t γᵗ 1[s_t = s, a_t = a]: [S, A] → [S, A]. Cost: O(S³ + S²A)."""
    mdp = MDP(policy, world.transition, world.start, world.discount, Shannon(1.0))  # only P, ρ and γ are looked at
    return solve_transposed(factorize(mdp, policy), world.start).unsqueeze(-1) * policy
