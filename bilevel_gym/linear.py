"""Factors of I − γP_π: a dense LU, and a block-tridiagonal one for worlds whose states reach few others.

I − γP_π is a row-diagonally-dominant M-matrix, and so is every Schur complement of it: blocks can be eliminated in any order without
pivoting between them.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem

__all__ = ["BlockLU", "DenseLU", "Factor"]

_SINGULAR = (
    "I − γP_π is singular: γ is too near 1 for episodes that never end, or P or π is not finite; take a smaller discount, such as 0.99"
)


class Factor(Protocol):
    """A factorization of I − γP_π, which serves Newton's step and the adjoint alike."""

    def solve(self, right: Tensor, *, transposed: bool) -> Tensor:
        """(I − γP_π)⁻¹ b, or (I − γP_π)^{-T} b where ``transposed``: [B, S] → [B, S]."""
        ...


class DenseLU(NamedTuple):
    """An LU factorization with pivoting, as ``torch.linalg.lu_factor`` returns it."""

    lu: Tensor
    """[B, S, S] packed factors."""
    pivots: Tensor
    """[B, S] pivots."""

    @classmethod
    def of(cls, matrix: Tensor) -> DenseLU:
        """Factorize [B, S, S].

        Raises:
            InvalidProblem: the matrix is singular.

        Cost: O(S³).
        """
        lu, pivots, info = torch.linalg.lu_factor_ex(matrix)
        if bool(info.any()):
            raise InvalidProblem(_SINGULAR)
        return cls(lu, pivots)

    def solve(self, right: Tensor, *, transposed: bool) -> Tensor:
        """As in ``Factor``. Cost: O(S²)."""
        solved: Tensor = torch.linalg.lu_solve(self.lu, self.pivots, right.unsqueeze(-1), adjoint=transposed)
        return solved.squeeze(-1)


class BlockLU(NamedTuple):
    """Elimination of a block-tridiagonal matrix with rows (L_i, D_i, U_i), N blocks of size m, every block of a batch at once.

        E_0 = D_0,   W_i = L_i E_{i−1}⁻¹,   E_i = D_i − W_i U_{i−1}

    so that the matrix is (I + W)(E + U). The loop in Python has N steps, however many matrices there are.
    """

    inverse: Tensor
    """[N, B, m, m] E_i⁻¹."""
    lower: Tensor
    """[N, B, m, m] W_i; nothing is read of the first."""
    upper: Tensor
    """[N, B, m, m] U_i; nothing is read of the last."""
    place: Tensor
    """[S] where each state stands in the order of elimination, below N·m."""

    @classmethod
    def of(cls, rows: Tensor, place: Tensor) -> BlockLU:
        """Factorize the block rows (L_i, D_i, U_i).

        Args:
            rows: [N, B, m, 3m].
            place: [S].

        Raises:
            InvalidProblem: the matrix is singular.

        Cost: O(N m³), and N steps in sequence.
        """
        below, diagonal, above = rows.tensor_split(3, -1)
        inverse, info = torch.linalg.inv_ex(diagonal[0])
        inverses, lower, infos = [inverse], [below[0]], [info]
        for i in range(1, rows.shape[0]):
            lower.append(below[i] @ inverses[-1])
            inverse, info = torch.linalg.inv_ex(diagonal[i] - lower[-1] @ above[i - 1])
            inverses.append(inverse)
            infos.append(info)
        if bool(torch.stack(infos).any()):
            raise InvalidProblem(_SINGULAR)
        return cls(torch.stack(inverses), torch.stack(lower), above.contiguous(), place)

    def solve(self, right: Tensor, *, transposed: bool) -> Tensor:
        """As in ``Factor``. Cost: O(N m²), and 2N steps in sequence."""
        count, size = self.inverse.shape[0], self.inverse.shape[-1]
        padded = torch.zeros(*right.shape[:-1], count * size, dtype=right.dtype, device=right.device).index_copy_(-1, self.place, right)
        parts = padded.unflatten(-1, (count, size)).movedim(-2, 0).unsqueeze(-1)
        solved = self._transposed(parts) if transposed else self._plain(parts)
        return torch.stack(solved).squeeze(-1).movedim(0, -2).flatten(-2).index_select(-1, self.place)

    def _plain(self, right: Tensor) -> list[Tensor]:
        """(I + W)y = b downwards, (E + U)v = y upwards."""
        found = [right[0]]
        for i in range(1, len(right)):
            found.append(right[i] - self.lower[i] @ found[-1])
        found[-1] = self.inverse[-1] @ found[-1]
        for i in range(len(right) - 2, -1, -1):
            found[i] = self.inverse[i] @ (found[i] - self.upper[i] @ found[i + 1])
        return found

    def _transposed(self, right: Tensor) -> list[Tensor]:
        """(E + U)ᵀy = b downwards, (I + W)ᵀv = y upwards."""
        found = [self.inverse[0].mT @ right[0]]
        for i in range(1, len(right)):
            found.append(self.inverse[i].mT @ (right[i] - self.upper[i - 1].mT @ found[-1]))
        for i in range(len(right) - 2, -1, -1):
            found[i] = found[i] - self.lower[i + 1].mT @ found[i + 1]
        return found
