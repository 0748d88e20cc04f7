"""Black-box agents: they find what they should, know nothing but rewards, stay in the box, and resume bit for bit."""

from __future__ import annotations

import sys
from math import exp, sqrt

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym import agents, checkpoint
from bilevel_gym.agents import CMAES, RandomSearch, Run, RunSpec, SearchAgent
from bilevel_gym.agents.plotting import plot_runs
from bilevel_gym.errors import CheckpointError, InvalidProblem, MissingExtra

cmaes = pytest.importorskip("cmaes", reason="needs the extra 'search'")

ID = "bilevel/RandomMDP-v0"
SEARCHES = {"random_search": RandomSearch(), "cma_es": CMAES(), "cma_es-separable": CMAES(separable=True)}


class Bowl(gym.Env):
    """Somebody's own environment: no x, no problem, no options, a skewed box, and its lowest point in a corner of it."""

    def __init__(self, noise=0.0, dtype=np.float32):
        self.action_space = gym.spaces.Box(np.array([2.0, -1.0, 0.0], dtype), np.array([3.0, 5.0, 0.25], dtype), dtype=dtype)
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (1,))
        self.noise, self.resets, self.seen = noise, 0, []

    def reset(self, *, seed=None, options=None):
        """Count."""
        super().reset(seed=seed)
        assert options is None
        self.resets += 1
        return np.zeros(1, np.float32), {}

    def step(self, action):
        """−(squared distances to (2, 4, .1)), an episode of five steps."""
        assert self.action_space.contains(action)
        self.seen.append(action)
        value = float(((action - np.array([2.0, 4.0, 0.1])) ** 2).sum()) + self.noise * self.np_random.standard_normal()
        return np.zeros(1, np.float32), -value, False, len(self.seen) % 5 == 0, {"step": len(self.seen)}


def small(seed=0, **options):
    """The synthetic problem in five dimensions, solved to rounding."""
    env = gym.make(ID, dimension=5, solver="policy_iteration", **options)
    env.reset(seed=seed)
    return env


@pytest.mark.parametrize(("recipe", "steps"), [("zero_order", 30), ("random_search", 120), ("cma_es", 120)])
def test_each_baseline_reduces_the_objective(recipe, steps):
    """A sign error in what is told would climb instead; the follower's solver is the id's default here."""
    env = gym.make(ID, dimension=5)
    env.reset(seed=0)
    before, after = float(env.unwrapped.evaluation.value), []
    getattr(agents, recipe)(env).learn(steps, lambda _, metrics: after.append(metrics["objective"]))
    assert np.mean(after[-10:]) < 0.8 * before


@pytest.mark.parametrize(("recipe", "steps"), [("random_search", 400), ("cma_es", 500)])
def test_the_optimum_is_found(recipe, steps):
    """f* = S/(2A) = 1 in five dimensions, to 1e-6: an adaptation that is wrong in any part stalls long before (267 and 466 steps suffice)."""
    agent = getattr(agents, recipe)(small()).learn(steps)
    assert 0.0 <= agent.best_objective - 1.0 + 1e-12 < 1e-6
    assert np.abs(agent.best_x).max() < 1e-2


@pytest.mark.parametrize("name", SEARCHES)
def test_any_environment_will_do(name):
    """They may ask for nothing beyond Gymnasium: a foreign environment, float32, a skewed box, episodes that end."""
    env = Bowl()
    env.reset(seed=3)
    metrics = []
    agent = SearchAgent(env, SEARCHES[name]).learn(500, lambda _, seen: metrics.append(seen))
    assert agent.best_objective < 1e-4
    np.testing.assert_allclose(agent.best_x, [2.0, 4.0, 0.1], atol=0.01)
    assert agent.best_x.dtype == np.float32
    assert env.resets == 2 + 100  # the one above, the one before the first step, and one after each episode
    objectives = [seen["objective"] for seen in metrics]
    np.testing.assert_array_equal([seen["best_objective"] for seen in metrics], np.minimum.accumulate(objectives))
    assert objectives[int(np.argmin(objectives))] == agent.best_objective
    np.testing.assert_array_equal(env.seen[int(np.argmin(objectives))], agent.best_x)
    assert metrics[-1]["step"] == 500


def test_wrappers_that_change_actions_are_seen_through():
    """A hyper-gradient agent refuses a rescaled action; a search must not care, and starts in the middle of a box that is not x's."""
    env = gym.wrappers.RescaleAction(small(), np.float64(-1.0), np.float64(1.0))
    agent = agents.random_search(env)
    assert not agent.act().any()
    agent = agents.random_search(env).learn(150)
    assert agent.best_objective < 1.1
    assert np.abs(agent.best_x).max() <= 1.0


