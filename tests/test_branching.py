"""Moments that are kept and restored, and continuations from them: bit for bit what would have happened."""

from __future__ import annotations

import importlib.util

import gymnasium as gym
import numpy as np
import pytest
import torch

import bilevel_gym  # noqa: F401  # registers the ids
from bilevel_gym import agents
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.hypergradients.sensitivities import play_continuations
from bilevel_gym.types import Branching, Places, Trajectory
from bilevel_gym.worlds import AtariWorld, VectorWorld, mujoco_world, restore, snapshot


def seeded(seed):
    """A generator."""
    return torch.Generator().manual_seed(seed)


class Maze(gym.Env):
    """Three places, two actions; from place 2 the second action ends the episode half of the time. Nothing that we know how to keep."""

    observation_space = gym.spaces.Discrete(3)
    action_space = gym.spaces.Discrete(2)
    chances = np.array([[[0.7, 0.3, 0.0], [0.1, 0.2, 0.7]], [[0.5, 0.5, 0.0], [0.0, 0.4, 0.6]], [[0.9, 0.0, 0.1], [0.25, 0.25, 0.0]]])

    def reset(self, *, seed=None, options=None):
        """Anywhere."""
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(3))
        return self.place, {}

    def step(self, action):
        """Move; the rest of a row is the probability of an end."""
        row = self.chances[self.place, action]
        drawn = int(self.np_random.choice(4, p=[*row, 1 - row.sum()]))
        reward, self.place = float(self.place), min(drawn, 2)
        return self.place, reward, drawn == 3, False, {}


class Forgetful(Maze):
    """Its random numbers do not begin anew with a seed."""

    noise = np.random.default_rng(0)

    @property
    def np_random(self):
        """One generator for all."""
        return self.noise

    @np_random.setter
    def np_random(self, value):
        """Ignored."""


for name, maze in (("Maze-v0", Maze), ("Forgetful-v0", Forgetful)):
    if name not in gym.registry:
        gym.register(name, maze)

WORLDS = {
    "Hopper": lambda: mujoco_world("Hopper-v5", horizon=45),
    "HalfCheetah": lambda: mujoco_world("HalfCheetah-v5", horizon=45),
    "Ant": lambda: mujoco_world("Ant-v5", horizon=45),
    "Humanoid": lambda: mujoco_world("Humanoid-v5", horizon=45),
    "Reacher": lambda: mujoco_world("Reacher-v5", horizon=45),
    "Hopper with ends": lambda: VectorWorld("Hopper-v5", 0.9, horizon=45, endless=True, env_kwargs={"terminate_when_unhealthy": True}),
    "Pendulum": lambda: VectorWorld("Pendulum-v1", 0.9, horizon=45),
    "CartPole": lambda: VectorWorld("CartPole-v1", 0.9, horizon=45, endless=True),
    "Breakout": lambda: AtariWorld("Breakout", 0.9, horizon=45),
}


def world_of(name):
    """One of the table."""
    pytest.importorskip("ale_py" if name == "Breakout" else "mujoco")
    return WORLDS[name]()


def go_on(env, actions):
    """What a few steps bring, to the last bit."""
    found = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        found.append((np.array(observation).tobytes(), float(reward), terminated, truncated))
    return found


@pytest.mark.parametrize("name", WORLDS)
def test_two_continuations_of_a_moment_are_equal(name):
    """Without it a branch would leave from a state that never was: with another warm start, contact force, counter or random number."""
    world = world_of(name)
    env, other = world._make(), world._make()
    env.action_space.seed(0)
    before, after, elsewhere = ([env.action_space.sample() for _ in range(count)] for count in (25, 25, 7))
    env.reset(seed=1)
    go_on(env, before)
    moment = snapshot(env)
    expected = go_on(env, after)
    next_start = env.reset()[0]
    assert [step[3] for step in expected].index(True) == 19, "the time limit counts on"
    other.reset(seed=2)
    go_on(other, elsewhere)
    for copy in (other, env, world._make()):
        restore(copy, moment)
        assert go_on(copy, after) == expected
        assert np.array_equal(copy.reset()[0], next_start), "what is drawn next is a part of the moment"


