"""HPGD: the hyper-gradient of a discounted upper-level cost, by advantages of both levels."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log
from typing import Literal

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.hypergradients.fit import not_explicit, refusal, values_of
from bilevel_gym.numerics import adjoint, draw_horizons
from bilevel_gym.types import (
    AdvantageObjective,
    DiscountedObjective,
    Evaluation,
    Hypergradient,
    Oracle,
    Places,
    Problem,
    Response,
    Trajectory,
)

__all__ = ["AdvantageWeighted", "Variant"]

Variant = Literal["oracle", "sampled", "model_free"]
"""What is computed from the tables and what is seen on trajectories; see ``AdvantageWeighted``."""

NEGLIGIBLE = 1e-3
"""Trajectories of an upper level without a horizon are as long as γ̄^t is above it."""


@dataclass(frozen=True)
class AdvantageWeighted:
    """∇φ = E Σ_t γ̄^t ( τ⁻¹ ∂A_lower(s_t,a_t) · A_upper(s_t,a_t) + ∂r̄(s_t,a_t) ),  A_lower = Q* − V* (mathematics §7).

    Source: HPGD (Thoma, Pasztor, Krause, Ramponi, Hu, NeurIPS 2024); their λ is our τ. E is over contexts and over trajectories of π.

    * ``"oracle"``: the sum over all (s, a) with exact occupancies, A_upper and ∂A_lower by one adjoint solve: the same as ``Exact``.
    * ``"sampled"``: N trajectories are played; Σ_t γ̄^t ∂r̄ is their mean. On each, steps t are drawn with probabilities ∝ γ̄^t, and
      ∂A_lower comes from two fresh continuations, one from (s_t, a_t) for ∂Q, one from s_t for ∂V, each Σ_{k≤K} γ^{k/2} ∂r with
      K ~ Geom(1 − √γ) from 0, whose mean is the endless Σ_k γ^k ∂r and whose second moment is bounded. A_upper is exact, as if the
      leader had learnt it.
    * ``"model_free"``: A_upper is seen, too: the rest of the trajectory's own cost less its mean over the visits of the same state by
      other trajectories. Several times as noisy.

    Both are unbiased where the upper level has a horizon; without one trajectories end where γ̄^t falls to .001.

    A re-implementation: the released code averages values and sensitivities over the visits of each (s, a) within one batch, which is
    biased. On preference losses A_upper is L − E_πL, and ``"oracle"`` takes that; where L has to be learnt from samples HPGD is
    ``ScoreFunction("rollout", weighting="advantage")``.

    Args:
        variant: one of the above.
        trajectories: N ≥ 2, of the upper level.
        draws: steps drawn of each trajectory.

    Raises:
        InvalidProblem: an unknown variant, or a number that is too small.

    Cost: oracle, that of ``Exact`` twice; else N·T + about 2·draws·N/(1 − √γ) environment steps, less where episodes end.
    """

    variant: Variant = "sampled"
    trajectories: int = 50
    draws: int = 4

    def __post_init__(self) -> None:
        if self.variant not in ("oracle", "sampled", "model_free"):
            raise InvalidProblem(f"variant is {self.variant!r}: choose 'oracle', 'sampled' or 'model_free'")
        if self.trajectories < 2 or self.draws < 1:
            raise InvalidProblem(
                f"trajectories is {self.trajectories} and draws {self.draws}: two trajectories at least, one is the other's baseline, and one draw"
            )

    @property
    def batched(self) -> bool:
        """Whether it takes a batch of problems at once; samples are drawn problem by problem."""
        return self.variant == "oracle"

    def supports(self, problem: Problem) -> str | None:
        """None, or the reason why the problem does not fit."""
        kind, name = (AdvantageObjective, "an advantage") if self.variant == "oracle" else (DiscountedObjective, "a discounted upper cost")
        if not isinstance(problem.objective, kind):
            reason: str | None = f"it needs {name}, as of objectives.ReturnObjective, and f is a {type(problem.objective).__name__}"
        elif not problem.regularizer.entropic:
            reason = f"∂A/τ is the score under an entropy or a divergence, not under {type(problem.regularizer).__name__}"
        else:
            reason = not_explicit(problem)
        if reason is not None or self.variant == "oracle":
            return refusal(reason, problem)
        if getattr(problem.world, "depends_on_x", False):
            return "P depends on x, and sampled sensitivities differentiate the reward alone; use variant='oracle'"
        if problem.objective.world is not None:
            return "f is a cost in another world, and the follower's trajectories are not in it; use variant='oracle'"
        if problem.objective.regularizer is not None and self.variant == "model_free":
            return "f has an entropy of its own, which trajectories do not show; use variant='sampled'"
        return None

    def init(self, oracle: Oracle) -> None:
        """No state."""
        return

    @torch.no_grad()
    def __call__(self, oracle: Oracle, x: Tensor, response: Response, evaluation: Evaluation, state: None) -> tuple[Hypergradient, None]:
        """∇φ(x), or one estimate of it: x [B, D] → [B, D]; the sampled variant takes one problem, [D]."""
        direct, implicit = (self._from_tables if self.variant == "oracle" else self._from_samples)(oracle, x, response)
        return Hypergradient(direct + implicit, direct, implicit), None

    def _from_tables(self, oracle: Oracle, x: Tensor, response: Response) -> tuple[Tensor, Tensor]:
        problem, policy = oracle.problem, response.policy
        advantage, visits = problem.objective.advantage(problem, x, policy)
        # Σ_a π A_upper = 0, so ∂V* drops out of the sum, and what remains is a cotangent on Q*.
        scores = visits.unsqueeze(-1) * policy * advantage / problem.regularizer.temperature
        implicit = problem.backup_vjp(x, values_of(response), adjoint(problem.at(x), policy, scores, response.factor))
        return problem.objective.gradient(problem, x, policy)[0], implicit

    def _from_samples(self, oracle: Oracle, x: Tensor, response: Response) -> tuple[Tensor, Tensor]:
        problem, policy, generator = oracle.problem, response.policy, oracle.generator
        value = values_of(response)
        upper = problem.objective.at(problem, x)
        played = oracle.rollout(policy, trajectories=self.trajectories, steps=problem.objective.horizon or _length(upper.discount))
        counts = _powers(upper.discount, played) * played.alive
        direct = problem.objective.cost_vjp(problem, x, _table(counts / self.trajectories, played, policy))
        if self.variant == "sampled":
            gain = _look_up(problem.objective.advantage(problem, x, policy)[0], played)
        else:
            ahead = _to_go(counts * _look_up(upper.reward.expand(policy.shape), played))
            gain = _less_the_others(ahead / counts.clamp_min(torch.finfo(counts.dtype).tiny), played, policy)
        # Steps are drawn ∝ γ̄^t, so that each stands for Σ_t γ̄^t / draws of them.
        time = torch.multinomial(counts, self.draws, replacement=True, generator=generator).flatten()
        row = torch.arange(self.trajectories, device=time.device).repeat_interleave(self.draws)
        share = counts.sum(-1)[row] / (self.draws * self.trajectories)
        weight = (share * gain[row, time] / problem.regularizer.temperature).unsqueeze(-1)
        discount, scores = problem.world.discount, torch.zeros_like(policy)
        for sign, given in ((1.0, True), (-1.0, False)):
            length = draw_horizons(len(row), discount, generator)
            on = oracle.branch(policy, Places(played, row, time), steps=length, given=given)
            scores += _table(sign * weight * _powers(discount**0.5, on) * on.alive, on, policy)
        return direct, problem.backup_vjp(x, value, scores)


def _length(discount: float) -> int:
    """The first t with γ̄^t ≤ ``NEGLIGIBLE``."""
    return ceil(log(NEGLIGIBLE) / log(discount)) if discount > 0 else 1


def _powers(discount: float, played: Trajectory) -> Tensor:
    """γ^t: [T]."""
    return discount ** torch.arange(played.alive.shape[-1], dtype=torch.float64, device=played.alive.device)


def _cells(played: Trajectory, policy: Tensor) -> Tensor:
    """The place of each step in a flattened table like the policy's: [N, T]."""
    cells: Tensor = played.states * policy.shape[-1] + played.actions
    return cells if played.contexts is None else cells + played.contexts.unsqueeze(-1) * policy[0].numel()


