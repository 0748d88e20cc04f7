"""PBRL on simulators: the penalty from trajectories, and a policy of the upper level's own that the follower's solver trains."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, replace
from math import ceil, log
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_gym.arguments import check_numbers
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.hypergradients.charged_reward import ChargedReward
from bilevel_gym.hypergradients.critics import Critic, RidgeCritic
from bilevel_gym.hypergradients.fit import not_on_policy, refusal
from bilevel_gym.hypergradients.sensitivities import limited
from bilevel_gym.numerics import draw_seed, gradients, rewards_of
from bilevel_gym.preferences import concatenate, take
from bilevel_gym.types import Evaluation, Fragments, Hypergradient, Oracle, Problem, Response, Samples, Trajectory

__all__ = ["OwnActorState", "SampledPenalty"]

NEGLIGIBLE = 0.01
"""Discounted sums end where γ^t has fallen to this."""


@dataclass(frozen=True)
class OwnActorState:
    """What the estimator keeps between calls."""

    own: Response | None = None
    """π with its solver's warm start; None before the first call."""
    history: Fragments | None = None
    """Labelled fragments of π and of those before it."""
    value: float = 0.0
    """The mean loss of the fresh ones, before anything has trained on them."""
    trajectories: Trajectory | None = field(default=None, metadata={"transient": True})
    """π's own, as many as π̂'s."""
    fresh: Samples | None = field(default=None, metadata={"transient": True})
    """What the environment had seen of π̂ then."""
    evaluations: int = 0
    """Evaluations seen."""


