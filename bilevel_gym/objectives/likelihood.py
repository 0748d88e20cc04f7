"""How unlikely demonstrations are under the follower's policy: apprenticeship and policy teaching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.numerics import ArrayLike, as_table
from bilevel_gym.objectives.policy import ExplicitObjective
from bilevel_gym.objectives.returns import ReturnObjective
from bilevel_gym.types import Problem, TabularWorldLike

__all__ = ["DemonstrationLikelihood"]


class DemonstrationLikelihood(ExplicitObjective):
    """f(x, π) = ( V^π_ρ̂(x) − ⟨d̂, r(x)⟩ )/τ + ½ λ‖x‖², V^π the soft value of π (mathematics §9).

    φ(x) = (V*_ρ̂(x) − ⟨d̂, r(x)⟩)/τ + ½ λ‖x‖² is **convex** where r is linear in x, with the gradient (∂r/∂x)ᵀ(d_π* − d̂)/τ + λx: f is
    stationary in π at π*, so nothing reaches x through the policy. Where d̂ is the discounted occupancy of a policy π† from ρ̂ = ρ, and
    not only that of finitely many demonstrations, φ is the discounted negative log-likelihood of π† less a constant; the sample
    log-likelihood itself would not be convex.

    Args:
        occupancy: d̂ [S, A] (or [C, S, A]), the mean of Σ_t γᵗ 1[s_t = s, a_t = a] over the demonstrations.
        world: a world whose start law is ρ̂, that of the demonstrations; None is the follower's.
        ridge: λ ≥ 0, which makes the minimiser unique.
        device: where d̂ goes.

    Raises:
        InvalidProblem: a negative number or one that is not finite.

    Cost: one LU, O(S³ + S²A).
    """

    def __init__(
        self,
        occupancy: ArrayLike,
        *,
        world: TabularWorldLike | None = None,
        ridge: float = 0.0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.occupancy = as_table(occupancy, device)
        if not bool((self.occupancy >= 0).all()) or not bool(self.occupancy.isfinite().all()) or not 0.0 <= ridge < float("inf"):
            raise InvalidProblem("occupancy counts discounted visits and ridge weighs ½‖x‖²: they must be finite and not negative")
        self.world, self.ridge = world, ridge

    def value(self, problem: Problem, x: Tensor, policy: Tensor) -> Tensor:
        """f(x, π): [B, D], [B, S, A] → [B].

        Raises:
            InvalidProblem: d̂ is not a table of this world's states and actions.
        """
        if self.occupancy.shape[-2:] != policy.shape[-2:]:
            raise InvalidProblem(f"occupancy has shape {tuple(self.occupancy.shape)}: it must end with [S, A] = {list(policy.shape[-2:])}")
        shown = problem.over_contexts((self.occupancy * problem.at(x).reward).sum((-2, -1)))
        excess = -self._cost(problem).value(problem, x, policy) - shown
        return excess / problem.regularizer.temperature + 0.5 * self.ridge * (x * x).sum(-1)

    def gradient(self, problem: Problem, x: Tensor, policy: Tensor) -> tuple[Tensor, Tensor]:
        """(∇_x f [B, D], ∇_π f [B, S, A])."""
        by_x, by_policy = self._cost(problem).gradient(problem, x, policy)
        weights = problem.world.context_weights
        shown = (self.occupancy if weights is None else weights[:, None, None] * self.occupancy).expand_as(policy)
        by_x = by_x + problem.backup_vjp(x, torch.zeros_like(policy[..., 0]), shown)
        tau = problem.regularizer.temperature
        return self.ridge * x - by_x / tau, -by_policy / tau

    @classmethod
    def stack(cls, parts: Sequence[DemonstrationLikelihood]) -> DemonstrationLikelihood:
        """Likelihoods of several sets of demonstrations as a batch: d̂ [B, S, A].

        Raises:
            UnsupportedProblem: their ridges differ, or only some have a world of their own.
        """
        if any(part.ridge != parts[0].ridge or (part.world is None) != (parts[0].world is None) for part in parts):
            raise UnsupportedProblem(
                "likelihoods are stacked where they have one ridge, and all or none a world of their own: make them alike"
            )
        worlds: list[Any] = [part.world for part in parts if part.world is not None]
        occupancy = torch.stack([part.occupancy for part in parts])
        world = type(worlds[0]).stack(worlds) if worlds else None
        return cls(occupancy, world=world, ridge=parts[0].ridge, device=occupancy.device)

    def _cost(self, problem: Problem) -> ReturnObjective:
        """−V^π(x)."""
        return ReturnObjective(lambda x: -problem.reward.at(x), world=self.world, regularizer=problem.regularizer)
