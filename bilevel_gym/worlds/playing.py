"""Trajectories of a tabular policy."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.numerics import Transitions
from bilevel_gym.transitions import SparseTransition
from bilevel_gym.types import Trajectory

__all__ = ["play", "play_on"]


def play(
    transition: Transitions,
    start: Tensor,
    true_reward: Tensor | None,
    policy: Tensor,
    trajectories: int,
    steps: int,
    generator: torch.Generator,
) -> Trajectory:
    """Draw trajectories of a tabular policy, all of them at once.

    Args:
        transition: [S, A, S], dense or sparse, sub-stochastic rows end the episode.
        start: [S].
        true_reward: [S, A] or None.
        policy: [S, A].

    Returns:
        [N, T] states and actions. Cost: O(T·N·S), O(T·N·U) where a state reaches U others.
    """
    _check_single(transition, policy)
    states = torch.multinomial(start, trajectories, replacement=True, generator=generator)
    return play_on(transition, true_reward, policy, states, steps, generator)


def play_on(
    transition: Transitions,
    true_reward: Tensor | None,
    policy: Tensor,
    states: Tensor,
    steps: int | Tensor,
    generator: torch.Generator,
    actions: Tensor | None = None,
) -> Trajectory:
    """Draw trajectories of a tabular policy from given states, all of them at once.

    Args:
        transition: [S, A, S], dense or sparse, sub-stochastic rows end the episode.
        true_reward: [S, A] or None.
        policy: [S, A].
        states: [N] where each begins.
        steps: how many for all, or [N] for each; T is the largest.
        generator: the source of the draws.
        actions: [N] what each plays first; None draws that, too.

    Returns:
        [N, T] states and actions, not ``alive`` past the end of the episode or one's own number of steps. Cost: O(T·N·S), O(T·N·U) where a state reaches U others.
    """
    _check_single(transition, policy)
    weights, successors = (
        (transition.probability, transition.successors) if isinstance(transition, SparseTransition) else (transition, None)
    )
    _, choices, count = weights.shape
    ended = 1.0 - weights.sum(-1, keepdim=True)
    moves = torch.cat([weights, ended.clamp_min(0.0)], -1).flatten(0, 1)
    limit = torch.as_tensor(steps, device=transition.device).expand(states.shape)
    order = limit.argsort(descending=True, stable=True)  # those that still play are a prefix, and nothing is drawn for the others
    playing = (limit[:, None] > torch.arange(int(limit.max()), device=limit.device)).sum(0).tolist()
    shape = (len(states), len(playing))
    visited, chosen = states.new_zeros(shape), states.new_zeros(shape)
    living = torch.zeros(shape, dtype=torch.bool, device=states.device)
    state, alive = states[order], torch.ones_like(living[:, 0])
    for time, number in enumerate(playing):
        state, alive = state[:number], alive[:number]
        first = actions[order] if actions is not None and time == 0 else None
        action = torch.multinomial(policy[state], 1, generator=generator).squeeze(-1) if first is None else first
        visited[:number, time], chosen[:number, time], living[:number, time] = state, action, alive
        drawn = torch.multinomial(moves[state * choices + action], 1, generator=generator).squeeze(-1)
        alive = alive & (drawn < count)
        following = drawn if successors is None else successors[state, drawn.clamp_max(count - 1)]
        state = torch.where(alive, following, state)
    back = order.argsort()
    visited, chosen, living = visited[back], chosen[back], living[back]
    rewards = None if true_reward is None else true_reward[visited, chosen] * living
    return Trajectory(visited, chosen, living, rewards)


def _check_single(transition: Transitions, policy: Tensor) -> None:
    if transition.ndim != 3 or policy.ndim != 2:
        raise InvalidProblem("trajectories are drawn for one problem at a time, not for a batch: take one of them out")
