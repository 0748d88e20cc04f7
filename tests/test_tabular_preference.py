"""TabularPreference: enumeration for a whole batch, its certificates, and all sampled agents on it."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from bilevel_gym import agents
from bilevel_gym.envs import ProblemOracle, preference_null_space, tabular_preference
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.hypergradients import Exact, Momentum, ScoreFunction
from bilevel_gym.numerics import gradients
from bilevel_gym.objectives import PreferenceObjective, enumerate_fragments, fragments_of, pairs
from bilevel_gym.rewards import LinearReward
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.testing import check_hypergradient
from tests import problems

ID = "bilevel/TabularPreference-v0"
SOLVER = SoftPolicyIteration(tolerance=1e-13)


def made(**options):
    """The problem of the id."""
    return tabular_preference(**options).problem


def batch(problem, count=4):
    """Random x's, and random policies that answer none of them."""
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.standard_normal((count, problem.dimension)))
    return x, torch.as_tensor(problems.rows(rng, count, problem.world.states, problem.world.actions))


def descended(problem, start):
    """A minimum of φ in the box by L-BFGS on the exact gradient: its value and its x."""
    oracle = ProblemOracle(problem, SOLVER, torch.Generator())

    def value_and_gradient(point):
        x = torch.as_tensor(point)
        response = SOLVER.solve(problem, x)
        estimate, _ = Exact()(oracle, x, response, None, None)
        return float(problem.objective.value(problem, x, response.policy)), estimate.value.numpy()

    low, high = problem.reward.bounds
    found = minimize(
        value_and_gradient,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(low, high, strict=True)),
        options={"ftol": 1e-16, "gtol": 1e-10},
    )
    return found.fun, found.x


# ---------------------------------------------------------------------------------------------- enumeration


@pytest.mark.parametrize("ends", [False, True])
def test_kinds_of_fragments_are_all_that_matters(ends):
    """Fragments that visit the same pairs are merged: f must be the double sum over all fragments, one by one, term by term."""
    problem = problems.preference(2, ends=ends, length=3)
    (x, *_), (policy, *_) = batch(problem)
    world, every = problem.world, enumerate_fragments(problem.world.transition, problem.world.start, 3)
    chance, learned, truth = [], [], []
    for states, actions, alive in zip(every.states.tolist(), every.actions.tolist(), every.alive.tolist(), strict=True):
        p = float(world.start[states[0]])
        for h in range(3):
            if alive[h]:
                p *= float(policy[states[h], actions[h]])
                if h < 2:
                    p *= float(
                        world.transition[states[h], actions[h], states[h + 1]] if alive[h + 1] else world.termination[states[h], actions[h]]
                    )
        lived = [(s, a) for s, a, living in zip(states, actions, alive, strict=True) if living]
        chance.append(p)
        learned.append(sum(float(problem.reward.at(x)[s, a]) for s, a in lived))
        truth.append(sum(float(world.true_reward[s, a]) for s, a in lived))
    chance, learned, truth = (np.array(values) for values in (chance, learned, truth))
    z, y = learned[:, None] - learned, 1 / (1 + np.exp(truth - truth[:, None]))
    losses = y * np.log1p(np.exp(-z)) + (1 - y) * np.log1p(np.exp(z))
    np.testing.assert_allclose(chance.sum(), 1.0)
    assert len(every.counts) < len(every.states)
    np.testing.assert_allclose(problem.objective.value(problem, x, policy), chance @ losses @ chance, rtol=1e-12)


