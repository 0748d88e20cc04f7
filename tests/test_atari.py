"""Atari: the native environment and the branchable one are one world, and it has no ends."""

from __future__ import annotations

import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym.envs import PIXELS
from bilevel_gym.errors import InvalidProblem, MissingExtra, UnknownName
from bilevel_gym.preferences import Teacher
from bilevel_gym.rewards.convolutions import LAYERS
from bilevel_gym.types import World
from bilevel_gym.worlds import AtariGame, AtariWorld
from bilevel_gym.worlds.atari_game import SEEDS, StartNoops, shrink

pytest.importorskip("ale_py")


def seeded(seed):
    """A generator."""
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def breakout():
    """Breakout with short episodes; random play loses all lives in some two hundred steps."""
    return AtariWorld("Breakout", 0.99, horizon=40)


def test_is_a_world(breakout):
    """Without it solvers and objectives would find other names than those that they were written against."""
    world: World = breakout
    assert world.discount == 0.99
    assert (breakout.observation_shape, breakout.action_count) == ((4, 84, 84), 4)
    assert not hasattr(breakout, "action_low")
    assert AtariWorld("breakout", 0.99, horizon=40, full_action_space=True).action_count == 18


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_both_paths_show_the_same_frames(sticky):
    """Without it a continuation in the branchable copy would leave from other pixels, rewards or random numbers than the trajectory had."""
    world = AtariWorld("Breakout", 0.99, horizon=420, sticky=sticky)
    actions = np.random.default_rng(0).integers(world.action_count, size=(440, 2))
    vector = world._vector(2, 420)
    seen = [vector.reset(seed=[7, 2**32 - 5])[0].copy()]
    paid = []
    for step in actions:
        stacks, rewards, terminated, _, _ = vector.step(step)
        assert not terminated.any()
        seen.append(stacks.copy())
        paid.append(rewards)
    vector.close()
    starts = 0
    for copy, seed in enumerate((7, 2**32 - 5)):
        game = AtariGame("Breakout", sticky=sticky)
        seeds = np.random.default_rng(seed)
        assert np.array_equal(game.reset(seed=seed)[0], seen[0][copy])
        for step, row in enumerate(actions):
            lives = game.emulator.lives()
            stack, reward, *_ = game.step(row[copy])
            starts += game.emulator.lives() > lives
            assert reward == paid[step][copy]
            if step == 419:
                stack, _ = game.reset(seed=int(seeds.integers(SEEDS)))
            assert np.array_equal(stack, seen[step + 1][copy]), f"step {step}"
    assert starts >= 3, "games must have ended for this test to say anything"


def test_ends_are_hidden():
    """Without it the follower would learn from the ends of games what the true reward is."""
    world = AtariWorld("Breakout", 0.99, horizon=300)
    simulation = world.open(2, seed=0)
    before = simulation.observations
    for step in range(300):
        moved = simulation.step(torch.tensor([1, step % 4]))
        assert not bool(moved.terminated.any())
        assert bool(moved.truncated.all()) == (step == 299)
        assert torch.equal(moved.following[:, :3], before[:, 1:]), "the stack goes on, whatever happens"
        assert moved.following.dtype == torch.uint8
        before = moved.following
    assert not torch.equal(before, simulation.observations), "after the horizon a new episode has begun"
    assert bool((simulation.observations[:, :1] == simulation.observations).all()), "with its first frame repeated"
    simulation.close()


def test_trajectories_hold_what_the_follower_saw(breakout):
    """Without it fragments would be cut out of other frames than those that were acted on."""

    class Watched:
        def __init__(self):
            self.seen, self.inner = [], breakout.uniform()

        def sample(self, observations, generator):
            self.seen.append(observations.clone())
            return self.inner.sample(observations, generator)

    policy = Watched()
    found = breakout.rollout(policy, trajectories=2, steps=45, generator=seeded(1))
    assert found.states.shape == (2, 45, 4, 84, 84)
    assert torch.equal(found.states.stacks()[:, :40], torch.stack(policy.seen, 1))
    assert torch.equal(found.alive, (torch.arange(45) < 40).expand(2, -1))
    assert found.actions.dtype == torch.int64
    assert found.states.nbytes < 2 * 48 * 84 * 84 * 1.01
    again = AtariWorld("breakout", 0.99, horizon=40).rollout(breakout.uniform(), trajectories=2, steps=45, generator=seeded(1))
    assert torch.equal(found.states.stacks(), again.states.stacks())
    other = breakout.rollout(breakout.uniform(), trajectories=2, steps=45, generator=seeded(2))
    assert not torch.equal(found.actions, other.actions)


