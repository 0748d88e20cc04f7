"""The preference ids' arguments are JSON, reach the parts that they are for, and are refused by name where they make no sense."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from bilevel_gym import BilevelEnv, BilevelProblem
from bilevel_gym.errors import BilevelError, InvalidProblem, UnknownName, UnsupportedProblem
from bilevel_gym.objectives import PreferenceObjective
from bilevel_gym.preferences import Query, Teacher
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import network_for
from bilevel_gym.solvers import SAC, DiscreteSAC
from bilevel_gym.worlds import VectorWorld

PENDULUM, PONG, TABLE = "bilevel/PendulumPreference-v0", "bilevel/PongPreference-v0", "bilevel/TabularPreference-v0"
ASKED = {
    "rationality": inf,
    "teacher": {"mistake": 0.1},
    "members": 3,
    "query": {"rule": "disagreement", "pairs": 3, "ratio": 5},
    "budget": 40,
    "half_rate": 2.5,
    "objective": {"length": 5, "pairs": 6, "trajectories": 6},
}


def tiny(name: str, **options: Any) -> Any:
    """An id at its smallest."""
    return gym.make(name, **({} if name == TABLE else {"preset": "tiny"}), **options)


@pytest.mark.parametrize("name", [PENDULUM, PONG])
def test_arguments_reach_the_parts_and_survive_json(name: str) -> None:
    """Without it a query, a budget or an ensemble would need objects, and a run could not be described by text."""
    env = tiny(name, **ASKED)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    for made in (env, again):
        problem = made.unwrapped.problem
        objective = problem.objective
        assert objective.teacher == Teacher(inf, mistake=0.1)
        assert objective.query == Query("disagreement", pairs=3, ratio=5)
        assert (objective.budget, objective.half_rate) == (40, 2.5)
        assert (objective.length, objective.pairs, objective.trajectories) == (5, 6, 6)
        assert problem.reward.members == 3
    assert again.unwrapped.problem.objective == env.unwrapped.problem.objective


def test_longer_fragments_are_cut_from_longer_looks() -> None:
    """Who asks for fragments longer than the preset's looks was told of steps, which nobody had named; and no look is longer than an episode."""
    found = [
        tiny(PENDULUM, horizon=horizon, objective=sizes).unwrapped.problem.objective.steps
        for horizon, sizes in ((70, {"length": 60}), (70, {"length": 20}), (40, {}), (70, {"steps": 65}), (70, {"steps": None}))
    ]
    assert found == [60, 50, 40, 65, None]


def test_episodes_are_the_tasks_own_up_to_the_presets() -> None:
    """Pendulum's 200 steps are not made a thousand, nor CartPole's 500; who names a horizon has it."""
    for name, options, horizon in (
        (PENDULUM, {}, 200),
        ("bilevel/CartPolePreference-v0", {"preset": "demo"}, 250),
        (PENDULUM, {"horizon": 300}, 300),
    ):
        problem = gym.make(name, **options).unwrapped.problem
        assert problem.world.horizon == horizon
        assert problem.objective.steps <= horizon


def test_what_is_asked_is_counted() -> None:
    """Without it the query's pairs or the budget might be read and not used."""
    env = tiny(PENDULUM, **{**ASKED, "half_rate": None, "budget": 14})
    _, first = env.reset(seed=0)
    *_, second = env.step(env.unwrapped.x.numpy())
    *_, third = env.step(env.unwrapped.x.numpy())
    assert (first["comparisons_left"], second["comparisons_left"], third["comparisons_left"]) == (8.0, 0.0, 0.0)
    assert len(env.unwrapped.evaluation.memory) == 14