def _look_up(table: Tensor, played: Trajectory) -> Tensor:
    """The entry of each step in a table like the policy's: [S, A] → [N, T]."""
    return table.flatten()[_cells(played, table)]


def _table(weights: Tensor, played: Trajectory, policy: Tensor) -> Tensor:
    """The weights of all steps added up by state and action: [N, T] → [S, A]."""
    return torch.zeros_like(policy).flatten().index_add_(0, _cells(played, policy).flatten(), weights.flatten()).view(policy.shape)


def _to_go(costs: Tensor) -> Tensor:
    """Σ_{k≥t} of what each trajectory still pays: [N, T] → [N, T]."""
    return costs.flip(-1).cumsum(-1).flip(-1)


def _less_the_others(ahead: Tensor, played: Trajectory, policy: Tensor) -> Tensor:
    """Less the mean over the other trajectories' visits of the state, 0 where there are none: [N, T] → [N, T].

    Given the state the mean of ∂A_lower over actions is zero, so whatever does not depend on the trajectory itself may be subtracted.
    """
    state = _cells(played, policy) // policy.shape[-1]
    alive = played.alive.to(ahead.dtype)
    total, visits = (ahead.new_zeros(len(ahead), policy[..., 0].numel()).scatter_add_(1, state, part) for part in (ahead * alive, alive))
    mean = (total.sum(0) - total) / (visits.sum(0) - visits).clamp_min(1.0)
    return ahead - mean.gather(1, state)
