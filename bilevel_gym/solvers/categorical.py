"""The policy that a network's scores of finitely many actions make."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from bilevel_gym.numerics import draw_categorical
from bilevel_gym.solvers.architectures import Architecture

__all__ = ["CategoricalPolicy"]


@dataclass(frozen=True)
class CategoricalPolicy:
    """A frozen policy π(·|s) = softmax(scores(s)) on A actions, which are numbers.

    Args:
        parameters: [P] flat parameters of the network observation → scores [A].
        architecture: of that network.
    """

    parameters: Tensor
    architecture: Architecture

    def clone(self) -> Self:
        """The same policy with parameters of its own."""
        return replace(self, parameters=self.parameters.clone())

    def scores(self, observations: Tensor) -> Tensor:
        """log π(·|s) up to a constant: [n, *observation] → [n, A]."""
        with torch.no_grad():
            return self.architecture.outputs(self.parameters, observations)[0]

    def sample(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one action for each observation: [n, *observation] → [n] int64."""
        return draw_categorical(self.probabilities(observations), generator)

    def mean(self, observations: Tensor) -> Tensor:
        """The most likely action: [n, *observation] → [n] int64."""
        return self.scores(observations).argmax(-1)

    def probabilities(self, observations: Tensor) -> Tensor:
        """π(·|s): [n, *observation] → [n, A]."""
        return torch.softmax(self.scores(observations), -1)

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """log π(a|s): [n, *observation], [n] int64 → [n]."""
        return torch.log_softmax(self.scores(observations), -1).gather(-1, actions[:, None]).squeeze(-1)
