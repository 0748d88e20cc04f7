"""Hyper-gradients from values alone: against the exact ones, inside the box, counted, and with nothing moved."""

from __future__ import annotations

from dataclasses import dataclass, replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym import BilevelEnv, BilevelProblem, agents
from bilevel_gym.envs import BilevelVectorEnv, ProblemOracle
from bilevel_gym.errors import InvalidProblem, UnknownName, UnsupportedProblem
from bilevel_gym.hypergradients import Exact, ZeroOrder
from bilevel_gym.objectives import QuadraticObjective
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import LinearReward, QuadraticReward
from bilevel_gym.solvers import GradientDescentSolver, SoftPolicyIteration, SoftValueIteration
from bilevel_gym.testing import check_hypergradient
from bilevel_gym.worlds import TabularWorld
from tests import problems

SOLVER = SoftPolicyIteration(tolerance=1e-13)

PROBLEMS = {
    **{f"quadratic-{seed}": problems.quadratic(seed) for seed in range(6)},
    **{f"oblique-{seed}": problems.quadratic(seed, objective=problems.Oblique()) for seed in range(20, 24)},
    **{f"linear-ending-{seed}": problems.linear(seed) for seed in range(3)},
    **{f"controlled-{seed}": problems.controlled(seed) for seed in range(4)},
    "contexts": problems.contexts(0),
    "controlled-contexts": problems.controlled_contexts(0),
    "returns": problems.returns(0),
}


@dataclass(frozen=True)
class Recording:
    """Somebody's own solver, which remembers what it was asked."""

    asked: list
    inner: object = SOLVER

    def start(self, problem):
        """What the inner solver starts from."""
        return self.inner.start(problem)

    def solve(self, problem, x, *, warm, budget, generator):
        """The inner solver's answer, counted as one step."""
        self.asked.append((x.clone(), warm))
        return replace(self.inner.solve(problem, x, warm=warm), steps=1, soft=False)


class Noisy(problems.Oblique):
    """An objective whose value is drawn anew at every look."""

    def evaluate(self, problem, x, response, memory, generator):
        """f plus a number that has nothing to do with x."""
        seen, memory = super().evaluate(problem, x, response, memory, generator)
        return replace(seen, value=seen.value + torch.randn((), generator=generator, dtype=x.dtype)), memory


def estimate(problem, x, estimator, *, solver=SOLVER, seed=0):
    """One estimate at the best response, and the oracle that was asked."""
    oracle = ProblemOracle(problem, solver, torch.Generator().manual_seed(seed))
    response = SOLVER.solve(problem, x)
    return estimator(oracle, x, response, oracle.evaluate(x, response), estimator.init(oracle))[0], oracle


@pytest.mark.parametrize("name", PROBLEMS)
def test_finite_differences_equal_the_exact_gradient(name):
    """A wrong end, weight or radius in the difference is more than 1e-6 away from the adjoint, where x moves P as well."""
    problem = PROBLEMS[name]
    x = problems.point(problem, len(name))
    exact, _ = estimate(problem, x, Exact())
    found, _ = estimate(problem, x, ZeroOrder("finite_differences", radius=2e-5))
    assert float((found.value - exact.value).norm() / exact.value.norm()) < 1e-6
    assert torch.equal(found.direct, found.value)
    assert not found.implicit.any()


@pytest.mark.parametrize(("name", "directions"), [("quadratic-1", 1), ("oblique-21", 3), ("linear-ending-1", 1), ("controlled-1", 3)])
def test_two_points_are_unbiased(name, directions):
    """A missing D, a wrong number of directions or directions off the sphere shift the mean out of its confidence interval."""
    problem = PROBLEMS[name]
    comparison = check_hypergradient(problem, problems.point(problem, 2), ZeroOrder(radius=1e-3, directions=directions), estimates=300)
    assert comparison.cosine > 0.95


def test_two_points_average_over_the_ball():
    """At a radius that is not small the mean is the gradient of φ smoothed over the ball, in closed form for f = .05 Σx³ without a world."""
    world = TabularWorld(np.ones((1, 1, 1)), np.ones(1), 0.5)  # one state, one action: π and the implicit part are constant
    reward = QuadraticReward(np.zeros((1, 1)), np.zeros((3, 3)))
    problem = BilevelProblem(world, reward, Shannon(1.0), problems.Oblique())
    x, radius = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64), 1.5
    slope = estimate(problem, x, Exact())[0].value - 0.15 * x**2  # what does not depend on x
    # E[(x + rv)²] = x² + r²/(D + 2) for v uniform in the unit ball
    smoothed = slope + 0.15 * (x**2 + radius**2 / 5)
    values = estimate(problem, x.expand(20000, 3), ZeroOrder(radius=radius, directions=1))[0].value
    error = values.std(0) / len(values) ** 0.5
    assert ((values.mean(0) - smoothed).abs() < 4 * error).all()
    assert ((slope + 0.15 * x**2 - smoothed).abs() > 8 * error).all()


