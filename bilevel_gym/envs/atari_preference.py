"""``bilevel/{BeamRider,Pong,…}Preference-v0`` and ``bilevel/AtariPreference-v0``: learn the reward of a game from comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bilevel_gym.arguments import checked
from bilevel_gym.envs.bilevel_env import BilevelEnv
from bilevel_gym.envs.wrap import wrap_env
from bilevel_gym.types import LowerSolver

__all__ = ["atari_preference"]


@checked
def atari_preference(
    *,
    game: str,
    preset: str = "default",
    horizon: int | None = None,
    full_action_space: bool = False,
    sticky: float = 0.0,
    native: bool = True,
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
    """Reward learning from preferences on an Atari game, from pixels.

    Description:
        The leader never sees the score. It shows a teacher pairs of clips of what the follower does, and learns from the answers. The
        follower maximises r_x plus entropy. Games are endless (``worlds.AtariWorld``): lost lives and ends of games are hidden, so that
        they tell nothing about the reward.
    x:
        The flat parameter vector of a convolutional network on the last four frames, 84×84, with an output for each action, in the box
        [−10, 10]^D; r_x = tanh(·) lies in [−1, 1].
    Lower level:
        ``solvers.DiscreteSAC`` with the Nature CNN at a fixed temperature; a step continues it for some thousand environment steps.
    Upper objective:
        E over pairs of clips of 25 steps of π of the cross-entropy of the teacher's labels. The teacher is Bradley–Terry on the score.
    Observation:
        ``objective`` [1] and ``gap`` [1] (mean soft TD error), float32.
    Reward:
        −(mean cross-entropy of this step's fresh pairs), measured before anything has trained on them.
    Reference value:
        log 2 = .693 for a reward that knows nothing. Known returns of discrete SAC on the score, a game: after five million steps BeamRider
        8659±1555, Pong 19.2, Breakout 344; after 100,000 BeamRider ≈ 400, Seaquest ≈ 212, SpaceInvaders ≈ 161, Pong ≈ −20.

    The preset ``"aistats2025"`` has the settings of the SoBiRL authors' released code, and so has the agent with these arguments:

        bilevel-gym train bilevel/BeamRiderPreference-v0 --preset aistats2025 --set device=cuda --steps 400 --agent sobirl
            --agent-set sensitivity=one_step --agent-set stale=true --agent-set delay=10 --agent-set clip=null
            --agent-set weight_decay=0.01 --agent-set updates_per_step=null --agent-set warmup_updates=5120

    That is four million steps of the follower, 3,000 labels (the teacher and the true return see rewards clipped to [−1, 1]), an update of x
    for each batch of the queue in an upper step, and 512 times the ten batches of the first 600 pairs before it. It is made for a GPU.
    Other than there: clips come from episodes played for the evaluation, 4,000 steps of each upper step that are not the follower's; the
    batch norm's statistics are measured at each x, and are no running averages; batches of the queue are drawn with replacement; the
    weight decay is torch's default of AdamW, as the paper names none; nothing is divided by 255 twice.

    Args:
        game: such as ``"BeamRider"``; any that ale-py knows.
        preset: ``"default"``; ``"demo"`` (smaller networks, half an hour on one core, see ``benchmarks/atari.py``); ``"tiny"`` (seconds,
            learns nothing: for checks); ``"aistats2025"``.
        horizon: steps of an episode, four emulator frames each; None takes the preset's.
        full_action_space: all 18 actions, or those that do something in this game.
        sticky: the probability that the emulator repeats the last action instead.
        native: whether ale-py's threads play the follower's games, or emulators in turn, with which a resumed run is bit for bit the one
            that never stopped (see ``worlds.AtariWorld``).
        discount: γ of the follower.
        temperature: τ; None takes the preset's.
        rationality: β of the teacher, per point.
        teacher: its other knobs, such as ``{"mistake": 0.1}``; see ``preferences.Teacher``. In ``"default"`` and ``"demo"`` clips of equal
            score count as equal, half of all pairs, unless ``{"equal_within": 0.0}`` says otherwise.
        members: networks in an ensemble, whose mean is r_x.
        query: how further pairs are chosen, such as ``{"rule": "disagreement", "pairs": 8}``; see ``preferences.Query``. None chooses none.
        budget: labels in all, those of the held-out set left out; None does not count.
        half_rate: the step at which half as many labels are asked for as at first; None keeps the rate constant.
        comparisons: a file that the queue starts with, such as ``preferences.save_comparisons`` writes.
        experts: names of Minari datasets, whose episodes half of the held-out set is cut from; see ``preferences.from_minari``.
        objective: sizes of the upper level that are not the preset's, such as ``{"length": 25, "pairs": 8}``: of ``length``, ``pairs``,
            ``initial_pairs``, ``capacity``, ``cut``, ``trajectories``, ``steps`` and ``held_out_pairs``; see ``objectives.PreferenceObjective``.
        solver: another follower, in place of the preset's; ``"soft_q"`` is ``solvers.SoftQ`` in its sizes.
        device: where networks and replay live.
        render_mode: ``"rgb_array"`` (the screen) or ``"ansi"``.

    Raises:
        UnknownName: there is no such preset, game, knob, rule or size.
        UnsupportedProblem: one network is asked for disagreement.
        CheckpointError: no such file of comparisons, or no such dataset.
        MissingExtra: ale-py is not installed.
        InvalidProblem: a number is out of range.

    Version history:
        v0: the first.
    """
    return wrap_env(
        f"ALE/{game}-v5",
        objective=objective or "preference",
        preset=preset,
        horizon=horizon,
        env_kwargs={"full_action_space": full_action_space, "sticky": sticky, "native": native},
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
