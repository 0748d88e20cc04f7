"""What surrounds an outer environment: x arrives, nothing is corrupted, and agents from anywhere act through it."""

from __future__ import annotations

import csv
import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bilevel_gym import agents, wrap_env
from bilevel_gym.errors import InvalidAction, InvalidProblem, OutputExists, UnsupportedProblem
from bilevel_gym.hypergradients import AID, Exact, ScoreFunction
from bilevel_gym.rewards import FeatureReward
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.testing import EXPECTED_ADVICE, check_bilevel_env
from bilevel_gym.testing.environment import _same
from bilevel_gym.wrappers import DeltaX, HypergradientInfo, LowerBudget, RecordUpperSteps


def table(**options: Any) -> gym.Env[Any, Any]:
    """A small task whose policy is observed, under the wrappers that ``gym.make`` puts around it, OrderEnforcing among them."""
    return gym.make("bilevel/RandomMDP-v0", states=4, dimension=3, solver="policy_iteration", **options)


def normalised(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Actions in [−1, 1], by Gymnasium's own wrapper, whose bounds have to be of the dtype of x."""
    one = env.action_space.dtype.type(1)
    return gym.wrappers.RescaleAction(env, -one, one)


def nested() -> gym.Env[Any, Any]:
    """Normalised steps of x."""
    return normalised(DeltaX(table(), 0.7))


def preference() -> gym.Env[Any, Any]:
    """A small task whose objective is sampled."""
    return gym.make("bilevel/TabularPreference-v0", exact=False)


# ---------------------------------------------------------------------------------------------- x arrives


def test_each_new_x_reaches_the_follower_through_a_nest() -> None:
    """The most frequent silent bug of bilevel code: the follower goes on under an old x, and every number looks right."""
    env = nested()
    env.reset(seed=0, options={"x": np.array([0.5, -0.5, 0.0])})
    env.action_space.seed(0)
    x = np.array([0.5, -0.5, 0.0])
    for _ in range(6):
        action = env.action_space.sample()
        x = np.clip(x + 0.7 * action, -10.0, 10.0)
        seen = env.step(action)[0]
        np.testing.assert_allclose(seen["x"], x, atol=1e-12)
        policy = SoftPolicyIteration().solve(env.unwrapped.problem, torch.as_tensor(x)).policy
        np.testing.assert_allclose(seen["policy"], policy.flatten(), atol=1e-8)


def simulated() -> gym.Env[Any, Any]:
    """The same around a follower who learns, whose returns tell which x it has been given."""
    return normalised(DeltaX(wrap_env("Pendulum-v1", preset="tiny", reward="linear", objective="return", horizon=20), 0.7))


@pytest.mark.parametrize("kind", [gym.vector.SyncVectorEnv, gym.vector.AsyncVectorEnv])
@pytest.mark.parametrize("make", [nested, simulated])
def test_each_new_x_reaches_every_follower_of_a_vector(make: Any, kind: Any) -> None:
    """Through worker processes, too: each copy must do what a single environment does with its own row of actions."""
    alone = [make() for _ in range(2)]
    for index, env in enumerate(alone):
        env.reset(seed=7 + index)
    vector = kind([make] * 2)
    vector.reset(seed=7)
    vector.action_space.seed(1)
    for _ in range(3):
        actions = vector.action_space.sample()
        seen, rewards, *_, info = vector.step(actions)
        for index, env in enumerate(alone):
            expected, reward, *_, told = env.step(actions[index])
            assert rewards[index] == reward
            assert all(info[name][index] == value for name, value in told.items())
            for name, values in expected.items():
                np.testing.assert_array_equal(seen[name][index], values)
        for x, env in zip(vector.get_attr("x"), alone, strict=True):
            assert torch.equal(x, env.unwrapped.x)
    vector.close()


def test_each_new_x_reaches_a_follower_who_learns() -> None:
    """Where the follower is a network its rewards must be those of the x of now: of the solve, and of the look at it."""
    seen: list[torch.Tensor] = []

    class Spy(FeatureReward):
        """Notes every x."""

        def along(self, x: torch.Tensor, states: Any, actions: torch.Tensor) -> torch.Tensor:
            """⟨φ, x⟩."""
            seen.append(x.clone())
            return super().along(x, states, actions)

    def make() -> gym.Env[Any, Any]:
        reward = Spy(lambda states, actions: torch.cat([states, actions], -1), 4, bound=2.0)
        return normalised(DeltaX(wrap_env("Pendulum-v1", preset="tiny", reward=reward, objective="return")))

    vector = gym.vector.SyncVectorEnv([make] * 2)
    vector.reset(seed=0)
    for _ in range(2):
        seen.clear()
        vector.step(vector.action_space.sample())
        applied = vector.get_attr("x")
        assert len(seen) > 20
        assert all(any(torch.equal(x, one) for one in applied) for x in seen)
        assert torch.equal(seen[0], applied[0])
        assert torch.equal(seen[-1], applied[1])
    vector.close()


# ---------------------------------------------------------------------------------------------- the contract

AROUND: dict[str, Any] = {
    "DeltaX": lambda tmp: DeltaX(table(), 0.7),
    "HypergradientInfo": lambda tmp: HypergradientInfo(table(), Exact()),
    "HypergradientInfo, sampled": lambda tmp: HypergradientInfo(preference(), ScoreFunction("critic", "reset", batch=4)),
    "LowerBudget": lambda tmp: LowerBudget(table(), lower_step=1000),
    "RecordUpperSteps": lambda tmp: RecordUpperSteps(table(), tmp / "steps.csv"),
    "all": lambda tmp: gym.wrappers.RescaleAction(
        LowerBudget(RecordUpperSteps(DeltaX(HypergradientInfo(table(), Exact())), tmp / "steps.npz"), env_steps=5), -1.0, 1.0
    ),
}


@pytest.mark.parametrize("name", AROUND)
def test_wrapped_environments_keep_gymnasiums_contract(name: str, tmp_path: Path) -> None:
    """Info with an array, actions that are steps, files on the way: two seeded runs must stay identical, and every agent can act."""
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    env = AROUND[name](tmp_path)
    with warnings.catch_warnings():
        for advice in (*EXPECTED_ADVICE, ".*is different from the unwrapped version.*"):
            warnings.filterwarnings("ignore", message=advice)
        check_env(env, skip_render_check=True)
        checker.check_env(env)
    if name not in ("DeltaX", "all"):
        check_bilevel_env(env)
    env.close()


def test_specs_say_what_is_around() -> None:
    """A run is described by its spec; wrappers with plain arguments must be in it."""
    env = LowerBudget(DeltaX(table(), 0.5), lower_step=40)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    first, second = (one.reset(seed=2)[0] for one in (env, again))
    np.testing.assert_array_equal(first["policy"], second["policy"])
    delta = np.full(3, 0.5)
    np.testing.assert_array_equal(env.step(delta)[0]["x"], again.step(delta)[0]["x"])
    assert again.limits == {"lower_step": 40}
    each = DeltaX(table(), np.array([0.5, 1.0, 2.0]))
    assert gym.make(EnvSpec.from_json(each.spec.to_json())).action_space == each.action_space


@pytest.mark.parametrize(
    "wrapper",
    [DeltaX, partial(HypergradientInfo, estimator=Exact()), partial(LowerBudget, env_steps=1), partial(RecordUpperSteps, path="a.npz")],
)
def test_they_go_around_bilevel_environments_alone(wrapper: Any) -> None:
    """Around CartPole they would fail in the middle of a step; around an id or a vector Gymnasium would, and not say what to do."""
    with pytest.raises(InvalidProblem, match=r"none: make one with gym\.make"):
        wrapper(gym.make("CartPole-v1"))
    with pytest.raises(InvalidProblem, match=r"is none: give gym\.make\('bilevel/RandomMDP-v0'\)"):
        wrapper("bilevel/RandomMDP-v0")
    with pytest.raises(InvalidProblem, match=r"None is none: give gym\.make"):
        wrapper(None)
    with pytest.raises(InvalidProblem, match=r"vector of 2: put one around each, as gym\.make_vec"):
        wrapper(gym.make_vec("bilevel/RandomMDP-v0", num_envs=2))
    assert not Path("a.npz").exists()


def test_the_way_that_is_named_for_vectors_works() -> None:
    """An advice that fails would be worse than none."""
    envs = gym.make_vec("bilevel/RandomMDP-v0", num_envs=2, vectorization_mode="sync", wrappers=[DeltaX], states=4, dimension=3)
    envs.reset(seed=0)
    first = envs.get_attr("x")
    envs.step(np.full((2, 3), 0.5))
    for before, after in zip(first, envs.get_attr("x"), strict=True):
        torch.testing.assert_close(after, (before + 0.5).clamp(-10, 10))
    envs.close()


# ---------------------------------------------------------------------------------------------- steps of x


def test_steps_end_at_the_box_and_begin_at_every_reset() -> None:
    """Without the clip a step over the edge would be refused, and from a wrong start every later x would be another one."""
    env = DeltaX(table(), [0.5, 1.0, 20.0])
    env.reset(seed=0, options={"x": np.array([9.8, 0.0, 0.0])})
    seen = [env.step(np.array([0.5, -1.0, 15.0]))[0]["x"] for _ in range(2)]
    np.testing.assert_array_equal(seen, [[10.0, -1.0, 10.0], [10.0, -2.0, 10.0]])
    env.reset(options={"x": env.unwrapped.x, "keep": True})
    np.testing.assert_array_equal(env.step(np.array([-0.5, 0.0, 0.0]))[0]["x"], [9.5, -2.0, 10.0])
    env.reset()
    first = env.unwrapped.x.numpy().copy()
    np.testing.assert_array_equal(env.step(np.array([0.25, 0.0, 0.0]))[0]["x"], first + np.array([0.25, 0.0, 0.0]))
    assert DeltaX(table()).action_space == gym.spaces.Box(-2.0, 2.0, (3,), np.float64)


def test_steps_that_cannot_be() -> None:
    """A step that is too long, a box that is x no more, and a limit that is none."""
    env = DeltaX(table(), 0.5)
    with pytest.raises(gym.error.ResetNeeded, match="no x to start from"):
        DeltaX(env.unwrapped).step(np.zeros(3))
    env.reset(seed=0)
    for bad, words in ((np.full(3, 0.6), r"Δ\[0\] = 0.6 lies outside"), (np.full(3, np.nan), "not a number"), (np.zeros(2), "Δ has shape")):
        with pytest.raises(InvalidAction, match=words):
            env.step(bad)
    for limit in (0.0, -1.0, np.inf, [1.0, 1.0], "a", True, [[1.0], [1.0, 2.0]], [None, 1.0, 1.0]):
        with pytest.raises(InvalidProblem, match="limit"):
            DeltaX(table(), limit)
    with pytest.raises(InvalidProblem, match="put DeltaX inside"):
        DeltaX(gym.wrappers.RescaleAction(table(), -1.0, 1.0))


@pytest.mark.parametrize("limit", [0.013, 0.47, 1.9])
def test_gymnasiums_rescaling_reaches_the_edges(limit: float) -> None:
    """It misses these by one unit in the last place, and an agent that clips to ±1 would be refused at every corner."""
    inside = DeltaX(table(), limit)
    env = normalised(inside)
    corner = env.action_space.high
    assert (env.func(corner) > inside.action_space.high).all()
    env.reset(seed=0, options={"x": np.zeros(3)})
    env.step(corner)
    assert env.unwrapped.x.tolist() == [limit] * 3
    env.step(-corner)
    assert env.unwrapped.x.tolist() == [0.0] * 3


# ---------------------------------------------------------------------------------------------- hyper-gradients


def test_the_hypergradient_is_that_of_the_new_x() -> None:
    """One of the x before would be right nearly everywhere, and wrong."""
    env = HypergradientInfo(table(), Exact())
    _, info = env.reset(seed=0)
    for _ in range(3):
        bilevel = env.unwrapped
        expected = Exact()(bilevel.oracle, bilevel.x, bilevel.response, bilevel.evaluation, None)[0].value
        assert isinstance(info["hypergradient"], np.ndarray)
        np.testing.assert_array_equal(info["hypergradient"], expected)
        *_, info = env.step(np.clip(bilevel.x.numpy() - 0.01 * info["hypergradient"], -10, 10))


def test_sampled_hypergradients_are_repeated_counted_and_carried_on() -> None:
    """An estimator that learns must start anew with the seed, and go on through a truncation; what it asks for costs."""
    estimator = ScoreFunction("rollout", "reset")
    runs = []
    for _ in range(2):
        env = HypergradientInfo(preference(), estimator)
        told = [env.reset(seed=3)[1]]
        told += [env.step(env.unwrapped.x.numpy())[-1] for _ in range(2)]
        evaluations = env.state.evaluations
        told.append(env.reset(options={"x": env.unwrapped.x, "keep": True})[1])
        assert (evaluations, env.state.evaluations) == (3, 3)
        assert told[-1]["env_steps"] == env.unwrapped.counters.env_steps
        runs.append(np.stack([one["hypergradient"] for one in told]))
        env.reset(seed=3)
        assert env.state.evaluations == 1
    np.testing.assert_array_equal(*runs)
    assert runs[0].any(1).all()
    plain = preference()
    plain.reset(seed=3)
    assert told[0]["env_steps"] > plain.unwrapped.counters.env_steps


def test_an_estimator_that_does_not_fit_is_refused() -> None:
    """At once, and not after the first solve."""
    with pytest.raises(UnsupportedProblem, match="AID does not fit"):
        HypergradientInfo(table(), AID())


# ---------------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize(
    ("wrapper", "options", "words"),
    [
        (HypergradientInfo, {"estimator": Exact}, "estimator is .*give an object"),
        (HypergradientInfo, {"estimator": "Exact"}, "estimator is 'Exact'"),
        (LowerBudget, {"env_steps": float("nan")}, "env_steps is nan: it must be a whole number"),
        (LowerBudget, {"lower_step": True}, "lower_step is True"),
        (LowerBudget, {"comparisons": "a"}, "comparisons is 'a'"),
        (RecordUpperSteps, {"path": "/dev/null/steps.csv"}, "cannot be written"),
        (RecordUpperSteps, {"path": "steps.csv", "every": "a"}, "every is 'a': it must be a whole number"),
        (RecordUpperSteps, {"path": "steps.csv", "every": 1.5}, "every is 1.5"),
        (RecordUpperSteps, {"path": None}, "path is None"),
    ],
)
def test_what_no_wrapper_takes_is_refused_when_it_is_made(wrapper: type, options: dict[str, Any], words: str) -> None:
    """Without it a budget of NaN never ends, and a file that cannot be written is noticed after an hour of steps."""
    with pytest.raises(InvalidProblem, match=words):
        wrapper(gym.make("bilevel/RandomMDP-v0"), **options)