def test_a_hidden_end_within_a_continuation():
    """Without it a game, or a fall, that ends after the moment would start anew with other random numbers."""
    world = AtariWorld("Breakout", 0.9, horizon=1000)
    env, other = world._make(), world._make()
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(420)]
    env.reset(seed=1)
    go_on(env, actions[:150])
    moment = snapshot(env)
    expected, lives = go_on(env, actions[150:]), env.unwrapped.emulator.lives()
    frames = env.unwrapped.emulator.getEpisodeFrameNumber()
    assert frames < 1200, "a game must have ended for this test to say anything"
    other.reset(seed=5)
    restore(other, moment)
    assert go_on(other, actions[150:]) == expected
    assert other.unwrapped.emulator.lives() == lives


def test_unknown_insides_are_refused():
    """Without it a moment without its hidden variables would be restored, and be another one."""
    env = VectorWorld("Maze-v0", 0.9, horizon=5)._make()
    env.reset(seed=0)
    with pytest.raises(UnsupportedProblem, match="Maze"):
        snapshot(env)
    if importlib.util.find_spec("ale_py"):
        sticky = AtariWorld("Breakout", 0.9, horizon=5, sticky=0.25)._make()
        sticky.reset(seed=0)
        with pytest.raises(UnsupportedProblem, match="without sticky actions"):  # which of them is repeated next, ALE does not say
            snapshot(sticky)
    known = gym.wrappers.NormalizeReward(VectorWorld("Pendulum-v1", 0.9, horizon=5)._make())
    known.reset(seed=0)
    with pytest.raises(UnsupportedProblem, match="cannot be kept"):
        snapshot(known)


class Recorded:
    """A policy that plays what trajectories did from some places on."""

    def __init__(self, places):
        self.actions, self.row, self.time, self.step = places.trajectories.actions, places.row, places.time, 0

    def sample(self, observations, generator):
        """The next recorded actions of all that are still asked for."""
        found = self.actions[self.row, self.time + self.step]
        self.step += 1
        return found


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("name", [*WORLDS, "Maze"])
def test_branches_with_the_recorded_actions_are_the_recorded_future(name, given):
    """Without it ξ would not be a continuation of (s_h, a_h), but of something near it."""
    world = VectorWorld("Maze-v0", 0.9, horizon=45, endless=True) if name == "Maze" else world_of(name)
    assert isinstance(world, Branching)
    played = world.rollout(world.exploratory(seeded(0)), trajectories=2, steps=45, generator=seeded(1))
    places = Places(played, torch.tensor([1, 0, 1, 1]), torch.tensor([30, 0, 7, 7]))
    found = world.branch(Recorded(places), places, steps=torch.full((4,), 12), generator=seeded(2), given=given)
    span = places.time[:, None] + torch.arange(12)
    for mine, theirs in ((found.states, played.states), (found.actions, played.actions), (found.rewards, played.rewards)):
        theirs = theirs[places.row[:, None], span]
        assert torch.equal(*(table.stacks() if name == "Breakout" and table.ndim > 2 else table for table in (mine, theirs)))
    assert bool(found.alive.all())


def test_continuations_have_their_own_lengths_and_share_their_draws():
    """Without it ξ and ζ would drift apart by their random numbers alone, and continuations would be cut at the horizon of the episode."""
    world = VectorWorld("CartPole-v1", 0.9, horizon=20, endless=True)
    policy = world.exploratory(seeded(3))
    played = world.rollout(policy, trajectories=3, steps=20, generator=seeded(1))
    places = Places(played, torch.tensor([2, 0, 1]), torch.tensor([18, 5, 5]))
    steps = torch.tensor([9, 1, 4])
    generator = seeded(4)
    given = world.branch(policy, places, steps=steps, generator=generator, given=True)
    used = generator.get_state()
    free = world.branch(policy, places, steps=steps, generator=generator.manual_seed(4))
    assert torch.equal(generator.get_state(), used)
    assert torch.equal(given.alive, torch.arange(9) < steps[:, None]), "the horizon does not end a continuation"
    assert torch.equal(given.actions[:, 0], places.actions)
    assert torch.equal(given.states[:, 0], places.states)
    assert torch.equal(free.states[:, 0], places.states)
    assert torch.equal(given.rewards == 0, ~given.alive)
    same = given.actions[:, 0] == free.actions[:, 0]
    assert torch.equal(given.states[same], free.states[same])
    again = world.branch(policy, places, steps=steps, generator=seeded(4), given=True)
    assert torch.equal(again.states, given.states)