@pytest.mark.parametrize("name", SEARCHES)
def test_the_start_is_where_the_environment_stands(name):
    """A baseline that began elsewhere than the gradient methods could not be compared with them."""
    env = small()
    x = env.unwrapped.x.numpy().copy()
    agent = SearchAgent(env, SEARCHES[name])
    tried = np.stack([agent.act() for _ in range(200)])
    assert np.abs(tried.mean(0) - x).max() < 0.4
    if name == "random_search":
        np.testing.assert_allclose(tried, np.broadcast_to(x, tried.shape), atol=1e-12)


@pytest.mark.parametrize("name", SEARCHES)
def test_the_end_of_an_episode_is_not_felt(name):
    """A truncation in the middle must keep follower, x and generators: 30 steps in episodes of 7 equal 30 in one."""
    results = []
    for horizon in (7, 1000):
        env = gym.make(ID, dimension=5, max_episode_steps=horizon)
        env.reset(seed=1)
        SearchAgent(env, SEARCHES[name]).learn(30)
        results.append(env.unwrapped.response.q)
    assert torch.equal(*results)


@pytest.mark.parametrize("name", SEARCHES)
def test_the_environments_own_draws_stay(name):
    """An agent that drew from env.np_random would move the next cold reset; its stream must still follow the seed."""
    first = []
    for seed in (4, 4, 5):
        env = small(seed)
        before = env.unwrapped.np_random.bit_generator.state
        agent = SearchAgent(env, SEARCHES[name]).learn(3)
        assert env.unwrapped.np_random.bit_generator.state == before
        assert agent.act() is not None
        first.append(agent.act() - agent.best_x)
    np.testing.assert_array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])
    given = [SearchAgent(small(), SEARCHES[name], np.random.default_rng(seed)).learn(3).act() for seed in (0, 0, 1)]
    np.testing.assert_array_equal(given[0], given[1])
    assert not np.array_equal(given[0], given[2])


# ---------------------------------------------------------------------------------------------- the searches


def test_the_one_fifth_rule():
    """σ grows by exp(.8/√(D+1)) with a success, a tie included, and shrinks by exp(−.2/√(D+1)) with a failure, which moves nothing."""
    search, start = RandomSearch(step_size=0.1), np.full(8, 0.5)
    state = search.init(start, np.random.default_rng(0))
    point, state = search.ask(state)
    np.testing.assert_array_equal(point, start)
    state = search.tell(state, point, 2.0)
    assert (state.value, state.step_size) == (2.0, 0.1)
    better, state = search.ask(state)
    np.testing.assert_allclose(better - start, 0.1 * np.random.default_rng(0).standard_normal(8))
    state = search.tell(state, better, 1.0)
    assert state.step_size == pytest.approx(0.1 * exp(0.8 / 3))
    tie, state = search.ask(state)
    state = search.tell(state, tie, 1.0)
    assert state.point is tie
    assert state.step_size == pytest.approx(0.1 * exp(1.6 / 3))
    worse, state = search.ask(state)
    state = search.tell(state, worse, 1.5)
    assert state.point is tie
    assert state.value == 1.0
    assert state.step_size == pytest.approx(0.1 * exp(1.4 / 3))
    for _ in range(100):
        state = search.tell(state, tie, 1.0)
    assert state.step_size == 1.0


def test_random_steps_are_clipped_to_the_cube():
    """At a corner half of all steps lead out of it, where the objective need not exist."""
    state = RandomSearch(step_size=1.0).init(np.array([0.0, 1.0]), np.random.default_rng(0))
    state = RandomSearch().tell(state, state.point, 1.0)
    asked = []
    for _ in range(50):
        point, state = RandomSearch().ask(state)
        asked.append(point)
    asked = np.stack(asked)
    assert (asked.min(), asked.max()) == (0.0, 1.0)


@pytest.mark.parametrize("separable", [False, True])
def test_cma_es_is_the_librarys(separable):
    """A generation cut at the wrong place, a state that is not put back whole, or other bounds give other points than the library does."""
    dimension, start = 6, np.linspace(0.0, 0.9, 6)

    def value(point):
        return float((np.arange(1, 7) * (point - 0.3) ** 2).sum())

    search = CMAES(step_size=0.2, separable=separable)
    state = search.init(start, np.random.default_rng(0))
    bounds = np.tile([0.0, 1.0], (dimension, 1))
    kind = cmaes.SepCMA if separable else cmaes.CMA
    direct = kind(start.copy(), 0.2, bounds, n_max_resampling=10, seed=int(np.random.default_rng(0).integers(2**32)))
    for _ in range(12):
        told = []
        for _ in range(direct.population_size):
            expected = direct.ask()
            point, state = search.ask(state)
            np.testing.assert_allclose(point, expected, rtol=0, atol=1e-12)
            assert ((point >= 0) & (point <= 1)).all()
            told.append((expected, value(expected)))
            state = search.tell(state, point, value(point))
        direct.tell(told)
    assert state.step_size == pytest.approx(direct._sigma)
    assert state.step_size != 0.2


