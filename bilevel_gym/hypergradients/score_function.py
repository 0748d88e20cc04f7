"""SoBiRL: the hyper-gradient of a sampled objective, by scores of the soft-optimal policy."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bilevel_gym.arguments import check_numbers
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.hypergradients.critics import Critic, RidgeCritic, TableCritic
from bilevel_gym.hypergradients.fit import not_on_policy, not_sampled, refusal
from bilevel_gym.hypergradients.importance import Importance
from bilevel_gym.hypergradients.sensitivities import (
    Continuations,
    Point,
    Window,
    advantages,
    along_continuations,
    carried,
    limited,
    one_step,
    play_continuations,
    resolvent,
    spread,
)
from bilevel_gym.numerics import gradients, rewards_of
from bilevel_gym.preferences import as_samples, concatenate, take
from bilevel_gym.types import Branching, Evaluation, Fragments, Hypergradient, Oracle, Problem, Response, Samples, TransitionReward

__all__ = ["ScoreFunction", "ScoreState", "Sensitivity", "Weighting", "Window"]

Sensitivity = Literal["exact", "one_step", "rollout", "critic"]
"""How ∇(Q − V) is estimated."""

Weighting = Literal["loss", "advantage"]
"""What each score is weighted with."""


@dataclass(frozen=True)
class ScoreState:
    """What the estimator keeps between calls."""

    history: Fragments | None = None
    """Earlier fresh fragments, which L is fitted on."""
    weights: Tensor | None = None
    """[N, T] c_t of the current fresh trajectories, or the advantages of L along them."""
    continuations: Continuations | None = field(default=None, metadata={"transient": True})
    """ξ and ζ of the current fresh trajectories."""
    fresh: Samples | None = field(default=None, metadata={"transient": True})
    """The samples that ``weights`` and ``continuations`` belong to."""
    earlier: Fragments | None = field(default=None, metadata={"transient": True})
    """What L was fitted on."""
    noise: Tensor | None = field(default=None, metadata={"transient": True})
    """The generator's state before L was fitted for these samples."""
    drawn: Tensor | None = field(default=None, metadata={"transient": True})
    """The generator's state before the last estimate's own draws."""
    evaluations: int = 0
    """Evaluations seen."""


