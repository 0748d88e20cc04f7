"""The Stackelberg game: a closed form in one state, finite differences in several."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bilevel_gym import agents
from bilevel_gym.envs import draw_markov_game, stackelberg_game
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.hypergradients import Exact
from bilevel_gym.numerics import TableFunction
from bilevel_gym.objectives import ReturnObjective
from bilevel_gym.problem import stack
from bilevel_gym.rewards import FunctionReward
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.testing import check_hypergradient, phi

DOMINATED = [[[3, 3], [6, 4]], [[4, 6], [2, 2]]]
"""The second row is better for the leader, and leaves the follower indifferent."""
COMMITMENT = [[[2, 4], [1, 3]], [[1, 0], [0, 1]]]
"""The leader gains by mixing: against an exact follower ½, ½ is worth 3.5, and each pure row less (Conitzer and Sandholm, 2006)."""
TAU, GAMMA = 0.1, 0.9


def leader_values(payoffs, mixture):
    """The leader's discounted value at each probability of the first row, written out in NumPy."""
    leader, follower = np.array(payoffs, dtype=float)
    rows = np.stack([mixture, 1 - mixture], -1)
    logits = rows @ follower / TAU
    answer = np.exp(logits - logits.max(-1, keepdims=True))
    answer /= answer.sum(-1, keepdims=True)
    return np.einsum("nb,ba,na->n", rows, leader, answer) / (1 - GAMMA)


@pytest.mark.parametrize("payoffs", [DOMINATED, COMMITMENT], ids=["dominated", "commitment"])
def test_certificate_of_the_matrix_game(payoffs):
    """φ is the closed form at every mixture, and descent from the best of a coarse grid ends at the best mixture of a fine one."""
    env = stackelberg_game(payoffs=payoffs, temperature=TAU, discount=GAMMA)
    env.reset(seed=0)
    half = torch.linspace(-10, 10, 401, dtype=torch.float64)
    x = torch.stack([half, -half], -1)
    solved = SoftPolicyIteration().solve(env.problem, x)
    value = -env.problem.objective.value(env.problem, x, solved.policy)
    np.testing.assert_allclose(value, leader_values(payoffs, torch.sigmoid(2 * half).numpy()), atol=1e-9)
    env.reset(options={"x": x[::20][value[::20].argmax()]})
    agents.exact(env, learning_rate=0.02).learn(200)
    best = leader_values(payoffs, np.linspace(0, 1, 100_001)).max()
    np.testing.assert_allclose(-float(env.evaluation.value), best, atol=1e-5)


def test_the_first_rows_of_the_games():
    """The follower's softness makes the dominated game worth 5 a step at its edge, and the commitment game more than any pure row."""
    edge = leader_values(DOMINATED, np.array([0.0, 1.0])) * (1 - GAMMA)
    np.testing.assert_allclose(edge, [5.0, 3.0], atol=1e-12)
    mixed = leader_values(COMMITMENT, np.linspace(0, 1, 1001)) * (1 - GAMMA)
    assert mixed.max() > max(mixed[0], mixed[-1]) + 0.1
    assert 0.2 < np.linspace(0, 1, 1001)[mixed.argmax()] < 0.5


@pytest.mark.parametrize("leader_discount", [None, 0.5])
def test_exact_gradient_of_a_markov_game(leader_discount):
    """x in r, in P and in f: a term that is left out, or a mixed-up axis of the game, breaks the finite differences."""
    game = draw_markov_game(np.random.default_rng(1), states=4, leader_actions=2, follower_actions=3)
    problem = game.problem(discount=0.8, leader_discount=leader_discount, temperature=0.2)
    x = torch.as_tensor(np.random.default_rng(2).standard_normal(8))
    check_hypergradient(problem, x, Exact(), tolerance=1e-7)