@pytest.mark.parametrize("name", [PENDULUM, TABLE])
def test_an_unknown_knob_is_named(name: str) -> None:
    """Without it a spelling mistake would be a TypeError from inside a dataclass."""
    with pytest.raises(UnknownName, match="'mistakes'; choose one of: discount, equal_within, mistake, skip_below"):
        tiny(name, teacher={"mistakes": 0.1})


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"query": {"rule": "disagree", "pairs": 3}}, UnknownName, "query rule 'disagree'; choose one of: disagreement, entropy, uniform"),
        ({"query": {"rule": "entropy", "pair": 3}}, UnknownName, "option of the query 'pair'; choose one of: pairs, ratio, rule"),
        ({"query": {"rule": "entropy"}}, InvalidProblem, "incomplete.*'pairs'"),
        ({"query": {"rule": "entropy", "pairs": "few"}}, InvalidProblem, "pairs is 'few': it must be a whole number"),
        ({"query": {"rule": "disagreement", "pairs": 3}}, UnsupportedProblem, "members=3"),
        ({"query": "entropy"}, InvalidProblem, "query is 'entropy': it must be a mapping of names to values, or None"),
        ({"objective": {"lenght": 3}}, UnknownName, "size of the objective 'lenght'; choose one of: .*length"),
        ({"objective": {"length": "long"}}, InvalidProblem, "length is 'long': it must be a whole number"),
        ({"objective": {"length": 30, "steps": 30}, "horizon": 20}, InvalidProblem, "20 steps are shorter than a fragment, which has 30"),
        ({"objective": {"length": 60}}, InvalidProblem, "shorter than a fragment, which has 60: make horizon larger"),
        ({"objective": {"steps": 3}}, InvalidProblem, "steps is 3, shorter than a fragment"),
        ({"objective": {"steps": "many"}}, InvalidProblem, "steps is 'many': it must be a whole number"),
        ({"horizon": 3}, InvalidProblem, "make horizon larger"),
        ({"horizon": 12.5}, InvalidProblem, "horizon is 12.5: it must be a whole number, or None"),
        ({"rationality": -1.0}, InvalidProblem, "rationality is -1.0"),
        ({"rationality": "high"}, InvalidProblem, "rationality is 'high': it must be a number"),
        ({"teacher": {"mistake": "often"}}, InvalidProblem, "mistake is 'often': it must be a number"),
        ({"teacher": 0.1}, InvalidProblem, "teacher is 0.1: it must be a mapping"),
        ({"budget": 0}, InvalidProblem, "budget is 0"),
        ({"comparisons": 3}, InvalidProblem, "3 is no path of a file"),
        ({"half_rate": -1.0}, InvalidProblem, "half_rate is -1.0"),
        ({"members": 0}, InvalidProblem, "members is 0"),
        ({"members": True}, InvalidProblem, "members is True: it must be a whole number"),
        ({"temperature": "hot"}, InvalidProblem, "temperature is 'hot': it must be a number, or None"),
        ({"discount": None}, InvalidProblem, "discount is None: it must be a number"),
        ({"preset": "tny"}, UnknownName, "unknown preset 'tny'"),
        ({"device": "cda"}, InvalidProblem, "device is 'cda'.*take 'cpu'"),
        ({"device": None}, InvalidProblem, "device is None.*take 'cpu'"),
    ],
)
@pytest.mark.parametrize("name", [PENDULUM, PONG])
def test_what_makes_no_sense_is_refused_by_name(name: str, options: dict[str, Any], error: type[BilevelError], words: str) -> None:
    """Without it a mistake would be a TypeError from deep inside, or a task that nobody has asked for."""
    with pytest.raises(error, match=words):
        gym.make(name, **{"preset": "tiny", **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_starts": 200, "capacity": 100}, "the replay must hold learning_starts transitions"),
        ({"capacity": 0}, "capacity is 0"),
        ({"batch_size": "64"}, "batch_size is '64': it must be a whole number"),
        ({"learning_rate": "slow"}, "learning_rate is 'slow': it must be a number"),
        ({"anneal_steps": 10.5}, "anneal_steps is 10.5: it must be a whole number, or None"),
    ],
)
@pytest.mark.parametrize("solver", [SAC, DiscreteSAC])
def test_a_replay_that_is_too_small(solver: type[SAC | DiscreteSAC], options: dict[str, Any], words: str) -> None:
    """Without it a solver whose replay never fills up would collect for ever and learn nothing."""
    with pytest.raises(InvalidProblem, match=words):
        solver(**options)


class Odd(gym.Env[np.ndarray, Any]):
    """Spaces that something here cannot read, and no rule of play."""

    def __init__(self, observations: gym.Space[Any], actions: gym.Space[Any]) -> None:
        self.observation_space, self.action_space = observations, actions


FLAT, GRID = gym.spaces.Box(-1.0, 1.0, (3,)), gym.spaces.Box(-1.0, 1.0, (3, 3))


@pytest.mark.parametrize(
    ("spaces", "words"),
    [
        ((FLAT, gym.spaces.MultiDiscrete([2, 2])), "flat Box with finite bounds that differ or a Discrete space is needed"),
        ((FLAT, gym.spaces.Box(-np.inf, np.inf, (2,))), "flat Box with finite bounds that differ or a Discrete space is needed"),
        ((GRID, gym.spaces.Discrete(2)), "a flat Box is needed"),
        ((gym.spaces.Text(3), gym.spaces.Discrete(2)), "a flat Box is needed"),
    ],
    ids=["several choices", "unbounded", "grid", "text"],
)
def test_spaces_that_nothing_reads(spaces: tuple[gym.Space[Any], gym.Space[Any]], words: str) -> None:
    """Without it such a task would fail in the middle of a product of matrices."""
    gym.register("Odd-v0", lambda: Odd(*spaces), max_episode_steps=50)
    try:
        with pytest.raises(InvalidProblem, match=words):
            gym.make("bilevel/GymPreference-v0", env_id="Odd-v0", preset="tiny")
    finally:
        del gym.registry["Odd-v0"]


@pytest.mark.parametrize("fault", ["solver", "fragments", "query"])
def test_a_refusal_in_a_step_changes_nothing(fault: str) -> None:
    """Without it an environment would be half a step further after an error, and a second try another run."""
    world = VectorWorld("Pendulum-v1", 0.9, horizon=12)
    objective = PreferenceObjective(length=4, pairs=2, trajectories=4, steps=8, cut="anywhere", capacity=20)
    problem = BilevelProblem(world, network_for(world, hidden=(4,)), Shannon(0.1), objective)
    solver = SAC(steps=12, learning_starts=8, batch_size=4, hidden=(4,), capacity=100)
    env = BilevelEnv(problem, solver, solve_on_reset=False)
    env.reset(seed=0)
    x = env.x.numpy() * 0.5
    expected = [env.step(x)[1], env.step(x)[1]]
    env.reset(seed=0)
    before, counters = (env.x, env.response, env.evaluation), replace(env.counters)
    if fault == "solver":
        env.solver = DiscreteSAC(steps=12, learning_starts=8, batch_size=4, hidden=(4,), capacity=100)
    elif fault == "fragments":
        env.problem = replace(problem, objective=replace(objective, length=13, steps=20))
    else:
        env.problem = replace(problem, objective=replace(objective, query=Query("disagreement", pairs=1)))
    with pytest.raises(InvalidProblem if fault == "fragments" else UnsupportedProblem):
        env.step(x)
    assert all(one is other for one, other in zip(before, (env.x, env.response, env.evaluation), strict=True))
    assert env.counters == counters
    env.solver, env.problem = solver, problem
    assert [env.step(x)[1], env.step(x)[1]] == expected
