"""Weights that let the samples of one policy stand for those of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bilevel_gym.errors import UnsupportedProblem
from bilevel_gym.frames import to_stacks
from bilevel_gym.types import KnownPolicy, Trajectory

__all__ = ["Importance"]

CHUNK = 1024
"""Steps that a policy is asked about at once: pixels are large."""


@dataclass(frozen=True)
class Importance:
    """Π_h π(a_h|s_h) / π'(a_h|s_h) over the steps that a quantity depends on, π' having played them (mathematics §6).

    Args:
        wanted: π, whose samples they are to stand for: [S, A], or a policy with ``log_prob`` (``types.KnownPolicy``).
        played: π', whose samples they are, of the same kind.
        clip: no weight exceeds it; infinity is unbiased, and has a variance that grows exponentially with the steps.

    Raises:
        UnsupportedProblem: a policy does not say how likely an action is.
    """

    wanted: Any
    played: Any
    clip: float

    def __post_init__(self) -> None:
        for policy in (self.wanted, self.played):
            if not isinstance(policy, Tensor | KnownPolicy):
                raise UnsupportedProblem(
                    f"importance weights need log π(a|s), and {type(policy).__name__} has no log_prob(observations, actions); use correction='none'"
                )

    def of_tuples(self, trajectories: Trajectory, origin: Tensor, first: Tensor, last: Tensor) -> Tensor:
        """One weight for each tuple, over the steps first ≤ t < last of all its trajectories: three [M, I] → [M]."""
        time = torch.arange(trajectories.alive.shape[1], device=first.device)
        inside = (time >= first[..., None]) & (time < last[..., None])
        return torch.where(inside, self._log_ratio(trajectories)[origin], 0.0).sum((-2, -1)).exp().clamp_max(self.clip)

    def of_steps(self, trajectories: Trajectory, *, given: bool = False) -> Tensor:
        """One weight for each step, over all that leads to it, itself among it; not the first action where it was ``given``. [N, T]."""
        ratio = self._log_ratio(trajectories)
        if given:
            ratio[:, 0] = 0.0
        return ratio.cumsum(1).exp().clamp_max(self.clip)

    def _log_ratio(self, trajectories: Trajectory) -> Tensor:
        """log π − log π' of each step, 0 where nothing was played: [N, T]."""
        wanted, played = (_log_prob(policy, trajectories) for policy in (self.wanted, self.played))
        return torch.where(trajectories.alive, wanted - played, 0.0)


def _log_prob(policy: Any, trajectories: Trajectory) -> Tensor:
    """log π(a|s) of each step: [N, T]."""
    states, actions = trajectories.states, trajectories.actions
    if isinstance(policy, Tensor):
        return policy[states, actions].log()
    pairs = zip(states.flatten(0, 1).split(CHUNK), actions.flatten(0, 1).split(CHUNK), strict=True)
    return torch.cat([policy.log_prob(to_stacks(seen), done) for seen, done in pairs]).view(trajectories.alive.shape)
