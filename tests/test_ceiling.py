"""The agent ``sac``: the same environment with the true reward, x left alone."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import gymnasium as gym
import pytest
import torch

import bilevel_gym
from bilevel_gym import agents, checkpoint
from bilevel_gym.agents.runs import Run, RunSpec
from bilevel_gym.envs import with_true_reward
from bilevel_gym.errors import CheckpointError, InvalidProblem, UnsupportedProblem
from bilevel_gym.preferences import save_comparisons
from bilevel_gym.rewards import EnvironmentReward
from bilevel_gym.solvers import SAC

PENDULUM, CARTPOLE = "bilevel/PendulumPreference-v0", "bilevel/CartPolePreference-v0"


def tiny(name: str = PENDULUM) -> gym.Env:
    """A preference task, reset."""
    env = gym.make(name, preset="tiny")
    env.reset(seed=3)
    return env


def test_it_logs_what_the_others_log_and_leaves_x_alone() -> None:
    """Its curve could not be laid over theirs, or the 'ceiling' would move."""
    logs = []
    for make in (agents.sac, lambda env: agents.sobirl(env, updates_per_step=1, warmup_updates=0, batch=4)):
        seen: list[dict[str, float]] = []
        make(tiny()).learn(2, lambda agent, metrics, seen=seen: seen.append(dict(metrics)))
        logs.append(seen)
    mine, theirs = logs
    of_info = set(theirs[0]) - {name for name in theirs[0] if name.startswith(("norm_", "hyper", "critic", "clip"))}
    assert {"true_return", "env_steps", "comparisons", "accuracy_fresh", "accuracy_held_out", "objective", "gap"} <= of_info & set(mine[0])
    for name in ("env_steps", "comparisons", "lower_step"):
        assert [row[name] for row in mine] == [row[name] for row in theirs]
    for row in mine:
        assert row["learned_return"] == pytest.approx(row["true_return"], rel=1e-5)


def test_the_twin_differs_in_reward_and_temperature_alone() -> None:
    """Whatever else differed would be taken for the price of not knowing the reward."""
    env = tiny()
    before = env.unwrapped.get_state()
    agent = agents.sac(env)
    agent.learn(1)
    problem, given = agent.bilevel.problem, env.unwrapped.problem
    assert isinstance(problem.reward, EnvironmentReward)
    assert agent.bilevel.x.tolist() == [1.0]
    assert problem.regularizer.temperature == 0.2
    assert (problem.world, problem.objective, agent.bilevel.solver) == (given.world, given.objective, env.unwrapped.solver)
    after = env.unwrapped.get_state()
    assert torch.equal(checkpoint.unpack(after["x"]), checkpoint.unpack(before["x"]))
    assert (after["counters"], after["np_random"]) == (before["counters"], before["np_random"])


def test_temperatures() -> None:
    """τ of a reward in [−1, 1] means nothing to a reward of −16 a step: the default is SAC's own there, and the task's where falls count."""
    assert agents.sac(tiny()).bilevel.problem.regularizer.temperature == 0.2
    cartpole = tiny(CARTPOLE)
    assert agents.sac(cartpole).bilevel.problem.regularizer == cartpole.unwrapped.problem.regularizer
    assert agents.sac(cartpole, temperature=0.3).bilevel.problem.regularizer.temperature == 0.3
    assert with_true_reward(tiny()).problem.regularizer.temperature == 0.1  # no guess of units in the helper
    with pytest.raises(InvalidProblem, match="temperature"):
        agents.sac(cartpole, temperature=0.0)


def test_it_learns_more_than_random_play() -> None:
    """A ceiling that learns nothing would flatter all others: ten falls in 250 steps at random, about one when learnt."""
    env = gym.make(CARTPOLE, preset="demo", horizon=100)
    solver = replace(env.unwrapped.solver, steps=1200, learning_starts=400, batch_size=64)
    task = replace(env.unwrapped.problem, objective=replace(env.unwrapped.problem.objective, steps=100, held_out_pairs=0))
    env = bilevel_gym.BilevelEnv(task, solver, solve_on_reset=False)
    env.reset(seed=0)
    agent = agents.sac(env)
    agent.env.reset(seed=0)
    untrained = agent.bilevel.evaluation.metrics["true_return"]
    agent.learn(2)
    assert untrained < -3.0
    assert agent.bilevel.evaluation.metrics["true_return"] > 0.6 * untrained


def test_whoever_seeds_the_environment_has_seeded_it() -> None:
    """The study's curves could not be made again."""
    returns = []
    for order in ("before", "before", "after"):
        env = gym.make(PENDULUM, preset="tiny")
        if order == "before":
            env.reset(seed=5)
        agent = agents.sac(env)
        if order == "after":
            env.reset(seed=5)
        agent.learn(2)
        returns.append(agent.bilevel.evaluation.metrics["true_return"])
    assert returns[0] == returns[1] == returns[2]


def test_a_run_is_saved_and_goes_on(tmp_path) -> None:
    """The command line's folder must hold the twin, not the environment that nobody steps."""
    run = Run.create(RunSpec(PENDULUM, "sac", 1, {"preset": "tiny"}), tmp_path / "run")
    assert (run.step, run.bilevel.x.tolist()) == (0, [1.0])
    run.train(2)
    again = Run.load(tmp_path / "run")
    assert (again.step, again.bilevel.evaluation.metrics) == (2, run.bilevel.evaluation.metrics)
    again.train(3)
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 4
    assert "true_return" in rows[0]
    other = agents.sac(tiny(), temperature=0.5)
    with pytest.raises(CheckpointError, match="temperature"):
        other.set_state(run.agent.get_state())


def test_it_runs_where_the_others_ask_by_disagreement_and_begin_with_answers(tmp_path) -> None:
    """One reward has nobody to disagree with, and a file's pairs no rewards: the ceiling of such a task would be refused, or end with the budget."""
    known = gym.make(PENDULUM, preset="tiny")
    known.reset(seed=0)
    save_comparisons(tmp_path / "known.npz", known.unwrapped.evaluation.memory.content)
    query = {"rule": "disagreement", "pairs": 2}
    env = gym.make(PENDULUM, preset="tiny", members=3, query=query, budget=9, comparisons=str(tmp_path / "known.npz"))
    env.reset(seed=1)
    agent, asked = agents.sac(env), []
    agent.learn(3, lambda agent, metrics: asked.append(metrics["comparisons_left"]))
    assert asked[-1] == 0.0
    assert env.unwrapped.problem.objective.query.rule == "disagreement"
    with pytest.raises(UnsupportedProblem, match="comparisons hold states and actions alone"):
        replace(agent.bilevel.problem.objective, comparisons=env.unwrapped.problem.objective.comparisons).check(agent.bilevel.problem)


def test_where_there_is_no_simulator_it_says_so() -> None:
    """A table's follower is solved under a table of rewards, and a batch of environments is none."""
    for env in (gym.make("bilevel/RandomMDP-v0"), gym.make("bilevel/QuadraticBilevel-v0"), gym.make("CartPole-v1")):
        with pytest.raises(UnsupportedProblem, match="simulator"):
            agents.sac(env)


def test_a_foreign_solver_stays() -> None:
    """A follower given as an object must be the ceiling's follower, too."""
    solver = SAC(steps=30, learning_starts=10, batch_size=8, hidden=(4,))
    agent = agents.sac(gym.make(PENDULUM, preset="tiny", solver=solver))
    assert agent.bilevel.solver is solver
    assert agent.bilevel.problem.objective.teacher.rationality < inf
