"""``bilevel/PolicyTeaching-v0``: the smallest change of a reward that teaches a policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bilevel_gym.arguments import checked
from bilevel_gym.envs.base_worlds import base_world, occupancy, soft_optimal
from bilevel_gym.envs.bilevel_env import BilevelEnv
from bilevel_gym.envs.solver_names import tabular_solver
from bilevel_gym.envs.vector_env import vectorized
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.numerics import as_table
from bilevel_gym.objectives import DemonstrationLikelihood
from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import LinearReward
from bilevel_gym.types import LowerSolver
from bilevel_gym.worlds import TabularWorld, chain

__all__ = ["policy_teaching", "policy_teaching_vector"]


@checked
def policy_teaching(
    *,
    base: str = "rakhsha_chain",
    target: Sequence[int] | None = None,
    ridge: float = 1.0,
    discount: float = 0.9,
    temperature: float = 0.1,
    bound: float = 10.0,
    solver: str | LowerSolver = "policy_iteration",
    sweeps: int = 10,
    solve_on_reset: bool = True,
    device: str = "cpu",
    render_mode: str | None = None,
) -> BilevelEnv:
    """Reward poisoning: change the reward by little so that the follower plays a given policy.

    Description:
        After Rakhsha et al., "Policy teaching via environment poisoning" (ICML 2020): there the smallest change that makes a policy
        optimal with a margin, here, with a soft follower, the smallest in the balance of its size and of the policy's likelihood.
    x:
        What is added to the reward of each (s, a): R^(S·A), in the box [−10, 10]^D; it starts standard normal.
    Lower level:
        The base world with r_true + x, γ = .9, τ = .1.
    Upper objective:
        f(x, π) = ½ ridge ‖x‖² + (V^π_ρ(x) − ⟨d_π†, r_true + x⟩)/τ, the second term at π*(x) the discounted negative log-likelihood of the
        taught policy π†. Strongly convex in x: the minimiser is unique (mathematics §9).
    Observation:
        ``objective`` [1], ``gap`` [1], ``x`` [D], ``policy`` [S·A], float64.
    Reward:
        −f(x, π).
    Reference value:
        φ* = 0.50162 with the arguments above, from any start, and φ(0) = 61.2257.

    Args:
        base: ``"rakhsha_chain"`` (four states; left or right succeeds 9 times in 10, else the next state is a uniform draw; the right end
            pays 1, all else nothing), ``"chain"``, ``"grid"``, ``"four_rooms"``, or the id of an environment that carries its ``P``.
        target: the taught policy π†, an action for each state; None teaches what would be optimal for the negated true reward.
        ridge: of ½‖x‖², positive.
        discount: γ.
        temperature: τ.
        bound: of the box of x.
        solver: ``"policy_iteration"`` (to 1e-10), ``"value_iteration"`` (``sweeps`` sweeps a step), or a solver object.
        sweeps: N, for value iteration.
        solve_on_reset: whether a reset solves at the first x.
        device: where the tables live.
        render_mode: ``"rgb_array"`` or ``"ansi"``.

    Raises:
        InvalidProblem: a ridge that is not positive, or a target that is not one action for each state.

    Version history:
        v0: the first.
    """
    if not ridge > 0:
        raise InvalidProblem(f"ridge is {ridge}: it must be positive, a deterministic policy is taught by an infinite x otherwise")
    if base == "rakhsha_chain":
        world: TabularWorld = chain(4, discount, scatter=0.1, rewards={"E": 1.0}, device=device)
    else:
        world = base_world(base, discount=discount, device=device)
    assert world.true_reward is not None
    states, actions = world.states, world.actions
    everything = torch.eye(states * actions, dtype=torch.float64).view(states, actions, -1)
    reward = LinearReward(everything, world.true_reward, bound=bound, device=device)
    objective = DemonstrationLikelihood(occupancy(world, _taught(world, target)), ridge=ridge, device=device)
    problem = BilevelProblem(world, reward, Shannon(temperature), objective)
    return BilevelEnv(problem, tabular_solver(solver, sweeps), solve_on_reset=solve_on_reset, render_mode=render_mode)


policy_teaching_vector = vectorized(policy_teaching)
"""N of them as one batch: what ``gym.make_vec("bilevel/PolicyTeaching-v0", num_envs=N)`` makes."""


def _taught(world: TabularWorld, target: Sequence[int] | None) -> Tensor:
    """π†: [S, A] or [C, S, A], one action in each state."""
    if target is None:
        assert world.true_reward is not None
        chosen = soft_optimal(world, Shannon(1e-3), -world.true_reward).argmax(-1)
    else:
        given = as_table(target, world.start.device)
        chosen = given.long()
        if chosen.shape != (world.states,) or not bool(((chosen >= 0) & (chosen < world.actions) & (chosen == given)).all()):
            raise InvalidProblem(f"target must be {world.states} actions, one a state, each from 0 to {world.actions - 1}")
        chosen = chosen.expand(world.start.shape)
    return torch.nn.functional.one_hot(chosen, world.actions).to(world.start.dtype)
