"""Convolutional networks on stacks of frames, without normalization and with the batch norm and dropout of the SoBiRL authors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.numerics import split_flat
from bilevel_gym.rewards.architecture import Network, Parameter, Perceptron, fan_in

__all__ = ["LAYERS", "BatchNormalized", "Convolution", "Convolutions"]


class Convolution(NamedTuple):
    """A layer of square filters without padding."""

    channels: int
    size: int
    stride: int = 1


LAYERS = (Convolution(16, 7, 3), Convolution(16, 5, 2), Convolution(16, 3), Convolution(16, 3))
"""Those of Christiano et al. (NeurIPS 2017), which the SoBiRL authors take over."""

EPSILON = 1e-5
"""Added to variances, as in ``torch.nn.BatchNorm2d``."""

Activation = Callable[[int, Tensor], Tensor]
"""What follows the convolution of a layer: its number, [n, channels, height, width] → the same shape."""


@dataclass(frozen=True)
class Convolutions(Network):
    """Convolutions with leaky ReLUs, then a perceptron with one hidden layer.

    Args:
        shape: (stack, height, width) of an input.
        outputs: of the last layer.
        layers: the convolutions.
        hidden: the width of the perceptron's hidden layer.
        slope: of the leaky ReLU where its input is negative.

    Raises:
        InvalidProblem: a number is not positive, or the frames are too small for the filters.
    """

    shape: tuple[int, ...]
    outputs: int
    layers: tuple[Convolution, ...] = LAYERS
    hidden: int = 64
    slope: float = 0.01

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1 or not self.layers or min(map(min, self.layers)) < 1:
            raise InvalidProblem(
                f"pixels of shape {self.shape} and layers {self.layers}: give (stack, height, width), and layers of positive numbers"
            )
        if min(self._pictures[-1]) < 1:
            raise InvalidProblem(
                f"frames of {self.shape[1]}×{self.shape[2]} are too small for the filters {self.layers}: take fewer or smaller ones"
            )
        self.head  # noqa: B018  # refuses what is not positive

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(stack, height, width)."""
        return self.shape

    @property
    def parameters(self) -> list[Parameter]:
        """Filters [channels, in, size, size] and biases [channels] in turn, then the perceptron's."""
        found: list[Parameter] = []
        inputs = self.shape[0]
        for channels, size, _ in self.layers:
            found += [fan_in(shape, inputs * size**2) for shape in ((channels, inputs, size, size), (channels,))]
            inputs = channels
        return found + self.head.parameters

    @cached_property
    def head(self) -> Perceptron:
        """The perceptron behind the last convolution."""
        return Perceptron((self.layers[-1].channels * prod(self._pictures[-1]), self.hidden, self.outputs), self.slope)

    def __call__(self, flat: Tensor, inputs: Tensor) -> Tensor:
        """[n, *shape] → [n, out]; for a population [B or 1, n, *shape] → [B, n, out], as grouped convolutions."""
        return self.run(*_split_head(self, self.head, flat), inputs, lambda _, units: functional.leaky_relu(units, self.slope))

    def run(self, parts: Sequence[Tensor], head: Tensor, inputs: Tensor, activation: Activation) -> Tensor:
        """The same with something else after each convolution; a population's channels lie side by side there, [n, B·channels, …].

        Args:
            parts: filters and biases in turn.
            head: [P'] the perceptron's flat vector, or [B, P'].
            inputs: as for the network.
            activation: what comes after each convolution.
        """
        population = head.ndim > 1
        members = len(head) if population else 1
        units, groups = inputs, 1
        if population:
            shared = len(inputs) == 1
            units, groups = (inputs[0], 1) if shared else (inputs.transpose(0, 1).flatten(1, 2), members)
        for number, layer in enumerate(self.layers):
            filters, bias = parts[2 * number : 2 * number + 2]
            units = activation(number, functional.conv2d(units, filters.flatten(0, -4), bias.flatten(), layer.stride, groups=groups))
            groups = members
        seen = units.unflatten(1, (members, -1)).flatten(2)
        return self.head(head, seen.transpose(0, 1) if population else seen.squeeze(1))

    @property
    def _pictures(self) -> list[tuple[int, int]]:
        """Height and width after each layer."""
        found = [(self.shape[1], self.shape[2])]
        for _, size, stride in self.layers:
            height, width = found[-1]
            found.append(((height - size) // stride + 1, (width - size) // stride + 1))
        return found


@dataclass(frozen=True)
class BatchNormalized(Network):
    """Convolutions with batch norm before, and dropout after, each leaky ReLU.

    Each channel is shifted by its mean, divided by √(variance + 1e-5), multiplied by a gain and shifted again; gain and shift are
    parameters. Mean and variance are those of the batch in ``training``, where the dropout is too, and ``statistics`` elsewhere: there
    all of it folds into filters and biases, and costs nothing.

    There is no running average: ``measured`` takes statistics at given parameters over given inputs, so they are never those of
    parameters of long ago.

    Source: Christiano et al., NeurIPS 2017, appendix A.2, and the network of the SoBiRL authors' released code, for the layers and
    their order.

    Args:
        convolutions: the layers without it.
        dropout: the probability with which an activation is left out.
        statistics: [2, C] mean and variance of each of all layers' channels, or [2, K, C] of K members; None takes 0 and 1.
        generator: what dropout is drawn from, in ``training``; None elsewhere.

    Raises:
        InvalidProblem: the dropout is not in [0, 1).
    """

    convolutions: Convolutions
    dropout: float = 0.0
    statistics: Tensor | None = None
    measures: ClassVar[bool] = True
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.dropout < 1.0:
            raise InvalidProblem(f"dropout is {self.dropout}: it must be in [0, 1), such as 0.5")

    @property
    def alone(self) -> bool:
        """Not in ``training``."""
        return self.generator is None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(stack, height, width)."""
        return self.convolutions.shape

    @property
    def parameters(self) -> list[Parameter]:
        """Filters, biases, gains and shifts of each layer, then the perceptron's."""
        plain = self.convolutions.parameters
        found: list[Parameter] = []
        for number, (channels, *_) in enumerate(self.convolutions.layers):
            found += [*plain[2 * number : 2 * number + 2], Parameter((channels,), 1.0, 0.0), Parameter((channels,), 0.0, 0.0)]
        return found + plain[2 * len(self.convolutions.layers) :]

    def __call__(self, flat: Tensor, inputs: Tensor) -> Tensor:
        """[n, *shape] → [n, out]; for a population [B or 1, n, *shape] → [B, n, out]."""
        if self.generator is not None:
            return self._normalize_by_batch(flat, inputs, self.dropout)[0]
        return self.convolutions.run(*self._folded(flat), inputs, lambda _, units: functional.leaky_relu(units, self.convolutions.slope))

    def training(self, generator: torch.Generator) -> BatchNormalized:
        """Normalized by the batch, with dropout."""
        return replace(self, generator=generator)

    def measured(self, flat: Tensor, inputs: Tensor) -> Self:
        """Normalized by what these parameters make of these inputs, each layer behind the ones before it normalized likewise."""
        return replace(self, statistics=self._normalize_by_batch(flat, inputs, 0.0)[1])

    def with_statistics(self, statistics: Tensor | None) -> Self:
        """Normalized by given means and variances."""
        return replace(self, statistics=statistics)

    def _normalize_by_batch(self, flat: Tensor, inputs: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
        """Outputs, and the statistics [2, C] or [2, B, C] that they were normalized by."""
        plain, gains, shifts, head = self._split(flat)
        seen: list[Tensor] = []

        def activation(number: int, units: Tensor) -> Tensor:
            variance, mean = torch.var_mean(units, (0, 2, 3), correction=0)
            seen.append(torch.stack([mean, variance]).view(2, *gains[number].shape))
            gain = gains[number].flatten() * torch.rsqrt(variance + EPSILON)
            shift = shifts[number].flatten() - mean * gain
            units = functional.leaky_relu(torch.addcmul(shift[:, None, None], units, gain[:, None, None]), self.convolutions.slope)
            return units * self._kept(units, dropout) if dropout else units

        outputs = self.convolutions.run(plain, head, inputs, activation)
        return outputs, torch.cat(seen, -1).detach()

    def _kept(self, units: Tensor, dropout: float) -> Tensor:
        """1/(1 − p) with probability 1 − p, else 0."""
        assert self.generator is not None
        drawn = torch.rand(units.shape, generator=self.generator, device=self.generator.device).to(units.device)
        return (drawn >= dropout).to(units.dtype) / (1.0 - dropout)

    def _folded(self, flat: Tensor) -> tuple[list[Tensor], Tensor]:
        """Filters and biases that include the normalization, and the perceptron's vector, for ``convolutions``."""
        plain, gains, shifts, head = self._split(flat)
        means, variances = self._as_many(torch.cat(gains, -1))
        widths = [layer.channels for layer in self.convolutions.layers]
        for number, (mean, variance) in enumerate(zip(means.split(widths, -1), variances.split(widths, -1), strict=True)):
            gain = gains[number] * torch.rsqrt(variance + EPSILON)
            plain[2 * number] = plain[2 * number] * gain[..., None, None, None]
            plain[2 * number + 1] = (plain[2 * number + 1] - mean) * gain + shifts[number]
        return plain, head

    def _as_many(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances, those of an ensemble for each of a population of ensembles: two that broadcast with [B·K, C]."""
        if self.statistics is None:
            return torch.zeros_like(like), torch.ones_like(like)
        means, variances = self.statistics
        if means.ndim == 1:
            return means, variances
        copies = len(like) // len(means)
        return means.repeat(copies, 1), variances.repeat(copies, 1)

    def _split(self, flat: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
        """Filters and biases in turn, the gains, the shifts, and the perceptron's vector."""
        parts, head = _split_head(self, self.convolutions.head, flat)
        plain = [part for number in range(0, len(parts), 4) for part in parts[number : number + 2]]
        return plain, parts[2::4], parts[3::4], head


def _split_head(network: Network, head: Perceptron, flat: Tensor) -> tuple[list[Tensor], Tensor]:
    """The parameters of a network's convolutions, and the flat vector of the perceptron behind them: views of [..., P]."""
    front, back = flat.split([network.size - head.size, head.size], -1)
    return split_flat(front, network.shapes[: -len(head.shapes)]), back
