"""PARL: the products with second derivatives, the exact gradient as its limit, its bias, and the curvature that it reports."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym import BilevelProblem, agents
from bilevel_gym.envs import ProblemOracle
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.hypergradients import Exact, SecondOrder, second_order
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import QuadraticReward
from bilevel_gym.solvers import SoftPolicyIteration, SoftValueIteration
from bilevel_gym.testing import check_hypergradient
from bilevel_gym.worlds import TabularWorld
from tests import problems

SOLVER = SoftPolicyIteration(tolerance=1e-13)

PROBLEMS = {
    **{f"quadratic-{seed}": problems.quadratic(seed) for seed in range(6)},
    **{f"oblique-{seed}": problems.quadratic(seed, objective=problems.Oblique()) for seed in range(20, 24)},
    **{f"linear-ending-{seed}": problems.linear(seed) for seed in range(2)},
    **{f"controlled-{seed}": problems.controlled(seed) for seed in range(3)},
    "preference-ending": problems.preference(2, ends=True),
    "chain": problems.chain(),
    "contexts": problems.contexts(0),
    "contexts-shared-P": problems.contexts(1, shared=True),
    "controlled-contexts": problems.controlled_contexts(0),
    "kl": problems.under_kl(problems.linear(1)),
    "kl-contexts": problems.under_kl(problems.contexts(1)),
    "kl-everything-allowed": problems.under_kl(problems.controlled(1), forbidden=False),
}


def asked(problem, x, estimator, response=None):
    """One call at a response, the solved one by default."""
    oracle = ProblemOracle(problem, SOLVER, torch.Generator())
    response = SOLVER.solve(problem, x) if response is None else response
    found, _ = estimator(oracle, x, response, oracle.evaluate(x, response), estimator.init(oracle))
    return found


def error(found, truth):
    """‖found − truth‖ / ‖truth‖."""
    return float((found - truth).norm() / truth.norm())


def mean_value(problem, weights):
    """J(x, θ) = Σ_s ν_s V^{π_θ}_x(s), summed over contexts, by a dense solve that autograd sees."""

    def function(x, theta):
        mdp, policy = problem.at(x), problem.regularizer.policy(problem.regularizer.temperature * theta)
        entropy = -problem.regularizer.penalty(policy)
        moves = torch.einsum("...sa,...sat->...st", policy, mdp.transition.expand(*policy.shape, -1))
        matrix = torch.eye(problem.world.states, dtype=x.dtype) - mdp.discount * moves
        return (weights * torch.linalg.solve(matrix, (policy * mdp.reward).sum(-1) + entropy)).sum()

    return function


@pytest.mark.parametrize("name", ["linear-ending-0", "controlled-0", "chain", "contexts", "controlled-contexts", "kl-everything-allowed"])
def test_products_with_second_derivatives(name):
    """−∇²_{θθ}J v and ∇²_{xθ}J v far from the optimum, where no term of theirs vanishes, against two backward passes."""
    problem = PROBLEMS[name]
    rng = np.random.default_rng(0)
    shape = SOLVER.start(problem).policy.shape
    x, theta, v = problems.point(problem, 3), torch.as_tensor(rng.standard_normal(shape)), torch.as_tensor(rng.standard_normal(shape))
    nu = torch.as_tensor(problems.rows(rng, problem.world.states))
    function = mean_value(problem, nu)
    point = second_order._at(problem, x, problem.regularizer.temperature * theta, nu)
    tangent = second_order._along(point, v)
    torch.testing.assert_close(
        point.visits.unsqueeze(-1) * point.policy * point.advantage,
        torch.autograd.functional.jacobian(lambda theta: function(x, theta), theta),
        rtol=1e-8,
        atol=1e-10,
    )
    _, expected = torch.autograd.functional.hvp(lambda theta: function(x, theta), theta, v)
    torch.testing.assert_close(tangent.gradient, expected, rtol=1e-8, atol=1e-10)
    _, (mixed, _) = torch.autograd.functional.hvp(function, (x, theta), (torch.zeros_like(x), v))
    torch.testing.assert_close(second_order._mixed(problem, x, point, tangent), mixed, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", PROBLEMS)
def test_equals_the_exact_gradient_as_the_damping_vanishes(name):
    """At a solved response PARL's formula is the exact hyper-gradient; its bias is proportional to δ."""
    problem = PROBLEMS[name]
    x = problems.point(problem, len(name))
    exact = asked(problem, x, Exact()).value
    biases = [error(asked(problem, x, SecondOrder(damping=d, iterations=300, tolerance=1e-12)).value, exact) for d in (1e-7, 1e-8, 1e-10)]
    assert biases[2] < 1e-6
    if biases[0] > 1e-7:
        assert biases[1] / biases[0] == pytest.approx(0.1, rel=0.5)
    undamped = asked(problem, x, SecondOrder(damping=0.0, iterations=300, tolerance=1e-12))
    assert error(undamped.value, exact) < 1e-9
    assert undamped.stats["cg_residual"] < 1e-10
    assert undamped.stats["cg_curvature"] > 0


