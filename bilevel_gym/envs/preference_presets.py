"""Sizes of the preference tasks on simulators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypedDict

from bilevel_gym.arguments import build, check_names, checked
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.objectives import PreferenceObjective
from bilevel_gym.preferences import Query, Teacher, from_minari, load_comparisons
from bilevel_gym.problem import BilevelProblem
from bilevel_gym.rewards.convolutions import LAYERS, Convolution
from bilevel_gym.solvers import SAC, DiscreteSAC
from bilevel_gym.types import World

__all__ = ["FLAT", "PIXELS", "PreferenceOptions", "Preset", "asking", "choose", "comparing"]


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
    reward_layers: tuple[Convolution, ...] = LAYERS
    """The convolutions of r_x, where it reads pixels."""
    teacher: Mapping[str, float] = field(default_factory=dict)
    """Knobs of the teacher beside its rationality."""

    @property
    def trajectories(self) -> int:
        """Trajectories of an evaluation."""
        assert self.objective.trajectories is not None
        return self.objective.trajectories

    def follower(self, world: World) -> SAC | DiscreteSAC:
        """The solver that takes the world's actions.

        Raises:
            InvalidProblem: there is none.
        """
        solver = self.discrete if hasattr(world, "action_count") else self.continuous
        if solver is None:
            raise InvalidProblem(
                "no follower here acts in a box and sees pictures: give a solver, such as solvers.from_sb3(SAC, policy='CnnPolicy'), or observations in a flat box"
            )
        return solver


_USUAL = PreferenceObjective(
    length=25, pairs=16, initial_pairs=64, capacity=3000, cut="anywhere", trajectories=8, steps=250, held_out_pairs=256
)
_SLOW: dict[str, Any] = {"steps": 4000, "learning_starts": 2000}
_QUICK: dict[str, Any] = {
    "steps": 2000,
    "num_envs": 2,
    "update_every": 2,
    "updates_per_step": 0.5,
    "learning_starts": 2000,
    "batch_size": 128,
    "learning_rate": 1e-3,
}
_TINY: dict[str, Any] = {"steps": 50, "learning_starts": 20, "batch_size": 16, "hidden": (8, 8), "capacity": 1000}
_ATARI: dict[str, Any] = {
    "steps": 10_000,
    "updates_per_step": 0.25,
    "learning_starts": 20_000,
    "batch_size": 64,
    "hidden": (512,),
    "learning_rate": 1e-4,
    "adam_epsilon": 1e-4,
}

_SAME = {"equal_within": 0.5}
"""Half of all pairs of clips have the same score: a teacher says so, and does not flip a coin."""

FLAT: dict[str, Preset] = {
    "default": Preset(
        horizon=1000,
        temperature=0.05,
        reward_hidden=(64, 64),
        continuous=SAC(**_SLOW),
        discrete=DiscreteSAC(**_SLOW, batch_size=128, hidden=(128, 128), update_every=2, updates_per_step=0.5),
        objective=replace(_USUAL, length=50, trajectories=4, steps=1000),
    ),
    "demo": Preset(
        horizon=250,
        temperature=0.05,
        reward_hidden=(64, 64),
        continuous=SAC(**_QUICK, hidden=(128, 128)),
        discrete=DiscreteSAC(**_QUICK, hidden=(64, 64)),
        objective=_USUAL,
    ),
    "study": Preset(
        horizon=250,
        temperature=0.05,
        reward_hidden=(64, 64),
        continuous=SAC(steps=1000, num_envs=2, update_every=2, learning_starts=1000, batch_size=64, hidden=(128, 128), learning_rate=1e-3),
        discrete=DiscreteSAC(
            steps=1000, num_envs=2, update_every=2, learning_starts=1000, batch_size=64, hidden=(64, 64), learning_rate=1e-3
        ),
        objective=PreferenceObjective(length=25, pairs=16, initial_pairs=32, capacity=3000, cut="anywhere", trajectories=4, steps=250),
    ),
    "tiny": Preset(
        horizon=50,
        temperature=0.1,
        reward_hidden=(8, 8),
        continuous=SAC(**_TINY),
        discrete=DiscreteSAC(**_TINY),
        objective=PreferenceObjective(length=10, pairs=4, capacity=100, cut="anywhere", trajectories=4, steps=50, held_out_pairs=8),
    ),
}
"""For flat observations. ``study`` is what ``benchmarks/preference.py`` compares the agents in, with held-out pairs of its own."""

PIXELS: dict[str, Preset] = {
    "default": Preset(
        horizon=1000,
        temperature=0.1,
        reward_hidden=(64,),
        teacher=_SAME,
        discrete=DiscreteSAC(**_ATARI, num_envs=4),
        objective=replace(_USUAL, initial_pairs=128, steps=500),
    ),
    "demo": Preset(
        horizon=500,
        temperature=0.1,
        reward_hidden=(32,),
        reward_layers=(Convolution(16, 8, 4), Convolution(16, 4, 2)),
        teacher=_SAME,
        discrete=DiscreteSAC(
            steps=1000,
            num_envs=4,
            update_every=4,
            updates_per_step=0.0625,
            learning_starts=1000,
            batch_size=32,
            hidden=(64,),
            learning_rate=3e-4,
            capacity=50_000,
        ),
        objective=replace(_USUAL, pairs=32, capacity=1500, trajectories=4),
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
        discrete=DiscreteSAC(**_ATARI, update_every=4, anneal_steps=8_000_000, polyak=1.0, target_every=2000, target_entropy=0.89),
        objective=replace(_USUAL, pairs=6, initial_pairs=600, trajectories=4, steps=1000),
        authors=True,
    ),
}
"""For stacks of frames; an update is due every fourth environment step, as in the published runs, and less often in ``demo``."""


_SIZES = ("length", "pairs", "initial_pairs", "capacity", "cut", "trajectories", "steps", "held_out_pairs")
"""What of a ``PreferenceObjective`` the argument ``objective`` of an id may change."""


@checked
def asking(
    *,
    rationality: float = 1.0,
    teacher: Mapping[str, float] | None = None,
    query: Mapping[str, Any] | None = None,
    budget: int | None = None,
    half_rate: float | None = None,
    objective: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Who is asked about what, and how often, out of arguments that are JSON: options of a ``PreferenceObjective``.

    Args:
        rationality: β of the teacher.
        teacher: its other knobs.
        query: options of a ``preferences.Query``.
        budget: labels in all.
        half_rate: the evaluation at which half as many are asked for.
        objective: its sizes, where they are not those of the preset.

    Raises:
        UnknownName: a knob, a rule or a size that does not exist.
        InvalidProblem: a value that is out of range.
    """
    check_names("size of the objective", objective or {}, _SIZES)
    return {
        "teacher": build("teacher", partial(Teacher, rationality), teacher or {}),
        "query": None if query is None else build("query", Query, query),
        "budget": budget,
        "half_rate": half_rate,
        **(objective or {}),
    }


