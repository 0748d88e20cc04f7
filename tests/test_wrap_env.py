"""Bilevel tasks out of other people's environments."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import PendulumEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel_gym import agents, envs, wrap_env
from bilevel_gym.errors import BilevelError, CannotRender, InvalidProblem, UnknownName, UnsupportedProblem
from bilevel_gym.objectives import PreferenceObjective, SampledReturn
from bilevel_gym.rewards import Box, CNNReward, DiscreteMLPReward, EnvironmentReward, FeatureReward, MLPReward, RewardTerms
from bilevel_gym.solvers import SAC, DiscreteSAC
from bilevel_gym.testing import EXPECTED_ADVICE, check_bilevel_env
from bilevel_gym.types import Trajectory
from bilevel_gym.worlds import AtariWorld, VectorWorld

TINY = partial(wrap_env, preset="tiny")


class Tiles(gym.Env[np.ndarray, int]):
    """Two grey pictures of noise, of which the newer is shown brighter where the action was 1."""

    observation_space = gym.spaces.Box(0, 255, (2, 60, 60), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Two pictures."""
        super().reset(seed=seed)
        self.seen = self.np_random.integers(0, 128, (2, 60, 60), np.uint8)
        return self.seen.copy(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """The next one."""
        self.seen = np.stack([self.seen[1], self.np_random.integers(0, 128, (60, 60), np.uint8) + 100 * np.uint8(action)])
        return self.seen.copy(), float(action), False, False, {"bright": float(action), "dark": 1.0 - action}


def minigrid() -> gym.Env[Any, Any]:
    """A grid, seen as a flat list of numbers; its mission, a text, is left out."""
    pytest.importorskip("minigrid")
    from minigrid.wrappers import ImgObsWrapper

    return gym.wrappers.FlattenObservation(ImgObsWrapper(gym.make("MiniGrid-Empty-5x5-v0")))


def atari() -> Any:
    """Pong."""
    pytest.importorskip("ale_py")
    return TINY(
        "ALE/Pong-v5",
        horizon=12,
        solver=DiscreteSAC(steps=8, update_every=8, updates_per_step=0.125, learning_starts=4, batch_size=2, hidden=(4,)),
    )


def cheetah() -> Any:
    """Shares of the two terms of HalfCheetah's reward, for the designer's own."""
    pytest.importorskip("mujoco")
    return TINY(
        "HalfCheetah-v5", reward="terms", terms=("reward_forward", "reward_ctrl"), objective=lambda played: played.terms[..., 0].sum(-1)
    )


def speed(states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Three features of a pendulum."""
    return torch.stack([states[..., 0], -states[..., 2].square(), -actions[..., 0].square()], -1)


SAMPLES: dict[str, Any] = {
    "FrozenLake": lambda: TINY("FrozenLake-v1"),
    "CartPole": lambda: TINY("CartPole-v1", reward="linear", objective="return"),
    "Pendulum": lambda: TINY("Pendulum-v1", reward=speed, objective="return"),
    "HalfCheetah": cheetah,
    "Pong": atari,
    "MiniGrid": lambda: TINY(minigrid, reward="linear", objective="return", horizon=20),
    "pictures": lambda: TINY(Tiles),
}
"""One of each kind."""


@pytest.mark.parametrize("name", SAMPLES)
def test_wrapped_environments_keep_the_contract(name: str) -> None:
    """Gymnasium's and our checks, on every kind of environment that people have."""
    env = SAMPLES[name]()
    check_bilevel_env(env)
    env.close()


@pytest.mark.parametrize("name", SAMPLES)
def test_wrapped_environments_are_stable_baselines(name: str) -> None:
    """Every agent of Stable-Baselines3 must be able to act on them."""
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    env = SAMPLES[name]()
    with warnings.catch_warnings():
        for advice in EXPECTED_ADVICE:
            warnings.filterwarnings("ignore", message=advice)
        checker.check_env(env)
    env.close()


def test_terms_of_pictures_reach_the_follower() -> None:
    """Without it a task of pixels could not weigh its named terms: its replay of single frames would drop them."""
    env = TINY(Tiles, reward="terms", terms=("bright", "dark"), objective=lambda played: played.terms[..., 0].sum(-1))
    env.reset(seed=0)
    env.step(env.unwrapped.x.numpy())
    batch = env.unwrapped.response.state.replay.sample(20, torch.Generator().manual_seed(0))
    assert torch.equal(batch.terms, torch.stack([batch.actions, 1 - batch.actions], -1).float())


def test_the_registered_task_is_this_one() -> None:
    """The ids and ``wrap_env`` must not drift apart: same seeds, same numbers."""
    runs = []
    for env in (
        gym.make("bilevel/PendulumPreference-v0", preset="tiny", teacher={"mistake": 0.1}),
        TINY("Pendulum-v1", teacher={"mistake": 0.1}),
    ):
        env.reset(seed=3)
        runs.append(env.step(env.unwrapped.x.numpy())[1:])
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, MLPReward),
        ({"env": "CartPole-v1"}, DiscreteMLPReward),
        ({"env": Tiles}, CNNReward),
        ({"reward": "linear"}, FeatureReward),
        ({"reward": "environment"}, EnvironmentReward),
        ({"env": "HalfCheetah-v5", "reward": "terms", "terms": ["reward_ctrl"]}, RewardTerms),
    ],
)
def test_rewards_by_name(options: dict[str, Any], kind: type) -> None:
    """A name must bring the model that it says, and the follower that the actions want."""
    if options.get("env") == "HalfCheetah-v5":
        pytest.importorskip("mujoco")
    env = TINY(**{"env": "Pendulum-v1", **options})
    assert type(env.problem.reward) is kind
    assert type(env.solver) is (DiscreteSAC if hasattr(env.problem.world, "action_count") else SAC)


