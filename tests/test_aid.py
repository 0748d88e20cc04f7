"""A strongly convex lower level: AID against closed forms, its inner loop, its three problems, and what it refuses."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym import BilevelEnv, ConvexProblem, agents, hypergradients
from bilevel_gym.envs import ProblemOracle, draw_data_hyper_cleaning, draw_quadratic_bilevel, draw_ridge_regression
from bilevel_gym.errors import CheckpointError, InvalidProblem, MissingExtra, UnsupportedProblem
from bilevel_gym.hypergradients import AID
from bilevel_gym.rewards import Box
from bilevel_gym.solvers import SAC, GradientDescentSolver, SoftPolicyIteration
from bilevel_gym.testing import check_hypergradient
from bilevel_gym.types import Budget
from tests import problems

SOLVER = GradientDescentSolver(tolerance=1e-13)
CONVERGED = AID(iterations=300, tolerance=1e-13)


def draw(problem, seed=0, **options):
    """An instance of one of the three tasks."""
    return problem(np.random.default_rng(seed), **options)


SMALL = {"train": 12, "validation": 20, "corruption": 0.4, "penalty": 0.2}
PROBLEMS = {
    **{f"quadratic-{seed}": draw(draw_quadratic_bilevel, seed, dimension=4, size=7) for seed in range(2)},
    "quadratic-one-number": draw(draw_quadratic_bilevel, dimension=1, size=1),
    "ridge": draw(draw_ridge_regression),
    "ridge-shared": draw(draw_ridge_regression, shared=True),
    "cleaning": draw(draw_data_hyper_cleaning, **SMALL),
    **{f"convex-{seed}": problems.convex(seed) for seed in range(3)},
}


def estimate(problem, x, estimator=CONVERGED, solver=SOLVER, state=None):
    """∇̂φ(x) and the estimator's state at a solved response."""
    oracle = ProblemOracle(problem, solver, torch.Generator())
    response = oracle.solve(x)
    return estimator(oracle, x, response, oracle.evaluate(x, response), state)


# ---------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", PROBLEMS)
def test_against_central_differences(name):
    """A sign, a transposed product or a missing term of ∇_x f − ∇²_xy g [∇²_yy g]⁻¹ ∇_y f breaks this on some problem."""
    problem = PROBLEMS[name]
    x = problems.point(problem, len(name)) + 1.0
    comparison = check_hypergradient(problem, x, CONVERGED, solver=SOLVER)
    assert comparison.relative_error < 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_quadratic_closed_form(seed):
    """∇φ = Mᵀ(y* − t) + ρx with M = A⁻¹B, and it vanishes at the x* that the task reports, which lies inside the box."""
    problem = draw(draw_quadratic_bilevel, seed)
    lower, upper = problem.lower, problem.objective
    x = problems.point(problem, seed)
    moved = torch.linalg.solve(lower.hessian, lower.coupling)
    expected = moved.T @ (lower.answer(x) - upper.target) + upper.ridge * x
    found, _ = estimate(problem, x)
    torch.testing.assert_close(found.value, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found.direct, upper.ridge * x, rtol=1e-12, atol=0.0)
    assert float(estimate(problem, upper.optimum)[0].value.norm()) < 1e-10
    assert float(upper.optimum.abs().max()) < 10.0


@pytest.mark.parametrize("shared", [False, True])
def test_ridge_closed_form(shared):
    """dφ/dx_j = −e^{x_j} w_j [(ZᵀZ/n + diag e^x)⁻¹ Vᵀ(Vw − t)]_j, summed where one penalty is shared: the textbook's differentiation."""
    problem = draw(draw_ridge_regression, shared=shared)
    x = problems.point(problem, 1)
    train, upper = problem.lower.data, problem.objective.data
    penalties = x.exp().expand(10)
    system = train.inputs.T @ train.inputs / len(train.inputs) + penalties.diag()
    weights = torch.linalg.solve(system, train.inputs.T @ train.targets / len(train.inputs))
    sensitivity = torch.linalg.solve(system, upper.inputs.T @ (upper.inputs @ weights - upper.targets))
    expected = -penalties * weights * sensitivity
    found, _ = estimate(problem, x)
    torch.testing.assert_close(found.value, expected.sum(-1, keepdim=True) if shared else expected, rtol=1e-8, atol=1e-10)