@pytest.mark.parametrize("source", ["on_policy", "reference"])
def test_a_batch_is_its_members_and_parts_are_the_whole(source, monkeypatch):
    """Value and both gradients of four problems at once, and of pairs taken in many parts, equal those of each problem alone."""
    problem = made(fragments=source)
    x, policy = batch(problem)
    whole = (problem.objective.value(problem, x, policy), *problem.objective.gradient(problem, x, policy))
    for i in range(4):
        alone = (problem.objective.value(problem, x[i], policy[i]), *problem.objective.gradient(problem, x[i], policy[i]))
        for one, member in zip(alone, whole, strict=True):
            torch.testing.assert_close(member[i], one, rtol=1e-12, atol=1e-15)
    monkeypatch.setattr(pairs, "LARGEST_PART", 5000)
    parted = (problem.objective.value(problem, x, policy), *problem.objective.gradient(problem, x, policy))
    for one, other in zip(parted, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def test_gradients_are_the_differences():
    """∂f/∂x and ∂f/∂π of the enumeration along random directions, against central differences."""
    problem = made()
    x, policy = batch(problem)
    by_x, by_policy = problem.objective.gradient(problem, x, policy)
    rng = np.random.default_rng(1)
    for direction in (torch.as_tensor(rng.standard_normal(x.shape)), torch.as_tensor(rng.standard_normal(policy.shape))):
        moves_x = direction.ndim == 2
        sides = [
            problem.objective.value(problem, x + h * direction if moves_x else x, policy if moves_x else policy + h * direction)
            for h in (1e-5, -1e-5)
        ]
        slope = (by_x * direction).sum(-1) if moves_x else (by_policy * direction).sum((-2, -1))
        torch.testing.assert_close((sides[0] - sides[1]) / 2e-5, slope, rtol=1e-6, atol=1e-9)


def test_enumerations_are_remembered_where_they_do_not_change():
    """A thousand steps on one world must not enumerate it a thousand times; where x moves P, they must."""
    world = made().world
    x = torch.zeros(8, dtype=torch.float64)
    assert fragments_of(world, x, 3) is fragments_of(world, x + 1, 3)
    assert fragments_of(world, x, 2) is not fragments_of(world, x, 3)
    moved = problems.controlled(0).world
    first, second = (fragments_of(moved, torch.full((4,), value, dtype=torch.float64), 2) for value in (0.1, 0.7))
    assert not torch.equal(first.dynamics, second.dynamics)


def test_what_cannot_be_enumerated_is_refused():
    """Too many fragments, or a batch with more than one P: the message says so, at the id before anything is built."""
    with pytest.raises(InvalidProblem, match="4096"):
        tabular_preference(states=5, actions=2, length=4)
    with pytest.raises(InvalidProblem, match="on_policy"):
        tabular_preference(fragments="offline")
    assert len(fragments_of(made(length=4).world, torch.zeros(8), 4).states) == 4096
    rng = np.random.default_rng(0)
    with pytest.raises(UnsupportedProblem, match="one P"):
        enumerate_fragments(torch.as_tensor(problems.rows(rng, 2, 3, 2, 3)), torch.ones(3) / 3, 2)
    with pytest.raises(UnsupportedProblem, match="one preference objective"):
        PreferenceObjective.stack([made().objective, made(fragments="reference").objective])


# ---------------------------------------------------------------------------------------------- certificates


def test_the_true_reward_is_recovered_from_reference_fragments():
    """From two starts: φ* is the entropy of the teacher's answers, and x the true reward up to the null space, which is a constant."""
    problem = made(fragments="reference")
    truth, basis = problem.world.true_reward.flatten().numpy(), preference_null_space(problem).numpy()
    np.testing.assert_allclose(np.abs(basis), np.full((8, 1), 8**-0.5))
    entropy = float(problem.objective.entropy(problem, problem.objective.reference))
    for seed in (1, 2):
        value, x = descended(problem, np.random.default_rng(seed).standard_normal(8))
        assert value == pytest.approx(entropy, abs=1e-12)
        error = x - truth
        assert np.linalg.norm(error - basis @ (basis.T @ error)) < 1e-6
    assert entropy == pytest.approx(0.438084, abs=1e-6)


def test_rationality_scales_what_is_recovered():
    """A teacher with β = 2 is recovered as twice the true reward; in the box, so that the certificate is attained."""
    problem = made(fragments="reference", rationality=2.0)
    truth = 2 * problem.world.true_reward.flatten().numpy()
    value, x = descended(problem, np.zeros(8))
    assert value == pytest.approx(float(problem.objective.entropy(problem, problem.objective.reference)), abs=1e-12)
    np.testing.assert_allclose(x - x.mean(), truth - truth.mean(), atol=1e-6)


def test_the_null_space_is_what_comparisons_cannot_tell():
    """Features that repeat each other, and worlds that end: f is flat along the null space at every policy, and along nothing else."""
    problem = problems.preference(2, ends=True)  # episodes of different lengths tell a constant, too
    assert preference_null_space(problem).shape == (6, 0)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((3, 2, 4)) @ rng.standard_normal((4, 6))
    repeated = replace(problems.preference(2), reward=LinearReward(features))
    basis = preference_null_space(repeated)
    assert basis.shape == (6, 2)
    (x, *_), (policy, *_) = batch(repeated)
    value = repeated.objective.value(repeated, x, policy)
    for column in basis.mT:
        torch.testing.assert_close(repeated.objective.value(repeated, x + 3 * column, policy), value, rtol=1e-12, atol=1e-14)
    other = torch.as_tensor(rng.standard_normal(6))
    other = other - basis @ (basis.mT @ other)
    assert abs(float(repeated.objective.value(repeated, x + other, policy) - value)) > 1e-3


def test_on_policy_the_true_reward_is_no_optimum():
    """x also chooses what is compared: at the truth f attains the teacher's entropy and φ still falls, to the value in the docstring."""
    problem = made()
    truth = problem.world.true_reward.flatten()
    response = SOLVER.solve(problem, truth)
    value = float(problem.objective.value(problem, truth, response.policy))
    assert value == pytest.approx(float(problem.objective.entropy(problem, response.policy)), abs=1e-12)
    assert value == pytest.approx(0.425044, abs=1e-6)
    estimate, _ = Exact()(ProblemOracle(problem, SOLVER, torch.Generator()), truth, response, None, None)
    assert float(estimate.direct.norm()) < 1e-12
    assert float(estimate.value.norm()) == pytest.approx(0.0329, abs=1e-4)
    for start in (truth.numpy(), np.zeros(8)):
        found, x = descended(problem, start)
        assert found == pytest.approx(0.418410, abs=1e-6)
        assert np.abs(x).max() < 2.0


# ---------------------------------------------------------------------------------------------- sampled


def test_reference_fragments_are_the_reference_policys():
    """Whatever the follower plays, pairs come from the reference; the returns in the metrics stay those of the follower."""
    problem = made(fragments="reference", pairs=2000)
    x = 5 * torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)  # a follower that takes the first action nearly always
    response, oracle = SOLVER.solve(problem, x), ProblemOracle(problem, SOLVER, torch.Generator().manual_seed(0))
    evaluation = oracle.evaluate(x, response)
    assert abs(float(evaluation.fresh.fragments.actions.double().mean()) - 0.5) < 0.02
    assert evaluation.metrics["learned_return"] > 4.0 * problem.objective._steps(problem)
    assert float(evaluation.value) == float(problem.objective.value(problem, x, response.policy))
    sampled = replace(problem, objective=replace(problem.objective, exact=False, reference=problem.objective.reference))
    mean = np.mean([float(ProblemOracle(sampled, SOLVER, oracle.generator).evaluate(x, response).value) for _ in range(5)])
    assert mean == pytest.approx(float(evaluation.value), rel=0.05)
    assert mean != float(evaluation.value)


