"""What the leader pays for a round: a loss of the trajectories that the follower has just played."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bilevel_gym.arguments import checked
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.types import DiscountedObjective, Trajectory, TupleObjective

__all__ = ["ComparedRounds", "DiscountedRounds", "Rounds", "rounds_of"]


class Rounds(Protocol):
    """How long a round is, and what it costs."""

    @property
    def episodes(self) -> int:
        """I, episodes of the follower in a round."""
        ...

    @property
    def steps(self) -> int:
        """T, steps of an episode that does not end before."""
        ...

    def loss(self, problem: Any, x: Tensor, played: Trajectory, generator: torch.Generator) -> float:
        """l(d_1, …, d_I; x) of the I trajectories of a round, [I, T]; its mean over rounds under π is f(x, π)."""
        ...


@dataclass(frozen=True)
class ComparedRounds:
    """A tuple of fragments out of the round's episodes, one from each, as an objective E[l] over fragments wants them.

    Args:
        objective: what cuts them, observes their outcome (a teacher's label), and has the loss.
        steps: T.
    """

    objective: TupleObjective
    steps: int

    @property
    def episodes(self) -> int:
        """I, the fragments of a tuple."""
        return self.objective.per_tuple

    def loss(self, problem: Any, x: Tensor, played: Trajectory, generator: torch.Generator) -> float:
        """l of the one tuple that the round has."""
        with torch.no_grad():
            return float(self.objective.loss(problem, x, self.objective.tuple_of(played, generator)))


@dataclass(frozen=True)
class DiscountedRounds:
    """One episode a round: l(d; x) = Σ_{t<T} γ̄^t r̄_x(s_t, a_t), r̄ the upper level's cost.

    Args:
        objective: f = E[l].
        steps: T.
    """

    objective: DiscountedObjective
    steps: int
    episodes: int = 1

    def loss(self, problem: Any, x: Tensor, played: Trajectory, generator: torch.Generator) -> float:
        """The episode's discounted cost."""
        with torch.no_grad():
            upper = self.objective.at(problem, x)
        cost, weights = upper.reward, problem.world.context_weights
        if weights is not None:
            assert played.contexts is not None
            cost = cost.expand(len(weights), -1, -1)[played.contexts[0]]
        time = torch.arange(self.steps, dtype=cost.dtype, device=cost.device)
        return float((upper.discount**time * cost[played.states[0], played.actions[0]] * played.alive[0]).sum())


@checked
def rounds_of(problem: Any, horizon: int | None = None) -> Rounds:
    """The rounds that a problem's objective makes.

    Args:
        problem: any.
        horizon: T where f is an endless discounted cost; what it would count later is cut off, at most γ̄^T max|r̄| / (1 − γ̄).

    Raises:
        UnsupportedProblem: f is no mean of a loss of the follower's trajectories; the message says why.
        InvalidProblem: a horizon is needed and not given, or given and not needed.
    """
    objective = problem.objective
    if reason := _refuse(problem, objective):
        raise UnsupportedProblem(f"the leader is paid for what the follower plays, and here {reason}; BilevelEnv takes this problem")
    own = objective.episode_steps(problem) if isinstance(objective, TupleObjective) else objective.horizon
    if own is None and horizon is None:
        raise InvalidProblem("f is a discounted cost for ever, and a round must end: give horizon=…, the steps that are counted")
    if own is not None and horizon is not None:
        raise InvalidProblem(f"horizon is {horizon}, and f has its own, {own} steps: leave it out")
    steps = own if horizon is None else horizon
    if steps < 1:
        raise InvalidProblem(f"horizon is {steps}: an episode has one step at least")
    return ComparedRounds(objective, steps) if isinstance(objective, TupleObjective) else DiscountedRounds(objective, steps)


def _refuse(problem: Any, objective: Any) -> str | None:
    """None, or why f is not E[l] over the follower's trajectories."""
    if isinstance(objective, TupleObjective):
        if getattr(problem.world, "context_weights", None) is not None:
            return "there are several followers (contexts), and fragments do not say whose they are"
        return None if objective.on_policy else "the fragments are those of a fixed policy, so nothing that the follower plays counts"
    if not isinstance(objective, DiscountedObjective):
        return f"{type(objective).__name__} has no loss of trajectories: it is a function of the whole policy"
    if objective.world is not None:
        return "f is a cost in another world, in which the follower does not play"
    if objective.regularizer is not None:
        return "f has an entropy of its own, which trajectories do not show"
    return None
