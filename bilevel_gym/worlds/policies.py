"""Policies that have not learnt anything: the uniform one, and random linear feedback."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LinearPolicy", "UniformPolicy"]


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
        """[n, observation] → [n, action]."""
        unit = torch.rand(observations.shape[0], self.low.shape[0], generator=generator, device=generator.device).to(self.low.device)
        return torch.lerp(self.low, self.high, unit)

    def mean(self, observations: Tensor) -> Tensor:
        """The centre of the box: [n, observation] → [n, action]."""
        return torch.lerp(self.low, self.high, 0.5).expand(observations.shape[0], -1)


@dataclass(frozen=True)
class LinearPolicy:
    """a = the box's image of tanh(W s + b + σε), ε standard normal.

    Args:
        weight: [action, observation] W.
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
    def random(cls, observation_size: int, low: Tensor, high: Tensor, generator: torch.Generator) -> LinearPolicy:
        """Draw one: W and b normal with a gain that is log-uniform in [0.1, 10], σ uniform in [0, 1].

        A small gain hardly moves; a large one is bang-bang control, which by luck runs forward or backward.
        """
        source = generator.device
        gain, noise = torch.rand(2, generator=generator, device=source)
        drawn = torch.randn(low.shape[0], observation_size + 1, generator=generator, device=source)
        drawn = (drawn * 10.0 ** (2.0 * gain - 1.0) / observation_size**0.5).to(low.device)
        return cls(drawn[:, :-1].contiguous(), drawn[:, -1].clone(), noise.to(low.device), low, high)

    def sample(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """[n, observation] → [n, action]."""
        noise = torch.randn(observations.shape[0], self.low.shape[0], generator=generator, device=generator.device).to(self.low.device)
        return self._squash(self._drive(observations) + self.noise * noise)

    def mean(self, observations: Tensor) -> Tensor:
        """The action without noise: [n, observation] → [n, action]."""
        return self._squash(self._drive(observations))

    def _drive(self, observations: Tensor) -> Tensor:
        return observations @ self.weight.mT + self.bias

    def _squash(self, drive: Tensor) -> Tensor:
        return torch.lerp(self.low, self.high, 0.5 + 0.5 * torch.tanh(drive))