def test_batch_equals_single_problems():
    """A leading axis changes no number, in the solve and in the estimate."""
    for name in ("quadratic-0", "ridge", "ridge-shared", "cleaning", "convex-0"):
        problem = PROBLEMS[name]
        x = torch.stack([problems.point(problem, seed) for seed in range(4)])
        whole, _ = estimate(problem, x)
        for i in range(4):
            torch.testing.assert_close(whole.value[i], estimate(problem, x[i])[0].value, rtol=1e-8, atol=1e-9)


def test_the_linear_system_is_amortized():
    """Two conjugate-gradient steps an estimate must come to the exact gradient when v is carried on, and say how far it is."""
    problem = PROBLEMS["convex-0"]
    x = problems.point(problem, 0)
    truth = estimate(problem, x)[0].value
    short, state, errors, residuals = AID(iterations=2), None, [], []
    for _ in range(6):
        found, state = estimate(problem, x, short, state=state)
        errors.append(float((found.value - truth).norm()))
        residuals.append(found.stats["cg_residual"])
    assert errors[0] > 1e-3
    assert errors[-1] < 1e-3 * errors[0]
    assert residuals[-1] < 1e-3 * residuals[0]
    again, _ = estimate(problem, x, AID(tolerance=1e-3), state=state)
    assert again.stats["cg_iterations"] == 0.0


def test_stats_tell_the_curvature():
    """μ ≤ smallest curvature met ≤ L; on a g that is not convex it is negative, and the implicit part is left out rather than blown up."""
    problem = PROBLEMS["quadratic-0"]
    x = problems.point(problem, 0)
    assert 1.0 - 1e-9 <= estimate(problem, x)[0].stats["cg_curvature"] <= 10.0 + 1e-9
    flipped = replace(problem, lower=replace(problem.lower, hessian=-problem.lower.hessian))
    oracle = ProblemOracle(flipped, SOLVER, torch.Generator())
    response = SOLVER.solve(problem, x)
    found, _ = AID()(oracle, x, response, oracle.evaluate(x, response), None)
    assert found.stats["cg_curvature"] < 0.0
    assert torch.equal(found.implicit, torch.zeros_like(x))


def test_an_x_that_moves_only_f():
    """Where g does not depend on x there is no implicit part, and no error from autograd."""
    problem = PROBLEMS["convex-0"]

    class Still(problems.Curved):
        def value(self, x, y):
            return super().value(torch.zeros_like(x), y)

    still = replace(problem, lower=Still(np.random.default_rng(0), 5, 3))
    found, _ = estimate(still, problems.point(problem, 0))
    assert torch.equal(found.implicit, torch.zeros(3, dtype=torch.float64))
    assert float(found.direct.norm()) > 0.0


# ---------------------------------------------------------------------------------------------------- the inner loop


@pytest.mark.parametrize("steps", [1, 7, 30])
def test_the_solver_contracts_and_certifies(steps):
    """‖y − y*‖ ≤ gap/μ and ≤ ((L−μ)/(L+μ))^N times the first error: a wrong default step or a stale gap breaks one of them."""
    for seed in range(5):
        problem = draw(draw_quadratic_bilevel, seed)
        x = problems.point(problem, seed, scale=2.0)
        answer, found = problem.lower.answer(x), GradientDescentSolver(steps=steps).solve(problem, x)
        error = float((found.policy - answer).norm())
        assert error <= float(found.gap) / 1.0 + 1e-12
        assert error <= (9.0 / 11.0) ** steps * float(answer.norm()) + 1e-12
        assert found.steps == steps
        assert not found.converged


