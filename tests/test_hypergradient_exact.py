"""The exact gradients against central differences, closed forms and each other."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym import BilevelProblem
from bilevel_gym.envs import ProblemOracle
from bilevel_gym.errors import UnsupportedProblem
from bilevel_gym.hypergradients import Exact, Implicit, ScoreFunction
from bilevel_gym.numerics import backup, factorize, vjp
from bilevel_gym.objectives import QuadraticObjective
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import QuadraticReward
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.testing import central_differences, check_hypergradient
from bilevel_gym.worlds import TabularWorld
from tests import problems

SOLVER = SoftPolicyIteration(tolerance=1e-13)

PROBLEMS = {
    **{f"quadratic-{seed}": problems.quadratic(seed) for seed in range(20)},
    **{f"oblique-{seed}": problems.quadratic(seed, objective=problems.Oblique()) for seed in range(20, 26)},
    **{f"linear-ending-{seed}": problems.linear(seed) for seed in range(3)},
    **{f"controlled-{seed}": problems.controlled(seed) for seed in range(4)},
    **{f"preference-{seed}": problems.preference(seed) for seed in range(2)},
    "preference-ending": problems.preference(2, ends=True),
    "chain": problems.chain(),
    **{f"contexts-{seed}": problems.contexts(seed, shared=seed == 1) for seed in range(2)},
    "contexts-quadratic": problems.contexts(2, objective=QuadraticObjective()),
    "controlled-contexts": problems.controlled_contexts(0),
    **{f"kl-oblique-{seed}": problems.under_kl(problems.quadratic(seed, objective=problems.Oblique())) for seed in range(6)},
    "kl-ending": problems.under_kl(problems.linear(1)),
    "kl-controlled": problems.under_kl(problems.controlled(1)),
    "kl-contexts": problems.under_kl(problems.contexts(1)),
    "kl-preference": problems.under_kl(problems.preference(1, actions=3)),
}

SPARSE = {
    name: problems.under_tsallis(problem, hotter=4.0)
    for name, problem in {
        **{f"oblique-{seed}": problems.quadratic(seed, objective=problems.Oblique()) for seed in (0, 4, 5, 7, 10, 11)},
        **{f"linear-ending-{seed}": problems.linear(seed) for seed in range(4)},
        **{f"controlled-{seed}": problems.controlled(seed) for seed in range(4)},
        "contexts": problems.contexts(0),
        "preference": problems.preference(0, actions=3),
    }.items()
}


class ConvergedImplicit(Implicit):
    """M-SoBiRL's estimator with its recursion on w run to the end."""

    def _descend(self, mdp, policy, weighted, w):
        states = w.shape[-1]
        matrix = torch.eye(states, dtype=w.dtype) - mdp.discount * torch.einsum("...sa,...sat->...st", policy, mdp.transition)
        u = torch.eye(states, dtype=w.dtype)[:, None] - mdp.discount * mdp.transition
        return torch.linalg.solve(matrix.mT, torch.einsum("...sat,...sa->...t", u, weighted))


