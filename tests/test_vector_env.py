"""Many problems as one batch: each member does what a single environment with its seed does."""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from bilevel_gym import agents
from bilevel_gym.envs import BilevelEnv, BilevelVectorEnv
from bilevel_gym.errors import CheckpointError, InvalidAction, InvalidProblem, UnsupportedProblem
from bilevel_gym.hypergradients import PerProblem
from bilevel_gym.registration import CATALOGUE
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.testing.environment import _same
from bilevel_gym.types import Hypergradient, Response
from tests import problems

BATCHED = [name for name, entry in CATALOGUE.items() if entry.batched]


def same(batch, i, single):
    """Member i of a batched observation against a single one, to 1e-10."""
    assert batch.keys() == single.keys()
    for name, value in single.items():
        np.testing.assert_allclose(batch[name][i], value, rtol=0, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("name", BATCHED)
def test_members_equal_single_environments(name):
    """A batch agrees with single environments through seeds, steps, the end of an episode and the autoreset; a leak between members shows."""
    count, horizon = 3, 2
    envs = gym.make_vec(name, num_envs=count, max_episode_steps=horizon)
    singles = [gym.make(name, max_episode_steps=horizon) for _ in range(count)]
    rng = np.random.default_rng(0)
    observations, info = envs.reset(seed=7)
    assert envs.observation_space.contains(observations)
    for i, single in enumerate(singles):
        seen, told = single.reset(seed=7 + i)
        same(observations, i, seen)
        assert info["objective"][i] == pytest.approx(told["objective"], abs=1e-10)
    low, high = envs.action_space.low, envs.action_space.high
    for step in range(horizon):
        x = np.clip(0.3 * rng.standard_normal(low.shape), low, high)
        observations, rewards, terminated, truncated, info = envs.step(x)
        for i, single in enumerate(singles):
            seen, reward, *_ = single.step(x[i])
            same(observations, i, seen)
            assert rewards[i] == pytest.approx(reward, abs=1e-10)
        assert not terminated.any()
        assert truncated.tolist() == [step == horizon - 1] * count
    before = [counters.lower_step for counters in envs.unwrapped.counters]
    observations, rewards, _, truncated, info = envs.step(np.full_like(low, np.nan))  # the action is ignored
    assert before[0] > info["lower_step"][0] >= 0
    assert rewards.tolist() == [0.0] * count
    assert not truncated.any()
    for i, single in enumerate(singles):
        same(observations, i, single.reset()[0])


def test_autoreset_solves_nothing_in_vain():
    """The ignored step costs what a reset costs, and nothing at all where the reset does not solve."""
    envs = gym.make_vec("bilevel/RandomMDP-v0", num_envs=2, max_episode_steps=1, solve_on_reset=False)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    envs.reset(seed=0)
    envs.step(envs.action_space.sample())
    calls = []
    solve = SoftPolicyIteration.solve
    inner = envs.unwrapped
    inner.solver = type("Counting", (), {"start": inner.solver.start, "solve": lambda *a, **k: calls.append(1) or solve(*a, **k)})()
    *_, info = envs.step(envs.action_space.sample())
    assert calls == []
    assert info["lower_step"].tolist() == [0, 0]


def test_seeds_of_numpys_kind_are_seeds():
    """What ``rng.integers(…, size=N)`` draws is the natural list of seeds."""
    envs = BilevelVectorEnv(gym.make("bilevel/RandomMDP-v0", states=3, dimension=2).unwrapped, 2)
    plain = envs.reset(seed=[3, 4])[0]["x"]
    for seed in (np.array([3, 4]), [np.int64(3), 4], np.int64(3), (3, 4)):
        np.testing.assert_array_equal(envs.reset(seed=seed)[0]["x"], plain)


def test_seeds_give_instances_of_their_own():
    """A list of seeds, a number, and no seed: members differ from each other, and a plain reset keeps the instances."""
    envs = gym.make_vec("bilevel/RandomMDP-v0", num_envs=3)
    envs.reset(seed=[4, 9, 4])
    tables = envs.unwrapped.problem.world.transition.clone()
    assert torch.equal(tables[0], tables[2])
    assert not torch.equal(tables[0], tables[1])
    first, _ = envs.reset()
    assert torch.equal(envs.unwrapped.problem.world.transition, tables)
    second, _ = envs.reset(seed=[4, 9, 4])
    assert not np.array_equal(first["x"], second["x"])
    single = gym.make("bilevel/RandomMDP-v0")
    same(second, 1, single.reset(seed=9)[0])
    with pytest.raises(InvalidProblem, match="2 seeds for 3 members"):
        envs.reset(seed=[1, 2])


@pytest.mark.parametrize("recipe", ["exact", "m_sobirl"])
def test_agents_run_on_a_batch_unchanged(recipe):
    """Fifteen steps on three members equal fifteen steps on each alone, an episode's end among them; 1,000 seeds are one run."""
    envs = gym.make_vec("bilevel/RandomMDP-v0", num_envs=3, max_episode_steps=6)
    envs.reset(seed=3)
    seen = []
    together = getattr(agents, recipe)(envs)
    together.learn(15, callback=lambda agent, metrics: seen.append(metrics))
    objectives = []
    for i in range(3):
        env = gym.make("bilevel/RandomMDP-v0", max_episode_steps=6)
        env.reset(seed=3 + i)
        alone = getattr(agents, recipe)(env).learn(15)
        np.testing.assert_allclose(together.x[i], alone.x, rtol=0, atol=1e-10)
        objectives.append(float(env.unwrapped.evaluation.value))
    assert seen[-1]["objective"] == pytest.approx(np.mean(objectives), abs=1e-10)
    assert seen[-1]["upper_step"] == 15


@pytest.mark.parametrize("recipe", ["sobirl", "drlhf"])
def test_sampled_agents_run_member_by_member(recipe):
    """A sampled estimator on a batch gives each member what it would get alone, samples, critic state and all."""

    def made():
        return BilevelEnv(problems.preference(0, pairs=8), SoftPolicyIteration())

    envs = BilevelVectorEnv(made(), 2)
    envs.reset(seed=5)
    options = {"updates_per_step": 2, "warmup_updates": 1, "batch": None}
    together = getattr(agents, recipe)(envs, **options).learn(4)
    for i in range(2):
        env = made()
        env.reset(seed=5 + i)
        alone = getattr(agents, recipe)(env, **options).learn(4)
        np.testing.assert_allclose(together.x[i], alone.x, rtol=0, atol=1e-9)
        assert vars(envs.counters[i]) == vars(env.counters)


def test_state_goes_back_exactly():
    """get_state and set_state hold all members: the same step afterwards gives the same numbers."""
    for make in (lambda: gym.make_vec("bilevel/RandomMDP-v0", num_envs=2).unwrapped, lambda: BilevelVectorEnv(sampled(), 2)):
        envs = make()
        envs.reset(seed=1)
        x = envs.action_space.sample()
        envs.step(x)
        state = envs.get_state()
        first = envs.step(x)
        other = make()
        other.set_state(state)
        again = other.step(x)
        np.testing.assert_array_equal(first[1], again[1])
        for name, value in first[0].items():
            np.testing.assert_array_equal(value, again[0][name])
        with pytest.raises(CheckpointError, match="2 members"):
            BilevelVectorEnv(sampled(), 3).set_state(state)


def test_diagnostics_that_only_some_members_have():
    """One member may know nothing of its loss yet, and say less: that is no error, and nothing that the others' numbers are divided by."""

    class Telling:
        def supports(self, problem):
            return None

        def __call__(self, oracle, x, response, evaluation, state):
            return Hypergradient(x, x, 0.0 * x, {"told": state} if state else {}), state

    oracle = SimpleNamespace(members=[SimpleNamespace(oracle=None, response=None, evaluation=None) for _ in range(3)])
    for states, stats in (([0.0, 2.0, 4.0], {"told": 3.0}), ([0.0, 0.0, 0.0], {})):
        found, _ = PerProblem(Telling())(oracle, torch.ones(3, 2), None, None, states)
        assert found.stats == stats
        assert found.value.shape == (3, 2)


def sampled():
    """A single environment whose objective is a mean over samples."""
    return BilevelEnv(problems.preference(0, pairs=8), SoftPolicyIteration())


def test_refusals_change_nothing():
    """A bad x, option or size is named, and the batch stands where it stood."""
    envs = BilevelVectorEnv(sampled(), 2)
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(np.zeros(envs.action_space.shape))
    with pytest.raises(InvalidProblem, match="nothing yet"):
        envs.reset(options={"keep": True})
    envs.reset(seed=0)
    before = envs.get_state()
    bad = np.zeros(envs.action_space.shape)
    bad[1, 2] = np.nan
    with pytest.raises(InvalidAction, match=r"x\[1, 2\] = nan is not a number"):
        envs.step(bad)
    with pytest.raises(InvalidAction, match="shape"):
        envs.step(bad[0])
    with pytest.raises(InvalidProblem, match="unknown reset options"):
        envs.reset(options={"seed": 1})
    after = envs.get_state()
    assert before.keys() == after.keys()
    assert torch.equal(before["_x"], after["_x"])
    assert all(
        torch.equal(a["state"], b["state"])
        for a, b in zip(*(state["streams"]["fields"]["generators"] for state in (before, after)), strict=True)
    )
    with pytest.raises(InvalidProblem, match="num_envs is 0"):
        BilevelVectorEnv(sampled(), 0)
    for count in (2.5, "a", True):
        with pytest.raises(InvalidProblem, match=f"num_envs is {count!r}: it must be a whole number"):
            BilevelVectorEnv(sampled(), count)
    for length, words in ((0, "one step at least"), (-1, "one step at least"), ("a", "a whole number")):
        with pytest.raises(InvalidProblem, match=f"max_episode_steps is {length!r}: .*{words}"):
            BilevelVectorEnv(sampled(), 2, max_episode_steps=length)
    for seed in (1.5, {1: 2, 3: 4}, "ab", [1, 2.5], ["a", "b"]):
        with pytest.raises(InvalidProblem, match=r"seed is .*whole number, or a list"):
            envs.reset(seed=seed)
    with pytest.raises(UnsupportedProblem, match="vectorization_mode='sync'"):
        BilevelVectorEnv(gym.make("bilevel/PendulumPreference-v0", preset="tiny").unwrapped, 2)


def test_resets_that_fail_change_nothing():
    """Ctrl-C in a reset, or in the step that begins an episode anew, must leave instances, x and the streams of every member."""
    make = lambda: BilevelVectorEnv(gym.make("bilevel/RandomMDP-v0", states=4, dimension=3).unwrapped, 2, max_episode_steps=1)  # noqa: E731
    straight, troubled = make(), make()
    for envs in (straight, troubled):
        envs.reset(seed=4)
        envs.step(np.zeros((2, 3)))
    solver = troubled.solver

    class Interrupted(type(solver)):
        def solve(self, *args, **kwargs):
            raise KeyboardInterrupt

    troubled.solver = Interrupted()
    for trouble in (lambda: troubled.reset(seed=9), lambda: troubled.reset(), lambda: troubled.step(np.zeros((2, 3)))):
        with pytest.raises(KeyboardInterrupt):
            trouble()
    troubled.solver = solver
    assert _same(straight.get_state(), troubled.get_state())
    assert _same(straight.step(np.zeros((2, 3))), troubled.step(np.zeros((2, 3))))
    assert _same(straight.reset(seed=[None, 3]), troubled.reset(seed=[None, 3]))


def test_every_episode_has_its_length():
    """A count that is not begun anew would make every step after the first episode a reset, with reward 0 and nothing solved."""
    envs = BilevelVectorEnv(gym.make("bilevel/RandomMDP-v0", states=3, dimension=2).unwrapped, 2, max_episode_steps=2)
    envs.reset(seed=0)
    seen = [envs.step(np.ones((2, 2))) for _ in range(7)]
    assert [bool(truncated.all()) for _, _, _, truncated, _ in seen] == [False, True, False, False, True, False, False]
    assert [bool((reward == 0).all()) for _, reward, *_ in seen] == [False, False, True, False, False, True, False]


def test_each_member_has_a_queue_of_its_own():
    """Members that shared a memory would train on the answers of another problem."""

    def make():
        return BilevelEnv(problems.preference_variant(0, pairs=8, capacity=16), SoftPolicyIteration())

    envs = BilevelVectorEnv(make(), 3)
    envs.reset(seed=5)
    x = envs.x.numpy()
    envs.step(x)
    for i, member in enumerate(envs.members()):
        alone = make()
        alone.reset(seed=5 + i)
        alone.step(x[i])
        mine, expected = (one.memory.content for one in (member.evaluation, alone.evaluation))
        assert torch.equal(mine.states, expected.states)
        assert torch.equal(mine.outcome, expected.outcome)
        again, beside = (one.oracle.evaluate(alone.x, alone.response).value for one in (member, alone))
        assert torch.equal(again, beside)


def test_a_step_that_fails_at_the_last_member_changes_no_draw():
    """The members before it have drawn already: their streams must go back, or the next step is another one."""
    envs = BilevelVectorEnv(sampled(), 3)
    envs.reset(seed=0)
    before, look = envs.get_state(), envs._look_at

    def failing(i, x, response):
        if i == 2:
            raise KeyboardInterrupt
        return look(i, x, response)

    envs._look_at = failing
    with pytest.raises(KeyboardInterrupt):
        envs.step(envs.x.numpy())
    assert _same(before, envs.get_state())


def test_a_solver_draws_from_the_stream_of_solves():
    """From that of what agents ask on the side, an estimate would change what the follower does."""
    seen = []

    class Drawing(SoftPolicyIteration):
        def solve(self, *args, generator=None, **options):
            seen.append(generator)
            return super().solve(*args, generator=generator, **options)

    envs = BilevelVectorEnv(BilevelEnv(problems.quadratic(0), Drawing()), 2)
    envs.reset(seed=0)
    assert seen[0] is envs.streams.generators[0]


def test_a_solver_that_gives_a_policy_alone():
    """In a batch there is no response without V and Q, and an own solver must learn it in words."""

    class Bare(SoftPolicyIteration):
        def start(self, problem):
            return Response(super().start(problem).policy)

    envs = BilevelVectorEnv(BilevelEnv(problems.quadratic(0), Bare()), 2)
    with pytest.raises(InvalidProblem, match="a batch needs value and q"):
        envs.reset(seed=0)


def test_a_state_that_cannot_be_taken_changes_nothing():
    """Half of another state in place of one's own would go on, and be nobody's."""
    envs = BilevelVectorEnv(sampled(), 2)
    envs.reset(seed=0)
    before = envs.get_state()
    envs.step(envs.x.numpy())
    now = envs.get_state()
    with pytest.raises(CheckpointError):
        envs.set_state({**before, "_memories": {"__class__": "os:system", "fields": {}}})
    assert _same(now, envs.get_state())


def test_pictures_of_all_members():
    """render gives one picture, or one line, for each member."""
    envs = gym.make_vec("bilevel/RandomMDP-v0", num_envs=2, render_mode="rgb_array")
    envs.reset(seed=0)
    assert [picture.dtype for picture in envs.render()] == [np.uint8] * 2
    envs = gym.make_vec("bilevel/RandomMDP-v0", num_envs=2, render_mode="ansi")
    envs.reset(seed=0)
    assert "objective" in envs.render()[1]
