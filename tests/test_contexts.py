"""One leader and several followers: contexts are one more axis, and φ is their weighted mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bilevel_gym import BilevelEnv, BilevelProblem
from bilevel_gym.envs import ProblemOracle
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.hypergradients import Exact, Implicit, ScoreFunction
from bilevel_gym.objectives import PreferenceObjective, QuadraticObjective
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import LinearReward
from bilevel_gym.solvers import SoftPolicyIteration, SoftValueIteration
from bilevel_gym.testing import check_bilevel_env
from bilevel_gym.worlds import TabularWorld
from tests import problems

SOLVER = SoftPolicyIteration(tolerance=1e-13)


@pytest.mark.parametrize("shared", [False, True], ids=["own-P", "shared-P"])
@pytest.mark.parametrize("estimator", [Exact(), Implicit()], ids=["exact", "implicit"])
def test_contexts_equal_single_followers(estimator, shared):
    """φ and ∇φ are the weighted means of those of each follower alone; a context that leaks into another one breaks this."""
    problem = problems.contexts(3, shared=shared, objective=QuadraticObjective())
    world, x = problem.world, problems.point(problem, 0)
    response = SOLVER.solve(problem, x)
    oracle = ProblemOracle(problem, SOLVER, torch.Generator())
    evaluation = oracle.evaluate(x, response)
    found, _ = estimator(oracle, x, response, evaluation, estimator.init(oracle))
    values, gradients, gaps = [], [], []
    for c in range(3):
        alone = TabularWorld(world.transition[0 if shared else c], world.start[c], world.discount)
        single = BilevelProblem(alone, LinearReward(problem.reward.features[c]), problem.regularizer, QuadraticObjective())
        answer = SOLVER.solve(single, x)
        torch.testing.assert_close(response.policy[c], answer.policy, rtol=0, atol=1e-12)
        own = ProblemOracle(single, SOLVER, torch.Generator())
        seen = own.evaluate(x, answer)
        values.append(seen.value)
        gradients.append(estimator(own, x, answer, seen, estimator.init(own))[0].value)
        gaps.append(SoftValueIteration(sweeps=3).solve(single, x).gap)
    weights = world.context_weights
    torch.testing.assert_close(evaluation.value, weights @ torch.stack(values), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.value, weights @ torch.stack(gradients), rtol=0, atol=1e-11)
    torch.testing.assert_close(SoftValueIteration(sweeps=3).solve(problem, x).gap, torch.stack(gaps).max(), rtol=0, atol=1e-14)


def test_a_batch_of_x_over_contexts():
    """[B, C, S, A]: five x's over three followers equal five separate solves and gradients."""
    problem = problems.contexts(4, objective=QuadraticObjective())
    x = torch.as_tensor(np.random.default_rng(0).standard_normal((5, problem.dimension)))
    oracle = ProblemOracle(problem, SOLVER, torch.Generator())
    response = SOLVER.solve(problem, x)
    evaluation = oracle.evaluate(x, response)
    found, _ = Exact()(oracle, x, response, evaluation, None)
    assert response.policy.shape == (5, 3, 5, 3)
    assert response.gap.shape == evaluation.value.shape == (5,)
    for i in range(5):
        alone = SOLVER.solve(problem, x[i])
        seen = oracle.evaluate(x[i], alone)
        torch.testing.assert_close(evaluation.value[i], seen.value, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.value[i], Exact()(oracle, x[i], alone, seen, None)[0].value, rtol=0, atol=1e-11)


def test_rollouts_draw_followers_by_their_weights():
    """Each trajectory is one follower's, with its own start, dynamics and policy; a mixed-up table shows in the frequencies."""
    rng = np.random.default_rng(0)
    transition, start = problems.rows(rng, 2, 3, 2, 3), problems.rows(rng, 2, 3)
    world = TabularWorld(transition, start, 0.9, context_weights=[0.3, 0.7], true_reward=rng.standard_normal((1, 3, 2)))
    policy = torch.as_tensor(problems.rows(rng, 2, 3, 2))
    played = world.rollout(policy, trajectories=40_000, steps=2, generator=torch.Generator().manual_seed(0))
    assert abs(float((played.contexts == 1).double().mean()) - 0.7) < 0.01
    for c in range(2):
        mine = played.contexts == c
        first, action, second = played.states[mine, 0], played.actions[mine, 0], played.states[mine, 1]
        joint = torch.zeros(3, 2, 3, dtype=torch.float64).index_put_(
            (first, action, second), torch.ones(len(first), dtype=torch.float64), accumulate=True
        )
        expected = torch.as_tensor(start[c])[:, None, None] * policy[c][..., None] * torch.as_tensor(transition[c])
        assert float((joint / len(first) - expected).abs().max()) < 0.02
    torch.testing.assert_close(played.rewards, world.true_reward[0][played.states, played.actions])


def test_environment_over_contexts():
    """The outer environment keeps its contract with several followers, the picture included."""
    env = BilevelEnv(problems.contexts(0), SoftPolicyIteration(), render_mode="rgb_array")
    check_bilevel_env(env)
    assert env.reset(seed=0)[0]["policy"].shape == (3 * 5 * 3,)
    assert env.render().shape[0] == 3 * 240


def test_inconsistent_contexts_are_refused():
    """Tables for different numbers of followers are named, instead of broadcast into nonsense."""
    rng = np.random.default_rng(0)
    transition, start = problems.rows(rng, 3, 4, 2, 4), problems.rows(rng, 3, 4)
    with pytest.raises(InvalidProblem, match="2 context weights, and transition has the leading axes"):
        TabularWorld(transition, start, 0.9, context_weights=[0.5, 0.5])
    with pytest.raises(InvalidProblem, match="and start has the leading axes"):
        TabularWorld(transition[:1], start, 0.9, context_weights=[0.5, 0.5])
    with pytest.raises(InvalidProblem, match="sum one"):
        TabularWorld(transition, start, 0.9, context_weights=[0.5, 0.5, 0.5])
    world = TabularWorld(transition, start, 0.9, context_weights=[0.2, 0.3, 0.5])
    with pytest.raises(InvalidProblem, match="2 contexts, the world has 3"):
        BilevelProblem(world, LinearReward(rng.standard_normal((2, 4, 2, 3))), Shannon(1.0), QuadraticObjective())
    shared = BilevelProblem(world, LinearReward(rng.standard_normal((4, 2, 3))), Shannon(1.0), PreferenceObjective(length=2, pairs=2))
    assert "several followers" in ScoreFunction("exact").supports(shared)
    with pytest.raises(UnsupportedProblem, match="several followers"):
        shared.objective.value(shared, torch.zeros(3, dtype=torch.float64), torch.full((3, 4, 2), 0.5, dtype=torch.float64))
