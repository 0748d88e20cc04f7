"""The unregularized limit: the path of temperatures, its two gaps, and the solver that cools down."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bilevel_gym import BilevelEnv, BilevelProblem
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.hypergradients import Exact
from bilevel_gym.numerics import backup
from bilevel_gym.objectives import QuadraticObjective
from bilevel_gym.regularizers import KullbackLeibler, Shannon, Tsallis
from bilevel_gym.rewards import LinearReward
from bilevel_gym.solvers import Continuation, SoftPolicyIteration, SoftValueIteration, anneal, unregularized_gap
from bilevel_gym.testing import central_differences, check_bilevel_env
from bilevel_gym.types import Budget
from bilevel_gym.worlds import TabularWorld
from tests import problems

PATH = [10.0**-k for k in range(7)]


def optimal_value(problem, x):
    """V*₀ over the policies that Ω allows, by plain sweeps."""
    mdp = problem.at(x)
    reference = getattr(problem.regularizer, "reference", torch.ones_like(mdp.reward))
    value = torch.zeros_like(mdp.reward[..., 0])
    for _ in range(400):
        value = backup(mdp, value).masked_fill(reference == 0, -torch.inf).amax(-1)
    return value


@pytest.mark.parametrize("kind", problems.UNDER)
def test_the_path_ends_at_the_unregularized_optimum(kind):
    """Along the path the distance to the optimum is below its bound, never grows, and vanishes; an optimum that is none would not let it."""
    for seed in range(8):
        problem = problems.UNDER[kind](problems.quadratic(seed, discount=0.9))
        stages = anneal(problem, problems.point(problem, seed), PATH)
        measured = torch.stack([stage.gap.measured for stage in stages])
        assert [stage.temperature for stage in stages] == PATH
        assert all(stage.response.converged for stage in stages)
        assert all(float(stage.gap.measured) <= float(stage.gap.bound) + 1e-12 for stage in stages)
        assert bool((measured.diff() <= 1e-12).all())
        assert bool((measured >= -1e-12).all())
        assert float(measured[0]) > 1e-3
        assert float(measured[-1]) < 1e-6
        assert float(stages[-1].gap.bound) < 1e-3


@pytest.mark.parametrize("kind", problems.UNDER)
def test_measured_gap_against_sweeps(kind):
    """V*₀ − V^π₀ is what value iteration at τ = 0 and an unregularized evaluation of π give, for any response: under KL with actions that μ forbids, too."""
    for seed in range(4):
        problem = problems.UNDER[kind](problems.quadratic(seed, discount=0.9, temperature=0.2))
        x = problems.point(problem, seed)
        for response in (SoftPolicyIteration().solve(problem, x), SoftValueIteration(sweeps=2).solve(problem, x)):
            mdp, value = problem.at(x), torch.zeros_like(response.value)
            for _ in range(400):
                value = (response.policy * backup(mdp, value)).sum(-1)
            expected = (optimal_value(problem, x) - value).amax(-1)
            gap = unregularized_gap(problem, x, response)
            torch.testing.assert_close(gap.measured, expected, rtol=0, atol=1e-11)
            assert float(gap.measured) <= float(gap.bound)


def test_bounds_in_closed_form():
    """τ log A/(1−γ), τ(1 − 1/A)/2(1−γ) and τ max log 1/μ/(1−γ); an unsolved lower level adds 2 gap/(1−γ)."""
    problem = problems.linear(0)
    x, reference = problems.point(problem, 0), problems.rows(np.random.default_rng(0), 7, 3)
    reference[0] = (0.0, 0.01, 0.99)
    for regularizer, spread in (
        (Shannon(0.3), np.log(3)),
        (Tsallis(0.3), (1 - 1 / 3) / 2),
        (KullbackLeibler(0.3, reference), -np.log(reference[reference > 0].min())),
    ):
        under = problem.under(regularizer)
        solved = replace(SoftPolicyIteration().solve(under, x), gap=torch.tensor(0.07, dtype=torch.float64))
        np.testing.assert_allclose(unregularized_gap(under, x, solved).bound, (0.3 * spread + 0.14) / 0.1, rtol=1e-12)


def test_the_bound_is_nearly_attained():
    """One good action among a thousand: their entropy outweighs it, and more than half of τ log A/(1−γ) is lost."""
    world = TabularWorld(np.ones((1, 1000, 1)), [1.0], 0.9)
    reward = LinearReward(np.eye(1, 1000)[..., None])
    problem = BilevelProblem(world, reward, Shannon(0.2), QuadraticObjective())
    (stage,) = anneal(problem, torch.ones(1, dtype=torch.float64), [0.2])
    assert 0.5 * float(stage.gap.bound) < float(stage.gap.measured) <= float(stage.gap.bound)


def test_a_warm_stage_takes_fewer_steps_than_a_cold_solve():
    """What continuation saves is at the last temperature; all stages together cost more than one cold solve, as its docstring says."""
    last, whole, cold = 0, 0, 0
    for seed in range(10):
        problem = problems.quadratic(seed, discount=0.99)
        x = problems.point(problem, seed)
        steps = [stage.response.steps for stage in anneal(problem, x, PATH)]
        last, whole = last + steps[-1], whole + sum(steps)
        cold += SoftPolicyIteration().solve(problem.under(problem.regularizer.at(PATH[-1])), x).steps
    assert last < cold < whole


def test_batches_and_contexts_have_a_gap_each():
    """[B] over a batch of x, the worst follower over contexts: as separate problems give."""
    for kind, under in problems.UNDER.items():
        problem = under(problems.linear(2))
        x = torch.stack([problems.point(problem, seed) for seed in range(3)])
        whole = anneal(problem, x, [0.5, 0.05])
        for i in range(3):
            for stage, alone in zip(whole, anneal(problem, x[i], [0.5, 0.05]), strict=True):
                torch.testing.assert_close(stage.gap.measured[i], alone.gap.measured, rtol=0, atol=1e-11, msg=kind)
                torch.testing.assert_close(stage.gap.bound[i], alone.gap.bound, rtol=0, atol=1e-8)
        several = under(problems.contexts(0))
        (stage,) = anneal(several, torch.stack([problems.point(several, seed) for seed in range(2)]), [0.1])
        assert stage.gap.measured.shape == stage.gap.bound.shape == stage.response.gap.shape == (2,)
        assert bool((stage.gap.measured <= stage.gap.bound).all())


@pytest.mark.parametrize("kind", problems.UNDER)
def test_the_solver_ends_at_the_temperature_of_the_problem(kind):
    """Cooled down or not, the answer is the one at the problem's own τ; hotter stages only, each counted."""
    problem = problems.UNDER[kind](problems.quadratic(3, temperature=0.02))
    x = problems.point(problem, 3)
    direct = SoftPolicyIteration().solve(problem, x)
    cooled = Continuation((1.0, 0.1, 0.02, 0.001)).solve(problem, x)
    assert cooled.converged
    torch.testing.assert_close(cooled.policy, direct.policy, rtol=0, atol=1e-8)
    stages = anneal(problem, x, [1.0, 0.1, problem.regularizer.temperature])
    assert cooled.steps == sum(stage.response.steps for stage in stages)
    assert torch.equal(cooled.value, stages[-1].response.value)
    assert torch.equal(Continuation((0.01,)).solve(problem, x).value, direct.value)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 1000])
