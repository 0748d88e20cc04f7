"""Gymnasium environments as worlds: repeatable rollouts of fixed length, and a right answer at the end of an episode."""

from __future__ import annotations

import ctypes.util
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym import BilevelEnv, BilevelProblem
from bilevel_gym.agents.making import make_env
from bilevel_gym.errors import CannotRender, InvalidProblem, MissingExtra, UnknownName, UnsupportedProblem
from bilevel_gym.objectives import SampledReturn
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import EnvironmentReward, network_for
from bilevel_gym.solvers import SAC
from bilevel_gym.types import Policy, World
from bilevel_gym.worlds import UniformPolicy, VectorWorld, mujoco_world


class Walk(gym.Env[np.ndarray, np.ndarray]):
    """A point on a line that moves by its action; the episode ends beyond 1."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gym.spaces.Box(-1.0, 3.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Somewhere in the middle."""
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-0.5, 0.5, 1)
        return self.place.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move, and earn 1."""
        self.place = self.place + action
        return self.place.copy(), 1.0, bool(self.place[0] > 1.0), False, {}


class Canvas(gym.Env[np.ndarray, np.ndarray]):
    """Four small pictures of noise, whatever is done."""

    observation_space = gym.spaces.Box(0, 255, (4, 12, 12), np.uint8)

    def __init__(self, *, still: bool = False) -> None:
        self.action_space = gym.spaces.Box(np.float32(-1.0), np.array([1.0, -1.0 if still else 2.0], np.float32))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Noise."""
        super().reset(seed=seed)
        return self.np_random.integers(256, size=(4, 12, 12), dtype=np.uint8), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """More noise."""
        return self.np_random.integers(256, size=(4, 12, 12), dtype=np.uint8), 0.0, False, False, {}


class Lost(Walk):
    """A simulator that loses its numbers at the third step."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move, as long as it goes well."""
        self.moved = getattr(self, "moved", 0) + 1
        place, *rest = super().step(0.0 * action)
        return (place if self.moved < 3 else place * np.nan, *rest)


