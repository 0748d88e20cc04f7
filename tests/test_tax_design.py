"""Tax design: the economy written out action by action, finite differences, and grids over two of the four rates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import truncnorm

from bilevel_gym import agents
from bilevel_gym.envs import Households, ProblemOracle, tax_design
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.hypergradients import Exact
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.testing import check_hypergradient

SMALL = {"assets": 17, "hours": 3, "consumption": 2}
TASTES = ((0.6, 0.3, 0.1), (0.1, 0.7, 0.2))
RATES = torch.tensor([0.5, 0.1, 0.9, 0.4], dtype=torch.float64)


def test_the_economy_is_the_papers():
    """Reward, welfare and dynamics of each household, asset and action against the formulas, one number at a time."""
    households = Households(tastes=TASTES, **SMALL)
    x = RATES.unsqueeze(0)
    reward, cost, transition = (table(x).numpy() for table in (households.reward, households.cost, households.transition))
    assert reward.shape == (2, 17, 24)
    assert cost.shape == (1, 17, 24)
    assert transition.shape == (1, 17, 24, 17)
    rates, income = RATES[:3].numpy(), float(RATES[3])
    edges = np.concatenate([[-100.0], np.arange(-93.75, 100, 12.5), [100.0]])
    rng = np.random.default_rng(0)
    for _ in range(40):
        c, s, h, *goods = (int(rng.integers(n)) for n in (2, 17, 3, 2, 2, 2))
        action = ((h * 2 + goods[0]) * 2 + goods[1]) * 2 + goods[2]
        assets, hours, bought = -100 + 12.5 * s, 4.0 * h, 5.0 * np.array(goods)
        wealth = np.log(1 + assets / 20) if assets > 0 else assets
        utility = np.prod((bought / (1 + rates)) ** np.array(TASTES[c]))
        assert reward[c, s, action] == pytest.approx(wealth - 0.1 * hours**2 + utility, abs=1e-12)
        raised = np.sum(rates * bought / (1 + rates)) + income * hours
        welfare = 15 * np.mean(bought / (1 + rates)) / 5 + 5 * np.log(1 + raised)
        assert cost[0, s, action] == pytest.approx(-welfare, abs=1e-12)
        mean = assets + (1 - income) * hours - bought.sum()
        law = truncnorm((-100 - mean) / 5, (100 - mean) / 5, mean, 5)
        np.testing.assert_allclose(transition[0, s, action], np.diff(law.cdf(edges)), atol=1e-12)


def test_exact_gradient():
    """x in r, in P and in f, over two households that share P: a rate that is lost on its way through any of them shows."""
    env = tax_design(temperature=0.5, **SMALL)
    check_hypergradient(env.problem, RATES, Exact(), tolerance=1e-6)


@pytest.mark.parametrize(("free", "others"), [((0, 3), 0.4), ((0, 1), 0.7)], ids=["vat-income", "vat-vat"])
def test_certificate_by_grid_search(free, others):
    """Descent in a slice of two rates, from its middle, ends at the best of a grid over the slice, or in its cell and below."""
    problem, solver, slots = tax_design(**SMALL).problem, SoftPolicyIteration(tolerance=1e-9), list(free)
    oracle, side = ProblemOracle(problem, solver, torch.Generator()), torch.linspace(0, 2, 13, dtype=torch.float64)
    grid = torch.full((169, 4), others, dtype=torch.float64)
    grid[:, slots] = torch.cartesian_prod(side, side)
    values = problem.objective.value(problem, grid, solver.solve(problem, grid).policy)

    def function(rates):
        x = grid[0].clone()
        x[slots] = torch.as_tensor(rates)
        response = solver.solve(problem, x)
        gradient, _ = Exact()(oracle, x, response, oracle.evaluate(x, response), None)
        return float(problem.objective.value(problem, x, response.policy)), gradient.value[slots].numpy()

    found = minimize(function, [others] * 2, jac=True, method="L-BFGS-B", bounds=[(0, 2)] * 2, options={"maxiter": 40})
    best = grid[values.argmin(), slots].numpy()
    assert float(values.min()) - 0.2 < found.fun < float(values.min()) + 1e-6
    assert np.abs(found.x - best).max() < 1 / 6


def test_a_tax_that_takes_all_ends_work():
    """Above an income tax of 1 work only costs: nobody works, and the welfare is nearly nothing; the reward of r must see the tax through P."""
    env = tax_design()
    hours, _ = Households(21, 5, 3, TASTES).choices
    worked = []
    for income in (0.3, 1.2):
        env.reset(options={"x": np.array([0.3, 0.3, 0.3, income])})
        worked.append(float((env.response.policy[:, 10] @ hours).mean()))
        assert (float(env.evaluation.value) > -0.1) == (income > 1.0)
    assert worked[0] > 2.0
    assert worked[1] < 1e-3


def test_reference_value():
    """The docstring's numbers."""
    env = tax_design()
    env.reset(seed=0)
    before = float(env.evaluation.value)
    agents.exact(env).learn(60)
    np.testing.assert_allclose((before, float(env.evaluation.value)), (-4.9351, -5.5036), atol=1e-4)


def test_refusals():
    """What there is not yet, and grids that are none, are named with what to do instead."""
    with pytest.raises(UnsupportedProblem, match="assets=81"):
        tax_design(continuous=True)
    with pytest.raises(InvalidProblem, match="2 points"):
        tax_design(hours=1)
    for tastes in ((), ((0.5, 0.5),), ((0.5, 0.5, 0.0),)):
        with pytest.raises(InvalidProblem, match="exponents"):
            tax_design(tastes=tastes)
