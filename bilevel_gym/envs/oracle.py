"""What estimators may ask for beyond the current response, counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.types import AsideObjective, Evaluation, LowerSolver, OuterProblem, Places, Response, Trajectory

__all__ = ["Counters", "ProblemOracle", "check_asked"]


@dataclass
class Counters:
    """How much has been used since the last cold reset."""

    upper_step: int = 0
    """Upper steps taken by the environment."""
    lower_step: int = 0
    """Sweeps, Newton steps or gradient updates of the lower level."""
    env_steps: int = 0
    """Environment steps, those of the evaluation included."""
    comparisons: int = 0
    """Labels asked of the teacher."""


def check_asked(limits: Mapping[str, float], asked: float) -> None:
    """Refuse a budget of comparisons where nobody is compared.

    Args:
        limits: the budgets by the names of counters.
        asked: comparisons so far, after a reset at least; who asks at all asks at the first look.

    Raises:
        InvalidProblem: it would never be spent.
    """
    if "comparisons" in limits and not asked:
        raise InvalidProblem(
            "this task asks for no comparisons, so a budget of them would never be spent: limit lower_step or env_steps, or take a preference task"
        )


class ProblemOracle:
    """Solves, evaluations and rollouts on the side; the environment stays as it was, only the counters move.

    Args:
        problem: the problem that is being solved.
        solver: how the follower learns.
        generator: the source of every draw on the side.
        counters: where each use is counted; new ones by default.
    """

    def __init__(self, problem: OuterProblem, solver: LowerSolver, generator: torch.Generator, counters: Counters | None = None) -> None:
        self.problem = problem
        self.solver = solver
        self.generator = generator
        self.counters = Counters() if counters is None else counters

    def solve(self, x: Tensor, warm: Response | None = None, *, reward: Any = None) -> Response:
        """The follower's response at another x, or to another reward model than the problem's.

        A warm start that shares a replay or a simulator is forked first, so that it stays.
        """
        problem: Any = self.problem if reward is None else replace(cast(Any, self.problem), reward=reward)
        if warm is not None and hasattr(warm.state, "fork"):
            warm = replace(warm, state=warm.state.fork())
        response = self.solver.solve(problem, x, warm=warm, budget=None, generator=self.generator)
        self.counters.lower_step += response.steps
        self.counters.env_steps += response.env_steps
        return response

    def evaluate(self, x: Tensor, response: Response) -> Evaluation:
        """Another look at a response, with a fresh memory that is thrown away."""
        objective: Any = self.problem.objective
        if isinstance(objective, AsideObjective):
            objective = objective.aside()
        evaluation, _ = objective.evaluate(self.problem, x, response, objective.start(), self.generator)
        self.counters.env_steps += evaluation.env_steps
        self.counters.comparisons += evaluation.comparisons
        result: Evaluation = evaluation
        return result

    def rollout(self, policy: Any, *, trajectories: int, steps: int) -> Trajectory:
        """More trajectories of a policy."""
        self.counters.env_steps += trajectories * steps
        result: Trajectory = self.problem.world.rollout(policy, trajectories=trajectories, steps=steps, generator=self.generator)
        return result

    def branch(self, policy: Any, places: Places, *, steps: Tensor, given: bool = False) -> Trajectory:
        """Continuations of a policy from steps of trajectories (see ``types.Branching``); only steps that were played are counted."""
        played: Trajectory = self.problem.world.branch(policy, places, steps=steps, generator=self.generator, given=given)
        self.counters.env_steps += int(played.alive.sum())
        return played
