"""``bilevel/RewardTerms-v0``: weigh the parts of a MuJoCo task's reward so that the follower runs, and does not waste its strength."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bilevel_gym.arguments import checked
from bilevel_gym.envs.bilevel_env import BilevelEnv
from bilevel_gym.envs.wrap import wrap_env
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.rewards import RewardTerms
from bilevel_gym.types import LowerSolver, Trajectory
from bilevel_gym.worlds import mujoco_world

__all__ = ["RunningLightly", "reward_terms"]

VELOCITY = "x_velocity"
"""What the tasks call the forward velocity, in metres a second."""


@dataclass(frozen=True)
class RunningLightly:
    """Σ_t γ^t (forward velocity − effort·‖a‖²) of each trajectory: the designer's metric.

    Args:
        column: of the forward velocity among the terms.
        discount: γ.
        effort: what a unit of ‖a‖² costs, in metres a second.
    """

    column: int
    discount: float
    effort: float

    def __call__(self, played: Trajectory) -> Tensor:
        """[N, T] → [N]."""
        assert played.terms is not None
        gained = played.terms[..., self.column] - self.effort * played.actions.square().sum(-1)
        time = torch.arange(gained.shape[-1], dtype=gained.dtype, device=gained.device)
        total: Tensor = (self.discount**time * played.alive * gained).sum(-1)
        return total


@checked
def reward_terms(
    *,
    env_id: str = "HalfCheetah-v5",
    preset: str = "default",
    horizon: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    discount: float = 0.99,
    temperature: float = 0.2,
    effort: float = 0.1,
    scale: float | None = None,
    solver: LowerSolver | None = None,
    device: str = "cpu",
    render_mode: str | None = None,
) -> BilevelEnv:
    """Reward design on a MuJoCo task: shares of the named parts of its own reward.

    Description:
        The v5 tasks report the parts of their reward in ``info``: progress, the cost of control, survival, contacts. The leader shares
        out weights among them; the follower maximises the mixture plus entropy; and the designer looks at what it does by a measure of
        its own. Episodes have a fixed length: a fall ends none.
    x:
        A logit for each reported part whose name begins with ``reward_``, in [−10, 10]^K, near 0 at first; the weights are
        ``scale``·softmax(x). At x = 0, with the default scale K, the mixture is the plain sum.
    Lower level:
        ``solvers.SAC`` at a fixed temperature; a step continues it for some thousand environment steps.
    Upper objective:
        −E Σ_t γ^t (forward velocity − effort·‖a‖²) over an episode, a mean over trajectories of π. It does not depend on x but through π.
        r_x is read from steps (s, a, s') that were made, so of the sensitivities only ``"critic"`` and ``"rollout"`` apply.
    Observation:
        ``objective`` [1] and ``gap`` [1] (mean soft TD error), and ``x`` [K], float32.
    Reward:
        the mean over this step's trajectories of Σ_t γ^t (forward velocity − effort·‖a‖²).
    Reference value:
        none is known. Where only the weights of progress and control matter, φ depends on their ratio and on the temperature alone.

    Args:
        env_id: a v5 task that reports ``x_velocity``: HalfCheetah, Hopper, Walker2d, Ant, Swimmer, Humanoid.
        preset: ``"default"``; ``"demo"`` and ``"study"`` (minutes on a laptop); ``"tiny"`` (seconds, learns nothing: for checks).
        horizon: steps of an episode; None takes the task's own time limit, or the preset's where that is shorter.
        env_kwargs: arguments of the task.
        discount: γ of the follower and of the designer.
        temperature: τ, in units of the task's reward of a step; .2 is that of SAC on these tasks (see ``agents.sac``).
        effort: what a unit of ‖a‖² costs the designer.
        scale: the sum of the weights; None takes K.
        solver: another follower, in place of the preset's.
        device: where networks and replay live.
        render_mode: ``"rgb_array"`` (the follower at work) or ``"ansi"``.

    Raises:
        UnknownName: there is no such preset.
        MissingExtra: MuJoCo is not installed.
        InvalidProblem: the task reports no forward velocity, or no parts of its reward; or a number is out of range.

    Version history:
        v0: the first.
    """
    if not 0.0 <= effort < float("inf"):
        raise InvalidProblem(f"effort is {effort}: it is a price, not negative and finite, such as 0.1")
    parts = _parts(env_id, dict(env_kwargs or {}))
    reported = (*parts, VELOCITY)
    return wrap_env(
        env_id,
        reward=RewardTerms(parts, reported=reported, scale=scale, device=device),
        objective=RunningLightly(len(parts), discount, effort),
        terms=reported,
        preset=preset,
        horizon=horizon,
        env_kwargs=env_kwargs,
        discount=discount,
        temperature=temperature,
        solver=solver,
        device=device,
        render_mode=render_mode,
    )


def _parts(env_id: str, env_kwargs: dict[str, Any]) -> tuple[str, ...]:
    """The parts of its reward that a task reports, in the order of its first step."""
    world = mujoco_world(env_id, horizon=1, **env_kwargs)
    simulation = world.open(1, seed=0)
    action = world.uniform().sample(simulation.observations, torch.Generator().manual_seed(0))
    try:
        info = simulation.env.step(action.numpy())[4]
    finally:
        simulation.close()
    info = info.get("final_info", info)  # an episode of one step has ended with it
    parts = tuple(name for name in info if name.startswith("reward_"))
    if VELOCITY not in info or not parts:
        raise InvalidProblem(
            f"{env_id} reports {sorted(name for name in info if name[0] != '_')}: the designer needs {VELOCITY} and parts of the reward; take a task that runs, such as HalfCheetah-v5"
        )
    return parts
