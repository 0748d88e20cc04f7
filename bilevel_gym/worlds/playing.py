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
    contexts: Tensor | None = None,
) -> Trajectory:
    """Draw trajectories of a tabular policy from given states, all of them at once.

    Args:
        transition: [S, A, S], dense or sparse, sub-stochastic rows end the episode; [C, S, A, S] or [1, S, A, S] with contexts.
        true_reward: [S, A] or None; [C, S, A] or [1, S, A] with contexts.
        policy: [S, A]; [C, S, A] with contexts.
        states: [N] where each begins.
        steps: how many for all, or [N] for each; T is the largest.
        generator: the source of 2NT draws.
        actions: [N] what each plays first; None draws that, too.
        contexts: [N] whose play each is, on tables with contexts.

    Returns:
        [N, T] states and actions, not ``alive`` past the end of the episode or one's own number of steps, and zeros there. Cost:
        O(T·N·S), or O(T·N·U) where a state reaches U others; nothing for what has ended.
    """
    _check_single(transition, policy, contexts)
    weights, successors = (
        (transition.probability, transition.successors) if isinstance(transition, SparseTransition) else (transition, None)
    )
    choices, count = weights.shape[-2:]
    # The rows of follower c begin at c·S, in flattened tables of cumulated probabilities.
    moves = weights.cumsum(-1).expand(*policy.shape, count).reshape(-1, count)
    chances = policy.cumsum(-1).reshape(-1, choices)
    base = torch.zeros_like(states) if contexts is None else policy.shape[-2] * contexts
    limit = torch.as_tensor(steps, device=states.device).expand(states.shape)
    shape = (len(states), int(limit.max()))
    visited, chosen = states.new_zeros(shape), states.new_zeros(shape)
    living = torch.zeros(shape, dtype=torch.bool, device=states.device)
    # Drawn for all, whoever ends when, and for first actions that are given: plays with equal generators stay comparable.
    noise = torch.rand(shape[1], 2, shape[0], 1, generator=generator, dtype=policy.dtype, device=states.device)
    going, state = torch.arange(len(states), device=states.device), states
    for time in range(shape[1]):
        row = base[going] + state
        action = actions if actions is not None and time == 0 else _pick(chances[row], noise[time, 0, going]).clamp_max(choices - 1)
        visited[going, time], chosen[going, time], living[going, time] = state, action, True
        drawn = _pick(moves[row * choices + action], noise[time, 1, going])
        kept = (drawn < count) & (limit[going] > time + 1)
        going, state, drawn = going[kept], state[kept], drawn[kept]
        if not len(going):
            break
        state = drawn if successors is None else successors[state, drawn]
    if true_reward is None:
        return Trajectory(visited, chosen, living, None, contexts)
    whose = () if contexts is None else (contexts[:, None],)
    return Trajectory(visited, chosen, living, true_reward.expand(policy.shape)[(*whose, visited, chosen)] * living, contexts)


def _pick(cumulated: Tensor, uniform: Tensor) -> Tensor:
    """The first column whose cumulated probability exceeds a uniform number, K where none does, as at an end: [n, K], [n, 1] → [n].

    It takes one random number a row, where ``torch.multinomial`` takes K.
    """
    return torch.searchsorted(cumulated, uniform, right=True).squeeze(-1)


def _check_single(transition: Transitions, policy: Tensor, contexts: Tensor | None = None) -> None:
    axes = 2 if contexts is None else 3
    if transition.ndim != axes + 1 or policy.ndim != axes:
        raise InvalidProblem("trajectories are drawn for one problem at a time, not for a batch: take one of them out")
