"""The ring of frames: it gives back what a replay of whole stacks would, and needs an eighth of its memory."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bilevel_gym import checkpoint
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.solvers import frame_replay
from bilevel_gym.solvers.frame_replay import FrameReplay
from bilevel_gym.solvers.replay import Batch

STACK = 4


class Player:
    """N episodes of random pictures, some of which are equal by chance, played as a vector environment does, and a list of what it saw."""

    def __init__(self, seed: int, *, frame: tuple[int, int] = (2, 3), colours: int = 2, terms: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.frame, self.colours, self.terms = frame, colours, terms
        self.states: list[Tensor] = []
        self.seen: list[tuple[Tensor, ...]] = []

    def chance(self, probability: float) -> bool:
        """A coin."""
        return float(torch.rand((), generator=self.generator)) < probability

    def picture(self) -> Tensor:
        """A frame."""
        return torch.randint(self.colours, self.frame, generator=self.generator, dtype=torch.uint8)

    def begin(self) -> Tensor:
        """The first stack of an episode, padded in one of the ways that there are."""
        first = self.picture()
        padding = first if self.chance(0.5) else torch.zeros_like(first)
        return torch.stack([*[padding] * (STACK - 1), first]) if self.chance(0.8) else torch.stack([self.picture() for _ in range(STACK)])

    def step(self, replay: FrameReplay, count: int, ends: float) -> None:
        """One step of all environments, which ends some episodes, and which some of them begin without an end being seen."""
        if len(self.states) != count or self.chance(0.02):  # opened anew, as after an interrupt
            self.states = [self.begin() for _ in range(count)]
        columns = []
        for copy, state in enumerate(self.states):
            following = torch.cat([state[1:], self.picture()[None]]) if self.chance(0.95) else self.begin()  # a hidden end
            ended = self.chance(ends)
            number = len(self.seen) + copy
            names = (torch.arange(self.terms) + 10.0 * number,) if self.terms else ()
            columns.append(
                (state, torch.tensor(number % 18), following, torch.tensor(ended and self.chance(0.5)), torch.tensor(float(number)), *names)
            )
            self.states[copy] = self.begin() if ended else following
        self.seen += columns
        replay.add(*(torch.stack(column) for column in zip(*columns, strict=True)))


def agree(replay: FrameReplay, seen: list[tuple[Tensor, ...]]) -> None:
    """What it holds are the last transitions, whole."""
    held = replay.at((replay.first + torch.arange(len(replay))) % replay.capacity)
    wanted = Batch(*(torch.stack(column) for column in zip(*seen[-len(replay) :], strict=True)))
    for mine, naive in zip(held, wanted, strict=True):
        assert (mine is None) == (naive is None)
        assert mine is None or torch.equal(mine, naive.to(mine.dtype))


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    capacity=st.integers(6, 60),
    slack=st.integers(48, 80),
    ends=st.sampled_from([0.0, 0.1, 0.6]),
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
@example(seed=0, capacity=6, slack=48, ends=0.6, widths=[6])  # a step whose frames fill the ring
@example(seed=0, capacity=40, slack=60, ends=0.6, widths=[6, 1])  # fewer environments than what is forgotten came from
def test_equals_a_replay_of_whole_stacks(seed: int, capacity: int, slack: int, ends: float, widths: list[int]) -> None:
    """Without it a stack could reach into another episode or environment, show frames that were overwritten, or have another step's terms."""
    with mock.patch.object(frame_replay, "SLACK", slack):
        terms = seed % 3
        player, replay = Player(seed, terms=terms), FrameReplay((2, 3), STACK, capacity, term_count=terms)
        for width in widths:
            for _ in range(60 // len(widths)):
                player.step(replay, width, ends)
                agree(replay, player.seen)
            replay = checkpoint.unpack(checkpoint.pack(replay)) if seed % 2 else replay.copy()
        if ends == 0.0 and slack >= capacity:
            assert len(replay) == min(capacity, len(player.seen)), "nothing may be forgotten as long as there is room"


def test_forgets_only_what_it_must() -> None:
    """Without it a replay of short episodes could keep next to nothing, and nobody would notice."""
    player, replay = Player(0, terms=1), FrameReplay((2, 3), STACK, 5000, term_count=1)
    for _ in range(1500):
        player.step(replay, 4, 0.02)
    assert len(replay) == 5000
    for _ in range(1500):
        player.step(replay, 4, 0.5)
    assert len(replay) < 5000
    agree(replay, player.seen)
    missing = player.seen[-len(replay) - 1]
    oldest = int(replay.numbers[replay.first % 5000, 0, 0])
    assert replay.frames_written - oldest > replay.frame_capacity - 8 * STACK, f"room is left for {missing[1]}"


def test_sample_is_uniform_and_repeats() -> None:
    """Without it sampling could favour some transitions, or depend on anything but the generator."""
    player, replay = Player(0), FrameReplay((2, 3), STACK, 8)
    for _ in range(11):
        player.step(replay, 1, 0.1)
    draws = [replay.sample(4000, torch.Generator().manual_seed(0)).rewards for _ in range(2)]
    assert torch.equal(*draws)
    counts = torch.bincount(draws[0].long(), minlength=11)
    assert counts[:3].sum() == 0
    assert bool(((counts[3:] - 500).abs() < 5 * 500**0.5).all())


def test_memory_of_a_million() -> None:
    """Without it the claim of 8 GB for a million Atari transitions could be lost to a wider column."""
    replay = FrameReplay((84, 84), STACK, 1_000_000)
    row = replay.nbytes / 1024
    assert row == 84 * 84 + 8 * STACK + 9
    assert row * replay.frame_capacity < 8e9
    stacked = 2 * STACK * 84 * 84 + 9
    assert stacked * replay.capacity / (row * replay.frame_capacity) > 7.0


def test_copy_is_apart() -> None:
    """Without it a fork of the follower's state would write into the original's memory."""
    player, replay = Player(3, terms=1), FrameReplay((2, 3), STACK, 50, term_count=1)
    for _ in range(10):
        player.step(replay, 2, 0.2)
    seen, copied = list(player.seen), replay.copy()
    for _ in range(40):
        player.step(copied, 2, 0.2)
    agree(replay, seen)
    agree(copied, player.seen)


def test_interrupted_step_leaves_whole_transitions() -> None:
    """Without it Ctrl-C while a step is written could leave a transition with the frames of another one."""
    with mock.patch.object(frame_replay, "SLACK", 40):
        player, replay = Player(5), FrameReplay((2, 3), STACK, 12)
        for _ in range(40):
            player.step(replay, 2, 0.3)
        seen = list(player.seen)

        class Stop(Tensor):
            """Cannot be written."""

            def to(self, *_: object) -> Tensor:
                """Interrupts."""
                raise KeyboardInterrupt

        states = torch.stack(player.states)
        with pytest.raises(KeyboardInterrupt):
            replay.add(states, torch.zeros(2).as_subclass(Stop), states, torch.zeros(2), torch.zeros(2))
        assert len(replay) > 0
        agree(replay, seen)


def test_refuses_what_cannot_be() -> None:
    """Without it an empty replay would hand out noise as pictures, or a step would overwrite itself."""
    with pytest.raises(InvalidProblem, match="capacity"):
        FrameReplay((2, 3), STACK, 0)
    replay = FrameReplay((2, 3), STACK, 5)
    with pytest.raises(IndexError, match="empty"):
        replay.sample(1, torch.Generator())
    with pytest.raises(InvalidProblem, match="larger"):
        Player(0).step(replay, 6, 0.0)
    with pytest.raises(InvalidProblem, match="term_count=2"):
        Player(0, terms=2).step(replay, 1, 0.0)
    with pytest.raises(InvalidProblem, match="keeps 2 each"):
        Player(0).step(FrameReplay((2, 3), STACK, 5, term_count=2), 1, 0.0)
    assert len(replay) == 0