def test_linear_rewards_are_linear() -> None:
    """A feature that is lost, or one action taken for another, would make another reward; a population is its members one by one."""
    task = TINY("CartPole-v1", reward="linear").problem
    states, actions = torch.randn(5, 7, 4), torch.randint(2, (5, 7))
    x = torch.arange(6.0)
    expected = states @ x[:4] + x[4 + actions]
    torch.testing.assert_close(task.reward.along(x, states, actions), expected)
    other = TINY("Pendulum-v1", reward=speed).problem.reward
    states, actions = torch.randn(5, 7, 3), torch.randn(5, 7, 1)
    people = torch.randn(4, 3)
    each = torch.stack([other.along(one, states, actions) for one in people])
    torch.testing.assert_close(each, torch.einsum("...k,bk->b...", speed(states, actions), people))
    torch.testing.assert_close(other.along(people, states[None], actions[None]), each)
    assert torch.autograd.gradcheck(lambda leaf: other.along(leaf, states.double(), actions.double()), people[0].double().requires_grad_())
    pixels = TINY(Tiles, reward=lambda states, actions: states.flatten(-3).float().mean(-1, keepdim=True) / 255)
    pixels.reset(seed=0)
    agents.drlhf(pixels, updates_per_step=1, warmup_updates=0, batch=None).learn(1)


