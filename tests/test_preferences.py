"""Fragments, teachers, the queue, and the preference objective against its enumeration."""

from __future__ import annotations

from dataclasses import replace
from math import inf, log
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bilevel_gym.envs import ProblemOracle
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.objectives import PreferenceObjective, enumerate_fragments
from bilevel_gym.objectives.playing import steps_with_tail
from bilevel_gym.preferences import (
    BradleyTerry,
    PreferenceBuffer,
    Teacher,
    compare,
    cross_entropy,
    draw_places,
    gather,
    pair_loss,
    window_sum,
)
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.types import Fragments, Trajectory
from bilevel_gym.worlds import TabularWorld
from tests import problems

SOLVER = SoftPolicyIteration(tolerance=1e-13)


def generator(seed=0):
    """A fresh one."""
    return torch.Generator().manual_seed(seed)


@given(st.floats(-30, 30), st.sampled_from([0.0, 0.5, 1.0]))
def test_cross_entropy_is_the_textbook_formula(logit, outcome):
    """−y log σ(z) − (1−y) log σ(−z), which the softplus form must equal where the textbook form is finite."""
    z, y = torch.tensor(logit, dtype=torch.float64), torch.tensor(outcome, dtype=torch.float64)
    expected = -outcome * np.log(1 / (1 + np.exp(-logit))) - (1 - outcome) * np.log(1 / (1 + np.exp(logit)))
    np.testing.assert_allclose(cross_entropy(z, y), expected, rtol=1e-9, atol=1e-12)


def test_cross_entropy_of_huge_logits_and_skips():
    """No overflow at a logit of 1e5, and a skipped query costs nothing and pulls nowhere."""
    logit = torch.tensor([1e5, -1e5, 3.0], requires_grad=True)
    loss = cross_entropy(logit, torch.tensor([0.0, 1.0, torch.nan]))
    np.testing.assert_allclose(loss.detach(), [1e5, 1e5, 0.0])
    loss.sum().backward()
    np.testing.assert_allclose(logit.grad, [1.0, -1.0, 0.0])


@given(st.integers(1, 5), st.integers(1, 3), st.integers(3, 7), st.integers(0, 10_000))
def test_window_sum_is_the_double_loop(tuples, per_tuple, steps, seed):
    """The running sum of differences must equal adding each window step by step."""
    rng = np.random.default_rng(seed)
    origin, first = rng.integers(0, 4, (tuples, per_tuple)), rng.integers(0, steps, (tuples, per_tuple))
    last = first + rng.integers(0, steps - first + 1)
    weight = rng.standard_normal((tuples, per_tuple))
    expected = np.zeros((4, steps))
    for index in np.ndindex(tuples, per_tuple):
        expected[origin[index], first[index] : last[index]] += weight[index]
    found = window_sum(*(torch.as_tensor(a) for a in (weight, origin, first, last)), (4, steps))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def trajectories(count, steps):
    """States that say who and when they are."""
    states = 100 * torch.arange(count)[:, None] + torch.arange(steps)
    return Trajectory(states, states, torch.ones(count, steps, dtype=torch.bool), states.double())


@pytest.mark.parametrize(("count", "cut"), [(40, "start"), (40, "anywhere"), (5, "anywhere")])
def test_fragments_are_independent_within_a_tuple(count, cut):
    """Two pieces of one trajectory are dependent, and would bias E[l]; offsets must stay inside and cover the range."""
    played = trajectories(count, 12)
    origin, offset = draw_places(played, 20, 2, 4, cut, generator())
    assert bool((origin[:, 0] != origin[:, 1]).all())
    assert set(offset.flatten().tolist()) <= set(range(9))
    if cut == "anywhere":
        assert {0, 8} <= set(draw_places(played, 200, 2, 4, cut, generator())[1].flatten().tolist())
    assert (int(offset.max()) == 0) == (cut == "start")
    pieces = gather(played.states, origin, offset, 4)
    expected = [[[int(100 * n + t + h) for h in range(4)] for n, t in zip(*row, strict=True)] for row in zip(origin, offset, strict=True)]
    assert pieces.tolist() == expected
    if count == 40:
        assert len(origin.unique()) == 40
        assert not torch.equal(origin.flatten(), torch.arange(40))


