"""What may go wrong around a training, made to: kills, a full disk, lost workers, wild input, and a long run. Slow; see CONTRIBUTING.md."""

from __future__ import annotations

import inspect
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bilevel_gym import BilevelEnv, BilevelProblem, agents, checkpoint
from bilevel_gym.agents.callbacks import Checkpointer
from bilevel_gym.agents.runs import Run, RunSpec
from bilevel_gym.errors import BilevelError, SimulatorLost
from bilevel_gym.objectives import PreferenceObjective
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import MLPReward
from bilevel_gym.solvers import SAC
from bilevel_gym.worlds import VectorWorld
from tests.small import FEW
from tests.test_cli import equal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SMALL = {"states": 4, "actions": 2, "dimension": 5}
DEEP = RunSpec("bilevel/PendulumPreference-v0", "sobirl", 3, {"preset": "tiny", "horizon": 40}, FEW)


def forked(body: Callable[[], None]) -> int:
    """Run a function in a process of its own, which leaves with 0 where nothing is raised; its number."""
    child = os.fork()
    if child == 0:
        try:
            body()
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(3)
        os._exit(0)
    return child


def train(folder: Path, steps: int, **options: Any) -> None:
    """Go on with a run, or begin it, with a checkpoint after each step and every replay in a file."""
    defaults = inspect.unwrap(Checkpointer.__init__).__kwdefaults__
    assert defaults is not None
    defaults["large"] = 0
    run = Run.load(folder) if (folder / "checkpoint.pt").exists() else Run.create(DEEP, folder)
    run.train(steps, checkpoint_every=1, **options)


def test_twenty_kills_cost_nothing_that_was_saved(tmp_path: Path) -> None:
    """Without it a kill in a solve, or while a checkpoint or a replay's file is written, could cost what was saved before."""
    states: dict[int, Any] = {}
    straight = Run.create(DEEP, tmp_path / "straight")
    began = time.monotonic()
    straight.train(40, callbacks=[lambda agent, _: states.update({agent.bilevel.upper_step: agent.bilevel.get_state()})])
    each, folder, rng, reached, seen = (time.monotonic() - began) / 40, tmp_path / "killed", np.random.default_rng(0), 0, []
    for _ in range(20):
        child = forked(lambda: train(folder, 40))
        time.sleep(float(rng.uniform(0.0, 4.0)) * each + 0.05)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if not (folder / "checkpoint.pt").exists():
            for stray in folder.glob("*") if folder.exists() else ():
                stray.unlink()
            continue
        run = Run.load(folder)
        assert run.step >= reached, "a checkpoint was lost"
        reached = run.step
        seen.append(reached)
        if reached in states:
            assert equal(run.bilevel.get_state(), states[reached])
    print(f"steps at which it was killed: {seen}")
    assert len(set(seen)) > 3, "it was killed before it did anything"
    child = forked(lambda: train(folder, 40))
    assert os.waitpid(child, 0)[1] == 0
    assert equal(Run.load(folder).bilevel.get_state(), states[40])
    assert (folder / "metrics.csv").read_text() == (tmp_path / "straight" / "metrics.csv").read_text()


