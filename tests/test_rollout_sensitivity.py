"""SoBiRL with rollouts: fresh continuations, their lengths, their law, and the gradient that they give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bilevel_gym.envs import ProblemOracle
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.hypergradients import ScoreFunction, ScoreState
from bilevel_gym.hypergradients.sensitivities import Continuations, Point, along_continuations, play_continuations, resolvent
from bilevel_gym.numerics import draw_horizons, gradients
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.testing import central_differences, check_hypergradient, compare
from bilevel_gym.types import Places, Trajectory
from tests import problems

SOLVER = SoftPolicyIteration(tolerance=1e-13)

PROBLEMS = {
    "plain": problems.preference(0, tail=0),
    "longer": problems.preference(1, length=3, tail=0),
    "ending": problems.preference(2, ends=True, tail=0),
    "patient": problems.preference(3, discount=0.85, tail=0),
    "myopic": problems.preference(4, discount=0.0, tail=0),
    "chain": replace(problems.chain(), objective=replace(problems.chain().objective, steps=3, pairs=64)),
    "kl": problems.under_kl(problems.preference(4, actions=3, tail=0)),
}


def cells_as_places(states, actions):
    """(s, a) as the first steps of trajectories."""
    return Places(
        problems.single_steps(states, actions).trajectories, torch.arange(len(states)), torch.zeros(len(states), dtype=torch.long)
    )


def setting(problem, seed=0):
    """x, the solved response and an oracle."""
    x = problems.point(problem, seed)
    return x, SOLVER.solve(problem, x), ProblemOracle(problem, SOLVER, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("branches", [1, None])
@pytest.mark.parametrize("name", PROBLEMS)
def test_rollouts_are_unbiased(name, branches):
    """Fresh continuations of random length give ∇(Q − V) without bias, from one step of a fragment or from all of them."""
    problem = PROBLEMS[name]
    estimator = ScoreFunction("rollout", branches=branches)
    check_hypergradient(problem, problems.point(problem, 0), estimator, estimates=150 if branches else 60)


@pytest.mark.parametrize("name", ["plain", "ending", "patient", "myopic"])
def test_continuations_have_the_sensitivity_of_the_resolvent(name):
    """From each (s, a), 20 × 100 continuations must agree with ∇(Q − V) of one adjoint solve: γ, its root or a lost sign shows here first."""
    problem = PROBLEMS[name]
    x, response, oracle = setting(problem)
    cells, weight = torch.cartesian_prod(torch.arange(3), torch.arange(2)), torch.tensor([1.0, -0.5, 0.7, 0.2, -1.0, 0.4], dtype=x.dtype)
    at = Point(problem, x, response, oracle.generator)
    truth = resolvent(at, problems.single_steps(*cells.unbind(1)), weight[:, None])
    repeated, values = problems.single_steps(*cells.repeat(100, 1).unbind(1)), []
    for _ in range(20):
        drawn = play_continuations(oracle, response, repeated, "reset", 1)
        values.append(along_continuations(at, drawn, weight.repeat(100) / 100).numpy())
    assert compare(truth.numpy(), np.stack(values)).p_value > 0.001


def test_steps_that_were_not_played_count_for_nothing():
    """In closed form: Σ γ^{t/2} over the living steps of ξ less those of ζ, times weight and share; steps past the end are padding."""
    problem = PROBLEMS["plain"]
    alive = torch.tensor([[True, True, False]])
    given = Trajectory(torch.tensor([[0, 1, 2]]), torch.tensor([[1, 0, 1]]), alive)
    free = Trajectory(torch.tensor([[0, 2, 2]]), torch.tensor([[0, 1, 1]]), alive & torch.tensor([True, False, False]))
    drawn = Continuations(torch.tensor([1]), torch.tensor([2.0]), Places(given, *torch.zeros(2, 1, dtype=torch.long)), given, free)
    found = along_continuations(
        Point(problem, problems.point(problem, 0), None, None), drawn, torch.tensor([9.0, 0.5], dtype=torch.float64)
    )
    np.testing.assert_allclose(found, [-1.0, 1.0, 0.6**0.5, 0.0, 0.0, 0.0])


def test_rollouts_are_unbiased_on_late_and_shared_fragments():
    """Pieces of four trajectories, cut anywhere: scores from the reset on must agree with those of the exact sensitivities."""
    problem = problems.preference(2, ends=True, pairs=8, tail=2)
    problem = replace(problem, objective=replace(problem.objective, cut="anywhere", trajectories=4))
    x, response, oracle = setting(problem)
    for window in ("reset", "frozen"):
        differences = []
        for _ in range(120):
            evaluation = oracle.evaluate(x, response)
            exact, drawn = (ScoreFunction(name, window)(oracle, x, response, evaluation, ScoreState())[0] for name in ("exact", "rollout"))
            differences.append((drawn.implicit - exact.implicit).numpy())
        assert compare(exact.implicit.numpy(), np.stack(differences) + exact.implicit.numpy()).p_value > 0.001


def test_every_step_is_less_noisy_than_one():
    """Taking all steps of a fragment must pay in variance what it costs in environment steps, or the option is of no use."""
    problem = PROBLEMS["longer"]
    x, response, _ = setting(problem)
    noise, steps = [], []
    for branches in (1, None):
        oracle = ProblemOracle(problem, SOLVER, torch.Generator().manual_seed(0))
        values = [
            ScoreFunction("rollout", branches=branches)(oracle, x, response, oracle.evaluate(x, response), ScoreState())[0].implicit
            for _ in range(40)
        ]
        noise.append(float(torch.stack(values).var(0).sum()))
        steps.append(oracle.counters.env_steps)
    assert noise[1] < 0.7 * noise[0]
    assert steps[1] > 1.5 * steps[0]


def test_the_own_tail_is_no_substitute():
    """The fragment's own future in place of a fresh continuation is correlated with l: it must be seen to be wrong, and cannot be asked for."""
    problem = problems.preference(0)
    x, response, oracle = setting(problem)
    truth, gamma, scale = central_differences(problem, x), problem.world.discount, problem.regularizer.temperature
    table = torch.eye(problem.dimension, dtype=x.dtype).view(problem.world.states, problem.world.actions, -1)
    mean = (torch.linalg.inv(torch.eye(3) - gamma * torch.einsum("sa,sat->st", response.policy, problem.world.transition))) @ torch.einsum(
        "sa,sad->sd", response.policy, table
    )
    values = []
    for _ in range(300):
        fresh = oracle.evaluate(x, response).fresh
        played = fresh.trajectories
        seen, tail = table[played.states, played.actions], []
        total = torch.zeros_like(seen[:, 0])
        for column in reversed(seen.unbind(1)):
            total = column + gamma * total
            tail.insert(0, total)
        score = (torch.stack(tail, 1) - mean[played.states])[:, :2].sum(1)[fresh.origin].sum(1)
        loss = problem.objective.loss(problem, x, fresh.fragments)
        direct = gradients(lambda leaf, pieces=fresh.fragments: problem.objective.loss(problem, leaf, pieces).mean(), x)[0]
        values.append((direct + ((loss - loss.mean())[:, None] * score).mean(0) / scale).numpy())
    assert compare(truth, np.stack(values)).p_value < 1e-4
    with pytest.raises(InvalidProblem, match="own_tail"):
        ScoreFunction("own_tail")