def choose(presets: Mapping[str, Preset], name: str, horizon: int | None, longest: int | None) -> Preset:
    """A preset by its name, with episodes of the length that is asked for, or that the task has.

    Args:
        presets: the table.
        name: a key of it.
        horizon: steps of an episode; None takes the preset's, but no more than ``longest``.
        longest: the task's own time limit; None where it has none.

    Raises:
        UnknownName: there is no such preset.
    """
    check_names("preset", [name], presets)
    sizes = presets[name]
    return replace(sizes, horizon=horizon if horizon is not None else min(sizes.horizon, longest or sizes.horizon))


class PreferenceOptions(TypedDict, total=False):
    """What tasks with comparisons take; see ``gym_preference`` for each."""

    rationality: float
    teacher: Mapping[str, float] | None
    query: Mapping[str, Any] | None
    budget: int | None
    half_rate: float | None
    comparisons: str | None
    experts: Sequence[str]


@checked
def comparing(
    problem: BilevelProblem,
    sizes: Preset,
    *,
    comparisons: str | None = None,
    experts: Sequence[str] = (),
    teacher: Mapping[str, float] | None = None,
    **asked: Any,
) -> PreferenceObjective:
    """The upper level of a preset, with what is asked for, in episodes of its horizon.

    Args:
        problem: world and reward; its objective does not count.
        sizes: of all else.
        comparisons: a file that the queue starts with (see ``preferences.load_comparisons``), or None.
        experts: names of Minari datasets, whose episodes half of the held-out set is cut from.
        teacher: its knobs that are not the preset's.
        **asked: see ``asking``.

    Raises:
        UnknownName: a knob, a rule or a size that does not exist.
        CheckpointError: there is no such file, or no such dataset.
        UnsupportedProblem: one network is asked for disagreement.
        InvalidProblem: comparisons or experts are of another world, or of other lengths, or an episode is shorter than a fragment.
    """
    given = asking(teacher={**sizes.teacher, **(teacher or {})}, **asked)
    objective = replace(sizes.objective, **{**given, "steps": None})
    if sizes.horizon < objective.length:
        raise InvalidProblem(
            f"episodes of {sizes.horizon} steps are shorter than a fragment, which has {objective.length}: make horizon larger"
        )
    usual = sizes.objective.steps
    steps = given.get("steps", usual and max(usual, objective.length))
    objective = replace(objective, steps=steps)  # which refuses what is no number, or too few
    objective = replace(objective, steps=steps and min(steps, sizes.horizon))
    played, device = objective.episode_steps(problem), problem.reward.device
    shown = [from_minari(name, problem.world, steps=played, device=device) for name in experts]
    known = None if comparisons is None else load_comparisons(comparisons, device=device)[0]
    objective = replace(objective, comparisons=known, experts=shown)
    objective.check(problem)
    return objective