def test_what_is_random_is_shared_by_both_ends():
    """Drawn apart, noise of size 1 would enter as 1/r; drawn alike it leaves no trace, and another estimate has other draws."""
    problem = problems.linear(0)
    noisy = BilevelProblem(problem.world, problem.reward, problem.regularizer, Noisy())
    x = problems.point(problem, 0)
    exact, _ = estimate(problem, x, Exact())
    found, oracle = estimate(noisy, x, ZeroOrder("finite_differences", radius=2e-5))
    assert float((found.value - exact.value).norm() / exact.value.norm()) < 1e-6
    response = SOLVER.solve(problem, x)
    first, second = (ZeroOrder(directions=1)(oracle, x, response, None, None)[0].value for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("estimator", "solves"), [(ZeroOrder(directions=3), 6), (ZeroOrder(), 20), (ZeroOrder("finite_differences"), 10)], ids=["3", "10", "D"]
)
def test_each_solve_is_counted_and_starts_at_the_response(estimator, solves):
    """Baselines are compared at equal cost: a solve that is not counted, or one that starts cold, makes the comparison unfair."""
    problem = problems.linear(1)
    x, asked = problems.point(problem, 1), []
    response = SOLVER.solve(problem, x)
    oracle = ProblemOracle(problem, Recording(asked), torch.Generator().manual_seed(0))
    estimator(oracle, x, response, None, None)
    assert oracle.counters.lower_step == len(asked) == solves
    assert all(warm is response for _, warm in asked)
    distances = torch.stack([(point - x).norm() for point, _ in asked])
    torch.testing.assert_close(distances, torch.full_like(distances, estimator.radius))


@pytest.mark.parametrize("kind", ["two_point", "finite_differences"])
def test_points_keep_to_the_box(kind):
    """At a corner the follower must not be asked about an x that the environment refuses, and the slope is still right to O(r)."""
    problem = problems.linear(2)
    low, high = (torch.as_tensor(side) for side in problem.reward.bounds)
    x = torch.where(torch.arange(problem.dimension) % 2 == 0, low, high)
    x[0] = 0.3
    exact, _ = estimate(problem, x, Exact())
    asked = []
    estimator = ZeroOrder(kind, radius=1e-3, directions=200 if kind == "two_point" else None)
    found, _ = estimate(problem, x, estimator, solver=Recording(asked))
    assert all(((point >= low) & (point <= high)).all() for point, _ in asked)
    if kind == "finite_differences":
        assert float((found.value - exact.value).norm() / exact.value.norm()) < 1e-2
    else:
        assert float(torch.cosine_similarity(found.value, exact.value, dim=0)) > 0.9


def test_no_point_is_rounded_out_of_the_box():
    """A side near zero is passed by rounding when a longer step is taken back from it, and the environment refuses by a single ulp."""

    class Lopsided(LinearReward):
        bounds = (np.full(5, -10.0), np.full(5, 1e-3))

    problem = replace(problems.linear(0), reward=Lopsided(problems.linear(0).reward.features))
    asked = []
    estimate(problem, torch.full((50, 5), 1e-3, dtype=torch.float64), ZeroOrder(radius=0.7), solver=Recording(asked))
    assert max(float(point.max()) for point, _ in asked) == 1e-3


