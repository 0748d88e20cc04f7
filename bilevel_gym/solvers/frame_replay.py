"""Transitions of stacked pictures, each picture kept once: what a million Atari steps need to fit into memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.solvers.replay import Batch

__all__ = ["FrameReplay"]

SLACK = 1024
"""Frames beyond one a transition that even a small replay has room for, for the starts of episodes."""

COLUMNS = ("numbers", "actions", "rewards", "terminated", "terms")
"""What there is of each transition."""


RING = {"ring": ("written", "capacity")}
"""How a checkpoint keeps each of these columns."""


@dataclass
class FrameReplay:
    """A ring of the last ``capacity`` transitions whose observations are stacks of frames, over a ring of single frames.

    s and s' are k numbers of frames each. A frame that a stack shares with the one before it is not stored again: of a step that goes
    on that leaves one new frame, of a stack that starts anew its frames, equal neighbours once. This is decided by comparing the
    pictures, so nothing has to be said about the ends of episodes, and every stack comes back exactly as it was given, whatever it is
    padded with (ale-py's vector environment: black frames; Gymnasium's ``FrameStackObservation``: the first frame).

    A transition takes height·width + 8k + 9 + 4K bytes, 7,097 for stacks of four 84×84 frames without terms, and an episode's start the frames of its
    first stack (two of ale-py's); stored as two stacks it takes 56,457. Both rings start small and double.

    The ring of frames has 1/64 more places than there are transitions. Where episodes are so short that more frames than that belong
    to their starts, the oldest transitions are forgotten together with their frames, and less than ``capacity`` are kept.

    Args:
        frame_shape: (height, width).
        stack: k, frames in an observation.
        capacity: transitions kept; the oldest are overwritten.
        device: where they live.
        term_count: K, named parts of the true reward.

    Raises:
        InvalidProblem: the capacity is not positive.
    """

    frame_shape: tuple[int, int]
    stack: int
    capacity: int
    device: str | torch.device = "cpu"
    term_count: int = 0
    frames: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, metadata={"ring": ("frames_written", "frame_capacity")})
    """[allocated, height, width] uint8; frame number m is at m mod ``frame_capacity``."""
    numbers: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, metadata=RING)
    """[allocated, 2, k] int32: the frames of s and of s', by their number; they never fall along a row."""
    actions: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, metadata=RING)
    """[allocated] int32 a."""
    rewards: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, metadata=RING)
    """[allocated] float32, the true reward."""
    terminated: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, metadata=RING)
    """[allocated] bool."""
    terms: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, metadata=RING)
    """[allocated, K] float32, the named parts of the true reward."""
    tails: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    """[N, k] int64: the frames of the s' of the last step, which the next step's s mostly is."""
    frames_written: int = 0
    """Frames ever added."""
    written: int = 0
    """Transitions ever added."""
    first: int = 0
    """The number of the oldest transition that is still whole."""
    widest: int = 0
    """The most environments that ever made a step together."""
    files: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Where checkpoints keep frames and columns (see ``rings``)."""

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise InvalidProblem(f"the capacity of a replay is {self.capacity}: it must be positive")
        if self.frames.ndim != 3:
            rows = min(self.capacity, SLACK)
            self.frames = torch.empty(min(self.frame_capacity, SLACK), *self.frame_shape, dtype=torch.uint8, device=self.device)
            self.numbers = torch.zeros(rows, 2, self.stack, dtype=torch.int32, device=self.device)
            self.actions = torch.zeros(rows, dtype=torch.int32, device=self.device)
            self.rewards = torch.zeros(rows, device=self.device)
            self.terminated = torch.zeros(rows, dtype=torch.bool, device=self.device)
            self.terms = torch.zeros(rows, self.term_count, device=self.device)
            self.tails = torch.zeros(0, self.stack, dtype=torch.int64, device=self.device)

    def __len__(self) -> int:
        """Transitions that can be drawn."""
        return self.written - self.first

    @property
    def frame_capacity(self) -> int:
        """Places for frames."""
        return self.capacity + max(self.capacity // 64, SLACK)

    @property
    def nbytes(self) -> int:
        """Bytes that are allocated; on a CPU the system provides memory for the part that has been written."""
        return sum(part.nbytes for part in self.parts)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors that ``at`` reads."""
        return tuple(getattr(self, name) for name in ("frames", *COLUMNS))

    def add(
        self, states: Tensor, actions: Tensor, following: Tensor, terminated: Tensor, rewards: Tensor, terms: Tensor | None = None
    ) -> None:
        """Append a step of N environments, the oldest transitions making room.

        Args:
            states: [N, k, height, width] uint8.
            actions: [N] int64.
            following: [N, k, height, width] uint8, the last observation where the episode ended.
            terminated: [N], true where ``following`` is an end (not where it was only truncated).
            rewards: [N], true rewards.
            terms: [N, K] their named parts, where the replay keeps some.

        Raises:
            InvalidProblem: one step has more frames or transitions than there is room for, or not as many terms as are kept.
        """
        count, named = len(states), states.new_zeros(len(states), 0) if terms is None else terms
        if named.shape != (count, self.term_count):
            raise InvalidProblem(
                f"a step of {count} environments came with terms {tuple(named.shape)}: this replay keeps {self.term_count} each, make it with term_count={named.shape[-1]}"
            )
        if count > self.capacity or 2 * count * self.stack > self.frame_capacity:
            raise InvalidProblem(
                f"a step of {count} environments does not fit into a replay of {self.capacity} transitions: make it larger"
            )
        here, fresh = self._number(states, *self._continued(states), self.frames_written)
        moved = (following[:, :-1] == states[:, 1:]).flatten(1).all(1)
        known = torch.stack([*[moved] * (self.stack - 1), torch.zeros_like(moved)], 1)
        there, more = self._number(following, here.roll(-1, 1), known, self.frames_written + len(fresh))
        fresh = torch.cat([fresh, more])

        self._forget(count, len(fresh))
        self._reserve(count, len(fresh))
        rows = self._places(self.written, count, self.capacity)
        self.frames[self._places(self.frames_written, len(fresh), self.frame_capacity)] = fresh
        self.numbers[rows] = torch.stack([here, there], 1).to(torch.int32)
        self.actions[rows] = actions.to(torch.int32)
        self.rewards[rows] = rewards.to(self.rewards.dtype)
        self.terminated[rows] = terminated.to(torch.bool)
        self.terms[rows] = named.to(self.terms.dtype)
        self.tails, self.frames_written, self.written = there, self.frames_written + len(fresh), self.written + count

    def sample(self, count: int, generator: torch.Generator) -> Batch:
        """Draw ``count`` transitions uniformly, with replacement. Cost: one gather of 2k frames each.

        Raises:
            IndexError: the replay is empty.
        """
        if not len(self):
            raise IndexError("the replay is empty: nothing can be drawn from it")
        rows = (self.first + torch.randint(len(self), (count,), generator=generator, device=generator.device)) % self.capacity
        return self.at(rows.to(self.frames.device))

    def at(self, rows: Tensor) -> Batch:
        """The transitions in given rows, number m in row m mod ``capacity``: [n] → fields [n, ...]."""
        places = self.numbers[rows].flatten().long() % self.frame_capacity
        stacks = self.frames.index_select(0, places).view(len(rows), 2, self.stack, *self.frame_shape)
        terms = self.terms[rows] if self.term_count else None
        return Batch(stacks[:, 0], self.actions[rows].long(), stacks[:, 1], self.terminated[rows].float(), self.rewards[rows], terms)

    def copy(self) -> FrameReplay:
        """Another replay with the same transitions, with no unused rows."""
        rows, places = max(1, min(self.written, self.capacity)), max(1, min(self.frames_written, self.frame_capacity))
        columns = {name: getattr(self, name)[:rows].clone() for name in COLUMNS}
        copied = replace(self, frames=self.frames[:places].clone(), tails=self.tails.clone(), **columns)
        copied.files = dict(self.files)
        return copied

    def _continued(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Where each environment was left, and whether it is still there, so that all of its frames are known: two of [N, k]."""
        if len(self.tails) != len(states):  # the first step, or one of another number of environments
            return self.tails.new_zeros(len(states), self.stack), torch.zeros(
                len(states), self.stack, dtype=torch.bool, device=states.device
            )
        kept = self.tails[:, 0] >= self.frames_written + 2 * self.tails.numel() - self.frame_capacity  # after this step, too
        stored = self.frames[self.tails % self.frame_capacity]
        return self.tails, (kept & (stored == states).flatten(1).all(1))[:, None].expand(-1, self.stack)

    def _number(self, stacks: Tensor, candidates: Tensor, known: Tensor, base: int) -> tuple[Tensor, Tensor]:
        """The numbers of the frames of N stacks [N, k], and those frames that are new, which get the numbers from ``base`` on.

        Args:
            stacks: [N, k, height, width].
            candidates: [N, k] the numbers of the frames that are known.
            known: [N, k] which are.
            base: the next number.
        """
        new = ~known
        new[:, 1:] &= known[:, :-1] | (stacks[:, 1:] != stacks[:, :-1]).flatten(2).any(2)
        counted = base - 1 + new.flatten().cumsum(0).view_as(new)  # a frame that repeats its neighbour takes that one's number
        return torch.where(known, candidates, counted), stacks[new]

    def _forget(self, count: int, fresh: int) -> None:
        """Let go of the transitions that the next ``count`` overwrite, and of those that the next frames take a frame from.

        A transition's oldest frame came at most k steps before its newest one. So where the transitions of k + 1 steps in a row have
        lost no frame, no later one has.
        """
        self.widest = max(self.widest, count)
        first, reach = max(self.first, self.written + count - self.capacity), (self.stack + 1) * self.widest
        oldest = self.frames_written + fresh - self.frame_capacity
        while oldest > 0 and first < self.written:
            rows = self._places(first, min(reach, self.written - first), self.capacity)
            lost = (self.numbers[rows, 0, 0] < oldest).nonzero()
            if not len(lost):
                break
            first += int(lost[-1]) + 1
        self.first = first

    def _places(self, first: int, count: int, capacity: int) -> Tensor:
        """Where ``count`` things from number ``first`` on lie in a ring: [count]."""
        return torch.arange(first, first + count, device=self.frames.device) % capacity

    def _reserve(self, rows: int, frames: int) -> None:
        """Room for so many more."""
        self.frames = _grown(self.frames, self.frames_written + frames, self.frame_capacity)
        for name in COLUMNS:
            setattr(self, name, _grown(getattr(self, name), self.written + rows, self.capacity))


def _grown(part: Tensor, needed: int, capacity: int) -> Tensor:
    """The same rows with room for ``needed``, at most ``capacity``; unwritten memory is not touched, so that it need not exist yet."""
    allocated = len(part)
    if min(needed, capacity) <= allocated:
        return part
    larger = part.new_empty(min(capacity, max(needed, 2 * allocated)), *part.shape[1:])
    larger[:allocated] = part
    return larger
