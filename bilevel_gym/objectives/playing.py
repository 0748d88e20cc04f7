"""What sampled objectives have in common: they play the follower's policy, and count what it earns."""

from __future__ import annotations

from math import ceil, log
from typing import Any

import torch
from torch import Tensor

from bilevel_gym.errors import UnsupportedProblem
from bilevel_gym.numerics import rewards_of
from bilevel_gym.objectives.enumerated_preference import NO_TRUE_REWARD
from bilevel_gym.types import Problem, Trajectory, World

__all__ = ["play", "reward_metrics", "steps_with_tail", "with_truth", "world_at"]


def play(world: World, policy: Any, trajectories: int, steps: int, generator: torch.Generator) -> Trajectory:
    """Trajectories [N, T] with true rewards.

    Raises:
        UnsupportedProblem: the world has none.
    """
    return with_truth(world.rollout(policy, trajectories=trajectories, steps=steps, generator=generator))


def world_at(problem: Problem, x: Tensor) -> World:
    """The world that is played in at x: [D]."""
    world: Any = problem.world
    found: World = world.at(x) if getattr(world, "depends_on_x", False) else world
    return found


def with_truth(played: Trajectory) -> Trajectory:
    """Refuse trajectories without true rewards.

    Raises:
        UnsupportedProblem: there are none.
    """
    if played.rewards is None:
        raise UnsupportedProblem(NO_TRUE_REWARD)
    return played


def steps_with_tail(world: Any, length: int, steps: int | None) -> int:
    """T: as given, or H steps and the tail past them in which γ^t falls to .01; no more than an episode has."""
    discount, horizon = world.discount, getattr(world, "horizon", None)
    wanted = steps or length + (ceil(log(0.01) / log(discount)) if discount > 0 else 0)
    return wanted if horizon is None else min(wanted, horizon)


def reward_metrics(problem: Problem, x: Tensor, trajectories: Trajectory) -> dict[str, float]:
    """What was earned: ``true_return`` and ``learned_return``, the mean undiscounted sums of the world's own reward, and of r_x.

    Where the reward model has a bound (``limit``), also ``reward_saturated``, the share of living steps at which |r_x| is above .95 of it.
    """
    assert trajectories.rewards is not None
    alive, learned = trajectories.alive, rewards_of(problem.reward, x, trajectories)
    metrics = {
        name: float((values * alive).sum(-1).mean())
        for name, values in (("true_return", trajectories.rewards), ("learned_return", learned))
    }
    limit = getattr(problem.reward, "limit", None)
    if limit is not None:
        metrics["reward_saturated"] = float((learned.abs() > 0.95 * limit)[alive].to(torch.float64).mean())
    return metrics
