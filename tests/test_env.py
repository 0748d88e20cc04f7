"""The outer environment: the contract of every registered id, refusals, resets, and that x arrives."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec

import bilevel_gym
from bilevel_gym import BilevelEnv, agents
from bilevel_gym.envs import BilevelVectorEnv
from bilevel_gym.errors import CheckpointError, InvalidAction, InvalidProblem, MissingExtra, UnknownName, UnsupportedProblem
from bilevel_gym.objectives import QuadraticObjective
from bilevel_gym.registration import CATALOGUE
from bilevel_gym.solvers import SoftPolicyIteration, SoftValueIteration
from bilevel_gym.testing import EXPECTED_ADVICE, check_bilevel_env
from bilevel_gym.testing.environment import _same
from bilevel_gym.types import Evaluation
from tests import problems
from tests.small import small_agent


def deep(name):
    """Whether the follower plays in a simulator."""
    return CATALOGUE[name].simulated


def make(name, **options):
    """An id at its smallest."""
    return gym.make(name, **({"preset": "tiny"} if deep(name) else {}), **options)


def make_reset(name):
    """An id that has been reset, without wrappers."""
    env = make(name).unwrapped
    env.reset(seed=0)
    return env


@pytest.fixture(params=list(CATALOGUE))
def name(request):
    """Every registered id."""
    return request.param


def test_gymnasium_and_bilevel_checks(name):
    """Every id keeps Gymnasium's contract and ours: reproducible, x arrives, refusals change nothing, state goes back."""
    check_bilevel_env(make(name), skip_render_check=deep(name))


def test_stable_baselines_check(name):
    """Every id can be handed to Stable-Baselines3."""
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        for advice in EXPECTED_ADVICE:
            warnings.filterwarnings("ignore", message=advice)
        sb3.check_env(make(name).unwrapped)


def test_spec_round_trip(name):
    """An environment rebuilt from its JSON spec behaves the same: nothing may hide in live objects."""
    env = make(name)
    text = env.spec.to_json()
    json.loads(text)
    other = gym.make(EnvSpec.from_json(text))
    first, second = env.reset(seed=3), other.reset(seed=3)
    x = env.action_space.sample()
    for (a, info_a), (b, info_b) in ((first, second), ((lambda s: (s[0], s[4]))(env.step(x)), (lambda s: (s[0], s[4]))(other.step(x)))):
        assert info_a == info_b
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_two_seeded_runs_are_identical(name):
    """Three steps of training under one seed must be the same numbers twice, with whatever runs in between."""
    runs = []
    for _ in range(2):
        env = make(name)
        env.reset(seed=11)
        agent = small_agent(CATALOGUE[name].agents[0], name, env)
        agent.learn(3)
        runs.append((agent.x.clone(), env.unwrapped.evaluation.value.clone(), dict(env.unwrapped.evaluation.metrics)))
        torch.rand(5)
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert runs[0][2] == runs[1][2]


def test_different_seeds_differ(name):
    """A seed that is ignored gives the same instance, or the same start, twice."""
    env = make(name)
    env.reset(seed=0)
    x = env.unwrapped.x.clone()
    env.reset(seed=1)
    assert not torch.equal(x, env.unwrapped.x)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.zeros(99), r"shape \(99,\)"),
        (np.full(100, np.nan), "not a number"),
        (np.full(100, 10.5), r"outside \[-10, 10\]"),
        (np.full(100, np.inf), "outside"),
        (["a"] * 100, "numbers"),
        (np.zeros((100, 1)), "shape"),
        (None, "numbers"),
        ([10**400] * 100, "numbers"),
        (["1"] * 100, "numbers"),
        (np.full(100, 1j), "numbers"),
        (np.full(100, 10 + 1e-12), r"10\.000000000001"),
    ],
)
def test_bad_x_is_refused_and_changes_nothing(bad, words):
    """A refused action names what is wrong and leaves response, memory, counters and generators as they were."""
    env = make("bilevel/RandomMDP-v0")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    before = env.unwrapped.get_state()
    with pytest.raises(InvalidAction, match=words):
        env.step(bad)
    after = env.unwrapped.get_state()
    np.testing.assert_array_equal(before["x"], after["x"])
    assert before["counters"] == after["counters"]
    np.testing.assert_array_equal(before["response"]["fields"]["q"], after["response"]["fields"]["q"])
    np.testing.assert_array_equal(before["generator"]["state"], after["generator"]["state"])


