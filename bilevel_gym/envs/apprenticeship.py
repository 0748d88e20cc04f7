"""``bilevel/Apprenticeship-v0``: the reward that an expert's demonstrations speak for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.arguments import checked
from bilevel_gym.envs.base_worlds import base_world, occupancy, soft_optimal
from bilevel_gym.envs.bilevel_env import BilevelEnv
from bilevel_gym.envs.solver_names import tabular_solver
from bilevel_gym.envs.vector_env import vectorized
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.numerics import dense
from bilevel_gym.objectives import DemonstrationLikelihood
from bilevel_gym.preferences import from_minari
from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import LinearReward
from bilevel_gym.types import LowerSolver, Trajectory
from bilevel_gym.worlds import TabularWorld

__all__ = ["Features", "apprenticeship", "apprenticeship_vector", "reward_null_space"]

Features = Literal["state", "state_action"]
"""Indicators of what the reward is linear in."""


@checked
def apprenticeship(
    *,
    base: str = "grid",
    features: Features = "state",
    demonstrations: int | str | None = None,
    horizon: int = 100,
    ridge: float = 0.0,
    discount: float = 0.9,
    temperature: float = 0.2,
    bound: float = 10.0,
    solver: str | LowerSolver = "policy_iteration",
    sweeps: int = 10,
    solve_on_reset: bool = True,
    device: str = "cpu",
    render_mode: str | None = None,
) -> BilevelEnv:
    """Maximum-entropy inverse reinforcement learning as a bilevel problem.

    Description:
        An expert plays the soft-optimal policy of a base world's true reward. The upper level looks for the reward under which what
        the expert showed is most likely.
    x:
        Weights of indicator features, of states or of (s, a): R^S or R^(S·A), in the box [−10, 10]^D; it starts standard normal.
    Lower level:
        The base world with r_sa(x) = ⟨φ_sa, x⟩, γ = .9, τ = .2.
    Upper objective:
        f(x, π) = (V^π_ρ̂(x) − ⟨d̂, r(x)⟩)/τ + ½ ridge ‖x‖²; at π*(x) the discounted negative log-likelihood of the expert, less a constant,
        where d̂ is exact. Convex in x (mathematics §9).
    Observation:
        ``objective`` [1], ``gap`` [1], ``x`` [D], ``policy`` [S·A], float64.
    Reward:
        −f(x, π).
    Reference value:
        Without ridge and with exact demonstrations φ is least where π*(x) is the expert's policy, among others at the true reward where the
        features span it: φ* = 13.7536 with the arguments above. x is determined up to ``reward_null_space(problem)``.

    Args:
        base: ``"chain"``, ``"grid"``, ``"four_rooms"``, or the id of an environment that carries its ``P`` (these need
            ``features="state_action"``, since their rewards depend on the action).
        features: ``"state"`` or ``"state_action"``.
        demonstrations: how many trajectories the expert shows, drawn at ``reset(seed=…)``; None shows all, d̂ is its exact occupancy. A name is
            that of a Minari dataset of the base world's states and actions, whose episodes are shown.
        horizon: steps of each that is drawn.
        ridge: of ½‖x‖².
        discount: γ.
        temperature: τ.
        bound: of the box of x.
        solver: ``"policy_iteration"`` (to 1e-10), ``"value_iteration"`` (``sweeps`` sweeps a step), or a solver object.
        sweeps: N, for value iteration.
        solve_on_reset: whether a reset solves at the first x.
        device: where the tables live.
        render_mode: ``"rgb_array"`` or ``"ansi"``.

    Raises:
        InvalidProblem: unknown features, or no demonstrations, or those of another world.
        CheckpointError: there is no such dataset.
        UnsupportedProblem: sampled demonstrations on a base world with several followers.

    Version history:
        v0: the first.
    """
    world = base_world(base, discount=discount, device=device)
    reward = LinearReward(_indicators(world, features), bound=bound, device=device)
    regularizer = Shannon(temperature)
    assert world.true_reward is not None
    policy = soft_optimal(world, regularizer, world.true_reward)
    if isinstance(demonstrations, int) and (demonstrations < 1 or horizon < 1):
        raise InvalidProblem(
            f"demonstrations is {demonstrations} and horizon {horizon}: the expert shows one trajectory of one step at least, or None for all of them"
        )
    if demonstrations is not None and world.context_weights is not None:
        raise UnsupportedProblem(f"{base} has several followers, whose demonstrations are not drawn: leave demonstrations at None")

    def problem(played: Trajectory) -> BilevelProblem:
        shown, start = _counted(world, played)
        begun = TabularWorld(world.transition, start, discount, world.termination, device=device)
        return BilevelProblem(world, reward, regularizer, DemonstrationLikelihood(shown, world=begun, ridge=ridge, device=device))

    def draw(rng: np.random.Generator) -> BilevelProblem:
        assert isinstance(demonstrations, int)
        generator = torch.Generator(device=world.start.device).manual_seed(int(rng.integers(2**63 - 1)))
        return problem(world.rollout(policy, trajectories=demonstrations, steps=horizon, generator=generator))

    given: BilevelProblem | Callable[[np.random.Generator], BilevelProblem] = draw
    if demonstrations is None:
        exact = DemonstrationLikelihood(occupancy(world, policy), ridge=ridge, device=device)
        given = BilevelProblem(world, reward, regularizer, exact)
    elif isinstance(demonstrations, str):
        given = problem(from_minari(demonstrations, world, device=device))
    return BilevelEnv(given, tabular_solver(solver, sweeps), solve_on_reset=solve_on_reset, render_mode=render_mode)


apprenticeship_vector = vectorized(apprenticeship)
"""N of them as one batch: what ``gym.make_vec("bilevel/Apprenticeship-v0", num_envs=N)`` makes."""


def reward_null_space(problem: BilevelProblem, *, tolerance: float = 1e-10) -> Tensor:
    """Directions of x that move no policy in the states that are reached, so that no demonstration tells them apart.

    They are the v with ⟨φ_sa, v⟩ = h(s) − γ(Ph)(s, a) for some potential h, on the reachable states: shaping by a potential, a constant
    among them where no episode ends.

    Args:
        problem: a tabular one with one follower, whose reward is linear in x.
        tolerance: below which a singular value counts as zero, relative to the largest.

    Returns:
        [D, k] orthonormal columns; k is 0 where x is identified. Cost: a singular value decomposition of [S·A, D + S].
    """
    world, features = problem.world, problem.reward.features  # type: ignore[attr-defined]
    states = world.states  # type: ignore[attr-defined]
    transition = dense(world.transition_at(torch.zeros(problem.dimension, dtype=features.dtype, device=features.device)))  # type: ignore[attr-defined]
    reached, before = world.start > 0, None  # type: ignore[attr-defined]
    while before is None or not torch.equal(reached, before):
        before = reached
        reached = reached | (transition[reached].sum((0, 1)) > 0)
    shaping = torch.eye(states, dtype=features.dtype, device=features.device)[:, None] - world.discount * transition
    system = torch.cat([features.expand(states, -1, -1), -shaping], -1)[reached].flatten(0, 1)
    _, sizes, rows = torch.linalg.svd(system, full_matrices=True)
    rank = int((sizes > tolerance * sizes[0]).sum())
    directions = rows[rank:, : problem.dimension].mT
    basis, sizes, _ = torch.linalg.svd(directions, full_matrices=False)
    kept: Tensor = basis[:, sizes > 1e-8]
    return kept


def _indicators(world: TabularWorld, features: Features) -> Tensor:
    states, actions = world.states, world.actions
    if features == "state":
        return torch.eye(states, dtype=torch.float64)[:, None].expand(-1, actions, -1)
    if features == "state_action":
        return torch.eye(states * actions, dtype=torch.float64).view(states, actions, -1)
    raise InvalidProblem(f"features is {features!r}: choose 'state' or 'state_action'")


def _counted(world: TabularWorld, played: Trajectory) -> tuple[Tensor, Tensor]:
    """d̂ [S, A] and ρ̂ [S] of trajectories."""
    count, steps = played.alive.shape
    decay = world.discount ** torch.arange(steps, dtype=torch.float64, device=world.start.device)
    cells = (played.states * world.actions + played.actions).flatten()
    visits = torch.zeros(world.states * world.actions, dtype=torch.float64, device=world.start.device)
    visits.index_add_(0, cells, (played.alive * decay).flatten() / count)
    start = torch.bincount(played.states[:, 0], minlength=world.states).to(torch.float64) / count
    return visits.view(world.states, world.actions), start
