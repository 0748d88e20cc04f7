"""Minari datasets, made on the spot: what goes out comes back, what other people wrote is read as the world shows it."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from bilevel_gym import agents
from bilevel_gym.envs.base_worlds import base_world
from bilevel_gym.errors import CheckpointError, InvalidProblem, MissingExtra, OutputExists
from bilevel_gym.frames import FrameStacks, concatenate_states, to_stacks
from bilevel_gym.preferences import Teacher, compare, from_minari, load_comparisons, misfit, save_comparisons, to_minari
from bilevel_gym.types import Trajectory
from bilevel_gym.worlds import TabularWorld, VectorWorld
from tests import problems

minari = pytest.importorskip("minari")
buffers = pytest.importorskip("minari.data_collector")
pytest.importorskip("h5py")


@pytest.fixture(autouse=True)
def _own_datasets(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written to the home folder."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))


def generator(seed: int = 0) -> torch.Generator:
    """A fresh one."""
    return torch.Generator().manual_seed(seed)


def table(ends: float) -> TabularWorld:
    """Four states, three actions."""
    rng = np.random.default_rng(1)
    stop = np.full((4, 3), ends)
    transition = problems.rows(rng, 4, 3, 4) * (1 - stop)[..., None]
    return TabularWorld(transition, [0.25] * 4, 0.9, stop, true_reward=rng.standard_normal((4, 3)))


def played(name: str) -> tuple[Any, Trajectory]:
    """A world of each kind, and trajectories of it."""
    if name.startswith("table"):
        world = table(0.2 if name == "table with ends" else 0.0)
        return world, world.rollout(torch.full((4, 3), 1 / 3, dtype=torch.float64), trajectories=7, steps=6, generator=generator())
    world = VectorWorld("Pendulum-v1" if name == "box" else "CartPole-v1", 0.9, horizon=25)
    return world, world.rollout(world.uniform(), trajectories=5, steps=25, generator=generator())


@pytest.mark.parametrize("name", ["table", "table with ends", "box", "choices with ends"])
def test_what_goes_out_comes_back(name: str) -> None:
    """Without it a dataset would lose ends, the last step, or the units of actions."""
    world, written = played(name)
    to_minari("mine/all-v0", written, world, description="a test")
    found = from_minari("mine/all-v0", world)
    longest = int(written.alive.sum(-1).max())
    assert torch.equal(found.alive, written.alive[:, :longest])
    assert ("ends" in name) == bool((~written.alive).any())
    for column in ("states", "actions", "rewards"):
        one, other = getattr(found, column), getattr(written, column)[:, :longest]
        assert one.dtype == other.dtype
        assert torch.equal(one[found.alive], other[found.alive])
    assert not bool(found.rewards[~found.alive].any())


def test_others_read_what_was_written() -> None:
    """Minari by itself: the spaces, the ends, the seeds, and one observation more than actions, the last one twice."""
    world, written = played("choices with ends")
    to_minari("mine/cart-v0", written, world, description="a test")
    dataset = minari.load_dataset("mine/cart-v0")
    assert dataset.action_space == spaces.Discrete(2)
    assert dataset.observation_space.shape == (4,)
    assert dataset.total_episodes == 5
    for row, episode in enumerate(dataset):
        length = int(written.alive[row].sum())
        ended = length < written.alive.shape[1]
        assert len(episode) == length
        np.testing.assert_array_equal(episode.observations, written.states[row, [*range(length), length - 1]])
        assert (list(np.flatnonzero(episode.terminations)), list(np.flatnonzero(episode.truncations))) == (
            ([length - 1], []) if ended else ([], [length - 1])
        )
    assert [dict(one)["seed"] for one in dataset.storage.get_episode_metadata(range(5))] == written.seeds.tolist()


def test_the_horizon_is_no_end() -> None:
    """Steps past the horizon are dead, and nothing has ended there: who bootstraps from the dataset would take it for a fall."""
    world = VectorWorld("Pendulum-v1", 0.9, horizon=6)
    written = world.rollout(world.uniform(), trajectories=2, steps=9, generator=generator())
    assert written.alive.sum(-1).tolist() == [6, 6]
    to_minari("mine/long-v0", written, world)
    for episode in minari.load_dataset("mine/long-v0"):
        assert len(episode) == 6
        assert not episode.terminations.any()
        assert episode.truncations.tolist() == [False] * 5 + [True]


def test_pieces_are_alive_and_in_order() -> None:
    """Without it fragments would be cut from steps after an end, which earn nothing and say nothing."""
    world, written = played("table with ends")
    to_minari("mine/ends-v0", written, world)
    found = from_minari("mine/ends-v0", world, steps=2)
    expected = [
        row[begin : begin + 2].tolist()
        for row, length in zip(written.states, written.alive.sum(-1).tolist(), strict=True)
        for begin in range(0, length - 1, 2)
    ]
    assert found.states.tolist() == expected
    assert bool(found.alive.all())


NESTED = spaces.Dict(
    {
        "b": spaces.Discrete(3, start=2),
        "a": spaces.Tuple([spaces.Box(-1.0, 1.0, (2,)), spaces.MultiBinary(2)]),
        "c": spaces.MultiDiscrete([2, 3], start=[1, -1]),
    }
)


def test_nested_observations_are_flat() -> None:
    """A dictionary is read in the order of ``gymnasium.spaces.flatten``, which the world's networks read, and actions begin at 0."""
    NESTED.seed(0)
    seen = [NESTED.sample() for _ in range(5)]
    stacked = {
        "a": tuple(np.stack([one["a"][place] for one in seen]) for place in (0, 1)),
        "b": np.array([one["b"] for one in seen]),
        "c": np.stack([one["c"] for one in seen]),
    }
    actions = np.array([-1, 1, 0, 1])
    ends = np.array([False, False, False, True])
    episode = buffers.EpisodeBuffer(
        observations=stacked, actions=actions, rewards=np.arange(4.0), terminations=ends, truncations=np.zeros_like(ends)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Minari's advice about authors and links
        minari.create_dataset_from_buffers(
            "theirs/nested-v0", [episode], observation_space=NESTED, action_space=spaces.Discrete(3, start=-1)
        )
    world = VectorWorld.__new__(VectorWorld)
    vars(world).update(observation_shape=(12,), action_count=3)
    found = from_minari("theirs/nested-v0", world)
    expected = np.stack([spaces.flatten(NESTED, one) for one in seen[:4]])
    np.testing.assert_array_equal(found.states[0], expected)
    assert found.actions.tolist() == [[0, 2, 1, 2]]
    assert found.rewards.tolist() == [[0.0, 1.0, 2.0, 3.0]]
    vars(world).update(observation_shape=(11,))
    with pytest.raises(InvalidProblem, match=r"states are of shape \[12\], and those of the world of shape \[11\]"):
        from_minari("theirs/nested-v0", world)


def test_states_and_actions_of_tables_begin_at_0() -> None:
    """A dataset whose numbers begin at 5 would be another table's; and one with an action too many is refused, though nobody took it."""
    ends = np.array([False, False, True])
    episode = buffers.EpisodeBuffer(
        observations=np.array([5, 8, 6, 6]),
        actions=np.array([2, 0, 1]),
        rewards=np.arange(3.0),
        terminations=ends,
        truncations=np.zeros_like(ends),
    )
    for name, count in (("theirs/table-v0", 3), ("theirs/more-v0", 4)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Minari's advice about authors and links
            minari.create_dataset_from_buffers(
                name, [episode], observation_space=spaces.Discrete(4, start=5), action_space=spaces.Discrete(count)
            )
    found = from_minari("theirs/table-v0", table(0.0))
    assert (found.states.tolist(), found.actions.tolist()) == ([[0, 3, 1]], [[2, 0, 1]])
    with pytest.raises(InvalidProblem, match=r"has actions Discrete\(4\).*takes Discrete\(3\)"):
        from_minari("theirs/more-v0", table(0.0))


class Pictures:
    """A world that shows stacks of small pictures."""

    observation_shape, action_count = (2, 6, 5), 4


def test_pictures_stay_as_they_are() -> None:
    """No pixel changes (Minari would compress pictures with losses), and read ones join stacks that share pictures."""
    pixels = torch.randint(0, 255, (3, 5, 6, 5), dtype=torch.uint8, generator=generator())
    stacks = FrameStacks.sliding(pixels, 2)
    alive = torch.ones(3, 4, dtype=torch.bool)
    written = Trajectory(stacks, torch.randint(4, (3, 4), generator=generator()), alive, torch.zeros(3, 4))
    to_minari("mine/pictures-v0", written, Pictures())
    found = from_minari("mine/pictures-v0", Pictures())
    assert torch.equal(found.states, stacks.stacks())
    assert minari.load_dataset("mine/pictures-v0").observation_space == spaces.Box(0, 255, (2, 6, 5), np.uint8)
    for parts in ((stacks, found.states), (found.states, stacks)):
        assert torch.equal(to_stacks(concatenate_states(parts)), torch.cat([stacks.stacks()] * 2))


def test_what_does_not_fit_is_refused() -> None:
    """A name that is none, a dataset that is not there or there already, other spaces, too few steps, no rewards: nothing is written."""
    world, written = played("box")
    with pytest.raises(CheckpointError, match=r"no Minari dataset mine/box-v0 at .*download_dataset"):
        from_minari("mine/box-v0", world)
    for name in ("box", "mine/box", "mine box-v0"):
        with pytest.raises(InvalidProblem, match="names no Minari dataset"):
            to_minari(name, written, world)
    with pytest.raises(InvalidProblem, match="carry no rewards"):
        to_minari("mine/box-v0", replace(written, rewards=None), world)
    with pytest.raises(InvalidProblem, match=r"states are of shape \[3\], and those of the world of shape \[4\]"):
        to_minari("mine/box-v0", written, VectorWorld("CartPole-v1", 0.9, horizon=5))
    assert minari.list_local_datasets() == {}
    to_minari("mine/box-v0", written, world)
    with pytest.raises(OutputExists, match="another name or version"):
        to_minari("mine/box-v0", written, world)
    with pytest.raises(InvalidProblem, match=r"no episode .* has 26 steps: they have \[25\]"):
        from_minari("mine/box-v0", world, steps=26)
    for steps in (0, -1):
        with pytest.raises(InvalidProblem, match=f"steps is {steps}"):
            from_minari("mine/box-v0", world, steps=steps)
    with pytest.raises(InvalidProblem, match=r"has actions Box.*takes Discrete"):
        from_minari("mine/box-v0", VectorWorld("CartPole-v1", 0.9, horizon=5))
    wider = VectorWorld("Pendulum-v1", 0.9, horizon=5)
    object.__setattr__(wider, "action_high", 2 * wider.action_high)
    with pytest.raises(InvalidProblem, match="they must be the same"):
        from_minari("mine/box-v0", wider)
    with pytest.raises(InvalidProblem, match="this world has 4 states"):
        from_minari("mine/box-v0", table(0.0))
    known, states = table(0.0), torch.zeros(1, 2, dtype=torch.long)
    assert misfit(replace(written, actions=states), VectorWorld("Pendulum-v1", 0.9, horizon=5)).startswith("its actions are of shape []")
    assert misfit(Trajectory(states - 1, states, states == 0), known) is not None
    assert misfit(Trajectory(states, states + 3, states == 0), known) == "its actions are numbers up to 3, and the world has 3 actions"


def test_without_minari(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message must hold the command that installs it."""
    monkeypatch.setitem(sys.modules, "minari", None)
    monkeypatch.setitem(sys.modules, "minari.dataset.minari_dataset", None)
    with pytest.raises(MissingExtra, match=r"bilevel-gym\[minari\]"):
        from_minari("mine/box-v0", table(0.0))


# ---------------------------------------------------------------------------------------------------------- tasks


def test_a_task_with_experts_and_comparisons_from_files(tmp_path) -> None:
    """Without it datasets and earlier answers could only be used from Python, and no description of a run would hold them."""
    world = VectorWorld("Pendulum-v1", 0.99, horizon=50, endless=True)
    shown = world.rollout(world.uniform(), trajectories=4, steps=50, generator=generator())
    to_minari("pendulum/uniform-v0", shown, world)
    read = from_minari("pendulum/uniform-v0", world, steps=50)
    known = compare(read, Teacher(0.1), pairs=6, length=10, generator=generator(1))
    assert known.alive.shape == (6, 2, 10)
    save_comparisons(tmp_path / "known.npz", known)
    options = {"preset": "tiny", "experts": ["pendulum/uniform-v0"], "comparisons": str(tmp_path / "known.npz")}
    env = gym.make("bilevel/PendulumPreference-v0", **options)
    env.reset(seed=0)
    content = env.unwrapped.evaluation.memory.content
    assert torch.equal(content.outcome[:6], load_comparisons(tmp_path / "known.npz")[0].outcome)
    assert len(content.outcome) == 6 + 4
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    again.reset(seed=0)
    assert again.unwrapped.evaluation.metrics == env.unwrapped.evaluation.metrics
    plain = gym.make("bilevel/PendulumPreference-v0", preset="tiny")
    plain.reset(seed=0)
    assert plain.unwrapped.evaluation.metrics != env.unwrapped.evaluation.metrics
    agents.sobirl(env, updates_per_step=2, warmup_updates=0, batch=8).learn(1)
    with pytest.raises(InvalidProblem, match=r"comparisons are of \[2, 10\] fragments and steps: here two of 9"):
        gym.make("bilevel/PendulumPreference-v0", **options, objective={"length": 9})
    with pytest.raises(InvalidProblem, match=r"the comparisons are not of this world: its states are of shape \[3\]"):
        gym.make("bilevel/CartPolePreference-v0", **{**options, "experts": []})
    with pytest.raises(CheckpointError, match="there is no file"):
        gym.make("bilevel/PendulumPreference-v0", preset="tiny", comparisons="nowhere.npz")


def test_experts_of_another_world_are_refused_before_anything_is_played() -> None:
    """Their steps would be scored by a network that reads something else."""
    problem = problems.preference(0, length=3)
    _, strange = played("box")
    objective = replace(problem.objective, experts=[strange], held_out_pairs=8)
    with pytest.raises(InvalidProblem, match="the experts are not of this world"):
        objective.check(replace(problem, objective=objective))


def test_demonstrations_from_a_dataset() -> None:
    """d̂ and ρ̂ are the discounted counts of the episodes, and the reward of a recorded expert can be learned."""
    world = base_world("grid", discount=0.9)
    policy = torch.full((world.states, world.actions), 1.0 / world.actions, dtype=torch.float64)
    shown = world.rollout(policy, trajectories=6, steps=30, generator=generator())
    to_minari("grid/walks-v0", shown, world)
    env = gym.make("bilevel/Apprenticeship-v0", demonstrations="grid/walks-v0")
    occupancy = np.zeros((world.states, world.actions))
    for row in range(6):
        for time in range(30):
            if shown.alive[row, time]:
                occupancy[shown.states[row, time], shown.actions[row, time]] += 0.9**time / 6
    np.testing.assert_allclose(env.unwrapped.problem.objective.occupancy, occupancy, rtol=1e-12)
    starts = np.bincount(shown.states[:, 0], minlength=world.states) / 6
    np.testing.assert_allclose(env.unwrapped.problem.objective.world.start, starts)
    env.reset(seed=0)
    first = float(env.unwrapped.evaluation.value)
    agents.exact(env).learn(5)
    assert float(env.unwrapped.evaluation.value) < first
    with pytest.raises(InvalidProblem, match="has 10 states"):
        gym.make("bilevel/Apprenticeship-v0", base="chain", demonstrations="grid/walks-v0")
