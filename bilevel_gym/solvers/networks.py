"""The follower's networks as functions of flat parameter vectors, and the policy that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log

import torch
from torch import Tensor
from torch.nn import functional

from bilevel_gym.numerics import split_flat

__all__ = ["GaussianPolicy", "gaussian", "initial_parameters", "layer_shapes", "perceptron", "squash", "twin_perceptron"]

LOG_STD = (-20.0, 2.0)
"""The range of log σ, that of the SAC papers."""


def layer_shapes(sizes: Sequence[int], copies: int | None = None) -> list[tuple[int, ...]]:
    """Shapes of weights [out, in] and biases [out] in turn; with ``copies``, of [copies, in, out] and [copies, 1, out].

    Copies lie side by side in each layer, so that one batched product reads them without a stride.
    """
    if copies is None:
        return [shape for inputs, outputs in pairwise(sizes) for shape in ((outputs, inputs), (outputs,))]
    return [shape for inputs, outputs in pairwise(sizes) for shape in ((copies, inputs, outputs), (copies, 1, outputs))]


def initial_parameters(sizes: Sequence[int], copies: int | None, generator: torch.Generator, device: torch.device) -> Tensor:
    """Weights and biases uniform in ±1/√(fan-in), as ``torch.nn.Linear`` draws them: [P]."""
    parts = []
    for inputs, outputs in pairwise(sizes):
        unit = 2.0 * torch.rand((inputs + 1) * outputs * (copies or 1), generator=generator, device=generator.device) - 1.0
        parts.append(unit * inputs**-0.5)
    return torch.cat(parts).to(device)


def perceptron(parameters: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """A perceptron with ReLU layers, from the views of ``layer_shapes(sizes)``: [n, in] → [n, out]."""
    units = functional.linear(inputs, parameters[0], parameters[1])
    for index in range(2, len(parameters), 2):
        units = functional.linear(torch.relu(units), parameters[index], parameters[index + 1])
    return units


def twin_perceptron(parameters: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """Several perceptrons with one output each as one batched product a layer, from ``layer_shapes(sizes, copies)``.

    Args:
        inputs: [n, in], the same for all copies.

    Returns:
        [copies, n].
    """
    units = torch.baddbmm(parameters[1], inputs.expand(parameters[0].shape[0], -1, -1), parameters[0])
    for index in range(2, len(parameters) - 2, 2):
        units = torch.baddbmm(parameters[index + 1], torch.relu(units), parameters[index])
    weight, bias = parameters[-2:]
    # A product and a sum: a matrix product with one column is several times slower.
    return (torch.relu(units) * weight.mT).sum(-1) + bias[:, 0]


def gaussian(output: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log σ of the drive u, from the actor's output [n, 2·action]: two of [n, action]."""
    mean, log_std = output.chunk(2, -1)
    return mean, log_std.clamp(*LOG_STD)


def squash(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """a = tanh(u), u = μ + σε, with its log-density on [−1, 1]^action (arXiv 1812.05905, appendix C).

    log π(a) = Σ log N(u; μ, σ) − Σ log(1 − tanh² u), the latter as 2(log 2 − u − softplus(−2u)), which does not overflow.

    Args:
        mean: [n, action] μ.
        log_std: [n, action] log σ.
        noise: [n, action] ε.

    Returns:
        actions [n, action] in [−1, 1], and log π [n].
    """
    drive = torch.addcmul(mean, log_std.exp(), noise)
    density = -0.5 * noise.square() - log_std - 0.5 * log(2.0 * torch.pi)
    slope = 2.0 * (log(2.0) - drive - functional.softplus(-2.0 * drive))
    return torch.tanh(drive), (density - slope).sum(-1)


@dataclass(frozen=True)
class GaussianPolicy:
    """A frozen tanh-squashed Gaussian whose actions are in the environment's units.

    Args:
        parameters: [P] flat parameters of a perceptron observation → (μ, log σ).
        sizes: its layers, (observation, *hidden, 2·action).
        low: [action] the lower corner of the box of actions.
        high: [action] the upper corner.
    """

    parameters: Tensor
    sizes: tuple[int, ...]
    low: Tensor
    high: Tensor

    def sample(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one action for each observation: [n, observation] → [n, action]."""
        with torch.no_grad():
            mean, log_std = self._gaussian(observations)
            noise = torch.randn(mean.shape, generator=generator, device=generator.device).to(mean.device)
            return self._to_box(torch.tanh(torch.addcmul(mean, log_std.exp(), noise)))

    def mean(self, observations: Tensor) -> Tensor:
        """The action without noise, tanh μ: [n, observation] → [n, action]."""
        with torch.no_grad():
            return self._to_box(torch.tanh(self._gaussian(observations)[0]))

    def _gaussian(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        return gaussian(perceptron(split_flat(self.parameters, layer_shapes(self.sizes)), observations))

    def _to_box(self, unit: Tensor) -> Tensor:
        return torch.lerp(self.low, self.high, 0.5 + 0.5 * unit)