def test_horizons_have_the_discount_in_their_law():
    """P(T ≥ t) = γ^{t/2} from T = 0: a law that starts at one, or with γ^t, shifts every continuation."""
    generator = torch.Generator().manual_seed(0)
    steps = draw_horizons(40_000, 0.8, generator)
    assert int(steps.min()) == 1
    for t in range(6):
        p = 0.8 ** (t / 2)
        assert abs(float((steps > t).double().mean()) - p) < 4 * np.sqrt(p * (1 - p) / 40_000) + 1e-12
    assert draw_horizons(5, 0.0, generator).tolist() == [1] * 5


def test_branches_begin_and_end_where_they_should():
    """States and first actions are those given, each continuation has its own length, and all actions after the first follow π."""
    problem = problems.preference(5)
    world, policy = problem.world, SOLVER.solve(problem, problems.point(problem, 5)).policy
    states, actions = torch.arange(3).repeat(8000), torch.arange(2).repeat(12_000)
    steps = torch.tensor([1, 2, 3, 4]).repeat(6000)
    places = cells_as_places(states, actions)
    played = world.branch(policy, places, steps=steps, generator=torch.Generator().manual_seed(0), given=True)
    assert played.states.shape == (24_000, 4)
    assert torch.equal(played.states[:, 0], states)
    assert torch.equal(played.actions[:, 0], actions)
    assert torch.equal(played.alive.sum(1), steps)
    cell = (played.states * 2 + played.actions)[:, 1][steps > 1]
    law = torch.einsum("n,nt,ta->ta", torch.full((24_000,), 1 / 24_000, dtype=policy.dtype), world.transition[states, actions], policy)
    found = torch.bincount(cell, minlength=6) / len(cell)
    assert bool(((found - law.flatten()).abs() < 5 * (law.flatten() / len(cell)).sqrt()).all())
    free = world.branch(policy, places, steps=steps, generator=torch.Generator().manual_seed(0))
    share = torch.stack([(free.actions[:, 0][states == s] == 0).double().mean() for s in range(3)])
    assert bool(((share - policy[:, 0]).abs() < 4 * (0.25 / 8000) ** 0.5).all())
    assert torch.equal(played.rewards, world.true_reward[played.states, played.actions] * played.alive)


