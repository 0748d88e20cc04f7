"""All fragments that a tabular world can show, with their probabilities."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bilevel_gym.errors import UnsupportedProblem
from bilevel_gym.numerics import Transitions
from bilevel_gym.transitions import SparseTransition

__all__ = ["LARGEST_ENUMERATION", "Enumeration", "enumerate_fragments"]

LARGEST_ENUMERATION = 4096
"""Fragments at most: pairs of them are a square of this side."""


class Enumeration(NamedTuple):
    """F fragments of H steps."""

    states: Tensor
    """[F, H]."""
    actions: Tensor
    """[F, H]."""
    alive: Tensor
    """[F, H] False from the step after the episode's end on."""
    probability: Tensor
    """[F] under the policy, differentiable in it; they sum to one."""


def enumerate_fragments(transition: Transitions, start: Tensor, policy: Tensor, length: int) -> Enumeration:
    """Every fragment of H steps from the reset, whose dynamics have a positive probability.

    Args:
        transition: [S, A, S], dense or sparse, sub-stochastic rows end the episode.
        start: [S].
        policy: [S, A].
        length: H.

    Returns:
        at most (S·A)^H fragments.

    Raises:
        UnsupportedProblem: there are more than ``LARGEST_ENUMERATION``; the message says to sample instead.
    """
    if transition.ndim != 3 or policy.ndim != 2:
        raise UnsupportedProblem("fragments are enumerated for one problem at a time, not for a batch")
    actions = transition.shape[1]
    state = start.nonzero().squeeze(-1)
    alive = torch.ones_like(state, dtype=torch.bool)
    empty = state[:, None][:, :0]
    found = Enumeration(empty, empty, empty.bool(), start[state])
    for step in range(length):
        # Each live fragment takes every action; a dead one stands still, once.
        row, action = torch.cartesian_prod(
            torch.arange(len(state), device=state.device), torch.arange(actions, device=state.device)
        ).unbind(-1)
        kept = alive[row] | (action == 0)
        row, action = row[kept], action[kept]
        chance = torch.where(alive[row], policy[state[row], action], torch.ones_like(policy[state[row], action]))
        found = Enumeration(
            torch.cat([found.states[row], state[row, None]], 1),
            torch.cat([found.actions[row], action[:, None]], 1),
            torch.cat([found.alive[row], alive[row, None]], 1),
            found.probability[row] * chance,
        )
        state, alive = state[row], alive[row]
        if len(state) > LARGEST_ENUMERATION:
            raise UnsupportedProblem(
                f"there are more than {LARGEST_ENUMERATION} fragments of {length} steps: shorten them, or use the sampled estimators"
            )
        if step + 1 < length:
            found, state, alive = _move(found, transition, state, action, alive)
    return found


def _move(found: Enumeration, transition: Transitions, state: Tensor, action: Tensor, alive: Tensor) -> tuple[Enumeration, Tensor, Tensor]:
    """Follow every possible transition, the end of the episode (one more column) among them."""
    moves = transition.rows(state, action) if isinstance(transition, SparseTransition) else transition[state, action]
    ended = (1.0 - moves.sum(-1, keepdim=True)).clamp_min(0.0)
    chances = torch.cat([moves, torch.where(ended < 1e-12, 0.0, ended)], -1)
    count = moves.shape[-1]
    stay = torch.zeros_like(chances[0])
    stay[count] = 1.0
    chances = torch.where(alive[:, None], chances, stay)
    row, following = chances.nonzero().unbind(-1)
    moved = Enumeration(found.states[row], found.actions[row], found.alive[row], found.probability[row] * chances[row, following])
    lives = following < count
    return moved, torch.where(lives, following, state[row]), lives
