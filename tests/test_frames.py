"""Stacks of pictures that share their pictures: everywhere what plain tensors of stacks would be, in a quarter of the memory."""

from __future__ import annotations

import pytest
import torch

from bilevel_gym import checkpoint
from bilevel_gym.frames import FrameStacks, coarse, concatenate_states, to_stacks
from bilevel_gym.preferences import PreferenceBuffer, concatenate, draw_places, gather, take
from bilevel_gym.types import Fragments, Trajectory


def seeded(seed):
    """A generator."""
    return torch.Generator().manual_seed(seed)


def pictures(count, steps, seed=0):
    """Random small pictures: [N, T, 6, 5]."""
    return torch.randint(256, (count, steps, 6, 5), generator=seeded(seed), dtype=torch.uint8)


def of_pictures(frames):
    """The stacks of trajectories whose first picture stands for those before it."""
    return FrameStacks.sliding(torch.cat([frames[:, :1].expand(-1, 3, -1, -1), frames], 1), 4)


def plain(frames):
    """The stacks of trajectories, by a loop: [N, T, 4, 6, 5]."""
    return torch.stack([torch.stack([frames[:, max(t - 3 + k, 0)] for k in range(4)], 1) for t in range(frames.shape[1])], 1)


def pieces(frames, seed, tuples=5):
    """Fragments of three steps, once of shared pictures and once of plain tensors."""
    alive = torch.ones(frames.shape[:2], dtype=torch.bool)
    origin, offset = draw_places(Trajectory(None, alive, alive), tuples, 2, 3, "anywhere", seeded(seed))
    rest = [torch.rand(tuples, 2, 3, generator=seeded(seed)), torch.ones(tuples, 2, 3, dtype=torch.bool), torch.rand(tuples)]
    return [Fragments(gather(table, origin, offset, 3), *rest) for table in (of_pictures(frames), plain(frames))]


def test_stacks_slide_over_each_trajectory():
    """Without it a stack would hold pictures of another trajectory, of the future, or in the wrong order."""
    frames = pictures(3, 7)
    shared = of_pictures(frames)
    assert torch.equal(shared.stacks(), plain(frames))
    assert (shared.shape, shared.ndim, len(shared), shared.dtype) == ((3, 7, 4, 6, 5), 5, 3, torch.uint8)
    assert torch.equal(to_stacks(shared), shared.stacks())
    assert to_stacks(frames) is frames


def test_every_way_to_take_a_part():
    """Without it estimators, which flatten, repeat and index states, would see other states than the follower did."""
    frames = pictures(3, 7)
    shared, tensor = of_pictures(frames), plain(frames)
    rows, times = torch.tensor([2, 0, 1, 2]), torch.tensor([6, 0, 3, 2])
    mask = torch.rand(3, 7, generator=seeded(1)) < 0.4
    for mine, theirs in (
        (shared[1], tensor[1]),
        (shared[rows, times], tensor[rows, times]),
        (shared[mask], tensor[mask]),
        (shared[:, 2:5], tensor[:, 2:5]),
        (shared.flatten(0, 1), tensor.flatten(0, 1)),
        (shared[rows, times].expand(3, *shared[rows, times].shape), tensor[rows, times].expand(3, -1, -1, -1, -1)),
        (shared[rows, times].expand(3, 4), tensor[rows, times].expand(3, -1, -1, -1, -1)),
        (shared.split(2)[1], tensor[2:]),
        (shared[rows, times].compact(), tensor[rows, times]),
        (concatenate_states([shared[:1], shared[2:]]), tensor[[0, 2]]),
    ):
        assert mine.shape == theirs.shape
        assert torch.equal(mine.stacks(), theirs)
    assert torch.equal(concatenate_states([tensor[:1], tensor[2:]]), tensor[[0, 2]])