@pytest.mark.parametrize(
    ("dimension", "options", "axes"), [(500, {}, 2), (501, {}, 1), (501, {"separable": False}, 2), (5, {"separable": True}, 1), (1, {}, 2)]
)
def test_many_dimensions_take_a_diagonal(dimension, options, axes):
    """A network's 5,000 parameters would take a matrix of 25 million numbers and minutes a point."""
    state = CMAES(**options).init(np.full(dimension, 0.5), np.random.default_rng(0))
    assert state.library["_C"].ndim == axes


@pytest.mark.parametrize("separable", [False, True])
def test_converged_means_its_mean(separable):
    """Past its end the library divides by what has become zero; the mean is proposed instead, and nothing moves any more."""
    search = CMAES(population=4, separable=separable)
    state = search.init(np.array([0.2, 0.6]), np.random.default_rng(0))
    tells = 0
    while not state.converged:
        point, state = search.ask(state)
        state = search.tell(state, point, 1.0)
        tells += 1
    assert 4 * 25 <= tells <= 4 * 40
    point, after = search.ask(state)
    np.testing.assert_array_equal(point, state.library["_mean"])
    assert search.tell(after, point, 1.0) is state


@pytest.mark.parametrize("separable", [False, True])
def test_states_are_plain_data(separable):
    """What the library leaves uninitialised, and NumPy's scalars, would make the state of a resumed search another one."""
    search = CMAES(separable=separable)
    for _ in range(3):
        np.full(40, 7.0)  # memory for the library to find, were it to look
        state = search.init(np.full(2, 0.5), np.random.default_rng(0))
        assert state.library["_funhist_values"].shape == (40,)
        assert not state.library["_funhist_values"].any()
    while not state.library["_g"]:
        point, state = search.ask(state)
        state = search.tell(state, point, float(point.sum()))
    assert {type(value) for value in state.library.values()} <= {int, float, bool, type(None), np.ndarray}


def test_states_are_not_changed_in_place():
    """All state is in the open: an older one is as good as a copy, and asking it again gives the same point."""
    search = CMAES(population=4)
    start = search.init(np.full(3, 0.5), np.random.default_rng(0))
    first, told = search.ask(start)
    for value in (1.0, 3.0, 2.0):
        told = search.tell(told, first, value)
        last, told = search.ask(told)
    before = checkpoint.pack(told)
    assert search.tell(told, last, 0.5).tried == []
    assert str(checkpoint.pack(told)) == str(before)
    np.testing.assert_array_equal(search.ask(start)[0], first)
    steps = RandomSearch()
    told = steps.tell(steps.init(np.full(3, 0.5), np.random.default_rng(0)), np.full(3, 0.5), 1.0)
    np.testing.assert_array_equal(*(steps.ask(told)[0] for _ in range(2)))


@pytest.mark.parametrize("name", SEARCHES)
def test_a_step_that_fails_is_proposed_again(name):
    """Without it the search would go on with a point that was never tried, and another one than if nothing had happened."""

    class Refusing(Bowl):
        fails = False

        def step(self, action):
            if self.fails:
                raise OSError
            return super().step(action)

    runs = []
    for failing in (False, True):
        env = Refusing()
        env.reset(seed=3)
        agent = SearchAgent(env, SEARCHES[name]).learn(7)
        if failing:
            env.fails = True
            with pytest.raises(OSError, match=r"^$"):
                agent.learn(1)
            env.fails = False
        agent.learn(9)
        runs.append(np.stack(env.seen))
    np.testing.assert_array_equal(*runs)


# ---------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("cut", [0, 3, 17])
def test_a_state_goes_on_bit_for_bit(name, cut, tmp_path):
    """In the middle of a generation as well, through a file: a part that is forgotten, or rounds otherwise, shows."""
    tried = []
    straight = SearchAgent(small(), SEARCHES[name]).learn(60, lambda agent, _: tried.append(agent.bilevel.x.clone()))
    env = small()
    agent = SearchAgent(env, SEARCHES[name]).learn(cut)
    checkpoint.save(tmp_path / "state.pt", {"env": env.unwrapped.get_state(), "agent": agent.get_state()})
    saved = checkpoint.load(tmp_path / "state.pt")
    env = small(9)
    env.unwrapped.set_state(saved["env"])
    again = SearchAgent(env, SEARCHES[name])
    again.set_state(saved["agent"])
    after = []
    again.learn(60 - cut, lambda agent, _: after.append(agent.bilevel.x.clone()))
    assert all(torch.equal(a, b) for a, b in zip(tried[cut:], after, strict=True))
    np.testing.assert_array_equal(straight.best_x, again.best_x)
    assert straight.best_objective == again.best_objective