class Steps(gym.Env[dict[str, Any], np.int64]):
    """A place among six and a number, moved by actions −1, 0 and 1; the episode ends at place 5 or place 0, which earns 10."""

    observation_space = gym.spaces.Dict(
        {"place": gym.spaces.Discrete(6), "rest": gym.spaces.Tuple([gym.spaces.Box(-1.0, 1.0, (2,)), gym.spaces.MultiBinary(2)])}
    )
    action_space = gym.spaces.Discrete(3, start=-1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """At one of the four places in the middle."""
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(1, 5))
        return self._see(), {}

    def step(self, action: np.int64) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Move."""
        assert self.action_space.contains(action)
        self.place += int(action)
        ended = self.place in (0, 5)
        return self._see(), 10.0 * ended, ended, False, {}

    def _see(self) -> dict[str, Any]:
        return {"place": self.place, "rest": (np.array([0.25, 0.5], np.float32), np.array([0, 1], np.int8))}


class Repeated:
    """A policy that always takes one action."""

    def __init__(self, action: int) -> None:
        self.action = action

    def sample(self, observations: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """[n, observation] → [n]."""
        return torch.full((len(observations),), self.action)


if "Walk-v0" not in gym.registry:
    gym.register("Walk-v0", Walk)  # type: ignore[arg-type]  # a class does, whatever the annotation says
    gym.register("WalkGrid-v0", lambda: gym.wrappers.ReshapeObservation(Walk(), (1, 1)))  # type: ignore[arg-type]
    gym.register("WalkTwice-v0", lambda: gym.wrappers.TransformAction(Walk(), lambda a: a, gym.spaces.MultiDiscrete([2, 2])))
    gym.register("Steps-v0", Steps)  # type: ignore[arg-type]


class Constant(UniformPolicy):
    """Always the lower corner."""

    def sample(self, observations: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """[n, observation] → [n, action]."""
        return self.low.expand(len(observations), -1)


@pytest.fixture
def pendulum() -> VectorWorld:
    """Pendulum with short episodes."""
    return VectorWorld("Pendulum-v1", 0.99, horizon=20)


def seeded(seed: int) -> torch.Generator:
    """A generator."""
    return torch.Generator().manual_seed(seed)


def test_is_a_world(pendulum: VectorWorld) -> None:
    """Without it the class could drift from the protocol that solvers and objectives are written against."""
    world: World = pendulum
    assert world.discount == 0.99
    assert isinstance(pendulum.uniform(), Policy)
    assert isinstance(pendulum.exploratory(seeded(0)), Policy)
    assert (pendulum.observation_size, pendulum.action_size) == (3, 1)
    assert torch.equal(pendulum.action_low, torch.tensor([-2.0]))
    assert torch.equal(pendulum.action_high, torch.tensor([2.0]))


def test_rollout_depends_on_policy_and_generator_alone(pendulum: VectorWorld) -> None:
    """Without it the copies kept between calls would leak the past into evaluations, and no run could be repeated."""
    policy = pendulum.exploratory(seeded(1))
    first = pendulum.rollout(policy, trajectories=4, steps=20, generator=seeded(2))
    pendulum.rollout(pendulum.uniform(), trajectories=7, steps=5, generator=seeded(3))
    again = pendulum.rollout(policy, trajectories=4, steps=20, generator=seeded(2))
    fresh = VectorWorld("Pendulum-v1", 0.99, horizon=20).rollout(policy, trajectories=4, steps=20, generator=seeded(2))
    other = pendulum.rollout(policy, trajectories=4, steps=20, generator=seeded(4))
    for field in ("states", "actions", "alive", "rewards"):
        assert torch.equal(getattr(first, field), getattr(again, field))
        assert torch.equal(getattr(first, field), getattr(fresh, field))
    assert first.states.shape == (4, 20, 3)
    assert first.actions.shape == (4, 20, 1)
    assert first.states.dtype == torch.float32
    assert len({tuple(row.tolist()) for row in first.states[:, 0]}) == 4, "the copies must start apart"
    assert not torch.equal(first.states, other.states)


def test_worker_processes_play_the_same_episodes(pendulum: VectorWorld) -> None:
    """Without it ``vectorization="async"`` could be another world: seeds, actions and ends must reach the workers unchanged."""
    there = VectorWorld("Pendulum-v1", 0.99, horizon=20, vectorization="async")
    found = [world.rollout(world.uniform(), trajectories=2, steps=20, generator=seeded(2)) for world in (pendulum, there)]
    there._pool[2].close()
    assert torch.equal(found[0].states, found[1].states)
    assert found[0].rewards is not None
    assert found[1].rewards is not None
    assert torch.equal(found[0].rewards, found[1].rewards)


def test_an_interrupted_rollout_is_not_in_the_way_of_the_next(pendulum: VectorWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it Ctrl-C while workers play would leave them with an answer that nobody fetches, and no later rollout would be possible."""
    there = VectorWorld("Pendulum-v1", 0.99, horizon=5, vectorization="async")

    def interrupted(self: Any, timeout: float | None = None) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(gym.vector.AsyncVectorEnv, "step_wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            there.rollout(there.uniform(), trajectories=2, steps=5, generator=seeded(2))
    found = [world.rollout(world.uniform(), trajectories=2, steps=5, generator=seeded(2)) for world in (pendulum, there)]
    there.close()
    assert torch.equal(found[0].states, found[1].states)


def test_rollout_matches_the_environment(pendulum: VectorWorld) -> None:
    """Without it states, actions and rewards could be shifted against each other by a step."""
    found = pendulum.rollout(pendulum.uniform(), trajectories=2, steps=20, generator=seeded(5))
    angle, speed, torque = torch.atan2(found.states[..., 1], found.states[..., 0]), found.states[..., 2], found.actions[..., 0]
    torch.testing.assert_close(found.rewards, -(angle**2 + 0.1 * speed**2 + 0.001 * torque**2), atol=1e-4, rtol=1e-4)
    assert bool(found.alive.all())


def test_steps_past_an_end_are_not_alive() -> None:
    """Without it the steps of a next episode would count as part of this one."""
    world = VectorWorld("Walk-v0", 0.9, horizon=6)
    ended = world.rollout(UniformPolicy(torch.tensor([0.6]), torch.tensor([0.7])), trajectories=5, steps=9, generator=seeded(6))
    place, alive = ended.states[..., 0], ended.alive
    assert ended.rewards is not None
    assert ended.states.shape == (5, 9, 1)
    assert bool((alive[:, 1:] <= alive[:, :-1]).all())
    assert bool((place[alive] <= 1.0).all())
    lengths = alive.sum(1)
    assert bool((lengths <= 4).all() & (lengths >= 1).all())
    assert torch.equal(ended.rewards, alive.float())
    for row, length in zip(place, lengths, strict=True):
        assert bool((row[length:] == row[length - 1]).all()), "states stand still after the end"

    slow = world.rollout(Constant(torch.tensor([-0.5]), torch.tensor([0.0])), trajectories=3, steps=9, generator=seeded(7))
    assert torch.equal(slow.alive, (torch.arange(9) < 6).expand(3, -1)), "the horizon is an end too"


def test_end_of_an_episode_in_a_live_simulation() -> None:
    """Without it a learner would bootstrap from the first observation of the *next* episode, or not at all after a time limit."""
    world = VectorWorld("Walk-v0", 0.9, horizon=4)
    simulation = world.open(2, seed=0)
    begun = simulation.observations.clone()
    still = torch.zeros(2, 1)
    for _ in range(3):
        moved = simulation.step(still)
        assert not bool(moved.truncated.any() | moved.terminated.any())
        assert torch.equal(moved.following, simulation.observations)
    moved = simulation.step(still)
    assert bool(moved.truncated.all())
    assert not bool(moved.terminated.any())
    assert torch.equal(moved.following, begun)
    assert not bool((simulation.observations == begun).any()), "a new episode starts elsewhere"
    ended = simulation.step(torch.tensor([[3.0], [0.0]]))
    assert ended.terminated.tolist() == [True, False]
    assert float(ended.following[0]) > 1.0
    assert abs(float(simulation.observations[0])) <= 0.5
    simulation.close()


def test_an_interrupted_simulation_says_so() -> None:
    """Without it a learner would act on observations that some copies have left behind."""
    simulation = VectorWorld("Walk-v0", 0.9, horizon=4).open(2, seed=0)
    with pytest.raises(IndexError):
        simulation.step(torch.zeros(2, 0))
    assert not simulation.ready
    with pytest.raises(RuntimeError, match="reset"):
        _ = simulation.observations
    simulation.reset(1)
    assert simulation.ready


def test_observations_that_are_no_numbers_are_named() -> None:
    """A follower's actions are NaN then, and r_x was blamed for it; neither a rollout nor a replay may go on from there."""
    world = VectorWorld(Lost, 0.9, horizon=20)
    with pytest.raises(InvalidProblem, match="an observation of the environment has a NaN"):
        world.rollout(world.uniform(), trajectories=2, steps=8, generator=seeded(0))
    problem = BilevelProblem(world, network_for(world, hidden=(4,)), Shannon(0.1), SampledReturn(length=2, trajectories=3, steps=2))
    env = BilevelEnv(problem, SAC(steps=12, learning_starts=8, batch_size=4, hidden=(4,), capacity=100), solve_on_reset=False)
    env.reset(seed=0)
    x = env.action_space.sample() * 0.0
    with pytest.raises(InvalidProblem, match="an observation of the environment has a NaN"):
        env.step(x)


def test_quadrature_has_the_mean_of_the_policy(pendulum: VectorWorld) -> None:
    """Without it estimators would average over the wrong actions, or over states in the wrong order."""
    states = torch.randn(5, 3, generator=seeded(8))
    policy = pendulum.exploratory(seeded(9))
    actions, weights = pendulum.quadrature(policy, states, 4000, seeded(10))
    assert actions.shape == (4000, 5, 1)
    torch.testing.assert_close(weights.sum(0), torch.ones(5))
    reference = torch.stack([policy.sample(state.expand(4000, -1), seeded(11)).mean(0) for state in states])
    torch.testing.assert_close((weights[..., None] * actions).sum(0), reference, atol=0.08, rtol=0.0)


def test_pictures_with_actions_in_a_box() -> None:
    """Without it E_π over such states would have the weights 1/K in whole numbers, all 0, and held-out fragments nobody to play them."""
    world = VectorWorld(Canvas, 0.9, horizon=5)
    played = world.rollout(world.exploratory(seeded(0)), trajectories=2, steps=5, generator=seeded(1))
    states, (low, high) = played.states.flatten(0, 1), (world.action_low, world.action_high)
    assert states.dtype == torch.uint8
    assert bool(((played.actions >= low) & (played.actions <= high)).all())
    assert len(played.actions.flatten().unique()) > 10
    actions, weights = world.quadrature(world.uniform(), states, 500, seeded(2))
    assert actions.shape == (500, 10, 2)
    torch.testing.assert_close((weights[..., None] * actions).sum(0), (0.5 * (low + high)).expand(10, -1), atol=0.15, rtol=0.0)
    with pytest.raises(UnsupportedProblem, match="CnnPolicy"):
        SAC().start(BilevelProblem(world, EnvironmentReward(), Shannon(0.1), None))  # type: ignore[arg-type]


def test_quadrature_over_no_states(pendulum: VectorWorld) -> None:
    """Without it a batch in which every label was skipped would end in an error of a reshape."""
    for world, action in ((pendulum, (1,)), (VectorWorld("CartPole-v1", 0.9, horizon=4), ())):
        actions, weights = world.quadrature(world.uniform(), torch.empty(0, *world.observation_shape), 2, seeded(0))
        assert actions.shape == (2, 0, *action)
        assert weights.shape == (2, 0)


def test_exploratory_policies_differ_in_quality() -> None:
    """Without it held-out fragments could all be alike, and a held-out accuracy would mean nothing."""
    world = VectorWorld("Pendulum-v1", 0.99, horizon=100)
    generator, returns = seeded(12), []
    for _ in range(12):
        found = world.rollout(world.exploratory(generator), trajectories=4, steps=100, generator=generator)
        assert found.rewards is not None
        assert bool((found.actions.abs() <= 2.0).all())
        returns.append(float(found.rewards.sum(1).mean()))
    assert max(returns) - min(returns) > 200.0


def test_uniform_fills_the_box() -> None:
    """Without it the first transitions of a replay would miss a part of the actions."""
    policy = VectorWorld("Walk-v0", 0.9, horizon=4).uniform()
    drawn = policy.sample(torch.zeros(2000, 1), seeded(13))
    assert float(drawn.min()) == pytest.approx(-1.0, abs=0.02)
    assert float(drawn.max()) == pytest.approx(3.0, abs=0.02)
    assert float(drawn.mean()) == pytest.approx(1.0, abs=0.1)
    assert torch.equal(policy.mean(torch.zeros(2, 1)), torch.ones(2, 1))


def test_description_without_its_simulators_is_pickled(pendulum: VectorWorld) -> None:
    """Without it a world with live copies could not be sent to a worker process."""
    pendulum.rollout(pendulum.uniform(), trajectories=2, steps=3, generator=seeded(0))
    again = pickle.loads(pickle.dumps(pendulum))
    assert again == pendulum
    assert len(again._pool) == 0
    again.rollout(again.uniform(), trajectories=2, steps=3, generator=seeded(0))


def test_refuses_what_does_not_fit() -> None:
    """Without it several discrete actions at once, or pixels, would fail inside a network instead of at the door."""
    with pytest.raises(InvalidProblem, match="Box with finite bounds that differ or a Discrete"):
        VectorWorld("WalkTwice-v0", 0.99, horizon=10)
    with pytest.raises(InvalidProblem, match="flat Box"):
        VectorWorld("WalkGrid-v0", 0.99, horizon=10)
    with pytest.raises(InvalidProblem, match="bounds that differ"):
        VectorWorld(lambda: Canvas(still=True), 0.99, horizon=10)
    with pytest.raises(InvalidProblem, match="discount"):
        VectorWorld("Walk-v0", 1.0, horizon=10)
    with pytest.raises(InvalidProblem, match="horizon"):
        VectorWorld("Walk-v0", 0.9, horizon=0)
    with pytest.raises(InvalidProblem, match="whole number"):
        VectorWorld("Walk-v0", 0.9, horizon="3")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="sync"):
        VectorWorld("Walk-v0", 0.9, horizon=3, vectorization="threads")  # type: ignore[arg-type]
    world, sizes = VectorWorld("Walk-v0", 0.9, horizon=3), {"trajectories": 1, "steps": 1}
    for name in sizes:
        with pytest.raises(InvalidProblem, match=f"{name} is 0"):
            world.rollout(world.uniform(), generator=seeded(0), **{**sizes, name: 0})
    with pytest.raises(InvalidProblem, match="num_envs is 0"):
        world.open(0, 0)