def test_a_queue_of_shared_pictures_is_the_queue_of_stacks():
    """Without it pairs in the queue would lose or mix up their pictures as older ones are dropped."""
    queues = [PreferenceBuffer(12), PreferenceBuffer(12)]
    for round_ in range(5):
        queues = [queue.append(part) for queue, part in zip(queues, pieces(pictures(4, 9, round_), round_), strict=True)]
        mine, theirs = (queue.content for queue in queues)
        assert torch.equal(mine.states.stacks(), theirs.states)
        assert torch.equal(mine.actions, theirs.actions)
        drawn = [queue.sample(6, seeded(round_)) for queue in queues]
        assert torch.equal(drawn[0].states.stacks(), drawn[1].states)
    assert len(mine.states.blocks) == 3, "what no pair needs any more is dropped"
    joined = concatenate(take(mine, slice(0, 2)), take(mine, torch.tensor([11, 5])))
    assert torch.equal(joined.states.stacks(), theirs.states[[0, 1, 11, 5]])


def test_pictures_are_shared_and_never_copied_by_the_queue():
    """Without it each append would copy a gigabyte, and a fragment would keep its whole trajectory alive."""
    shared, _ = pieces(pictures(4, 50), 0)
    assert len(shared.states.blocks[0]) <= 5 * 2 * 6, "three steps need six pictures at most"
    later, _ = pieces(pictures(4, 50, 1), 1)
    queue = PreferenceBuffer(100).append(shared).append(later)
    assert queue.content.states.blocks[0] is shared.states.blocks[0]
    assert queue.sample(3, seeded(0)).states.blocks[0] is shared.states.blocks[0]


def test_memory_of_fragments():
    """Without it the queue of a paper's settings takes four gigabytes: 25 steps are 28 pictures, not 100."""
    one = of_pictures(torch.zeros(1, 25, 84, 84, dtype=torch.uint8))
    stacks = 25 * 4 * 84 * 84
    assert one.stacks().nbytes == stacks
    assert one.nbytes < stacks / 3.5
    middle = of_pictures(torch.zeros(1, 60, 84, 84, dtype=torch.uint8))[:, 20:45].compact()
    assert len(middle.blocks[0]) == 28
    assert middle.nbytes < stacks / 3.5


def test_shared_pictures_are_saved(tmp_path):
    """Without it a preference run on pixels could not be resumed."""
    shared, _ = pieces(pictures(4, 9), 0)
    path = tmp_path / "state.pt"
    checkpoint.save(path, {"queue": checkpoint.pack(PreferenceBuffer(10).append(shared))})
    again = checkpoint.unpack(checkpoint.load(path)["queue"])
    assert torch.equal(again.content.states.stacks(), shared.states.stacks())


@pytest.mark.parametrize("kept", [slice(0, 3), slice(4, 8), torch.tensor([7, 0])])
def test_dropping_blocks_keeps_the_numbers_right(kept):
    """Without it a stack would show another block's pictures once a block before it is gone."""
    tables = [of_pictures(pictures(2, 4, seed)) for seed in range(4)]
    joined = concatenate_states(tables)
    part = joined[kept]
    assert torch.equal(part.without_unused().stacks(), part.stacks())
    assert len(part.without_unused().blocks) < 4
    assert joined.without_unused() is joined


def test_coarse_pictures():
    """Without it an exploratory policy, or a critic of pixels, would not see what moves."""
    stack = torch.zeros(2, 4, 84, 84, dtype=torch.uint8)
    stack[1, 3, :14, -14:] = 255
    seen = coarse(stack)
    assert seen.shape == (2, 72)
    assert torch.equal(seen[0], torch.zeros(72))
    assert seen[1].nonzero().flatten().tolist() == [5, 41]
    torch.testing.assert_close(seen[1, [5, 41]], torch.ones(2))
    shared = concatenate_states([of_pictures(torch.randint(256, (2, 5, 84, 84), dtype=torch.uint8)) for _ in range(2)])
    torch.testing.assert_close(coarse(shared), coarse(shared.stacks()))
