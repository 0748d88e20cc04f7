"""Comparisons in files, held-out pairs from random to expert, and the distance to the true reward."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel_gym import BilevelProblem
from bilevel_gym.errors import CheckpointError, InvalidProblem
from bilevel_gym.frames import FrameStacks
from bilevel_gym.objectives import PreferenceObjective
from bilevel_gym.preferences import PreferenceBuffer, load_comparisons, save_comparisons
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.types import Fragments, Trajectory
from bilevel_gym.worlds import TabularWorld
from tests import problems

SOLVER = SoftPolicyIteration(tolerance=1e-13)


def drawn(seed, count, length, observation, dtype=torch.float32):
    """Random comparisons, all outcomes among them."""
    rng = np.random.default_rng(seed)
    states = torch.as_tensor(rng.integers(0, 200, (count, 2, length, *observation))).to(dtype)
    outcome = torch.as_tensor(rng.choice([0.0, 0.5, 1.0, np.nan], count))
    return Fragments(
        states, torch.as_tensor(rng.integers(0, 4, (count, 2, length))), torch.as_tensor(rng.random((count, 2, length)) > 0.2), outcome
    )


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 1000),
    st.integers(0, 5),
    st.integers(1, 4),
    st.sampled_from([(), (3,), (2, 4, 4)]),
    st.sampled_from([torch.float32, torch.float64, torch.uint8, torch.int64]),
)
def test_files_bring_back_what_was_written(tmp_path_factory, seed, count, length, observation, dtype):
    """Every number, dtype and NaN comes back, whatever the observations are, an empty queue among them."""
    path = tmp_path_factory.mktemp("files") / "pairs.npz"
    written = drawn(seed, count, length, observation, dtype)
    save_comparisons(path, written, description={"task": "a", "β": 1.0})
    found, description = load_comparisons(path)
    assert description == {"task": "a", "β": 1.0}
    for name in ("states", "actions", "alive", "outcome"):
        one, other = getattr(written, name), getattr(found, name)
        assert one.dtype == other.dtype
        torch.testing.assert_close(other, one, rtol=0, atol=0, equal_nan=True)


def test_files_are_open(tmp_path):
    """NumPy alone reads them: five arrays, one of them a header of JSON; stacks of pictures are pixels there."""
    pictures = torch.randint(0, 255, (2, 6, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    stacks = FrameStacks.sliding(pictures, 4)[:, :3][None]
    pairs = drawn(0, 1, 3, ())
    save_comparisons(tmp_path / "pairs.npz", replace(pairs, states=stacks))
    with np.load(tmp_path / "pairs.npz", allow_pickle=False) as content:
        header = json.loads(str(content["header"]))
        assert header["format"] == "bilevel_gym.comparisons"
        assert header["version"] == 1
        assert header["shapes"]["states"] == [1, 2, 3, 4, 8, 8]
        np.testing.assert_array_equal(content["states"], stacks.stacks().numpy())
    assert not list(tmp_path.glob("*.part"))


def test_bad_files_are_refused(tmp_path):
    """Damage, other kinds and versions, arrays that do not fit: each is named, and nothing is unpickled."""
    path, good = tmp_path / "pairs.npz", drawn(0, 3, 2, (4,))
    with pytest.raises(CheckpointError, match="there is no file"):
        load_comparisons(path)
    save_comparisons(path, good)
    with np.load(path) as content:
        arrays = {name: content[name] for name in content.files}
    header = json.loads(str(arrays["header"]))

    def refused(words, **changes):
        np.savez(path, **{**arrays, **changes})
        with pytest.raises(CheckpointError, match=words):
            load_comparisons(path)

    refused("version 2", header=np.array(json.dumps({**header, "version": 2})))
    refused("does not say", header=np.array(json.dumps({**header, "format": "other"})))
    refused("damaged", header=np.array("no json"))
    refused("same \\[M, I, H\\]", actions=arrays["actions"][:2])
    refused("from 0 to 1", outcome=arrays["outcome"] + 5.0)
    refused("of bool", alive=arrays["alive"].astype(np.int64))
    refused("damaged", states=np.array([None, 1], dtype=object))
    np.savez(path, states=arrays["states"])
    with pytest.raises(CheckpointError, match="lacks"):
        load_comparisons(path)
    path.write_bytes(b"PK\x03\x04 not at all")
    with pytest.raises(CheckpointError, match="damaged"):
        load_comparisons(path)


def test_damage_anywhere_is_a_checkpoint_error(tmp_path):
    """A flipped or a lost byte is zlib's or zipfile's own error, which no reader expects; or it is in what nobody reads."""
    path = tmp_path / "pairs.npz"
    save_comparisons(path, drawn(0, 20, 5, (4,)))
    good, refused = path.read_bytes(), 0
    for place in range(0, len(good), 31):
        for damaged in (good[:place], good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :]):
            path.write_bytes(damaged)
            try:
                load_comparisons(path)
            except CheckpointError:
                refused += 1
    assert refused > 1.8 * (len(good) // 31)


def test_numbers_of_other_machines_and_things_that_are_none(tmp_path):
    """The file is open: others write it in their own byte order; text and records are refused and not torch's TypeError."""
    path = tmp_path / "pairs.npz"
    save_comparisons(path, drawn(0, 3, 2, (4,)))
    with np.load(path) as content:
        arrays = {name: content[name] for name in content.files}
    np.savez(path, **{**arrays, "states": arrays["states"].astype(">f4")})
    np.testing.assert_array_equal(load_comparisons(path)[0].states, arrays["states"])
    for states in (np.full((3, 2, 2), "x"), np.zeros((3, 2, 2), dtype=[("a", int)]), arrays["states"].astype(complex)):
        np.savez(path, **{**arrays, "states": states})
        with pytest.raises(CheckpointError, match="must be numbers"):
            load_comparisons(path)