def test_the_solver_is_warm_started():
    """Ten steps and ten more are twenty; without the warm start the follower would forget what it knows at each upper step."""
    problem = PROBLEMS["convex-1"]
    x = problems.point(problem, 0)
    ten = GradientDescentSolver(steps=10)
    twice = ten.solve(problem, x, warm=ten.solve(problem, x))
    assert torch.equal(twice.policy, GradientDescentSolver(steps=20).solve(problem, x).policy)
    assert ten.solve(problem, x, budget=Budget(steps=3)).steps == 3


@pytest.mark.parametrize("name", PROBLEMS)
def test_tolerance_is_met_or_rounding_is_said(name):
    """Converged means that ‖∇_y g‖ is below the tolerance; one that rounding forbids ends the loop and is not claimed."""
    problem = PROBLEMS[name]
    x = problems.point(problem, 0)
    found = GradientDescentSolver(tolerance=1e-8).solve(problem, x)
    slope = torch.func.grad(partial(problem.lower.value, x))(found.policy)
    assert found.converged
    assert float(found.gap) <= 1e-8
    torch.testing.assert_close(found.gap, slope.norm(), rtol=1e-6, atol=1e-15)
    hopeless = GradientDescentSolver(tolerance=1e-300).solve(problem, x, budget=Budget(steps=20_000))
    assert hopeless.steps < 20_000
    assert hopeless.converged == (float(hopeless.gap) == 0.0)


@pytest.mark.parametrize("name", PROBLEMS)
def test_curvature_bounds_the_hessian(name):
    """The certificate gap/μ and the default step 2/(μ+L) are only right if μI ≼ ∇²_yy g ≼ LI."""
    problem = PROBLEMS[name]
    for seed in range(2):
        x = problems.point(problem, seed, scale=1.5)
        y = torch.as_tensor(np.random.default_rng(seed).standard_normal(problem.lower.size))
        if problem.lower.size > 100:  # along random directions where the matrix is too large
            product = partial(torch.autograd.functional.hvp, partial(problem.lower.value, x), y)
            directions = torch.as_tensor(np.random.default_rng(seed).standard_normal((20, problem.lower.size)))
            bends = torch.stack([p @ product(p)[1] / (p @ p) for p in directions])
        else:
            bends = torch.linalg.eigvalsh(torch.autograd.functional.hessian(partial(problem.lower.value, x), y))
        low, high = problem.lower.curvature(x)
        assert 0.0 < float(low) <= float(bends.min()) + 1e-9
        assert float(bends.max()) <= float(high) + 1e-9


def test_a_step_that_diverges_is_refused_and_changes_nothing():
    """Above 2/L the inner loop blows up: the environment must say which step size would do, and stay as it was."""
    env = BilevelEnv(PROBLEMS["quadratic-0"], GradientDescentSolver(steps=10), initial_x=np.zeros(4))
    env.reset(seed=0)
    before = env.response
    for solver in (GradientDescentSolver(steps=2000, step_size=1.0), GradientDescentSolver(step_size=1.0, tolerance=1e-9)):
        env.solver = solver
        with pytest.raises(InvalidProblem, match=r"below 2/L = 0\.2"):
            env.step(np.ones(4))
    assert env.response is before


def test_a_function_that_is_not_a_number_is_refused():
    """A NaN from g can never meet a tolerance: the loop must end at once, not after a million steps."""

    class Broken(problems.Curved):
        def value(self, x, y):
            return super().value(x, y) * torch.nan

    problem = replace(PROBLEMS["convex-0"], lower=Broken(np.random.default_rng(0), 5, 3))
    with pytest.raises(InvalidProblem, match=r"after 1 inner steps.*NaN"):
        GradientDescentSolver(tolerance=1e-9).solve(problem, problems.point(problem, 0))


@pytest.mark.parametrize("options", [{}, {"steps": 0}, {"steps": 3, "step_size": -1.0}, {"tolerance": 0.0}, {"tolerance": float("nan")}])
def test_bad_solver_options(options):
    """A loop without an end, or with numbers that mean nothing, must be refused when it is built."""
    with pytest.raises(InvalidProblem):
        GradientDescentSolver(**options)


