"""The world's own reward as r_x."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.types import Played

__all__ = ["EnvironmentReward", "ReadFromSteps"]


class ReadFromSteps:
    """A reward that is read from what the world said about a step, so that there is none of an action that nobody took."""

    def along(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """Nothing that could be known.

        Raises:
            UnsupportedProblem: always.
        """
        raise UnsupportedProblem(
            f"{type(self).__name__} is read from steps that were made and is no function of (s, a): this part evaluates r_x elsewhere; use 'critic' for sensitivities, and solvers.SAC or DiscreteSAC"
        )


class EnvironmentReward(ReadFromSteps):
    """r_x = x · r with r the world's own (true) reward, in units that x chooses: what a follower can reach who is told the truth.

    The ceiling of a reward-learning task is the same environment with this reward and x left at its start. It is the one reader of the
    true reward beside teachers and metrics. r is not computed but read, from the steps that the follower made, so there is no
    r(s, a) of an action that nobody took (``types.TransitionReward``).

    D = 1: larger x's are lower temperatures, since π* for (x·r, τ) is that for (r, τ/x).

    Args:
        start: x to start from.
        bound: x lies in [0, bound].
        device: where x lives.

    Raises:
        InvalidProblem: the bound is not positive and finite, or the start lies outside.
    """

    dimension = 1
    dtype = torch.float32

    def __init__(self, *, start: float = 1.0, bound: float = 10.0, device: str | torch.device = "cpu") -> None:
        if not (0.0 < bound < float("inf") and 0.0 <= start <= bound):
            raise InvalidProblem(
                f"start is {start} and bound {bound}: the bound must be positive and finite, and x starts between 0 and it, such as 1 and 10"
            )
        self.start, self.bound = float(start), float(bound)
        self.device = torch.device(device)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """[0, bound]: two arrays [1] of float32."""
        return np.zeros(1, np.float32), np.full(1, self.bound, np.float32)

    def initial(self, generator: torch.Generator) -> Tensor:
        """Always the start: [1]."""
        return torch.full((1,), self.start, dtype=self.dtype, device=self.device)

    def of_transitions(self, x: Tensor, played: Played) -> Tensor:
        """x · r of steps that were made, differentiable in x.

        Args:
            x: [1], or [B, 1] for a population.
            played: with true rewards [...], or [B or 1, ...] for a population.

        Returns:
            [...], or [B, ...]; 0 where r is, past the end of an episode.

        Raises:
            UnsupportedProblem: they carry no true reward.
        """
        true = played.rewards
        if true is None:
            raise UnsupportedProblem("the world has no reward of its own, which EnvironmentReward could read: take another reward model")
        return true * (x if x.ndim == 1 else x.view(-1, *(1,) * (true.ndim - 1)))