def test_a_batch_is_its_members():
    """One batched solve for all members, and a direction of its own for each: sharing one would correlate a thousand seeds."""
    rng = np.random.default_rng(0)
    batch, states, actions, dimension = 4, 5, 3, 6
    world = TabularWorld(problems.rows(rng, batch, states, actions, states), problems.rows(rng, batch, states), 0.8)
    reward = QuadraticReward(rng.random((batch, states, actions)), rng.standard_normal((batch, dimension, dimension)))
    problem = BilevelProblem(world, reward, Shannon(0.7), QuadraticObjective())
    x, asked = torch.as_tensor(rng.standard_normal((batch, dimension))), []
    exact, _ = estimate(problem, x, Exact())
    differences, _ = estimate(problem, x, ZeroOrder("finite_differences", radius=2e-5))
    torch.testing.assert_close(differences.value, exact.value, rtol=1e-5, atol=1e-6)
    found, _ = estimate(problem, x, ZeroOrder(directions=1, radius=1e-4), solver=Recording(asked))
    assert len(asked) == 2
    moves = asked[0][0] - x
    torch.testing.assert_close(moves.norm(dim=-1), torch.full((batch,), 1e-4, dtype=x.dtype))
    assert torch.linalg.matrix_rank(moves * 1e4) == batch
    expected = dimension * 1e8 * moves * (exact.value * moves).sum(-1, keepdim=True)  # D (∇φ·u) u
    torch.testing.assert_close(found.value, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", ["explicit", "sampled"])
def test_vectorized_members_get_what_they_would_get_alone(objective):
    """One batched solve, and yet each member's own directions and draws: a seed gives the same run in a batch of any size."""

    def made():
        problem = problems.linear(0) if objective == "explicit" else problems.preference(0, pairs=8)
        return BilevelEnv(problem, SoftPolicyIteration())

    envs = BilevelVectorEnv(made(), 3)
    envs.reset(seed=5)
    together = agents.zero_order(envs, directions=2).learn(3)
    for i in range(3):
        env = made()
        env.reset(seed=5 + i)
        alone = agents.zero_order(env, directions=2).learn(3)
        np.testing.assert_allclose(together.x[i], alone.x, rtol=0, atol=1e-9)
        assert vars(envs.counters[i])["comparisons"] == vars(env.counters)["comparisons"]


@pytest.mark.parametrize("kind", ["two_point", "finite_differences"])
def test_the_environment_stays(kind):
    """Asking on the side must not move the follower, its x, the memory or the environment's generator; only counters may grow."""
    env = BilevelEnv(problems.preference(0), SoftValueIteration(sweeps=3))
    env.reset(seed=0)
    before = env.get_state()
    ZeroOrder(kind)(env.oracle, env.x, env.response, env.evaluation, None)
    after = env.get_state()
    for name in ("x", "response", "evaluation", "memory", "generator", "np_random"):
        assert str(before[name]) == str(after[name])
    assert after["counters"]["fields"]["lower_step"] > before["counters"]["fields"]["lower_step"]
    assert after["counters"]["fields"]["comparisons"] > before["counters"]["fields"]["comparisons"]


def test_a_lower_level_that_is_a_function():
    """It asks for values only, so a strongly convex inner problem is as good as a decision problem."""
    problem, solver = problems.convex(0), GradientDescentSolver(tolerance=1e-13)
    comparison = check_hypergradient(problem, problems.point(problem, 0), ZeroOrder("finite_differences", radius=2e-5), solver=solver)
    assert comparison.relative_error < 1e-6


def test_sampled_objectives():
    """On comparisons of fragments each value is a sample: the mean of the differences must still be the gradient."""
    check_hypergradient(
        problems.preference(0), problems.point(problems.preference(0), 2), ZeroOrder(radius=0.1, directions=2), estimates=60
    )


def test_simulators_and_networks():
    """It needs no table, no derivative and no soft follower: one estimate around a soft actor-critic, which goes on as if nothing had been."""
    env = gym.make("bilevel/PendulumPreference-v0", preset="tiny").unwrapped
    env.reset(seed=0)
    estimator = ZeroOrder(directions=1, radius=0.1)
    assert estimator.supports(env.problem) is None
    before = env.get_state()["response"]
    found, _ = estimator(env.oracle, env.x, env.response, env.evaluation, None)
    assert found.value.dtype == torch.float32
    assert torch.isfinite(found.value).all()
    assert str(env.get_state()["response"]) == str(before)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"radius": 0.0}, "radius is 0.0: it must be positive"),
        ({"radius": float("nan")}, "radius is nan"),
        ({"directions": 0}, "take one at least"),
        ({"kind": "finite_differences", "directions": 3}, "leave it out"),
    ],
)
def test_bad_options_are_refused(options, words):
    """A radius of zero would divide by it, and an option that nobody reads would mislead."""
    with pytest.raises(InvalidProblem, match=words):
        ZeroOrder(**options)


def test_an_unknown_kind_and_a_narrow_box_are_refused():
    """Without it a typo would silently mean two points, and a ball wider than the box would have no place."""
    with pytest.raises(UnknownName, match="two_point"):
        ZeroOrder("forward")
    problem = problems.linear(0)
    side = float((problem.reward.bounds[1] - problem.reward.bounds[0]).min())
    assert ZeroOrder(radius=side / 2).supports(problem) is None
    with pytest.raises(UnsupportedProblem, match="lower the radius"):
        check_hypergradient(problem, problems.point(problem, 0), ZeroOrder(radius=side / 1.9))