def test_objectives_by_name_and_by_function() -> None:
    """The designer's function, the true return and comparisons are three different f, and ends are shown to the first two alone."""

    def fallen(played: Trajectory) -> torch.Tensor:
        return -played.alive.sum(-1).float()

    shown = TINY("CartPole-v1", reward="linear", objective=fallen, horizon=60)
    shown.reset(seed=0)
    assert 0 < float(shown.evaluation.value) < 60
    assert not shown.problem.world.endless
    truth = TINY("CartPole-v1", reward="linear", objective="return", horizon=60)
    truth.reset(seed=0)
    assert float(truth.evaluation.value) == -float(shown.evaluation.value)
    assert -float(truth.evaluation.value) == truth.evaluation.metrics["true_return"]
    hidden = TINY("CartPole-v1", objective="preference")
    assert isinstance(hidden.problem.objective, PreferenceObjective)
    assert hidden.problem.world.endless
    assert TINY("CartPole-v1", objective=hidden.problem.objective).problem.world.endless
    assert TINY("CartPole-v1", objective=SampledReturn(), endless=True).problem.world.endless
    assert TINY("CartPole-v1", objective={"length": 7}, members=2).problem.objective.length == 7
    assert TINY("CartPole-v1", rationality=2.5, teacher={"mistake": 0.5}).problem.objective.teacher.rationality == 2.5


def test_sobirl_moves_a_designers_return() -> None:
    """Bring your own would be a promise if no agent descended it: Δ of the designer's return in the direction of ∇̂φ, end to end."""
    env = TINY("Pendulum-v1", reward=speed, objective="return", horizon=20)
    env.reset(seed=0)
    agent = agents.sobirl(env, updates_per_step=2, warmup_updates=0)
    agent.learn(3)
    assert agent.hypergradient is not None
    assert float(agent.hypergradient.implicit.norm()) > 0


def test_constructors_and_vectors_are_played_alike() -> None:
    """An id, a function and a vector environment are three names of one task: the same episodes, without the time limit inside."""
    kinds = [
        "Pendulum-v1",
        PendulumEnv,
        partial(gym.make, "Pendulum-v1"),
        lambda: gym.wrappers.TransformReward(gym.make("Pendulum-v1", max_episode_steps=7), lambda reward: reward),
        gym.vector.SyncVectorEnv([partial(gym.make, "Pendulum-v1")] * 3),
        gym.vector.AsyncVectorEnv([partial(gym.make, "Pendulum-v1")] * 2),
    ]
    seen = []
    for kind in kinds:
        env = TINY(kind, horizon=12, objective="return")
        played = env.problem.world.rollout(
            env.problem.world.uniform(), trajectories=2, steps=12, generator=torch.Generator().manual_seed(0)
        )
        assert bool(played.alive.all())
        seen.append(played.states)
        assert env.solver.num_envs == (kind.num_envs if isinstance(kind, gym.vector.VectorEnv) else 1)
        env.close()
        if isinstance(kind, gym.vector.VectorEnv):
            kind.close()
    assert all(torch.equal(states, seen[0]) for states in seen)
    assert env.problem.world.vectorization == "async"
    native = gym.make_vec("CartPole-v1", num_envs=4, vectorization_mode="vector_entry_point", sutton_barto_reward=True)
    copied = TINY(native)
    assert copied.solver.num_envs == 4
    assert dict(copied.problem.world.env_kwargs)["sutton_barto_reward"] is True
    native.close()


def test_horizons() -> None:
    """An episode is as long as asked for, or as the time limit, which is found inside of what a function makes, or as the preset's."""
    limited = lambda: gym.make("CartPole-v1", max_episode_steps=30)  # noqa: E731
    assert VectorWorld(limited, 0.9, horizon=5).time_limit == 30
    assert TINY(limited).problem.world.horizon == 30
    assert TINY(limited, horizon=70).problem.world.horizon == 70
    assert TINY("CartPole-v1").problem.world.horizon == 50
    assert TINY(Tiles).problem.world.horizon == 40