@pytest.mark.parametrize("name", ["oblique-20", "controlled-1"])
def test_against_central_differences(name):
    """The same, against φ itself."""
    problem = PROBLEMS[name]
    assert check_hypergradient(problem, problems.point(problem, 7), SecondOrder(damping=1e-10)).relative_error < 1e-6


def test_default_damping_costs_little():
    """The bias of the default δ stays below half a per cent, whatever the problem of the table; a hundred times more shows."""
    worst = {}
    for damping in (SecondOrder().damping, 100 * SecondOrder().damping):
        worst[damping] = max(
            error(asked(problem, x := problems.point(problem, 0), SecondOrder(damping=damping)).value, asked(problem, x, Exact()).value)
            for problem in PROBLEMS.values()
        )
    small, large = worst.values()
    assert small < 5e-3 < 5e-2 < large


@pytest.mark.parametrize("name", ["chain", "linear-ending-0"])
def test_negative_curvature_is_reported(name):
    """After one sweep the follower is far from its optimum: the Hessian is indefinite, and the estimate must say so and stay finite."""
    problem = PROBLEMS[name]
    x = problems.point(problem, 4)
    rough = SoftValueIteration(sweeps=1).solve(problem, x)
    found = asked(problem, x, SecondOrder(), rough)
    theta, uniform = rough.q / problem.regularizer.temperature, torch.full((problem.world.states,), 1 / problem.world.states)
    hessian = torch.autograd.functional.hessian(lambda theta: mean_value(problem, uniform.double())(x, theta), theta)
    assert float(torch.linalg.eigvalsh(-hessian.reshape(theta.numel(), -1)).min()) < found.stats["cg_curvature"] < 0
    assert found.stats["cg_residual"] > 0.1
    assert bool(found.value.isfinite().all())
    assert asked(problem, x, SecondOrder()).stats["cg_curvature"] > 0


def test_residuals():
    """What is reported is what is left: few iterations leave a residual, damping leaves the undamped one."""
    problem = PROBLEMS["linear-ending-1"]
    x = problems.point(problem, 1)
    short = asked(problem, x, SecondOrder(iterations=2)).stats
    assert short["cg_iterations"] == 2
    assert short["cg_residual"] > 1e-3
    damped = asked(problem, x, SecondOrder(damping=0.1, tolerance=1e-9)).stats
    assert damped["cg_residual"] < 1e-8 < 1e-2 < damped["cg_residual_undamped"] < 1


