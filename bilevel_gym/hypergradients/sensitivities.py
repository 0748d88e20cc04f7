"""Σ n · ∇(Q* − V*) along sampled fragments, each way as one scalar surrogate and one backward pass (mathematics §5).

A way is given weights and returns the weighted sum of sensitivities; what the weights are is the business of the score function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from bilevel_gym.hypergradients.critics import Critic
from bilevel_gym.numerics import adjoint, draw_horizons, gradients
from bilevel_gym.preferences import window_sum
from bilevel_gym.types import Fragments, Oracle, Problem, Response, Samples, Trajectory

__all__ = [
    "Continuations",
    "Window",
    "along_continuations",
    "carried",
    "first_steps",
    "one_step",
    "play_continuations",
    "resolvent",
    "spread",
]

Window = Literal["reset", "frozen"]
"""Over which steps scores are summed: from the reset on, or within the fragment, its start law held fixed."""


@dataclass(frozen=True)
class Continuations:
    """Fresh continuations from steps of fragments, independent of the fragments themselves: the ξ and ζ of SoBiRL."""

    origin: Tensor
    """[n] the tuple that each step belongs to."""
    share: Tensor
    """[n] how many steps of its fragment each stands for."""
    given: Trajectory
    """[n, T] ξ, from (s_h, a_h): the first action is that of the fragment."""
    free: Trajectory
    """[n, T'] ζ, from s_h: the first action is drawn anew."""


def first_steps(fresh: Samples, window: Window) -> Tensor:
    """The first step of each fragment whose score counts: [M, I]."""
    return torch.zeros_like(fresh.offset) if window == "reset" else fresh.offset


def spread(weight: Tensor, fresh: Samples, window: Window) -> Tensor:
    """The weights of tuples added to every step whose score counts for them: [M] → [N, T]."""
    last = fresh.offset + fresh.fragments.alive.shape[-1]
    return window_sum(weight[:, None].expand_as(fresh.offset), fresh.origin, first_steps(fresh, window), last, _shape(fresh))


def resolvent(problem: Problem, x: Tensor, response: Response, fresh: Samples, visits: Tensor) -> Tensor:
    """Σ visits · ∇(Q* − V*) by one adjoint solve: the cotangent on Q is n − π Σ_a n, n the weighted visits of each (s, a)."""
    assert response.value is not None
    played, policy = fresh.trajectories, response.policy
    cell = (played.states * policy.shape[-1] + played.actions).flatten()
    table = torch.zeros(policy.numel(), dtype=visits.dtype, device=visits.device).index_add_(0, cell, visits.flatten()).view(policy.shape)
    cotangent = table - policy * table.sum(-1, keepdim=True)
    return problem.backup_vjp(x, response.value, adjoint(problem.at(x), policy, cotangent, response.factor))


def one_step(
    problem: Problem, x: Tensor, policy: Any, fresh: Samples, visits: Tensor, action_samples: int, generator: torch.Generator
) -> Tensor:
    """Σ visits · ∇( r(s,a) − E_π r(s,·) )."""
    played = fresh.trajectories
    states, actions = played.states.flatten(0, 1), played.actions.flatten(0, 1)
    options, chances = problem.world.quadrature(policy, states, action_samples, generator)
    repeated = states.expand(options.shape[0], *states.shape)

    def surrogate(leaf: Tensor) -> Tensor:
        mean = (chances * problem.reward.along(leaf, repeated, options)).sum(0)
        total: Tensor = (visits.flatten() * (problem.reward.along(leaf, states, actions) - mean)).sum()
        return total

    return gradients(surrogate, x)[0]


def play_continuations(oracle: Oracle, policy: Any, fresh: Samples, window: Window, branches: int | None) -> Continuations:
    """Play ξ and ζ from uniformly drawn steps of the fragments, each for a number of steps of its own (``numerics.draw_horizons``).

    Args:
        oracle: where they are played, and counted.
        policy: π, the same that played the fragments.
        fresh: the fragments.
        window: whose steps count.
        branches: steps drawn of each fragment, with replacement; None takes every step, once.

    Returns:
        both continuations of each step. Cost: about 2/(1 − √γ) environment steps for each.
    """
    played = fresh.trajectories
    first, living = first_steps(fresh, window)[..., None], played.alive.sum(-1)[fresh.origin]
    last = torch.minimum(fresh.offset + fresh.fragments.alive.shape[-1], living)[..., None]
    count = (last - first).clamp_min(0)
    # A fragment without a living step keeps its first one, with no share.
    if branches is None:
        time = torch.arange(played.alive.shape[1], device=first.device).expand(*count.shape[:-1], -1)
        kept, share = (time == first) | ((time > first) & (time < last)), (time < last).double()
    else:
        drawn = torch.rand(*count.shape[:-1], branches, generator=oracle.generator, dtype=torch.float64, device=first.device)
        time = first + (drawn * count).long()
        kept, share = torch.ones_like(time, dtype=torch.bool), (count / branches).expand_as(time)
    tuples, pieces, _ = kept.nonzero().unbind(-1)
    row, time = fresh.origin[tuples, pieces], time[kept]
    states, actions = played.states[row, time], played.actions[row, time]
    discount, generator = oracle.problem.world.discount, oracle.generator
    given = oracle.branch(policy, states, steps=draw_horizons(len(row), discount, generator), actions=actions)
    free = oracle.branch(policy, states, steps=draw_horizons(len(row), discount, generator))
    return Continuations(tuples, share[kept], given, free)


def along_continuations(problem: Problem, x: Tensor, continuations: Continuations, weight: Tensor) -> Tensor:
    """Σ_m weight_m Σ_h ∇(Q* − V*)(s_h, a_h), with ∇Q as Σ_t γ^{t/2} ∇r along ξ and ∇V as the same along ζ.

    The other half of the discount is in the law of the continuations' lengths.

    Args:
        weight: [M].
    """
    scale = weight[continuations.origin] * continuations.share

    def surrogate(leaf: Tensor) -> Tensor:
        given, free = (_discounted(problem, leaf, played) for played in (continuations.given, continuations.free))
        total: Tensor = (scale * (given - free)).sum()
        return total

    return gradients(surrogate, x)[0]


def carried(
    problem: Problem,
    policy: Any,
    fresh: Samples,
    seen: Fragments,
    loss: Tensor,
    critic: Critic,
    action_samples: int,
    generator: torch.Generator,
) -> Tensor:
    """c_t = w_t + γc_{t−1}, w the advantage of L summed over the fragments that cover the step: [N, T].

    Args:
        seen: what L is fitted on, none of the fresh fragments among it.
        loss: [M'] the l of those.
    """
    played = fresh.trajectories
    fitted = critic.fit(problem, seen, loss, generator)
    states, actions = played.states.flatten(0, 1), played.actions.flatten(0, 1)
    options, chances = problem.world.quadrature(policy, states, action_samples, generator)
    repeated = states.expand(options.shape[0], *states.shape)
    mean = (chances * critic.evaluate(fitted, repeated.flatten(0, 1), options.flatten(0, 1)).view(chances.shape)).sum(0)
    advantage = (critic.evaluate(fitted, states, actions) - mean).view(played.alive.shape) * played.alive
    cover = spread(torch.ones_like(fresh.offset[:, 0], dtype=advantage.dtype), fresh, "frozen")
    total, columns = torch.zeros_like(advantage[:, 0]), []
    for column in (cover * advantage).unbind(1):
        total = column + problem.world.discount * total
        columns.append(total)
    return _centred(torch.stack(columns, 1))


def _centred(weights: Tensor) -> Tensor:
    """c_nt less the mean over the *other* trajectories: the same as Σ c_nt (∇r_nt − mean of the others' ∇r_t).

    E[c_t] = 0 whatever came before, so nothing is biased, and the noise along a constant shift of r, which moves no policy, cancels.
    """
    count = weights.shape[0]
    return weights - (weights.sum(0) - weights) / (count - 1) if count > 1 else weights


def _discounted(problem: Problem, x: Tensor, played: Trajectory) -> Tensor:
    """Σ_t γ^{t/2} r_x(s_t, a_t): [n]."""
    rewards: Tensor = problem.reward.along(x, played.states, played.actions)
    time = torch.arange(rewards.shape[-1], dtype=rewards.dtype, device=rewards.device)
    discounted: Tensor = problem.world.discount ** (0.5 * time) * played.alive * rewards
    return discounted.sum(-1)


def _shape(fresh: Samples) -> tuple[int, int]:
    count, steps = fresh.trajectories.alive.shape
    return count, steps
