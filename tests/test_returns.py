"""The discounted cost of a policy, in the follower's world and in another one, against sums written out step by step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bilevel_gym import BilevelProblem
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.hypergradients import Exact
from bilevel_gym.numerics import gradients
from bilevel_gym.objectives import ReturnObjective
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import LinearReward
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.testing import check_hypergradient
from bilevel_gym.worlds import TabularWorld
from tests import problems

RETURNS = {
    "infinite": problems.returns(0, contexts=False, horizon=None),
    "horizon": problems.returns(1, contexts=False),
    "horizon-1": problems.returns(2, contexts=False, horizon=1),
    "contexts": problems.returns(3, horizon=None),
    "contexts-horizon": problems.returns(4),
    "undiscounted": problems.returns(5, discount=1.0),
    "entropic": problems.returns(10, entropy=0.3),
    "elsewhere": problems.returns(6, elsewhere=True, entropy=0.3, horizon=None),
    "elsewhere-horizon": problems.returns(7, elsewhere=True, entropy=0.3, discount=0.97),
    "corridor": problems.corridor(),
    "controlled": problems.returns(8, controlled=True, horizon=None),
    "controlled-horizon": problems.returns(9, controlled=True, horizon=5),
}


def step_by_step(problem, x, policy, steps):
    """f as the definition says it: carry the law of s_t along, and add up."""
    objective, weights = problem.objective, problem.world.context_weights
    world = objective.world or problem.world
    seen = x if weights is None else x[None]
    cost = objective.cost(seen) if callable(objective.cost) else objective.cost
    transition = world.transition_at(seen)
    discount = world.discount if objective.discount is None else objective.discount
    entropy = 0.0 if objective.regularizer is None else objective.regularizer.temperature * (policy * policy.log()).sum(-1)
    law, total = world.start, 0.0
    for t in range(steps):
        each = (law * ((policy * cost).sum(-1) + entropy)).sum(-1)
        total = total + discount**t * (each if weights is None else (weights * each).sum())
        law = torch.einsum("...s,...sa,...sat->...t", law, policy, transition)
    return total


@pytest.mark.parametrize("name", RETURNS)
def test_value_and_gradients_against_the_definition(name):
    """A factor γ̄, a step too many, a weight of a context or a missing dependence on x breaks this."""
    problem = RETURNS[name]
    x = problems.point(problem, 1)
    policy = SoftPolicyIteration().solve(problem, x).policy
    steps = problem.objective.horizon or 600
    torch.testing.assert_close(problem.objective.value(problem, x, policy), step_by_step(problem, x, policy, steps), rtol=1e-11, atol=1e-12)
    expected = gradients(lambda x, policy: step_by_step(problem, x, policy, steps), x, policy)
    for found, right in zip(problem.objective.gradient(problem, x, policy), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", RETURNS)
def test_hypergradient(name):
    """The whole chain, from x through π*(x) to f, against central differences."""
    problem = RETURNS[name]
    check_hypergradient(problem, problems.point(problem, 2), Exact())


@pytest.mark.parametrize("name", RETURNS)
def test_a_batch_equals_single_problems(name):
    """[B, D] and [B, S, A] give [B], [B, D] and [B, S, A], the same numbers as one at a time."""
    problem = RETURNS[name]
    x = torch.stack([problems.point(problem, seed) for seed in range(3)])
    policy = SoftPolicyIteration().solve(problem, x).policy
    value = problem.objective.value(problem, x, policy)
    by_x, by_policy = problem.objective.gradient(problem, x, policy)
    for i in range(3):
        torch.testing.assert_close(value[i], problem.objective.value(problem, x[i], policy[i]), rtol=0, atol=1e-12)
        alone = problem.objective.gradient(problem, x[i], policy[i])
        torch.testing.assert_close(by_x[i], alone[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(by_policy[i], alone[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["contexts", "contexts-horizon", "elsewhere-horizon"])
def test_advantage_is_q_minus_v(name):
    """Under the visits, A_upper has mean zero in each state, and with π it is what moves f: the performance-difference lemma."""
    problem = RETURNS[name]
    x = problems.point(problem, 3)
    policy = 0.5 * SoftPolicyIteration().solve(problem, x).policy + 0.5 / problem.world.actions
    advantage, visits = problem.objective.advantage(problem, x, policy)
    assert float((policy * advantage).sum(-1).abs().max()) < 1e-12
    direction = torch.as_tensor(np.random.default_rng(0).standard_normal(tuple(policy.shape)))
    direction = direction - direction.mean(-1, keepdim=True)
    slope = (visits[..., None] * advantage * direction).sum()
    step = 1e-5 * direction
    difference = problem.objective.value(problem, x, policy + step) - problem.objective.value(problem, x, policy - step)
    np.testing.assert_allclose(float(difference / 2e-5), float(slope), rtol=1e-6)


def test_rollouts_agree():
    """The closed form is the mean of what trajectories show, with ends and contexts: 4 standard errors."""
    problem = RETURNS["contexts-horizon"]
    x = problems.point(problem, 4)
    policy = SoftPolicyIteration().solve(problem, x).policy
    objective = problem.objective
    played = problem.world.rollout(policy, trajectories=20_000, steps=objective.horizon, generator=torch.Generator().manual_seed(0))
    cost = objective.at(problem, x).reward[played.contexts[:, None], played.states, played.actions] * played.alive
    returns = cost @ objective.at(problem, x).discount ** torch.arange(objective.horizon, dtype=torch.float64)
    error = float(returns.std() / len(returns) ** 0.5)
    assert abs(float(returns.mean() - objective.value(problem, x, policy))) < 4 * error


def test_minus_the_soft_return_of_the_same_mdp_is_minimal_at_the_truth():
    """With M̄ = M, r̄ = −r and the follower's own entropy, f(x, π*(x)) = −V*(ρ): nothing is left for π to gain, a sign error shows."""
    problem = problems.linear(0)
    x = problems.point(problem, 0)
    mdp = problem.at(x)
    same = BilevelProblem(problem.world, problem.reward, problem.regularizer, ReturnObjective(-mdp.reward, regularizer=problem.regularizer))
    response = SoftPolicyIteration().solve(same, x)
    torch.testing.assert_close(same.objective.value(same, x, response.policy), -(mdp.start * response.value).sum(), rtol=1e-11, atol=0)
    assert float(same.objective.advantage(same, x, response.policy)[0].abs().max()) < 1e-8


