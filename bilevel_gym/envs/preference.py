"""``bilevel/{CartPole,Pendulum,Hopper,…}Preference-v0``: learn a reward from comparisons, the follower is a soft actor-critic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bilevel_gym.arguments import checked
from bilevel_gym.envs.bilevel_env import BilevelEnv
from bilevel_gym.envs.wrap import wrap_env
from bilevel_gym.types import LowerSolver

__all__ = ["gym_preference"]


@checked
def gym_preference(
    *,
    env_id: str,
    preset: str = "default",
    horizon: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    discount: float = 0.99,
    temperature: float | None = None,
    rationality: float = 1.0,
    teacher: Mapping[str, float] | None = None,
    members: int = 1,
    query: Mapping[str, Any] | None = None,
    budget: int | None = None,
    half_rate: float | None = None,
    comparisons: str | None = None,
    experts: Sequence[str] = (),
    objective: Mapping[str, Any] | None = None,
    solver: LowerSolver | str | None = None,
    device: str = "cpu",
    render_mode: str | None = None,
) -> BilevelEnv:
    """Reward learning from preferences on a Gymnasium task.

    Description:
        The leader never sees the true reward. It shows a teacher pairs of fragments of what the follower does, and learns from the
        answers. The follower maximises r_x plus entropy. Episodes have a fixed length: MuJoCo tasks do not end at a fall, and where a
        task ends all the same it starts anew in the same step, which the follower is not told (``worlds.Endless``). So the length of
        an episode tells nothing about the reward. CartPole, whose reward is its length, is paid −1 for each fall instead.
    x:
        The flat parameter vector of a perceptron in the box [−10, 10]^D, on (s, a) where actions are a box, on s with an output for
        each action where they are finitely many; r_x = tanh(·) lies in [−1, 1].
    Lower level:
        ``solvers.SAC`` or ``solvers.DiscreteSAC`` at a fixed temperature; a step continues it for some thousand environment steps.
    Upper objective:
        E over pairs of fragments of π of the cross-entropy of the teacher's labels. The teacher is Bradley–Terry on the true reward.
    Observation:
        ``objective`` [1] and ``gap`` [1] (mean soft TD error), float32.
    Reward:
        −(mean cross-entropy of this step's fresh pairs), measured before anything has trained on them.
    Reference value:
        log 2 = .693 for a reward that knows nothing. Known returns of SAC on the true reward, after a million steps of 1000-step episodes:
        HalfCheetah 9.6k–12.1k, Hopper 2.3k–3.5k, Walker2d 3.6k–5.0k, Ant 3.7k–5.9k.

    Args:
        env_id: a Gymnasium id with flat observations, or numbers, dictionaries and tuples of them, and actions in a bounded box or
            finitely many.
        preset: ``"default"``; ``"demo"`` and ``"study"`` (minutes on a laptop); ``"tiny"`` (seconds, learns nothing: for checks).
        horizon: steps of an episode; None takes the task's own time limit, or the preset's where that is shorter.
        env_kwargs: arguments of the task.
        discount: γ of the follower.
        temperature: τ; None takes the preset's.
        rationality: β of the teacher, per unit of true reward.
        teacher: its other knobs, such as ``{"mistake": 0.1}``; see ``preferences.Teacher``.
        members: networks in an ensemble, whose mean is r_x.
        query: how further pairs are chosen, such as ``{"rule": "disagreement", "pairs": 8}``; see ``preferences.Query``. None chooses none.
        budget: labels in all, those of the held-out set left out; None does not count.
        half_rate: the step at which half as many labels are asked for as at first; None keeps the rate constant.
        comparisons: a file that the queue starts with, such as ``preferences.save_comparisons`` writes.
        experts: names of Minari datasets, whose episodes half of the held-out set is cut from; see ``preferences.from_minari``.
        objective: sizes of the upper level that are not the preset's, such as ``{"length": 25, "pairs": 8}``: of ``length``, ``pairs``,
            ``initial_pairs``, ``capacity``, ``cut``, ``trajectories``, ``steps`` and ``held_out_pairs``; see ``objectives.PreferenceObjective``.
        solver: another follower, in place of the preset's; ``"soft_q"`` is ``solvers.SoftQ`` in its sizes, for finitely many actions.
        device: where networks and replay live.
        render_mode: ``"rgb_array"`` (the follower at work) or ``"ansi"``.

    Raises:
        UnknownName: there is no such preset, knob, rule or size.
        UnsupportedProblem: one network is asked for disagreement.
        CheckpointError: no such file of comparisons, or no such dataset.
        MissingExtra: the simulator is not installed.
        InvalidProblem: observations or actions are of a kind that no network or solver takes, or episodes shorter than fragments.

    Version history:
        v0: the first.
    """
    return wrap_env(
        env_id,
        objective=objective or "preference",
        preset=preset,
        horizon=horizon,
        env_kwargs=env_kwargs,
        discount=discount,
        temperature=temperature,
        members=members,
        solver=solver,
        device=device,
        render_mode=render_mode,
        rationality=rationality,
        teacher=teacher,
        query=query,
        budget=budget,
        half_rate=half_rate,
        comparisons=comparisons,
        experts=experts,
    )
