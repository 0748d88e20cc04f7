"""The unregularized limit: one temperature after another, each solve warm-started at the last, with the distance to τ = 0 reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.numerics import backup, factorize, solve_transposed
from bilevel_gym.solvers.base import iterate
from bilevel_gym.solvers.policy_iteration import SoftPolicyIteration
from bilevel_gym.types import MDP, Budget, Factor, LowerSolver, Problem, Regularizer, Response

__all__ = ["Continuation", "Stage", "UnregularizedGap", "anneal", "unregularized_gap"]


class UnregularizedGap(NamedTuple):
    """How far a soft follower is from the best unregularized one, in the worst state (of the worst follower): max_s (V*₀ − V^π₀)(s)."""

    bound: Tensor
    """[B] known beforehand: (τ (max Ω − min Ω) + 2 gap) / (1−γ), for Shannon's entropy τ log A / (1−γ)."""
    measured: Tensor
    """[B] by policy iteration at τ = 0."""


class Stage(NamedTuple):
    """One temperature of a schedule."""

    temperature: float
    """τ."""
    response: Response
    """The follower at this τ."""
    gap: UnregularizedGap
    """Its distance to the unregularized optimum."""


@dataclass(frozen=True)
class Continuation:
    """A follower that is cooled down to the problem's temperature: each solve is the warm start of the next.

    The response is the one at the problem's own τ, so that every estimator works on it as it would without continuation; set that τ
    by ``problem.under(problem.regularizer.at(1e-3))``. ``SoftPolicyIteration`` converges at any τ from any start, and all stages
    together take *more* of its steps than one cold solve does: continuation is for solvers that need a good start at a small τ.

    Args:
        temperatures: τ₀ > τ₁ > …; those that are not above the problem's own are passed over.
        solver: what solves at each temperature.

    Raises:
        InvalidProblem: the temperatures do not decrease, or there are none.

    Cost: a solve for each temperature. A budget of steps is kept, the hottest stages being left out where it does not reach.
    """

    temperatures: tuple[float, ...] = (1.0, 0.1, 0.01)
    solver: LowerSolver = SoftPolicyIteration()

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperatures", _schedule(self.temperatures))

    def start(self, problem: Problem) -> Response:
        """The follower before it has seen any x, at the problem's own temperature."""
        return self.solver.start(problem)

    def solve(
        self,
        problem: Problem,
        x: Tensor,
        *,
        warm: Response | None = None,
        budget: Budget | None = None,
        generator: torch.Generator | None = None,
    ) -> Response:
        """The follower's answer to x at the problem's temperature: x [B, D]; ``steps`` counts those of every stage."""
        own = problem.regularizer
        path = [*(own.at(hotter) for hotter in self.temperatures if hotter > own.temperature), own]
        left = None if budget is None else budget.steps
        path = path if left is None else path[-max(left, 1) :]
        generator = torch.Generator(device=x.device) if generator is None else generator
        steps = env_steps = 0
        for waiting, regularizer in zip(range(len(path) - 1, -1, -1), path, strict=True):
            share = None if left is None else Budget(steps=left - steps - waiting)  # a step at least for each stage that waits
            warm = self.solver.solve(problem.under(regularizer), x, warm=warm, budget=share, generator=generator)
            steps, env_steps = steps + warm.steps, env_steps + warm.env_steps
        assert warm is not None
        return replace(warm, steps=steps, env_steps=env_steps)


def anneal(
    problem: Problem, x: Tensor, temperatures: Sequence[float], *, solver: LowerSolver | None = None, warm: Response | None = None
) -> list[Stage]:
    """The follower's answer to x at each of the temperatures, on the way to the unregularized limit.

    As τ → 0 the soft-optimal policy tends to an optimal one of the unregularized problem, and V^π₀ rises monotonically in every state.

    Args:
        problem: a tabular problem; its own temperature is not used.
        x: [B, D].
        temperatures: τ₀ > τ₁ > … > 0.
        solver: ``SoftPolicyIteration()`` by default.
        warm: where the first solve starts.

    Returns:
        one stage for each temperature.

    Raises:
        InvalidProblem: the temperatures do not decrease, or there are none.
        UnsupportedProblem: the problem is not tabular.

    Cost: one solve and one policy iteration for each temperature.
    """
    solver = SoftPolicyIteration() if solver is None else solver
    generator = torch.Generator(device=x.device)
    stages: list[Stage] = []
    for temperature in _schedule(temperatures):
        cooled = problem.under(problem.regularizer.at(temperature))
        warm = solver.solve(cooled, x, warm=warm, budget=None, generator=generator)
        stages.append(Stage(temperature, warm, unregularized_gap(cooled, x, warm)))
    return stages


