"""Which pairs are asked about, how many, and what an estimator sees of those that nobody was asked about."""

from __future__ import annotations

from dataclasses import replace
from math import inf, isnan

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bilevel_gym import BilevelEnv, BilevelProblem, agents
from bilevel_gym.envs import ProblemOracle
from bilevel_gym.errors import InvalidProblem, UnknownName, UnsupportedProblem
from bilevel_gym.hypergradients import GivenCritic, ScoreFunction, ScoreState
from bilevel_gym.preferences import Query, Teacher, cross_entropy, labels_due
from bilevel_gym.rewards import LinearReward
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.testing import central_differences, check_hypergradient, compare, enumerated_critic
from tests import problems

SOLVER = SoftPolicyIteration(tolerance=1e-13)


class Committee(LinearReward):
    """An ensemble as the queries see it: x is a table for each of three members side by side, r_x their mean."""

    members = 3

    def __init__(self, states, actions):
        cells = states * actions
        super().__init__(np.tile(np.eye(cells), 3).reshape(states, actions, 3 * cells) / 3)
        self.shape = (states, actions)

    def along_each(self, x, states, actions):
        """Each member's own table."""
        return x.view(self.members, *self.shape)[:, states, actions]

    def disagreement(self, x, states, actions):
        """Over the members."""
        return self.along_each(x, states, actions).std(0, correction=0)


def generator(seed=0):
    """A fresh one."""
    return torch.Generator().manual_seed(seed)


def with_objective(problem, **options):
    """The same problem with other options of its objective."""
    return BilevelProblem(problem.world, problem.reward, problem.regularizer, replace(problem.objective, **options))


def committee(**options):
    """A small problem whose reward is an ensemble."""
    base = problems.preference(1, length=3)
    world = base.world
    return BilevelProblem(
        world, Committee(world.states, world.actions), base.regularizer, replace(base.objective, capacity=1000, **options)
    )


def evaluations(problem, count, seed=0):
    """Evaluations one after the other at one x, each with the memory of the one before."""
    x, memory, source = problems.point(problem, seed), problem.objective.start(), generator(seed)
    response, seen = SOLVER.solve(problem, x), []
    for _ in range(count):
        evaluation, memory = problem.objective.evaluate(problem, x, response, memory, source)
        seen.append(evaluation)
    return x, response, seen


# ---------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize("rule", ["disagreement", "entropy", "uniform"])
def test_rules_rank_as_they_say(rule):
    """Scores by hand over 200 candidates: the members' spread of P, or the entropy of their mean; uniform takes what was drawn first."""
    logits = torch.as_tensor(np.random.default_rng(0).normal(0, 2, (3, 200)))
    p = 1 / (1 + np.exp(-logits.numpy()))
    mean = p.mean(0)
    score = {
        "disagreement": np.sqrt(((p - mean) ** 2).mean(0)),
        "entropy": -mean * np.log(mean) - (1 - mean) * np.log(1 - mean),
        "uniform": -np.arange(200.0),
    }[rule]
    chosen = Query(rule, pairs=20).choose(logits, 20)
    assert set(chosen.tolist()) == set(np.argsort(-score)[:20].tolist())


def test_a_single_network_does_not_disagree():
    """All spreads are zero: any twenty pairs would be taken, and look chosen."""
    with pytest.raises(UnsupportedProblem, match="members=3"):
        Query("disagreement", pairs=2).choose(torch.zeros(1, 20), 2)
    problem = with_objective(problems.preference(0), capacity=100, query=Query("disagreement", pairs=2))
    with pytest.raises(UnsupportedProblem, match="members=3"):
        evaluations(problem, 2)


def test_an_ensembles_loss_is_the_mean_over_its_members():
    """Each member learns from each pair by itself: the loss of the mean reward would let them differ in anything."""
    problem = committee()
    x, _, (evaluation,) = evaluations(problem, 1)
    fragments = evaluation.fresh.fragments
    single = problems.preference(1, length=3)
    losses = [single.objective.loss(single, part, fragments) for part in x.view(3, -1)]
    torch.testing.assert_close(problem.objective.loss(problem, x, fragments), torch.stack(losses).mean(0))
    torch.testing.assert_close(float(evaluation.value), float(torch.stack(losses).mean()))


