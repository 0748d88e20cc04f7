"""The soft-optimal policy: fixed point, certificates, and the two solvers against each other."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym import BilevelProblem
from bilevel_gym.envs import draw_random_mdp
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.numerics import backup
from bilevel_gym.objectives import QuadraticObjective
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import LinearReward
from bilevel_gym.solvers import SoftPolicyIteration, SoftValueIteration
from bilevel_gym.types import Budget
from bilevel_gym.worlds import ControlledWorld, TabularWorld
from tests import problems

EXACT = SoftPolicyIteration(tolerance=1e-13)


def table_problem(transition, reward, discount, temperature, termination=None):
    """A problem whose reward table is fixed: the x of dimension one scales it."""
    states = len(transition)
    world = TabularWorld(transition, np.full(states, 1 / states), discount, termination)
    return BilevelProblem(world, LinearReward(np.asarray(reward)[..., None]), Shannon(temperature), QuadraticObjective())


@pytest.mark.parametrize("seed", range(10))
def test_both_solvers_find_the_fixed_point(seed):
    """V = τ logsumexp((r + γPV)/τ) and π = softmax: both solvers must satisfy what a NumPy loop computes."""
    problem = problems.quadratic(seed)
    x = problems.point(problem, seed)
    reward, transition, gamma, tau = (
        problem.reward.at(x).numpy(),
        problem.world.transition.numpy(),
        problem.world.discount,
        problem.regularizer.temperature,
    )
    value = np.zeros(len(transition))
    for _ in range(3000):
        q = reward + gamma * transition @ value
        top = q.max(-1, keepdims=True)
        value = (top + tau * np.log(np.exp((q - top) / tau).sum(-1, keepdims=True)))[:, 0]
    policy = np.exp((reward + gamma * transition @ value - value[:, None]) / tau)
    for solver in (EXACT, SoftValueIteration(tolerance=1e-13)):
        response = solver.solve(problem, x)
        assert response.converged
        np.testing.assert_allclose(response.value, value, atol=1e-9)
        np.testing.assert_allclose(response.policy, policy, atol=1e-9)
        np.testing.assert_allclose(response.q, reward + gamma * transition @ value, atol=1e-9)


@pytest.mark.parametrize(
    "solver", [SoftValueIteration(sweeps=3), SoftValueIteration(tolerance=1e-4), SoftPolicyIteration(sweeps=2)], ids=str
)
def test_gap_bounds_the_residual(solver):
    """The certificate must never be smaller than what it certifies: ‖F(x,V) − V‖_∞ of the V that is returned."""
    for seed in range(20):
        problem = problems.quadratic(seed)
        x = problems.point(problem, seed)
        response = solver.solve(problem, x)
        residual = (problem.regularizer.conjugate(backup(problem.at(x), response.value)) - response.value).abs().max()
        assert float(residual) <= float(response.gap) + 1e-12


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_gap_bounds_the_residual_from_any_start(steps):
    """Far from the solution a Newton step can enlarge the residual; the certificate is of the V that is returned."""
    states, actions = 4, 3
    for seed in range(60):
        rng = np.random.default_rng(seed)
        transition = np.zeros((states, actions, states))
        transition[np.arange(states)[:, None], np.arange(actions), rng.integers(0, states, (states, actions))] = 1.0
        problem, x = table_problem(transition, rng.standard_normal((states, actions)), 0.95, 0.05), torch.ones(1, dtype=torch.float64)
        warm = replace(EXACT.start(problem), value=torch.as_tensor(3 * rng.standard_normal(states)))
        for solver in (SoftPolicyIteration(sweeps=steps), SoftValueIteration(sweeps=steps)):
            response = solver.solve(problem, x, warm=warm)
            residual = (problem.regularizer.conjugate(backup(problem.at(x), response.value)) - response.value).abs().max()
            assert float(residual) <= float(response.gap) * (1 + 1e-9) + 1e-10


def test_nothing_is_certified_without_a_certificate():
    """At the rounding error a solve must end, and say that it has not converged; a budget of no steps certifies nothing."""
    rng = np.random.default_rng(0)
    problem = table_problem(problems.rows(rng, 6, 3, 6), rng.standard_normal((6, 3)), 0.99, 1e-9)
    one = torch.ones(1, dtype=torch.float64)
    for kind in (SoftPolicyIteration, SoftValueIteration):
        response = kind(policy_tolerance=1e-12, tolerance=None).solve(problem, one)
        assert not response.converged
        with pytest.raises(InvalidProblem, match="no steps"):
            kind().solve(problem, one, budget=Budget(steps=0))


@pytest.mark.parametrize("kind", [SoftValueIteration, SoftPolicyIteration])
def test_policy_tolerance_certifies_the_distance(kind):
    """‖π − π*‖² ≤ ε is what the SoBiRL analysis asks of the lower level; a Lipschitz constant that is too small breaks it."""
    for seed in range(20):
        problem = problems.quadratic(seed, temperature=0.1)
        x = problems.point(problem, seed)
        solver = kind(policy_tolerance=1e-4, tolerance=None)
        response = solver.solve(problem, x)
        assert response.converged
        assert float((response.policy - EXACT.solve(problem, x).policy).square().sum()) <= 1e-4


def test_policy_tolerance_where_the_error_is_largest():
    """A choice between a state that pays for ever and one that pays nothing: ‖V − V*‖ is gap/(1−γ), so a bound without it certifies too early."""
    transition = np.zeros((3, 2, 3))
    transition[0, 0, 1] = transition[0, 1, 2] = 1.0
    transition[1, :, 1] = transition[2, :, 2] = 1.0
    reward = np.array([[0.0, 99.0], [1.0, 1.0], [0.0, 0.0]])  # a tie at the optimum, where the policy is most sensitive
    problem = table_problem(transition, reward, 0.99, 1.0)
    x = torch.ones(1, dtype=torch.float64)
    response = SoftValueIteration(policy_tolerance=1e-2).solve(problem, x)
    distance = float((response.policy - EXACT.solve(problem, x).policy).square().sum())
    assert 1e-5 < distance <= 1e-2


def test_newton_takes_few_steps_where_sweeps_take_thousands():
    """Quadratic convergence is the point of policy iteration: at γ = .99 and a tiny temperature it must end in a dozen steps."""
    rng = np.random.default_rng(0)
    problem = table_problem(problems.rows(rng, 30, 4, 30), rng.standard_normal((30, 4)), 0.99, 0.001)
    x = torch.ones(1, dtype=torch.float64)
    newton, sweeps = SoftPolicyIteration(tolerance=1e-9).solve(problem, x), SoftValueIteration(tolerance=1e-9).solve(problem, x)
    assert newton.steps <= 12
    assert sweeps.steps > 1000
    assert bool(newton.policy.isfinite().all())
    np.testing.assert_allclose(newton.value, sweeps.value, atol=1e-6)


def test_warm_start_continues():
    """Three sweeps and then four must be seven sweeps: Q is carried over, bit for bit."""
    problem = problems.quadratic(2)
    x = problems.point(problem, 2)
    first = SoftValueIteration(sweeps=3).solve(problem, x)
    second = SoftValueIteration(sweeps=4).solve(problem, x, warm=first)
    whole = SoftValueIteration(sweeps=7).solve(problem, x)
    assert torch.equal(second.q, whole.q)
    assert second.steps == 4


def test_cold_start_is_uniform_with_zero_value():
    """M-SoBiRL starts at V = 0 and a uniform policy, consistently: τ logsumexp(Q/τ) = 0."""
    problem = problems.quadratic(4)
    start = SoftValueIteration(sweeps=1).start(problem)
    assert float(start.value.abs().max()) == 0.0
    np.testing.assert_allclose(start.policy, 1 / problem.world.actions)
    np.testing.assert_allclose(problem.regularizer.conjugate(start.q), 0.0, atol=1e-15)


def test_budget_limits_the_steps():
    """A caller's budget wins over the solver's own rule."""
    problem = problems.quadratic(6)
    response = SoftValueIteration(tolerance=1e-12).solve(problem, problems.point(problem, 6), budget=Budget(steps=2))
    assert response.steps == 2
    assert not response.converged


def test_an_ended_episode_is_worth_nothing():
    """Termination has value 0 and earns no entropy: one state, one action that always ends, is worth its reward and no more."""
    problem = table_problem(np.zeros((1, 2, 1)), [[1.0, 1.0]], 0.9, 0.5, np.ones((1, 2)))
    response = EXACT.solve(problem, torch.ones(1, dtype=torch.float64))
    np.testing.assert_allclose(response.value, 1.0 + 0.5 * np.log(2))


def test_two_armed_bandit_closed_form():
    """V = τ log(e^{1/τ} + 1)/(1 − γ) for one state that returns to itself."""
    tau, gamma = 0.7, 0.9
    problem = table_problem(np.ones((1, 2, 1)), [[1.0, 0.0]], gamma, tau)
    response = EXACT.solve(problem, torch.ones(1, dtype=torch.float64))
    np.testing.assert_allclose(response.value, tau * np.log(np.exp(1 / tau) + 1) / (1 - gamma), rtol=1e-12)
    np.testing.assert_allclose(response.policy[0, 0], 1 / (1 + np.exp(-1 / tau)), rtol=1e-12)


@pytest.mark.parametrize("change", ["shift", "scale", "potential"])
def test_invariances(change):
    """A constant shift, (r, τ) → (cr, cτ) and a potential leave π* as it is: a misplaced τ or γ does not."""
    rng = np.random.default_rng(3)
    transition, reward, gamma, tau = problems.rows(rng, 6, 3, 6), rng.standard_normal((6, 3)), 0.9, 0.3
    potential = rng.standard_normal(6)
    other = {
        "shift": (reward + 2.5, tau),
        "scale": (4.0 * reward, 4.0 * tau),
        "potential": (reward + gamma * transition @ potential - potential[:, None], tau),
    }[change]
    one = torch.ones(1, dtype=torch.float64)
    before = EXACT.solve(table_problem(transition, reward, gamma, tau), one).policy
    after = EXACT.solve(table_problem(transition, other[0], gamma, other[1]), one).policy
    np.testing.assert_allclose(before, after, atol=1e-10)


def test_extreme_logits_stay_finite():
    """At τ = .001 and γ = .99 logits reach 1e5; an exp without its maximum taken out gives NaN."""
    rng = np.random.default_rng(5)
    problem = table_problem(problems.rows(rng, 8, 3, 8), 3 * rng.standard_normal((8, 3)), 0.99, 0.001)
    for solver in (SoftPolicyIteration(), SoftValueIteration(sweeps=50)):
        response = solver.solve(problem, torch.ones(1, dtype=torch.float64))
        assert bool(response.policy.isfinite().all())
        np.testing.assert_allclose(response.policy.sum(-1), 1.0, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TabularWorld(np.full((2, 1, 2), 0.4), [0.5, 0.5], 0.9), "sum to one"),
        (lambda: TabularWorld(np.full((2, 1, 2), 0.5), [0.5, 0.5], 1.0), "discount is 1.0"),
        (lambda: TabularWorld(np.full((2, 1, 2), 0.5), [0.5, 0.6], 0.9), "start must be a distribution"),
        (lambda: TabularWorld(np.full((2, 1, 3), 1 / 3), [0.5, 0.5], 0.9), r"\[S, A, S\]"),
        (lambda: TabularWorld([[[1.5, -0.5]], [[0, 1]]], [0.5, 0.5], 0.9), "negative"),
        (lambda: TabularWorld(np.full((2, 1, 2), 0.5), [0.5, 0.5], 0.9, [0.0]), "termination has shape"),
        (lambda: TabularWorld(np.full((2, 1, 2), 0.5), [0.5, 0.5], 0.9, [[np.nan], [0.0]]), "not finite"),
        (lambda: TabularWorld(np.zeros((0, 1, 0)), [], 0.9), "one state"),
        (lambda: TabularWorld(np.full((2, 1, 2), 0.5), [0.5, 0.5], 0.9, true_reward=[[np.inf], [0.0]]), "true_reward must be finite"),
        (lambda: LinearReward(np.full((2, 1, 3), np.nan)), "NaN"),
        (lambda: LinearReward(np.zeros((2, 1, 0))), "dimension 0"),
        (lambda: draw_random_mdp(np.random.default_rng(0), states=1), "two states"),
        (lambda: problems.batched_env(), "batch of problems"),
        (lambda: Shannon(0.0), "temperature is 0.0"),
        (lambda: Shannon(float("nan")), "temperature is nan"),
        (lambda: SoftValueIteration(sweeps=0), "sweeps is 0"),
        (lambda: SoftPolicyIteration(tolerance=-1), "tolerance is -1"),
        (lambda: LinearReward(np.zeros((2, 2))), r"\[S, A, D\]"),
        (lambda: table_problem(np.full((2, 1, 2), 0.5), np.zeros((3, 1)), 0.9, 1.0), "same states and actions"),
    ],
)
def test_bad_numbers_are_refused(make, words):
    """Numbers that make no decision problem must be refused where they enter, with the cure."""
    with pytest.raises(InvalidProblem, match=words):
        make()


def test_a_simulator_is_refused():
    """A tabular solver on a simulator says which solver to use instead."""
    problem = gym.make("bilevel/PendulumPreference-v0", preset="tiny").unwrapped.problem
    with pytest.raises(UnsupportedProblem, match="SAC"):
        SoftPolicyIteration().start(problem)
    with pytest.raises(UnsupportedProblem, match="table"):
        problem.at(torch.zeros(problem.dimension))


def test_a_kernel_that_gives_no_probabilities_is_refused():
    """P(x) is checked at every x, not only at the example: a negative probability must not be solved with."""
    world = ControlledWorld(lambda x: torch.stack([x[..., :1], 1 - x[..., :1]], -1).unsqueeze(-2).expand(2, 1, 2), [0.5], [0.5, 0.5], 0.9)
    with pytest.raises(InvalidProblem, match="no probabilities"):
        world.transition_at(torch.tensor([5.0], dtype=torch.float64))


def test_rewards_along_pairs_broadcast():
    """r_x at pairs for a batch of x: each x has its own rewards."""
    reward = LinearReward(np.eye(4).reshape(2, 2, 4))
    x = torch.arange(8.0, dtype=torch.float64).view(2, 4)
    states, actions = torch.tensor([0, 1]), torch.tensor([0, 1])
    assert reward.along(x, states, actions).tolist() == [[0.0, 3.0], [4.0, 7.0]]
