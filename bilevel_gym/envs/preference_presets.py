"""Sizes of the preference tasks on simulators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from bilevel_gym.envs.bilevel_env import BilevelEnv
from bilevel_gym.errors import InvalidProblem, UnknownName
from bilevel_gym.objectives import PreferenceObjective
from bilevel_gym.preferences import Teacher
from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.solvers import SAC, DiscreteSAC
from bilevel_gym.types import LowerSolver, RewardModel, World

__all__ = ["FLAT", "PIXELS", "Preset", "choose", "pose"]


@dataclass(frozen=True)
class Preset:
    """Sizes of a preference task."""

    horizon: int
    """Steps of an episode, at most."""
    temperature: float
    """τ, in units of r_x, which lies in [−1, 1]."""
    reward_hidden: tuple[int, ...]
    """Hidden layers of r_x; behind convolutions the last of them."""
    discrete: DiscreteSAC
    """The follower where actions are finitely many."""
    objective: PreferenceObjective
    """The upper level."""
    continuous: SAC | None = None
    """The follower where actions are a box."""
    authors: bool = False
    """Whether r_x has the authors' batch norm, dropout and clip, and the teacher sees clipped rewards."""


FLAT: dict[str, Preset] = {
    "default": Preset(
        horizon=1000,
        temperature=0.05,
        reward_hidden=(64, 64),
        continuous=SAC(steps=4000, learning_starts=2000),
        discrete=DiscreteSAC(steps=4000, learning_starts=2000, batch_size=128, hidden=(128, 128), update_every=2, updates_per_step=0.5),
        objective=PreferenceObjective(
            length=50, pairs=16, initial_pairs=64, capacity=3000, cut="anywhere", trajectories=4, steps=1000, held_out_pairs=256
        ),
    ),
    "demo": Preset(
        horizon=250,
        temperature=0.05,
        reward_hidden=(64, 64),
        continuous=SAC(
            steps=2000,
            num_envs=2,
            update_every=2,
            updates_per_step=0.5,
            learning_starts=2000,
            batch_size=128,
            hidden=(128, 128),
            learning_rate=1e-3,
        ),
        discrete=DiscreteSAC(
            steps=2000,
            num_envs=2,
            update_every=2,
            updates_per_step=0.5,
            learning_starts=2000,
            batch_size=128,
            hidden=(64, 64),
            learning_rate=1e-3,
        ),
        objective=PreferenceObjective(
            length=25, pairs=16, initial_pairs=64, capacity=3000, cut="anywhere", trajectories=8, steps=250, held_out_pairs=256
        ),
    ),
    "tiny": Preset(
        horizon=50,
        temperature=0.1,
        reward_hidden=(8, 8),
        continuous=SAC(steps=50, learning_starts=20, batch_size=16, hidden=(8, 8), capacity=1000),
        discrete=DiscreteSAC(steps=50, learning_starts=20, batch_size=16, hidden=(8, 8), capacity=1000),
        objective=PreferenceObjective(length=10, pairs=4, capacity=100, cut="anywhere", trajectories=4, steps=50, held_out_pairs=8),
    ),
}
"""For flat observations."""

PIXELS: dict[str, Preset] = {
    "default": Preset(
        horizon=1000,
        temperature=0.02,
        reward_hidden=(64,),
        discrete=DiscreteSAC(
            steps=10_000,
            num_envs=4,
            update_every=1,
            updates_per_step=0.25,
            learning_starts=20_000,
            batch_size=64,
            hidden=(512,),
            learning_rate=1e-4,
            adam_epsilon=1e-4,
        ),
        objective=PreferenceObjective(
            length=25, pairs=16, initial_pairs=128, capacity=3000, cut="anywhere", trajectories=8, steps=500, held_out_pairs=256
        ),
    ),
    "demo": Preset(
        horizon=500,
        temperature=0.02,
        reward_hidden=(32,),
        discrete=DiscreteSAC(
            steps=2000,
            num_envs=4,
            update_every=4,
            updates_per_step=0.0625,
            learning_starts=2000,
            batch_size=32,
            hidden=(64,),
            learning_rate=3e-4,
            capacity=50_000,
        ),
        objective=PreferenceObjective(
            length=25, pairs=16, initial_pairs=64, capacity=1000, cut="anywhere", trajectories=8, steps=250, held_out_pairs=128
        ),
    ),
    "tiny": Preset(
        horizon=40,
        temperature=0.1,
        reward_hidden=(4,),
        discrete=DiscreteSAC(steps=24, update_every=8, updates_per_step=0.25, learning_starts=12, batch_size=4, hidden=(4,), capacity=100),
        objective=PreferenceObjective(length=6, pairs=2, capacity=20, cut="anywhere", trajectories=2, steps=20),
    ),
    "aistats2025": Preset(
        horizon=1000,
        temperature=1.0,
        reward_hidden=(64,),
        discrete=DiscreteSAC(
            steps=10_000,
            update_every=4,
            updates_per_step=0.25,
            learning_starts=20_000,
            batch_size=64,
            hidden=(512,),
            learning_rate=1e-4,
            adam_epsilon=1e-4,
            anneal_steps=8_000_000,
            polyak=1.0,
            target_every=2000,
            target_entropy=0.89,
        ),
        objective=PreferenceObjective(
            length=25, pairs=6, initial_pairs=600, capacity=3000, cut="anywhere", trajectories=4, steps=1000, held_out_pairs=256
        ),
        authors=True,
    ),
}
"""For stacks of frames; an update is due every fourth environment step, as in the published runs, and less often in ``demo``."""


def choose(presets: Mapping[str, Preset], name: str, horizon: int | None, longest: int | None) -> Preset:
    """A preset by its name, with episodes of the length that is asked for, or that the task has.

    Args:
        presets: the table.
        name: a key of it.
        horizon: steps of an episode; None takes the preset's, but no more than ``longest``.
        longest: the task's own time limit; None where it has none.

    Raises:
        UnknownName: there is no such preset.
        InvalidProblem: an episode is shorter than a fragment.
    """
    if name not in presets:
        raise UnknownName("preset", name, list(presets))
    sizes = presets[name]
    steps = horizon if horizon is not None else min(sizes.horizon, longest or sizes.horizon)
    if steps < sizes.objective.length:
        raise InvalidProblem(
            f"episodes of {steps} steps are shorter than a fragment, which has {sizes.objective.length}: make horizon larger"
        )
    assert sizes.objective.steps is not None
    return replace(sizes, horizon=steps, objective=replace(sizes.objective, steps=min(sizes.objective.steps, steps)))


def pose(
    world: World,
    reward: RewardModel,
    sizes: Preset,
    *,
    temperature: float | None,
    teacher: Teacher,
    solver: LowerSolver | None,
    render_mode: str | None,
) -> BilevelEnv:
    """The outer environment of a world and a reward model, in the sizes of a preset where nothing else is given."""
    problem = BilevelProblem(
        world, reward, Shannon(sizes.temperature if temperature is None else temperature), replace(sizes.objective, teacher=teacher)
    )
    follower = solver or (sizes.discrete if hasattr(world, "action_count") else sizes.continuous)
    assert follower is not None
    return BilevelEnv(problem, follower, solve_on_reset=False, render_mode=render_mode)
