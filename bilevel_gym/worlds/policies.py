"""Policies that have not learnt anything: uniform ones, and random linear feedback, for boxes and for finitely many actions."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from bilevel_gym.frames import coarse
from bilevel_gym.numerics import EDGE, draw_categorical, place_in_box

__all__ = ["LinearPolicy", "SoftmaxPolicy", "UniformChoice", "UniformPolicy", "feature_count"]


@dataclass(frozen=True)
class UniformPolicy:
    """Actions drawn uniformly from a box, whatever the observation is.

    Args:
        low: [action] the lower corner.
        high: [action] the upper corner.
    """

    low: Tensor
    high: Tensor

    def sample(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """[n, *observation] → [n, action]."""
        unit = torch.rand(observations.shape[0], self.low.shape[0], generator=generator, device=generator.device).to(self.low.device)
        return torch.lerp(self.low, self.high, unit)

    def mean(self, observations: Tensor) -> Tensor:
        """The centre of the box: [n, *observation] → [n, action]."""
        return torch.lerp(self.low, self.high, 0.5).expand(observations.shape[0], -1)

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """−Σ log(high − low), a density; log of a half of ``numerics.EDGE`` for what is at the edge: [n, observation], [n, action] → [n]."""
        _, edge = place_in_box(actions, self.low, self.high)
        return torch.where(edge, log(EDGE / 2.0), -(self.high - self.low).log()).sum(-1)


@dataclass(frozen=True)
class LinearPolicy:
    """a = the box's image of tanh(W φ(s) + b + σε), ε standard normal; φ as for ``SoftmaxPolicy``.

    Args:
        weight: [action, features] W.
        bias: [action] b.
        noise: [] σ.
        low: [action] the lower corner of the box.
        high: [action] the upper corner.
    """

    weight: Tensor
    bias: Tensor
    noise: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def random(cls, width: int, low: Tensor, high: Tensor, generator: torch.Generator) -> LinearPolicy:
        """Draw one for ``width`` features: W and b normal with a gain that is log-uniform in [0.1, 10], σ uniform in [0, 1].

        A small gain hardly moves; a large one is bang-bang control, which by luck runs forward or backward.
        """
        source = generator.device
        gain, noise = torch.rand(2, generator=generator, device=source)
        drawn = torch.randn(low.shape[0], width + 1, generator=generator, device=source)
        drawn = (drawn * 10.0 ** (2.0 * gain - 1.0) / width**0.5).to(low.device)
        return cls(drawn[:, :-1].contiguous(), drawn[:, -1].clone(), noise.to(low.device), low, high)

    def sample(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """[n, *observation] → [n, action]."""
        noise = torch.randn(observations.shape[0], self.low.shape[0], generator=generator, device=generator.device).to(self.low.device)
        return self._squash(self._drive(observations) + self.noise * noise)

    def mean(self, observations: Tensor) -> Tensor:
        """The action without noise: [n, *observation] → [n, action]."""
        return self._squash(self._drive(observations))

    def _drive(self, observations: Tensor) -> Tensor:
        return _features(observations) @ self.weight.mT + self.bias

    def _squash(self, drive: Tensor) -> Tensor:
        return torch.lerp(self.low, self.high, 0.5 + 0.5 * torch.tanh(drive))


@dataclass(frozen=True)
class UniformChoice:
    """Each of A actions with the same probability, whatever the observation is.

    Args:
        count: A.
    """

    count: int

    def sample(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """[n, *observation] → [n] int64."""
        drawn = torch.randint(self.count, (observations.shape[0],), generator=generator, device=generator.device)
        return drawn.to(observations.device)

    def mean(self, observations: Tensor) -> Tensor:
        """Action 0, as all are equally likely: [n, *observation] → [n] int64."""
        return torch.zeros(observations.shape[0], dtype=torch.int64, device=observations.device)

    def probabilities(self, observations: Tensor) -> Tensor:
        """1/A: [n, *observation] → [n, A]."""
        return torch.full((observations.shape[0], self.count), 1.0 / self.count, device=observations.device)

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """−log A: [n, *observation], [n] int64 → [n]."""
        return torch.full((observations.shape[0],), -log(self.count), device=observations.device)


@dataclass(frozen=True)
class SoftmaxPolicy:
    """π(·|s) = softmax(W φ(s) + b); φ are the numbers of a flat observation, and of pixels a coarse picture (``frames.coarse``).

    Args:
        weight: [A, features] W.
        bias: [A] b.
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def random(
        cls, observation_shape: tuple[int, ...], count: int, generator: torch.Generator, device: str | torch.device = "cpu"
    ) -> SoftmaxPolicy:
        """Draw one of A = ``count`` actions: W and b normal, their gain log-uniform in [0.1, 10], from nearly uniform to nearly greedy."""
        source = generator.device
        width = feature_count(observation_shape)
        gain = torch.rand(1, generator=generator, device=source)
        drawn = (torch.randn(count, width + 1, generator=generator, device=source) * 10.0 ** (2.0 * gain - 1.0)).to(device)
        return cls(drawn[:, :-1] / width**0.5, drawn[:, -1].clone())

    def sample(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """[n, *observation] → [n] int64."""
        return draw_categorical(self.probabilities(observations), generator)

    def mean(self, observations: Tensor) -> Tensor:
        """The most likely action: [n, *observation] → [n] int64."""
        return self.probabilities(observations).argmax(-1)

    def probabilities(self, observations: Tensor) -> Tensor:
        """[n, *observation] → [n, A]."""
        return torch.softmax(_features(observations) @ self.weight.mT + self.bias, -1)


def feature_count(observation_shape: tuple[int, ...]) -> int:
    """How many numbers φ(s) has, s of one observation's shape."""
    return _features(torch.zeros(1, *observation_shape)).shape[-1]


def _features(observations: Tensor) -> Tensor:
    return observations.to(torch.float32) if observations.ndim == 2 else coarse(observations)
