"""Weights that let the samples of one tabular policy stand for those of another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel_gym.types import Trajectory

__all__ = ["Importance"]


@dataclass(frozen=True)
class Importance:
    """Π_h π(a_h|s_h) / π'(a_h|s_h) over the steps that a quantity depends on, π' having played them (mathematics §6).

    Args:
        wanted: [S, A] π, whose samples they are to stand for.
        played: [S, A] π', whose samples they are.
        clip: no weight exceeds it; infinity is unbiased, and has a variance that grows exponentially with the steps.
    """

    wanted: Tensor
    played: Tensor
    clip: float

    def of_tuples(self, trajectories: Trajectory, origin: Tensor, first: Tensor, last: Tensor) -> Tensor:
        """One weight for each tuple, over the steps first ≤ t < last of all its trajectories: three [M, I] → [M]."""
        time = torch.arange(trajectories.alive.shape[1], device=first.device)
        inside = (time >= first[..., None]) & (time < last[..., None])
        return torch.where(inside, self._ratio(trajectories)[origin], 1.0).prod(-1).prod(-1).clamp_max(self.clip)

    def of_steps(self, trajectories: Trajectory, *, given: bool = False) -> Tensor:
        """One weight for each step, over all that leads to it, itself among it; not the first action where it was ``given``. [N, T]."""
        ratio = self._ratio(trajectories)
        if given:
            ratio[:, 0] = 1.0
        return ratio.cumprod(1).clamp_max(self.clip)

    def _ratio(self, trajectories: Trajectory) -> Tensor:
        """π/π' of each step, 1 where nothing was played: [N, T]."""
        states, actions = trajectories.states, trajectories.actions
        return torch.where(trajectories.alive, self.wanted[states, actions] / self.played[states, actions], 1.0)