def test_bad_comparisons_are_not_written(tmp_path):
    """A file that could not be read again must not replace one that can."""
    path, good = tmp_path / "pairs.npz", drawn(0, 3, 2, (4,))
    save_comparisons(path, good)
    before = path.read_bytes()
    with pytest.raises(InvalidProblem, match="same"):
        save_comparisons(path, replace(good, actions=good.actions[:1]))
    endless: dict[str, object] = {}
    endless["again"] = endless
    for description in ({"task": object()}, {"task": float("nan")}, endless):
        with pytest.raises(InvalidProblem, match="JSON"):
            save_comparisons(path, good, description=description)
    assert path.read_bytes() == before


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 7), st.lists(st.integers(0, 5), max_size=8))
def test_the_queue_is_the_last_of_all(capacity, sizes):
    """Whatever is appended, the queue holds the last ``capacity`` tuples in order, and no earlier queue has changed."""
    queue, known, earlier = PreferenceBuffer(capacity), [], []
    for number, size in enumerate(sizes):
        pairs = drawn(number, size, 2, ())
        earlier.append((queue, [] if queue.content is None else queue.content.states.tolist()))
        queue, known = queue.append(pairs), (known + pairs.states.tolist())[-capacity:]
        assert len(queue) == len(known)
        assert queue.content.states.tolist() == known
    for before, states in earlier:
        assert ([] if before.content is None else before.content.states.tolist()) == states


# ---------------------------------------------------------------------------------------------- held-out pairs


def with_objective(problem, **options):
    """The same problem with other options of its objective."""
    return BilevelProblem(problem.world, problem.reward, problem.regularizer, replace(problem.objective, **options))


def looked(problem, x, seed=0):
    """One evaluation, and the memory after it."""
    source = torch.Generator().manual_seed(seed)
    return problem.objective.evaluate(problem, x, SOLVER.solve(problem, x), problem.objective.start(), source)


def test_experts_play_half_of_the_held_out_set():
    """Their fragments earn more than those of random policies, and steps of given trajectories are not counted as played."""
    base = problems.preference(0, length=3)
    truth = base.world.true_reward.flatten()
    expert = SOLVER.solve(base, 10.0 * truth).policy
    played = base.world.rollout(expert, trajectories=30, steps=3, generator=torch.Generator().manual_seed(1))
    plain = looked(with_objective(base, held_out_pairs=400), truth)
    policy = looked(with_objective(base, held_out_pairs=400, experts=[expert]), truth)
    given_ = looked(with_objective(base, held_out_pairs=400, experts=[played, played]), truth)
    means = [float(memory.held_out_returns.mean()) for _, memory in (plain, policy, given_)]
    best = float(played.rewards.sum(-1).mean())
    assert means[0] < means[1] < best
    assert abs(means[1] - (means[0] + best) / 2) < 0.3 * (best - means[0])
    assert abs(means[2] - (means[0] + best) / 2) < 0.3 * (best - means[0])
    assert policy[0].env_steps - plain[0].env_steps == 64 * 3
    assert given_[0].env_steps == plain[0].env_steps


def test_of_longer_trajectories_the_first_steps_are_compared():
    """An expert's whole episode is as good as a piece of it, and steps that the others do not play must not be in the set."""
    base = problems.preference(0, length=3)
    policy = torch.full((3, 2), 0.5, dtype=torch.float64)
    longer = base.world.rollout(policy, trajectories=1, steps=9, generator=torch.Generator().manual_seed(1))
    _, memory = looked(with_objective(base, held_out_pairs=64, experts=[longer]), problems.point(base, 0))
    fragments, own = memory.held_out, longer.states[0, :3] * 2 + longer.actions[0, :3]
    same = (fragments.states * 2 + fragments.actions == own).all(-1)
    assert 0.3 < float(same.double().mean()) < 0.8