def test_an_interrupted_step_changes_nothing():
    """Ctrl-C or an error inside the solve must leave x, response and counters as they were."""

    class Interrupted(SoftValueIteration):
        def solve(self, *args, **kwargs):
            raise KeyboardInterrupt

    problem = problems.quadratic(0)
    env = BilevelEnv(problem, SoftValueIteration(sweeps=3))
    env.reset(seed=0)
    x, response = env.x, env.response
    env.solver = Interrupted(sweeps=3)
    with pytest.raises(KeyboardInterrupt):
        env.step(np.zeros(problem.dimension))
    assert env.x is x
    assert env.response is response
    assert env.counters.upper_step == 0


def test_a_step_that_fails_late_changes_no_draw():
    """An error in the evaluation, after the follower has drawn numbers, must not change what the next step draws."""
    env = make("bilevel/PendulumPreference-v0").unwrapped
    env.reset(seed=0)
    before = env.get_state()
    objective = env.problem.objective

    class Failing:
        def evaluate(self, problem, x, response, memory, generator):
            torch.rand(3, generator=generator)
            raise KeyboardInterrupt

    env.problem = replace(env.problem, objective=Failing())
    with pytest.raises(KeyboardInterrupt):
        env.step(env.x.numpy())
    env.problem = replace(env.problem, objective=objective)
    after = env.get_state()
    assert torch.equal(before["generator"]["state"], after["generator"]["state"])
    assert before["counters"] == after["counters"]
    assert torch.equal(before["x"], after["x"])


def test_a_reset_that_fails_changes_nothing():
    """Ctrl-C in the solve of a reset must leave the instance, x, every random stream and the counters: the episode can go on."""

    class Interrupted(SoftValueIteration):
        def solve(self, *args, **kwargs):
            raise KeyboardInterrupt

    def episode(env):
        env.reset(seed=1)
        yield
        env.step(np.zeros(100))
        yield env.get_state(), env.reset()[0]["x"], env.unwrapped.np_random_seed

    straight, troubled = (bilevel_gym.BilevelEnv(bilevel_gym.envs.draw_random_mdp, SoftValueIteration(sweeps=3)) for _ in range(2))
    runs = [episode(straight), episode(troubled)]
    for run in runs:
        next(run)
    solver, troubled.solver = troubled.solver, Interrupted(sweeps=3)
    for options in ({"seed": 5}, {}, {"options": {"x": np.zeros(100)}}, {"options": {"x": np.zeros(100), "keep": True}}):
        with pytest.raises(KeyboardInterrupt):
            troubled.reset(**options)
    troubled.solver = solver
    assert _same(*(next(run) for run in runs))
    fresh = BilevelEnv(problems.quadratic(0), Interrupted(sweeps=3))
    with pytest.raises(KeyboardInterrupt):
        fresh.reset(seed=5)
    assert fresh._np_random is None  # a reset without a seed must not go on in the stream of one that was not


class Answering(SoftPolicyIteration):
    """Gives what it was told to give."""

    def __init__(self, **answers):
        super().__init__()
        object.__setattr__(self, "answers", answers)

    def start(self, problem):
        """As told."""
        return self.answers.get("start", super().start(problem))

    def solve(self, *args, **kwargs):
        """As told."""
        return self.answers.get("solve", super().solve(*args, **kwargs))