def test_without_the_follower_drlhf_is_the_whole_gradient():
    """With reference fragments the direct term is all there is: DRLHF is unbiased there, and scores of π are refused by name."""
    problem = made(fragments="reference")
    check_hypergradient(problem, problems.point(problem, 0), ScoreFunction(None), estimates=60)
    check_hypergradient(problem, problems.point(problem, 0), Exact())
    for estimator in (ScoreFunction("rollout"), Momentum(ScoreFunction("exact"))):
        assert "sensitivity=None" in estimator.supports(problem)


AGENTS = {
    **{f"sobirl, {name}": ("sobirl", {"sensitivity": name}) for name in ("exact", "rollout", "critic", "one_step")},
    **{f"stoc_sobirl, {name}": ("stoc_sobirl", {"sensitivity": name}) for name in ("exact", "rollout", "critic", "one_step")},
    "stoc_sobirl, importance": ("stoc_sobirl", {"correction": "importance"}),
    "drlhf": ("drlhf", {}),
    "exact": ("exact", {}),
}


@pytest.mark.parametrize("row", AGENTS)
def test_every_agent_and_sensitivity_runs(row):
    """The comparison of the paper is a table of these rows: each must move x, to another place than the others do."""
    name, options = AGENTS[row]
    env = gym.make(ID)
    env.reset(seed=0)
    before = env.unwrapped.x.clone()
    shorter = {"updates_per_step": 3, "warmup_updates": 3} if name in ("sobirl", "drlhf") else {}
    agent = getattr(agents, name)(env, **options, **shorter).learn(2)
    assert float((agent.x - before).norm()) > 0.0
    assert bool(agent.x.isfinite().all())


@pytest.mark.parametrize("sensitivity", ["exact", "rollout"])
def test_stoc_sobirl_descends(sensitivity):
    """Sixty steps from one start: φ, which the environment computes exactly, falls well below where it was."""
    env = gym.make(ID, pairs=32)
    _, info = env.reset(seed=1)
    objectives = []
    agents.stoc_sobirl(env, sensitivity=sensitivity).learn(60, callback=lambda agent, metrics: objectives.append(metrics["objective"]))
    assert np.mean(objectives[-10:]) < info["objective"] - 0.05


def test_unused_inputs_have_zero_gradients():
    """f of reference fragments does not depend on π: its gradient there is zero, not missing."""
    problem = made(fragments="reference")
    x, policy = batch(problem)
    _, by_policy = gradients(lambda x, policy: problem.objective.value(problem, x, policy), x, policy)
    assert torch.equal(by_policy, torch.zeros_like(policy))
