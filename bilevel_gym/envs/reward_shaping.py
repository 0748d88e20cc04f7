"""``bilevel/RewardShaping-v0``: a reward on top of the true one, for a follower who plans with another horizon or temperature."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bilevel_gym.arguments import checked
from bilevel_gym.envs.base_worlds import base_world
from bilevel_gym.envs.bilevel_env import BilevelEnv
from bilevel_gym.envs.solver_names import tabular_solver
from bilevel_gym.envs.vector_env import vectorized
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.numerics import dense
from bilevel_gym.objectives import ReturnObjective
from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import LinearReward
from bilevel_gym.types import LowerSolver
from bilevel_gym.worlds import TabularWorld

__all__ = ["Kind", "reward_shaping", "reward_shaping_vector"]

Kind = Literal["dense", "potential"]
"""What x is: a number for each (s, a), or a potential, one for each s."""


@checked
def reward_shaping(
    *,
    base: str = "FrozenLake-v1",
    kind: Kind = "dense",
    discount: float = 0.9,
    temperature: float = 0.1,
    true_discount: float = 0.95,
    true_temperature: float | None = None,
    bound: float = 10.0,
    solver: str | LowerSolver = "policy_iteration",
    sweeps: int = 10,
    solve_on_reset: bool = True,
    device: str = "cpu",
    render_mode: str | None = None,
) -> BilevelEnv:
    """Shape the reward of a follower so that it does well by the true one.

    Description:
        The follower sees the true reward of a base world plus a shaping, and plans with its own discount and temperature; the upper
        level counts the true reward alone, with a discount and a temperature of its own.
    x:
        ``kind="dense"``: a number for each (s, a), R^(S·A). ``kind="potential"``: Φ in R^S, and the shaping is γ(PΦ)(s,a) − Φ(s), which
        moves no policy. The box is [−10, 10]^D; x starts standard normal.
    Lower level:
        The base world with r_true + shaping, γ = .9, τ = .1.
    Upper objective:
        f(x, π) = −E_π Σ_t γ̄ᵗ ( r_true(s_t, a_t) − τ̄ Σ_a π log π ), γ̄ = .95, without the entropy by default.
    Observation:
        ``objective`` [1], ``gap`` [1], ``x`` [D], ``policy`` [S·A], float64.
    Reward:
        −f(x, π).
    Reference value:
        With ``true_discount=discount`` and ``true_temperature=temperature`` φ* = −V*_M̄(ρ), the soft value of the base world, attained at
        x = 0 and by every potential; under potentials φ does not move at all. With the arguments above, on FrozenLake-v1,
        φ(0) = −0.0384, and no reward does better than −0.1805, minus the optimal value at γ̄ = .95.

    Args:
        base: ``"chain"``, ``"grid"``, ``"four_rooms"``, or the id of an environment that carries its ``P``.
        kind: see x.
        discount: γ.
        temperature: τ.
        true_discount: γ̄.
        true_temperature: τ̄, or None for no entropy.
        bound: of the box of x.
        solver: ``"policy_iteration"`` (to 1e-10), ``"value_iteration"`` (``sweeps`` sweeps a step), or a solver object.
        sweeps: N, for value iteration.
        solve_on_reset: whether a reset solves at the first x.
        device: where the tables live.
        render_mode: ``"rgb_array"`` or ``"ansi"``.

    Version history:
        v0: the first.
    """
    world = base_world(base, discount=discount, device=device)
    assert world.true_reward is not None
    reward = LinearReward(_features(world, kind), world.true_reward, bound=bound, device=device)
    regularizer = None if true_temperature is None else Shannon(true_temperature)
    objective = ReturnObjective(-world.true_reward, discount=true_discount, regularizer=regularizer, device=device)
    problem = BilevelProblem(world, reward, Shannon(temperature), objective)
    return BilevelEnv(problem, tabular_solver(solver, sweeps), solve_on_reset=solve_on_reset, render_mode=render_mode)


reward_shaping_vector = vectorized(reward_shaping)
"""N of them as one batch: what ``gym.make_vec("bilevel/RewardShaping-v0", num_envs=N)`` makes."""


def _features(world: TabularWorld, kind: Kind) -> Tensor:
    """[S, A, D], or [C, S, A, D] where P differs between followers."""
    states, actions = world.states, world.actions
    if kind == "dense":
        return torch.eye(states * actions, dtype=torch.float64).view(states, actions, -1)
    if kind == "potential":
        return world.discount * dense(world.transition) - torch.eye(states, dtype=torch.float64, device=world.start.device)[:, None]
    raise InvalidProblem(f"kind is {kind!r}: choose 'dense' or 'potential'")
