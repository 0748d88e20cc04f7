"""What may be asked of solvers and estimators, and what they may ask."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from bilevel_gym.types.flow import Budget, Evaluation, Hypergradient, Places, Response, Trajectory

__all__ = ["Estimator", "LowerSolver", "Oracle"]


class LowerSolver(Protocol):
    """How the follower learns. A user's own solver is any object with these two methods."""

    def start(self, problem: Any) -> Response:
        """The follower before it has seen any x."""
        ...

    def solve(self, problem: Any, x: Tensor, *, warm: Response | None, budget: Budget | None, generator: torch.Generator) -> Response:
        """Answer x, starting from ``warm`` (``start(problem)`` where it is None)."""
        ...


class Oracle(Protocol):
    """What an estimator may ask of the environment; each use is counted and leaves the environment as it was."""

    @property
    def problem(self) -> Any:
        """The problem that is being solved."""
        ...

    @property
    def generator(self) -> torch.Generator:
        """The source of the estimator's random draws."""
        ...

    def solve(self, x: Tensor, warm: Response | None = None, *, reward: Any = None) -> Response:
        """The follower's response at another x, or to another ``RewardModel`` than the problem's."""
        ...

    def evaluate(self, x: Tensor, response: Response) -> Evaluation:
        """Another look at a response."""
        ...

    def rollout(self, policy: Any, *, trajectories: int, steps: int) -> Trajectory:
        """More trajectories of a policy."""
        ...

    def branch(self, policy: Any, places: Places, *, steps: Tensor, given: bool = False) -> Trajectory:
        """Continuations of a policy from steps of trajectories, on worlds that are ``Branching``."""
        ...


class Estimator(Protocol):
    """A hyper-gradient estimator; like an Optax transform, with all state in the open."""

    def supports(self, problem: Any) -> str | None:
        """None, or the reason why this estimator does not fit the problem."""
        ...

    def init(self, oracle: Oracle) -> Any:
        """The state before the first estimate."""
        ...

    def __call__(self, oracle: Oracle, x: Tensor, response: Response, evaluation: Evaluation, state: Any) -> tuple[Hypergradient, Any]:
        """One estimate of ∇φ(x), and the state afterwards."""
        ...
