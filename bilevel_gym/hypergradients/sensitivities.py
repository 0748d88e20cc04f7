"""Σ n · ∇(Q* − V*) along sampled fragments, each way as one scalar surrogate and one backward pass (mathematics §5).

A way is given weights and returns the weighted sum of sensitivities; what the weights are is the business of the score function.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from bilevel_gym.hypergradients.critics import Critic
from bilevel_gym.hypergradients.fit import values_of
from bilevel_gym.hypergradients.importance import Importance
from bilevel_gym.numerics import adjoint, draw_horizons, gradients, rewards_of
from bilevel_gym.preferences import window_sum
from bilevel_gym.types import AllActions, Fragments, Oracle, Places, Problem, Response, Samples, Trajectory

__all__ = [
    "Continuations",
    "Point",
    "Window",
    "advantages",
    "along_continuations",
    "carried",
    "centred",
    "limited",
    "one_step",
    "play_continuations",
    "resolvent",
    "spread",
]

Window = Literal["reset", "frozen"]
"""Over which steps scores are summed: from the reset on, or within the fragment, its start law held fixed."""


@dataclass(frozen=True)
class Point:
    """Where an estimate is made."""

    problem: Problem
    x: Tensor
    """[D]."""
    response: Response
    """π, solved at x."""
    generator: torch.Generator
    """The source of what is drawn beside the samples."""
    importance: Importance | None = None
    """What makes up for samples of another policy, where they are."""

    @property
    def temperature(self) -> float:
        """τ in force: the one that the solver has tuned, or the problem's."""
        tuned = self.response.temperature
        return self.problem.regularizer.temperature if tuned is None else tuned

    def tuple_weights(self, fresh: Samples, window: Window) -> Tensor | float:
        """Of the tuples, over the steps whose scores count: [M]."""
        if self.importance is None:
            return 1.0
        return self.importance.of_tuples(fresh.trajectories, fresh.origin, *_span(fresh, window))

    def step_weights(self, trajectories: Trajectory, *, given: bool = False) -> Tensor | float:
        """Of single steps of whole trajectories: [N, T]."""
        return 1.0 if self.importance is None else self.importance.of_steps(trajectories, given=given)


@dataclass(frozen=True)
class Continuations:
    """Fresh continuations from steps of fragments, independent of the fragments themselves: the ξ and ζ of SoBiRL."""

    origin: Tensor
    """[n] the tuple that each step belongs to."""
    share: Tensor
    """[n] how many steps of its fragment each stands for."""
    places: Places
    """[n] the steps that they begin at."""
    given: Trajectory
    """[n, T] ξ, from (s_h, a_h): the first action is that of the fragment."""
    free: Trajectory
    """[n, T'] ζ, from s_h: the first action is drawn anew."""

    def times(self, weights: Tensor) -> Continuations:
        """The same, the share of each times the weight of the step that it begins at: [N, T]."""
        return replace(self, share=self.share * weights[self.places.row, self.places.time])


def spread(weight: Tensor, fresh: Samples, window: Window) -> Tensor:
    """The weights of tuples added to every step whose score counts for them: [M] → [N, T]."""
    count, steps = fresh.trajectories.alive.shape
    return window_sum(weight[:, None].expand_as(fresh.offset), fresh.origin, *_span(fresh, window), (count, steps))


def resolvent(at: Point, fresh: Samples, visits: Tensor) -> Tensor:
    """Σ visits · ∇(Q* − V*) by one adjoint solve: the cotangent on Q is n − π Σ_a n, n the weighted visits of each (s, a)."""
    response, played, policy = at.response, fresh.trajectories, at.response.policy
    cell = (played.states * policy.shape[-1] + played.actions).flatten()
    table = torch.zeros(policy.numel(), dtype=visits.dtype, device=visits.device).index_add_(0, cell, visits.flatten()).view(policy.shape)
    cotangent = table - policy * table.sum(-1, keepdim=True)
    z = adjoint(at.problem.at(at.x), policy, cotangent, response.factor)
    return at.problem.backup_vjp(at.x, values_of(response), z)


def one_step(at: Point, fresh: Samples, visits: Tensor, action_samples: int) -> Tensor:
    """Σ visits · ∇( r(s,a) − E_π r(s,·) ), over the steps that have any weight.

    Cost: one forward pass over those steps where the model gives r(s,·) at once (``types.AllActions``), else one more for each action
    of the quadrature.
    """
    reward, played = at.problem.reward, fresh.trajectories
    row = visits.flatten().nonzero().squeeze(-1)
    weight, states, actions = visits.flatten()[row], played.states.flatten(0, 1)[row], played.actions.flatten(0, 1)[row]
    options, chances = at.problem.world.quadrature(at.response.policy, states, action_samples, at.generator)

    repeated = states.expand(options.shape[0], *states.shape)

    def surrogate(leaf: Tensor) -> Tensor:
        if isinstance(reward, AllActions):
            scores = reward.all_actions(leaf, states)
            chosen, others = scores.gather(-1, actions.unsqueeze(-1)).squeeze(-1), scores.gather(-1, options.mT).mT
        else:
            chosen, others = reward.along(leaf, states, actions), reward.along(leaf, repeated, options)
        total: Tensor = (weight * (chosen - (chances * others).sum(0))).sum()
        return total

    return gradients(surrogate, at.x)[0]


