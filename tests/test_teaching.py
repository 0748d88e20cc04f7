"""Shaping, apprenticeship and policy teaching: what their optima are known to be."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from bilevel_gym.envs import ProblemOracle
from bilevel_gym.envs.apprenticeship import reward_null_space
from bilevel_gym.envs.base_worlds import base_world, occupancy, soft_optimal
from bilevel_gym.errors import InvalidProblem, UnknownName, UnsupportedProblem
from bilevel_gym.hypergradients import Exact
from bilevel_gym.objectives import DemonstrationLikelihood
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import LinearReward
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.testing import check_hypergradient, phi
from tests import problems

SOLVER = SoftPolicyIteration(tolerance=1e-12)


def made(name, **kwargs):
    """The problem of an id."""
    return gym.make(f"bilevel/{name}-v0", **kwargs).unwrapped.problem


def minimum(problem, seed, *, iterations=200):
    """φ and x where L-BFGS on the exact gradient ends, from a normal start."""

    def both(x):
        x = torch.as_tensor(x)
        response = SOLVER.solve(problem, x)
        oracle = ProblemOracle(problem, SOLVER, torch.Generator())
        evaluation = oracle.evaluate(x, response)
        return float(evaluation.value), Exact()(oracle, x, response, evaluation, None)[0].value.numpy()

    start = np.random.default_rng(seed).standard_normal(problem.dimension)
    box = [(-10.0, 10.0)] * problem.dimension
    found = minimize(both, start, jac=True, method="L-BFGS-B", bounds=box, options={"maxiter": iterations, "ftol": 1e-14, "gtol": 1e-9})
    return found.fun, found.x, both(found.x)[1]


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("RewardShaping", {"base": "chain"}),
        ("RewardShaping", {"base": "chain", "true_temperature": 0.3}),
        ("Apprenticeship", {"base": "chain", "ridge": 0.1}),
        ("Apprenticeship", {"base": "chain", "features": "state_action", "demonstrations": 5}),
        ("PolicyTeaching", {}),
    ],
)
def test_gradients(name, kwargs):
    """∇φ of each task against central differences; a term of the likelihood or of the shaping that is lost shows here."""
    problem = made(name, **kwargs)
    check_hypergradient(problem, problems.point(problem, 0), Exact())


def test_likelihood_over_several_followers_and_x_in_the_transition():
    """The likelihood's gradient with contexts, with P(x), and with a start law of its own."""
    rng = np.random.default_rng(0)
    several = problems.contexts(0, objective=DemonstrationLikelihood(rng.random((3, 5, 3)), ridge=0.2))
    check_hypergradient(several, problems.point(several, 0), Exact())
    moving = problems.controlled(0)
    moving = type(moving)(moving.world, moving.reward, moving.regularizer, DemonstrationLikelihood(rng.random((5, 3))))
    check_hypergradient(moving, problems.point(moving, 0), Exact())


@pytest.mark.parametrize("base", ["chain", "grid", "four_rooms", "FrozenLake-v1", "CliffWalking-v1"])
def test_potentials_move_nothing(base):
    """Shaping by a potential is free: φ = −V*_M̄(ρ) at every x, to 1e-9; a potential at an episode's end that counts would show."""
    problem = made("RewardShaping", base=base, kind="potential", true_discount=0.9, true_temperature=0.1)
    world = problem.world
    plain = LinearReward(torch.zeros(world.states, world.actions, 1), world.true_reward)
    soft = SOLVER.solve(type(problem)(world, plain, Shannon(0.1), problem.objective), torch.zeros(1, dtype=torch.float64))
    best = -float(problem.over_contexts((world.start * soft.value).sum(-1)))
    for seed in range(3):
        assert abs(float(phi(problem, problems.point(problem, seed, scale=2.0))) - best) < 1e-9


def test_shaping_reaches_the_true_optimum():
    """With the follower's own discount and temperature no shaping beats none: φ(0) = −V*_M̄(ρ) is the least, and stationary."""
    problem = made("RewardShaping", base="chain", true_discount=0.9, true_temperature=0.1)
    zero = torch.zeros(problem.dimension, dtype=torch.float64)
    best, response = float(phi(problem, zero)), SOLVER.solve(problem, zero)
    assert best == pytest.approx(-float(problem.world.start @ response.value), abs=1e-9)
    oracle = ProblemOracle(problem, SOLVER, torch.Generator())
    assert float(Exact()(oracle, zero, response, oracle.evaluate(zero, response), None)[0].value.norm()) < 1e-9
    for seed in range(3):
        assert float(phi(problem, problems.point(problem, seed, scale=0.1))) > best + 1e-6


