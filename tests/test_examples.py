"""Every example runs, shows what it promises, and its parts do what they claim."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym import BilevelEnv, BilevelProblem, agents, objectives, regularizers, rewards, solvers, worlds
from bilevel_gym.hypergradients import Exact
from bilevel_gym.numerics import dense
from bilevel_gym.testing import check_hypergradient
from tests import problems

EXAMPLES = Path(__file__).parent.parent / "examples"
NEEDS = {"own_agent": ("stable_baselines3", "cmaes"), "own_solver": ("stable_baselines3",), "own_reward": ("PIL", "matplotlib")}
SHOWN = {
    "own_agent": "exact hyper-gradient",
    "own_estimator": "300      ",
    "own_objective": "nothing is more even",
    "own_reward": "drawn in lamps.png",
    "own_solver": "does not solve the entropy-regularized problem",
    "own_world": "cost to the planner",
    "wrap_your_env": "every step is in room.csv",
}


def example(name: str) -> Any:
    """One of them as a module."""
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem not in ("demo", "leader_follower")))
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    """The first thing that a person tries must not be broken, whatever has been renamed; the other two are with the documentation."""
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    command = [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py"), "--quick"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert said.returncode == 0, said.stderr
    assert SHOWN[name] in said.stdout
    if name == "own_reward":
        assert (tmp_path / "lamps.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("learn", ["evolve", "reinforce"])
@pytest.mark.parametrize(
    ("env_id", "options"), [("bilevel/RandomMDP-v0", {"states": 4, "dimension": 4}), ("bilevel/StackelbergGame-v0", {})]
)
def test_agents_from_elsewhere_improve_the_objective(learn: str, env_id: str, options: dict[str, Any]) -> None:
    """An environment that only our own agents can act on would be no Gymnasium environment: these two are told nothing of it."""
    module = example("own_agent")
    env = module.Record(gym.make(env_id, **options))
    getattr(module, learn)(env, 512)
    first, *_, last = (float(np.mean(part)) for part in np.array_split(env.seen, 8))
    known = gym.make(env_id, **options)
    known.reset(seed=0)
    best = float(agents.exact(known, learning_rate=0.3).learn(200).bilevel.evaluation.value)
    assert first - last > 0.3 * (first - best)


def test_the_own_estimator_tends_to_the_exact_one() -> None:
    """An example of an estimator that is wrong would be copied."""
    module, problem = example("own_estimator"), problems.quadratic(0)
    x = problems.point(problem, 0)
    check_hypergradient(problem, x, module.Neumann(400))
    with pytest.raises(AssertionError, match="disagrees"):
        check_hypergradient(problem, x, module.Neumann(1))


def test_the_own_reward_has_the_derivative_that_it_says() -> None:
    """A wrong derivative would go unseen in a picture."""
    module, world = example("own_reward"), worlds.open_grid(4, discount=0.9)
    reward = module.Lamps(world.grid.cells - 1.5, world.true_reward)
    objective = objectives.ReturnObjective(np.arange(64.0).reshape(16, 4))
    problem = BilevelProblem(world, reward, regularizers.Shannon(0.1), objective)
    check_hypergradient(problem, reward.initial(torch.Generator().manual_seed(0)), Exact())


def test_the_own_solver_comes_to_the_soft_optimal_policy() -> None:
    """A follower that learns something else would make nonsense of the objective; its gap must tell how far it is."""
    module, problem = example("own_solver"), problems.quadratic(0)
    x, source = problems.point(problem, 0), torch.Generator().manual_seed(0)
    exact = solvers.SoftPolicyIteration().solve(problem, x)
    warm, gaps = None, []
    for rate in (0.2, 0.02, 0.002):
        warm = module.QLearning(1500, rate).solve(problem, x, warm=warm, budget=None, generator=source)
        gaps.append(float(warm.gap))
    assert gaps[0] > gaps[1] > gaps[2]
    assert warm is not None
    assert float((warm.policy - exact.policy).abs().max()) < 0.05


def test_the_own_objective_is_least_where_all_is_even() -> None:
    """f would not measure evenness if another distribution of the time had less of it."""
    module = example("own_objective")
    ring = np.zeros((5, 2, 5))
    for state in range(5):
        ring[state, 0, (state + 1) % 5] = ring[state, 1, (state - 1) % 5] = 1.0
    problem = BilevelProblem(
        worlds.TabularWorld(ring, np.full(5, 0.2), 0.9),
        rewards.LinearReward(np.ones((5, 2, 1))),
        regularizers.Shannon(1.0),
        module.Evenness(),
    )
    env = BilevelEnv(problem, solvers.SoftPolicyIteration(), initial_x=[0.0])
    env.reset(seed=0)
    assert float(env.evaluation.value) == pytest.approx(-np.log(5))


def test_the_own_world_serves_who_comes() -> None:
    """Rows that sum to one are checked by the world itself; that a fast clerk shortens the queue is not."""
    world = example("own_world").queue()
    lengths = np.arange(world.states)
    drift = dense(world.transition_at(torch.zeros(2))).numpy() @ lengths - lengths[:, None]
    assert drift[1:-1, 0] == pytest.approx(0.4 - 0.4)
    assert drift[1:-1, 1] == pytest.approx(0.4 - 0.8)