def test_an_end_ends_a_continuation():
    """Without it rewards after an end would count, which nobody gets."""
    world = VectorWorld("CartPole-v1", 0.9, horizon=50)

    class Right:
        def sample(self, observations, generator):
            return torch.ones(len(observations), dtype=torch.int64)

    played = world.rollout(Right(), trajectories=2, steps=50, generator=seeded(1))
    places = Places(played, torch.tensor([0, 1]), torch.tensor([3, 45]))
    found = world.branch(Right(), places, steps=torch.tensor([40, 40]), generator=seeded(2))
    assert found.alive.sum(1).tolist() == [int(played.alive[0].sum()) - 3, 1], "a place past the end is taken for the last one before it"
    assert torch.equal(found.rewards, found.alive.float())
    generator, policy = seeded(3), world.exploratory(seeded(4))
    world.branch(policy, places, steps=torch.tensor([5, 5]), generator=generator)
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(13, generator=seeded(3))[10:]), (
        "an end leaves the draws of the others alone"
    )


def test_continuations_follow_the_law():
    """Without it rollouts in a simulator would not estimate ∇(Q − V): the visits must be those of the resolvent, past the horizon too."""
    gamma, weight = 0.8, torch.tensor([[0.8, 0.2], [0.3, 0.7], [0.5, 0.5]])

    class Table:
        def sample(self, observations, generator):
            return torch.bernoulli(weight[observations.argmax(-1), 1], generator=generator).long()

    world = VectorWorld("Maze-v0", gamma, horizon=3)
    played = world.rollout(Table(), trajectories=150, steps=3, generator=seeded(0))
    places = Places(played, *played.alive.nonzero().unbind(-1))
    count = len(places.row)
    steps = 1 + torch.distributions.Geometric(torch.tensor(1 - gamma**0.5)).sample((count,)).long()
    found = world.branch(Table(), places, steps=steps, generator=seeded(1), given=True)
    scale = gamma ** (0.5 * torch.arange(found.alive.shape[1])) * found.alive
    visits = torch.zeros(count, 6).scatter_add_(1, found.states.argmax(-1) * 2 + found.actions, scale.float())
    chances = torch.tensor(Maze.chances, dtype=torch.float32)
    moves = torch.einsum("sat,tb->satb", chances, weight).reshape(6, 6)
    truth = torch.linalg.inv(torch.eye(6) - gamma * moves)[places.states.argmax(-1) * 2 + places.actions]
    error = (visits - truth).mean(0) / ((visits - truth).std(0) / count**0.5)
    assert count > 300
    assert float(error.abs().max()) < 4.0


def test_what_cannot_be_repeated_is_refused():
    """Without it a simulator with random numbers of its own would branch from another state than the trajectory's, and nobody would know."""
    world = VectorWorld("Forgetful-v0", 0.9, horizon=20, endless=True)
    played = world.rollout(world.uniform(), trajectories=2, steps=20, generator=seeded(0))
    with pytest.raises(UnsupportedProblem, match="did not repeat"):
        world.branch(
            world.uniform(), Places(played, torch.zeros(20).long(), torch.arange(20)), steps=torch.ones(20).long(), generator=seeded(1)
        )
    bare = Trajectory(played.states, played.actions, played.alive)
    with pytest.raises(InvalidProblem, match="how their episodes began"):
        world.branch(
            world.uniform(), Places(bare, torch.zeros(1).long(), torch.zeros(1).long()), steps=torch.ones(1).long(), generator=seeded(1)
        )


def test_sobirl_branches_on_mujoco():
    """Without it the paper's own estimator, fresh rollouts from visited states, would exist on tables only."""
    pytest.importorskip("mujoco")
    env = gym.make("bilevel/HopperPreference-v0", preset="tiny", discount=0.9)
    env.reset(seed=0)
    agent = agents.sobirl(env, sensitivity="rollout", updates_per_step=3, warmup_updates=3, clip=None)
    agent.learn(1)
    inner = env.unwrapped
    estimate = agent.estimator(inner.oracle, inner.x, inner.response, inner.evaluation, agent.estimator.init(inner.oracle))[0]
    assert float(estimate.implicit.norm()) > 0
    assert bool(estimate.value.isfinite().all())
    drawn = play_continuations(inner.oracle, inner.response, inner.evaluation.fresh, "frozen", 1)
    assert torch.equal(drawn.given.states[:, 0], drawn.free.states[:, 0])
    assert torch.equal(drawn.given.alive, drawn.free.alive)
    assert not torch.equal(drawn.given.actions[:, 0], drawn.free.actions[:, 0])
