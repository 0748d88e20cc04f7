"""What a person's tables are checked for before they make a world."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.numerics import Transitions, push_forward

__all__ = ["check_counts", "check_discount", "check_map", "check_rows", "check_start", "check_true_reward", "check_ways", "check_weights"]

CERTAIN = 1e-12
"""Probabilities below it are rounding."""


def check_rows(transition: Tensor, termination: Tensor) -> None:
    """Refuse what is no distribution over the next states and the end: [B, S, A, S] (or lists of successors), [B, S, A]."""
    if termination.shape != transition.shape[:-1]:
        raise InvalidProblem(
            f"termination has shape {tuple(termination.shape)}: it must be {tuple(transition.shape[:-1])}, one number for each state and action"
        )
    finite = bool(transition.isfinite().all()) and bool(termination.isfinite().all())
    if not finite or bool((transition < 0).any()) or bool((termination < -CERTAIN).any()):
        raise InvalidProblem("transition and termination must be probabilities: some are negative or not finite")
    total = transition.sum(-1) + termination
    worst = int((total - 1.0).abs().argmax())
    if abs(float(total.flatten()[worst]) - 1.0) > 1e-8:
        index = tuple(int(i) for i in np.unravel_index(worst, tuple(total.shape)))
        raise InvalidProblem(
            f"transition rows must sum to one together with termination: at (s, a) = {index} the sum is {float(total.flatten()[worst]):.6g}; normalise the row, or give the missing mass as termination"
        )


def check_start(start: Tensor, axes: torch.Size, states: int) -> Tensor:
    """ρ with all leading axes of P, where it had none: [S] or [B, S] → [B, S].

    Args:
        start: as it was given.
        axes: the leading axes of P.
        states: S.
    """
    if start.shape[-1:] != (states,):
        raise InvalidProblem(f"start has shape {tuple(start.shape)}: it must end with [S] = [{states}]")
    if bool((start < 0).any()) or not bool(((start.sum(-1) - 1.0).abs() < 1e-8).all()):
        raise InvalidProblem("start must be a distribution over states: non-negative, with sum one")
    try:
        common = torch.broadcast_shapes(start.shape[:-1], axes)
    except RuntimeError as error:
        raise InvalidProblem(
            f"transition has the leading axes {tuple(axes)} and start {tuple(start.shape[:-1])}: give both for the same problems"
        ) from error
    return start.expand(*common, states).contiguous()


def check_true_reward(reward: Tensor, start: Tensor, actions: int) -> None:
    """Refuse a reward that is not finite, or not a table of this world."""
    if not bool(reward.isfinite().all()):
        raise InvalidProblem("true_reward must be finite: there is a NaN or an infinity in it")
    axes, sizes = start.shape[:-1], (start.shape[-1], actions)
    extra = len(axes) - (reward.ndim - 2)
    fits = extra >= 0 and all(mine in (1, theirs) for mine, theirs in zip(reward.shape[:-2], axes[extra:], strict=True))
    if reward.shape[-2:] != sizes or not fits:
        raise InvalidProblem(
            f"true_reward has shape {tuple(reward.shape)}: it must be {[*axes, *sizes]}, or [S, A] = {list(sizes)} for all"
        )


def check_ways(transition: Transitions, termination: Tensor, start: Tensor) -> None:
    """Refuse a world whose episodes can end, but never from where they start. Cost: O(S²A) for each step of the way."""
    ends = (termination > CERTAIN).any(-1)
    some, reached, before = ends.any(-1), start > 0, None
    while not bool(((reached & ends).any(-1) | ~some).all()):
        if before is not None and torch.equal(reached, before):
            raise InvalidProblem(
                "episodes can end, but in no state that is reached from where they start: move start, open a way to an end, or leave termination out"
            )
        before = reached
        everywhere = reached.unsqueeze(-1).to(start.dtype).expand(*reached.shape, termination.shape[-1])
        reached = reached | (push_forward(transition, everywhere) > 0)


def check_map(moves: np.ndarray, cells: np.ndarray, start: np.ndarray, goals: np.ndarray) -> None:
    """Refuse a start from which no goal is reached, and a goal that is reached from no start; without goals nothing is looked at.

    Args:
        moves: [S, A] where each direction leads.
        cells: [S, 2] row and column of each state.
        start: [S] bool, where episodes start.
        goals: [S] bool, where they end, so that none goes on from there.
    """
    if not goals.any():
        return

    def ahead(states: np.ndarray) -> np.ndarray:
        following = np.zeros_like(states)
        following[moves[states & ~goals]] = True
        return following

    lost = start & ~_closure(goals, lambda states: states[moves].any(-1))
    unreached = goals & ~_closure(start, ahead)
    if lost.any() or unreached.any():
        row, column = cells[lost if lost.any() else unreached][0]
        way = f"from the start ({row}, {column}) to a goal" if lost.any() else f"from any start to the goal ({row}, {column})"
        raise InvalidProblem(f"no way leads {way}: open a wall of the map, or move the mark")


def _closure(states: np.ndarray, further: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The states, and all that are further on: [S] bool."""
    while not np.array_equal(wider := states | further(states), states):
        states = wider
    return states


def check_counts(**counts: int) -> None:
    """Refuse a number of copies, trajectories or steps that is not positive."""
    for name, count in counts.items():
        if count < 1:
            raise InvalidProblem(f"{name} is {count}: it must be at least 1")


def check_weights(weights: Tensor) -> Tensor:
    """Refuse what are no weights of contexts: [C] → [C]."""
    if weights.ndim != 1 or not len(weights) or not bool((weights > 0).all()) or not abs(float(weights.sum()) - 1.0) < 1e-8:
        raise InvalidProblem(
            "context_weights must be [C] positive numbers with sum one, such as [0.5, 0.5]: leave a follower of weight 0 out"
        )
    return weights


def check_discount(discount: Any) -> float:
    """Refuse γ outside of [0, 1)."""
    if not isinstance(discount, Real) or not 0.0 <= float(discount) < 1.0:
        raise InvalidProblem(f"discount is {discount!r}: it must be in [0, 1), the lower level has an infinite horizon; use e.g. 0.99")
    return float(discount)
