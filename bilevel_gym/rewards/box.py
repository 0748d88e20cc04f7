"""Where x lives."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem

__all__ = ["Box"]


class Box:
    """x ∈ [−bound, bound]^D in float64, started at spread · N(0, I) inside it.

    Args:
        dimension: D.
        bound: of each entry; finite, since actions are.
        spread: the standard deviation of the start.
        device: where x lives.

    Raises:
        InvalidProblem: an empty x, an infinite box, or a spread that is not positive.
    """

    def __init__(self, dimension: int, bound: float, *, spread: float = 1.0, device: str | torch.device = "cpu") -> None:
        if dimension < 1:
            raise InvalidProblem("x has dimension 0: there is nothing to choose; give at least one parameter")
        if not 0.0 < bound < float("inf"):
            raise InvalidProblem(f"bound is {bound}: the box of x must be finite, such as 10")
        if not 0.0 < spread < float("inf"):
            raise InvalidProblem(f"spread is {spread}: it must be positive and finite, such as 1")
        self.dimension = dimension
        self.bound = bound
        self.spread = spread
        self.dtype = torch.float64
        self.device = torch.device(device)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The box of x: two arrays [D]."""
        return np.full(self.dimension, -self.bound), np.full(self.dimension, self.bound)

    def initial(self, generator: torch.Generator) -> Tensor:
        """A normal x, kept inside the box: [D]."""
        x = torch.randn(self.dimension, generator=generator, dtype=self.dtype, device=self.device)
        return x.mul_(self.spread).clamp_(-self.bound, self.bound)
