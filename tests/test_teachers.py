"""Simulated teachers: each knob against its definition, and the exact objective against the sampled one under every knob."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bilevel_gym import BilevelProblem
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.hypergradients import Exact, GivenCritic, ScoreFunction
from bilevel_gym.preferences import BradleyTerry, Teacher, draw_fragments
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.testing import check_hypergradient, enumerated_critic
from tests import problems

SOLVER = SoftPolicyIteration(tolerance=1e-13)

TEACHERS = {
    "rational": Teacher(inf),
    "stochastic": Teacher(2.5),
    "myopic": Teacher(1.5, discount=0.5),
    "mistaken": Teacher(2.0, mistake=0.2),
    "skipping": Teacher(skip_below=-0.1),
    "equal": Teacher(equal_within=2.0),
    "all": Teacher(2.0, discount=0.7, mistake=0.1, skip_below=-0.5, equal_within=0.3),
    "rational, all": Teacher(inf, discount=0.7, mistake=0.05, skip_below=-1.0, equal_within=0.3),
}
"""One for each knob, and all of them together."""


def generator(seed=0):
    """A fresh one."""
    return torch.Generator().manual_seed(seed)


def taught(teacher, seed=1, *, ends=True, pairs=64):
    """A small problem under a teacher; episodes end, so that the fragments are of different lengths."""
    problem = problems.preference(seed, ends=ends, length=3, pairs=pairs)
    return BilevelProblem(problem.world, problem.reward, problem.regularizer, replace(problem.objective, teacher=teacher))


def one_by_one(teacher, rewards):
    """The law of the answer about one pair, in plain numbers, straight from the definition: P(y) for y in 0, ½, 1, NaN."""
    returns = [sum(r) for r in rewards]
    last = len(rewards[0]) - 1
    remembered = [sum(teacher.discount ** (last - h) * r for h, r in enumerate(rs)) for rs in rewards]
    if max(returns) < teacher.skip_below:
        return (0.0, 0.0, 0.0, 1.0)
    if abs(returns[0] - returns[1]) < teacher.equal_within:
        return (0.0, 1.0, 0.0, 0.0)
    margin = remembered[0] - remembered[1]
    if teacher.rationality == inf:
        if margin == 0:
            return (0.0, 1.0, 0.0, 0.0)
        first = float(margin > 0)
    else:
        first = 1 / (1 + np.exp(-teacher.rationality * margin))
    first = (1 - teacher.mistake) * first + teacher.mistake * (1 - first)
    return (1 - first, 0.0, first, 0.0)


def test_bradley_terry_closed_form():
    """σ(β ΔR), ½ for equal returns, certainty at β = ∞, a coin at β = 0."""
    rewards = torch.tensor([[[1.0], [0.0]], [[0.0], [2.0]], [[3.0], [3.0]]])
    seen = rewards.expand(-1, -1, 2)
    np.testing.assert_allclose(BradleyTerry(2.0).mean(*seen.unbind(1)), [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(4)), 0.5], rtol=1e-6)
    np.testing.assert_allclose(BradleyTerry(inf).label(rewards, generator()), [1.0, 0.0, 0.5])
    np.testing.assert_allclose(BradleyTerry(0.0).mean(*seen.unbind(1)), 0.5)
    assert BradleyTerry(2.0) == Teacher(2.0)


@pytest.mark.parametrize("name", TEACHERS)
def test_answers_have_the_probabilities_of_the_definition(name):
    """4,000 answers about each of 30 pairs: every share must be within five standard errors, and what cannot be is never said."""
    teacher = TEACHERS[name]
    rewards = torch.as_tensor(np.random.default_rng(3).normal(0, 0.7, (30, 2, 4)))
    rewards[0, 1] = rewards[0, 0]  # equal to the last bit
    labels = teacher.label(rewards.repeat_interleave(4000, 0), generator()).view(30, 4000)
    for pair, answers in zip(rewards.tolist(), labels, strict=True):
        shares = [float((answers == y).double().mean()) for y in (0.0, 0.5, 1.0)] + [float(answers.isnan().double().mean())]
        for share, p in zip(shares, one_by_one(teacher, pair), strict=True):
            assert abs(share - p) <= 5 * np.sqrt(p * (1 - p) / 4000)


REWARD = st.floats(-3, 3).map(lambda value: round(value, 2))


@given(
    st.lists(st.tuples(REWARD, REWARD), min_size=1, max_size=5),
    st.sampled_from([0.0, 1.0, 3.0, inf]),
    st.floats(0.1, 1.0),
    st.floats(0.0, 0.5),
    st.floats(-2.0, 2.0),
    st.floats(0.0, 2.0),
)
def test_the_mean_answer_is_that_of_the_definition(steps, rationality, discount, mistake, skip, equal):
    """Enumeration rests on E[y]: whatever the knobs are, it is the definition's P(1) + P(½)/2, and NaN where nothing is said."""
    teacher = Teacher(rationality, discount=discount, mistake=mistake, skip_below=skip, equal_within=equal)
    rewards = torch.tensor(steps, dtype=torch.float64).mT  # [2, H]
    first, second = rewards @ teacher.weights(len(steps)).mT
    _, half, one, skipped = one_by_one(teacher, rewards.tolist())
    gap = abs(float(first[0] - second[0]))
    if min(abs(gap - equal), abs(float(max(first[0], second[0])) - skip), abs(float(first[1] - second[1]))) < 1e-9:
        return  # a rounding error away from another answer
    expected = nan if skipped else one + half / 2
    np.testing.assert_allclose(teacher.mean(first, second), expected, atol=1e-9)
    mirrored = teacher.mean(second, first)
    np.testing.assert_allclose(mirrored, 1 - expected, atol=1e-9)


