"""Pairs that nothing trains on: who plays them, and what is measured on them."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.frames import concatenate_states
from bilevel_gym.objectives.playing import play, with_truth
from bilevel_gym.types import Trajectory, World

__all__ = ["accuracy", "correlation", "from_random_to_expert"]

POLICIES = 16
"""Of random quality."""


def from_random_to_expert(
    world: World, experts: Sequence[Any], *, pairs: int, steps: int, generator: torch.Generator
) -> tuple[Trajectory, int]:
    """What random policies play, and as much by experts, where there are any; and the environment steps that this took.

    Args:
        world: where.
        experts: policies, or trajectories [N, T] of theirs, with true rewards; each has the same share.
        pairs: that will be cut out of it; from 25 on there are four trajectories of each random policy.
        steps: T of each trajectory.
        generator: the source of policies and trajectories.

    Raises:
        UnsupportedProblem: there are no true rewards.
        InvalidProblem: an expert's trajectories are too short.
    """
    share = min(ceil(pairs / 8), 4)
    played = [play(world, world.exploratory(generator), share, steps, generator) for _ in range(POLICIES)]
    spent = sum(one.alive.numel() for one in played)
    for expert in experts:
        count = ceil(POLICIES * share / len(experts))
        if isinstance(expert, Trajectory):
            played.append(_some(with_truth(expert), count, steps, generator))
        else:
            played.append(play(world, expert, count, steps, generator))
            spent += played[-1].alive.numel()
    return Trajectory(**{name: concatenate_states([getattr(one, name) for one in played]) for name in _columns(*played)}), spent


def correlation(learned: Tensor, truth: Tensor) -> float:
    """Pearson's; 0 where one of the two does not vary, as NaN would make equal runs look unequal: [n], [n]."""
    learned, truth = (values.double() - values.double().mean() for values in (learned, truth))
    scale = learned.norm() * truth.norm()
    return float(learned @ truth / scale) if float(scale) > 0.0 else 0.0


def accuracy(logit: Tensor, outcome: Tensor) -> float:
    """The share of decided pairs that r_x ranks as the label does; ½ where nothing is decided: [M], [M]."""
    decided = (outcome != 0.5) & ~outcome.isnan()
    if not bool(decided.any()):
        return 0.5
    agreement = logit.sign() * (outcome - 0.5).sign()  # 1 where the order is right, 0 where r_x knows of none
    return float((0.5 + 0.5 * agreement)[decided].mean())


def _some(trajectories: Trajectory, count: int, steps: int, generator: torch.Generator) -> Trajectory:
    """So many of given trajectories, and of each so many steps."""
    rows, length = trajectories.alive.shape
    if length < steps:
        raise InvalidProblem(
            f"the experts' trajectories have {length} steps: the held-out set cuts its fragments from {steps}, give as many"
        )
    chosen = torch.randint(rows, (count,), generator=generator, device=generator.device)
    return Trajectory(**{name: getattr(trajectories, name)[chosen][:, :steps] for name in _columns(trajectories)})


def _columns(*played: Trajectory) -> tuple[str, ...]:
    """What all of them have for each step."""
    return ("states", "actions", "alive", "rewards", *(() if any(one.terms is None for one in played) else ("terms",)))
