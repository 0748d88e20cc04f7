"""M-SoBiRL: the order of its operations, and where it arrives."""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym import BilevelEnv, BilevelProblem, agents
from bilevel_gym.hypergradients import Exact, Implicit
from bilevel_gym.objectives import QuadraticObjective
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import QuadraticReward
from bilevel_gym.solvers import SoftPolicyIteration, SoftValueIteration
from bilevel_gym.worlds import TabularWorld


def instance(seed, states=10, actions=5, dimension=100):
    """The paper's synthetic instance as plain arrays: P, coefficients, matrix, x_1, w_0."""
    rng = np.random.default_rng(seed)
    transition = np.zeros((states, actions, states))
    for row in transition.reshape(-1, states):
        successors = rng.choice(states, size=rng.integers(1, states), replace=False)
        weights = rng.random(len(successors))
        row[successors] = weights / weights.sum()
    return (
        transition,
        rng.random((states, actions)) * rng.random((states, actions)),
        rng.standard_normal((dimension, dimension)),
        rng.standard_normal(dimension),
        rng.standard_normal(states),
    )


def transcription(transition, coefficients, matrix, x, w, *, steps, beta=8e-3, xi=0.5, sweeps=10, gamma=0.5, tau=1.0):
    """Mathematics §4 word by word in NumPy, everything formed: A, b, U, ∇r, ∇F."""
    states, actions, _ = transition.shape
    u = -gamma * transition.copy()
    for s in range(states):
        u[s, :, s] += 1.0
    q = np.full((states, actions), -tau * np.log(actions))
    policy = np.full((states, actions), 1.0 / actions)
    for _ in range(steps):
        a = (np.eye(states) - gamma * np.einsum("sa,sat->st", policy, transition)).T
        b = np.einsum("sat,sa->t", u, policy * policy)  # ∇_πf = π
        w = w - xi * (a.T @ a @ w - a.T @ b)
        value = tau * np.log(np.exp(q / tau).sum(-1))
        gradient_r = coefficients[..., None] * ((matrix + matrix.T) @ x)
        backup = coefficients * (x @ matrix @ x) + gamma * transition @ value
        weights = np.exp((backup - backup.max(-1, keepdims=True)) / tau)
        weights /= weights.sum(-1, keepdims=True)
        gradient_f = np.einsum("sa,sad->sd", weights, gradient_r)
        x = x - beta * (x + np.einsum("sad,sa->d", gradient_r, policy * policy) / tau - gradient_f.T @ w / tau)
        for _ in range(sweeps):
            q = coefficients * (x @ matrix @ x) + gamma * transition @ (
                q.max(-1) + tau * np.log(np.exp((q - q.max(-1, keepdims=True)) / tau).sum(-1))
            )
        policy = np.exp((q - q.max(-1, keepdims=True)) / tau)
        policy /= policy.sum(-1, keepdims=True)
    return x, w


@pytest.mark.parametrize("seed", range(3))
def test_reproduces_a_plain_transcription(seed):
    """Given P, coefficients, matrix, x_1 and w_0 as arrays, x at step 400 is that of §4 read line by line: another order is another x."""
    transition, coefficients, matrix, x1, w0 = instance(seed)
    problem = BilevelProblem(
        TabularWorld(transition, np.full(10, 0.1), 0.5), QuadraticReward(coefficients, matrix), Shannon(1.0), QuadraticObjective()
    )
    env = BilevelEnv(problem, SoftValueIteration(sweeps=10), initial_x=x1, solve_on_reset=False)
    agent = agents.HypergradientAgent(env, Implicit(step_size=0.5, initial=w0), partial(torch.optim.SGD, lr=8e-3)).learn(400)
    expected_x, expected_w = transcription(transition, coefficients, matrix, x1, w0, steps=400)
    np.testing.assert_allclose(agent.x, expected_x, atol=1e-9)
    np.testing.assert_allclose(env.x, expected_x, atol=1e-9)
    np.testing.assert_allclose(agent._estimator_state[0], expected_w, atol=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_reaches_the_optimum_with_the_papers_settings(seed):
    """x* = 0 with φ* = S/(2A) = 1: within 1e-6 and a gradient norm below 1e-8 from a standard normal start, in 3000 steps."""
    env = gym.make("bilevel/RandomMDP-v0")
    env.reset(seed=seed)
    initial = float(env.unwrapped.x.norm())
    assert 7.0 < initial < 13.0
    agent = agents.m_sobirl(env, learning_rate=8e-3, step_size=0.5, initial=np.random.default_rng(seed).standard_normal(10))
    for _ in range(6):
        agent.learn(500)
        if float(agent.hypergradient.value.norm()) < 1e-8:
            break
    assert abs(float(env.unwrapped.evaluation.value) - 1.0) < 1e-6
    assert float(agent.hypergradient.value.norm()) < 1e-8
    solved = SoftPolicyIteration().solve(env.unwrapped.problem, env.unwrapped.x)
    exact, _ = Exact()(env.unwrapped.oracle, env.unwrapped.x, solved, env.unwrapped.evaluation, None)
    assert float(exact.value.norm()) < 1e-8


def test_gradient_descent_with_the_exact_gradient_agrees():
    """The exact agent on a solved follower and M-SoBiRL go to the same optimum."""
    env = gym.make("bilevel/RandomMDP-v0", solver="policy_iteration")
    env.reset(seed=1)
    agents.exact(env).learn(1500)
    assert abs(float(env.unwrapped.evaluation.value) - 1.0) < 1e-6
