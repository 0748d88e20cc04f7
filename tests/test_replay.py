"""The ring of transitions: what it keeps, what it forgets, and what it never hands out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.solvers.replay import Batch, Replay


def add(replay: Replay, first: int, count: int) -> None:
    """Add transitions whose every number says which one it is."""
    number = torch.arange(first, first + count, dtype=torch.float32)
    wide = number[:, None].expand(-1, 2)
    replay.add(wide, number[:, None] + 0.25, wide + 0.5, number.long() % 2 == 1, -number)


@settings(deadline=None, max_examples=60)
@given(capacity=st.integers(1, 12), counts=st.lists(st.integers(1, 30), min_size=1, max_size=12))
def test_ring_keeps_exactly_the_last(capacity: int, counts: list[int]) -> None:
    """Without it a wrap could drop, repeat or mix transitions, or rows never written could be sampled: all of them silent."""
    replay = Replay(2, 1, capacity)
    total = 0
    for count in counts:
        add(replay, total, count)
        total += count
        assert len(replay) == min(total, capacity)
        batch = replay.at(torch.arange(len(replay)))
        assert sorted((-batch.rewards).long().tolist()) == list(range(max(0, total - capacity), total))
        assert_whole(batch)


def test_growth_keeps_what_was_there() -> None:
    """Without it the doubling of the tensor could lose rows, which only a run of thousands of steps would show."""
    replay = Replay(2, 1, 100_000)
    for first in range(0, 20_000, 500):
        add(replay, first, 500)
    batch = replay.at(torch.arange(len(replay)))
    assert torch.equal(-batch.rewards, torch.arange(20_000, dtype=torch.float32))
    assert_whole(batch)
    assert len(replay.rows) < 40_000, "a short run must not allocate the whole capacity"


def test_sample_is_uniform_and_repeats() -> None:
    """Without it sampling could favour some rows, or depend on anything but the generator."""
    replay = Replay(2, 1, 8)
    add(replay, 0, 11)
    draws = [replay.sample(4000, torch.Generator().manual_seed(0)).rewards for _ in range(2)]
    assert torch.equal(*draws)
    counts = torch.bincount((-draws[0]).long(), minlength=11)
    assert counts[:3].sum() == 0
    assert bool(((counts[3:] - 500).abs() < 5 * 500**0.5).all())


def test_copy_is_apart_and_small() -> None:
    """Without it a fork of the follower's state would write into the original's memory."""
    replay = Replay(2, 1, 50)
    add(replay, 0, 20)
    copied = replay.copy()
    add(copied, 20, 40)
    assert len(replay) == 20
    assert len(copied) == 50
    assert sorted((-copied.at(torch.arange(50)).rewards).long().tolist()) == list(range(10, 60))
    assert torch.equal(-replay.at(torch.arange(20)).rewards, torch.arange(20, dtype=torch.float32))


def test_refuses_what_cannot_be() -> None:
    """Without it an empty replay would hand out zeros as transitions."""
    with pytest.raises(InvalidProblem, match="capacity"):
        Replay(2, 1, 0)
    with pytest.raises(IndexError, match="empty"):
        Replay(2, 1, 5).sample(1, torch.Generator())


def assert_whole(batch: Batch) -> None:
    """All parts of a transition are of the same transition."""
    number = -batch.rewards
    assert torch.equal(batch.states, number[:, None].expand(-1, 2))
    assert torch.equal(batch.actions, number[:, None] + 0.25)
    assert torch.equal(batch.following, number[:, None].expand(-1, 2) + 0.5)
    assert torch.equal(batch.terminated, number % 2)
