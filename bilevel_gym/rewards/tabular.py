"""Rewards on finitely many states and actions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.numerics import ArrayLike, as_table, matvec
from bilevel_gym.rewards.box import Box

__all__ = ["LinearReward", "QuadraticReward", "Table", "finite_table"]


class Table(Box, ABC):
    """What the tabular rewards share: a box with a normal start, and the look-up of pairs."""

    def along(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """r_x at state-action pairs: x [B, D], states and actions [...] → [B, ...]."""
        return self.at(x)[..., states, actions]

    @abstractmethod
    def at(self, x: Tensor) -> Tensor:
        """r_x: [B, D] → [B, S, A]."""

    @abstractmethod
    def vjp(self, x: Tensor, cotangent: Tensor) -> Tensor:
        """(∂r_x/∂x)ᵀ cotangent: [B, S, A] → [B, D]."""


class QuadraticReward(Table):
    """r_sa(x) = c_sa · xᵀMx, the synthetic problem of the SoBiRL paper.

    Args:
        coefficients: [S, A] or [B, S, A], c.
        matrix: [D, D] or [B, D, D], M; only its symmetric part counts, and only that is kept.
        bound: x lies in [−bound, bound]^D.
        device: where the tables live.

    Raises:
        InvalidProblem: a shape does not fit.
    """

    def __init__(self, coefficients: ArrayLike, matrix: ArrayLike, *, bound: float = 10.0, device: str | torch.device = "cpu") -> None:
        self.coefficients = finite_table(coefficients, device)
        self.matrix = finite_table(matrix, device)
        """[D, D] or [B, D, D] the symmetric part of M, which one product with x serves for r_x and for its derivative."""
        if self.coefficients.ndim < 2 or self.matrix.ndim < 2 or self.matrix.shape[-1] != self.matrix.shape[-2]:
            raise InvalidProblem(
                f"coefficients {tuple(self.coefficients.shape)} must be [S, A] and matrix {tuple(self.matrix.shape)} square, [D, D]"
            )
        self.matrix = (self.matrix + self.matrix.mT) / 2.0
        super().__init__(self.matrix.shape[-1], bound, device=device)

    def at(self, x: Tensor) -> Tensor:
        """r_x: [B, D] → [B, S, A]. Cost: O(D² + SA)."""
        form = (x * matvec(self.matrix, x)).sum(-1)
        return self.coefficients * form[..., None, None]

    def vjp(self, x: Tensor, cotangent: Tensor) -> Tensor:
        """⟨c, cotangent⟩ (M + Mᵀ) x: [B, S, A] → [B, D]. Cost: O(D² + SA)."""
        weight = (self.coefficients * cotangent).sum((-2, -1))
        return 2.0 * weight.unsqueeze(-1) * matvec(self.matrix, x)

    @classmethod
    def stack(cls, rewards: Sequence[QuadraticReward]) -> QuadraticReward:
        """Rewards of one size and box as a batch: tables with a leading axis B.

        Raises:
            UnsupportedProblem: their boxes differ.
        """
        _one_box(rewards)
        coefficients, matrices = (torch.stack([getattr(reward, name) for reward in rewards]) for name in ("coefficients", "matrix"))
        return cls(coefficients, matrices, bound=rewards[0].bound, device=rewards[0].device)


class LinearReward(Table):
    """r_sa(x) = ⟨φ_sa, x⟩ + r̄_sa.

    Args:
        features: [S, A, D] or [B, S, A, D], φ; ``torch.eye(S * A).view(S, A, -1)`` makes x the reward table itself.
        offset: [S, A] or [B, S, A], r̄, what is there whatever x is; 0 by default.
        bound: x lies in [−bound, bound]^D.
        device: where the tables live.

    Raises:
        InvalidProblem: the features do not have three axes, or the offset is not for the same states and actions.
    """

    def __init__(
        self, features: ArrayLike, offset: ArrayLike | None = None, *, bound: float = 10.0, device: str | torch.device = "cpu"
    ) -> None:
        self.features = finite_table(features, device)
        self.offset = None if offset is None else finite_table(offset, device)
        if self.features.ndim < 3:
            raise InvalidProblem(f"features have shape {tuple(self.features.shape)}: they must be [S, A, D]")
        if self.offset is not None and self.offset.shape[-2:] != self.features.shape[-3:-1]:
            raise InvalidProblem(
                f"offset has shape {tuple(self.offset.shape)}: it must end with [S, A] = {list(self.features.shape[-3:-1])}, as the features do"
            )
        super().__init__(self.features.shape[-1], bound, device=device)

    def at(self, x: Tensor) -> Tensor:
        """r_x: [B, D] → [B, S, A]. Cost: O(SAD)."""
        chosen = (self.features @ x[..., None, :, None]).squeeze(-1)
        return chosen if self.offset is None else chosen + self.offset

    def vjp(self, x: Tensor, cotangent: Tensor) -> Tensor:
        """Σ_sa φ_sa cotangent_sa: [B, S, A] → [B, D]. Cost: O(SAD)."""
        return (cotangent.flatten(-2).unsqueeze(-2) @ self.features.flatten(-3, -2)).squeeze(-2)

    @classmethod
    def stack(cls, rewards: Sequence[LinearReward]) -> LinearReward:
        """Rewards of one size and box as a batch: features with a leading axis B.

        Raises:
            UnsupportedProblem: their boxes differ, or only some have an offset.
        """
        _one_box(rewards)
        offsets = [reward.offset for reward in rewards if reward.offset is not None]
        if len(offsets) not in (0, len(rewards)):
            raise UnsupportedProblem("rewards are stacked where all of them have an offset, or none: give the others one of zeros")
        features = torch.stack([reward.features for reward in rewards])
        return cls(features, torch.stack(offsets) if offsets else None, bound=rewards[0].bound, device=rewards[0].device)


def _one_box(rewards: Sequence[Table]) -> None:
    if len({reward.bound for reward in rewards}) > 1:
        raise UnsupportedProblem("rewards are stacked where x has one box: give them the same bound")


def finite_table(values: ArrayLike, device: str | torch.device) -> Tensor:
    """A float64 tensor of a person's numbers.

    Raises:
        InvalidProblem: one of them is not finite.
    """
    table = as_table(values, device)
    if not bool(table.isfinite().all()):
        raise InvalidProblem("the reward's numbers must be finite: there is a NaN or an infinity among them")
    return table
