"""Convolutional networks on flat parameter vectors, with their derivatives written out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bilevel_gym.numerics import split_flat
from bilevel_gym.solvers.networks import Perceptrons

__all__ = ["NATURE", "Convolution", "Convolutions", "after", "convolve", "initial_convolutions"]


class Convolution(NamedTuple):
    """A layer with square kernels and no padding."""

    channels: int
    """That come out."""
    kernel: int
    """Pixels on a side."""
    stride: int
    """Pixels from one kernel to the next."""


NATURE = (Convolution(32, 8, 4), Convolution(64, 4, 2), Convolution(64, 3, 1))
"""The convolutions of Mnih et al. (Nature, 2015)."""


def after(shape: tuple[int, int, int], layers: Iterable[Convolution]) -> tuple[int, int, int]:
    """(channels, height, width) of what comes out of the layers; 0 or less where the picture is too small."""
    channels, height, width = shape
    for layer in layers:
        channels, height, width = layer.channels, *((side - layer.kernel) // layer.stride + 1 for side in (height, width))
    return channels, height, width


def initial_convolutions(channels: int, layers: Iterable[Convolution], copies: int, generator: torch.Generator) -> Tensor:
    """Kernels and biases uniform in ±1/√(fan-in), as ``torch.nn.Conv2d`` draws them: [P]."""
    parts = []
    for layer in layers:
        fan = channels * layer.kernel**2
        unit = 2.0 * torch.rand(copies * (fan + 1) * layer.channels, generator=generator, device=generator.device) - 1.0
        parts.append(unit * fan**-0.5)
        channels = layer.channels
    return torch.cat(parts)


def convolve(layers: Sequence[Convolution], parameters: Sequence[Tensor], inputs: Tensor) -> list[Tensor]:
    """The inputs and what comes out of each layer, after its ReLU.

    Args:
        layers: L of them.
        parameters: kernels [out, kernel, kernel, in] and biases [out] in turn.
        inputs: [n, in, height, width], channels last in memory.

    Returns:
        L + 1 tensors [n, channels, height, width], channels last in memory.
    """
    units = [inputs]
    for layer, kernel, bias in zip(layers, parameters[::2], parameters[1::2], strict=True):
        units.append(functional.conv2d(units[-1], kernel.permute(0, 3, 1, 2), bias, layer.stride).relu_())
    return units


class Convolutions:
    """Several convolutional networks of one shape, each of convolutions and then a perceptron (``architectures.Passes``).

    Pictures, kernels and their gradients have the channels last in memory: oneDNN's gradient of the first kernel takes a third of the
    time of the other layout. One network's convolutions follow the other's, since grouped ones are slower than two in turn.

    ``forward`` overwrites what the last one left; ``backward`` goes back through the last ``forward``.

    Args:
        layers: the convolutions.
        shapes: of the parameters, each [C, ...]: kernels and biases in turn, then the perceptron's.
        head: the perceptrons, for features [C, n, features] in the order (height, width, channel).
        like: a tensor of the dtype and on the device that the buffers get.
    """

    def __init__(self, layers: Sequence[Convolution], shapes: Sequence[tuple[int, ...]], head: Perceptrons, like: Tensor) -> None:
        self._layers, self._shapes, self._head, self._count = layers, shapes, head, 2 * len(layers)
        self._units: list[list[Tensor]] = []

    def views(self, flat: Tensor) -> list[Tensor]:
        """The parts of a flat parameter vector, as views: [P] → list."""
        return split_flat(flat, self._shapes)

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> Tensor:
        """Outputs, in a buffer that the next call overwrites.

        Args:
            parameters: from ``views``.
            inputs: [n, channels, height, width], the same for all copies.

        Returns:
            [C, n, out].
        """
        kernels = parameters[: self._count]
        self._units = [convolve(self._layers, [part[copy] for part in kernels], inputs) for copy in range(self._head.copies)]
        features = torch.stack([units[-1].permute(0, 2, 3, 1).flatten(1) for units in self._units])
        return self._head.forward(parameters[self._count :], features)

    def backward(self, parameters: Sequence[Tensor], cotangent: Tensor, gradient: Sequence[Tensor]) -> None:
        """Carry a cotangent of the first m outputs back through the last ``forward``.

        Args:
            parameters: those of that ``forward``.
            cotangent: [C, m, out], m ≤ n: where it is shorter, the other rows have none.
            gradient: views like ``parameters``, which are filled.
        """
        first = self._head.backward(parameters[self._count :], cotangent, gradient[self._count :])
        weight = parameters[self._count]
        features = torch.bmm(first, weight.mT)
        for copy, units in enumerate(self._units):
            kept = [part[: first.shape[1]] for part in units]
            _, channels, height, width = kept[-1].shape
            by_output = features[copy].view(-1, height, width, channels).permute(0, 3, 1, 2)
            self._back(
                kept, by_output, [part[copy] for part in parameters[: self._count]], [part[copy] for part in gradient[: self._count]]
            )

    def _back(self, units: list[Tensor], by_output: Tensor, parameters: list[Tensor], gradient: list[Tensor]) -> None:
        """Through the convolutions of one network."""
        for index in range(len(self._layers) - 1, -1, -1):
            layer, kernel = self._layers[index], parameters[2 * index].permute(0, 3, 1, 2)
            by_output = torch.ops.aten.threshold_backward(by_output, units[index + 1], 0)
            by_input, by_kernel, by_bias = torch.ops.aten.convolution_backward(
                by_output,
                units[index],
                kernel,
                [layer.channels],
                [layer.stride] * 2,
                [0, 0],
                [1, 1],
                False,
                [0, 0],
                1,
                [index > 0, True, True],
            )
            gradient[2 * index].copy_(by_kernel.permute(0, 2, 3, 1))
            gradient[2 * index + 1].copy_(by_bias)
            by_output = by_input