@pytest.mark.parametrize("estimator", [Exact(), ConvergedImplicit()], ids=["exact", "implicit-converged"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_against_central_differences(name, estimator):
    """A sign, a factor γ or τ, or a missing term in §3 or §4 breaks this on some problem of the table."""
    problem = PROBLEMS[name]
    comparison = check_hypergradient(problem, problems.point(problem, len(name)), estimator)
    assert comparison.relative_error < 1e-6


@pytest.mark.parametrize("name", SPARSE)
def test_sparse_policies_against_central_differences(name):
    """∇²Ω* of the Tsallis entropy averages over the support, not over π: Shannon's product in its place is wrong on each of these.

    The points are away from kinks: no action enters or leaves a support within ten steps of the differences.
    """
    problem = SPARSE[name]
    x = problems.point(problem, len(name))
    policy = SOLVER.solve(problem, x).policy
    assert bool((policy == 0).any())
    assert bool(((policy > 0) & (policy < 1)).any())
    for shift in 1e-4 * torch.eye(len(x), dtype=x.dtype):
        for near in (x + shift, x - shift):
            assert torch.equal(SOLVER.solve(problem, near).policy > 0, policy > 0)
    check_hypergradient(problem, x, Exact())


def slides_formula(problem, x):
    """The gradient as the slides print it, with ∇V, U and diag formed: D backward passes, dense everything."""
    response = SOLVER.solve(problem, x)
    tau, gamma = problem.regularizer.temperature, problem.world.discount
    transition, policy = problem.world.transition, response.policy
    states, actions = policy.shape
    by_x, h = problem.objective.gradient(problem, x, policy)
    jacobian = torch.autograd.functional.jacobian(problem.reward.at, x)  # [S, A, D]
    by_value = gamma * torch.einsum("sa,sat->st", policy, transition)
    value_jacobian = torch.linalg.solve(torch.eye(states) - by_value, torch.einsum("sa,sad->sd", policy, jacobian))
    u = torch.zeros(states, actions, states, dtype=x.dtype)
    for s in range(states):
        u[s, :, s] = 1.0
    u -= gamma * transition
    policy_jacobian = policy[..., None] / tau * (jacobian - u @ value_jacobian)
    return by_x + torch.einsum("sad,sa->d", policy_jacobian, h)


@pytest.mark.parametrize("seed", range(8))
def test_slides_formula_and_adjoint_agree(seed):
    """The adjoint is the slides' formula in another order; an error in either shows as more than rounding."""
    problem = problems.quadratic(seed, objective=problems.Oblique())
    x = problems.point(problem, seed)
    oracle = ProblemOracle(problem, SOLVER, torch.Generator())
    response = SOLVER.solve(problem, x)
    adjoint, _ = Exact()(oracle, x, response, oracle.evaluate(x, response), None)
    slides = slides_formula(problem, x)
    assert float((adjoint.value - slides).norm() / slides.norm()) < 1e-12


def test_factor_is_optional():
    """A response without an LU (value iteration) must give the same gradient as one with it."""
    problem = PROBLEMS["linear-ending-0"]
    x = problems.point(problem, 0)
    oracle = ProblemOracle(problem, SOLVER, torch.Generator())
    with_factor = SOLVER.solve(problem, x)
    assert with_factor.factor is not None
    fresh = factorize(problem.at(x), with_factor.policy)
    torch.testing.assert_close(with_factor.factor.lu, fresh.lu, rtol=0, atol=1e-12)
    for factor in (None, fresh):
        found, _ = Exact()(oracle, x, replace(with_factor, factor=factor), oracle.evaluate(x, with_factor), None)
        np.testing.assert_allclose(found.value, central_differences(problem, x), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("transition_axes", [3, 4], ids=["shared-P", "own-P"])
def test_batch_equals_single_problems(transition_axes):
    """A leading axis changes no number: 5 problems as one batch equal 5 single ones, in solve, gradient and M-SoBiRL's step."""
    rng = np.random.default_rng(0)
    batch, states, actions, dimension = 5, 6, 3, 4
    shape = (batch,) if transition_axes == 4 else ()
    transition = problems.rows(rng, *shape, states, actions, states)
    start = problems.rows(rng, *shape, states)
    coefficients, matrix = rng.random((batch, states, actions)), rng.standard_normal((batch, dimension, dimension))
    x = torch.as_tensor(rng.standard_normal((batch, dimension)))

    def made(i=None):
        pick = (lambda a: a) if i is None else (lambda a: a[i])
        world = TabularWorld(*(pick(t) if transition_axes == 4 else t for t in (transition, start)), 0.8)
        return BilevelProblem(world, QuadraticReward(pick(coefficients), pick(matrix)), Shannon(0.7), QuadraticObjective())

    whole = made()
    response = SOLVER.solve(whole, x)
    oracle = ProblemOracle(whole, SOLVER, torch.Generator())
    evaluation = oracle.evaluate(x, response)
    exact, _ = Exact()(oracle, x, response, evaluation, None)
    w = torch.as_tensor(rng.standard_normal((batch, states)))
    implicit, after = Implicit()(oracle, x, response, evaluation, w)
    assert evaluation.value.shape == (batch,)
    for i in range(batch):
        single = made(i)
        oracle = ProblemOracle(single, SOLVER, torch.Generator())
        alone = SOLVER.solve(single, x[i])
        seen = oracle.evaluate(x[i], alone)
        torch.testing.assert_close(response.policy[i], alone.policy, rtol=0, atol=1e-10)
        torch.testing.assert_close(response.value[i], alone.value, rtol=0, atol=1e-10)
        torch.testing.assert_close(evaluation.value[i], seen.value, rtol=0, atol=1e-10)
        torch.testing.assert_close(exact.value[i], Exact()(oracle, x[i], alone, seen, None)[0].value, rtol=0, atol=1e-10)
        found, w_after = Implicit()(oracle, x[i], alone, seen, w[i])
        torch.testing.assert_close(implicit.value[i], found.value, rtol=0, atol=1e-10)
        torch.testing.assert_close(after[i], w_after, rtol=0, atol=1e-10)


def test_implicit_steps_approach_the_exact_gradient():
    """The recursion on w must descend towards A⁻¹b with the safe default step; a wrong sign diverges."""
    problem = problems.quadratic(3, discount=0.6, objective=problems.Oblique())
    x = problems.point(problem, 3)
    truth = central_differences(problem, x)
    oracle = ProblemOracle(problem, SOLVER, torch.Generator())
    response = SOLVER.solve(problem, x)
    evaluation = oracle.evaluate(x, response)
    errors = []
    for steps in (1, 30, 3000):
        estimator = Implicit(adjoint_steps=steps)
        found, _ = estimator(oracle, x, response, evaluation, estimator.init(oracle))
        errors.append(float(np.linalg.norm(found.value.numpy() - truth)))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-6 * np.linalg.norm(truth)


def test_unconverged_weights_are_those_of_the_value():
    """Before the lower level has converged ∇_xF(x,V) weighs with softmax(backup(x,V)/τ), not with π_k: they differ here, and must."""
    problem = problems.quadratic(5, objective=problems.Oblique())
    x = problems.point(problem, 5)
    start = SOLVER.start(problem)
    oracle = ProblemOracle(problem, SOLVER, torch.Generator())
    w = torch.ones(problem.world.states, dtype=x.dtype)
    found, after = Implicit(step_size=0.1)(oracle, x, start, oracle.evaluate(x, start), w)
    tau = problem.regularizer.temperature
    _, h = problem.objective.gradient(problem, x, start.policy)
    weights = torch.softmax(backup(problem.at(x), start.value) / tau, -1)
    expected = problem.reward.vjp(x, (start.policy * h - weights * after[:, None]) / tau)
    torch.testing.assert_close(found.implicit, expected, rtol=1e-12, atol=1e-14)
    wrong = problem.reward.vjp(x, (start.policy * h - start.policy * after[:, None]) / tau)
    assert float((found.implicit - wrong).norm()) > 1e-3 * float(wrong.norm())


def test_analytic_gradients_equal_autograd():
    """The hand-written VJPs of rewards and objective are what a backward pass gives."""
    for problem in (problems.quadratic(1), problems.linear(1)):
        x = problems.point(problem, 1)
        cotangent = torch.as_tensor(np.random.default_rng(1).standard_normal((problem.world.states, problem.world.actions)))
        torch.testing.assert_close(problem.reward.vjp(x, cotangent), vjp(problem.reward.at, x, cotangent))


@pytest.mark.parametrize(
    ("estimator", "problem", "word"),
    [
        (Exact(), "world", "transition probabilities"),
        (ScoreFunction("exact"), problems.quadratic(0), "no loss"),
        (ScoreFunction("critic"), problems.controlled(0), "no loss"),
        (ScoreFunction("critic"), problems.under_tsallis(problems.preference(0)), "not for Tsallis"),
        (Implicit(), SPARSE["oblique-0"], "not for Tsallis"),
    ],
    ids=["exact-on-a-simulator", "score-on-explicit-f", "score-on-controlled", "score-under-tsallis", "implicit-under-tsallis"],
)
def test_refusals_name_the_reason(estimator, problem, word):
    """An estimator on a problem that it does not fit must say why, not fail inside."""
    if problem == "world":
        problem = gym.make("bilevel/PendulumPreference-v0", preset="tiny").unwrapped.problem
    assert word in estimator.supports(problem)
    if problem.tabular:
        with pytest.raises(UnsupportedProblem, match=word):
            check_hypergradient(problem, problems.point(problem, 0), estimator)
