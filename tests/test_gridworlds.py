"""Gridworlds from text, and tables out of Gymnasium's toy text."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.toy_text.frozen_lake import generate_random_map

from bilevel_gym.envs.robot_navigation import robot_navigation
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.worlds import FOUR_ROOMS, Grid, GridWorld, chain, four_rooms, from_gymnasium, open_grid

UP, RIGHT, DOWN, LEFT = range(4)


def dense(world):
    """P as NumPy sees it."""
    return (world.transition if isinstance(world.transition, torch.Tensor) else world.transition.dense()).numpy()


def test_four_rooms_is_the_published_one():
    """104 cells, four corridors, start, goals and slip of .33: another map makes the published table incomparable."""
    world = four_rooms()
    grid, table = world.grid, dense(world)
    assert table.shape == (2, 104, 4, 104)
    for corridor in ((3, 6), (6, 2), (7, 9), (10, 6)):
        above, beside = ((-1, 0), (1, 0)), ((0, -1), (0, 1))
        walls, doors = (above, beside) if corridor[0] in (3, 10) else (beside, above)
        assert all(FOUR_ROOMS[corridor[0] + r][corridor[1] + c] == "#" for r, c in walls)
        assert all(FOUR_ROOMS[corridor[0] + r][corridor[1] + c] != "#" for r, c in doors)
    assert world.start.expand(2, -1).nonzero()[:, 1].tolist() == [grid.state(4, 1)] * 2
    goals = [grid.state(1, 9), grid.state(11, 11)]
    for context, goal in enumerate(goals):
        assert table[context, goal].sum() == 0
        assert world.termination[context].sum() == world.termination[context, goal].sum() == 4
        assert world.true_reward[context].sum() == world.true_reward[context, goal].sum() == 4
    others = np.setdiff1d(np.arange(104), goals)
    np.testing.assert_array_equal(table[0, others], table[1, others])
    here = grid.state(8, 4)
    expected = {UP: (7, 4), RIGHT: (8, 5), DOWN: (9, 4), LEFT: (8, 3)}
    for action in expected:
        for other, cell in expected.items():
            np.testing.assert_allclose(table[0, here, action, grid.state(*cell)], 0.67 if other == action else 0.11)
    corner = grid.state(1, 1)
    np.testing.assert_allclose(table[0, corner, UP, corner], 0.67 + 0.11)
    np.testing.assert_allclose(table[0, corner, RIGHT, corner], 0.11 + 0.11)


def test_slip_is_a_redraw():
    """.67 and thrice .11 are the same as redrawing among all four actions with probability 4/3·.33, as the paper words it."""
    world, sure = four_rooms(), GridWorld(FOUR_ROOMS, 0.99, goals=("1", "2"))
    redrawn = 4 / 3 * 0.33
    np.testing.assert_allclose(dense(world), (1 - redrawn) * dense(sure) + redrawn * dense(sure).mean(-2, keepdims=True), atol=1e-15)


def test_marks_rewards_and_one_goal():
    """Marks say where an episode starts and ends and what a cell earns; one goal string makes no context axis."""
    world = GridWorld(["SS~", "#.G"], 0.9, goal_reward=5.0, rewards={"~": -0.5})
    assert world.transition.shape == (5, 4, 5)
    assert world.context_weights is None
    assert world.start.tolist() == [0.5, 0.5, 0, 0, 0]
    assert world.true_reward[:, 0].tolist() == [0, 0, -0.5, 0, 5.0]
    assert world.termination[:, 3].tolist() == [0, 0, 0, 0, 1]
    assert dense(world)[1, DOWN].tolist() == [0, 0, 0, 1, 0]
    assert dense(world)[0, DOWN].tolist() == [1, 0, 0, 0, 0]
    assert world.grid.moves[2].tolist() == [2, 2, 4, 1]
    assert world.grid.cells.tolist() == [[0, 0], [0, 1], [0, 2], [1, 1], [1, 2]]
    picture = world.grid.picture(torch.arange(10).view(2, 5))
    np.testing.assert_array_equal(picture[1], [[5, 6, 7], [np.nan, 8, 9]])
    assert GridWorld(["..."], 0.9, start=None, goals="").start.tolist() == pytest.approx([1 / 3] * 3)


def test_chain_and_scatter():
    """A chain has two actions; scattering mixes in a uniform draw of the next state."""
    world = chain(5, 0.9, slip=0.2, rewards={"S": -2.5, ".": 0.5})
    assert dense(world).shape == (5, 2, 5)
    np.testing.assert_allclose(dense(world)[0, 1], [0.2, 0.8, 0, 0, 0])
    np.testing.assert_allclose(dense(world)[4, 0], [0, 0, 0, 0.8, 0.2])
    assert world.true_reward[:, 1].tolist() == [-2.5, 0.5, 0.5, 0.5, 0.0]
    np.testing.assert_allclose(dense(chain(5, 0.9, slip=0.2, scatter=0.1)), 0.9 * dense(world) + 0.02, atol=1e-15)


def test_open_grid_connects_two_corners():
    """The timing world: from the start one gets to the goal in 2(side − 1) steps and not in fewer."""
    world = open_grid(6, slip=0.0)
    state, reached = world.start.numpy() > 0, []
    for _ in range(11):
        reached.append(bool(state[-1]))
        state = state | ((state[:, None, None] * dense(world)).sum((0, 1)) > 0)
    assert reached == [False] * 10 + [True]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Grid(("..", "...")), "lengths"),
        (lambda: Grid(("##",)), "no cell"),
        (lambda: Grid(("..",), ()), "one action at least"),
        (lambda: Grid(("..",), ((0, 1, 0),)), r"\(rows, columns\)"),
        (lambda: GridWorld(["S.G"], 0.9, goals=()), "empty sequence"),
        (lambda: Grid(("#.",)).state(0, 0), "is not a cell"),
        (lambda: GridWorld(["..G"], 0.9), "marked"),
        (lambda: GridWorld(["S.G"], 0.9, rewards={"~": 1.0}), "marked"),
        (lambda: GridWorld(["S.G"], 0.9, slip=1.5), "slip is 1.5"),
        (lambda: GridWorld(["S.G"], 0.9, scatter=-0.1), "scatter is -0.1"),
        (lambda: GridWorld(["S.G"], 0.9, slip=0.1, directions=[(0, 1)]), "only one"),
        (lambda: GridWorld(["S#G"], 0.9), r"no way leads from the start \(0, 0\) to a goal"),
        (lambda: GridWorld(["S.G#S"], 0.9), r"no way leads from the start \(0, 4\) to a goal"),
        (lambda: GridWorld(["S.G#G"], 0.9), r"no way leads from any start to the goal \(0, 4\)"),
        (lambda: GridWorld(["S.GG"], 0.9), r"no way leads from any start to the goal \(0, 3\)"),
        (lambda: GridWorld(["..G#."], 0.9, start=None), r"no way leads from the start \(0, 4\) to a goal"),
        (lambda: GridWorld(["1.S#2"], 0.9, goals=("1", "2")), r"no way leads from the start \(0, 2\) to a goal"),
        (lambda: GridWorld(["S.G"], 0.9, directions=[(0, -1)]), "no way leads"),
        (lambda: robot_navigation(terrain=["S#G", ".#."]), "no way leads"),
        (lambda: chain(2, 0.9), "length is 2"),
        (lambda: open_grid(1), "side is 1"),
    ],
)
def test_bad_maps_are_refused(make, words):
    """A map or probability that makes no sense must be refused with the cure, not become an odd world."""
    with pytest.raises(InvalidProblem, match=words):
        make()


def test_maps_on_which_all_is_well():
    """A cell that leads nowhere is no error where nobody starts in it, and a scattered follower needs no way."""
    assert GridWorld(["S.G#."], 0.9).states == 4
    assert GridWorld(["S#G"], 0.9, scatter=0.1).states == 2
    assert GridWorld(["S#."], 0.9, goals="").states == 2
    assert GridWorld(["G"], 0.9, start="G").states == 1
    assert GridWorld("#####\n#S.G#\n#####", 0.9).grid.rows == ("#####", "#S.G#", "#####")


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("FrozenLake-v1", {"map_name": "4x4"}),
        ("FrozenLake-v1", {"map_name": "8x8", "is_slippery": False}),
        ("FrozenLake-v1", {"desc": generate_random_map(size=5, seed=3)}),
        ("CliffWalking-v1", {"is_slippery": True}),
        ("Taxi-v4", {}),
    ],
)
def test_tables_are_what_the_environment_does(env_id, options):
    """Each simulated step must be one that the tables allow, with the mean reward and the frequencies that they give."""
    env = gym.make(env_id, **options).unwrapped
    world = from_gymnasium(env, discount=0.95)
    table, ends, reward = dense(world), world.termination.numpy(), world.true_reward.numpy()
    np.testing.assert_allclose(table.sum(-1) + ends, 1.0, atol=1e-12)
    np.testing.assert_allclose(world.start, env.initial_state_distrib, atol=1e-15)
    rng = np.random.default_rng(0)
    count, earned, visits = np.zeros_like(table), np.zeros_like(reward), np.zeros_like(reward)
    state, _ = env.reset(seed=0)
    for _ in range(6000):
        action = int(rng.integers(world.actions))
        following, gained, terminated, _, _ = env.step(action)
        visits[state, action] += 1
        earned[state, action] += gained
        assert (ends if terminated else table[..., following])[state, action] > 0
        count[state, action, following] += not terminated
        state = env.reset()[0] if terminated else following
    often = visits > 100
    deviation = 4.5 * np.sqrt(0.25 / visits[often])
    assert (np.abs(count[often] / visits[often][:, None] - table[often]) <= deviation[:, None]).all()
    spread = np.ptp(reward) + 100.0 * (env_id == "CliffWalking-v1")
    assert (np.abs(earned[often] / visits[often] - reward[often]) <= spread * deviation + 1e-12).all()


def test_expected_reward_of_a_slippery_step():
    """The reward of (s, a) is the mean over its outcomes: beside the goal of FrozenLake one step in three succeeds."""
    world = from_gymnasium("FrozenLake-v1", discount=0.9)
    np.testing.assert_allclose(world.true_reward[14, RIGHT + 1], 1 / 3)
    np.testing.assert_allclose(world.termination[14, RIGHT + 1], 1 / 3)
    assert world.termination[15].tolist() == [1.0] * 4


def test_an_environment_without_tables_is_refused():
    """CartPole has no P, and a P without a start law needs one from the caller."""
    with pytest.raises(UnsupportedProblem, match="VectorWorld"):
        from_gymnasium("CartPole-v1", discount=0.9)
    env = gym.make("FrozenLake-v1")
    del env.unwrapped.initial_state_distrib
    with pytest.raises(UnsupportedProblem, match="start="):
        from_gymnasium(env, discount=0.9)
    assert from_gymnasium(env, discount=0.9, start=np.eye(16)[3]).start[3] == 1
    env.unwrapped.P = {1: env.unwrapped.P[1]}
    with pytest.raises(InvalidProblem, match="0 to S"):
        from_gymnasium(env, discount=0.9, start=[1.0])
