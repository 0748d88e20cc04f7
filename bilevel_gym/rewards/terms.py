"""A mixture of the named parts of a task's own reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.rewards.box import Box
from bilevel_gym.rewards.environment import ReadFromSteps
from bilevel_gym.types import Played

__all__ = ["RewardTerms"]


class RewardTerms(ReadFromSteps, Box):
    """r_x(s, a, s') = scale · Σ_k softmax(x)_k · term_k(s, a, s'), what x shares out among the terms that the world reports.

    The v5 MuJoCo tasks of Gymnasium report the parts of their reward in ``info``, as ``"reward_forward"`` and ``"reward_ctrl"``. They
    are read from the steps that were made (``types.TransitionReward``), not computed, so of the sensitivities only ``"critic"`` and
    ``"rollout"`` apply.

    Args:
        names: of the K terms.
        reported: all that the world reports, in its order, where that is more or the order is another one; None takes ``names``.
        scale: the sum of all weights; None takes K, so that x = 0 is the plain sum, which is the task's own reward where it has no
            other terms.
        spread: the standard deviation of the logits to start from.
        bound: x lies in [−bound, bound]^K.
        device: where x lives.

    Raises:
        InvalidProblem: there are no names, or one twice or not reported, or a number is not positive and finite.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        reported: Sequence[str] | None = None,
        scale: float | None = None,
        spread: float = 0.01,
        bound: float = 10.0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.names = tuple(names)
        if isinstance(names, str) or not names or len(set(names)) < len(self.names):
            raise InvalidProblem(f"names are {names!r}: give a list of different ones, such as ['reward_forward', 'reward_ctrl']")
        self.reported = self.names if reported is None else tuple(reported)
        if missing := [name for name in self.names if name not in self.reported]:
            raise InvalidProblem(
                f"{missing} are not among what the world reports, {list(self.reported)}: name them in the world's terms, too"
            )
        self._columns = torch.tensor([self.reported.index(name) for name in self.names], device=device)
        self.scale = float(len(self.names) if scale is None else scale)
        if not 0.0 < self.scale < float("inf"):
            raise InvalidProblem(f"scale is {scale}: the sum of the weights must be positive and finite, such as {len(self.names)}")
        super().__init__(len(self.names), bound, spread=spread, device=device)
        self.dtype = torch.float32

    @classmethod
    def for_world(cls, world: Any, *, scale: float | None = None, spread: float = 0.01, bound: float = 10.0) -> Self:
        """The terms that a world reports, on its device.

        Raises:
            InvalidProblem: it reports none.
        """
        names = getattr(world, "terms", ())
        if not names:
            raise InvalidProblem("the world reports no terms of its reward: name some, as in VectorWorld(…, terms=('reward_forward',))")
        return cls(names, scale=scale, spread=spread, bound=bound, device=world.device)

    def weights(self, x: Tensor) -> Tensor:
        """scale · softmax(x): [B, K] → [B, K]."""
        return self.scale * torch.softmax(x, -1)

    def of_transitions(self, x: Tensor, played: Played) -> Tensor:
        """r_x of steps that were made, differentiable in x.

        Args:
            x: [K], or [B, K] for a population.
            played: with all reported terms [..., R], or [B or 1, ..., R] for a population.

        Returns:
            [...], or [B, ...].

        Raises:
            UnsupportedProblem: they carry no terms, or another number of them.
        """
        terms = played.terms
        if terms is None or terms.shape[-1] != len(self.reported):
            found = "none" if terms is None else terms.shape[-1]
            raise UnsupportedProblem(
                f"r_x reads {len(self.reported)} terms, and {found} came with these steps: make the world with terms={self.reported}, and see that nothing on the way drops them"
            )
        terms, weights = terms[..., self._columns], self.weights(x)
        return (terms * (weights if x.ndim == 1 else weights.view(len(x), *(1,) * (terms.ndim - 2), -1))).sum(-1)