def test_a_budget_truncates_and_then_refuses() -> None:
    """An agent that resets by the rules gets episodes of equal cost; one that steps on all the same must be told, and nothing be spent."""
    env = LowerBudget(wrap_env("Pendulum-v1", preset="tiny", reward="linear", objective="return"), env_steps=700, lower_step=10_000)
    for _ in range(2):
        env.reset(seed=0)
        ends, spent = [], []
        for _ in range(3):
            ends.append(env.step(env.unwrapped.x.numpy())[3])
            spent.append(env.left["env_steps"])
            if ends[-1]:
                break
        assert ends == [False, True]
        assert spent[0] > 0 >= spent[1]
    env.reset(options={"x": env.unwrapped.x, "keep": True})
    before = env.unwrapped.counters.env_steps
    with pytest.raises(gym.error.ResetNeeded, match="budget of 700 env_steps is spent"):
        env.step(env.unwrapped.x.numpy())
    assert env.unwrapped.counters.env_steps == before
    for limits in ({}, {"env_steps": 0}):
        with pytest.raises(InvalidProblem, match="at least one of lower_step, env_steps, comparisons"):
            LowerBudget(table(), **limits)


def test_a_budget_that_nothing_would_spend() -> None:
    """Where nobody is compared a budget of comparisons would let an agent run for ever; one below a reset's cost would never let it step."""
    env = LowerBudget(table(), comparisons=5)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(3))
    env.reset(seed=0)
    before = env.unwrapped.get_state()
    with pytest.raises(InvalidProblem, match="asks for no comparisons"):
        env.step(np.zeros(3))
    assert _same(before, env.unwrapped.get_state())
    env = LowerBudget(preference(), comparisons=5)
    env.reset(seed=0)
    with pytest.raises(gym.error.ResetNeeded, match="a reset alone costs more"):
        env.step(env.unwrapped.x.numpy())
    asked = env.unwrapped.counters.comparisons
    env = LowerBudget(preference(), comparisons=asked + 1)
    env.reset(seed=0)
    assert env.step(env.unwrapped.x.numpy())[3]


