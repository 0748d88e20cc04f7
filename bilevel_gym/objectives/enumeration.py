"""All fragments that a tabular world can show, with their probabilities."""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from bilevel_gym.errors import UnsupportedProblem
from bilevel_gym.numerics import Transitions
from bilevel_gym.transitions import SparseTransition

__all__ = ["LARGEST_ENUMERATION", "Enumeration", "enumerate_fragments", "fragments_of"]

LARGEST_ENUMERATION = 4096
"""Fragments at most."""


class Enumeration(NamedTuple):
    """F fragments of H steps, of U kinds: a reward r(s, a) tells two of them apart only where they visit other pairs, or as often others.

    A teacher who weighs the steps of a fragment tells more of them apart: those whose weighted visits differ.
    """

    states: Tensor
    """[F, H]."""
    actions: Tensor
    """[F, H]."""
    alive: Tensor
    """[F, H] False from the step after the episode's end on."""
    dynamics: Tensor
    """[F] ρ(s_0) Π_h P(s_{h+1} | s_h, a_h), the factor of the probability that is not the policy's."""
    kind: Tensor
    """[F] which row of ``counts`` each has."""
    counts: Tensor
    """[U, S·A] how often each kind visits each pair."""
    remembered: Tensor
    """[U, S·A] the same, a visit at step h counting γ̃^(H−1−h); all rows differ in one of the two."""

    def probability(self, policy: Tensor) -> Tensor:
        """Of each fragment, differentiable in the policy: [B, S, A] → [B, F], sums to one. Cost: O(BFH)."""
        chances = policy[..., self.states, self.actions]
        return self.dynamics * torch.where(self.alive, chances, 1.0).prod(-1)

    def law(self, policy: Tensor) -> Tensor:
        """Of each kind: [B, S, A] → [B, U]."""
        chances = self.probability(policy)
        return chances.new_zeros(*chances.shape[:-1], len(self.counts)).index_add(-1, self.kind, chances)

    def returns(self, reward: Tensor) -> Tensor:
        """R = Σ_h r(s_h, a_h) of each kind: [B, S, A] → [B, U]."""
        return reward.flatten(-2) @ self.counts.mT

    def seen(self, reward: Tensor) -> Tensor:
        """R and R̃ = Σ_h γ̃^(H−1−h) r(s_h, a_h) of each kind, what a ``Teacher`` compares: [S, A] → [U, 2]."""
        return torch.stack([self.returns(reward), reward.flatten() @ self.remembered.mT], -1)


_KNOWN: WeakKeyDictionary[Any, dict[tuple[int, float], Enumeration]] = WeakKeyDictionary()
"""Enumerations of worlds whose P does not depend on x, for as long as the world lives."""


def fragments_of(world: Any, x: Tensor, length: int, discount: float = 1.0) -> Enumeration:
    """The enumeration of a world at x, remembered where it is the same for every x.

    Args:
        world: a tabular one.
        x: [D]; [B, D] where P does not depend on it.
        length: H.
        discount: γ̃.

    Raises:
        UnsupportedProblem: there are too many fragments, or there is more than one P.
    """
    if world.depends_on_x:
        return enumerate_fragments(world.transition_at(x), world.start, length, discount)
    known = _KNOWN.setdefault(world, {})
    if (length, discount) not in known:
        known[length, discount] = enumerate_fragments(world.transition_at(x), world.start, length, discount)
    return known[length, discount]


def enumerate_fragments(transition: Transitions, start: Tensor, length: int, discount: float = 1.0) -> Enumeration:
    """Every fragment of H steps from the reset, whose dynamics have a positive probability.

    Args:
        transition: [S, A, S], dense or sparse, sub-stochastic rows end the episode.
        start: [S].
        length: H.
        discount: γ̃ of a myopic teacher, by which kinds are told apart too; 1 weighs all steps alike.

    Returns:
        at most (S·A)^H fragments.

    Raises:
        UnsupportedProblem: there are more than ``LARGEST_ENUMERATION``; the message says to sample instead.
    """
    if transition.ndim != 3:
        raise UnsupportedProblem(
            "fragments are enumerated for one P, which a batch of x and policies may share: take one problem out of the batch"
        )
    count, actions, _ = transition.shape
    state = start.nonzero().squeeze(-1)
    alive = torch.ones_like(state, dtype=torch.bool)
    empty = state[:, None][:, :0]
    found = _Begun(empty, empty, empty.bool(), start[state])
    for step in range(length):
        # Each live fragment takes every action; a dead one stands still, once.
        row, action = torch.cartesian_prod(
            torch.arange(len(state), device=state.device), torch.arange(actions, device=state.device)
        ).unbind(-1)
        kept = alive[row] | (action == 0)
        row, action = row[kept], action[kept]
        found = _Begun(
            torch.cat([found.states[row], state[row, None]], 1),
            torch.cat([found.actions[row], action[:, None]], 1),
            torch.cat([found.alive[row], alive[row, None]], 1),
            found.dynamics[row],
        )
        state, alive = state[row], alive[row]
        if len(state) > LARGEST_ENUMERATION:
            raise UnsupportedProblem(
                f"there are more than {LARGEST_ENUMERATION} fragments of {length} steps: shorten them, or use the sampled estimators"
            )
        if step + 1 < length:
            found, state, alive = _move(found, transition, state, action, alive)
    cells, living = found.states * actions + found.actions, found.alive.to(start.dtype)
    ago = torch.arange(length - 1, -1, -1, dtype=start.dtype, device=start.device)
    visits = living.new_zeros(2, len(state), count * actions)
    for visited, weight in zip(visits, (living, living * discount**ago), strict=True):
        visited.scatter_add_(1, cells, weight)
    kinds, kind = visits.transpose(0, 1).unique(dim=0, return_inverse=True)
    return Enumeration(*found, kind, *kinds.unbind(1))


class _Begun(NamedTuple):
    states: Tensor
    actions: Tensor
    alive: Tensor
    dynamics: Tensor


def _move(found: _Begun, transition: Transitions, state: Tensor, action: Tensor, alive: Tensor) -> tuple[_Begun, Tensor, Tensor]:
    """Follow every possible transition, the end of the episode (one more column) among them."""
    moves = transition.rows(state, action) if isinstance(transition, SparseTransition) else transition[state, action]
    ended = (1.0 - moves.sum(-1, keepdim=True)).clamp_min(0.0)
    chances = torch.cat([moves, torch.where(ended < 1e-12, 0.0, ended)], -1)
    count = moves.shape[-1]
    stay = torch.zeros_like(chances[0])
    stay[count] = 1.0
    chances = torch.where(alive[:, None], chances, stay)
    row, following = chances.nonzero().unbind(-1)
    moved = _Begun(found.states[row], found.actions[row], found.alive[row], found.dynamics[row] * chances[row, following])
    lives = following < count
    return moved, torch.where(lives, following, state[row]), lives
