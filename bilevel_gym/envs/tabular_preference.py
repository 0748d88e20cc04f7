"""``bilevel/TabularPreference-v0``: learn a reward table from comparisons, everything by enumeration."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.arguments import build, checked
from bilevel_gym.envs.bilevel_env import BilevelEnv
from bilevel_gym.envs.solver_names import tabular_solver
from bilevel_gym.envs.vector_env import vectorized
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.objectives import LARGEST_ENUMERATION, PreferenceObjective, fragments_of
from bilevel_gym.preferences import Teacher
from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import LinearReward
from bilevel_gym.types import LowerSolver
from bilevel_gym.worlds import TabularWorld

__all__ = ["FragmentSource", "preference_null_space", "tabular_preference", "tabular_preference_vector"]

FragmentSource = Literal["on_policy", "reference"]
"""Whose fragments are compared: the follower's, or those of the uniform policy."""


@checked
def tabular_preference(
    *,
    fragments: FragmentSource = "on_policy",
    states: int = 4,
    actions: int = 2,
    length: int = 3,
    pairs: int = 64,
    capacity: int = 1000,
    discount: float = 0.8,
    temperature: float = 1.0,
    rationality: float = 1.0,
    teacher: Mapping[str, float] | None = None,
    exact: bool = True,
    instance: int = 0,
    bound: float = 5.0,
    solver: str | LowerSolver = "policy_iteration",
    sweeps: int = 10,
    solve_on_reset: bool = True,
    device: str = "cpu",
    render_mode: str | None = None,
) -> BilevelEnv:
    """Reward learning from preferences on a table, small enough that the objective and its gradient are exact.

    Description:
        The leader learns a reward table from a teacher's answers about pairs of fragments. It is the reward-learning problem of the
        simulators in miniature: the same objective, the same sampled estimators, and beside them f itself, by enumeration of all
        (S·A)^H fragments. The instance is fixed; ``instance`` is the seed of another one.
    x:
        The reward table, R^(S·A) in the box [−5, 5]; it starts standard normal.
    Lower level:
        S = 4, A = 2, γ = .8, τ = 1; rows of P are uniform on the simplex, the true reward is standard normal, the start uniform.
    Upper objective:
        f(x, π) = E_{d_1, d_2} E_y[ −y log σ(z) − (1−y) log σ(−z) ], z = Σ_h r_x(d_1) − Σ_h r_x(d_2), y the answer of a Bradley–Terry
        teacher with β = 1, d_i fragments of H = 3 steps from the start: of π (``on_policy``), or of the uniform policy (``reference``).
    Observation:
        ``objective`` [1], ``gap`` [1], ``x`` [S·A], ``policy`` [S·A], float64.
    Reward:
        −f(x, π), exact; 64 sampled pairs of each step are there for the estimators, and in the metrics.
    Reference value:
        ``reference``: convex in x, and least at the true reward up to ``preference_null_space`` (here a constant), where f is the
        entropy of the teacher's answers: φ* = .438084. ``on_policy``: the true reward, with φ = .425044, is no optimum,
        ‖∇φ‖ = .0329 there; the nearest one has φ = .418410, and there are others at the edge of the box.

    Args:
        fragments: ``"on_policy"`` or ``"reference"``.
        states: S.
        actions: A.
        length: H; (S·A)^H is at most 4096.
        pairs: sampled pairs of each step.
        capacity: pairs in the queue for ∇l.
        discount: γ.
        temperature: τ.
        rationality: β of the teacher, per unit of true reward.
        teacher: its other knobs, such as ``{"mistake": 0.1}``; see ``preferences.Teacher``.
        exact: whether −reward is f itself, or the mean loss of the sampled pairs.
        instance: the seed of P and of the true reward.
        bound: of the box of x.
        solver: ``"policy_iteration"`` (to 1e-10), ``"value_iteration"`` (``sweeps`` sweeps a step), or a solver object.
        sweeps: N, for value iteration.
        solve_on_reset: whether a reset solves at the first x.
        device: where the tables live.
        render_mode: ``"rgb_array"`` or ``"ansi"``.

    Raises:
        InvalidProblem: an unknown source of fragments, or too many of them.

    Version history:
        v0: the first.
    """
    if fragments not in ("on_policy", "reference"):
        raise InvalidProblem(f"fragments is {fragments!r}: choose 'on_policy' or 'reference'")
    if instance < 0:
        raise InvalidProblem(f"instance is {instance}: it is a seed, 0 or more")
    cells = states * actions
    if min(states, actions, length) < 1 or cells**length > LARGEST_ENUMERATION:
        raise InvalidProblem(
            f"states {states}, actions {actions} and length {length} make {cells}^{length} fragments: they are enumerated, so let there be 1 to {LARGEST_ENUMERATION}"
        )
    rng = np.random.default_rng(instance)
    world = TabularWorld(
        rng.dirichlet(np.ones(states), (states, actions)),
        np.full(states, 1.0 / states),
        discount,
        true_reward=rng.standard_normal((states, actions)),
        device=device,
    )
    uniform = torch.full((states, actions), 1.0 / actions, dtype=torch.float64, device=device)
    objective = PreferenceObjective(
        length=length,
        pairs=pairs,
        capacity=capacity,
        teacher=build("teacher", partial(Teacher, rationality), teacher or {}),
        held_out_pairs=256,
        reference=uniform if fragments == "reference" else None,
        exact=exact,
    )
    reward = LinearReward(np.eye(cells).reshape(states, actions, cells), bound=bound, device=device)
    problem = BilevelProblem(world, reward, Shannon(temperature), objective)
    return BilevelEnv(problem, tabular_solver(solver, sweeps), solve_on_reset=solve_on_reset, render_mode=render_mode)


tabular_preference_vector = vectorized(tabular_preference)
"""N of them as one batch: what ``gym.make_vec("bilevel/TabularPreference-v0", num_envs=N)`` makes."""


def preference_null_space(problem: BilevelProblem, *, tolerance: float = 1e-10) -> Tensor:
    """Directions of x that no comparison tells apart: those v with ⟨counts(d_1) − counts(d_2), ⟨φ, v⟩⟩ = 0 for all pairs (mathematics §8).

    A constant shift of the reward is among them where all fragments are equally long. On-policy it is the null space of the answers, not
    of φ: a direction in it can still move the follower.

    Args:
        problem: a small table with a ``PreferenceObjective`` that cuts at the start, and a reward that is linear in x.
        tolerance: below which a singular value counts as zero, relative to the largest.

    Returns:
        [D, k] orthonormal columns; k is 0 where x is identified. Cost: a singular value decomposition of [U, D], U kinds of fragments.
    """
    features: Tensor = problem.reward.features  # type: ignore[attr-defined]
    x = torch.zeros(problem.dimension, dtype=features.dtype, device=features.device)
    counts = fragments_of(problem.world, x, problem.objective.length).counts  # type: ignore[attr-defined]
    _, sizes, rows = torch.linalg.svd((counts - counts.mean(0)) @ features.flatten(0, 1), full_matrices=True)
    rank = int((sizes > tolerance * sizes.amax().clamp_min(1e-300)).sum())
    basis: Tensor = rows[rank:].mT
    return basis