# ---------------------------------------------------------------------------------------------- records


def test_two_records_do_not_write_one_file(tmp_path: Path) -> None:
    """Copies of an environment in a vector have one path: the later would put its file in the place of the other's, without a word."""
    first, second = (RecordUpperSteps(table(), tmp_path / "steps.csv", every=1) for _ in range(2))
    for env in (first, second):
        env.reset(seed=0)
    first.step(np.zeros(3))
    kept = (tmp_path / "steps.csv").read_text()
    with pytest.raises(OutputExists, match="written by another environment"):
        second.step(np.zeros(3))
    first.step(np.zeros(3))
    assert (tmp_path / "steps.csv").read_text().startswith(kept)
    assert len(second.columns["gap"]) == 2


def read(path: Path) -> dict[str, Any]:
    """A record, of whatever kind, as columns; x of a CSV in one."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return dict(file)
    if path.suffix == ".json":
        return {name: np.array(values, dtype=float) for name, values in json.loads(path.read_text()).items()}
    rows = list(csv.DictReader(path.read_text().splitlines()))
    plain = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    x = np.stack([plain.pop(f"x_{index}") for index in range(3)], -1)
    return {**plain, "x": x}


@pytest.mark.parametrize("suffix", ["npz", "csv", "json"])
def test_a_record_is_what_happened(suffix: str, tmp_path: Path) -> None:
    """Every column must be of its own step, to the last digit, through resets of both kinds."""
    path = tmp_path / "folder" / f"steps.{suffix}"
    env = RecordUpperSteps(gym.wrappers.TimeLimit(table().unwrapped, 2), path, every=100)
    rows = []

    def note(episode: int) -> None:
        bilevel = env.unwrapped
        counters = vars(bilevel.counters)
        rows.append([episode, *counters.values(), float(bilevel.evaluation.value), float(bilevel.response.gap), *bilevel.x.tolist()])

    env.reset(seed=0)
    note(0)
    for index in range(4):
        env.step(np.full(3, 0.1 * index))
        note(0)
        env.reset(options={"x": env.unwrapped.x, "keep": True})
    env.reset()
    note(1)
    env.step(np.ones(3))
    note(1)
    assert not path.exists()
    env.close()
    found = read(path)
    names = ["episode", "upper_step", "lower_step", "env_steps", "comparisons", "objective", "gap"]
    assert set(found) == {*names, "x"}
    np.testing.assert_array_equal(np.column_stack([*(found[name] for name in names), found["x"]]), rows)


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path: Path) -> None:
    """``Infinity`` is no JSON, and a gap is infinite before the first solve."""
    env = RecordUpperSteps(wrap_env("Pendulum-v1", preset="tiny", reward="linear", objective="return"), tmp_path / "steps.json")
    env.reset(seed=0)
    env.close()
    assert json.loads((tmp_path / "steps.json").read_text(), parse_constant=pytest.fail)["gap"] == [None]


def test_a_record_is_whole_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed, or a disk that is full, must leave the file of before, and no half of a new one."""
    path = tmp_path / "steps.npz"
    env = RecordUpperSteps(table(), path, every=2)
    env.reset(seed=0)
    env.step(np.zeros(3))
    env.step(np.ones(3))
    assert len(read(path)["x"]) == 2
    env.step(np.ones(3))
    assert len(read(path)["x"]) == 4

    def full(file: Any, **columns: Any) -> None:
        file.write(b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        env.step(np.zeros(3))
        with pytest.raises(OSError, match="no space"):
            env.step(np.zeros(3))
    assert len(read(path)["x"]) == 4
    assert [one.name for one in tmp_path.iterdir()] == ["steps.npz"]
    env.flush()
    np.testing.assert_array_equal(read(path)["x"], env.columns["x"])
    assert len(read(path)["x"]) == 6


def test_records_that_cannot_be(tmp_path: Path) -> None:
    """A file that is there is somebody's; one of another kind has no writer."""
    (tmp_path / "there.csv").touch()
    with pytest.raises(OutputExists, match="exists"):
        RecordUpperSteps(table(), tmp_path / "there.csv")
    for path, every in (("a.txt", 1), ("a.npz", 0)):
        with pytest.raises(InvalidProblem, match=r"\.npz, \.csv, \.json"):
            RecordUpperSteps(table(), tmp_path / path, every=every)
    RecordUpperSteps(table(), tmp_path / "none.csv").close()
    assert not (tmp_path / "none.csv").exists()


# ---------------------------------------------------------------------------------------------- who acts through them


def test_hypergradient_agents_see_that_their_x_arrives(tmp_path: Path) -> None:
    """Through what leaves x alone they learn as without; through what changes it they must stop, a gradient at another x is of no use."""
    plain = table()
    plain.reset(seed=0)
    expected = agents.exact(plain, learning_rate=0.01).learn(5).x
    around = LowerBudget(RecordUpperSteps(HypergradientInfo(table(), Exact()), tmp_path / "steps.npz"), lower_step=10_000)
    around.reset(seed=0)
    assert torch.equal(agents.exact(around, learning_rate=0.01).learn(5).x, expected)
    for changing in (DeltaX(table(), 20.0), DeltaX(table(), 0.01), gym.wrappers.RescaleAction(table(), -20.0, 20.0)):
        changing.reset(seed=0)
        with pytest.raises(InvalidAction, match=r"did not receive the x|Δ\[\d\]"):
            agents.exact(changing, learning_rate=0.01).learn(3)


@pytest.mark.parametrize("learner", ["PPO", "CMA-ES", "cmaes"])
def test_agents_from_elsewhere_improve_through_them(learner: str, tmp_path: Path) -> None:
    """An outer environment is to be an ordinary environment: nobody here is told what it is, normalised actions are all they need.

    f = ½‖x‖² + ½‖π‖² starts near its x of norm 10√3 and has its minimum at 0.
    """
    start = {"x": np.array([8.0, -8.0, 8.0])}

    class Start(gym.Wrapper[Any, Any, Any, Any]):
        """Every episode begins far away."""

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            """At one x."""
            return self.env.reset(seed=seed, options=options or start)

    record = RecordUpperSteps(DeltaX(Start(table()), 4.0) if learner == "PPO" else Start(table()), tmp_path / "steps.npz", every=1000)
    env = normalised(gym.wrappers.TimeLimit(record, 8))
    if learner == "PPO":
        stable = pytest.importorskip("stable_baselines3")
        model = stable.PPO("MultiInputPolicy", env, n_steps=128, batch_size=64, gamma=0.5, learning_rate=3e-3, seed=0, device="cpu")
        model.learn(1536)
    elif learner == "CMA-ES":
        pytest.importorskip("cmaes")
        env.reset(seed=0)
        agents.cma_es(env).learn(120)
    else:
        cmaes = pytest.importorskip("cmaes")
        search = cmaes.CMA(mean=np.full(3, 0.8), sigma=0.2, bounds=np.array([[-1.0, 1.0]] * 3), seed=0)
        env.reset(seed=0)
        for _ in range(20):
            tried = [search.ask() for _ in range(search.population_size)]
            search.tell([(x, -float(env.step(x)[1])) for x in tried])
    objectives = record.columns["objective"][record.columns["upper_step"] > 0]
    first, *_, last = (float(part.mean()) for part in np.array_split(objectives, 8))
    assert last < 0.6 * first


# ---------------------------------------------------------------------------------------------- nothing is corrupted

ACTIONS = st.one_of(
    arrays(np.float64, 3, elements=st.floats(-1.5, 1.5)),
    arrays(np.float64, 3, elements=st.floats(width=64)),
    arrays(st.sampled_from([np.float32, np.int8, np.complex64, "<U2", bool]), st.sampled_from([(3,), (), (1, 3), (0,)])),
    st.sampled_from([None, "x", [1.0, None, 2.0], [10**400] * 3, object()]),
)
OPTIONS = st.one_of(
    st.none(),
    st.fixed_dictionaries({}, optional={"x": ACTIONS, "keep": st.booleans(), "y": st.just(1)}),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["step", "reset", "options"]), ACTIONS, OPTIONS), min_size=1, max_size=6))