@pytest.mark.parametrize("call", ["start", "solve"])
def test_a_solver_that_answers_nothing_is_told_what_is_missing(call):
    """A forgotten return is the first mistake in an own solver, and would show as a None without a policy, deep inside."""
    for env in (
        BilevelEnv(problems.quadratic(0), Answering(**{call: None})),
        BilevelVectorEnv(BilevelEnv(problems.quadratic(0), Answering(**{call: None})), 2),
    ):
        with pytest.raises(InvalidProblem, match=rf"Answering\.{call} returned None: it must return a bilevel_gym\.types\.Response"):
            env.reset(seed=0)
        assert env.x is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, r"evaluate returned None: it must return \(bilevel_gym.types.Evaluation"),
        (Evaluation(torch.tensor(1.0)), "evaluate returned a Evaluation"),
        ((1.0, None), "evaluate returned a tuple"),
        ((Evaluation(1.0), None), "the objective's value is a float: it must be a tensor"),
        ((Evaluation(torch.ones(2)), None), r"the objective has shape \(2,\)"),
        ((Evaluation(torch.tensor(torch.nan)), None), "the objective is not finite"),
    ],
)
def test_an_objective_that_answers_something_else_is_told_what_is_missing(answer, words):
    """The same of an own objective, whose answer is a pair."""

    class Own(QuadraticObjective):
        def evaluate(self, *args):
            return answer

    problem = replace(problems.quadratic(0), objective=Own())
    with pytest.raises(InvalidProblem, match=words):
        BilevelEnv(problem, SoftPolicyIteration()).reset(seed=0)


def test_solvers_that_cannot_be_called_are_refused():
    """At once, with what they are called with, and not with a TypeError from inside of a reset."""

    class Short:
        def start(self, problem):
            raise NotImplementedError

        def solve(self, problem, x):
            raise NotImplementedError

    for problem in (None, object(), lambda rng: None):
        with pytest.raises(InvalidProblem, match=r"problem is .*give a BilevelProblem, or a function that draws one"):
            BilevelEnv(problem, SoftPolicyIteration())
    for solver, words in (
        (Short(), r"Short\.solve is called with \(problem, x, warm=…, budget=…, generator=…\)"),
        (SoftPolicyIteration, "give an object"),
    ):
        with pytest.raises(InvalidProblem, match=words):
            BilevelEnv(problems.quadratic(0), solver)


def test_an_environment_says_what_it_is():
    """In a notebook or a log an address in memory tells nobody anything."""
    env = make("bilevel/RandomMDP-v0", states=4, dimension=3)
    words = "BilevelEnv<bilevel/RandomMDP-v0>: x [3], TabularWorld, QuadraticReward, Shannon, QuadraticObjective, SoftValueIteration>"
    assert words in str(env)
    assert repr(env.unwrapped) == f"<{words}"
    own = BilevelEnv(problems.quadratic(0), SoftPolicyIteration())
    assert str(own).startswith(f"<BilevelEnv: x [{own.problem.dimension}], TabularWorld")
    assert str(make("bilevel/QuadraticBilevel-v0").unwrapped).endswith("x [10], TrackingObjective, GradientDescentSolver>")


def test_the_action_is_copied():
    """Writing into the array after the step must not change the environment's x."""
    env = make("bilevel/RandomMDP-v0")
    env.reset(seed=0)
    x = np.ones(100)
    env.step(x)
    x[:] = 5.0
    assert float(env.unwrapped.x.max()) == 1.0


def test_reset_options():
    """reset(seed) draws the instance, reset() keeps it and is cold, x starts there, keep goes on without a solve."""
    env = make("bilevel/RandomMDP-v0").unwrapped
    env.reset(seed=1)
    transition = env.problem.world.transition
    env.step(np.ones(100))
    env.reset()
    assert env.problem.world.transition is transition
    assert env.counters.upper_step == 0
    env.reset(seed=2)
    assert not torch.equal(env.problem.world.transition, transition)
    env.reset(options={"x": np.full(100, 0.25)})
    assert float(env.x[0]) == 0.25
    env.step(np.full(100, 0.5))
    response, counters = env.response, vars(env.counters).copy()
    env.reset(options={"x": env.x, "keep": True})
    assert env.response is response
    assert vars(env.counters) == counters
    with pytest.raises(InvalidProblem, match="unknown reset options"):
        env.reset(options={"start": 1})
    with pytest.raises(InvalidAction):
        env.reset(options={"x": np.full(100, 99.0)})
    with pytest.raises(InvalidProblem, match="one of them"):
        env.reset(seed=1, options={"x": env.x, "keep": True})
    with pytest.raises(InvalidProblem, match="nothing yet"):
        make("bilevel/RandomMDP-v0").unwrapped.reset(options={"keep": True})


