"""Draws that more than one station takes."""

from __future__ import annotations

from math import inf, log

import torch
from torch import Tensor

__all__ = ["draw_categorical", "draw_horizons", "draw_seed"]


def draw_seed(generator: torch.Generator) -> int:
    """A seed for something that is not torch, such as a simulator, drawn from a torch generator."""
    return int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))


def draw_horizons(count: int, discount: float, generator: torch.Generator) -> Tensor:
    """Numbers of steps T + 1 with P(T ≥ t) = γ^{t/2}: T ~ Geom(1 − √γ) from 0 (mathematics §7, HPGD).

    Σ_{t≤T} γ^{t/2} r_t then has the mean of the endless Σ_t γ^t r_t, and is bounded by max|r|/(1 − √γ) however late T is.

    Args:
        count: how many.
        discount: γ in [0, 1).
        generator: the source of the draws.

    Returns:
        [count] int64, 1 or more.
    """
    waiting = torch.empty(count, dtype=torch.float64, device=generator.device).exponential_(generator=generator)
    rate = inf if discount == 0.0 else -0.5 * log(discount)
    return (waiting / rate).long() + 1


def draw_categorical(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One draw from each row by inversion, with one random number of the generator: [n, A] → [n] int64."""
    unit = torch.rand(len(probabilities), 1, generator=generator, device=generator.device).to(probabilities.device)
    cumulated = probabilities.cumsum(-1)
    return (unit * cumulated[:, -1:] >= cumulated).sum(-1).clamp_max(probabilities.shape[-1] - 1)