@dataclass(frozen=True)
class ScoreFunction:
    """∇φ = E[∇l] + τ⁻¹ E[ l · Σ_i Σ_h ∇(Q*_{s_h a_h} − V*_{s_h}) ] as scalar surrogates and backward passes (mathematics §5).

    The second term is a score function, Σ_h ∇(Q − V)/τ = ∇log P(d; π*), under Shannon's entropy and under KL, whose log μ does not
    move with x. So it takes this step's fresh on-policy fragments only; the queue of older ones feeds ∇l. ∇(Q − V) comes from

    * ``"exact"``: the resolvent of mathematics §3; tabular worlds, unbiased.
    * ``"critic"``: with L(s,a) the mean of l given a visit of (s,a), w_h = L(s_h,a_h) − E_π L(s_h,·) and c_t = w_t + γc_{t−1}, the
      term is τ⁻¹ E[Σ_t c_t r_x(s_t,a_t)] differentiated in x along the same trajectory: no branching, no second rollout. Unbiased
      with the true L; L is fitted on *earlier* fragments at the current x, never on those that it weights.
    * ``"rollout"``: fresh continuations of π from (s_h, a_h) and from s_h, independent of the fragment; unbiased, as their lengths are
      drawn so that nothing is cut off. It costs environment steps and a world that can be branched. The fragment's own future in
      place of a fresh one is wrong, l is correlated with it; so that is not offered.
    * ``"one_step"``: r(s,a) − E_π r(s,·), the released code's choice: biased, it forgets what x does to the future.
    * ``None``: no implicit term at all, which is DRLHF (Christiano et al., 2017).

    With ``weighting="advantage"`` each score is weighted with L(s,a) − E_π L(s,·) in the place of l: HPGD's A_upper, for a loss over
    fragments (mathematics §7; Thoma et al., NeurIPS 2024). It has the same mean with the true L, and under ``"critic"`` it is the same
    thing. L is fitted as there.

    Source: SoBiRL (Yang, Gao, Yuan, AISTATS 2025) for the formula, arXiv 2603.14867 for the covariance form behind ``"critic"``.

    Args:
        sensitivity: one of the above.
        weighting: ``"loss"`` (SoBiRL) or ``"advantage"`` (HPGD).
        window: ``"reset"`` sums scores from the reset on and is right; ``"frozen"`` holds the start law of fragments that were cut
            anywhere fixed, as the released code does, and is biased where that law depends on π. They agree on fragments cut at the
            reset. What L weighs needs one of the two to be the case.
        batch: pairs of the queue for each ∇l; None takes the fresh ones.
        critic: the regressor of L; None takes a table on tabular worlds and ridge regression elsewhere.
        action_samples: K draws of π for E_π where actions are continuous.
        branches: steps of each fragment that continuations are played from, uniformly drawn; None takes every step. For one response
            they are played once, whatever the number of estimates, and not at all where nothing is known about l: with
            ``"advantage"`` that is at the first response, when L has seen no earlier fragment.
        history: earlier fragments that L is fitted on, at most.
        clip: the implicit part is scaled down to at most this multiple of the direct part's norm, a guard against its variance, which
            grows as 1/(τ(1−γ)); None leaves it as it is, and so does an objective whose l does not depend on x. A clipped estimate is
            biased in length, not in the direction of its parts.
        delay: evaluations before the implicit part sets in (the released code waits for 1e5 environment steps).
        stale: whether scores are those of the batch out of the queue, as in the released code, and not those of the fresh fragments:
            biased, since older policies have played most of it. For ``"one_step"`` and ``"exact"``.

    Raises:
        InvalidProblem: an unknown sensitivity or window, a count that is not positive, or ``stale`` where it has no meaning.

    Cost: two backward passes through r_x, over the batch and over the fresh trajectories, whatever D is.
    """

    batched: ClassVar[bool] = False
    """It looks at the samples of one problem; see ``PerProblem``."""

    sensitivity: Sensitivity | None = "critic"
    window: Window = "reset"
    batch: int | None = None
    critic: Critic | None = None
    action_samples: int = 8
    branches: int | None = 1
    history: int = 512
    clip: float | None = None
    delay: int = 0
    stale: bool = False
    weighting: Weighting = "loss"

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.sensitivity not in ("exact", "one_step", "rollout", "critic", None) or self.window not in ("reset", "frozen"):
            raise InvalidProblem(
                f"sensitivity {self.sensitivity!r} must be 'exact', 'one_step', 'rollout', 'critic' or None, window {self.window!r} 'reset' or 'frozen'"
            )
        if self.weighting not in ("loss", "advantage"):
            raise InvalidProblem(f"weighting is {self.weighting!r}: choose 'loss' or 'advantage'")
        if min(self.action_samples, self.history, *(1 if count is None else count for count in (self.batch, self.branches))) < 1:
            raise InvalidProblem("batch, action_samples, branches and history must be positive")
        if self.delay < 0 or (self.clip is not None and not self.clip > 0):
            raise InvalidProblem(
                f"delay is {self.delay} and clip {self.clip}: delay must not be negative, and clip be above 0; clip=None does not clip"
            )
        if self.stale and (self.batch is None or self.learns or self.sensitivity not in ("exact", "one_step")):
            raise InvalidProblem(
                "stale scores are those of a batch out of the queue: give a batch, sensitivity 'one_step' or 'exact', and no other weighting than 'loss'"
            )

    @property
    def learns(self) -> bool:
        """Whether L is fitted, from one call to the next."""
        return self.sensitivity == "critic" or (self.weighting == "advantage" and self.sensitivity is not None)

    def supports(self, problem: Problem) -> str | None:
        """None, or the reason why the problem does not fit."""
        if reason := (not_sampled if self.sensitivity is None else not_on_policy)(problem):
            return refusal(reason, problem)
        if self.sensitivity is None and not getattr(problem.objective, "direct", True):
            return refusal("l does not depend on x but through the policy, so that E[∇l] alone is zero", problem)
        if self.learns and self.window == "reset" and getattr(problem.objective, "cut", "start") != "start":
            return "L is a mean over the fragment, and these are cut past the reset: cut them at the start, or choose window='frozen'"
        if self.stale and self.window == "reset" and getattr(problem.objective, "cut", "start") != "start":
            return "the queue keeps fragments without what was before them: cut them at the start, or choose window='frozen'"
        if self.sensitivity == "one_step" and isinstance(problem.reward, TransitionReward):
            return f"sensitivity='one_step' needs r_x of actions that nobody took, and {type(problem.reward).__name__} reads it from those that were; use 'critic'"
        if self.sensitivity == "exact" and not problem.tabular:
            return "sensitivity='exact' needs the transition probabilities; use 'critic'"
        if self.sensitivity == "rollout" and not isinstance(problem.world, Branching):
            return f"sensitivity='rollout' plays on from the middle of a trajectory, and {type(problem.world).__name__} has no branch(policy, places, …); use 'critic'"
        return None

    def init(self, oracle: Oracle) -> ScoreState:
        """No history yet."""
        return ScoreState()

    def __call__(
        self, oracle: Oracle, x: Tensor, response: Response, evaluation: Evaluation, state: ScoreState
    ) -> tuple[Hypergradient, ScoreState]:
        """One estimate of ∇φ(x): [D].

        Raises:
            UnsupportedProblem: the response is not that of a soft follower, or fragments and window do not fit.
        """
        if not response.soft and self.sensitivity is not None:
            raise UnsupportedProblem(
                "this follower does not solve the entropy-regularized problem, so its policy has no scores Σ∇(Q−V)/τ; use a soft solver such as solvers.SAC"
            )
        assert evaluation.fresh is not None
        problem, fresh = oracle.problem, evaluation.fresh
        queue = evaluation.memory
        batch = fresh.fragments if self.batch is None or not queue else queue.sample(self.batch, oracle.generator)
        if state.fresh is not fresh:
            state = self._begin(oracle, x, response, fresh, state)
        drawn = oracle.generator.get_state()
        if state.drawn is None or not torch.equal(state.drawn, drawn):
            state = replace(state, drawn=drawn)
        weighed = replace(state, fresh=as_samples(batch)) if self.stale else state
        return self._estimate(Point(problem, x, response, oracle.generator), batch, weighed), state

    def again(
        self, oracle: Oracle, x: Tensor, response: Response, state: ScoreState, importance: Importance | None = None
    ) -> Hypergradient:
        """The estimate at another (x, π) on the draws of the call that returned ``state``: fragments, continuations, critic's features.

        Args:
            oracle: as before.
            x: [D].
            response: π, solved at x.
            state: what the call returned.
            importance: weights that make up for the samples being another policy's, or None.
        """
        fresh, noise, drawn = state.fresh, state.noise, state.drawn
        assert fresh is not None
        assert noise is not None
        assert drawn is not None
        generator = torch.Generator(device=oracle.generator.device)
        at = Point(oracle.problem, x, response, generator, importance)
        if self.learns:
            generator.set_state(noise)
            state = replace(state, weights=self._weights(at, fresh, state.earlier))
        generator.set_state(drawn)
        return self._estimate(at, fresh.fragments, state)

    # ------------------------------------------------------------------------------------------ once for each response

    def _begin(self, oracle: Oracle, x: Tensor, response: Response, fresh: Samples, state: ScoreState) -> ScoreState:
        """Weigh the new trajectories by an L that has not seen them, they join the history afterwards; and branch off where scores count."""
        earlier, noise = state.history, oracle.generator.get_state()
        state = ScoreState(earlier, fresh=fresh, evaluations=state.evaluations + 1, earlier=earlier, noise=noise)
        if self.learns:
            if self.window == "reset" and bool((fresh.offset > 0).any()):
                raise UnsupportedProblem(
                    "L is a mean over the fragment, and these are cut past the reset: cut them at the start, or choose window='frozen'"
                )
            state = replace(state, weights=self._weights(Point(oracle.problem, x, response, oracle.generator), fresh, earlier))
            if fresh.asked:
                joined = fresh.fragments if earlier is None else concatenate(earlier, fresh.fragments)
                state = replace(state, history=take(joined, slice(-self.history, None)))
        if self.sensitivity == "rollout" and self._counts(state):
            state = replace(state, continuations=play_continuations(oracle, response, fresh, self.window, self.branches))
        return state

    def _counts(self, state: ScoreState) -> bool:
        """Whether the implicit part may be anything but zero: not while it is delayed, nor where nothing is known about l."""
        assert state.fresh is not None
        if state.evaluations <= self.delay:
            return False
        return state.fresh.asked if state.weights is None else bool(state.weights.any())

    def _weights(self, at: Point, fresh: Samples, history: Fragments | None) -> Tensor:
        """What L makes of the fresh trajectories, which it has not seen: [N, T]."""
        critic: Critic = self.critic or (TableCritic() if at.problem.tabular else RidgeCritic())
        advantage = advantages(at, fresh, history, critic, self.action_samples)
        return carried(at, fresh, advantage) if self.sensitivity == "critic" else advantage * at.step_weights(fresh.trajectories)

    # ------------------------------------------------------------------------------------------ at each x

    def _estimate(self, at: Point, batch: Fragments, state: ScoreState) -> Hypergradient:
        problem, fresh = at.problem, state.fresh
        assert fresh is not None
        weight = at.tuple_weights(fresh, self.window)
        training = problem.training(at.generator)
        direct = gradients(lambda leaf: (weight * problem.objective.loss(training, leaf, batch)).mean(), at.x)[0]
        silent = state.continuations is None if self.sensitivity == "rollout" else not self._counts(state)
        if self.sensitivity is None or silent:
            return Hypergradient(direct, direct, torch.zeros_like(direct))
        implicit = self._implicit(at, fresh, state, weight)
        size, implicit = implicit.norm(), limited(implicit, direct, self.clip, problem.objective)
        return Hypergradient(direct + implicit, direct, implicit, {"norm_implicit_unclipped": float(size)})

    def _implicit(self, at: Point, fresh: Samples, state: ScoreState, weight: Tensor | float) -> Tensor:
        problem, played = at.problem, fresh.trajectories
        scale = at.temperature * fresh.origin.shape[0]
        if self.sensitivity == "critic":
            assert state.weights is not None
            weights = state.weights * played.alive / scale
            return gradients(lambda leaf: (weights * rewards_of(problem.reward, leaf, played)).sum(), at.x)[0]
        each, drawn = state.weights, state.continuations
        weight = weight * _excess(at, fresh) if each is None else torch.ones_like(fresh.fragments.outcome)
        if self.sensitivity == "rollout":
            assert drawn is not None
            return along_continuations(at, drawn if each is None else drawn.times(each), weight / scale)
        visits = spread(weight, fresh, self.window) * (1.0 if each is None else each) * played.alive / scale
        return resolvent(at, fresh, visits) if self.sensitivity == "exact" else one_step(at, fresh, visits, self.action_samples)


@torch.no_grad()
def _excess(at: Point, fresh: Samples) -> Tensor:
    """l less its baseline, for each tuple: [M].

    The baseline of a tuple is the mean l of the tuples that share no trajectory with it, 0 where there are none: any other mean is
    correlated with the tuple's own scores, and would take a part of the gradient away.
    """
    loss: Tensor = at.problem.objective.loss(at.problem, at.x, fresh.fragments)
    apart = (fresh.origin[:, None, :, None] != fresh.origin[None, :, None, :]).flatten(2).all(-1).to(loss.dtype)
    return loss - (apart @ loss) / apart.sum(-1).clamp_min(1.0)