def test_the_solver_keeps_a_budget(steps):
    """A caller's budget covers all stages, and the last one is at the problem's temperature however little there is."""
    problem = problems.quadratic(3, temperature=0.02)
    x = problems.point(problem, 3)
    response = Continuation((1.0, 0.1)).solve(problem, x, budget=Budget(steps=steps))
    assert response.steps <= steps
    own = problem.regularizer
    residual = (own.conjugate(backup(problem.at(x), response.value)) - response.value).abs().max()
    assert float(residual) <= float(response.gap) + 1e-12
    assert response.converged == (steps == 1000)


def test_the_solver_in_an_environment():
    """It is a lower-level solver like any other: the environment passes its checks, and ∇φ at a small τ is that of the problem."""
    problem = problems.linear(1).under(Shannon(0.05))
    env = BilevelEnv(problem, Continuation((1.0, 0.2)))
    check_bilevel_env(env)
    env.reset(seed=0)
    x = problems.point(problem, 1)
    env.step(x.numpy())
    found, _ = Exact()(env.oracle, env.x, env.response, env.evaluation, None)
    np.testing.assert_allclose(found.value, central_differences(problem, x), rtol=1e-5, atol=1e-7)
    assert float(unregularized_gap(problem, env.x, env.response).measured) < 0.05 * np.log(3) / 0.1


@pytest.mark.parametrize("path", [(), (0.1, 0.1), (0.1, 1.0), (1.0, float("nan"))])
def test_a_path_that_does_not_cool_is_refused(path):
    """Temperatures out of order are a mistake, not a schedule."""
    with pytest.raises(InvalidProblem, match="temperatures are"):
        Continuation(path)
    with pytest.raises(InvalidProblem, match="temperatures are"):
        anneal(problems.linear(0), problems.point(problems.linear(0), 0), path)


def test_no_step_is_no_budget():
    """A budget of no steps is refused, as by every solver."""
    problem = problems.linear(0)
    with pytest.raises(InvalidProblem, match="no steps"):
        Continuation().solve(problem, problems.point(problem, 0), budget=Budget(steps=0))
