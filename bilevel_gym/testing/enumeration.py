"""L(s, a) of a preference problem by enumeration: what a critic would learn from infinitely many fragments."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel_gym.types import Problem

__all__ = ["enumerated_critic"]


def enumerated_critic(problem: Problem, x: Tensor, policy: Tensor) -> Tensor:
    """The mean of l over all visits of (s, a) in a fragment, under the policy (mathematics §5); 0 where it is never visited.

    Args:
        problem: a small table with a ``PreferenceObjective`` that cuts at the start.
        x: [D].
        policy: [S, A].

    Returns:
        [S, A]. Cost: O(U²), U kinds of fragments.

    Raises:
        UnsupportedProblem: there are too many fragments.
    """
    every = problem.objective.fragments(problem, x)
    law, chances = every.law(policy), every.probability(policy)
    loss = problem.objective.pair_losses(problem, x, every)
    mean = (loss @ law + law @ loss) / 2  # a fragment is the first of a pair as often as the second
    cell = (every.states * policy.shape[-1] + every.actions).flatten()
    mass = (chances[:, None] * every.alive).flatten()
    visits = torch.zeros(policy.numel(), dtype=policy.dtype, device=policy.device).index_add_(0, cell, mass)
    total = torch.zeros_like(visits).index_add_(0, cell, mass * mean[every.kind][:, None].expand_as(every.alive).flatten())
    return torch.where(visits > 0, total / visits.clamp_min(1e-300), 0.0).view(policy.shape)