def play_continuations(oracle: Oracle, response: Response, fresh: Samples, window: Window, branches: int | None) -> Continuations:
    """Play ξ and ζ from uniformly drawn steps of the fragments, each pair for a number of steps of its own (``numerics.draw_horizons``).

    Both are independent of the fragment. Of each other they need not be, only the difference of their means counts: they are played for
    the same time with the same random numbers, so that they stay together once they have met. The slides draw them independently, which
    is two to four times as noisy (``benchmarks/estimators.py``).

    Args:
        oracle: where they are played, and counted.
        response: the one that played the fragments.
        fresh: the fragments.
        window: whose steps count.
        branches: steps drawn of each fragment, with replacement; None takes every step, once.

    Returns:
        both continuations of each step. Cost: about 2/(1 − √γ) environment steps for each.
    """
    played, (first, last) = fresh.trajectories, _span(fresh, window)
    first, last = first[..., None], torch.minimum(last, played.alive.sum(-1)[fresh.origin])[..., None]
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
    places = Places(played, fresh.origin[tuples, pieces], time[kept])
    steps = draw_horizons(len(tuples), oracle.problem.world.discount, oracle.generator)
    noise = oracle.generator.get_state()
    given = oracle.branch(response.policy, places, steps=steps, given=True)
    oracle.generator.set_state(noise)  # a branch draws as many numbers with given first actions as without
    free = oracle.branch(response.policy, places, steps=steps)
    return Continuations(tuples, share[kept], places, given, free)


def along_continuations(at: Point, drawn: Continuations, weight: Tensor) -> Tensor:
    """Σ_m weight_m Σ_h ∇(Q* − V*)(s_h, a_h), with ∇Q as Σ_t γ^{t/2} ∇r along ξ and ∇V as the same along ζ.

    The other half of the discount is in the law of the continuations' lengths.

    Args:
        weight: [M].
    """
    reward, root = at.problem.reward, at.problem.world.discount**0.5
    scale = weight[drawn.origin] * drawn.share
    factors = (at.step_weights(drawn.given, given=True), at.step_weights(drawn.free))

    def discounted(leaf: Tensor, played: Trajectory, factor: Tensor | float) -> Tensor:
        rewards = rewards_of(reward, leaf, played)
        time = torch.arange(rewards.shape[-1], dtype=rewards.dtype, device=rewards.device)
        total: Tensor = (root**time * played.alive * factor * rewards).sum(-1)
        return total

    def surrogate(leaf: Tensor) -> Tensor:
        return (scale * (discounted(leaf, drawn.given, factors[0]) - discounted(leaf, drawn.free, factors[1]))).sum()

    return gradients(surrogate, at.x)[0]


@torch.no_grad()
def advantages(at: Point, fresh: Samples, history: Fragments | None, critic: Critic, action_samples: int) -> Tensor:
    """L(s_t, a_t) − E_π L(s_t, ·) along the fresh trajectories, 0 past their ends: [N, T].

    Args:
        history: what L is fitted on, none of the fresh fragments among it. Without any nothing has been learnt, and L is flat.
    """
    problem, played, seen = at.problem, fresh.trajectories, fresh.fragments if history is None else history
    loss = problem.objective.loss(problem, at.x, seen)
    fitted = critic.fit(problem, seen, loss if history is not None else torch.zeros_like(loss), at.generator)
    states, actions = played.states.flatten(0, 1), played.actions.flatten(0, 1)
    found = centred(problem, critic, fitted, at.response.policy, states, actions, action_samples, at.generator)
    return found.view(played.alive.shape) * played.alive


@torch.no_grad()
def centred(
    problem: Problem,
    critic: Critic,
    fitted: Any,
    policy: Any,
    states: Any,
    actions: Tensor,
    action_samples: int,
    generator: torch.Generator,
) -> Tensor:
    """L(s, a) − E_π L(s, ·), the mean by the world's quadrature: [n, *observation], [n, *action] → [n]."""
    options, chances = problem.world.quadrature(policy, states, action_samples, generator)
    repeated = states.expand(options.shape[0], *states.shape)
    mean = (chances * critic.evaluate(fitted, repeated.flatten(0, 1), options.flatten(0, 1)).view(chances.shape)).sum(0)
    found: Tensor = critic.evaluate(fitted, states, actions) - mean
    return found


def carried(at: Point, fresh: Samples, advantage: Tensor) -> Tensor:
    """c_t = w_t + γc_{t−1}, w the advantage summed over the fragments that cover the step: [N, T] → [N, T]."""
    cover = spread(torch.ones_like(fresh.offset[:, 0], dtype=advantage.dtype), fresh, "frozen")
    total, columns = torch.zeros_like(advantage[:, 0]), []
    for column in (cover * advantage).unbind(1):
        total = column + at.problem.world.discount * total
        columns.append(total)
    return _centred(torch.stack(columns, 1) * at.step_weights(fresh.trajectories))


def limited(implicit: Tensor, direct: Tensor, multiple: float | None, objective: Any) -> Tensor:
    """The implicit part, scaled down to at most so many times the direct part's norm: [D].

    As it is where ``multiple`` is None, and where l does not depend on x, so that there is no direct part to compare it with.
    """
    if multiple is None or not getattr(objective, "direct", True):
        return implicit
    shorter: Tensor = implicit * (multiple * direct.norm() / implicit.norm().clamp_min(1e-30)).clamp_max(1.0)
    return shorter


def _span(fresh: Samples, window: Window) -> tuple[Tensor, Tensor]:
    """The first step of each fragment whose score counts, and the step after its last: two [M, I]."""
    first = torch.zeros_like(fresh.offset) if window == "reset" else fresh.offset
    return first, fresh.offset + fresh.fragments.alive.shape[-1]


def _centred(weights: Tensor) -> Tensor:
    """c_nt less the mean over the *other* trajectories: the same as Σ c_nt (∇r_nt − mean of the others' ∇r_t).

    E[c_t] = 0 whatever came before, so nothing is biased, and the noise along a constant shift of r, which moves no policy, cancels.
    """
    count = weights.shape[0]
    return weights - (weights.sum(0) - weights) / (count - 1) if count > 1 else weights