def test_the_markov_game_is_what_it_says():
    """φ against a simulation-free sum over both players' joint play: the leader's table must not be read by the follower, nor transposed."""
    game = draw_markov_game(np.random.default_rng(3), states=3, leader_actions=2, follower_actions=4)
    problem = game.problem(discount=0.7, leader_discount=None, temperature=0.3)
    x = torch.as_tensor(np.random.default_rng(4).standard_normal(6))
    mixed = np.exp(x.numpy().reshape(3, 2))
    mixed /= mixed.sum(-1, keepdims=True)
    value = np.zeros(3)
    for _ in range(200):
        q = np.einsum("sb,sba->sa", mixed, game.follower) + 0.7 * np.einsum("sb,sbat,t->sa", mixed, game.transition, value)
        value = 0.3 * np.log(np.exp(q / 0.3).sum(-1))
    policy = np.exp(q / 0.3) / np.exp(q / 0.3).sum(-1, keepdims=True)
    joint = mixed[:, :, None] * policy[:, None]
    law, total = np.full(3, 1 / 3), 0.0
    for t in range(200):
        total += 0.7**t * np.einsum("s,sba,sba->", law, joint, game.leader)
        law = np.einsum("s,sba,sbat->t", law, joint, game.transition)
    np.testing.assert_allclose(float(phi(problem, x)), -total, atol=1e-10)


def test_reference_value():
    """The docstring's number for seed 0."""
    env = stackelberg_game()
    env.reset(seed=0)
    before = float(env.evaluation.value)
    agents.exact(env, learning_rate=1.0).learn(300)
    np.testing.assert_allclose((before, float(env.evaluation.value)), (-5.2854, -8.0624), atol=1e-4)


def test_bad_games_are_refused():
    """Payoffs of the wrong shape are named, instead of failing in the middle of an einsum."""
    for bad in ([[1, 2], [3, 4]], [[[1, 2]], [[1, 2]], [[1, 2]]], [[[1, 2]], [[1], [2]]]):
        with pytest.raises(InvalidProblem, match=r"\[2, L, A\]"):
            stackelberg_game(payoffs=bad)
    with pytest.raises(InvalidProblem, match="1 at least"):
        stackelberg_game(states=0)
    with pytest.raises(InvalidProblem, match="finite"):
        stackelberg_game(payoffs=[[[1, float("nan")]], [[1, 2]]])


def test_parts_that_make_no_batch_are_refused():
    """Closures hide their numbers, and boxes or discounts that differ have no common action space: named, instead of mixed up."""
    games = [draw_markov_game(np.random.default_rng(seed)) for seed in range(2)]
    options = {"leader_discount": None, "temperature": 0.1}
    first, other = (game.problem(discount=0.9, **options) for game in games)
    assert stack([first, other]).world.transition.shape == (2, 5, 3, 5)
    with pytest.raises(InvalidProblem, match="one discount"):
        stack([first, games[1].problem(discount=0.8, **options)])
    with pytest.raises(UnsupportedProblem, match="in their costs alone"):
        stack([first, games[1].problem(discount=0.9, leader_discount=0.5, temperature=0.1)])
    plain = [FunctionReward(lambda x: x.view(1, 2), [0.0, 0.0], [1.0, high]) for high in (1.0, 2.0)]
    with pytest.raises(InvalidProblem, match="one box"):
        FunctionReward.stack(plain)
    with pytest.raises(UnsupportedProblem, match="TableFunction"):
        FunctionReward.stack([plain[0], FunctionReward(lambda x: x.view(1, 2), [0.0, 0.0], [1.0, 1.0])])
    table = torch.ones(1, 2, dtype=torch.float64)
    with pytest.raises(UnsupportedProblem, match="TableFunction"):
        ReturnObjective.stack([ReturnObjective(TableFunction(function, (table,))) for function in (torch.add, torch.mul)])
    costs = ReturnObjective.stack([ReturnObjective(table), ReturnObjective(2 * table)]).cost
    assert torch.equal(costs, torch.stack([table, 2 * table]))


def test_bad_boxes_are_refused():
    """A reward whose box is empty, infinite or left by its start makes no action space."""
    for low, high, start, words in (
        ([0.0], [0.0], None, "low below high"),
        ([0.0], [float("inf")], None, "finite"),
        ([0.0], [1.0, 2.0], None, r"\[D\]"),
        ([0.0], [1.0], (0.5, 2.0), "inside the box"),
    ):
        with pytest.raises(InvalidProblem, match=words):
            FunctionReward(lambda x: x, low, high, start=start)


def test_rewards_along_pairs():
    """r_x at pairs is the table looked up; sampled estimators read it."""
    reward = FunctionReward(lambda x: x.unflatten(-1, (2, 2)) ** 2, np.zeros(4), np.ones(4))
    x = torch.arange(4, dtype=torch.float64)
    torch.testing.assert_close(reward.along(x, torch.tensor([0, 1]), torch.tensor([1, 0])), torch.tensor([1.0, 4.0], dtype=torch.float64))
