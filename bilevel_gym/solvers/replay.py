"""Transitions without r_x, which is computed when a batch is sampled: no label is stale when x changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.numerics import rewards_of

__all__ = ["Batch", "Replay", "score"]


class Batch(NamedTuple):
    """Transitions drawn from a replay; the observations and actions are views of one gathered tensor."""

    states: Tensor
    """[n, observation] s."""
    actions: Tensor
    """[n, action] a, in the environment's units; [n] int64 where actions are numbers."""
    following: Tensor
    """[n, observation] s', the last observation of an episode where it ended."""
    terminated: Tensor
    """[n] 1 where s' is an end, whose value is 0; a truncated episode has 0 here."""
    rewards: Tensor
    """[n] the true reward, which only teachers and metrics may read."""
    terms: Tensor | None = None
    """[n, K] its named parts, where the world reports some."""


@torch.no_grad()
def score(reward: Any, x: Tensor, batch: Batch) -> Tensor:
    """r_x of a batch as x is now: [n].

    Args:
        reward: a ``RewardModel``, or a ``TransitionReward`` where (s, a) does not decide it.
        x: [D].
        batch: n transitions.
    """
    return rewards_of(reward, x, batch).to(batch.rewards.dtype)


@dataclass
class Replay:
    """A ring of the last ``capacity`` transitions, each one row (s, a, s', terminated, true reward) of a preallocated tensor.

    The tensor starts small and doubles until it has ``capacity`` rows: a short run allocates and saves little. One row a
    transition makes sampling one gather.

    Args:
        observation_size: numbers in an observation.
        action_size: numbers in an action; None where actions are numbers themselves, one of finitely many.
        capacity: transitions kept; the oldest are overwritten.
        device: where they live.

    Raises:
        InvalidProblem: the capacity is not positive.
    """

    observation_size: int
    action_size: int | None
    capacity: int
    device: str | torch.device = "cpu"
    rows: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, metadata={"ring": ("written", "capacity")})
    """[allocated, 2·observation + action + 2 + K] float32; those not yet written are 0."""
    written: int = 0
    """Transitions ever added."""
    terms: int = 0
    """K, named parts of the true reward."""
    files: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Where checkpoints keep the rows (see ``rings``)."""

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise InvalidProblem(f"the capacity of a replay is {self.capacity}: it must be positive")
        if self.rows.ndim != 2:
            width = 2 * self.observation_size + self._columns + 2 + self.terms
            self.rows = torch.zeros(min(self.capacity, 4096), width, device=self.device)

    def __len__(self) -> int:
        """Transitions that can be drawn."""
        return min(self.written, self.capacity)

    @property
    def first(self) -> int:
        """The number of the oldest transition that is still there; number m is in row m mod ``capacity``."""
        return self.written - len(self)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors that ``at`` reads."""
        return (self.rows,)

    @property
    def _columns(self) -> int:
        """Of an action in a row; a number of up to 2²⁴ actions is exact in float32."""
        return 1 if self.action_size is None else self.action_size

    def add(
        self, states: Tensor, actions: Tensor, following: Tensor, terminated: Tensor, rewards: Tensor, terms: Tensor | None = None
    ) -> None:
        """Append N transitions, the oldest making room.

        Args:
            states: [N, observation].
            actions: [N, action], in the environment's units; [N] int64 where actions are numbers.
            following: [N, observation], the last observation where the episode ended.
            terminated: [N], true where ``following`` is an end (not where it was only truncated).
            rewards: [N], true rewards.
            terms: [N, K] their named parts, where the replay keeps some.
        """
        columns = (
            states,
            actions.view(len(states), -1).to(states.dtype),
            following,
            terminated[:, None].to(states.dtype),
            rewards[:, None],
            *(() if terms is None else (terms,)),
        )
        count, kept = len(states), min(len(states), self.capacity)
        self._reserve(min(self.capacity, self.written + count))
        first = (self.written + count - kept) % self.capacity
        head = min(kept, self.capacity - first)
        if head == count:  # nothing wraps or is dropped, which is nearly always so
            torch.cat(columns, -1, out=self.rows[first : first + count])
        else:
            fresh = torch.cat(columns, -1)[-kept:]
            self.rows[first : first + head] = fresh[:head]
            self.rows[: kept - head] = fresh[head:]
        self.written += count

    def sample(self, count: int, generator: torch.Generator) -> Batch:
        """Draw ``count`` transitions uniformly, with replacement. Cost: one gather.

        Raises:
            IndexError: the replay is empty.
        """
        if not self.written:
            raise IndexError("the replay is empty: nothing can be drawn from it")
        index = torch.randint(len(self), (count,), generator=generator, device=generator.device)
        return self.at(index.to(self.rows.device))

    def at(self, index: Tensor) -> Batch:
        """The transitions in given rows: [n] → fields [n, ...]."""
        rows = self.rows.index_select(0, index)
        states, actions, following, ends = rows.split([self.observation_size, self._columns, self.observation_size, 2 + self.terms], -1)
        terms = ends[:, 2:] if self.terms else None
        return Batch(states, actions[:, 0].long() if self.action_size is None else actions, following, ends[:, 0], ends[:, 1], terms)

    def copy(self) -> Replay:
        """Another replay with the same transitions, with no unused rows."""
        rows = self.rows[: max(1, len(self))].clone()
        copied = Replay(self.observation_size, self.action_size, self.capacity, self.device, rows, self.written, self.terms)
        copied.files = dict(self.files)
        return copied

    def _reserve(self, rows: int) -> None:
        allocated = len(self.rows)
        if rows > allocated:
            larger = torch.zeros(min(self.capacity, max(rows, 2 * allocated)), self.rows.shape[1], device=self.rows.device)
            larger[:allocated] = self.rows
            self.rows = larger