@pytest.mark.parametrize("kind", problems.UNDER)
def test_actions_of_probability_zero(kind):
    """At a nearly greedy follower, or at actions that μ forbids, an entropy's slope is infinite; what reaches x must stay finite."""
    problem = problems.UNDER[kind](problems.linear(1))
    objective = ReturnObjective(-problem.at(problems.point(problem, 0)).reward, regularizer=problem.regularizer.at(0.1))
    sharp = BilevelProblem(problem.world, problem.reward, problem.regularizer.at(1e-3), objective)
    x = problems.point(problem, 1)
    response = SoftPolicyIteration().solve(sharp, x)
    assert bool((response.policy == 0).any())
    slope = objective.gradient(sharp, x, response.policy)[1]
    assert bool(sharp.regularizer.hessian_product(response.policy, slope).isfinite().all())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ReturnObjective([[1.0]], horizon=0), "horizon is 0"),
        (lambda: ReturnObjective([[1.0]], discount=1.0), "discount is 1.0"),
        (lambda: ReturnObjective([[1.0]], discount=-0.1, horizon=3), "discount is -0.1"),
        (lambda: ReturnObjective([1.0]), "table"),
        (lambda: ReturnObjective([[np.nan]]), "finite"),
    ],
)
def test_bad_arguments_are_named(make, words):
    """A horizon of no step, a return that diverges or a broken table is refused where it is given."""
    with pytest.raises(InvalidProblem, match=words):
        make()


def test_contexts_of_another_world_must_be_the_followers():
    """M̄ with three followers cannot judge one."""
    rng = np.random.default_rng(0)
    several = TabularWorld(problems.rows(rng, 3, 7, 3, 7), problems.rows(rng, 7), 0.9, context_weights=[0.2, 0.3, 0.5])
    one = problems.linear(0)
    problem = BilevelProblem(one.world, LinearReward(np.zeros((7, 3, 2))), Shannon(1.0), ReturnObjective(np.ones((7, 3)), world=several))
    with pytest.raises(UnsupportedProblem, match=r"M̄ has \[C, S, A\] = \[3, 7, 3\]"):
        problem.objective.value(problem, torch.zeros(2, dtype=torch.float64), torch.full((7, 3), 1 / 3, dtype=torch.float64))