def test_solve_on_reset():
    """With it the first observation is the soft-optimal policy; without, the uniform one with an infinite gap."""
    solved, start = (make("bilevel/RandomMDP-v0", solver="policy_iteration", solve_on_reset=flag) for flag in (True, False))
    (seen, info), (before, info_before) = solved.reset(seed=0), start.reset(seed=0)
    assert info["gap"] < 1e-9
    assert info_before["gap"] == np.inf
    assert info_before["lower_step"] == 0 < info["lower_step"]
    np.testing.assert_allclose(before["policy"], 0.2)
    assert np.abs(seen["policy"] - 0.2).max() > 1e-3
    assert start.observation_space.contains(before)


def test_truncation_goes_on_for_agents():
    """The episode is only an outer horizon: an agent's follower must not be reset by it."""
    problem = problems.quadratic(2)
    whole, cut = (
        gym.wrappers.TimeLimit(BilevelEnv(problem, SoftValueIteration(sweeps=2), initial_x=np.full(problem.dimension, 0.3)), n)
        for n in (100, 7)
    )
    results = [agents.m_sobirl(env).learn(30).x.clone() for env in (whole, cut)]
    assert torch.equal(*results)


class Doubled(gym.ActionWrapper):
    """Changes x on its way in."""

    def action(self, action):
        """Half of it."""
        return action * 0.5


def test_x_arrives_through_wrappers_or_the_agent_says_so():
    """The most frequent silent bug: the new x never reached the environment. Harmless wrappers pass, one that changes x is noticed."""
    problem = problems.quadratic(2)
    env = gym.wrappers.RecordEpisodeStatistics(
        gym.wrappers.TimeLimit(gym.wrappers.OrderEnforcing(BilevelEnv(problem, SoftPolicyIteration())), 50)
    )
    agent = agents.exact(env).learn(5)
    assert torch.equal(agent.x, env.unwrapped.x)
    with pytest.raises(InvalidAction, match="wrapper"):
        agents.exact(Doubled(BilevelEnv(problem, SoftPolicyIteration()))).learn(5)


def test_agents_refuse_what_does_not_fit():
    """The wrong agent for a task must say why when it is built, not after an hour."""
    with pytest.raises(UnsupportedProblem, match="transition probabilities"):
        agents.m_sobirl(make("bilevel/PendulumPreference-v0"))
    with pytest.raises(UnsupportedProblem, match="no loss"):
        agents.sobirl(make("bilevel/RandomMDP-v0"))
    with pytest.raises(InvalidProblem, match="not a bilevel"):
        agents.m_sobirl(gym.make("MountainCarContinuous-v0"))
    with pytest.raises(InvalidProblem, match="updates_per_step"):
        agents.HypergradientAgent(
            make("bilevel/RandomMDP-v0"), agents.exact(make("bilevel/RandomMDP-v0")).estimator, torch.optim.SGD, updates_per_step=0
        )


def test_x_stays_in_the_box():
    """A step out of the box is projected back, and the environment accepts it."""
    env = make("bilevel/RandomMDP-v0")
    env.reset(seed=0)
    agent = agents.exact(env, learning_rate=1e6).learn(2)
    assert float(agent.x.abs().max()) <= 10.0


def test_set_state_refuses_another_shape():
    """A state of another task must not be half loaded."""
    small, large = (make("bilevel/RandomMDP-v0", dimension=n) for n in (5, 6))
    small.reset(seed=0)
    large.reset(seed=0)
    x = large.unwrapped.x
    with pytest.raises(CheckpointError, match="5"):
        large.unwrapped.set_state(small.unwrapped.get_state())
    assert large.unwrapped.x is x
    other = make("bilevel/RandomMDP-v0", states=7)
    with pytest.raises(CheckpointError, match="sizes"):
        other.unwrapped.set_state(make_reset("bilevel/RandomMDP-v0").get_state())
    with pytest.raises(CheckpointError, match="lacks"):
        other.unwrapped.set_state({"sizes": [100, 7, 5]})


