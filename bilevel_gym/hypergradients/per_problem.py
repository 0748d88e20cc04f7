"""Estimators that know one problem at a time, over a batch of them."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from bilevel_gym.types import Estimator, Evaluation, Hypergradient, Oracle, Problem, Response

__all__ = ["PerProblem"]


@dataclass(frozen=True)
class PerProblem:
    """Asks an estimator for each problem of a batch in turn, with the samples, the generator and the state of that problem.

    Sampled estimators set ``batched = False``, and agents on vectorized environments wrap them in this. Member i then gets what it
    would get alone.

    Args:
        estimator: for one problem.

    Cost: B times that of ``estimator``.
    """

    estimator: Estimator

    def supports(self, problem: Problem) -> str | None:
        """None, or the reason why the inner estimator does not fit."""
        return self.estimator.supports(problem)

    def init(self, oracle: Oracle) -> list[Any]:
        """One state for each problem."""
        return [self.estimator.init(member.oracle) for member in oracle.members]  # type: ignore[attr-defined]

    def __call__(
        self, oracle: Oracle, x: Tensor, response: Response, evaluation: Evaluation, state: list[Any]
    ) -> tuple[Hypergradient, list[Any]]:
        """One estimate of each ∇φ: x [B, D] → [B, D]; diagnostics are means over those of the batch that have them."""
        members = oracle.members  # type: ignore[attr-defined]
        found = [self.estimator(member.oracle, x[i], member.response, member.evaluation, state[i]) for i, member in enumerate(members)]
        parts = [part for part, _ in found]
        value, direct, implicit = (torch.stack([getattr(part, name) for part in parts]) for name in ("value", "direct", "implicit"))
        stats: dict[str, list[float]] = {}
        for part in parts:
            for name, number in part.stats.items():
                stats.setdefault(name, []).append(number)
        means = {name: fmean(numbers) for name, numbers in stats.items()}
        return Hypergradient(value, direct, implicit, means), [after for _, after in found]
