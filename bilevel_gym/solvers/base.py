"""The one loop that every tabular lower-level solver runs in, and the rules that stop it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.types import MDP, Budget, Problem, Response

__all__ = ["TabularSolver", "fitting_solver", "iterate", "policy_error", "step_limit"]

State = TypeVar("State")

GIVE_UP = 1_000_000
"""Steps after which any solve ends, converged or not."""


def iterate(step: Callable[[State], State], state: State, *, limit: int, done: Callable[[State], bool] | None) -> tuple[State, int, bool]:
    """Step until ``done`` or ``limit``: the last state, the steps taken, and whether it was ``done``."""
    taken = 0
    while taken < limit:
        state = step(state)
        taken += 1
        if done is not None and done(state):
            return state, taken, True
    return state, taken, False


def step_limit(own: int | None, budget: Budget | None) -> int:
    """The steps that a solve may take: the solver's own limit, the budget's, or a million.

    Raises:
        InvalidProblem: a budget of no steps.
    """
    limit = min(limit for limit in (own, None if budget is None else budget.steps, GIVE_UP) if limit is not None)
    if limit < 1:
        raise InvalidProblem("a budget of no steps leaves nothing to certify: give at least one, or keep the response that is there")
    return limit


def fitting_solver(problem: Any) -> str:
    """The name of a solver that fits a problem: what the others' refusals end with."""
    if hasattr(problem, "lower"):
        return "solvers.GradientDescentSolver"
    if hasattr(problem, "incentives"):
        return "multiagent.SoftGameIteration, IndependentTables or IndependentNetworks"
    if problem.tabular:
        return "solvers.SoftPolicyIteration"
    if hasattr(problem.world, "state_matrix") and hasattr(problem.reward, "weights"):
        return "solvers.Riccati"
    if hasattr(problem.world, "open"):
        return "solvers.DiscreteSAC" if hasattr(problem.world, "action_count") else "solvers.SAC"
    return "a solver of your own, any object with start and solve"


def policy_error(gap: Tensor, mdp: MDP) -> Tensor:
    """A bound of ‖π − π*‖² from the residual: S (L gap / (1−γ))².

    ‖Q − Q*‖_∞ ≤ gap/(1−γ), and q ↦ π is L-Lipschitz from ‖·‖_∞ to ‖·‖_2 in each of the S rows: 1/τ for a softmax, √A/τ for sparsemax.

    Args:
        gap: [B] a bound of the soft Bellman residual; with contexts [B, C], and each follower is bounded by itself.

    Returns:
        [B].
    """
    states, actions = mdp.reward.shape[-2:]
    return states * (mdp.regularizer.lipschitz(actions) * gap / (1.0 - mdp.discount)) ** 2


@dataclass(frozen=True)
class TabularSolver(ABC, Generic[State]):
    """A solver of the soft Bellman equation V = F(x, V) on a table (mathematics §2).

    Args:
        sweeps: steps at most; exactly so many where no tolerance is given.
        tolerance: stop once the residual ‖F(x,V) − V‖_∞ is below it (in every problem of a batch), or at the rounding error of V.
        policy_tolerance: stop once ‖π − π*‖² is certified to be below it (see ``policy_error``), the accuracy ε of the SoBiRL analysis.

    Raises:
        InvalidProblem: a limit that is not positive.
    """

    _: KW_ONLY
    sweeps: int | None = None
    tolerance: float | None = None
    policy_tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.sweeps is not None and self.sweeps < 1:
            raise InvalidProblem(f"sweeps is {self.sweeps}: a solve takes one step at least")
        for name in ("tolerance", "policy_tolerance"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise InvalidProblem(f"{name} is {limit}: it must be positive, such as 1e-10")

    def start(self, problem: Problem) -> Response:
        """The follower before it has seen any x: V = 0, and the policy that minimises Ω (uniform for the entropy).

        Raises:
            UnsupportedProblem: the world is not a table.
        """
        if not problem.tabular:
            raise UnsupportedProblem(f"{type(self).__name__} solves tabular problems, and this is none; use {fitting_solver(problem)}")
        world = problem.world
        zeros = torch.zeros(*world.start.shape, world.actions, dtype=world.start.dtype, device=world.start.device)
        q = zeros - problem.regularizer.conjugate(zeros).unsqueeze(-1)
        return Response(
            policy=problem.regularizer.policy(q),
            value=zeros[..., 0],
            q=q,
            gap=torch.full(zeros.shape[: -2 if world.context_weights is None else -3], torch.inf, dtype=zeros.dtype, device=zeros.device),
        )

    @torch.no_grad()
    def solve(
        self,
        problem: Problem,
        x: Tensor,
        *,
        warm: Response | None = None,
        budget: Budget | None = None,
        generator: torch.Generator | None = None,
    ) -> Response:
        """The follower's answer to x, warm-started at ``warm.value``.

        Args:
            problem: a tabular problem.
            x: [B, D].
            warm: an earlier response, or None for a cold start.
            budget: a further limit on the number of steps.
            generator: not used, the solve is deterministic.

        Returns:
            policy and q [B, S, A], value [B, S], gap [B]; ``converged`` where a tolerance is certified in every problem.

        Raises:
            InvalidProblem: a budget of no steps.
        """
        warm = self.start(problem) if warm is None else warm
        mdp = problem.at(x)
        limit = step_limit(self.sweeps, budget)
        judged = self.tolerance is not None or self.policy_tolerance is not None
        state, steps, converged = iterate(
            lambda state: self._step(mdp, state),
            self._init(mdp, warm),
            limit=limit,
            done=(lambda state: self._done(mdp, state)) if judged else None,
        )
        response = self._response(mdp, state, steps, converged and bool(self._certified(mdp, self._gap(mdp, state)[0]).all()))
        return response if problem.world.context_weights is None else replace(response, gap=response.gap.amax(-1))

    def _done(self, mdp: MDP, state: State) -> bool:
        """Certified everywhere, or as far as rounding lets it get.

        Raises:
            InvalidProblem: the residual is not finite.
        """
        gap, scale = self._gap(mdp, state)
        if not bool(gap.isfinite().all()):
            raise InvalidProblem(
                "the soft Bellman residual is not finite: there is a NaN or an infinity in r_x, in P(x) or in the warm start; look at x first"
            )
        return bool((self._certified(mdp, gap) | (gap <= torch.finfo(gap.dtype).eps * 8.0 * scale)).all())

    def _certified(self, mdp: MDP, gap: Tensor) -> Tensor:
        met = torch.zeros_like(gap, dtype=torch.bool)
        if self.tolerance is not None:
            met = met | (gap <= self.tolerance)
        if self.policy_tolerance is not None:
            met = met | (policy_error(gap, mdp) <= self.policy_tolerance)
        return met

    @abstractmethod
    def _init(self, mdp: MDP, warm: Response) -> State:
        """The iterate to start from."""

    @abstractmethod
    def _step(self, mdp: MDP, state: State) -> State:
        """One sweep or Newton step."""

    @abstractmethod
    def _gap(self, mdp: MDP, state: State) -> tuple[Tensor, Tensor]:
        """A bound of the residual [B], and the magnitude ‖V‖_∞ [B] that its rounding error is relative to."""

    @abstractmethod
    def _response(self, mdp: MDP, state: State, steps: int, converged: bool) -> Response:
        """The response at the last iterate."""