def test_chosen_pairs_feed_the_queue_and_nothing_else():
    """Value, fresh pairs and the implicit part are those of the uniform draw; the queue has the chosen pairs, which disagree more."""
    plain, asking = committee(), committee(query=Query("disagreement", pairs=32))
    x, response, (first, second) = evaluations(asking, 2)
    _, _, (same,) = evaluations(plain, 1)
    assert torch.equal(first.fresh.fragments.outcome, same.fresh.fragments.outcome)
    assert (len(first.memory), len(second.memory)) == (64, 64 + 64 + 32)
    assert (first.comparisons, second.comparisons) == (64, 96)
    fresh = cross_entropy(asking.objective.logits(asking, x, second.fresh.fragments), second.fresh.fragments.outcome).mean()
    torch.testing.assert_close(second.value, fresh)
    spread = torch.sigmoid(asking.objective.logits(asking, x, second.memory.content)).std(0)
    assert float(spread[-32:].min()) > float(spread[:128].median())
    oracle = ProblemOracle(asking, SOLVER, generator())
    with_queue, without = (
        ScoreFunction("exact", batch=50)(oracle, x, response, seen, ScoreState())[0] for seen in (second, replace(second, memory=None))
    )
    assert torch.equal(with_queue.implicit, without.implicit)
    assert not torch.equal(with_queue.direct, without.direct)


def test_chosen_pairs_have_their_own_answers():
    """An answer about another candidate would be a label like any other: here a rational teacher's own is known."""
    problem = committee(query=Query("disagreement", pairs=32), teacher=Teacher(inf), pairs=2)
    _, _, (_, second) = evaluations(problem, 2)
    content = second.memory.content
    returns = content.rewards.sum(-1)
    assert len(returns) == 2 + 2 + 32
    torch.testing.assert_close(content.outcome, 0.5 * (1.0 + (returns[:, 0] - returns[:, 1]).sign()))


def test_an_ensembles_accuracy_is_that_of_its_mean():
    """Of one member alone it would look as if learning had stopped, or not begun."""
    problem = committee(held_out_pairs=300, pairs=300)
    x = problems.point(problem, 0)
    seen, memory = problem.objective.evaluate(problem, x, SOLVER.solve(problem, x), problem.objective.start(), generator())
    tables = x.view(3, *problem.reward.shape)
    for name, pairs in (("fresh", seen.fresh.fragments), ("held_out", memory.held_out)):
        returns = (tables[:, pairs.states, pairs.actions] * pairs.alive).sum(-1)
        margins = [r[:, 0] - r[:, 1] for r in (returns.mean(0), *returns)]
        right = [float((0.5 + 0.5 * margin.sign() * (2.0 * pairs.outcome - 1.0)).mean()) for margin in margins]
        assert seen.metrics[f"accuracy_{name}"] == pytest.approx(right[0], abs=0.006)  # equal fragments differ by a rounding error
        assert min(abs(other - right[0]) for other in right[1:]) > 0.012


def test_chosen_pairs_are_out_of_many():
    """``ratio`` is the number of candidates for each: with one there is nothing to choose from, with more the spread grows."""
    spreads = []
    for ratio in (1, 4, 16):
        x, _, (_, second) = evaluations(committee(query=Query("disagreement", pairs=64, ratio=ratio)), 2)
        problem = committee()
        logits = problem.objective.logits(problem, x, second.memory.content)[:, -64:]
        spreads.append(float(torch.sigmoid(logits).std(0).mean()))
    assert spreads[0] < 0.8 * spreads[1] < 0.8 * 0.95 * spreads[2]


def test_an_ensemble_learns_from_chosen_pairs():
    """Ten upper steps of DRLHF with queries by disagreement: the members' losses on held-out pairs must fall."""
    problem = committee(query=Query("disagreement", pairs=16), held_out_pairs=200, pairs=16)
    env = BilevelEnv(problem, SOLVER)
    _, info = env.reset(seed=0)
    agents.drlhf(env, learning_rate=0.02).learn(10)
    assert env.evaluation.metrics["accuracy_held_out"] > info["accuracy_held_out"] + 0.1


@pytest.mark.parametrize("options", [{"pairs": 0}, {"pairs": 2, "ratio": 0}])
def test_bad_queries_are_refused(options):
    """A misspelt rule must not become a uniform draw, nor a number of pairs that is none."""
    with pytest.raises(InvalidProblem):
        Query("entropy", **options)
    with pytest.raises(UnknownName, match="disagreement, entropy, uniform"):
        Query("variance", pairs=2)


# ---------------------------------------------------------------------------------------------- how many


@given(st.integers(0, 40), st.one_of(st.none(), st.floats(0.2, 200.0), st.floats(1e-300, 0.2)))
def test_rates_add_up(pairs, half_rate):
    """After k evaluations Σ n t₀/(t₀ + j) labels have been asked for, rounded down: nothing is lost to rounding, whatever the rate."""
    asked = 0
    for evaluation in range(60):
        asked += labels_due(pairs, evaluation, half_rate)
        exact = pairs * sum(1.0 if half_rate is None else half_rate / (half_rate + j) for j in range(evaluation + 1))
        assert asked <= exact + 1e-6
        assert asked > exact - 1
    assert labels_due(pairs, 0, half_rate) == pairs