@torch.no_grad()
def unregularized_gap(problem: Problem, x: Tensor, response: Response) -> UnregularizedGap:
    """The distance of a response to the unregularized optimum, as known beforehand and as measured.

    With K(π) = E Σ γ^t Ω(π_{s_t}) the soft optimum has V*₀ − V^π₀ ≤ τ (K(π*₀) − K(π)) ≤ τ (max Ω − min Ω)/(1−γ); a response with a soft
    Bellman residual ≤ gap loses at most 2 gap/(1−γ) more. The optimum is over the policies that Ω allows: under KL, those that
    stay in the support of μ.

    Args:
        problem: tabular, under the τΩ that the response answers.
        x: [B, D].
        response: of a tabular solver.

    Returns:
        two tensors [B]. Cost: O(S²A + S³) for each step of policy iteration, of which there are a handful.
    """
    mdp = problem.at(x)
    policy: Tensor = response.policy
    allowed, spread = _extremes(mdp.regularizer, policy)
    value = _evaluate(mdp, policy, response.factor)
    axes = -1 if problem.world.context_weights is None else (-2, -1)
    bound = (spread.amax(axes) + 2.0 * response.gap) / (1.0 - mdp.discount)
    return UnregularizedGap(bound, (_optimum(mdp, allowed, value) - value).amax(axes))


def _extremes(regularizer: Regularizer, policy: Tensor) -> tuple[Tensor, Tensor]:
    """Where Ω is finite, [B, S, A], and τ(max Ω − min Ω), [B, S]: a convex Ω is largest at a vertex, and −min τΩ = τΩ*(0)."""
    zeros = torch.zeros_like(policy)
    allowed = regularizer.policy(zeros) > 0
    vertices = torch.eye(policy.shape[-1], dtype=policy.dtype, device=policy.device).view(-1, *(1,) * (policy.ndim - 1), policy.shape[-1])
    largest = regularizer.penalty(vertices.expand(-1, *policy.shape)).movedim(0, -1)
    return allowed, largest.masked_fill(~allowed, -torch.inf).amax(-1) + regularizer.conjugate(zeros)


def _evaluate(mdp: MDP, policy: Tensor, factor: Factor | None = None) -> Tensor:
    """V^π₀ = (I − γP_π)⁻¹ r_π: [B, S, A] → [B, S]."""
    factor = factorize(mdp, policy) if factor is None else factor
    return solve_transposed(factor, (policy * mdp.reward).sum(-1), transposed=False)


def _optimum(mdp: MDP, allowed: Tensor, value: Tensor) -> Tensor:
    """V*₀ by Howard's policy iteration from a value that some policy has: [B, S] → [B, S]."""

    def improve(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        best, choice = backup(mdp, state[0]).masked_fill(~allowed, -torch.inf).max(-1)
        policy = torch.nn.functional.one_hot(choice, allowed.shape[-1]).to(value.dtype)
        return _evaluate(mdp, policy), best - state[0]

    def settled(state: tuple[Tensor, Tensor]) -> bool:
        return bool((state[1] <= 1e-13 * (1.0 + state[0].abs().amax(-1, keepdim=True))).all())

    (best, _), _, _ = iterate(improve, (value, torch.full_like(value, torch.inf)), limit=1000, done=settled)
    return best


def _schedule(temperatures: Sequence[float]) -> tuple[float, ...]:
    path = tuple(temperatures)
    if not path or any(not later < earlier for earlier, later in pairwise(path)):
        raise InvalidProblem(f"temperatures are {path}: give at least one, each below the one before it, such as (1.0, 0.1, 0.01)")
    return path