def test_finitely_many_actions() -> None:
    """Without it classic control with discrete actions would be no world, or its actions would be read with the wrong offset."""
    world = VectorWorld("CartPole-v1", 0.99, horizon=30)
    assert (world.observation_shape, world.observation_size, world.action_count) == ((4,), 4, 2)
    assert not hasattr(world, "action_low"), "what a box has must not be there, solvers ask for it"
    assert not hasattr(VectorWorld("Pendulum-v1", 0.99, horizon=5), "action_count")
    uniform = world.rollout(world.uniform(), trajectories=3, steps=30, generator=seeded(0))
    assert uniform.actions.dtype == torch.int64
    assert uniform.actions.shape == (3, 30)
    assert set(uniform.actions[uniform.alive].tolist()) == {0, 1}
    left = world.rollout(Repeated(0), trajectories=1, steps=3, generator=seeded(0)).states
    right = world.rollout(Repeated(1), trajectories=1, steps=3, generator=seeded(0)).states
    assert torch.equal(left[:, 0], right[:, 0])
    assert float(left[0, 1, 1]) < float(left[0, 0, 1]) < 0.06 < float(right[0, 2, 1]), "0 pushes to the left, 1 to the right"


def test_actions_that_do_not_begin_at_zero_and_nested_observations() -> None:
    """Without it ``Discrete(3, start=-1)`` would be played one off, and dictionaries would be refused although they are numbers."""
    world = VectorWorld("Steps-v0", 0.9, horizon=8)
    assert (world.observation_size, world.action_count) == (10, 3)
    up = world.rollout(Repeated(2), trajectories=4, steps=8, generator=seeded(1))
    place = up.states[..., :6].argmax(-1)
    assert torch.equal(up.states[0, 0, 6:], torch.tensor([0.25, 0.5, 0.0, 1.0]))
    for row, alive in zip(place, up.alive, strict=True):
        assert row[alive].tolist() == list(range(int(row[0]), 5))
    assert torch.equal(up.alive.sum(1), 5 - place[:, 0])