def test_the_authors_settings_come_with_their_preset() -> None:
    """On Atari the authors' preset means their reward network and clipped rewards, whoever asks for it."""
    pytest.importorskip("ale_py")
    env = wrap_env("ALE/BeamRider-v5", preset="aistats2025", env_kwargs={"sticky": 0.25})
    world, reward = env.problem.world, env.problem.reward
    assert isinstance(world, AtariWorld)
    assert (world.game, world.sticky, world.clip_rewards, world.horizon) == ("BeamRider", 0.25, True, 1000)
    assert reward.squash == "clip"
    assert envs.PIXELS["aistats2025"].discrete == env.solver


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TINY(gym.make("CartPole-v1")), "give what makes one"),
        (lambda: TINY(7), "no id and no function"),
        (lambda: TINY(lambda: 0), "made a int"),
        (lambda: TINY(gym.wrappers.vector.FlattenObservation(gym.make_vec("CartPole-v1", num_envs=1))), "or is wrapped"),
        (lambda: TINY(lambda: gym.wrappers.ClipAction(gym.make("Pendulum-v1"))), "bounds that make sense"),
        (lambda: TINY(lambda: actions(gym.spaces.MultiDiscrete([2, 3]))), "unravel_index"),
        (lambda: TINY(lambda: actions(gym.spaces.Box(-1, 1, (2, 2)))), "turns its actions into"),
        (lambda: TINY(lambda: observations(gym.spaces.Box(0, 255, (40, 40, 3), np.uint8))), "FrameStackObservation"),
        (lambda: TINY(lambda: observations(gym.spaces.Text(4))), "FlattenObservation"),
        (lambda: TINY(lambda: observations(gym.spaces.Box(0, 255, (2, 60, 60), np.uint8))), "no reward network"),
        (lambda: TINY(lambda: observations(gym.spaces.Box(0, 255, (2, 40, 40), np.uint8)), reward=Box(1, 1.0)), "CnnPolicy"),
        (lambda: TINY(Tiles, reward="linear"), "no linear features"),
        (lambda: TINY("Pendulum-v1", reward=lambda states, actions: states[..., 0]), r"must be \[1, D\]"),
        (lambda: TINY("Pendulum-v1", reward="terms"), "reports no terms"),
        (lambda: TINY("ALE/Pong-v5", terms=("score",)), "do not report"),
        (lambda: TINY("Pendulum-v1", horizon=3), "shorter than a fragment"),
        (lambda: TINY("Pendulum-v1", reward="netwrok"), "netwrok"),
        (lambda: TINY("Pendulum-v1", objective="preferences"), "choose one of: preference, return"),
        (lambda: wrap_env("Pendulum-v1", preset="huge"), "unknown preset"),
        (lambda: TINY("Pendulum-v1", objective="return", budget=3), "budget are for objective='preference'"),
        (lambda: TINY("Pendulum-v1", reward="linear", members=3), "members is 3"),
        (lambda: TINY("Pendulum-v1", horizn=3), "horizn"),
    ],
)
def test_what_cannot_be_wrapped_says_what_to_do(make: Any, words: str) -> None:
    """A person who comes with an environment that does not fit must learn which wrapper helps."""
    with pytest.raises((InvalidProblem, UnknownName), match=words):
        make()


def actions(space: gym.Space[Any]) -> gym.Env[Any, Any]:
    """Pendulum with other actions."""
    return gym.wrappers.TransformAction(gym.make("Pendulum-v1"), lambda action: action, space)


def observations(space: gym.Space[Any]) -> gym.Env[Any, Any]:
    """Pendulum with other observations."""
    return gym.wrappers.TransformObservation(gym.make("Pendulum-v1"), lambda seen: seen, space)


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from(["FrozenLake-v1", "CartPole-v1", "Pendulum-v1", "Blackjack-v1", Tiles]),
    st.sampled_from(["network", "linear", "environment", "terms"]),
    st.sampled_from(["preference", "return", {"length": 5, "cut": "start"}, lambda played: played.alive.sum(-1)]),
    st.sampled_from([None, True, False]),
)
def test_any_combination_plays_or_says_why(env: Any, reward: Any, objective: Any, endless: bool | None) -> None:
    """A combination that nobody has tried must not end in an error from deep inside, or in a number that is none."""
    try:
        outer = TINY(env, reward=reward, objective=objective, endless=endless, horizon=12)
    except InvalidProblem:
        assert reward == "terms" or (reward == "linear" and env is Tiles)
        return
    outer.reset(seed=0)
    assert np.isfinite(agents.sobirl(outer, updates_per_step=1, warmup_updates=0).learn(1).x.numpy()).all()
    assert np.isfinite(outer.step(outer.x.numpy())[1])


