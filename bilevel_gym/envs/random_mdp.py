"""``bilevel/RandomMDP-v0``: the synthetic problem of the SoBiRL paper."""

from __future__ import annotations

from functools import partial

import numpy as np

from bilevel_gym.arguments import checked
from bilevel_gym.envs.bilevel_env import BilevelEnv
from bilevel_gym.envs.solver_names import tabular_solver
from bilevel_gym.envs.vector_env import vectorized
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.objectives import QuadraticObjective
from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import QuadraticReward
from bilevel_gym.types import LowerSolver
from bilevel_gym.worlds import TabularWorld

__all__ = ["draw_random_mdp", "random_mdp", "random_mdp_vector"]


@checked
def random_mdp(
    *,
    states: int = 10,
    actions: int = 5,
    dimension: int = 100,
    discount: float = 0.5,
    temperature: float = 1.0,
    solver: str | LowerSolver = "value_iteration",
    sweeps: int = 10,
    solve_on_reset: bool = True,
    device: str = "cpu",
    render_mode: str | None = None,
) -> BilevelEnv:
    """A random MDP whose reward is a random quadratic form of x.

    Description:
        The synthetic problem of the SoBiRL paper (AISTATS 2025). ``reset(seed)`` draws the instance: each (s, a) has a uniform number
        in 1..S−1 of successors with normalised uniform weights.
    x:
        R^100 in the box [−10, 10]^100; it starts standard normal.
    Lower level:
        S = 10, A = 5, γ = .5, τ = 1, r_sa(x) = U_sa U'_sa xᵀMx with M standard normal, U and U' uniform on [0, 1]. A step runs 10 soft
        Bellman sweeps from the last Q.
    Upper objective:
        f(x, π) = ½‖x‖² + ½‖π‖².
    Observation:
        ``objective`` [1], ``gap`` [1], ``x`` [D], ``policy`` [S·A], float64.
    Reward:
        −f(x, π).
    Reference value:
        x* = 0 with φ* = S/(2A) = 1.0. The authors' logged runs reach 1.00009 with ‖∇φ‖ = .0138 in 823 iterations.

    Args:
        states: S.
        actions: A.
        dimension: D.
        discount: γ.
        temperature: τ.
        solver: ``"value_iteration"`` (``sweeps`` sweeps a step), ``"policy_iteration"`` (to 1e-10), or a solver object.
        sweeps: N, for value iteration.
        solve_on_reset: whether a reset solves at the first x; the paper starts with V = 0 and a uniform policy instead.
        device: where the tables live.
        render_mode: ``"rgb_array"`` or ``"ansi"``.

    Version history:
        v0: the first.
    """
    draw = partial(
        draw_random_mdp, states=states, actions=actions, dimension=dimension, discount=discount, temperature=temperature, device=device
    )
    return BilevelEnv(draw, tabular_solver(solver, sweeps), solve_on_reset=solve_on_reset, render_mode=render_mode)


random_mdp_vector = vectorized(random_mdp)
"""N of them as one batch: what ``gym.make_vec("bilevel/RandomMDP-v0", num_envs=N)`` makes."""


def draw_random_mdp(
    rng: np.random.Generator,
    *,
    states: int = 10,
    actions: int = 5,
    dimension: int = 100,
    discount: float = 0.5,
    temperature: float = 1.0,
    device: str = "cpu",
) -> BilevelProblem:
    """One instance of the synthetic problem.

    Args:
        rng: the source of the instance.
        states: S ≥ 2.
        actions: A.
        dimension: D.
        discount: γ.
        temperature: τ.
        device: where the tables live.
    """
    if states < 2 or actions < 1:
        raise InvalidProblem(f"states is {states} and actions {actions}: a random MDP has two states and one action at least")
    transition = np.zeros((states, actions, states))
    for row in transition.reshape(-1, states):
        successors = rng.choice(states, size=rng.integers(1, states), replace=False)
        weights = rng.random(len(successors))
        row[successors] = weights / weights.sum()
    coefficients = rng.random((states, actions)) * rng.random((states, actions))
    matrix = rng.standard_normal((dimension, dimension))
    return BilevelProblem(
        TabularWorld(transition, np.full(states, 1.0 / states), discount, device=device),
        QuadraticReward(coefficients, matrix, device=device),
        Shannon(temperature),
        QuadraticObjective(),
    )