def test_whatever_is_sent_nothing_is_corrupted(tmp_path_factory: pytest.TempPathFactory, sent: list[tuple[str, Any, Any]]) -> None:
    """A refused action or option must leave environment, wrappers and record as they were, and what is taken must be what is there."""
    record = RecordUpperSteps(DeltaX(HypergradientInfo(table(), Exact()), 0.7), tmp_path_factory.mktemp("fuzz") / "steps.npz", every=2)
    env = normalised(record)
    bilevel = env.unwrapped
    env.reset(seed=0)
    for kind, action, options in sent:
        before, count = bilevel.get_state(), len(record.columns["x"])
        try:
            seen = env.step(action)[0] if kind == "step" else env.reset(options=options)[0]
        except (TypeError, ValueError, OverflowError):  # ours are such, and RescaleAction's own arithmetic raises them, too
            assert _same(before, bilevel.get_state())
            assert len(record.columns["x"]) == count
            continue
        box = bilevel.action_space
        assert bool(((bilevel.x.numpy() >= box.low) & (bilevel.x.numpy() <= box.high)).all())
        np.testing.assert_array_equal(seen["x"], bilevel.x)
        np.testing.assert_array_equal(record.columns["x"][-1], bilevel.x)
        policy = SoftPolicyIteration().solve(bilevel.problem, bilevel.x).policy
        np.testing.assert_allclose(seen["policy"], policy.flatten(), atol=1e-8)
    x = bilevel.x.numpy().copy()
    env.step(np.full(3, 0.5))
    np.testing.assert_allclose(bilevel.x, np.clip(x + 0.35, -10.0, 10.0))