def test_terms_that_nobody_reports() -> None:
    """A misspelt term must end in the list of those that there are, at the first step."""
    env = TINY("Pendulum-v1", reward="terms", terms=("cost",))
    with pytest.raises(InvalidProblem, match="do not report"):
        env.reset(seed=0)


def test_a_warm_start_of_another_kind_of_world() -> None:
    """A follower given by hand that does not take the actions must say so, and not with a shape."""
    with pytest.raises(UnsupportedProblem, match="continuous actions"):
        TINY("CartPole-v1", solver=SAC(steps=50)).reset(seed=0)


def test_pictures_of_the_follower() -> None:
    """A function without ``render_mode`` cannot be asked for pictures, and must say what it lacks; one with it draws."""
    pytest.importorskip("pygame")
    drawn = TINY(PendulumEnv, render_mode="rgb_array")
    drawn.reset(seed=0)
    assert drawn.render().ndim == 3
    blind = TINY(lambda: PendulumEnv(), render_mode="rgb_array")
    blind.reset(seed=0)
    with pytest.raises(CannotRender, match="argument render_mode"):
        blind.render()


def test_a_budget_of_its_own_episodes() -> None:
    """The outer environment has no time limit; Gymnasium's own goes around it."""
    env = gym.wrappers.TimeLimit(TINY("Pendulum-v1"), 2)
    env.reset(seed=0)
    assert [env.step(env.unwrapped.x.numpy())[3] for _ in range(2)] == [False, True]
    assert replace(env.unwrapped.problem) == env.unwrapped.problem


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reward": None}, "reward is None: give a name, a function or an object"),
        ({"objective": 3}, "objective is 3"),
        ({"objective": SampledReturn}, "objective is .*SampledReturn"),
        ({"terms": "near"}, "terms is 'near': it must be a list of names"),
        ({"rewards": "linear"}, "argument 'rewards'; choose one of: .*reward,"),
        ({"reward": lambda states, actions: 1.0}, "features are float objects"),
        ({"solver": SAC}, "solver is .*give an object"),
        ({"terms": 3}, "terms is 3: it must be a list of names"),
        ({"terms": [3]}, "terms is .3.: it must be a list of names"),
        ({"endless": "no"}, "endless is 'no': it must be True or False, or None"),
        ({"reward": lambda: 1}, r"the function of features is called with \(states, actions\), and takes \(\)"),
        ({"objective": lambda: 1}, r"the function of trajectories is called with \(played\), and takes \(\)"),
        ({"objective": "preference", "teacher": "a"}, "teacher is 'a': it must be a mapping"),
        ({"objective": "preference", "experts": 3}, "experts is 3: it must be a list of names"),
        ({"env_kwargs": {"size": 3}}, "Pendulum-v1 cannot be made with {'size': 3}: .*size"),
        ({"env": lambda size: gym.make("Pendulum-v1")}, r"which makes the environment \(env_kwargs gives it more\), is called with \(\)"),
        ({"env": lambda: gym.make("Pendulum-v1"), "env_kwargs": {"size": 3}}, r"called with \(size=…\), and takes \(\)"),
    ],
)
def test_parts_that_are_none_are_refused_at_once(options: dict[str, Any], words: str) -> None:
    """Without it None is taken for the default, a class for an object of it, and the error comes steps later from elsewhere."""
    with pytest.raises(BilevelError, match=words):
        wrap_env(**{"env": "Pendulum-v1", "preset": "tiny", "objective": "return", **options})
