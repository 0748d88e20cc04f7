"""What the follower's behaviour costs the upper level over time, in the follower's world or in another one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.numerics import (
    ArrayLike,
    as_table,
    expect_next,
    expect_pairs,
    factorize,
    gradients,
    policy_transition,
    solve_transposed,
    stack_functions,
    vjp,
)
from bilevel_gym.objectives.policy import ExplicitObjective
from bilevel_gym.types import MDP, Problem, Regularizer, TabularWorldLike

__all__ = ["ReturnObjective"]


class ReturnObjective(ExplicitObjective):
    """f(x, π) = E Σ_{t<T} γ̄^t ( r̄_x(s_t, a_t) + τ̄Ω̄(π_{s_t}) ), a discounted *cost*, in M or in another world M̄ (mathematics §7).

    With ``cost=-reward`` and ``regularizer=Shannon(τ̄)`` this is minus the soft return in M̄, as reward shaping wants it. Its gradients
    are written out: with V̄_t the cost to go, Q̄_t = r̄ + γ̄P̄V̄_{t+1} and d_t the law of s_t,

        ∂f/∂π_sa = Σ_t γ̄^t d_t(s) ( Q̄_t(s,a) + τ̄ ∂Ω̄/∂π_sa ),     ∂f/∂x = Σ_t γ̄^t Σ_sa d_t(s) π_sa ∂( r̄ + γ̄P̄V̄_{t+1} )_sa/∂x .

    Args:
        cost: r̄, a table [S, A] (or [C, S, A]), or a differentiable function x [B, D] → [B, S, A]. With contexts the function is given x
            as [B, 1, D] and returns [B, C, S, A].
        discount: γ̄, in [0, 1), or up to 1 with a horizon; None takes that of the world.
        horizon: T ≥ 1; None is an infinite one.
        world: M̄, whose P̄ and ρ̄ (and γ̄, if no ``discount`` is given) count; None is the follower's own world.
        regularizer: τ̄Ω̄, added to the cost; None is none.
        device: where a table of costs goes.

    Raises:
        InvalidProblem: a cost that is not finite or not a table, or a γ̄ or T out of range.

    Cost: one LU, O(S³ + S²A), where the horizon is infinite; O(S³ + S²(A + T)) where it is finite.
    """

    def __init__(
        self,
        cost: ArrayLike | Callable[[Tensor], Tensor],
        *,
        discount: float | None = None,
        horizon: int | None = None,
        world: TabularWorldLike | None = None,
        regularizer: Regularizer | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if horizon is not None and horizon < 1:
            raise InvalidProblem(f"horizon is {horizon}: give the number of steps that count, 1 at least, or None for infinitely many")
        if discount is not None and not (0.0 <= discount < 1.0 or (discount == 1.0 and horizon is not None)):
            raise InvalidProblem(f"discount is {discount}: it must be in [0, 1), or at most 1 where there is a horizon")
        self.cost = cost if callable(cost) else _table(cost, device)
        self.discount, self.horizon, self.world, self.regularizer = discount, horizon, world, regularizer

    @classmethod
    def stack(cls, objectives: Sequence[ReturnObjective]) -> ReturnObjective:
        """Objectives that differ in their costs alone, as a batch.

        Raises:
            UnsupportedProblem: they differ in more, or their costs are functions that cannot be stacked.
        """
        first = objectives[0]
        for other in objectives:
            same = (other.discount, other.horizon, other.regularizer) == (first.discount, first.horizon, first.regularizer)
            if not same or other.world is not first.world:
                raise UnsupportedProblem(
                    "returns are stacked where they differ in their costs alone: give them one discount, horizon and M̄"
                )
        costs: list[Any] = [other.cost for other in objectives]
        cost = torch.stack(costs) if all(isinstance(one, Tensor) for one in costs) else stack_functions(costs)
        return cls(cost, discount=first.discount, horizon=first.horizon, world=first.world, regularizer=first.regularizer)

    # ------------------------------------------------------------------------------------------ the upper level's decision problem

    def not_explicit(self, problem: Problem) -> str | None:
        """None where the follower's policy can be played in M̄, else the reason why not."""
        mine, theirs = (
            [1 if world.context_weights is None else len(world.context_weights), world.states, world.actions]
            for world in (self._world(problem), problem.world)
        )
        if mine[1:] != theirs[1:] or mine[0] not in (1, theirs[0]):
            return f"M̄ has [C, S, A] = {mine} followers, states and actions, the follower's world {theirs}: give both the same"
        return None

    def at(self, problem: Problem, x: Tensor) -> MDP:
        """M̄ at x, with r̄ in the place of the reward and ρ̄ weighted by the contexts' weights: x [B, D].

        Raises:
            UnsupportedProblem: M̄ is of other contexts, states or actions than the follower's world.
            InvalidProblem: the cost is not a table of M̄'s states and actions.
        """
        world = self._world(problem)
        weights = problem.world.context_weights
        if self.world is not None and (reason := self.not_explicit(problem)):
            raise UnsupportedProblem(reason)
        start = world.start if weights is None else weights[:, None] * world.start
        discount = world.discount if self.discount is None else self.discount
        regularizer = problem.regularizer if self.regularizer is None else self.regularizer
        cost = self._cost(problem, x)
        if cost.shape[-2:] != (world.states, world.actions):
            raise InvalidProblem(f"cost has shape {tuple(cost.shape)}: it must end with [S, A] = {[world.states, world.actions]}")
        return MDP(cost, world.transition_at(problem.lift(x)), start, discount, regularizer)

    def value(self, problem: Problem, x: Tensor, policy: Tensor) -> Tensor:
        """f(x, π): [B, D], [B, S, A] → [B]."""
        mdp = self.at(problem, x)
        total: Tensor = (self._visits(mdp, policy) * self._one_step(mdp, policy)).sum(-1)
        return total if problem.world.context_weights is None else total.sum(-1)

    def gradient(self, problem: Problem, x: Tensor, policy: Tensor) -> tuple[Tensor, Tensor]:
        """(∇_x f [B, D], ∇_π f [B, S, A])."""
        mdp = self.at(problem, x)
        moves = self._world(problem).depends_on_x
        visits, future, pairs = self._flow(mdp, policy, moves)
        by_policy = visits.unsqueeze(-1) * (mdp.reward + self._slope(policy)) + future
        by_x = self.cost_vjp(problem, x, visits.unsqueeze(-1) * policy) if callable(self.cost) else torch.zeros_like(x)
        if pairs is not None:
            outer = mdp.discount * policy.unsqueeze(-1) * pairs.unsqueeze(-2)
            moved = self._world(problem).transition_vjp(problem.lift(x), outer)
            by_x = by_x + problem.sum_contexts(moved)
        return by_x, by_policy

    def advantage(self, problem: Problem, x: Tensor, policy: Tensor) -> tuple[Tensor, Tensor]:
        """HPGD's A_upper = Q̄ − V̄, and the visits d that it is to be weighted with (mathematics §7).

        With a horizon Q̄_t − V̄_t depends on t; what is returned is its mean over the times at which s is visited,
        Σ_t γ̄^t d_t(s) (Q̄_t − V̄_t)(s,a) / d_s, and E Σ_t γ̄^t g(s_t,a_t) (Q̄_t − V̄_t)(s_t,a_t) = Σ_sa d_s π_sa g_sa A_sa for every g.

        Returns:
            A [B, S, A], zero where s is never visited, and d [B, S], times the weights of the contexts where there are any.
        """
        visits = self._visits(self.at(problem, x), policy).unsqueeze(-1)
        by_policy = self.gradient(problem, x, policy)[1]
        centred = by_policy - (policy * by_policy).sum(-1, keepdim=True)
        return torch.where(visits > 0, centred / visits.clamp_min(torch.finfo(visits.dtype).tiny), 0.0), visits.squeeze(-1)

    def cost_vjp(self, problem: Problem, x: Tensor, cotangent: Tensor) -> Tensor:
        """(∂r̄/∂x)ᵀ cotangent: [B, S, A] → [B, D]."""
        return vjp(lambda leaf: self._cost(problem, leaf), x, cotangent)

    # ------------------------------------------------------------------------------------------ parts

    def _world(self, problem: Problem) -> TabularWorldLike:
        world: TabularWorldLike = problem.world if self.world is None else self.world
        return world

    def _cost(self, problem: Problem, x: Tensor) -> Tensor:
        return self.cost(problem.lift(x)) if callable(self.cost) else self.cost

    def _one_step(self, mdp: MDP, policy: Tensor) -> Tensor:
        """Σ_a π_sa r̄_sa + τ̄Ω̄(π_s): [B, S]."""
        expected: Tensor = (policy * mdp.reward).sum(-1)
        return expected if self.regularizer is None else expected + self.regularizer.penalty(policy)

    def _slope(self, policy: Tensor) -> Tensor | float:
        """τ̄ ∂Ω̄/∂π; where it is infinite, at an action of probability zero, the penalties of ``regularizers`` give a finite number."""
        return 0.0 if self.regularizer is None else gradients(self.regularizer.penalty, policy)[0]

    def _visits(self, mdp: MDP, policy: Tensor) -> Tensor:
        """d_s = Σ_t γ̄^t P(s_t = s), t < T, times the weight of the context: [B, S]."""
        if self.horizon is None:
            return solve_transposed(factorize(mdp, policy), mdp.start)
        return _orbit(_powers(mdp, policy), mdp.start, self.horizon).sum(-2)

    def _flow(self, mdp: MDP, policy: Tensor, moves: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """d, Σ_t γ̄^t d_t(s) γ̄(P̄V̄_{t+1})_sa, and M_ss' = Σ_t γ̄^t d_t(s) V̄_{t+1}(s') where ``moves`` asks for it: [B, S], [B, S, A], [B, S, S]."""
        one_step = self._one_step(mdp, policy)
        if self.horizon is None:
            factor = factorize(mdp, policy)
            visits = solve_transposed(factor, mdp.start)
            value = solve_transposed(factor, one_step, transposed=False)
            future = mdp.discount * visits.unsqueeze(-1) * expect_next(mdp.transition, value)
            return visits, future, visits.unsqueeze(-1) * value.unsqueeze(-2) if moves else None
        powers = _powers(mdp, policy)
        laws = _orbit(powers, mdp.start, self.horizon)
        gains = _orbit([power.mT for power in powers], one_step, self.horizon)
        # V̄_{t+1} = Σ_{j < T−t−1} (γ̄P̄_π)^j (one step's cost): partial sums, read backwards; V̄_T = 0.
        ahead = gains[..., :-1, :].cumsum(-2).flip(-2)
        pairs = laws[..., :-1, :].mT @ ahead
        return laws.sum(-2), mdp.discount * expect_pairs(mdp.transition, pairs), pairs if moves else None


def _powers(mdp: MDP, policy: Tensor) -> list[Tensor]:
    """K, K², K⁴, K⁸ and K¹⁶ with K = γ̄P̄_π: a balance of squarings against sequential products; five [B, S, S]."""
    powers = [mdp.discount * policy_transition(mdp.transition, policy)]
    for _ in range(4):
        powers.append(powers[-1] @ powers[-1])
    return powers


def _orbit(powers: list[Tensor], vector: Tensor, steps: int) -> Tensor:
    """The rows vectorᵀKᵗ, t < steps: sixteen by doubling, then as many more with each product with K¹⁶. [B, S] → [B, T, S]."""
    rows = vector.expand(powers[0].shape[:-1]).unsqueeze(-2)
    for power in powers[:-1]:
        rows = torch.cat([rows, rows @ power], -2)
    blocks = [rows]
    while len(blocks) * rows.shape[-2] < steps:
        blocks.append(blocks[-1] @ powers[-1])
    return torch.cat(blocks, -2)[..., :steps, :]


def _table(cost: ArrayLike, device: str | torch.device) -> Tensor:
    table = as_table(cost, device)
    if table.ndim < 2 or not bool(table.isfinite().all()):
        raise InvalidProblem(f"cost has shape {tuple(table.shape)}: it must be a table [S, A] of finite numbers, or a function of x")
    return table
