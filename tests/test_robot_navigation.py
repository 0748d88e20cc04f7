"""Robot navigation: brute force over the cost maps of a small terrain, and a bound that no cost map can pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bilevel_gym import agents
from bilevel_gym.envs import drive_cost, robot_navigation
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.hypergradients import Exact
from bilevel_gym.numerics import expect_next
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.testing import check_hypergradient, phi


def test_certificate_by_brute_force():
    """On a terrain of three cells the descent ends at the best of 9,261 cost maps: two cells at the edge of the box, one inside."""
    env = robot_navigation(terrain=["S~", ".G"], max_cost=2.0)
    env.reset(seed=0)
    side = torch.linspace(0, 2, 21, dtype=torch.float64)
    x = torch.cartesian_prod(side, side, side)
    values = env.problem.objective.value(env.problem, x, SoftPolicyIteration().solve(env.problem, x).policy)
    agents.exact(env, learning_rate=2.0).learn(300)
    np.testing.assert_allclose(float(env.evaluation.value), float(values.min()), atol=1e-4)
    assert torch.equal(x[values.argmin()][:2], torch.tensor([2.0, 2.0], dtype=torch.float64))
    assert abs(float(env.x[2] - x[values.argmin()][2])) < 0.1


def test_no_cost_map_passes_the_bound():
    """The designer's own optimal control bounds φ from below, and the descent comes within 1 % of it: a cost that is mixed up breaks it."""
    env = robot_navigation()
    env.reset(seed=0)
    world, cost = env.problem.world, env.problem.objective.cost
    value = torch.zeros(world.states, dtype=torch.float64)
    for _ in range(2000):
        value = (cost + 0.99 * expect_next(world.transition, value)).amin(-1)
    bound = float(world.start @ value)
    assert bound == pytest.approx(15.9556, abs=1e-4)
    first = float(env.evaluation.value)
    blind = float(phi(env.problem, torch.zeros(env.problem.dimension, dtype=torch.float64)))
    agents.exact(env, learning_rate=0.4).learn(100)
    last = float(env.evaluation.value)
    np.testing.assert_allclose((first, blind, last), (18.9626, 22.8685, 16.0418), atol=1e-4)
    assert bound < last < 1.01 * bound


def staying(world):
    """P(s | s, a), [S, A]."""
    reached = expect_next(world.transition, torch.eye(world.states, dtype=torch.float64))
    return torch.einsum("ssa->sa", reached).numpy()


def test_collisions_are_what_keeps_the_robot_in_place():
    """The probability of a collision read off P itself: a slip that is not counted, or counted twice, shows."""
    env = robot_navigation(slip=0.3)
    world = env.problem.world
    driving = ~world.grid.marked("G")
    cost = drive_cost(world.grid, slip=0.3, energy=2.0, collision=7.0)
    rough = world.grid.marked("~")
    np.testing.assert_allclose((cost - 1.0 - 2.0 * rough[:, None])[driving], 7.0 * staying(world)[driving], atol=1e-12)
    assert float(env.problem.objective.cost[~torch.as_tensor(driving)].abs().max()) == 0.0


def test_exact_gradient():
    """A cell of the map that is charged elsewhere, or the discounts of robot and designer exchanged, breaks the differences."""
    env = robot_navigation(terrain=["S~.", ".#G", "..~"])
    env.reset(seed=1)
    check_hypergradient(env.problem, env.x, Exact(), tolerance=1e-7)
    reward = env.problem.reward.at(env.x)
    np.testing.assert_allclose(reward[:4, 2], -1.0 - env.x[:4])
    np.testing.assert_allclose(reward[4], 0.0)


def test_rendering_and_refusals():
    """The picture is a map; a terrain without a goal and a negative cost are named."""
    env = robot_navigation(render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (6 * 29, 8 * 29, 3)
    with pytest.raises(InvalidProblem, match="marked"):
        robot_navigation(terrain=["S.."])
    with pytest.raises(InvalidProblem, match="neither is negative"):
        robot_navigation(energy=-1.0)
    with pytest.raises(InvalidProblem, match="box"):
        robot_navigation(max_cost=0.0)