# ---------------------------------------------------------------------------------------------------- the recipe


def test_aid_descends_as_gradient_descent_must():
    """With a solved lower level the error obeys x_k+1 − x* = (I − β∇²φ)(x_k − x*) exactly: the linear rate of the smooth convex φ."""
    problem = draw(draw_quadratic_bilevel, 4)
    env = gym.wrappers.TimeLimit(BilevelEnv(problem, SOLVER), 100)
    env.reset(seed=0)
    moved = torch.linalg.solve(problem.lower.hessian, problem.lower.coupling)
    step = torch.eye(10, dtype=torch.float64) - 0.8 * (moved.T @ moved + 0.1 * torch.eye(10, dtype=torch.float64))
    error = env.unwrapped.x - problem.objective.optimum
    agents.aid(env, learning_rate=0.8).learn(12)
    torch.testing.assert_close(
        env.unwrapped.x - problem.objective.optimum, torch.linalg.matrix_power(step, 12) @ error, rtol=1e-7, atol=1e-9
    )


def test_aid_with_ten_inner_steps_converges():
    """N = O(1) inner steps and a warm start are enough: the default id and recipe come to x*, at the linear rate 1 − β(ρ + …) or better."""
    env = gym.make("bilevel/QuadraticBilevel-v0")
    _, info = env.reset(seed=0)
    distances = [info["distance"]]
    agents.aid(env).learn(100, lambda _, metrics: distances.append(metrics["distance"]))
    assert distances[-1] < 1e-4 * distances[0]
    assert distances[100] <= 1.05 * 0.9**50 * distances[50]
    assert env.unwrapped.evaluation.metrics["response_error"] < 1e-6


def test_ridge_finds_the_shared_penalty():
    """One penalty has one optimum, which a grid of closed-form solutions finds too."""
    env = gym.make("bilevel/RidgeRegression-v0", shared=True)
    env.reset(seed=0)
    problem = env.unwrapped.problem
    agents.aid(env).learn(30)
    train, upper = problem.lower.data, problem.objective.data
    grid = torch.linspace(-4.0, 4.0, 801, dtype=torch.float64)
    gram = train.inputs.T @ train.inputs / len(train.inputs) + grid.exp()[:, None, None] * torch.eye(10, dtype=torch.float64)
    weights = torch.linalg.solve(gram, (train.inputs.T @ train.targets / len(train.inputs)).expand(801, 10))
    phi = 0.5 * (weights @ upper.inputs.T - upper.targets).square().sum(-1)
    assert float(env.unwrapped.x) == pytest.approx(float(grid[phi.argmin()]), abs=0.01)
    assert float(env.unwrapped.evaluation.value) == pytest.approx(float(phi.min()), abs=1e-4)
    assert float(env.unwrapped.evaluation.value) == pytest.approx(27.470, abs=2e-3)  # the reference value in the docstring


def test_cleaning_beats_no_cleaning():
    """Twenty upper steps must find most wrong labels and classify unseen digits better than equal weights do."""
    env = gym.make("bilevel/DataHyperCleaning-v0", train=250, steps=25)
    _, info = env.reset(seed=0)
    assert 0.4 < info["separation"] < 0.6
    assert 0.08 < float(env.unwrapped.x.std()) < 0.12  # all weights near one half
    problem = env.unwrapped.problem
    equal = GradientDescentSolver(tolerance=1e-3).solve(problem, torch.full((250,), 10.0, dtype=torch.float64))
    uncleaned = problem.objective.metrics(problem, env.unwrapped.x, equal.policy)["test_accuracy"]
    agents.aid(env).learn(20)
    cleaned = env.unwrapped.evaluation.metrics
    assert cleaned["test_accuracy"] > uncleaned + 0.05
    assert cleaned["separation"] > 0.9


# ---------------------------------------------------------------------------------------------------- the tasks