def test_hidden_ends_go_on_from_a_new_start() -> None:
    """Without it an end would leak reward through its own length, or the follower would see a state that it never acts in."""
    world = VectorWorld("Steps-v0", 0.9, horizon=60, endless=True)
    found = world.rollout(Repeated(2), trajectories=20, steps=60, generator=seeded(2))
    place = found.states[..., :6].argmax(-1)
    assert bool(found.alive.all())
    assert found.rewards is not None
    ended = found.rewards == 10.0
    assert torch.equal(ended, place == 4), "the end is earned, and not shown"
    after = place[:, 1:][ended[:, :-1]]
    share = torch.bincount(after, minlength=6)[1:5] / len(after)
    assert len(after) > 300
    assert float((share - 0.25).abs().max()) < 0.1, "the new start follows the start law"
    assert bool((place[:, 1:] == place[:, :-1] + 1)[~ended[:, :-1]].all())
    simulation = world.open(2, seed=0)
    for step in range(60):
        moved = simulation.step(torch.tensor([2, 0]))
        assert not bool(moved.terminated.any())
        assert bool(moved.truncated.all()) == (step == 59)
        assert bool(moved.following[:, :6].argmax(-1).ne(5).all()), "the place behind an end is not what follows"
        if step < 59:
            assert torch.equal(moved.following, simulation.observations)
    simulation.close()


