"""A reward that is given, for followers that are to be compared with a known answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Known:
    """A reward that does not depend on x."""

    score: Callable[[Tensor, Tensor], Tensor]
    dimension: int = 1
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Any box."""
        return np.full(1, -1.0), np.full(1, 1.0)

    def initial(self, generator: torch.Generator) -> Tensor:
        """Any x."""
        return torch.zeros(1)

    def along(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """The same for every x."""
        return self.score(states, actions)