def test_wrong_labels_are_wrong_and_the_others_right():
    """`corrupted` is what separation is measured against: it must mark the replaced labels, all of them and no others."""
    many, one = (draw(draw_data_hyper_cleaning, corruption=share) for share in (0.4, 0.002))
    marked, single = many.objective.corrupted, one.objective.corrupted
    assert int(marked.sum()) == 200
    assert int(single.sum()) == 1
    assert torch.equal(many.lower.data.inputs, one.lower.data.inputs)
    changed = many.lower.data.labels != one.lower.data.labels
    assert torch.equal(changed[~single], marked[~single])
    assert int(many.lower.data.labels.min()) == 0
    assert int(many.lower.data.labels.max()) == 9


def test_sets_share_no_sample():
    """A test accuracy on samples that the upper or lower level has seen is worth nothing."""
    problem = draw(draw_data_hyper_cleaning)
    parts = (problem.lower.data, problem.objective.data, problem.objective.test)
    assert [len(part.labels) for part in parts] == [500, 200, 1097]
    assert len(torch.cat([part.inputs for part in parts]).unique(dim=0)) == 1797
    problem = draw(draw_ridge_regression)
    parts = (problem.lower.data, problem.objective.data, problem.objective.test)
    assert [len(part.targets) for part in parts] == [100, 100, 242]
    assert len(torch.cat([part.inputs for part in parts]).unique(dim=0)) == 442
    torch.testing.assert_close(parts[0].inputs.mean(0), torch.zeros(10, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(parts[0].targets.std(correction=0), torch.ones((), dtype=torch.float64))


def test_separation_is_the_area_under_the_curve():
    """1 where every right label is above every wrong one, ½ where they are tied, and the share of ordered pairs between."""
    objective = draw(draw_data_hyper_cleaning, **SMALL).objective
    objective = replace(objective, corrupted=torch.tensor([True, True, False, False]))
    weights = torch.zeros(650, dtype=torch.float64)
    for x, expected in (((0, 1, 2, 3), 1.0), ((2, 3, 0, 1), 0.0), ((1, 1, 1, 1), 0.5), ((0, 2, 1, 3), 0.75), ((0, 1, 1, 1), 0.75)):
        assert objective.metrics(None, torch.tensor(x, dtype=torch.float64), weights)["separation"] == expected


def test_test_r2():
    """0 for predicting the mean, 1 for predicting the truth."""
    problem = draw(draw_ridge_regression)
    test = problem.objective.test
    line = torch.linspace(-1.0, 1.0, 10, dtype=torch.float64)
    centred = test.inputs - test.inputs.mean(0)
    perfect = replace(problem.objective, test=replace(test, inputs=centred, targets=centred @ line))
    assert perfect.metrics(problem, None, line)["test_r2"] == pytest.approx(1.0)
    assert perfect.metrics(problem, None, 0.0 * line)["test_r2"] == pytest.approx(0.0)


def test_only_short_vectors_are_observed():
    """x is seen, and y is not: the weights of a classifier have no place in an observation, nor finite bounds."""
    for name, dimension in (("QuadraticBilevel-v0", 10), ("RidgeRegression-v0", 10), ("DataHyperCleaning-v0", 500)):
        env = gym.make(f"bilevel/{name}")
        seen, info = env.reset(seed=0)
        assert set(seen) == {"objective", "gap", "x"}
        assert seen["x"].shape == (dimension,)
        assert np.array_equal(seen["x"], env.unwrapped.x.numpy())
        assert info["gap"] == float(env.unwrapped.response.gap) < np.inf


def test_a_state_of_another_lower_level_is_refused():
    """y of another size must not be half loaded."""
    small, large = (gym.make("bilevel/QuadraticBilevel-v0", size=n).unwrapped for n in (5, 6))
    small.reset(seed=0)
    with pytest.raises(CheckpointError, match=r"\[10, 5\]"):
        large.set_state(small.get_state())


def test_rendering():
    """x above y, as bars to both sides of a line."""
    env = gym.make("bilevel/QuadraticBilevel-v0", render_mode="rgb_array", dimension=2)
    env.reset(seed=0)
    env.step(np.array([4.0, -2.0]))
    picture = env.render()
    assert picture.shape == (240, 480, 3)
    assert picture.dtype == np.uint8
    blue, red = ((picture[:120] == colour).all(-1).sum(0) for colour in ((70, 110, 190), (200, 80, 70)))
    assert blue[:240].min() >= 58
    assert blue[240:].max() == 0
    assert red[:240].max() == 0
    assert 28 <= red[240:].min() <= red[240:].max() <= 31


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("QuadraticBilevel-v0", {"size": 0}),
        ("QuadraticBilevel-v0", {"condition": 0.5}),
        ("QuadraticBilevel-v0", {"ridge": 0.0}),
        ("RidgeRegression-v0", {"train": 400, "validation": 41}),
        ("RidgeRegression-v0", {"validation": 1}),
        ("DataHyperCleaning-v0", {"train": 1700}),
        ("DataHyperCleaning-v0", {"validation": 0}),
        ("DataHyperCleaning-v0", {"corruption": 0.0}),
        ("DataHyperCleaning-v0", {"corruption": 1.0}),
        ("DataHyperCleaning-v0", {"penalty": 0.0}),
    ],
)
def test_bad_arguments(name, options):
    """Numbers that make no task must be refused with words, not fail in a slice."""
    with pytest.raises(InvalidProblem):
        gym.make(f"bilevel/{name}", **options)