def test_cartpole_without_ends_is_paid_for_falls() -> None:
    """Without it CartPole's reward, 1 at every step, would say nothing once the ends are hidden; its own warning must stay away, too."""
    world = VectorWorld("CartPole-v1", 0.99, horizon=100, endless=True, env_kwargs={"sutton_barto_reward": True})
    found = world.rollout(Repeated(1), trajectories=2, steps=100, generator=seeded(3))
    assert bool(found.alive.all())
    assert found.rewards is not None
    assert set(found.rewards.flatten().tolist()) == {0.0, -1.0}
    assert 16 < float((found.rewards == -1).sum()) < 24, "pushed to one side it falls after nine or ten steps"
    assert float(found.states[..., 2].abs().max()) < 0.21


def test_policies_of_finitely_many_actions() -> None:
    """Without it quadratures would weigh the wrong actions, and held-out fragments would all be of one quality."""
    world = VectorWorld("CartPole-v1", 0.99, horizon=30)
    observations = 0.05 * torch.randn(2500, 4, generator=seeded(1))
    for policy in (world.uniform(), world.exploratory(seeded(2)), world.exploratory(seeded(5))):
        assert isinstance(policy, Policy)
        actions, weights = world.quadrature(policy, observations, 7, seeded(3))
        assert torch.equal(actions, torch.arange(2)[:, None].expand(2, 2500))
        torch.testing.assert_close(weights, policy.probabilities(observations).mT)
        torch.testing.assert_close(weights.sum(0), torch.ones(2500))
        drawn = policy.sample(observations, seeded(4)).double()
        assert abs(float(drawn.mean() - weights[1].mean())) < 4 * 0.5 / 2500**0.5
        assert policy.mean(observations).dtype == torch.int64
    sharpness = [float(world.exploratory(seeded(seed)).probabilities(observations).amax(-1).mean()) for seed in range(40)]
    assert min(sharpness) < 0.55
    assert max(sharpness) > 0.95
    assert torch.equal(policy.mean(observations), policy.probabilities(observations).argmax(-1))


