"""Networks as functions of their parameters: one, or a population of them side by side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.rewards.fused import leaky_perceptron

__all__ = ["Network", "Parameter", "Perceptron", "fan_in"]


class Parameter(NamedTuple):
    """One of a network's parameters: its shape, and the uniform law of its first draw."""

    shape: tuple[int, ...]
    centre: float
    """The mean of the law."""
    spread: float
    """Half of the law's width, 0 for a constant."""


def fan_in(shape: tuple[int, ...], inputs: int) -> Parameter:
    """A weight or bias that is uniform in ±1/√inputs, as ``torch.nn.Linear`` and ``Conv2d`` draw theirs."""
    return Parameter(shape, 0.0, inputs**-0.5)


class Network(ABC):
    """An architecture: a function of its flat parameter vector. It holds no parameters, and statistics only if it normalizes by them."""

    statistics: Tensor | None = None
    """What it has measured of its inputs, constant in the gradient; None where it needs nothing of the kind."""

    measures: ClassVar[bool] = False
    """Whether it has statistics."""

    @property
    def alone(self) -> bool:
        """Whether what it computes of an input does not depend on the other inputs."""
        return True

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Of one input."""

    @property
    @abstractmethod
    def parameters(self) -> list[Parameter]:
        """In the order in which they lie in the flat vector."""

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """Those of ``parameters``."""
        return [shape for shape, _, _ in self.parameters]

    @cached_property
    def size(self) -> int:
        """P, all numbers of ``parameters``."""
        return sum(map(prod, self.shapes))

    @abstractmethod
    def __call__(self, flat: Tensor, inputs: Tensor) -> Tensor:
        """One network on [n, *input], or B networks on [B or 1, n, *input].

        Args:
            flat: [P] the parameters in turn, each row by row, or [B, P] for a population.
            inputs: the axis B is 1 where all members see the same.

        Returns:
            [n, out], or [B, n, out].
        """

    def training(self, generator: torch.Generator) -> Network:
        """The same network as ∇l sees it, with dropout drawn from the generator and statistics of the batch, if it has these."""
        return self

    def measured(self, flat: Tensor, inputs: Tensor) -> Self:
        """The same network with the statistics that these parameters have on these inputs."""
        return self

    def with_statistics(self, statistics: Tensor | None) -> Self:
        """The same network with given statistics; None takes those that nothing was measured for."""
        return self


@dataclass(frozen=True)
class Perceptron(Network):
    """Affine layers with leaky ReLUs between them.

    Args:
        sizes: (in, *hidden, out).
        slope: of the leaky ReLU where its input is negative, 0 or more.

    Raises:
        InvalidProblem: a size is not positive, or the slope is negative.
    """

    sizes: tuple[int, ...]
    slope: float = 0.01

    def __post_init__(self) -> None:
        if min(self.sizes) < 1:
            raise InvalidProblem(f"the sizes {self.sizes} of the layers must be positive")
        if not self.slope >= 0.0:
            raise InvalidProblem(f"slope is {self.slope}: that of a leaky ReLU is 0 or more, such as 0.01")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(in,)."""
        return self.sizes[:1]

    @property
    def parameters(self) -> list[Parameter]:
        """Weight [out, in] and bias [out] in turn."""
        return [fan_in(shape, inputs) for inputs, outputs in pairwise(self.sizes) for shape in ((outputs, inputs), (outputs,))]

    def __call__(self, flat: Tensor, inputs: Tensor) -> Tensor:
        """[n, in] → [n, out]; for a population [B or 1, n, in] → [B, n, out]. Cost: a product a layer."""
        return leaky_perceptron(self.slope, self.shapes, inputs, flat)