@pytest.mark.parametrize("recipe", ["zero_order", "random_search", "cma_es"])
def test_a_run_folder_resumes(recipe, tmp_path):
    """What the command line keeps must be enough for every baseline."""
    spec = RunSpec(ID, recipe, seed=2, env_kwargs={"dimension": 5})
    straight, halves = tmp_path / "straight", tmp_path / "halves"
    Run.create(spec, straight).train(20)
    Run.create(spec, halves).train(9)
    assert Run.load(halves).train(20)
    assert (straight / "metrics.csv").read_text() == (halves / "metrics.csv").read_text()
    states = [checkpoint.load(folder / "checkpoint.pt") for folder in (straight, halves)]
    assert str(states[0]) == str(states[1])


def test_their_curve_shows_the_best(tmp_path):
    """The objective of a search jumps about; the lowest so far is what it is judged by."""
    pytest.importorskip("matplotlib")
    Run.create(RunSpec(ID, "random_search", env_kwargs={"dimension": 2}), tmp_path / "run").train(3)
    assert len(plot_runs([tmp_path / "run"]).axes) == 2


@pytest.mark.parametrize("recipe", ["random_search", "cma_es"])
def test_networks_can_be_searched(recipe):
    """On a deep id x is a network, float32; a step must arrive there too, whatever it is worth."""
    env = gym.make("bilevel/PendulumPreference-v0", preset="tiny")
    env.reset(seed=0)
    agent = getattr(agents, recipe)(env, step_size=0.005).learn(2)
    assert env.unwrapped.counters.upper_step == 2
    assert agent.best_x.dtype == np.float32


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("search", [RandomSearch, CMAES])
@pytest.mark.parametrize("step_size", [0.0, -1.0, 1.5, float("nan")])
def test_a_step_size_is_a_share_of_the_box(search, step_size):
    """Given in units of x it would be clipped to the corners of the box at every step."""
    with pytest.raises(InvalidProblem, match="in sides of the box"):
        search(step_size=step_size)


def test_what_cannot_be_searched_is_refused():
    """Each of these would fail somewhere inside the search, or search nonsense."""
    with pytest.raises(InvalidProblem, match="four points"):
        CMAES(population=3)
    endless = Bowl()
    endless.action_space = gym.spaces.Box(-np.inf, np.inf, (3,))
    with pytest.raises(InvalidProblem, match="finite bounds"):
        agents.random_search(endless)
    with pytest.raises(InvalidProblem, match="finite bounds"):
        agents.random_search(gym.make("CartPole-v1"))
    with pytest.raises(InvalidProblem, match="single one"):
        agents.cma_es(gym.make_vec(ID, num_envs=2))
    with pytest.raises(InvalidProblem, match="reward nan"):
        agents.random_search(Bowl(noise=float("nan"))).learn(1)


def test_another_agents_state_is_refused():
    """Without it a state of another search or size would fail in the middle of the next step."""
    state = agents.random_search(small()).learn(2).get_state()
    other = agents.cma_es(small())
    before = other.get_state()
    with pytest.raises(CheckpointError, match="RandomSearch in dimension 5, this agent is CMAES"):
        other.set_state(state)
    assert other.get_state() == before
    with pytest.raises(CheckpointError, match="dimension 5"):
        agents.random_search(Bowl()).set_state(state)
    with pytest.raises(CheckpointError, match=r"another RandomSearch than this agent's: step_size \(0\.05 there, 0\.1 here\)"):
        agents.random_search(small(), step_size=0.1).set_state(state)


def test_a_missing_library_is_named(monkeypatch):
    """Without the extra the message has to say which one it is, before anything has run."""
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(MissingExtra, match=r"pip install bilevel-gym\[search\]"):
        agents.cma_es(small())
    agents.random_search(small())


def test_a_loop_of_ones_own():
    """``act`` and ``tell`` are all that a loop needs, and a caller that uses its array again must not change the best."""
    env = small()
    agent = agents.random_search(env)
    x = agent.act()
    _, reward, *_ = env.step(x)
    agent.tell(x, reward)
    x[:] = 9.0
    np.testing.assert_allclose(agent.best_x, env.unwrapped.x)
    assert agent.best_objective == -reward
    assert agent.metrics() == {"best_objective": -reward, "step_size": 0.05}


def test_noise_is_told_as_it_came():
    """The best value of a noisy objective is the luckiest one, as documented; it is neither averaged nor measured again."""
    env = Bowl(noise=1.0)
    env.reset(seed=0)
    values = []
    agent = agents.random_search(env).learn(40, lambda _, metrics: values.append(metrics["objective"]))
    assert agent.best_objective == min(values) < 0.0
    assert sqrt(np.var(values)) > 0.5
