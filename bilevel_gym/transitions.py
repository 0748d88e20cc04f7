"""Transition probabilities of worlds whose states reach few others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import reverse_cuthill_mckee
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.linear import BlockLU, DenseLU

__all__ = ["SparseTransition", "fold", "unfold"]

DENSE_WORK = 10_000_000
"""B·S³ up to which one dense LU is faster than the steps of a block elimination."""

NARROW_FROM = 64
"""States below which a dense table is always faster."""


class SparseTransition:
    """P(s' | s, a) where each state has at most U successors: all actions of a state share one list of them.

    That makes of each state a small dense table [A, U]: products are gathers and small matrix products, on any device and for any
    number of values at once. One list of successors serves every problem of a batch; only the probabilities may differ.

    Args:
        successors: [S, U] states, int64; one that is listed twice counts twice, fill up with any state at probability 0.
        probability: [S, A, U] or [B, S, A, U].

    Raises:
        InvalidProblem: a shape does not fit, or a successor is not a state.
    """

    def __init__(self, successors: Tensor, probability: Tensor) -> None:
        if successors.ndim != 2 or probability.ndim < 3 or (probability.shape[-3], probability.shape[-1]) != tuple(successors.shape):
            raise InvalidProblem(
                f"successors {tuple(successors.shape)} must be [S, U], and probability {tuple(probability.shape)} [S, A, U] or [B, S, A, U]"
            )
        if 0 in probability.shape:
            raise InvalidProblem(
                f"probability has shape {tuple(probability.shape)}: there must be one state, action and successor at least"
            )
        if not 0 <= int(successors.min()) <= int(successors.max()) < len(successors):
            raise InvalidProblem(f"successors must be states, 0 to {len(successors) - 1}: there are others among them")
        self.successors = successors.long()
        self.probability = probability

    @classmethod
    def from_pairs(cls, successors: Tensor, probability: Tensor) -> SparseTransition:
        """Merge the successors of each state–action pair into one list a state.

        Args:
            successors: [S, A, K] states; whichever have probability 0 do not count.
            probability: [S, A, K] or [B, S, A, K].
        """
        states, actions, _ = successors.shape
        own = torch.arange(states, device=successors.device).unsqueeze(-1)
        live = (probability != 0).flatten(0, -4).any(0) if probability.ndim > 3 else probability != 0
        target = torch.where(live, successors, states).flatten(1)  # a state that is none: it sorts behind all others
        ordered, order = target.sort(-1)
        fresh = torch.cat([torch.zeros_like(ordered[:, :1]), (ordered[:, 1:] != ordered[:, :-1]).long()], -1)
        slot = torch.empty_like(order).scatter_(-1, order, fresh.cumsum(-1))
        width = int(torch.where(target < states, slot, 0).max()) + 1
        slot = torch.where(target < states, slot, width)
        merged = own.repeat(1, width + 1).scatter_(-1, slot, target)[:, :width]
        weights = torch.zeros(*probability.shape[:-1], width + 1, dtype=probability.dtype, device=probability.device)
        weights.scatter_add_(-1, slot.view(states, actions, -1).expand(probability.shape), probability)
        return cls(merged, weights[..., :width].contiguous())

    @classmethod
    def from_dense(cls, transition: Tensor) -> SparseTransition:
        """Of a table [B, S, A, S]."""
        reached = (transition != 0).flatten(0, -4).any(0) if transition.ndim > 3 else transition != 0
        reached = reached.any(-2)
        width = max(int(reached.sum(-1).max()), 1)
        taken, successors = reached.byte().topk(width, -1)
        own = torch.arange(len(reached), device=transition.device).unsqueeze(-1)
        probability = transition.gather(-1, successors.unsqueeze(-2).expand(*transition.shape[:-1], -1))  # 0 where not taken
        return cls(torch.where(taken.bool(), successors, own), probability)

    @property
    def shape(self) -> torch.Size:
        """Of the dense table: [B, S, A, S]."""
        return torch.Size((*self.probability.shape[:-1], self.probability.shape[-3]))

    @property
    def narrow(self) -> bool:
        """Whether this form is the faster one: a gather costs about eight times as much as an entry of a matrix product."""
        states, reached = self.successors.shape
        return states >= NARROW_FROM and 8 * reached <= states

    @property
    def ndim(self) -> int:
        """Axes of the dense table."""
        return self.probability.ndim

    @property
    def dtype(self) -> torch.dtype:
        """Of the probabilities."""
        return self.probability.dtype

    @property
    def device(self) -> torch.device:
        """Where the tables live."""
        return self.probability.device

    def to(self, device: str | torch.device) -> SparseTransition:
        """The same on another device, in float64."""
        return SparseTransition(self.successors.to(device), self.probability.to(device=device, dtype=torch.float64))

    def __getitem__(self, index: int) -> SparseTransition:
        """One problem of a batch."""
        if self.ndim < 4:
            raise InvalidProblem("these probabilities are those of one problem: there is no batch to take one out of")
        return SparseTransition(self.successors, self.probability[index])

    def dense(self) -> Tensor:
        """The table: [B, S, A, S]. Cost: its memory, O(S²A)."""
        index = self.successors.unsqueeze(-2).expand(self.probability.shape)
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device).scatter_add_(-1, index, self.probability)

    def rows(self, states: Tensor, actions: Tensor) -> Tensor:
        """P(· | s, a) of one problem at n pairs: [n], [n] → [n, S]."""
        table = torch.zeros(len(states), len(self.successors), dtype=self.dtype, device=self.device)
        return table.scatter_add_(-1, self.successors[states], self.probability[states, actions])

    def expect_next(self, value: Tensor) -> Tensor:
        """(Pv)_sa: [B, S] → [B, S, A]. Cost: O(SAU)."""
        extra = self._extra(value.ndim - 1)
        found = self.probability @ fold(value, extra, -1)[..., self.successors, :]
        return unfold(found, value.shape[:extra], -1)

    def expect_pairs(self, pairs: Tensor) -> Tensor:
        """Σ_s' P_sas' m_ss': [B, S, S] → [B, S, A]. Cost: O(SAU)."""
        extra = self._extra(pairs.ndim - 2)
        reached = pairs.gather(-1, self.successors.expand(*pairs.shape[:-1], -1))
        return unfold(self.probability @ fold(reached, extra, -1), pairs.shape[:extra], -1)

    def push_forward(self, mass: Tensor) -> Tensor:
        """(Pᵀc)_s': [B, S, A] → [B, S]. Cost: O(SAU); on a GPU the order of the additions, hence the last bit, may vary."""
        extra = self._extra(mass.ndim - 2)
        flow = (self.probability.mT @ fold(mass, extra, -1)).flatten(-3, -2)
        found = torch.zeros(*flow.shape[:-2], len(self.successors), flow.shape[-1], dtype=flow.dtype, device=flow.device)
        return unfold(found.index_add_(-2, self.successors.flatten(), flow), mass.shape[:extra], -1)

    def under(self, policy: Tensor) -> Tensor:
        """Σ_a π_sa P(s_u | s, a), the entries of P_π: [B, S, A] → [B, S, U]. Cost: O(SAU)."""
        extra = self._extra(policy.ndim - 2)
        return unfold(fold(policy, extra, -2) @ self.probability, policy.shape[:extra], -2)

    def policy_transition(self, policy: Tensor) -> Tensor:
        """P_π as a dense matrix: [B, S, A] → [B, S, S]. Cost: its memory, O(S²)."""
        return self._square(self.under(policy))

    def factorize(self, policy: Tensor, discount: float) -> DenseLU | BlockLU:
        """A factor of I − γP_π: dense where that is little work, else by block elimination along a narrow band.

        Raises:
            InvalidProblem: the matrix is singular.

        Cost: O(Sm²) with m the bandwidth: the side of an open gridworld.
        """
        states = len(self.successors)
        if max(policy.shape[:-2].numel(), 1) * states**3 <= DENSE_WORK:
            matrix = self._square(self.under(policy).mul_(-discount))
            matrix.diagonal(dim1=-2, dim2=-1).add_(1.0)
            return DenseLU.of(matrix)
        band = self._band
        entries = self.under(policy).movedim(-2, 0)[band.order].mul_(-discount)
        lead, size = entries.shape[1:-1], band.size
        rows = torch.zeros(band.blocks * size, *lead, 3 * size, dtype=entries.dtype, device=entries.device)
        column = band.column.view(states, *(1,) * len(lead), -1).expand(entries.shape)
        rows[:states].scatter_add_(-1, column, entries)
        blocks = rows.unflatten(0, (band.blocks, size)).movedim(1, -2)
        blocks[..., size : 2 * size].diagonal(dim1=-2, dim2=-1).add_(1.0)
        return BlockLU.of(blocks, band.place)

    def _square(self, entries: Tensor) -> Tensor:
        """A matrix from its entries: [B, S, U] → [B, S, S]."""
        states = len(self.successors)
        matrix = torch.zeros(*entries.shape[:-1], states, dtype=entries.dtype, device=entries.device)
        return matrix.scatter_add_(-1, self.successors.expand(entries.shape), entries)

    def _extra(self, leading: int) -> int:
        """How many leading axes of an argument P does not have."""
        return max(leading - (self.ndim - 3), 0)

    @cached_property
    def _band(self) -> _Band:
        return _narrow_band(self.successors, (self.probability != 0).flatten(0, -4).any(0) if self.ndim > 3 else self.probability != 0)


def fold(values: Tensor, axes: int, to: int) -> Tensor:
    """The first ``axes`` axes as one axis in the place ``to`` (of size 1 where there are none).

    What a table is shared by becomes an axis of a matrix: one matrix product then serves all of it, and the table is never repeated.
    """
    return values.flatten(0, axes - 1).movedim(0, to) if axes else values.unsqueeze(to)


def unfold(values: Tensor, shape: Sequence[int], at: int) -> Tensor:
    """The inverse of ``fold``."""
    return values.movedim(at, 0).unflatten(0, shape) if shape else values.squeeze(at)


class _Band(NamedTuple):
    """An order of the states in which none reaches, or is reached from, one more than ``size`` places away."""

    order: Tensor
    """[S] the states in this order."""
    place: Tensor
    """[S] the place of each state."""
    column: Tensor
    """[S, U] the column of each entry, in this order, in its block row (L_i, D_i, U_i)."""
    size: int
    """m."""
    blocks: int
    """N."""


def _narrow_band(successors: Tensor, live: Tensor) -> _Band:
    """The better of the states' own order and that of Cuthill and McKee (1969)."""
    states = len(successors)
    own = np.arange(states)
    kept = live.any(-2).cpu().numpy()
    begin, end = np.broadcast_to(own[:, None], kept.shape)[kept], successors.cpu().numpy()[kept]
    graph = coo_matrix((np.ones(len(begin), np.int8), (begin, end)), (states, states)).tocsr()
    orders = [own, np.asarray(reverse_cuthill_mckee(graph + graph.T, symmetric_mode=True)).astype(np.int64)]
    places = [np.argsort(order) for order in orders]
    widths = [int(np.abs(place[begin] - place[end]).max(initial=1)) for place in places]
    best = int(np.argmin(widths))
    device, size = successors.device, widths[best]
    order, place = (torch.as_tensor(found[best], device=device) for found in (orders, places))
    block = torch.arange(states, device=device).div(size, rounding_mode="floor")
    column = place[successors[order]] - (block - 1).unsqueeze(-1) * size
    # Entries of probability 0 may lie outside the band: anywhere will do, they add nothing.
    return _Band(order, place, column.clamp(0, 3 * size - 1), size, -(-states // size))