@pytest.mark.parametrize(("name", "kwargs"), [("PolicyTeaching", {}), ("Apprenticeship", {"base": "chain", "ridge": 0.01})])
def test_convex_from_two_starts(name, kwargs):
    """Strongly convex tasks have one minimiser: two starts end at one φ to 1e-6 and at one x."""
    problem = made(name, **kwargs)
    (first, x, _), (second, y, _) = minimum(problem, 0), minimum(problem, 1)
    assert abs(first - second) < 1e-6
    np.testing.assert_allclose(x, y, atol=1e-3)


def test_reference_values():
    """The reference values that the docstrings name."""
    taught = made("PolicyTeaching")
    assert minimum(taught, 0)[0] == pytest.approx(0.50162, abs=1e-4)
    assert float(phi(taught, torch.zeros(8, dtype=torch.float64))) == pytest.approx(61.2257, abs=1e-3)
    shaped = made("RewardShaping")
    assert float(phi(shaped, torch.zeros(64, dtype=torch.float64))) == pytest.approx(-0.0384, abs=1e-4)
    greedy = soft_optimal(base_world("FrozenLake-v1", discount=0.95), Shannon(1e-5), shaped.world.true_reward)
    assert float(shaped.objective.value(shaped, torch.zeros(64, dtype=torch.float64), greedy)) == pytest.approx(-0.1805, abs=1e-4)
    shown = made("Apprenticeship")
    assert float(phi(shown, shown.world.true_reward[:, 0])) == pytest.approx(13.7536, abs=1e-4)


@pytest.mark.parametrize(("base", "features"), [("chain", "state"), ("grid", "state"), ("FrozenLake-v1", "state_action")])
def test_the_true_reward_is_recovered_up_to_the_null_space(base, features):
    """At the true reward, and anywhere along the null space from it, φ is least and the policy is the expert's; nowhere else nearby."""
    problem = made("Apprenticeship", base=base, features=features)
    world, basis = problem.world, reward_null_space(problem)
    expert = soft_optimal(world, problem.regularizer, world.true_reward)
    true = world.true_reward[:, 0] if features == "state" else world.true_reward.flatten()
    reached = occupancy(world, expert).sum(-1) > 0
    least = float(phi(problem, true))
    assert basis.shape[1] >= 1
    rng = np.random.default_rng(0)
    for _ in range(3):
        shift = basis @ torch.as_tensor(rng.standard_normal(basis.shape[1]))
        policy = SOLVER.solve(problem, true + shift).policy
        torch.testing.assert_close(policy[reached], expert[reached], rtol=0, atol=1e-8)
        assert float(phi(problem, true + shift)) == pytest.approx(least, abs=1e-8)
        direction = torch.as_tensor(rng.standard_normal(problem.dimension))
        away = direction - basis @ (basis.mT @ direction)
        assert float(phi(problem, true + 0.1 * away)) > least + 1e-6


def test_sampled_demonstrations_approach_the_exact_ones():
    """d̂ and ρ̂ of many trajectories tend to those of the expert; each seed shows others."""
    exact = made("Apprenticeship", base="chain").objective.occupancy
    env = gym.make("bilevel/Apprenticeship-v0", base="chain", demonstrations=2000).unwrapped
    env.reset(seed=0)
    first = env.problem.objective.occupancy
    assert float((first - exact).abs().max()) < 0.15
    assert first.sum() == pytest.approx(float(exact.sum()), rel=1e-3)
    env.reset(seed=1)
    assert not torch.equal(first, env.problem.objective.occupancy)


def test_refusals():
    """Arguments that make no task are named."""
    with pytest.raises(UnknownName, match="FrozenLake-v1"):
        base_world("nowhere", discount=0.9)
    with pytest.raises(UnsupportedProblem, match="no table of probabilities"):
        base_world("Pendulum-v1", discount=0.9)
    with pytest.raises(InvalidProblem, match="'dense' or 'potential'"):
        made("RewardShaping", kind="sparse")
    with pytest.raises(InvalidProblem, match="'state' or 'state_action'"):
        made("Apprenticeship", features="pixels")
    with pytest.raises(InvalidProblem, match="one trajectory of one step at least"):
        made("Apprenticeship", demonstrations=0)
    with pytest.raises(InvalidProblem, match="horizon 0"):
        made("Apprenticeship", demonstrations=2, horizon=0)
    with pytest.raises(UnsupportedProblem, match="several followers"):
        made("Apprenticeship", base="four_rooms", demonstrations=3)
    with pytest.raises(InvalidProblem, match="ridge is 0"):
        made("PolicyTeaching", ridge=0)
    with pytest.raises(InvalidProblem, match="4 actions"):
        made("PolicyTeaching", target=[0, 1])
    with pytest.raises(InvalidProblem, match="not negative"):
        DemonstrationLikelihood(-torch.ones(2, 2))
    with pytest.raises(InvalidProblem, match="offset has shape"):
        LinearReward(torch.ones(2, 3, 1), torch.ones(3, 2))