@pytest.mark.parametrize("name", TEACHERS)
def test_the_exact_objective_is_the_mean_of_the_sampled_one(name):
    """Enumeration knows every knob: the mean loss of 40,000 pairs is f within four standard errors, skipped ones as zeros."""
    problem = taught(TEACHERS[name])
    x = 2.0 * problem.world.true_reward.flatten() + problems.point(problem, 1, scale=0.3)
    policy, objective, source = SOLVER.solve(problem, x).policy, problem.objective, generator(5)
    played = problem.world.rollout(policy, trajectories=80_000, steps=3, generator=source)
    drawn, rewards = draw_fragments(played, 40_000, 2, 3, "start", source)
    fragments = replace(drawn.fragments, outcome=objective.teacher.label(rewards, source))
    losses = objective.loss(problem, x, fragments)
    error = float(losses.std()) / 200
    assert abs(float(losses.mean() - objective.value(problem, x, policy))) < 4 * error
    plain = taught(Teacher())  # under another teacher it must be seen to be wrong, or the pairs are too few
    assert abs(float(losses.mean() - plain.objective.value(plain, x, policy))) > 8 * error


@pytest.mark.parametrize("name", TEACHERS)
def test_exact_gradients(name):
    """∇φ by the adjoint and one backward pass is the difference quotient under every teacher: a kind merged too many would show."""
    problem = taught(TEACHERS[name])
    check_hypergradient(problem, problems.point(problem, 2), Exact())


@pytest.mark.parametrize("sensitivity", ["exact", "critic"])
def test_sampled_gradients(sensitivity):
    """SoBiRL under a teacher with all weaknesses: a skipped query counts as l = 0 in both terms, and L need not know the order of steps."""
    problem = taught(TEACHERS["all"], ends=False)
    x = problems.point(problem, 3)
    critic = GivenCritic(enumerated_critic(problem, x, SOLVER.solve(problem, x).policy))
    check_hypergradient(problem, x, ScoreFunction(sensitivity, critic=critic), estimates=300)


def test_myopia_tells_more_fragments_apart():
    """Fragments with equal counts in another order are one kind to the reward, and two to a myopic teacher."""
    plain, myopic = taught(Teacher()), taught(Teacher(discount=0.5))
    x = problems.point(plain, 0)
    few, many = (problem.objective.fragments(problem, x) for problem in (plain, myopic))
    assert len(few.counts) < len(many.counts)
    assert torch.equal(few.counts, few.remembered)
    truth = plain.world.true_reward
    rewards = truth[many.states, many.actions] * many.alive
    seen = (rewards[:, None] * Teacher(discount=0.5).weights(3)).sum(-1)
    torch.testing.assert_close(many.seen(truth)[many.kind], seen)


@pytest.mark.parametrize("name", TEACHERS)
def test_nothing_is_below_the_teachers_noise(name):
    """``objective.entropy`` is a floor: no learned reward is below it on the same fragments, and skipped pairs add nothing to it."""
    problem = taught(TEACHERS[name])
    policy = SOLVER.solve(problem, problems.point(problem, 0)).policy
    floor = float(problem.objective.entropy(problem, policy))
    values = [float(problem.objective.value(problem, problems.point(problem, seed, scale=2.0), policy)) for seed in range(20)]
    truth = problem.world.true_reward.flatten()
    values += [float(problem.objective.value(problem, scale * truth, policy)) for scale in (0.5, 1.0, 2.0, 5.0)]
    assert 0.0 <= floor <= min(values)
    moving = problems.preference_controlled(0)
    with pytest.raises(InvalidProblem, match="at which x"):
        moving.objective.entropy(moving, policy)
    silent = taught(Teacher(skip_below=100.0))
    assert float(silent.objective.entropy(silent, policy)) == float(silent.objective.value(silent, truth, policy)) == 0.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rationality": -1.0}, "rationality is -1.0"),
        ({"rationality": nan}, "rationality"),
        ({"discount": 0.0}, "discount"),
        ({"discount": 1.1}, "discount"),
        ({"mistake": -0.1}, "mistake"),
        ({"mistake": 0.6}, "mistake"),
        ({"skip_below": inf}, "skip_below"),
        ({"skip_below": nan}, "skip_below"),
        ({"equal_within": -0.1}, "equal_within"),
        ({"equal_within": inf}, "equal_within"),
    ],
)
def test_bad_teachers_are_refused(options, words):
    """A teacher who errs more often than not, or skips everything, would be trained on without a word."""
    with pytest.raises(InvalidProblem, match=words):
        Teacher(**options)


def test_the_ids_take_its_knobs():
    """``gym.make(id, teacher=…)`` is JSON, and what it says reaches the teacher."""
    for name, options in (("bilevel/TabularPreference-v0", {}), ("bilevel/PendulumPreference-v0", {"preset": "tiny"})):
        env = gym.make(name, rationality=2.0, teacher={"mistake": 0.1, "discount": 0.9}, **options)
        assert env.unwrapped.problem.objective.teacher == Teacher(2.0, mistake=0.1, discount=0.9)
        assert "mistake" in env.spec.to_json()


@pytest.mark.parametrize("odd", [nan, inf])
def test_a_true_reward_that_is_not_finite_is_named(odd):
    """Without it a simulator's NaN is torch's complaint about probabilities, and a run ends without step or checkpoint."""
    rewards = torch.zeros(3, 2, 4)
    rewards[1, 0, 2] = odd
    with pytest.raises(InvalidProblem, match="true reward"):
        Teacher().label(rewards, torch.Generator())
