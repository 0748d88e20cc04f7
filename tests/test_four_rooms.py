"""HPGD's four rooms: the incentives, the upper objective against rollouts, the gradient, and the picture of a map."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym import agents
from bilevel_gym.envs import ProblemOracle, four_rooms_incentive, grid_picture
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.hypergradients import Exact
from bilevel_gym.numerics import vjp
from bilevel_gym.rewards import IncentiveReward
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.testing import phi
from bilevel_gym.worlds import Grid

SOLVER = SoftPolicyIteration(tolerance=1e-13)


def uneven(problem, seed=0):
    """Logits that charge some cells much more than others."""
    return 2.0 * torch.as_tensor(np.random.default_rng(seed).standard_normal(problem.dimension))


def test_incentives_start_inside_their_box():
    """Scaled after the clip to the box, a wide start was outside of the action space, which refuses it only when an agent sends it back."""
    wide = IncentiveReward(np.zeros((3, 2)), amount=-0.2, spread=50.0, bound=4.0)
    draws = torch.randn(4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(wide.initial(torch.Generator().manual_seed(0)), (50.0 * draws).clamp(-4.0, 4.0))
    plain = IncentiveReward(np.zeros((3, 2)), amount=-0.2)
    torch.testing.assert_close(plain.initial(torch.Generator().manual_seed(0)), 0.01 * draws)


def test_incentives():
    """What x hands out, where it is paid, and what that leaves of the base reward."""
    reward = IncentiveReward(np.zeros((2, 3, 4)), [[1, 1, 0], [1, 0, 1]], amount=-0.2)
    assert reward.dimension == 4
    x = torch.tensor([[0.0, 1.0, 2.0, 3.0]], dtype=torch.float64)  # [1, D], as a leader of two followers gives it
    share = np.exp([0.0, 1, 2, 3]) / np.exp([0.0, 1, 2, 3]).sum()
    np.testing.assert_allclose(reward.incentives(x)[0], -0.2 * share[:3])
    expected = -0.2 * share[:3] * np.array([[1, 1, 0], [1, 0, 1]])
    np.testing.assert_allclose(reward.at(x), np.repeat(expected[..., None], 4, -1))
    cotangent = torch.as_tensor(np.random.default_rng(0).standard_normal((2, 3, 4)))
    torch.testing.assert_close(reward.vjp(x, cotangent).sum(-2, keepdim=True), vjp(reward.at, x, cotangent))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base": np.zeros(3)}, "base has shape"),
        ({"paid": [1.0, 1.0]}, "paid has shape"),
        ({"paid": [1.0, np.nan, 1.0]}, "finite"),
        ({"amount": 0.0}, "nothing to share out"),
        ({"amount": np.inf}, "amount is inf"),
        ({"spread": -1.0}, "spread is -1.0"),
    ],
)
def test_bad_incentives_are_named(options, words):
    """Tables that do not fit, and an amount that hands out nothing, are refused where they are given."""
    with pytest.raises(InvalidProblem, match=words):
        IncentiveReward(**{"base": np.zeros((3, 2)), "amount": -0.2, **options})


def test_the_follower_sees_the_incentives():
    """r_x is 1 in the goal of each follower, where no incentive is paid, and −.2 softmax(x)_s elsewhere; the step into the goal earns nothing."""
    problem = four_rooms_incentive().problem
    x = uneven(problem)
    mdp = problem.at(x)
    assert mdp.reward.shape == (2, 104, 4)
    grid = problem.world.grid
    share = torch.softmax(x, -1)
    for follower, goal in enumerate([grid.state(1, 9), grid.state(11, 11)]):
        expected = -0.2 * share[:-1]
        expected[goal] = 1.0
        torch.testing.assert_close(mdp.reward[follower], expected[:, None].expand(104, 4))
        assert float(mdp.transition.dense()[follower, goal].sum()) == 0.0


@pytest.mark.parametrize(("horizon", "penalty", "trajectories"), [(200, 5.0, 800), (30, 3.0, 3000)])
def test_upper_objective_against_rollouts(horizon, penalty, trajectories):
    """The definition, step by step on trajectories, has the closed form as its mean, within 4 standard errors; without λ, or over another horizon, it has not."""
    problem = four_rooms_incentive(penalty=penalty, horizon=horizon).problem
    x = uneven(problem)
    policy = SOLVER.solve(problem, x).policy
    grid = problem.world.grid
    played = problem.world.rollout(policy, trajectories=trajectories, steps=horizon, generator=torch.Generator().manual_seed(1))
    goals = torch.tensor([grid.state(1, 9), grid.state(11, 11)])[played.contexts]
    norm = float((0.2 * torch.softmax(x, -1)[:-1]).sum())
    each = (played.states == grid.state(8, 4)).double() - penalty * norm * (played.states == goals[:, None])
    returns = (each * played.alive) @ 0.99 ** torch.arange(horizon, dtype=torch.float64)
    error = 4 * float(returns.std() / trajectories**0.5)

    def off(problem):
        return abs(float(returns.mean()) + float(problem.objective.value(problem, x, policy)))

    assert problem.objective.horizon == horizon
    assert off(problem) < error
    assert off(four_rooms_incentive(penalty=0.0, horizon=horizon).problem) > error
    if horizon == 30:
        assert off(four_rooms_incentive(penalty=penalty, horizon=60).problem) > error


@pytest.mark.parametrize("temperature", [0.001, 0.005])
def test_gradient_along_directions(temperature):
    """∇φ against central differences along random directions and along itself, at the sharpest follower too."""
    problem = four_rooms_incentive(penalty=3.0, temperature=temperature).problem
    x = uneven(problem, 2)
    oracle = ProblemOracle(problem, SOLVER, torch.Generator())
    response = SOLVER.solve(problem, x)
    gradient = Exact()(oracle, x, response, oracle.evaluate(x, response), None)[0].value
    directions = torch.as_tensor(np.random.default_rng(3).standard_normal((3, problem.dimension)))
    for direction in [gradient / gradient.norm(), *directions / directions.norm(dim=-1, keepdim=True)]:
        step = 1e-5 * direction
        difference = float(phi(problem, x + step) - phi(problem, x - step)) / 2e-5
        assert abs(difference - float(gradient @ direction)) < 1e-5 * float(gradient.norm())


def test_descent_moves_the_followers():
    """Twenty exact steps raise what the paper reports."""
    env = gym.make("bilevel/FourRoomsIncentive-v0", temperature=0.005)
    _, before = env.reset(seed=0)
    agents.exact(env, learning_rate=10.0).learn(20)
    assert float(env.unwrapped.evaluation.value) < before["objective"] - 0.1


def test_bad_penalty():
    """A negative λ would reward the leader for charging."""
    with pytest.raises(InvalidProblem, match="penalty is -1"):
        four_rooms_incentive(penalty=-1.0)


def test_picture_of_a_map():
    """Walls, colours, frames and arrows lie where the map has them; contexts stand side by side."""
    grid = Grid(("#S.", "..#"))
    policy = torch.zeros(4, 4, dtype=torch.float64)
    policy[:, 1] = 1.0  # to the right
    reward = torch.zeros(4, 4, dtype=torch.float64)
    reward[1], reward[2] = 1.0, -0.125
    picture = grid_picture(grid, policy, reward, cell=20)
    assert picture.shape == (40, 60, 3)
    assert picture.dtype == np.uint8
    wall, gain, loss, plain = (picture[row : row + 20, column : column + 20] for row, column in ((0, 0), (0, 40), (20, 0), (0, 20)))
    assert len(np.unique(wall.reshape(-1, 3), axis=0)) == 1
    assert gain[5, 5, 2] > gain[5, 5, 0] + 100  # blue
    assert loss[5, 5, 0] > loss[5, 5, 2] + 50  # red, half as deep: the cube root of ⅛
    assert plain[5, 5].min() == 255
    assert plain[0].max() < 60  # the start has a frame
    assert plain[10, 15].max() < 60  # the arrow points to the right
    assert plain[10, 4].min() == 255
    both = grid_picture(grid, torch.stack([policy, policy]), reward[None], cell=20)
    assert both.shape == (40, 130, 3)
    np.testing.assert_array_equal(both[:, 70:], picture)


def test_rendering_takes_the_map():
    """Single and vectorized environments draw the map where the world has one."""
    env = gym.make("bilevel/FourRoomsIncentive-v0", render_mode="rgb_array")
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape[0] == 13 * 29
    envs = gym.make_vec("bilevel/FourRoomsIncentive-v0", num_envs=2, render_mode="rgb_array")
    envs.reset(seed=0)
    np.testing.assert_array_equal(envs.render()[0], picture)
