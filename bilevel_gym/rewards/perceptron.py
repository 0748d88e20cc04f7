"""Perceptrons as functions of their parameters: one, or a population of them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from bilevel_gym.errors import InvalidProblem

__all__ = ["Perceptron", "affine"]


@dataclass(frozen=True)
class Perceptron:
    """Affine layers with leaky ReLUs between them.

    Args:
        sizes: (in, *hidden, out).
        slope: of the leaky ReLU where its input is negative.

    Raises:
        InvalidProblem: a size is not positive.
    """

    sizes: tuple[int, ...]
    slope: float = 0.01

    def __post_init__(self) -> None:
        if min(self.sizes) < 1:
            raise InvalidProblem(f"the sizes {self.sizes} of the layers must be positive")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input: (in,)."""
        return self.sizes[:1]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the parameters: weight (out, in) and bias (out,) in turn."""
        return [shape for inputs, outputs in pairwise(self.sizes) for shape in ((outputs, inputs), (outputs,))]

    @property
    def fans(self) -> list[int]:
        """How many inputs each of a layer's units has, for each of ``shapes``."""
        return [inputs for inputs in self.sizes[:-1] for _ in range(2)]

    def __call__(self, parameters: Sequence[Tensor], inputs: Tensor) -> Tensor:
        """One network on [n, in], or B networks on [B or 1, n, in].

        Args:
            parameters: as ``shapes``, each with a leading axis B for a population.
            inputs: the axis B is 1 where all members see the same.

        Returns:
            [n, out], or [B, n, out]. Cost: a product a layer.
        """
        units = affine(inputs, *parameters[:2])
        for weight, bias in zip(parameters[2::2], parameters[3::2], strict=True):
            units = affine(functional.leaky_relu(units, self.slope), weight, bias)
        return units


def affine(units: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Wu + b: [n, in], [out, in], [out] → [n, out]; for a population [B or 1, n, in], [B, out, in], [B, out] → [B, n, out]."""
    if weight.ndim == 2:
        return functional.linear(units, weight, bias)
    return torch.baddbmm(bias.unsqueeze(-2), units.expand(len(weight), -1, -1), weight.mT)