@pytest.mark.parametrize("name", ["RidgeRegression-v0", "DataHyperCleaning-v0"])
def test_without_scikit_learn(name, monkeypatch):
    """The message must hold the command that installs the data."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtra, match=r"pip install bilevel-gym\[data\]"):
        gym.make(f"bilevel/{name}")


# ---------------------------------------------------------------------------------------------------- refusals

AROUND = (hypergradients.PerProblem, hypergradients.Momentum, hypergradients.RandomizedTruncation, hypergradients.Repeatable)
"""These say what the one inside says."""
PARTS = [getattr(hypergradients, name) for name in hypergradients.__all__]
ESTIMATORS = [part for part in PARTS if hasattr(part, "supports") and part not in AROUND]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda made: made.__name__)
def test_every_estimator_has_a_word_for_a_convex_problem(estimator):
    """What needs a decision problem must say so of one that has none, and not stumble over what is missing."""
    reason = estimator().supports(PROBLEMS["convex-0"])
    assert (reason is None) if estimator in (AID, hypergradients.ZeroOrder) else (isinstance(reason, str) and "NoneType" not in reason)


def test_aid_needs_a_function():
    """AID on a decision problem, or with an objective that has no gradient, must name the reason when the agent is built."""
    assert "decision problem" in AID().supports(problems.quadratic(0))
    with pytest.raises(UnsupportedProblem, match="decision problem"):
        agents.aid(gym.make("bilevel/RandomMDP-v0"))
    with pytest.raises(UnsupportedProblem, match="AID"):
        agents.m_sobirl(gym.make("bilevel/QuadraticBilevel-v0"))
    assert "no gradient" in AID().supports(replace(PROBLEMS["convex-0"], objective=object()))
    with pytest.raises(InvalidProblem):
        AID(iterations=0)


def test_solvers_refuse_the_other_kind():
    """A solver on the wrong lower level must say which one fits."""
    for solver in (SoftPolicyIteration(), SAC()):
        with pytest.raises(UnsupportedProblem, match="GradientDescentSolver"):
            solver.start(PROBLEMS["convex-0"])
    with pytest.raises(UnsupportedProblem, match="decision problem"):
        GradientDescentSolver(steps=1).start(problems.quadratic(0))


def test_a_lower_level_must_be_one_number():
    """A g that forgets to sum would be summed by autograd, and be another problem in a batch."""

    class Unsummed(problems.Curved):
        def value(self, x, y):
            return y**2

    with pytest.raises(InvalidProblem, match="one number"):
        ConvexProblem(Unsummed(np.random.default_rng(0), 5, 3), problems.Tilted(), Box(3, 1.0))
    with pytest.raises(InvalidProblem, match="spread"):
        Box(3, 1.0, spread=0.0)
