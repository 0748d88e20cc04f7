"""Soft backups: products with P, dense or sparse."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel_gym.transitions import SparseTransition, fold, unfold
from bilevel_gym.types import MDP

__all__ = ["Transitions", "backup", "dense", "expect_next", "expect_pairs", "matvec", "policy_transition", "push_forward", "staying"]


Transitions = Tensor | SparseTransition
"""P, dense or sparse: [B, S, A, S]."""


def dense(transition: Transitions) -> Tensor:
    """P as a table: [B, S, A, S]. Cost: its memory, O(S²A)."""
    return transition.dense() if isinstance(transition, SparseTransition) else transition


def expect_next(transition: Transitions, value: Tensor) -> Tensor:
    """(Pv)_sa = Σ_s' P_sas' v_s'.

    Args:
        transition: [B, S, A, S].
        value: [B, S].

    Returns:
        [B, S, A]. Cost: O(S²A); O(SAU) where a state reaches U others.
    """
    if isinstance(transition, SparseTransition):
        return transition.expect_next(value)
    if transition.ndim == 3 and value.ndim == 1:
        return transition @ value  # one small problem is bound by calls, not by arithmetic
    *_, states, actions, _ = transition.shape
    rows = transition.flatten(-3, -2)
    if transition.ndim == 3:
        flat = value @ rows.mT
    else:
        extra = max(value.ndim + 2 - transition.ndim, 0)
        flat = unfold(rows @ fold(value, extra, -1), value.shape[:extra], -1)
    found: Tensor = flat.unflatten(-1, (states, actions))
    return found


def expect_pairs(transition: Transitions, pairs: Tensor) -> Tensor:
    """Σ_s' P_sas' m_ss', the mean of what depends on both ends of a step: [B, S, A, S], [B, S, S] → [B, S, A]. Cost: O(S²A)."""
    if isinstance(transition, SparseTransition):
        return transition.expect_pairs(pairs)
    return torch.einsum("...sat,...st->...sa", transition, pairs)


def push_forward(transition: Transitions, mass: Tensor) -> Tensor:
    """(Pᵀc)_s' = Σ_sa P_sas' c_sa, the transpose of ``expect_next``.

    Args:
        transition: [B, S, A, S].
        mass: [B, S, A].

    Returns:
        [B, S]. Cost: O(S²A); O(SAU) where a state reaches U others.
    """
    if isinstance(transition, SparseTransition):
        return transition.push_forward(mass)
    rows, flat = transition.flatten(-3, -2), mass.flatten(-2)
    if transition.ndim == 3:
        return flat @ rows
    extra = max(mass.ndim + 1 - transition.ndim, 0)
    return unfold(fold(flat, extra, -2) @ rows, flat.shape[:extra], -2)


def matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    """Mv with leading axes that broadcast: [B, n, m], [B, m] → [B, n]."""
    if matrix.ndim == 2 and vector.ndim == 1:
        return torch.mv(matrix, vector)
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def policy_transition(transition: Transitions, policy: Tensor) -> Tensor:
    """(P_π)_ss' = Σ_a π_sa P_sas', a dense matrix: [B, S, A, S], [B, S, A] → [B, S, S]. Cost: O(S²A)."""
    if isinstance(transition, SparseTransition):
        return transition.policy_transition(policy)
    extra = max(policy.ndim + 1 - transition.ndim, 0)
    return unfold(fold(policy, extra, -2) @ transition, policy.shape[:extra], -2)


def staying(transition: Transitions) -> Tensor:
    """P(s | s, a), the probability of staying: [B, S, A, S] → [B, S, A]."""
    if isinstance(transition, SparseTransition):
        own = torch.arange(len(transition.successors), device=transition.device).unsqueeze(-1)
        return (transition.probability * (transition.successors == own).unsqueeze(-2)).sum(-1)
    return transition.diagonal(dim1=-3, dim2=-1).mT


def backup(mdp: MDP, value: Tensor) -> Tensor:
    """backup(x, v) = r(x) + γ P(x) v, the only place where x enters the lower level (mathematics §2).

    Args:
        mdp: M_τ(x).
        value: [B, S].

    Returns:
        [B, S, A]. Cost: O(S²A).
    """
    return torch.add(mdp.reward, expect_next(mdp.transition, value), alpha=mdp.discount)
