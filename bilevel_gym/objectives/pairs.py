"""Means over all pairs of fragments, of which only kinds matter: U² numbers, taken in parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bilevel_gym.preferences import Teacher, cross_entropy

__all__ = ["LARGEST_PART", "answer_entropy", "mean_losses", "pair_losses"]

LARGEST_PART = 2**21
"""Pairs, times problems, whose losses are held at a time."""


def mean_losses(law: Tensor, learned: Tensor, truth: Tensor, teacher: Teacher) -> Tensor:
    """Σ_j p_j E_y l_ij for each kind i of the first fragment (or of the second, l is symmetric), differentiable in p and the learned returns.

    Args:
        law: [B, U] p, or [U] for all problems.
        learned: [B, U] Σ_h r_x of each kind of fragment.
        truth: [U, 2] what the teacher sees of each: R and R̃ of the true reward.
        teacher: who compares.

    Returns:
        [B, U]; f is their mean under p. Cost: O(BU²) time, memory for ``LARGEST_PART`` pairs.
    """

    def loss(rows: Tensor, law: Tensor, learned: Tensor) -> Tensor:
        by_row: Tensor = pair_losses(learned, truth, teacher, rows) @ law.unsqueeze(-1)
        return by_row.squeeze(-1)

    parts = torch.arange(len(truth), device=truth.device).split(max(1, LARGEST_PART // learned.numel()))
    if len(parts) == 1:
        return loss(parts[0], law, learned)
    # The backward pass computes each part anew, else all of them would be held for it.
    again: Callable[[Tensor, Tensor, Tensor], Tensor] = partial(checkpoint, loss, use_reentrant=False, preserve_rng_state=False)
    return torch.cat([again(rows, law, learned) for rows in parts], -1)


def pair_losses(learned: Tensor, truth: Tensor, teacher: Teacher, rows: Tensor | None = None) -> Tensor:
    """E_y l of all pairs, or of those whose first is among the rows; 0 where they are skipped: [B, U], [U, 2], [R] → [B, R, U]."""
    first = learned if rows is None else learned[..., rows]
    return cross_entropy(first.unsqueeze(-1) - learned.unsqueeze(-2), _answers(truth, teacher, rows))


def answer_entropy(law: Tensor, truth: Tensor, teacher: Teacher) -> Tensor:
    """Σ_ij p_i p_j h(E y_ij), h the entropy of a coin, 0 where skipped: the least that the mean loss can be. [B, U], [U, 2] → [B].

    Where nothing is skipped or equal it is the mean entropy of the teacher's answers.
    """
    answers = _answers(truth, teacher).nan_to_num()
    entropy = -torch.special.xlogy(answers, answers) - torch.special.xlogy(1.0 - answers, 1.0 - answers)
    by_row: Tensor = law @ entropy
    return (law * by_row).sum(-1)


def _answers(truth: Tensor, teacher: Teacher, rows: Tensor | None = None) -> Tensor:
    """The mean answer about each pair, NaN where it is skipped: [R, U]."""
    first = truth if rows is None else truth[rows]
    return teacher.mean(first[:, None], truth)