def test_the_teacher_reads_true_rewards():
    """Without it a point in BeamRider, worth 44, would count as 1, unless that is asked for."""
    rewards = {}
    for clipped in (False, True):
        world = AtariWorld("BeamRider", 0.99, horizon=300, clip_rewards=clipped)
        found = world.rollout(world.uniform(), trajectories=2, steps=300, generator=seeded(3))
        rewards[clipped] = found.rewards
        world.close()
    assert float(rewards[False].max()) == 44.0
    assert torch.equal(rewards[True], rewards[False].sign())


def test_quadrature_and_policies_on_pixels(breakout):
    """Without it E_π over actions would be taken in parts that do not fit together."""
    found = breakout.rollout(breakout.uniform(), trajectories=2, steps=40, generator=seeded(4))
    policy = breakout.exploratory(seeded(5))
    states = found.states.flatten(0, 1)
    actions, weights = breakout.quadrature(policy, states, 3, seeded(0))
    assert actions.shape == weights.shape == (4, 80)
    torch.testing.assert_close(weights, policy.probabilities(states.stacks()).mT)
    assert len({breakout.exploratory(seeded(seed)).mean(states.stacks()[:1]).item() for seed in range(20)}) > 1


def test_picture_is_the_screen(breakout):
    """Without it nobody could look at what the follower does."""
    picture = breakout.picture(breakout.uniform())
    assert picture.shape == (210, 160, 3)
    assert picture.std() > 0


def test_start_noops_are_uniform():
    """Without it the start law of games would not be the native one's."""
    drawn = [StartNoops(30, 1).draw() for _ in range(1)] + [noops.draw() for noops in [StartNoops(30, 2)] for _ in range(3000)]
    counts = np.bincount(drawn, minlength=30)
    assert len(counts) == 30
    assert counts.min() > 60
    assert StartNoops(0, 3).draw() == StartNoops(1, 3).draw() == 0
    key = np.random.RandomState(5).get_state()[1]  # mt19937 seeded as C++ does
    assert np.array_equal(StartNoops(3, 5).bits.state["state"]["key"], key)


def test_shrinking_keeps_the_mean():
    """Without it shapes other than 210 × 160 (some games have 250 rows) could be scaled by the wrong weights."""
    rng = np.random.default_rng(0)
    for height in (210, 250):
        screen = rng.integers(256, size=(height, 160)).astype(np.uint8)
        small = shrink(screen)
        assert small.shape == (84, 84)
        assert abs(float(small.mean()) - float(screen.mean())) < 0.5
    assert np.array_equal(shrink(np.full((210, 160), 77, np.uint8)), np.full((84, 84), 77, np.uint8))


@pytest.mark.parametrize("preset", ["default", "demo", "tiny", "aistats2025"])
def test_presets_reach_reward_and_teacher(preset):
    """Without it a game would be learnt with other convolutions than its preset's, or a teacher would toss a coin over equal scores."""
    sizes = PIXELS[preset]
    for given in ({}, {"mistake": 0.1}, {"equal_within": 3.0}):
        env = gym.make("bilevel/SpaceInvadersPreference-v0", preset=preset, rationality=2.0, teacher=given)
        problem = env.unwrapped.problem
        network = problem.reward.network
        assert getattr(network, "convolutions", network).layers == sizes.reward_layers
        same = 0.5 if preset in ("default", "demo") else 0.0
        assert problem.objective.teacher == Teacher(2.0, **{"equal_within": same, **given})
        env.close()
    assert (sizes.reward_layers == LAYERS) == (preset != "demo")


def test_refuses_what_does_not_fit(monkeypatch):
    """Without it a misspelt game would fail inside ale-py with an assertion."""
    with pytest.raises(UnknownName, match="BeamRider"):
        AtariWorld("BeamRyder", 0.99, horizon=10)
    for wrong in ({"sticky": 1.5}, {"frame_skip": 0}, {"noops": -1}, {"threads": -1}):
        with pytest.raises(InvalidProblem, match="sticky"):
            AtariWorld("Pong", 0.99, horizon=10, **wrong)
    with pytest.raises(InvalidProblem, match="horizon"):
        AtariWorld("Pong", 0.99, horizon=0)
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(MissingExtra, match=r"bilevel-gym\[atari\]"):
        AtariWorld("Pong", 0.99, horizon=10)