def test_pairs_are_drawn_and_not_taken_in_turn():
    """A dataset's trajectories lie in some order: in turn, the first ones alone would be shown, each beside its neighbour."""
    source, counts = generator(), torch.zeros(10, 10)
    for _ in range(600):
        origin, _ = draw_places(trajectories(10, 4), 2, 2, 4, "start", source)
        counts[origin[:, 0], origin[:, 1]] += 1
    assert not bool(counts.diagonal().any())
    shares, p = counts[~torch.eye(10, dtype=torch.bool)] / 1200, 1 / 90
    assert float((shares - p).abs().max()) < 4.5 * (p * (1 - p) / 1200) ** 0.5
    shown = compare(trajectories(10, 4), Teacher(), pairs=2, length=4, generator=source).states[:, :, 0] // 100
    assert shown.flatten().tolist() != [0, 1, 2, 3]
    with pytest.raises(InvalidProblem, match="carry no true rewards"):
        compare(replace(trajectories(10, 4), rewards=None), Teacher(), pairs=2, length=4, generator=source)


def test_too_few_or_too_short_trajectories_are_refused():
    """A pair out of one trajectory, or a fragment longer than it, says what to do."""
    for options in ((0, 2, 4), (2, 2, 0)):
        with pytest.raises(InvalidProblem, match="1 or more"):
            draw_places(trajectories(4, 10), *options, "start", generator())
    for played, length in ((trajectories(1, 10), 4), (trajectories(4, 3), 4)):
        with pytest.raises(InvalidProblem, match="more or longer"):
            draw_places(played, 2, 2, length, "start", generator())


@pytest.mark.parametrize("members", [1, 3])
def test_the_one_node_of_the_loss_is_the_textbook(members):
    """Its own derivative, first and second, must be that of the softplus form: ties, skipped queries and dead steps among the pairs."""
    source = generator(3)
    rewards = (3.0 * torch.randn(members, 8, 2, 5, generator=source, dtype=torch.float64)).requires_grad_()
    alive = torch.rand(8, 2, 5, generator=source) > 0.3
    outcome = torch.tensor([0.0, 1.0, 0.5, torch.nan, 1.0, 0.0, 0.3, torch.nan], dtype=torch.float64)
    weight = torch.randn(8, generator=source, dtype=torch.float64)

    def plain(rewards, alive, outcome):
        returns = (rewards * alive).sum(-1)
        return cross_entropy(returns[..., 0] - returns[..., 1], outcome).mean(0)

    found = []
    for loss in (pair_loss, plain):
        values = loss(rewards, alive, outcome)
        first = torch.autograd.grad((weight * values).sum(), rewards, retain_graph=True)[0]
        again = torch.autograd.grad((values**2).sum(), rewards, create_graph=True)[0]
        found.append([values.detach(), first, torch.autograd.grad((again**2).sum(), rewards)[0]])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert not bool(found[0][1][:, outcome.isnan()].any())


@pytest.mark.parametrize(
    ("discount", "steps", "horizon", "expected"),
    [
        (0.9, None, None, 3 + 44),
        (0.99, None, None, 3 + 459),
        (0.0, None, None, 3),
        (0.9, None, 20, 20),
        (0.9, 7, None, 7),
        (0.9, 70, 20, 20),
    ],
)
def test_what_is_played_is_the_fragment_and_its_tail(discount, steps, horizon, expected):
    """γ^t must have fallen to .01 past the fragment, where "critic" stops to look; an episode has no more steps than it has."""
    assert steps_with_tail(SimpleNamespace(discount=discount, horizon=horizon), 3, steps) == expected
    if steps is None and horizon is None and discount:
        assert discount ** (expected - 3) <= 0.01 < discount ** (expected - 4)


def numbered(first, count):
    """Tuples with their number as outcome."""
    number = torch.arange(first, first + count, dtype=torch.float64)
    return Fragments(number[:, None, None], number[:, None, None], torch.ones(count, 1, 1, dtype=torch.bool), number)