def test_the_rate_halves_when_it_says():
    """1/(t + const), as in Christiano et al.: at t₀ half of it, at 3t₀ a quarter."""
    assert [labels_due(400, k, 100.0) for k in (0, 100, 300)] == [400, 200, 100]


def test_evaluations_ask_as_the_rate_says():
    """The first one for all that it was told, each later one, of fresh and of chosen pairs, at the rate of its own number."""
    problem = committee(
        pairs=8, initial_pairs=20, half_rate=1.5, query=Query("uniform", pairs=5, ratio=10**12)
    )  # which needs no candidates
    _, _, seen = evaluations(problem, 6)
    due = [20] + [labels_due(8, k, 1.5) + labels_due(5, k, 1.5) for k in range(1, 6)]
    assert [evaluation.comparisons for evaluation in seen] == due
    assert [len(evaluation.memory) for evaluation in seen] == np.cumsum(due).tolist()


def test_the_budget_is_kept_and_the_environment_goes_on():
    """Labels end when they are spent, chosen ones first; f is then the loss of the queue, and the metrics say that nobody was asked."""
    problem = committee(pairs=10, initial_pairs=12, budget=30, held_out_pairs=20, query=Query("entropy", pairs=4))
    x, _, seen = evaluations(problem, 4)
    assert [evaluation.comparisons for evaluation in seen] == [12 + 20, 14, 4, 0]
    assert [evaluation.metrics["comparisons_left"] for evaluation in seen] == [18.0, 4.0, 0.0, 0.0]
    assert [len(evaluation.memory) for evaluation in seen] == [12, 26, 30, 30]
    assert [evaluation.fresh.asked for evaluation in seen] == [True, True, True, False]
    last = seen[-1]
    assert bool(last.fresh.fragments.outcome.isnan().all())
    assert isnan(last.metrics["accuracy_fresh"])
    assert "accuracy_held_out" in last.metrics
    losses = problem.objective.loss(problem, x, last.memory.content)
    assert float(losses.min()) < float(last.value) < float(losses.max())
    many = with_objective(problem, pairs=2000, budget=12)
    x, _, (_, later) = evaluations(many, 2)
    losses = many.objective.loss(many, x, later.memory.content)
    assert abs(float(later.value - losses.mean())) < 4 * float(losses.std(correction=0)) / 2000**0.5


def test_agents_learn_on_after_the_budget():
    """Every agent of the comparison takes steps with a spent budget, and DRLHF on its queue still moves x."""
    for recipe, options in ((agents.drlhf, {}), (agents.sobirl, {}), (agents.sobirl, {"sensitivity": "rollout", "window": "reset"})):
        problem = with_objective(problems.preference(0), capacity=200, budget=64)
        env = BilevelEnv(problem, SOLVER)
        env.reset(seed=0)
        agent = recipe(env, updates_per_step=2, warmup_updates=0, **options).learn(2)
        before = agent.x.clone()
        agent.learn(2)
        assert env.counters.comparisons == 64
        assert float((agent.x - before).norm()) > 0.0


@pytest.mark.parametrize("sensitivity", ["exact", "rollout", "one_step", "critic"])
def test_unasked_fragments_say_nothing_about_the_loss(sensitivity):
    """Their l is not zero, it is unknown: scores are not weighted with it, and L is not fitted on it, though it is still used."""
    problem = with_objective(problems.preference(0), capacity=200, budget=64)
    x, response, (first, second) = evaluations(problem, 2)
    oracle = ProblemOracle(problem, SOLVER, generator())
    estimator = ScoreFunction(sensitivity, batch=64)
    _, state = estimator(oracle, x, response, first, ScoreState())
    steps = oracle.counters.env_steps
    estimate, after = estimator(oracle, x, response, second, state)
    assert oracle.counters.env_steps == steps
    if sensitivity == "critic":
        assert torch.equal(after.history.outcome, state.history.outcome)
        assert float(estimate.implicit.norm()) > 0.0
    else:
        assert float(estimate.implicit.norm()) == 0.0
    assert float(estimate.direct.norm()) > 0.0