def test_a_constant_objective_has_no_system():
    """Where ∇_θf = 0 there is nothing to solve: no iteration, no residual, no division by zero."""
    problem = PROBLEMS["quadratic-1"]
    flat = BilevelProblem(problem.world, problem.reward, problem.regularizer, Flat())
    x = problems.point(flat, 0)
    found = asked(flat, x, SecondOrder())
    torch.testing.assert_close(found.value, x)
    assert (found.stats["cg_iterations"], found.stats["cg_residual"], found.stats["cg_residual_undamped"]) == (0.0, 0.0, 0.0)


class Flat(problems.Oblique):
    """½‖x‖², whatever the policy."""

    def value(self, problem, x, policy):
        """½‖x‖²."""
        return 0.5 * (x * x).sum(-1)


def test_distribution_does_not_move_the_solution():
    """At θ* any ν of full support gives the same gradient, and a skewed one changes the curvature that is met."""
    problem = PROBLEMS["linear-ending-0"]
    x = problems.point(problem, 2)
    nu = torch.as_tensor(problems.rows(np.random.default_rng(1), problem.world.states))
    tight = {"damping": 0.0, "iterations": 300, "tolerance": 1e-12}
    uniform, skewed = asked(problem, x, SecondOrder(**tight)), asked(problem, x, SecondOrder(**tight, distribution=nu))
    assert error(skewed.value, uniform.value) < 1e-8
    assert skewed.stats["cg_curvature"] != pytest.approx(uniform.stats["cg_curvature"], rel=1e-3)


def test_batch_equals_single_problems():
    """A leading axis changes no number: each member has a system, and a stop, of its own."""
    rng = np.random.default_rng(0)
    transition, start = problems.rows(rng, 3, 5, 3, 5), problems.rows(rng, 3, 5)
    coefficients, matrix = rng.random((3, 5, 3)), rng.standard_normal((3, 4, 4))
    x = torch.as_tensor(rng.standard_normal((3, 4)))

    def made(i):
        world = TabularWorld(transition[i], start[i], 0.8)
        return BilevelProblem(world, QuadraticReward(coefficients[i], matrix[i]), Shannon(0.7), problems.Oblique())

    tight = SecondOrder(tolerance=1e-13)
    for solver in (SOLVER, SoftValueIteration(sweeps=2)):
        whole = asked(made(slice(None)), x, tight, solver.solve(made(slice(None)), x))
        for i in range(3):
            alone = asked(made(i), x[i], tight, solver.solve(made(i), x[i]))
            torch.testing.assert_close(whole.value[i], alone.value, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"damping": -1e-3}, "damping is -0.001"),
        ({"damping": float("nan")}, "damping is nan"),
        ({"iterations": 0}, "iterations 0"),
        ({"tolerance": 0.0}, "tolerance 0.0"),
        ({"distribution": [1.0]}, "must be"),
    ],
)
def test_refusals(options, word):
    """Numbers that leave nothing to solve are refused before the first step, with the reason."""
    with pytest.raises(InvalidProblem, match=word):
        asked(PROBLEMS["linear-ending-0"], problems.point(PROBLEMS["linear-ending-0"], 0), SecondOrder(**options))


def test_unsupported_problems():
    """A simulator has no Hessian to multiply with, and a sparse policy has kinks in place of one."""
    assert "softmax" in SecondOrder().supports(problems.under_tsallis(PROBLEMS["chain"]))
    problem = gym.make("bilevel/PendulumPreference-v0", preset="tiny").unwrapped.problem
    assert "transition probabilities" in SecondOrder().supports(problem)


def test_recipe_descends():
    """``agents.parl`` takes the steps of exact descent, up to its damping."""
    objectives = []
    for recipe in (agents.parl, agents.exact):
        env = gym.make("bilevel/RandomMDP-v0", states=4, actions=3, dimension=3, solver="policy_iteration")
        env.reset(seed=1)
        before = float(env.unwrapped.evaluation.value)
        recipe(env, learning_rate=0.03).learn(100)
        objectives.append(float(env.unwrapped.evaluation.value))
    assert objectives[0] < before - 0.5
    assert objectives[0] == pytest.approx(objectives[1], abs=1e-5)
