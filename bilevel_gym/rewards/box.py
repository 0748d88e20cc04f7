"""Where x lives."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.numerics import ArrayLike, as_table

__all__ = ["Box", "CornerBox"]


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
            raise InvalidProblem(f"bound is {bound}: it must be positive and finite, such as 10")
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


class CornerBox:
    """x between two corners, in float64, started uniformly.

    Args:
        low: [D] the lower corner of the box.
        high: [D] the upper corner.
        start: two numbers between which x starts, uniformly, in every coordinate; None takes the whole box.
        device: where x lives.

    Raises:
        InvalidProblem: the corners are not finite, not of one length, or not in order; ``start`` leaves the box.
    """

    dtype = torch.float64

    def __init__(
        self, low: ArrayLike, high: ArrayLike, *, start: tuple[float, float] | None = None, device: str | torch.device = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.low, self.high, self.start = as_table(low, device), as_table(high, device), start
        if self.low.ndim != 1 or not len(self.low) or self.low.shape != self.high.shape:
            raise InvalidProblem(
                f"low has shape {tuple(self.low.shape)} and high {tuple(self.high.shape)}: give both as [D], one number or more"
            )
        if not bool((self.low < self.high).all() & self.low.isfinite().all() & self.high.isfinite().all()):
            raise InvalidProblem("the box of x must be finite, with low below high in every coordinate")
        if start is not None and not (float(self.low.max()) <= start[0] <= start[1] <= float(self.high.min())):
            raise InvalidProblem(f"start is {start}: x must start inside the box, between two numbers in order")

    @property
    def dimension(self) -> int:
        """D."""
        return len(self.low)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The box of x: two arrays [D]."""
        return self.low.cpu().numpy(), self.high.cpu().numpy()

    def initial(self, generator: torch.Generator) -> Tensor:
        """A uniform x between the two numbers of ``start``: [D]."""
        unit = torch.rand(self.dimension, generator=generator, dtype=self.dtype, device=self.device)
        return torch.lerp(self.low, self.high, unit) if self.start is None else self.start[0] + (self.start[1] - self.start[0]) * unit