def test_mujoco_episodes_have_a_fixed_length() -> None:
    """Without it a fall would end the episode, and its length would tell the follower about the true reward."""
    pytest.importorskip("mujoco")
    world = mujoco_world("Hopper-v5", horizon=150)
    assert dict(world.env_kwargs)["terminate_when_unhealthy"] is False
    policy = UniformPolicy(world.action_high * 0.99, world.action_high)
    found = world.rollout(policy, trajectories=2, steps=150, generator=seeded(14))
    assert bool(found.alive.all())
    assert bool((found.states[..., 0].abs() < 0.7).any()), "it must have fallen for this test to say anything"
    again = mujoco_world("Hopper-v5", horizon=150).rollout(policy, trajectories=2, steps=150, generator=seeded(14))
    assert torch.equal(found.states, again.states)
    assert "terminate_when_unhealthy" not in dict(mujoco_world("HalfCheetah-v5", horizon=5).env_kwargs)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Gymnasium's half-made viewer
def test_mujoco_is_drawn_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a server would show nothing, or a traceback out of OpenGL instead of the variable that has to be set."""
    pytest.importorskip("mujoco")
    world = mujoco_world("Hopper-v5", horizon=20)
    monkeypatch.setenv("MUJOCO_GL", "paper")
    with pytest.raises(CannotRender, match=r"Hopper-v5 cannot be drawn here .*MUJOCO_GL=egl.*libegl1"):
        world.picture(world.uniform())
    if ctypes.util.find_library("EGL") is None:
        pytest.skip("libEGL is not installed: apt-get install libegl1")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    picture = world.picture(world.uniform())
    assert picture.dtype == np.uint8
    assert picture.shape == (480, 480, 3)
    assert picture.std() > 10


def test_a_second_picture_without_a_display_does_not_end_the_process() -> None:
    """OpenGL's loader aborts the interpreter where it fails twice, and a run would be lost with it."""
    pytest.importorskip("mujoco")
    program = """
import warnings
from bilevel_gym.errors import CannotRender
from bilevel_gym.worlds import mujoco_world
warnings.simplefilter("ignore")
world = mujoco_world("Hopper-v5", horizon=20)
for _ in range(2):
    try:
        world.picture(world.uniform(), steps=1)
    except CannotRender as error:
        assert "MUJOCO_GL=egl" in str(error)
print("alive")
"""
    without = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=without, check=False)
    assert done.stdout.strip().endswith("alive"), done.stderr


