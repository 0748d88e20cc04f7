"""``bilevel/{Pendulum,Hopper,HalfCheetah}Preference-v0``: learn a reward from comparisons, the follower is a soft actor-critic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bilevel_gym.envs.bilevel_env import BilevelEnv
from bilevel_gym.errors import UnknownName
from bilevel_gym.objectives import PreferenceObjective
from bilevel_gym.preferences import Teacher
from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import MLPReward
from bilevel_gym.solvers import SAC
from bilevel_gym.types import LowerSolver
from bilevel_gym.worlds import VectorWorld, mujoco_world

__all__ = ["PRESETS", "Preset", "gym_preference"]


@dataclass(frozen=True)
class Preset:
    """Sizes of a preference task."""

    horizon: int
    """Steps of an episode."""
    temperature: float
    """τ, in units of r_x, which lies in [−1, 1]."""
    reward_hidden: tuple[int, ...]
    """Hidden layers of r_x."""
    solver: SAC
    """The follower."""
    objective: PreferenceObjective
    """The upper level."""


PRESETS: dict[str, Preset] = {
    "default": Preset(
        horizon=1000,
        temperature=0.05,
        reward_hidden=(64, 64),
        solver=SAC(steps=4000, learning_starts=2000),
        objective=PreferenceObjective(
            length=50, pairs=16, initial_pairs=64, capacity=3000, cut="anywhere", trajectories=4, steps=1000, held_out_pairs=256
        ),
    ),
    "demo": Preset(
        horizon=250,
        temperature=0.05,
        reward_hidden=(64, 64),
        solver=SAC(
            steps=2000,
            num_envs=2,
            update_every=2,
            updates_per_step=0.5,
            learning_starts=2000,
            batch_size=128,
            hidden=(128, 128),
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
        solver=SAC(steps=50, learning_starts=20, batch_size=16, hidden=(8, 8), capacity=1000),
        objective=PreferenceObjective(length=10, pairs=4, capacity=100, cut="anywhere", trajectories=4, steps=50, held_out_pairs=8),
    ),
}


def gym_preference(
    *,
    env_id: str,
    preset: str = "default",
    discount: float = 0.99,
    temperature: float | None = None,
    rationality: float = 1.0,
    teacher: Mapping[str, float] | None = None,
    solver: LowerSolver | None = None,
    device: str = "cpu",
    render_mode: str | None = None,
) -> BilevelEnv:
    """Reward learning from preferences on a Gymnasium task with continuous actions.

    Description:
        The leader never sees the true reward. It shows a teacher pairs of fragments of what the follower does, and learns from the
        answers. The follower maximises r_x plus entropy. Episodes have a fixed length, and MuJoCo tasks do not end at a fall, so that
        the length of an episode tells nothing about the reward.
    x:
        The flat parameter vector of a perceptron on (s, a), in the box [−10, 10]^D; r_x = tanh(·) lies in [−1, 1].
    Lower level:
        ``solvers.SAC`` at a fixed temperature; a step continues it for some thousand environment steps under r_x.
    Upper objective:
        E over pairs of fragments of π of the cross-entropy of the teacher's labels. The teacher is Bradley–Terry on the true reward.
    Observation:
        ``objective`` [1] and ``gap`` [1] (mean soft TD error), float32.
    Reward:
        −(mean cross-entropy of this step's fresh pairs), measured before anything has trained on them.
    Reference value:
        log 2 = .693 for a reward that knows nothing. Known returns of SAC on the true reward: HalfCheetah 9.6k–12.1k, Hopper 2.3k–3.5k
        after a million steps of 1000-step episodes.

    Args:
        env_id: a Gymnasium id with flat observations and bounded continuous actions.
        preset: ``"default"``; ``"demo"`` (minutes on a laptop); ``"tiny"`` (seconds, learns nothing: for checks).
        discount: γ of the follower.
        temperature: τ; None takes the preset's.
        rationality: β of the teacher, per unit of true reward.
        teacher: its other knobs, such as ``{"mistake": 0.1}``; see ``preferences.Teacher``.
        solver: another follower, in place of the preset's.
        device: where networks and replay live.
        render_mode: ``"rgb_array"`` (the follower at work) or ``"ansi"``.

    Raises:
        UnknownName: there is no such preset.
        MissingExtra: the simulator is not installed.

    Version history:
        v0: the first.
    """
    if preset not in PRESETS:
        raise UnknownName("preset", preset, list(PRESETS))
    sizes = PRESETS[preset]
    options: dict[str, Any] = {"horizon": sizes.horizon, "discount": discount, "device": device}
    world = VectorWorld(env_id, **options) if env_id.startswith("Pendulum") else mujoco_world(env_id, **options)
    problem = BilevelProblem(
        world,
        MLPReward.for_world(world, hidden=sizes.reward_hidden),
        Shannon(sizes.temperature if temperature is None else temperature),
        replace(sizes.objective, teacher=Teacher(rationality, **(teacher or {}))),
    )
    return BilevelEnv(problem, sizes.solver if solver is None else solver, solve_on_reset=False, render_mode=render_mode)