def test_random_policies_are_of_sixteen_qualities(monkeypatch):
    """A single one would make a held-out set of one kind of behaviour, on which any reward may look right or wrong."""
    drawn = []
    plain = TabularWorld.exploratory
    monkeypatch.setattr(TabularWorld, "exploratory", lambda world, source: drawn.append(plain(world, source)) or drawn[-1])
    problem = with_objective(problems.preference(0), held_out_pairs=40)
    evaluation, _ = looked(problem, problems.point(problem, 0))
    assert len({tuple(policy.flatten().tolist()) for policy in drawn}) == len(drawn) == 16
    assert evaluation.comparisons == 64 + 40


def test_a_references_fragments_are_played_beside_the_followers():
    """Both cost environment steps; the returns are the follower's, and what is compared is not."""
    base = problems.preference(0)
    truth = base.world.true_reward.flatten()
    worst = SOLVER.solve(base, -30.0 * truth).policy
    plain, _ = looked(base, 30.0 * truth)
    evaluation, _ = looked(with_objective(base, reference=worst), 30.0 * truth)
    assert evaluation.env_steps == 2 * plain.env_steps == 2 * 128 * 20
    shown = evaluation.fresh.trajectories.rewards.sum(-1).mean()
    assert evaluation.metrics["true_return"] > float(shown) + 1.0
    assert evaluation.metrics["true_return"] == pytest.approx(plain.metrics["true_return"], rel=0.1)


def test_a_reference_goes_where_x_lives():
    """Given as lists it is a table on the CPU, and a world on a GPU could not play it."""
    objective = PreferenceObjective(length=2, pairs=4, reference=[[0.5, 0.5]])
    elsewhere = SimpleNamespace(domain=SimpleNamespace(device=torch.device("meta")))
    assert objective.reference.device.type == "cpu"
    assert objective.shown(elsewhere, None).device.type == "meta"


def test_the_correlation_is_pearsons():
    """1 at any positive multiple of the truth, −1 at its negative, NaN for a reward that knows nothing, and NumPy's number elsewhere."""
    problem = with_objective(problems.preference(0, length=3), held_out_pairs=100)
    truth = problem.world.true_reward.flatten()
    for x, expected in ((2.5 * truth + 3.0, 1.0), (-truth, -1.0)):
        assert looked(problem, x)[0].metrics["correlation_held_out"] == pytest.approx(expected)
    assert looked(problem, torch.zeros_like(truth))[0].metrics["correlation_held_out"] == 0.0
    x = problems.point(problem, 3)
    evaluation, memory = looked(problem, x)
    fragments = memory.held_out
    learned, real = (
        (table[fragments.states, fragments.actions] * fragments.alive).sum(-1).flatten().numpy()
        for table in (problem.reward.at(x), problem.world.true_reward)
    )
    assert evaluation.metrics["correlation_held_out"] == pytest.approx(np.corrcoef(learned, real)[0, 1])


def test_bad_experts_are_refused():
    """A single policy in the place of a list would be taken row by row; trajectories must be long enough, and have true rewards."""
    base = problems.preference(0, length=3)
    policy = torch.full((3, 2), 0.5, dtype=torch.float64)
    for options in ({"experts": policy, "held_out_pairs": 8}, {"experts": [policy]}):
        with pytest.raises(InvalidProblem, match="experts"):
            with_objective(base, **options)
    short = base.world.rollout(policy, trajectories=4, steps=2, generator=torch.Generator())
    with pytest.raises(InvalidProblem, match="have 2 steps"):
        looked(with_objective(base, held_out_pairs=8, experts=[short]), problems.point(base, 0))
    bare = Trajectory(short.states, short.actions, short.alive)
    with pytest.raises(TypeError, match="true_reward"):
        looked(with_objective(base, held_out_pairs=8, experts=[bare]), problems.point(base, 0))


def test_given_comparisons_are_in_the_queue(tmp_path):
    """What an earlier run has asked for is trained on from the start, and costs nothing again."""
    problem = with_objective(problems.preference(0), capacity=500)
    x = problems.point(problem, 0)
    first, _ = looked(problem, x)
    save_comparisons(tmp_path / "queue.npz", first.memory.content)
    comparisons, _ = load_comparisons(tmp_path / "queue.npz")
    again, memory = looked(with_objective(problem, comparisons=comparisons), x, seed=1)
    assert len(memory.queue) == 128
    assert torch.equal(memory.queue.content.outcome[:64], first.memory.content.outcome)
    assert again.comparisons == 64
    with pytest.raises(InvalidProblem, match="capacity"):
        with_objective(problems.preference(0), comparisons=comparisons)
