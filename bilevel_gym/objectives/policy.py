"""Upper objectives that are explicit functions of x and of a tabular policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel_gym.numerics import gradients
from bilevel_gym.types import Evaluation, Problem, Response

__all__ = ["ExplicitObjective", "QuadraticObjective"]


class ExplicitObjective(ABC):
    """A model-based f(x, π); a subclass writes ``value`` in torch, and has the gradients by one backward pass."""

    @abstractmethod
    def value(self, problem: Problem, x: Tensor, policy: Tensor) -> Tensor:
        """f(x, π): [B, D], [B, S, A] → [B]; with contexts the weighted mean over them (``problem.over_contexts``)."""

    def gradient(self, problem: Problem, x: Tensor, policy: Tensor) -> tuple[Tensor, Tensor]:
        """(∇_x f [B, D], ∇_π f [B, S, A])."""
        by_x, by_policy = gradients(lambda x, policy: self.value(problem, x, policy), x, policy)
        return by_x, by_policy

    def start(self) -> None:
        """No memory: an explicit objective draws no samples."""
        return

    def evaluate(
        self, problem: Problem, x: Tensor, response: Response, memory: None, generator: torch.Generator
    ) -> tuple[Evaluation, None]:
        """f at the response: exact, no samples, no environment steps."""
        metrics = self.metrics(problem, x, response.policy) if x.ndim == 1 else {}
        return Evaluation(self.value(problem, x, response.policy), metrics=metrics), None

    def metrics(self, problem: Problem, x: Tensor, policy: Tensor) -> dict[str, float]:
        """Named numbers beside f at one x [D], not at a batch; none unless a subclass has some."""
        return {}


@dataclass(frozen=True)
class QuadraticObjective(ExplicitObjective):
    """f(x, π) = ½‖x‖² + ½‖π‖², the objective of the authors' synthetic run; its minimum over all is S/(2A), at x = 0 and uniform rows."""

    def value(self, problem: Problem, x: Tensor, policy: Tensor) -> Tensor:
        """½‖x‖² + ½‖π‖²: [B, D], [B, S, A] → [B]."""
        return 0.5 * ((x * x).sum(-1) + problem.over_contexts((policy * policy).sum((-2, -1))))

    def gradient(self, problem: Problem, x: Tensor, policy: Tensor) -> tuple[Tensor, Tensor]:
        """(x, π), the latter times the weights of the contexts where there are any."""
        weights = problem.world.context_weights
        return x, policy if weights is None else weights[:, None, None] * policy
