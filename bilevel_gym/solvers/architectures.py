"""Which network reads an observation: a perceptron for a flat one, the Nature CNN for a stack of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor

from bilevel_gym.errors import UnsupportedProblem
from bilevel_gym.numerics import split_flat
from bilevel_gym.solvers.convolutions import NATURE, Convolution, Convolutions, after, convolve, initial_convolutions
from bilevel_gym.solvers.networks import Perceptrons, initial_parameters, layer_shapes, numel, perceptron

__all__ = ["CNN", "MLP", "Architecture", "Passes", "architecture_for"]


class Passes(Protocol):
    """Several networks of one architecture, each with parameters of its own, forward and back, in buffers that are kept."""

    def views(self, flat: Tensor) -> list[Tensor]:
        """The parts of a flat parameter vector, as views: [P] → list."""
        ...

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> Tensor:
        """Outputs, in a buffer that the next call overwrites: [n, *input] → [C, n, out]."""
        ...

    def backward(self, parameters: Sequence[Tensor], cotangent: Tensor, gradient: Sequence[Tensor]) -> Any:
        """Fill ``gradient``, views like ``parameters``, from a cotangent [C, m, out] of the first m outputs of the last ``forward``."""
        ...


class Architecture(Protocol):
    """A network as a function of its flat parameter vector."""

    def numel(self, copies: int = 1) -> int:
        """Parameters of so many networks."""
        ...

    def initial(self, copies: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """Parameters uniform in ±1/√(fan-in), as ``torch.nn`` draws them: [P]."""
        ...

    def inputs(self, observations: Tensor, like: Tensor) -> Tensor:
        """What the network reads, in the dtype of ``like``: [n, *observation] → [n, *input]."""
        ...

    def passes(self, copies: int, rows: int, like: Tensor) -> Passes:
        """Forward and backward passes for ``rows`` observations at a time, with buffers like ``like``."""
        ...

    def outputs(self, flat: Tensor, observations: Tensor, copies: int = 1) -> Tensor:
        """What so many networks say: [P], [n, *observation] → [copies, n, out], a new tensor."""
        ...


@dataclass(frozen=True)
class MLP:
    """A perceptron with ReLU layers.

    Args:
        sizes: (observation, *hidden, out).
    """

    sizes: tuple[int, ...]

    def numel(self, copies: int = 1) -> int:
        """Parameters of so many networks."""
        return numel(self.sizes, copies)

    def initial(self, copies: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """See ``networks.initial_parameters``: [P]."""
        return initial_parameters(self.sizes, copies, generator, device)

    def inputs(self, observations: Tensor, like: Tensor) -> Tensor:
        """The observations themselves."""
        return observations.to(like.dtype)

    def passes(self, copies: int, rows: int, like: Tensor) -> Passes:
        """See ``networks.Perceptrons``."""
        return Perceptrons(self.sizes, copies, rows, like)

    def outputs(self, flat: Tensor, observations: Tensor, copies: int = 1) -> Tensor:
        """[P], [n, observation] → [copies, n, out]."""
        parts, inputs = split_flat(flat, layer_shapes(self.sizes, copies)), self.inputs(observations, flat)
        return torch.stack([perceptron([part[copy] for part in parts], inputs) for copy in range(copies)])


@dataclass(frozen=True)
class CNN:
    """Convolutions with ReLU, then a perceptron; by default the network of Mnih et al. (Nature, 2015).

    Pixels are divided by 255 in ``inputs``, and nowhere else.

    Args:
        shape: (stack, height, width) of an observation, uint8.
        hidden: widths of the perceptron's hidden layers.
        out: numbers that come out.
        layers: the convolutions, from the picture on.
    """

    shape: tuple[int, int, int]
    hidden: tuple[int, ...]
    out: int
    layers: tuple[Convolution, ...] = NATURE

    @property
    def head(self) -> tuple[int, ...]:
        """The sizes of the perceptron."""
        return (prod(after(self.shape, self.layers)), *self.hidden, self.out)

    def numel(self, copies: int = 1) -> int:
        """Parameters of so many networks."""
        return sum(map(prod, self._shapes(copies)))

    def initial(self, copies: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """[P], convolutions first."""
        parts = (
            initial_convolutions(self.shape[0], self.layers, copies, generator),
            initial_parameters(self.head, copies, generator, device),
        )
        return torch.cat([part.to(device) for part in parts])

    def inputs(self, observations: Tensor, like: Tensor) -> Tensor:
        """Brightness in [0, 1], the channels last in memory, where convolutions are quick: [n, stack, height, width]."""
        return observations.contiguous(memory_format=torch.channels_last).to(like.dtype).div_(255.0)

    def passes(self, copies: int, rows: int, like: Tensor) -> Passes:
        """See ``convolutions.Convolutions``."""
        return Convolutions(self.layers, self._shapes(copies), Perceptrons(self.head, copies, rows, like), like)

    def outputs(self, flat: Tensor, observations: Tensor, copies: int = 1) -> Tensor:
        """[P], [n, stack, height, width] → [copies, n, out]."""
        parts, inputs, count = split_flat(flat, self._shapes(copies)), self.inputs(observations, flat), 2 * len(self.layers)
        said = []
        for copy in range(copies):
            features = convolve(self.layers, [part[copy] for part in parts[:count]], inputs)[-1]
            said.append(perceptron([part[copy] for part in parts[count:]], features.permute(0, 2, 3, 1).flatten(1)))
        return torch.stack(said)

    def _shapes(self, copies: int) -> list[tuple[int, ...]]:
        channels = (self.shape[0], *(layer.channels for layer in self.layers))
        convolutions = (
            shape
            for inputs, layer in zip(channels[:-1], self.layers, strict=True)
            for shape in ((copies, layer.channels, layer.kernel, layer.kernel, inputs), (copies, layer.channels))
        )
        return [*convolutions, *layer_shapes(self.head, copies)]


def architecture_for(observation_shape: tuple[int, ...], hidden: tuple[int, ...], out: int) -> MLP | CNN:
    """A network that fits an observation.

    Args:
        observation_shape: (observation,) or (stack, height, width).
        hidden: widths of the hidden layers; after the convolutions where the observation is a stack of pictures.
        out: numbers that come out.

    Raises:
        UnsupportedProblem: no network here reads such an observation.
    """
    if len(observation_shape) == 1:
        return MLP((observation_shape[0], *hidden, out))
    if len(observation_shape) == 3 and min(after(observation_shape, NATURE)) > 0:
        return CNN(observation_shape, hidden, out)
    raise UnsupportedProblem(
        f"observations of shape {observation_shape} fit no network here: flat ones [n] and stacks of pictures [stack, height, width] of 36 pixels or more do"
    )