@pytest.mark.parametrize("large", [0, checkpoint.LARGE], ids=["files", "inside"])
def test_a_full_disk_harms_no_checkpoint(large: int, tmp_path: Path) -> None:
    """Without it a disk that fills up in the night would cost the last good checkpoint, or kill the process without a word."""
    run = Run.create(DEEP, tmp_path / "run")
    run.train(2)
    path, before = tmp_path / "run" / "checkpoint.pt", checkpoint.load(tmp_path / "run" / "checkpoint.pt")

    def limited() -> None:
        again = Run.load(tmp_path / "run")
        keeper = Checkpointer(path, large=large)
        again.agent.learn(1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        with pytest.raises(OSError, match="File too large"):
            keeper.save(again.agent)

    assert os.waitpid(forked(limited), 0)[1] == 0
    assert equal(checkpoint.load(path), before)
    assert not list((tmp_path / "run").glob("*.part"))
    assert not list((tmp_path / "run").glob("*.ring"))
    assert Run.load(tmp_path / "run").step == 2


def asynchronous() -> BilevelEnv:
    """A preference task whose follower's copies are processes."""
    world = VectorWorld("Pendulum-v1", 0.9, horizon=30, vectorization="async")
    objective = PreferenceObjective(length=5, pairs=2, capacity=10, trajectories=2, steps=10)
    problem = BilevelProblem(world, MLPReward.for_world(world, hidden=(4,)), Shannon(0.1), objective)
    solver = SAC(steps=20, num_envs=2, learning_starts=4, batch_size=4, hidden=(4,), capacity=100)
    return BilevelEnv(problem, solver, solve_on_reset=False)


def test_a_lost_worker_of_the_world_is_named(tmp_path: Path) -> None:
    """Without it a worker that the system kills would hang the run, or end it with an error about pipes."""
    env = asynchronous()
    env.reset(seed=0)
    agent = agents.drlhf(env, updates_per_step=1, warmup_updates=0, batch=2)
    keeper = Checkpointer(tmp_path / "run.pt", every=1)
    agent.learn(2, keeper)
    saved = checkpoint.load(tmp_path / "run.pt")
    os.kill(env.response.state.simulation.env.processes[1].pid, signal.SIGKILL)
    with pytest.raises(SimulatorLost, match="process"):
        agent.learn(1, keeper)
    assert equal(checkpoint.load(tmp_path / "run.pt"), saved)
    other = asynchronous()
    other.set_state(saved["env"])
    other.step(other.x.numpy())
    for one in (env, other):
        one.close()


def test_a_lost_worker_of_outer_environments_is_an_error(tmp_path: Path) -> None:
    """Without it a killed member of Gymnasium's vector of outer environments could hang the loop around it, or harm what was saved."""
    envs = gym.vector.AsyncVectorEnv([lambda: gym.make("bilevel/RandomMDP-v0", **SMALL)] * 2)
    envs.reset(seed=0)
    envs.step(envs.action_space.sample())
    states = envs.call("get_wrapper_attr", "get_state")
    checkpoint.save(tmp_path / "envs.pt", {"members": [state() for state in states]})
    os.kill(envs.processes[0].pid, signal.SIGKILL)
    with pytest.raises((EOFError, ConnectionError)):
        envs.step(envs.action_space.sample())
    for process in envs.processes:
        process.terminate()
    envs.closed = True  # Gymnasium would ask the lost one to close
    env: Any = gym.make("bilevel/RandomMDP-v0", **SMALL).unwrapped
    env.set_state(checkpoint.load(tmp_path / "envs.pt")["members"][0])
    assert env.upper_step == 1


ODD = st.one_of(
    st.none(),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.floats(), max_size=6),
    st.integers(0, 7).flatmap(lambda size: st.lists(st.floats(-20, 20), min_size=size, max_size=size).map(np.array)),
    st.lists(st.floats(-10, 10), min_size=5, max_size=5).map(np.array),
)
OPTIONS = st.one_of(st.none(), st.dictionaries(st.sampled_from(["x", "keep", "seed", "other"]), st.one_of(ODD, st.booleans()), max_size=3))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(st.one_of(st.tuples(st.just("step"), ODD), st.tuples(st.just("reset"), OPTIONS)), max_size=8))
@pytest.mark.parametrize("name", ["bilevel/RandomMDP-v0", "bilevel/PendulumPreference-v0"])
def test_wild_calls_corrupt_nothing(name: str, calls: list[tuple[str, Any]]) -> None:
    """Without it a bad action or option could leave half of itself behind, and the run go on from there."""
    env: Any = WILD.get(name) or WILD.setdefault(
        name, gym.make(name, **(SMALL if name == "bilevel/RandomMDP-v0" else {"preset": "tiny"})).unwrapped
    )
    env.reset(seed=0)
    for call, argument in calls:
        before = env.get_state()
        try:
            observation = env.step(argument)[0] if call == "step" else env.reset(options=argument)[0]
        except BilevelError:
            assert equal(env.get_state(), before)
        else:
            assert env.observation_space.contains(observation)
            assert bool(torch.isfinite(env.x).all())


WILD: dict[str, Any] = {}

NUMBERS = st.sampled_from([-1, 0, 1, 2, 5, 0.5, 1.5, float("nan"), float("inf"), None, "many"])


@settings(deadline=None, max_examples=80)
@given(arguments=st.dictionaries(st.sampled_from(["states", "actions", "dimension", "discount", "temperature", "solver", "odd"]), NUMBERS))
def test_wild_arguments_are_refused_or_work(arguments: dict[str, Any]) -> None:
    """Without it an environment could be made of numbers that make no problem, and fail in the middle of a run."""
    try:
        env = agents.making.make_env("bilevel/RandomMDP-v0", {"states": 3, "actions": 2, "dimension": 2, **arguments})
    except BilevelError:
        return
    env.reset(seed=0)
    observation, reward, *_ = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation)
    assert np.isfinite(reward)


@settings(deadline=None, max_examples=80)
@given(
    arguments=st.dictionaries(
        st.sampled_from(["steps", "num_envs", "update_every", "batch_size", "polyak", "capacity"]), st.integers(-2, 9)
    )
)
def test_wild_solvers_are_refused_or_work(arguments: dict[str, Any]) -> None:
    """Without it a solver could be made that never learns, or fails in its first solve."""
    try:
        solver = replace(SAC(steps=8, learning_starts=2, batch_size=4, hidden=(4,), capacity=20), **arguments)
    except BilevelError:
        return
    env: Any = gym.make("bilevel/PendulumPreference-v0", preset="tiny", solver=solver)
    env.reset(seed=0)
    assert np.isfinite(env.step(env.unwrapped.x.numpy())[1])
    env.close()


def resident() -> float:
    """MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.parametrize("name", ["table", "pendulum"])
def test_ten_thousand_steps_hold_their_memory(name: str, tmp_path: Path) -> None:
    """Without it a list that grows with every step would end a long run in the night."""
    if name == "table":
        env, make = gym.make("bilevel/RandomMDP-v0", **SMALL), agents.m_sobirl
        agent = make(env)
    else:
        solver = SAC(steps=2, update_every=2, learning_starts=2, batch_size=4, hidden=(4,), capacity=200)
        env = gym.make("bilevel/PendulumPreference-v0", preset="tiny", solver=solver, horizon=10)
        agent = agents.sobirl(env, updates_per_step=1, warmup_updates=0, batch=2)
    env.reset(seed=0)
    seen: list[float] = []

    def watch(agent: Any, metrics: Any) -> None:
        if int(metrics["upper_step"]) % 1000 == 0:
            seen.append(resident())

    with agents.CSVLogger(tmp_path / "metrics.csv") as log:
        agent.learn(10_000, agents.together(log, Checkpointer(tmp_path / "run.pt", every=500), watch))
    print(f"{name}: MiB at each thousand steps {[round(value) for value in seen]}")
    assert seen[-1] - seen[1] < 16.0