def test_unknown_names_list_the_known_ones():
    """A misspelt preset, solver or id must show what there is."""
    with pytest.raises(UnknownName, match="tiny"):
        gym.make("bilevel/PendulumPreference-v0", preset="small")
    with pytest.raises(UnknownName, match="policy_iteration"):
        gym.make("bilevel/RandomMDP-v0", solver="newton")
    with pytest.raises(gym.error.NameNotFound):
        gym.make("bilevel/RandomMPD-v0")


def test_a_missing_extra_names_the_command(monkeypatch):
    """Without MuJoCo the message must hold the pip command, not an import traceback."""
    import sys

    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(MissingExtra, match=r"pip install bilevel-gym\[mujoco\]"):
        gym.make("bilevel/HopperPreference-v0", preset="tiny")


def test_rendering():
    """A picture of the right shape whose bars are the policy, and a line of text."""
    env = make("bilevel/RandomMDP-v0", render_mode="rgb_array")
    env.reset(seed=0)
    picture = env.render()
    assert picture.dtype == np.uint8
    assert picture.shape == (240, 480, 3)
    env.step(np.zeros(100))
    bar = env.unwrapped.render()[:, 5]
    _, counts = np.unique(bar, axis=0, return_counts=True)
    np.testing.assert_allclose(counts / 240, 0.2, atol=0.01)  # uniform rows at x = 0
    text = make("bilevel/RandomMDP-v0", render_mode="ansi")
    text.reset(seed=0)
    assert "objective" in text.render()
    with pytest.raises(InvalidProblem, match="render_mode"):
        bilevel_gym.envs.random_mdp(render_mode="human")


def test_pendulum_renders():
    """The follower at work, through Gymnasium's own renderer."""
    pytest.importorskip("pygame")
    env = make("bilevel/PendulumPreference-v0", render_mode="rgb_array")
    env.reset(seed=0)
    before = env.unwrapped.get_state()["generator"]["state"]
    picture = env.render()
    assert picture.ndim == 3
    assert picture.shape[-1] == 3
    assert picture.std() > 0
    assert torch.equal(before, env.unwrapped.get_state()["generator"]["state"])


def test_the_oracle_leaves_the_environment_as_it_was():
    """A solve on the side must not feed the follower's replay, move its episodes, or change its networks; only the counters move."""
    env = make("bilevel/PendulumPreference-v0")
    env.reset(seed=0)
    env.step(env.unwrapped.x.numpy())
    inner = env.unwrapped
    state = inner.response.state
    written, actor, here = state.replay.written, state.networks.actor.clone(), state.simulation.observations.clone()
    spent, draws = inner.counters.env_steps, inner.get_state()["generator"]["state"]
    response = inner.oracle.solve(inner.x + 0.01, warm=inner.response)
    assert response.env_steps == 50
    assert inner.counters.env_steps == spent + 50
    assert state.replay.written == written
    assert torch.equal(state.networks.actor, actor)
    assert torch.equal(state.simulation.observations, here)
    assert inner.response.state is state
    inner.oracle.evaluate(inner.x, inner.response)
    assert torch.equal(inner.get_state()["generator"]["state"], draws)


def test_preference_metrics_are_kept_apart():
    """Objective, true and learned return, fresh and held-out accuracy: five numbers, none of them another one's copy."""
    env = make("bilevel/PendulumPreference-v0")
    _, info = env.reset(seed=0)
    names = ("objective", "true_return", "learned_return", "accuracy_fresh", "accuracy_held_out")
    assert all(np.isfinite(info[name]) for name in names)
    assert info["comparisons"] == 4 + 8
    held_out = env.unwrapped.get_state()["memory"]["fields"]["held_out"]["fields"]["states"]
    _, _, _, _, info = env.step(env.unwrapped.x.numpy())
    assert info["comparisons"] == 4 + 8 + 4
    assert torch.equal(held_out, env.unwrapped.get_state()["memory"]["fields"]["held_out"]["fields"]["states"])