def test_queue_is_first_in_first_out_and_never_changed():
    """The memory given to evaluate must stay as it was: append returns another queue, the oldest tuples drop out."""
    empty = PreferenceBuffer(5)
    first = empty.append(numbered(0, 3))
    second = first.append(numbered(3, 4))
    assert (len(empty), len(first), len(second)) == (0, 3, 5)
    assert second.content.outcome.tolist() == [2, 3, 4, 5, 6]
    drawn = second.sample(500, generator())
    assert set(drawn.outcome.tolist()) == {2, 3, 4, 5, 6}
    assert torch.equal(drawn.states[:, 0, 0], drawn.outcome)
    assert len(PreferenceBuffer(0).append(numbered(0, 3))) == 0
    for bare in (empty, empty.append(numbered(0, 0))):
        with pytest.raises(IndexError):
            bare.sample(1, generator())
    with pytest.raises(InvalidProblem, match="capacity is -1"):
        PreferenceBuffer(-1)


@pytest.mark.parametrize("ends", [False, True])
def test_enumeration_is_the_law_of_rollouts(ends):
    """Probabilities sum to one, and 40,000 rollouts visit each fragment as often as it says."""
    problem = problems.preference(5, ends=ends, length=2)
    world, policy = problem.world, SOLVER.solve(problem, problems.point(problem, 0)).policy
    every = enumerate_fragments(world.transition, world.start, 2)
    chances = every.probability(policy)
    np.testing.assert_allclose(chances.sum(), 1.0, rtol=1e-12)
    played = world.rollout(policy, trajectories=40_000, steps=2, generator=generator())
    code = lambda s, a, alive: ((s * 2 + a) * alive + 7 * ~alive) @ torch.tensor([1, 10])  # noqa: E731
    names, found = code(played.states, played.actions, played.alive), code(every.states, every.actions, every.alive)
    for name in found.unique():
        p = float(chances[found == name].sum())
        assert abs(float((names == name).double().mean()) - p) < 5 * np.sqrt(p * (1 - p) / 40_000) + 1e-9


