"""The queue of labelled tuples."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bilevel_gym.arguments import check_numbers
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.preferences.fragments import concatenate, take
from bilevel_gym.types import Fragments

__all__ = ["PreferenceBuffer"]


@dataclass(frozen=True)
class PreferenceBuffer:
    """A first-in-first-out queue of tuples; it is never changed, ``append`` returns the next one.

    Args:
        capacity: tuples at most; 0 keeps none.
        content: what it holds.

    Raises:
        InvalidProblem: a capacity below 0.
    """

    capacity: int
    content: Fragments | None = None

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.capacity < 0:
            raise InvalidProblem(f"capacity is {self.capacity}: it must be a number of tuples, 0 or more")

    def __len__(self) -> int:
        """How many tuples it holds."""
        return 0 if self.content is None else self.content.outcome.shape[0]

    def append(self, fragments: Fragments) -> PreferenceBuffer:
        """The queue with these tuples at its end and the oldest dropped."""
        if self.capacity == 0:
            return self
        joined = fragments if self.content is None else concatenate(self.content, fragments)
        return PreferenceBuffer(self.capacity, take(joined, slice(-self.capacity, None)))

    def sample(self, count: int, generator: torch.Generator) -> Fragments:
        """Draw ``count`` tuples uniformly, with replacement.

        Raises:
            IndexError: the queue is empty.
        """
        if self.content is None or not len(self):
            raise IndexError("the queue is empty: append samples first")
        outcome = self.content.outcome
        return take(self.content, torch.randint(outcome.shape[0], (count,), generator=generator, device=outcome.device))