def test_the_critic_needs_no_labels_of_the_fragments_it_weights():
    """With the true L the covariance form sees only where trajectories go: unbiased on fragments that nobody was asked about."""
    problem = problems.preference(0)
    x = problems.point(problem, 0)
    response = SOLVER.solve(problem, x)
    oracle = ProblemOracle(problem, SOLVER, generator())
    estimator = ScoreFunction("critic", critic=GivenCritic(enumerated_critic(problem, x, response.policy)))
    values = []
    for _ in range(300):
        seen = oracle.evaluate(x, response)
        unasked = replace(seen.fresh, fragments=replace(seen.fresh.fragments, outcome=torch.full((64,), torch.nan)), asked=False)
        values.append(estimator(oracle, x, response, replace(seen, fresh=unasked), ScoreState())[0].implicit.numpy())
    direct = problem.objective.gradient(problem, x, response.policy)[0].numpy()
    assert compare(central_differences(problem, x) - direct, np.stack(values)).p_value > 0.001


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": 0}, "budget is 0"),
        ({"half_rate": 0.0}, "half_rate is 0.0"),
        ({"half_rate": float("inf")}, "half_rate is inf"),
        ({"initial_pairs": 0}, "initial_pairs must be positive"),
        ({"capacity": 0, "budget": 5}, "give a capacity"),
        ({"capacity": 0, "query": Query("uniform", pairs=1)}, "give a capacity"),
    ],
)
def test_bad_budgets_are_refused(options, words):
    """A budget of nothing, or one without a queue to go on with, would end in a mean over no pairs."""
    with pytest.raises(InvalidProblem, match=words):
        with_objective(problems.preference(0), **{"capacity": 10, **options})


# ---------------------------------------------------------------------------------------------- stale scores


def test_stale_scores_are_right_while_the_queue_is_the_policys_own():
    """Scores of a batch of the queue: the same estimate, as long as the current policy has played all of it."""
    problem = with_objective(problems.preference(0, pairs=256), capacity=256)
    x = problems.point(problem, 0)
    check_hypergradient(problem, x, ScoreFunction("exact", batch=64, stale=True), estimates=200)


def test_stale_scores_of_older_policies_are_biased():
    """What the released code does must be seen to be wrong where the queue is old, and the fresh ones right on the same queue."""
    problem = with_objective(problems.preference(0, pairs=256), capacity=512)
    x, other = problems.point(problem, 0), -3.0 * problems.point(problem, 0)
    response, source = SOLVER.solve(problem, x), generator()
    _, memory = problem.objective.evaluate(problem, other, SOLVER.solve(problem, other), problem.objective.start(), source)
    oracle = ProblemOracle(problem, SOLVER, source)
    values = {True: [], False: []}
    for _ in range(100):
        seen, _ = problem.objective.evaluate(problem, x, response, memory, source)
        for stale, found in values.items():
            found.append(ScoreFunction("exact", batch=64, stale=stale)(oracle, x, response, seen, ScoreState())[0].implicit.numpy())
    truth = central_differences(problem, x) - problem.objective.gradient(problem, x, response.policy)[0].numpy()
    assert compare(truth, np.stack(values[False])).p_value > 0.001
    assert compare(truth, np.stack(values[True])).p_value < 1e-6


def test_stale_is_refused_where_it_has_no_meaning():
    """Without a batch nothing is stale; the queue keeps neither tails nor continuations, nor what was before a fragment."""
    for options in ({"sensitivity": "one_step"}, {"sensitivity": "critic", "batch": 8}, {"sensitivity": None, "batch": 8}):
        with pytest.raises(InvalidProblem, match="stale"):
            ScoreFunction(stale=True, **options)
    anywhere = with_objective(problems.preference(0), cut="anywhere", capacity=100)
    assert "frozen" in ScoreFunction("one_step", batch=8, stale=True).supports(anywhere)
    assert ScoreFunction("one_step", "frozen", batch=8, stale=True).supports(anywhere) is None


# ---------------------------------------------------------------------------------------------- episodes


def test_fragments_longer_than_episodes_are_refused():
    """Each would be padded with steps that never were: say so at the reset, before anything is asked."""
    import gymnasium as gym

    env = gym.make("bilevel/PendulumPreference-v0", preset="tiny").unwrapped
    objective = replace(env.problem.objective, length=60, steps=None)
    with pytest.raises(InvalidProblem, match="do not fit into episodes of 50"):
        BilevelEnv(replace(env.problem, objective=objective), env.solver, solve_on_reset=False).reset(seed=0)
    longer = replace(env.problem, objective=replace(env.problem.objective, steps=500))
    outer = BilevelEnv(longer, env.solver, solve_on_reset=False)
    outer.reset(seed=0)
    assert bool(outer.evaluation.fresh.fragments.alive.all())