@dataclass(frozen=True)
class SampledPenalty:
    """F_λ(x, π) = f(x, π) + λ( V^π̂_x(ρ) − V^π_x(ρ) ) from samples, with π an actor of the estimator's own (mathematics §7).

        ∇_xF_λ ≈ E_π[∇l] + λ( E_π̂[Σ_t γ^t ∇r_x] − E_π[Σ_t γ^t ∇r_x] )

    π ascends V^π_x − f/λ by the follower's own solver, once for each response, on the reward

        r_x(s,a) − (w/λ)( L(s,a) − E_{a'~π'} L(s,a') ),    L(s,a) = E[l | (s,a) visited in a fragment],    w = n/d,

    π' the policy before, n(s) the visits of s in a tuple of fragments and d(s) = Σ_t γ^t P(s_t = s). The stationary points of F_λ(x, ·)
    are where that comes to rest: there ∇_πF_λ = 0 reads π_s ∝ exp((Q^π − (w/λ) L)/τ), Q^π of r_x. Since the bracket has mean zero under
    π' = π, it adds itself to Q^π and nothing to V^π, so the soft-optimal policy of the reward above is that very π. With L alone in
    its place it would not be, as L is credit for all that follows, and would be counted again at each step.

    Approximate are: L, fitted on earlier fragments of π as in ``ScoreFunction("critic")``; w, one number (1−γ)E[steps of a tuple] for all
    states, which is exact where fragments and the discounted occupancy visit states in the same proportions; how far a solve gets;
    the discounted sums, cut where γ^t < .01 and at the end of a trajectory; and E[∇l], over the ``history`` of π's fragments, as the
    queue's pairs are in ``ScoreFunction``.

    Source: PBRL (Shen, Yang and Chen, ICML 2024), of which no code was released: a re-implementation. The reward for π is ours; they
    take policy gradients of F_λ. π starts as the first response, where the penalty is zero, and goes on from its own networks.

    It asks for labels of π's fragments, as many as the environment asks for those of π̂ (whose labels it does not use but for
    the first), and refuses tasks with a ``budget`` or ``half_rate``, which would not limit these. It trains one more actor, too: twice
    the labels and environment steps of ``ScoreFunction``. All of them are counted. Two actors that learn apart differ by more than
    1/λ, and λ times that is noise: see ``clip``.

    An actor of a foreign solver (``solvers.from_sb3``) does not outlive a checkpoint: only the environment's own follower is revived.

    Args:
        penalty: λ > 0.
        growth: by what share of λ it grows with each response, 0 for a constant λ.
        batch: pairs of π's history for each ∇l.
        critic: the regressor of L; None takes ridge regression.
        action_samples: draws for E_π' L(s,·) where actions are continuous.
        history: labelled pairs kept.
        clip: the penalty's part of the gradient is scaled down to at most this multiple of E[∇l]'s norm; None leaves it as it is.

    Raises:
        InvalidProblem: a number that is out of range.

    Cost: a solve, a quarter dearer than the environment's for its reward, and a look at π for each response; for each gradient a backward pass through r_x over the batch, and one over the
    trajectories of both policies.
    """

    batched: ClassVar[bool] = False
    """It looks at the samples of one problem; see ``PerProblem``."""

    _: KW_ONLY
    penalty: float = 10.0
    growth: float = 0.0
    batch: int = 64
    critic: Critic | None = None
    action_samples: int = 2
    history: int = 512
    clip: float | None = None

    def __post_init__(self) -> None:
        check_numbers(self)
        if not 0.0 < self.penalty < float("inf") or not self.growth >= 0.0:
            raise InvalidProblem(f"penalty is {self.penalty} and growth {self.growth}: λ is positive and finite, growth not negative")
        if min(self.batch, self.action_samples, self.history) < 1 or (self.clip is not None and not self.clip > 0):
            raise InvalidProblem("batch, action_samples, history and clip must be positive; clip=None does not clip")

    def supports(self, problem: Problem) -> str | None:
        """None, or the reason why the problem does not fit."""
        if reason := not_on_policy(problem):
            return refusal(reason, problem)
        if problem.tabular:
            return "its actor learns in a simulator, and this world is a table; use Penalty"
        if any(getattr(problem.objective, name, None) is not None for name in ("budget", "half_rate")):
            return "it asks for labels of its own actor's fragments, too, which budget and half_rate do not limit: leave them out, or stop at a number of comparisons (agents.StopOnBudget)"
        return None

    def init(self, oracle: Oracle) -> OwnActorState:
        """No policy yet: the first call takes the response's."""
        return OwnActorState()

    def __call__(
        self, oracle: Oracle, x: Tensor, response: Response, evaluation: Evaluation, state: OwnActorState
    ) -> tuple[Hypergradient, OwnActorState]:
        """∇_xF_λ at x, π trained first where the response is a new one: [D].

        ``stats`` has f(x, π) and f(x, π̂), and λ.
        """
        assert evaluation.fresh is not None
        if state.fresh is not evaluation.fresh:
            state = self._begin(oracle, x, response, evaluation, evaluation.fresh, state)
        assert state.history is not None
        assert state.trajectories is not None
        problem, scale = oracle.problem, self._scale(state)
        index = torch.randint(len(state.history.outcome), (self.batch,), generator=oracle.generator, device=oracle.generator.device)
        batch, training = take(state.history, index.to(x.device)), problem.training(oracle.generator)
        direct = gradients(lambda leaf: problem.objective.loss(training, leaf, batch).mean(), x)[0]
        best, own = evaluation.fresh.trajectories, state.trajectories
        by_x = torch.zeros_like(direct)
        if own is not best:
            by_x = scale * gradients(lambda leaf: _earned(problem, leaf, best) - _earned(problem, leaf, own), x)[0]
        size, by_x = float(by_x.norm()), limited(by_x, direct, self.clip, problem.objective)
        stats = {
            "objective_own": state.value,
            "objective_response": float(evaluation.value),
            "penalty_weight": scale,
            "norm_implicit_unclipped": size,
        }
        return Hypergradient(direct + by_x, direct, by_x, stats), state

    # ------------------------------------------------------------------------------------------ once for each response

    def _scale(self, state: OwnActorState) -> float:
        return self.penalty * (1.0 + self.growth * max(state.evaluations - 1, 0))

    def _begin(
        self, oracle: Oracle, x: Tensor, response: Response, evaluation: Evaluation, fresh: Samples, state: OwnActorState
    ) -> OwnActorState:
        """Train π under x, and look at it."""
        seen = replace(state, fresh=fresh, evaluations=state.evaluations + 1)
        if state.own is None or state.history is None:
            return replace(seen, own=response, history=fresh.fragments, value=float(evaluation.value), trajectories=fresh.trajectories)
        own = oracle.solve(x, state.own, reward=self._reward(oracle, x, state.own, state.history, self._scale(seen)))
        if not fresh.asked:  # no labels are to be had now
            count, steps = fresh.trajectories.alive.shape
            return replace(seen, own=own, trajectories=oracle.rollout(own.policy, trajectories=count, steps=steps))
        look = oracle.evaluate(x, own)
        assert look.fresh is not None
        history = take(concatenate(state.history, look.fresh.fragments), slice(-self.history, None))
        return replace(seen, own=own, history=history, value=float(look.value), trajectories=look.fresh.trajectories)

    def _reward(self, oracle: Oracle, x: Tensor, own: Response, history: Fragments, scale: float) -> ChargedReward:
        problem, critic = oracle.problem, self.critic or RidgeCritic()
        with torch.no_grad():
            loss = problem.objective.loss(problem, x, history)
        fitted = critic.fit(problem, history, loss, oracle.generator)
        share = (1.0 - problem.world.discount) * float(history.alive.sum((1, 2)).double().mean())
        noise = torch.Generator(device=x.device).manual_seed(draw_seed(oracle.generator))
        return ChargedReward(problem, critic, fitted, own.policy, share / scale, self.action_samples, noise)


def _earned(problem: Problem, x: Tensor, played: Trajectory) -> Tensor:
    """The mean of Σ_t γ^t r_x, over the steps where γ^t counts: []."""
    discount = problem.world.discount
    counted = slice(ceil(log(NEGLIGIBLE) / log(discount)) if discount > 0.0 else 1)
    names = ("states", "actions", "alive", *(name for name in ("rewards", "terms") if getattr(played, name) is not None))
    played = Trajectory(**{name: getattr(played, name)[:, counted] for name in names})
    rewards = rewards_of(problem.reward, x, played)
    time = torch.arange(rewards.shape[-1], dtype=rewards.dtype, device=rewards.device)
    earned: Tensor = (discount**time * played.alive * rewards).sum(-1).mean()
    return earned
