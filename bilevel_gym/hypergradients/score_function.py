"""SoBiRL: the hyper-gradient of a sampled objective, by scores of the soft-optimal policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.hypergradients.critics import Critic, RidgeCritic, TableCritic
from bilevel_gym.numerics import adjoint, gradients
from bilevel_gym.preferences import concatenate, take, window_sum
from bilevel_gym.regularizers import Shannon
from bilevel_gym.types import Evaluation, Fragments, Hypergradient, Oracle, Problem, Response, SampledObjective, Samples

__all__ = ["ScoreFunction", "ScoreState", "Sensitivity", "Window"]

Sensitivity = Literal["exact", "one_step", "critic"]
"""How ∇(Q − V) is estimated."""

Window = Literal["reset", "frozen"]
"""Over which steps scores are summed: from the reset on, or within the fragment, its start law held fixed."""


@dataclass(frozen=True)
class ScoreState:
    """What the estimator keeps between calls."""

    history: Fragments | None = None
    """Earlier fresh fragments, which L is fitted on."""
    weights: Tensor | None = None
    """[N, T] c_t of the current fresh trajectories."""
    fresh: Samples | None = field(default=None, metadata={"transient": True})
    """The samples that ``weights`` belong to."""
    evaluations: int = 0
    """Evaluations seen."""


@dataclass(frozen=True)
class ScoreFunction:
    """∇φ = E[∇l] + τ⁻¹ E[ l · Σ_i Σ_h ∇(Q*_{s_h a_h} − V*_{s_h}) ] as scalar surrogates and backward passes (mathematics §5).

    The second term is a score function, Σ_h ∇(Q − V)/τ = ∇log P(d; π*). So it takes this step's fresh on-policy fragments only; the
    queue of older ones feeds ∇l. ∇(Q − V) comes from

    * ``"exact"``: the resolvent of mathematics §3; tabular worlds, unbiased.
    * ``"critic"``: with L(s,a) the mean of l given a visit of (s,a), w_h = L(s_h,a_h) − E_π L(s_h,·) and c_t = w_t + γc_{t−1}, the
      term is τ⁻¹ E[Σ_t c_t r_x(s_t,a_t)] differentiated in x along the same trajectory: no branching, no second rollout. Unbiased
      with the true L; L is fitted on *earlier* fragments at the current x, never on those that it weights.
    * ``"one_step"``: r(s,a) − E_π r(s,·), the released code's choice: biased, it forgets what x does to the future.
    * ``None``: no implicit term at all, which is DRLHF (Christiano et al., 2017).

    Source: SoBiRL (Yang, Gao, Yuan, AISTATS 2025) for the formula, arXiv 2603.14867 for the covariance form behind ``"critic"``.

    Args:
        sensitivity: one of the above.
        window: ``"reset"`` sums scores from the reset on and is right; ``"frozen"`` holds the start law of fragments that were cut
            anywhere fixed, as the released code does, and is biased where that law depends on π. They agree on fragments cut at the
            reset. ``"critic"`` needs one of the two to be the case.
        batch: pairs of the queue for each ∇l; None takes the fresh ones.
        critic: the regressor of L; None takes a table on tabular worlds and ridge regression elsewhere.
        action_samples: K draws of π for E_π where actions are continuous.
        history: earlier fragments that L is fitted on, at most.
        clip: the implicit part is scaled down to at most this multiple of the direct part's norm, a guard against its variance, which
            grows as 1/(τ(1−γ)); None leaves it as it is. A clipped estimate is biased in length, not in the direction of its parts.
        delay: evaluations before the implicit part sets in (the released code waits for 1e5 environment steps).

    Raises:
        InvalidProblem: an unknown sensitivity or window, or a count that is not positive.

    Cost: two backward passes through r_x, over the batch and over the fresh trajectories, whatever D is.
    """

    batched: ClassVar[bool] = False
    """It looks at the samples of one problem; see ``PerProblem``."""

    sensitivity: Sensitivity | None = "critic"
    window: Window = "reset"
    batch: int | None = None
    critic: Critic | None = None
    action_samples: int = 8
    history: int = 512
    clip: float | None = None
    delay: int = 0

    def __post_init__(self) -> None:
        if self.sensitivity not in ("exact", "one_step", "critic", None) or self.window not in ("reset", "frozen"):
            raise InvalidProblem(
                f"sensitivity {self.sensitivity!r} must be 'exact', 'one_step', 'critic' or None, window {self.window!r} 'reset' or 'frozen'"
            )
        if min(self.action_samples, self.history, 1 if self.batch is None else self.batch) < 1:
            raise InvalidProblem("batch, action_samples and history must be positive")
        if self.delay < 0 or (self.clip is not None and not self.clip > 0):
            raise InvalidProblem(f"delay is {self.delay} and clip {self.clip}: they must not be negative; clip=None does not clip")

    def supports(self, problem: Problem) -> str | None:
        """None, or the reason why the problem does not fit."""
        if not isinstance(problem.objective, SampledObjective):
            return f"it needs an objective E[l] over fragments, and {type(problem.objective).__name__} has no loss(problem, x, fragments); use hypergradients.Exact"
        if self.sensitivity is None:
            return None
        if getattr(problem.world, "context_weights", None) is not None:
            return "there are several followers (contexts), and fragments do not say whose they are; use hypergradients.Exact"
        if getattr(problem.world, "depends_on_x", False):
            return "P depends on x, and the sampled sensitivities differentiate the reward alone; use hypergradients.Exact"
        if not isinstance(problem.regularizer, Shannon):
            return f"Σ∇(Q−V)/τ is the score for the Shannon entropy, not for {type(problem.regularizer).__name__}; use hypergradients.Exact"
        if self.sensitivity == "critic" and self.window == "reset" and getattr(problem.objective, "cut", "start") != "start":
            return "L is a mean over the fragment, and these are cut past the reset: cut them at the start, or choose window='frozen'"
        if self.sensitivity == "exact" and not problem.tabular:
            return "sensitivity='exact' needs the transition probabilities; use 'critic'"
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
        direct = gradients(lambda leaf: problem.objective.loss(problem, leaf, batch).mean(), x)[0]
        if state.fresh is not fresh:
            state = self._begin(oracle, x, response, fresh, state)
        if self.sensitivity is None or state.evaluations <= self.delay:
            return Hypergradient(direct, direct, torch.zeros_like(direct)), state
        implicit = self._implicit(oracle, x, response, fresh, state)
        size = implicit.norm()
        if self.clip is not None:
            implicit = implicit * (self.clip * direct.norm() / size.clamp_min(1e-30)).clamp_max(1.0)
        return Hypergradient(direct + implicit, direct, implicit, {"norm_implicit_unclipped": float(size)}), state

    # ------------------------------------------------------------------------------------------ once for each response

    def _begin(self, oracle: Oracle, x: Tensor, response: Response, fresh: Samples, state: ScoreState) -> ScoreState:
        """Weigh the new trajectories by an L that has not seen them; they join the history afterwards."""
        if self.sensitivity != "critic":
            return ScoreState(fresh=fresh, evaluations=state.evaluations + 1)
        if self.window == "reset" and bool((fresh.offset > 0).any()):
            raise UnsupportedProblem(
                "L is a mean over the fragment, and these are cut past the reset: cut them at the start, or choose window='frozen'"
            )
        weights = self._critic_weights(oracle, x, response, fresh, state.history)
        joined = fresh.fragments if state.history is None else concatenate(state.history, fresh.fragments)
        return ScoreState(take(joined, slice(-self.history, None)), weights, fresh, state.evaluations + 1)

    @torch.no_grad()
    def _critic_weights(self, oracle: Oracle, x: Tensor, response: Response, fresh: Samples, history: Fragments | None) -> Tensor:
        """c_t = w_t + γc_{t−1}, w the advantage of L summed over the fragments that cover the step: [N, T]."""
        problem, played = oracle.problem, fresh.trajectories
        critic: Critic = self.critic or (TableCritic() if problem.tabular else RidgeCritic())
        seen = fresh.fragments if history is None else history
        loss = problem.objective.loss(problem, x, seen)
        # Without earlier fragments nothing has been learnt: l counts as constant, and L is flat.
        fitted = critic.fit(problem, seen, loss if history is not None else torch.zeros_like(loss), oracle.generator)
        states, actions = played.states.flatten(0, 1), played.actions.flatten(0, 1)
        options, chances = problem.world.quadrature(response.policy, states, self.action_samples, oracle.generator)
        repeated = states.expand(options.shape[0], *states.shape)
        mean = (chances * critic.evaluate(fitted, repeated.flatten(0, 1), options.flatten(0, 1)).view(chances.shape)).sum(0)
        advantage = (critic.evaluate(fitted, states, actions) - mean).view(played.alive.shape) * played.alive
        length = fresh.fragments.alive.shape[-1]
        cover = window_sum(
            torch.ones_like(fresh.offset, dtype=advantage.dtype), fresh.origin, fresh.offset, fresh.offset + length, _shape(fresh)
        )
        carried, columns = torch.zeros_like(advantage[:, 0]), []
        for column in (cover * advantage).unbind(1):
            carried = column + problem.world.discount * carried
            columns.append(carried)
        return _centred(torch.stack(columns, 1))

    # ------------------------------------------------------------------------------------------ at each x

    def _implicit(self, oracle: Oracle, x: Tensor, response: Response, fresh: Samples, state: ScoreState) -> Tensor:
        problem, played = oracle.problem, fresh.trajectories
        scale = problem.regularizer.temperature * fresh.origin.shape[0]
        if self.sensitivity == "critic":
            assert state.weights is not None
            weights = state.weights * played.alive / scale
            return gradients(lambda leaf: (weights * problem.reward.along(leaf, played.states, played.actions)).sum(), x)[0]
        visits = self._loss_weights(problem, x, fresh) * played.alive / scale
        if self.sensitivity == "exact":
            return _resolvent(problem, x, response, fresh, visits)
        return self._one_step(oracle, x, response, fresh, visits)

    @torch.no_grad()
    def _loss_weights(self, problem: Problem, x: Tensor, fresh: Samples) -> Tensor:
        """(l − baseline) added to every step whose score counts for it: [N, T].

        The baseline of a tuple is the mean l of the tuples that share no trajectory with it, 0 where there are none: any other mean is
        correlated with the tuple's own scores, and would take a part of the gradient away.
        """
        loss = problem.objective.loss(problem, x, fresh.fragments)
        apart = (fresh.origin[:, None, :, None] != fresh.origin[None, :, None, :]).flatten(2).all(-1).to(loss.dtype)
        baseline = (apart @ loss) / apart.sum(-1).clamp_min(1.0)
        last = fresh.offset + fresh.fragments.alive.shape[-1]
        first = torch.zeros_like(fresh.offset) if self.window == "reset" else fresh.offset
        return window_sum((loss - baseline)[:, None].expand_as(fresh.offset), fresh.origin, first, last, _shape(fresh))

    def _one_step(self, oracle: Oracle, x: Tensor, response: Response, fresh: Samples, visits: Tensor) -> Tensor:
        """Σ visits · ∇( r(s,a) − E_π r(s,·) )."""
        problem, played = oracle.problem, fresh.trajectories
        states, actions = played.states.flatten(0, 1), played.actions.flatten(0, 1)
        options, chances = problem.world.quadrature(response.policy, states, self.action_samples, oracle.generator)
        repeated = states.expand(options.shape[0], *states.shape)

        def surrogate(leaf: Tensor) -> Tensor:
            mean = (chances * problem.reward.along(leaf, repeated, options)).sum(0)
            total: Tensor = (visits.flatten() * (problem.reward.along(leaf, states, actions) - mean)).sum()
            return total

        return gradients(surrogate, x)[0]


def _resolvent(problem: Problem, x: Tensor, response: Response, fresh: Samples, visits: Tensor) -> Tensor:
    """Σ visits · ∇(Q* − V*) by one adjoint solve: the cotangent on Q is n − π Σ_a n, n the weighted visits of each (s, a)."""
    assert response.value is not None
    played, policy = fresh.trajectories, response.policy
    cell = (played.states * policy.shape[-1] + played.actions).flatten()
    table = torch.zeros(policy.numel(), dtype=visits.dtype, device=visits.device).index_add_(0, cell, visits.flatten()).view(policy.shape)
    cotangent = table - policy * table.sum(-1, keepdim=True)
    return problem.backup_vjp(x, response.value, adjoint(problem.at(x), policy, cotangent, response.factor))


def _centred(weights: Tensor) -> Tensor:
    """c_nt less the mean over the *other* trajectories: the same as Σ c_nt (∇r_nt − mean of the others' ∇r_t).

    E[c_t] = 0 whatever came before, so nothing is biased, and the noise along a constant shift of r, which moves no policy, cancels.
    """
    count = weights.shape[0]
    return weights - (weights.sum(0) - weights) / (count - 1) if count > 1 else weights


def _shape(fresh: Samples) -> tuple[int, int]:
    count, steps = fresh.trajectories.alive.shape
    return count, steps