def test_branches_stop_at_the_end_of_the_episode():
    """A continuation past the end of an episode would collect rewards that nobody gets."""
    problem = problems.preference(2, ends=True)
    world, policy = problem.world, torch.full((3, 2), 0.5, dtype=torch.float64)
    cells = torch.cartesian_prod(torch.arange(3), torch.arange(2)).repeat(4000, 1)
    steps = torch.full((len(cells),), 2)
    places = cells_as_places(*cells.unbind(1))
    played = world.branch(policy, places, steps=steps, generator=torch.Generator().manual_seed(0), given=True)
    gone = 1 - played.alive[:, 1].double().view(4000, 3, 2).mean(0)
    assert bool(((gone - world.termination).abs() < 5 * (0.25 / 4000) ** 0.5).all())


@pytest.mark.parametrize("name", ["chain", "ending"])
def test_continuations_stay_together_once_they_have_met(name):
    """ξ and ζ share their length and their random numbers: without that the noise of ∇(Q − V) is two to four times as large."""
    problem = PROBLEMS[name]
    x, response, oracle = setting(problem)
    drawn = play_continuations(oracle, response, oracle.evaluate(x, response).fresh, "reset", None)
    given, free = drawn.given, drawn.free
    assert given.alive.shape == free.alive.shape
    met = (given.states == free.states)[:, 1:-1] & given.alive[:, 1:-1] & free.alive[:, 1:-1]
    assert int(met.sum()) > 100
    assert torch.equal(given.actions[:, 1:-1][met], free.actions[:, 1:-1][met])
    assert torch.equal(given.alive[:, 2:][met], free.alive[:, 2:][met])
    assert torch.equal((given.states * given.alive)[:, 2:][met], (free.states * free.alive)[:, 2:][met])
    assert not torch.equal(given.actions[:, 0], free.actions[:, 0])


def test_only_played_steps_are_counted_and_once_for_a_response():
    """Continuations are environment steps like any other; fifty updates at one response must not play them fifty times."""
    problem = problems.preference(2, ends=True, pairs=16)
    x, response, oracle = setting(problem)
    evaluation = oracle.evaluate(x, response)
    before = oracle.counters.env_steps
    estimator = ScoreFunction("rollout")
    first, state = estimator(oracle, x, response, evaluation, ScoreState())
    spent = oracle.counters.env_steps - before
    assert spent == int(state.continuations.given.alive.sum() + state.continuations.free.alive.sum())
    again, same = estimator(oracle, x, response, evaluation, state)
    assert same is state
    assert torch.equal(first.value, again.value)
    assert oracle.counters.env_steps - before == spent


def test_worlds_that_cannot_branch_are_refused_by_name():
    """A simulator without branches must say so before training, not fail in the middle."""

    class Straight:
        discount = 0.9

    problem = replace(PROBLEMS["plain"], world=Straight())
    assert "Straight has no branch" in ScoreFunction("rollout").supports(problem)
    with pytest.raises(InvalidProblem, match="branches"):
        ScoreFunction("rollout", branches=0)
    with pytest.raises(InvalidProblem, match="P depends on x"):
        problems.controlled(0).world.branch(
            torch.ones(5, 3) / 3, cells_as_places(*torch.zeros(2, 1).long()), steps=torch.ones(1).long(), generator=None
        )