def test_missing_mujoco_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a user without MuJoCo would see a traceback instead of the command that installs it."""
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(MissingExtra, match=r"bilevel-gym\[mujoco\]"):
        mujoco_world("Hopper-v5")


class Bell(gym.Env[np.ndarray, int]):
    """Ends at each third step; a reset, too, has something to say."""

    observation_space = gym.spaces.Box(0.0, 3.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Silence."""
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {"sound": -1.0}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Louder."""
        self.time += 1
        return np.full(1, self.time, np.float32), 0.0, self.time == 3, False, {"sound": float(self.time)}


def test_terms_of_a_step_through_a_hidden_end_are_its_own() -> None:
    """What a reset reports under the same name must not take the place of what the step before it was worth."""
    world = VectorWorld(Bell, 0.9, horizon=7, endless=True, terms=("sound",))
    played = world.rollout(world.uniform(), trajectories=1, steps=7, generator=seeded(0))
    assert played.terms is not None
    assert played.terms[0, :, 0].tolist() == [1, 2, 3, 1, 2, 3, 1]
    live = VectorWorld(Bell, 0.9, horizon=7, terms=("sound",)).open(2, 0)
    found = [live.step(world.uniform().sample(live.observations, seeded(0))) for _ in range(7)]
    assert [step.terms.tolist() for step in found if step.terms is not None] == [[[n], [n]] for n in (1, 2, 3, 1, 2, 3, 1)]
    assert [bool(step.terminated.all()) for step in found] == [False, False, True, False, False, True, False]
    live.close()


def test_an_id_may_name_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``"module:id"`` is how an environment is found that nobody has imported yet; Gymnasium's own ``spec`` does not read it."""
    (tmp_path / "bells.py").write_text(
        "import gymnasium as gym\nfrom bilevel_gym import wrap_env\n"
        "gym.register('bells/Low-v0', 'gymnasium.envs.classic_control:PendulumEnv', max_episode_steps=60)\n"
        "def make(**options):\n    return wrap_env('bells:bells/Low-v0', preset='tiny', reward='linear', objective='return', **options)\n"
        "gym.register('bells/Task-v0', make, max_episode_steps=5)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert VectorWorld("bells:bells/Low-v0", 0.9, horizon=5).time_limit == 60
    env = make_env("bells:bells/Task-v0", {"horizon": 20})
    assert env.unwrapped.problem.world.horizon == 20
    with pytest.raises(UnknownName, match="bells:bells/High-v0"):
        make_env("bells:bells/High-v0")
    for name in ("bells/Low-v0", "bells/Task-v0"):
        del gym.registry[name]