def test_enumeration_refuses_what_is_too_large():
    """Beyond 4096 fragments the square of pairs would not fit: say so instead of swapping."""
    problem = problems.preference(0, length=9)
    with pytest.raises(UnsupportedProblem, match="4096"):
        problem.objective.value(problem, problems.point(problem, 0), torch.full((3, 2), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("ends", [False, True])
def test_sampled_objective_is_the_enumerated_one(ends):
    """The mean loss of fresh pairs estimates f: within four standard errors over 200 evaluations."""
    problem = problems.preference(6, ends=ends)
    x = problems.point(problem, 1)
    response = SOLVER.solve(problem, x)
    oracle = ProblemOracle(problem, SOLVER, generator())
    values = np.array([float(oracle.evaluate(x, response).value) for _ in range(200)])
    exact = float(problem.objective.value(problem, x, response.policy))
    assert abs(values.mean() - exact) < 4 * values.std(ddof=1) / np.sqrt(200)


def test_loss_is_the_per_pair_loop():
    """The batched forward pass over all pairs equals one pair, one step at a time."""
    problem = problems.preference(2, ends=True, pairs=30)
    x = problems.point(problem, 2)
    fragments = ProblemOracle(problem, SOLVER, generator()).evaluate(x, SOLVER.solve(problem, x)).fresh.fragments
    table = problem.reward.at(x)
    expected = []
    for m in range(30):
        returns = [
            sum(
                float(table[s, a])
                for s, a, alive in zip(*(t[m, i] for t in (fragments.states, fragments.actions, fragments.alive)), strict=True)
                if alive
            )
            for i in (0, 1)
        ]
        z, y = returns[0] - returns[1], float(fragments.outcome[m])
        expected.append(-y * np.log(1 / (1 + np.exp(-z))) - (1 - y) * np.log(1 / (1 + np.exp(z))))
    np.testing.assert_allclose(problem.objective.loss(problem, x, fragments), expected, rtol=1e-10)


def test_the_memory_is_the_environments():
    """Evaluating twice from one memory gives the same queue length: nothing is kept inside the objective."""
    problem = problems.preference(0)
    problem = replace(problem, objective=replace(problem.objective, capacity=500, initial_pairs=100, held_out_pairs=40))
    x = problems.point(problem, 0)
    response = SOLVER.solve(problem, x)
    start = problem.objective.start()
    first, memory = problem.objective.evaluate(problem, x, response, start, generator())
    again, _ = problem.objective.evaluate(problem, x, response, start, generator())
    assert len(start.queue) == 0
    assert len(memory.queue) == 100
    assert torch.equal(first.value, again.value)
    second, later = problem.objective.evaluate(problem, x, response, memory, generator(1))
    assert len(later.queue) == 164
    assert later.held_out is memory.held_out
    assert (first.comparisons, second.comparisons) == (140, 64)
    assert (first.env_steps, second.env_steps) == (200 * 20 + 16 * 4 * 2, 128 * 20)  # held-out fragments begin at the reset: two steps


def test_initial_pairs_are_for_the_first_evaluation_only():
    """Without a queue, too: the label budget must not be spent anew at every step."""
    problem = problems.preference(0)
    problem = replace(problem, objective=replace(problem.objective, initial_pairs=100, capacity=0))
    x = problems.point(problem, 0)
    response, memory, asked = SOLVER.solve(problem, x), problem.objective.start(), []
    for _ in range(3):
        evaluation, memory = problem.objective.evaluate(problem, x, response, memory, generator())
        asked.append(evaluation.comparisons)
    assert asked == [100, 64, 64]


def test_a_reward_that_knows_nothing_is_right_half_of_the_time():
    """x = 0 ranks no pair: an accuracy that counts a tie as an answer would be the share of one label."""
    problem = problems.preference(0)
    x = torch.zeros(problem.dimension, dtype=torch.float64)
    assert ProblemOracle(problem, SOLVER, generator()).evaluate(x, SOLVER.solve(problem, x)).metrics["accuracy_fresh"] == 0.5


def test_metrics_mean_what_they_say():
    """At the true reward and with a rational teacher every pair is ranked right, both returns agree, and the loss is below log 2."""
    problem = problems.preference(0)
    objective = replace(problem.objective, teacher=BradleyTerry(inf), held_out_pairs=64)
    problem = replace(problem, objective=objective)
    x = 3.0 * problem.world.true_reward.flatten()
    evaluation, _ = objective.evaluate(problem, x, SOLVER.solve(problem, x), objective.start(), generator())
    assert evaluation.metrics["accuracy_fresh"] == 1.0
    assert evaluation.metrics["accuracy_held_out"] == 1.0
    np.testing.assert_allclose(evaluation.metrics["learned_return"], 3.0 * evaluation.metrics["true_return"])
    assert float(evaluation.value) < log(2)
    wrong = ProblemOracle(problem, SOLVER, generator()).evaluate(-x, SOLVER.solve(problem, x))
    assert wrong.metrics["accuracy_fresh"] == 0.0


def test_the_true_reward_is_no_minimum_on_policy():
    """x also chooses what is compared: at the true reward the gradient is not zero, which a direct-only method cannot see."""
    from bilevel_gym.testing import central_differences

    problem = problems.preference(0)
    assert np.linalg.norm(central_differences(problem, problem.world.true_reward.flatten())) > 1e-3


def test_a_world_without_a_reward_is_refused():
    """Nothing to compare: the message says where the true reward goes."""
    problem = problems.preference(0)
    bare = replace(problem, world=TabularWorld(problem.world.transition, problem.world.start, 0.6))
    x = problems.point(problem, 0)
    with pytest.raises(UnsupportedProblem, match="true_reward"):
        ProblemOracle(bare, SOLVER, generator()).evaluate(x, SOLVER.solve(bare, x))


@pytest.mark.parametrize("options", [{"length": 0}, {"pairs": 0}, {"steps": 1}, {"cut": "end"}, {"capacity": -1}, {"trajectories": 1}])
def test_bad_sizes_are_refused(options):
    """Sizes that make no fragments are refused when the objective is built."""
    with pytest.raises(InvalidProblem):
        PreferenceObjective(**{"length": 2, "pairs": 4, **options})


def test_rollouts_follow_the_policy_and_the_generator():
    """Equal generators give equal trajectories, and the state law after one step is ρP_π within five standard errors."""
    problem = problems.quadratic(3)
    world = problem.world
    policy = SOLVER.solve(problem, problems.point(problem, 3)).policy
    first, second = (world.rollout(policy, trajectories=20_000, steps=2, generator=generator(4)) for _ in range(2))
    assert torch.equal(first.states, second.states)
    law = torch.einsum("s,sa,sat->t", world.start, policy, world.transition)
    found = torch.bincount(first.states[:, 1], minlength=world.states) / 20_000
    assert bool(((found - law).abs() < 5 * (law * (1 - law) / 20_000).sqrt() + 1e-9).all())
