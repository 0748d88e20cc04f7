"""The soft linear-quadratic regulator: quadrature, SciPy's Riccati solver, rollouts, finite differences, and the weights recovered."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_are, solve_discrete_lyapunov
from scipy.optimize import minimize

from bilevel_gym import agents
from bilevel_gym.envs import ProblemOracle, draw_soft_lqr, soft_lqr
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.hypergradients import Exact, ExactRiccati
from bilevel_gym.linear_quadratic import cost_to_go
from bilevel_gym.objectives import RegulationCost
from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import QuadraticCost
from bilevel_gym.solvers import Riccati, SoftPolicyIteration
from bilevel_gym.testing import check_hypergradient, phi
from bilevel_gym.types import Budget
from bilevel_gym.worlds import LinearGaussianWorld
from tests import problems

SOLVER = Riccati()


def instance(seed, **options):
    """A drawn problem and the designer's weights."""
    return draw_soft_lqr(np.random.default_rng(seed), **options)


def test_policy_and_value_solve_the_soft_bellman_equation():
    """One state, one action, on a grid of actions: τ log ∫ exp(Q/τ) da is V, and exp((Q − V)/τ) the policy's density; a wrong factor of two
    in Σ, an entropy left out of c, or a lost γ shows."""
    a, b, noise, start, gamma, tau = 0.8, 0.7, 0.3, 0.0, 0.9, 0.4
    world = LinearGaussianWorld([[a]], [[b]], [[noise]], [[start]], gamma)
    cost = QuadraticCost(1, 1)
    x = torch.tensor([0.4, -0.3], dtype=torch.float64)
    problem = BilevelProblem(world, cost, Shannon(tau), RegulationCost(*cost.weights(x), tau))
    policy = SOLVER.solve(problem, x).policy
    q, r = (float(weight) for weight in cost.weights(x))
    value = float(cost_to_go(policy.gain, *cost.weights(x), world.state_matrix, world.action_matrix, gamma))
    constant = float(problem.objective.value(problem, x, policy))  # S₀ = 0: what is left is −V(0)
    actions = np.linspace(-20, 20, 200_001)
    for state in (0.0, 0.7, -2.0):
        ahead = value * ((a * state + b * actions) ** 2 + noise) + constant
        soft_q = -(q * state**2 + r * actions**2) - gamma * ahead
        best = soft_q.max()
        soft_value = best + tau * np.log(np.trapezoid(np.exp((soft_q - best) / tau), actions))
        np.testing.assert_allclose(soft_value, -(value * state**2 + constant), atol=1e-9)
        density = np.exp((soft_q - soft_value) / tau)
        mean = np.trapezoid(density * actions, actions)
        np.testing.assert_allclose(mean, float(policy.mean(torch.tensor([[state]], dtype=torch.float64))), atol=1e-9)
        np.testing.assert_allclose(np.trapezoid(density * (actions - mean) ** 2, actions), float(policy.covariance), atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_gain_is_the_riccati_equations(seed):
    """K from SciPy's solver of the algebraic Riccati equation, of √γA and √γB; the gap certifies, and a warm start needs fewer steps."""
    problem, _ = instance(seed, states=4, actions=2)
    x = problems.point(problem, seed)
    world, (state_cost, action_cost) = problem.world, problem.reward.weights(x)
    cold = SOLVER.solve(problem, x)
    a, b = (np.sqrt(world.discount) * matrix.numpy() for matrix in (world.state_matrix, world.action_matrix))
    value = solve_discrete_are(a, b, state_cost.numpy(), action_cost.numpy())
    gain = np.linalg.solve(action_cost.numpy() + b.T @ value @ b, b.T @ value @ a)
    np.testing.assert_allclose(cold.policy.gain, gain, atol=1e-10)
    assert cold.converged
    assert float(cold.gap) < 1e-12
    assert SOLVER.solve(problem, x + 1e-3, warm=cold).steps < cold.steps
    rough = Riccati(sweeps=1, tolerance=None).solve(problem, x)
    assert rough.steps == 1
    assert not rough.converged
    short = Riccati(sweeps=1).solve(problem, x)
    assert float(short.gap) > 1e-6
    assert not short.converged
    before = solve_discrete_lyapunov(a.T, state_cost.numpy())  # of K = 0, which the one step improves on
    gain = np.linalg.solve(action_cost.numpy() + b.T @ before @ b, b.T @ before @ a)
    after = state_cost.numpy() + gain.T @ action_cost.numpy() @ gain + (a - b @ gain).T @ before @ (a - b @ gain)
    np.testing.assert_allclose(float(rough.gap), np.abs(after - before).max(), rtol=1e-10)
    both = SOLVER.solve(problem, torch.stack([x, 0.5 * x]))
    np.testing.assert_allclose(both.policy.gain[0], cold.policy.gain, atol=1e-10)
    assert both.gap.shape == (2,)


def test_the_objective_is_the_mean_over_rollouts():
    """The closed form of f against 20,000 trajectories with the designer's weights and entropy, at a follower with other weights."""
    problem, truth = instance(5, states=2, actions=1, discount=0.8)
    x = torch.zeros(3, dtype=torch.float64)
    policy = SOLVER.solve(problem, x).policy
    generator = torch.Generator().manual_seed(0)
    played = problem.world.rollout(policy, trajectories=20_000, steps=60, generator=generator)
    cost = -problem.reward.along(truth, played.states, played.actions) - 0.5 * float(policy.entropy)
    returns = (cost * 0.8 ** torch.arange(60)).sum(-1)
    error = float(returns.std()) / np.sqrt(len(returns))
    assert abs(float(returns.mean()) - float(problem.objective.value(problem, x, policy))) < 4 * error
    assert error < 0.05


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_exact_gradient(seed, entropy):
    """The Newton step's derivative against central differences: K held where it must move, or moved where it must be held, breaks it."""
    problem, _ = instance(seed, states=3, actions=2, entropy=entropy)
    check_hypergradient(problem, problems.point(problem, seed), ExactRiccati(), tolerance=1e-7, solver=SOLVER)


@pytest.mark.parametrize("seed", range(3))
def test_certificate_the_weights_are_recovered(seed):
    """The follower's weights at the minimum are the designer's to 1e-6, and φ is her own optimal value; without the entropy they are not."""
    problem, truth = instance(seed)

    def function(x):
        x = torch.as_tensor(x)
        response = SOLVER.solve(problem, x)
        oracle = ProblemOracle(problem, SOLVER, torch.Generator())
        evaluation = oracle.evaluate(x, response)
        gradient, _ = ExactRiccati()(oracle, x, response, evaluation, None)
        return float(evaluation.value), gradient.value.numpy()

    found = minimize(function, np.zeros(5), jac=True, method="BFGS", options={"gtol": 1e-11})
    np.testing.assert_allclose(found.x, truth, atol=1e-6)
    assert np.linalg.norm(function(truth)[1]) < 1e-12
    np.testing.assert_allclose(found.fun, float(phi(problem, truth, solver=SOLVER)), atol=1e-10)
    problem, truth = instance(seed, entropy=False)
    assert np.linalg.norm(function(truth)[1]) > 1.0


def test_reference_value():
    """The docstring's numbers, and that the environment and the agent run on a world that is no table."""
    env = soft_lqr()
    env.reset(seed=0)
    before = float(env.evaluation.value)
    agents.exact(env, learning_rate=0.2).learn(150)
    np.testing.assert_allclose((before, float(env.evaluation.value)), (18.6308, 14.54853), atol=1e-4)
    state = env.get_state()
    first = env.step(np.zeros(5))
    env.set_state(state)
    again = env.step(np.zeros(5))[0]
    assert all(np.array_equal(first[0][name], again[name]) for name in first[0].keys() | again.keys())


def test_rendering():
    """Paths of the closed loop: something is drawn, and it depends on the policy."""
    env = gym.make("bilevel/SoftLQR-v0", render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    assert first.shape == (320, 320, 3)
    assert 500 < (first != 255).any(-1).sum() < 50_000
    env.step(np.full(5, 3.0))
    assert (first != env.render()).any()


def test_the_worlds_other_promises():
    """Quadrature is a mean over the policy, and an exploratory policy plays."""
    world = instance(0)[0].world
    generator = torch.Generator().manual_seed(0)
    policy = world.exploratory(generator)
    states = torch.randn(5, 3, dtype=torch.float64)
    drawn, weights = world.quadrature(policy, states, 20_000, generator)
    np.testing.assert_allclose((weights.unsqueeze(-1) * drawn).sum(0), policy.mean(states), atol=0.05)
    played = world.rollout(policy, trajectories=3, steps=4, generator=generator)
    assert played.states.shape == (3, 4, 3)
    assert played.actions.shape == (3, 4, 2)


def test_refusals():
    """What is no system, no covariance or no linear-quadratic problem is named."""
    one = [[1.0]]
    for arguments, words in (
        (([[1.2]], one, one, one, 0.9), "doing nothing"),
        ((one, [[1.0], [1.0]], one, one, 0.9), "shapes"),
        ((one, [1.0], one, one, 0.9), "shapes"),
        ((0.5, one, one, one, 0.9), "shapes"),
        ((one, [[]], one, one, 0.9), "shapes"),
        ((one, one, one, one, "0.9"), "discount is '0.9'"),
        ((one, one, [[-1.0]], one, 0.9), "noise is not a covariance"),
        ((one, one, one, one, 1.0), "discount is 1.0"),
    ):
        with pytest.raises(InvalidProblem, match=words):
            LinearGaussianWorld(*arguments)
    problem, _ = instance(0)
    table = problems.quadratic(0)
    assert "Riccati" in ExactRiccati().supports(table)
    assert "transition" in Exact().supports(problem)
    with pytest.raises(UnsupportedProblem, match=r"use solvers\.SoftPolicyIteration"):
        SOLVER.start(table)
    with pytest.raises(UnsupportedProblem, match=r"use solvers\.Riccati"):
        SoftPolicyIteration().start(problem)
    with pytest.raises(InvalidProblem, match="no steps"):
        SOLVER.solve(problem, torch.zeros(5, dtype=torch.float64), budget=Budget(steps=0))
    for options, words in (({"sweeps": 0}, "sweeps is 0"), ({"tolerance": 0.0}, "tolerance is 0.0")):
        with pytest.raises(InvalidProblem, match=words):
            Riccati(**options)
    with pytest.raises(InvalidProblem, match="1 at least"):
        soft_lqr(states=0)
    with pytest.raises(InvalidProblem, match="positive"):
        QuadraticCost(1, 1, bound=0.0)
