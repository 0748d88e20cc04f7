"""Sparse transitions and block elimination: the same numbers as dense tables, everywhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel_gym import BilevelProblem, checkpoint, transitions
from bilevel_gym.envs import ProblemOracle
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.hypergradients import Exact, Implicit
from bilevel_gym.linear import BlockLU, DenseLU
from bilevel_gym.numerics import dense, expect_next, expect_pairs, factorize, policy_transition, push_forward, solve_transposed, staying
from bilevel_gym.objectives import QuadraticObjective, enumerate_fragments
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import LinearReward
from bilevel_gym.solvers import SoftPolicyIteration, SoftValueIteration
from bilevel_gym.types import MDP
from bilevel_gym.worlds import ControlledWorld, GridWorld, SparseTransition, TabularWorld, chain, four_rooms, open_grid
from tests import problems

TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


def sparse_table(rng, *lead, states=9, actions=3, reached=3, ends=0.2):
    """P [..., S, A, S] that reaches few states, some of them in one problem of the batch only."""
    support = np.zeros((states, actions, states), bool)
    for row in support.reshape(-1, states):
        row[rng.choice(states, rng.integers(1, reached + 1), replace=False)] = True
    weights = rng.random((*lead, states, actions, states)) * support * (rng.random((*lead, states, actions, states)) < 0.7)
    weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)  # a row of zeros ends the episode
    return torch.as_tensor(weights * (1.0 - ends * rng.random((*lead, states, actions, 1))))


def draw(rng, *shape):
    """A random policy [..., S, A], values [..., S] and masses [..., S, A] with these leading axes."""
    *lead, states, _ = shape
    return torch.as_tensor(problems.rows(rng, *shape)), *(torch.as_tensor(rng.standard_normal(s)) for s in ((*lead, states), shape))


@pytest.mark.parametrize(
    ("batch", "lead"), [((), ()), ((), (4,)), ((), (2, 3)), ((2,), ()), ((2,), (2,)), ((2,), (5, 2)), ((1,), (5, 2)), ((5, 2), (5, 2))]
)
def test_products_are_those_of_the_table(batch, lead):
    """Every product with P must be the same to rounding, whatever axes P and its argument have; a solver relies on each."""
    rng = np.random.default_rng(len(batch) + 10 * len(lead))
    table = sparse_table(rng, *batch)
    sparse = SparseTransition.from_dense(table)
    assert sparse.probability.shape[-1] < 9
    policy, value, mass = draw(rng, *lead, 9, 3)
    torch.testing.assert_close(sparse.dense(), table, **TOLERANCE)
    torch.testing.assert_close(staying(sparse), torch.einsum("...sas->...sa", table), **TOLERANCE)
    for P in (table, sparse):
        torch.testing.assert_close(expect_next(P, value), torch.einsum("...sat,...t->...sa", table, value), **TOLERANCE)
        pairs = value.unsqueeze(-1) * torch.linspace(1, 2, 9, dtype=torch.float64) ** value.unsqueeze(-1)
        torch.testing.assert_close(expect_pairs(P, pairs), torch.einsum("...sat,...st->...sa", table, pairs), **TOLERANCE)
        torch.testing.assert_close(push_forward(P, mass), torch.einsum("...sat,...sa->...t", table, mass), **TOLERANCE)
        torch.testing.assert_close(policy_transition(P, policy), torch.einsum("...sat,...sa->...st", table, policy), **TOLERANCE)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), states=st.integers(1, 14), batch=st.sampled_from([(), (2,)]), lead=st.sampled_from([(), (3,)]))
def test_block_elimination_of_any_pattern(seed, states, batch, lead):
    """Whatever the pattern, down to one state and up to a full table, blocks must solve the system and its transpose as the LU does."""
    rng = np.random.default_rng(seed)
    table = sparse_table(rng, *batch, states=states, reached=int(rng.integers(1, states + 1)))
    policy, right, _ = draw(rng, *lead, *batch, states, 3)
    mdp = MDP(torch.zeros(states, 3), SparseTransition.from_dense(table), right, float(rng.uniform(0, 0.99)), Shannon(1.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transitions, "DENSE_WORK", 0)
        blocks = factorize(mdp, policy)
    matrix = torch.eye(states) - mdp.discount * torch.einsum("...sat,...sa->...st", table, policy)
    assert isinstance(blocks, BlockLU)
    assert isinstance(factorize(mdp, policy), DenseLU)
    torch.testing.assert_close(solve_transposed(blocks, right, transposed=False), torch.linalg.solve(matrix, right), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(solve_transposed(blocks, right), torch.linalg.solve(matrix.mT, right), rtol=1e-11, atol=1e-11)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), batch=st.sampled_from([(), (2,), (2, 3)]))
def test_pairs_are_merged(seed, batch):
    """Successors of pairs, with repetitions and padding of probability 0, must make the table that their sum is."""
    rng = np.random.default_rng(seed)
    successors, chance = rng.integers(0, 7, (7, 3, 4)), rng.random((*batch, 7, 3, 4)) * (rng.random((*batch, 7, 3, 4)) < 0.4)
    table = np.zeros((*batch, 7, 3, 7))
    for s, a, k in np.ndindex(7, 3, 4):
        table[..., s, a, successors[s, a, k]] += chance[..., s, a, k]
    merged = SparseTransition.from_pairs(torch.as_tensor(successors), torch.as_tensor(chance))
    np.testing.assert_allclose(merged.dense(), table, atol=1e-15)
    assert merged.probability.shape[-1] == max(int((table != 0).any(tuple(range(len(batch)))).any(1).sum(-1).max()), 1)


def twins(*, contexts):
    """The same random problem with a sparse and with a dense table."""
    rng = np.random.default_rng(7)
    lead = (2,) if contexts else ()
    table = sparse_table(rng, *lead, states=12).numpy()
    options = {"context_weights": [0.3, 0.7]} if contexts else {}
    features, start = rng.standard_normal((12, 3, 5)), problems.rows(rng, 12)
    for sparse in (True, False):
        world = TabularWorld(table, start, 0.95, 1.0 - table.sum(-1), sparse=sparse, **options)
        yield BilevelProblem(world, LinearReward(features), Shannon(0.2), problems.ObliqueMean() if contexts else problems.Oblique())


@pytest.mark.parametrize("work", [0, 10**9], ids=["blocks", "dense LU"])
@pytest.mark.parametrize("contexts", [False, True])
@pytest.mark.parametrize("lead", [(), (4,)])
def test_solvers_and_gradients_do_not_see_the_difference(monkeypatch, work, contexts, lead):
    """Response and hyper-gradient must be the same from both forms of P; otherwise a solver or an estimator reads P past numerics."""
    monkeypatch.setattr(transitions, "DENSE_WORK", work)
    x = torch.as_tensor(np.random.default_rng(1).standard_normal((*lead, 5)))
    sparse, dense = twins(contexts=contexts)
    for solver in (SoftPolicyIteration(tolerance=1e-12), SoftValueIteration(sweeps=30)):
        answers = []
        for problem in (sparse, dense):
            response = solver.solve(problem, x)
            oracle = ProblemOracle(problem, solver, torch.Generator())
            gradients = []
            for estimator in (Exact(), Implicit(adjoint_steps=3)):
                state = None if isinstance(estimator, Exact) else torch.zeros_like(response.value)
                gradients.append(estimator(oracle, x, response, oracle.evaluate(x, response), state)[0].value)
            answers.append((response.policy, response.value, response.q, *gradients))
        assert isinstance(sparse.world.transition, SparseTransition)
        for ours, theirs in zip(*answers, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_the_default_step_is_one_over_the_norms():
    """M-SoBiRL's ξ = 1/(‖A‖₁‖A‖_∞) is computed from sums of P: a wrong one diverges, or crawls."""
    for twin in twins(contexts=False):
        stays = 0.5 * dense(twin.world.transition) + 0.5 * torch.eye(12)[:, None]
        world = TabularWorld(stays, twin.world.start, 0.95, 1.0 - stays.sum(-1), sparse=isinstance(twin.world.transition, SparseTransition))
        problem, x = replace(twin, world=world), torch.zeros(5, dtype=torch.float64)
        response = SoftPolicyIteration().solve(problem, x)
        matrix = torch.eye(12) - 0.95 * policy_transition(problem.world.transition, response.policy)
        safe = 1.0 / float(torch.linalg.matrix_norm(matrix, 1) * torch.linalg.matrix_norm(matrix, torch.inf))
        oracle = ProblemOracle(problem, SoftPolicyIteration(), torch.Generator())
        given, default = (
            estimator(oracle, x, response, oracle.evaluate(x, response), estimator.init(oracle))[1]
            for estimator in (Implicit(step_size=safe), Implicit())
        )
        torch.testing.assert_close(given, default, **TOLERANCE)


def test_the_form_follows_the_density():
    """Gridworlds are kept sparse and small or full tables dense, unless the caller says otherwise; the table is the same."""
    assert isinstance(four_rooms().transition, SparseTransition)
    assert isinstance(open_grid(4).transition, torch.Tensor)
    assert isinstance(GridWorld(["." * 100], 0.9, start=None, goals="", scatter=0.1).transition, torch.Tensor)
    assert isinstance(chain(60, 0.9).transition, torch.Tensor)
    table, start = four_rooms().transition.dense(), np.full(104, 1 / 104)
    ends = 1.0 - table.sum(-1)
    found = TabularWorld(table, start, 0.9, ends).transition
    assert isinstance(found, SparseTransition)
    assert found.probability.shape == (2, 104, 4, 4)
    torch.testing.assert_close(found.dense(), table, rtol=0, atol=0)
    assert isinstance(TabularWorld(table, start, 0.9, ends, sparse=False).transition, torch.Tensor)
    torch.testing.assert_close(TabularWorld(found, start, 0.9, ends, sparse=False).transition, table, rtol=0, atol=0)
    assert isinstance(TabularWorld(np.ones((1, 1, 1)), [1.0], 0.9, sparse=True).transition, SparseTransition)


def test_the_band_is_found_in_any_numbering():
    """Shuffled states must cost no more: without the reordering the band, and the work, is that of a full table."""
    plain = open_grid(20).transition
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    place = torch.empty_like(order).scatter_(0, order, torch.arange(400))
    shuffled = SparseTransition(place[plain.successors[order]], plain.probability[order])
    assert plain._band.size == 20
    assert shuffled._band.size <= 40


def test_thousands_of_states_without_a_table(monkeypatch):
    """A gridworld of 3,600 states, whose table would take 415 MB, must be solved to 1e-9 without it, and with the right values."""
    monkeypatch.setattr(SparseTransition, "dense", None)
    monkeypatch.setattr(SparseTransition, "policy_transition", None)
    world = open_grid(60, discount=0.99, slip=0.1)
    features = torch.as_tensor(world.true_reward).unsqueeze(-1)
    problem = BilevelProblem(world, LinearReward(features), Shannon(0.02), QuadraticObjective())
    response = SoftPolicyIteration(tolerance=1e-9).solve(problem, torch.ones(1, dtype=torch.float64))
    assert response.converged
    q = problem.reward.at(torch.ones(1, dtype=torch.float64)) + 0.99 * expect_next(world.transition, response.value)
    np.testing.assert_allclose(0.02 * torch.logsumexp(q / 0.02, -1), response.value, atol=1e-9)
    np.testing.assert_allclose(response.value[-1], 1.0 + 0.02 * np.log(4), atol=1e-9)


def test_rollouts_have_the_frequencies_of_the_table():
    """A sparse world is played through lists of successors: a wrong list, or a lost ending, shows in the visits."""
    world = four_rooms()
    policy = torch.full((2, 104, 4), 0.25, dtype=torch.float64)
    played = world.rollout(policy, trajectories=4000, steps=12, generator=torch.Generator().manual_seed(0))
    law = world.start
    for step in range(12):
        law = push_forward(world.transition, law.unsqueeze(-1) * policy) if step else law
        for context in range(2):
            states = played.states[played.contexts == context, step][played.alive[played.contexts == context, step]]
            count = int((played.contexts == context).sum())
            seen = torch.bincount(states, minlength=104) / count
            assert float((seen - law[context]).abs().max()) < 4.5 * 0.5 / np.sqrt(count)
    ends = GridWorld(["#" * 60, "SG" + "#" * 58, "." * 60, "." * 60], 0.9, slip=0.2)
    assert isinstance(ends.transition, SparseTransition)
    played = ends.rollout(torch.ones(len(ends.start), 4) / 4, trajectories=500, steps=9, generator=torch.Generator().manual_seed(1))
    goal = ends.grid.state(1, 1)
    assert bool((played.states[:, :-1] == goal).any())
    assert not bool((played.alive[:, 1:] & (played.states[:, :-1] == goal)).any())


def test_enumeration_reads_both_forms():
    """Fragments and their probabilities must not depend on how P is kept."""
    rng = np.random.default_rng(3)
    table = sparse_table(rng, states=5, actions=2, reached=2)
    start = torch.tensor([0.5, 0.5, 0, 0, 0], dtype=torch.float64)
    for ours, theirs in zip(*(enumerate_fragments(P, start, 3) for P in (SparseTransition.from_dense(table), table)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_block_factor_survives_a_checkpoint(monkeypatch):
    """A response is saved with its factor: it must come back as one that solves."""
    monkeypatch.setattr(transitions, "DENSE_WORK", 0)
    rng = np.random.default_rng(4)
    policy, right, _ = draw(rng, 9, 3)
    mdp = MDP(right, SparseTransition.from_dense(sparse_table(rng)), right, 0.9, Shannon(1.0))
    factor = factorize(mdp, policy)
    again = checkpoint.unpack(checkpoint.pack(factor))
    assert isinstance(again, BlockLU)
    assert torch.equal(solve_transposed(again, right), solve_transposed(factor, right))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SparseTransition(torch.zeros(2, 1), torch.ones(3, 1, 1)), "must be"),
        (lambda: SparseTransition(torch.full((2, 1), 2), torch.ones(2, 1, 1)), "0 to 1"),
        (lambda: SparseTransition(torch.zeros(2, 0), torch.ones(2, 1, 0)), "at least"),
        (lambda: SparseTransition(torch.zeros(1, 1), torch.ones(1, 1, 1))[0], "no batch"),
        (lambda: TabularWorld(SparseTransition(torch.zeros(1, 1), torch.full((1, 1, 1), 0.5)), [1.0], 0.9), "sum to one"),
        (lambda: DenseLU.of(torch.zeros(2, 2)), "singular"),
        (lambda: BlockLU.of(torch.zeros(1, 2, 6), torch.arange(2)), "singular"),
    ],
)
def test_bad_tables_are_refused(make, words):
    """What is no table, or has no inverse, must be refused with the cure, not by an index error or a NaN later."""
    with pytest.raises(InvalidProblem, match=words):
        make()


@pytest.mark.parametrize("sparse", [False, True])
def test_a_discount_too_near_one_is_refused(sparse):
    """At γ = 1 − 1e-16 a world without an end has no solution in float64; one whose episodes end has, and is solved."""
    rng = np.random.default_rng(0)
    one, discount = torch.ones(1, dtype=torch.float64), 1.0 - 2.0**-53
    table, features = problems.rows(rng, 5, 2, 5), rng.standard_normal((5, 2, 1))
    for ends, refused in ((0.0, True), (0.3, False)):
        world = TabularWorld(table * (1 - ends), np.full(5, 0.2), discount, np.full((5, 2), ends), sparse=sparse)
        problem = BilevelProblem(world, LinearReward(features), Shannon(0.5), QuadraticObjective())
        if refused:
            with pytest.raises(InvalidProblem, match="singular"):
                SoftPolicyIteration().solve(problem, one)
        else:
            assert SoftPolicyIteration().solve(problem, one).converged


@pytest.mark.parametrize("solver", [SoftPolicyIteration(), SoftValueIteration(tolerance=1e-8)])
def test_a_reward_that_is_not_finite_is_refused(solver):
    """A NaN in x must end the solve with a reason, not after a hundred steps on NaN."""
    sparse, dense = twins(contexts=False)
    for problem in (sparse, dense):
        with pytest.raises(InvalidProblem, match="not finite"):
            solver.solve(problem, torch.full((5,), torch.nan, dtype=torch.float64))


def test_worlds_are_stacked_where_all_have_a_true_reward_or_none():
    """One world's true reward must not become that of the others, nor be lost in silence."""
    table, paid = np.full((2, 1, 2), 0.5), np.ones((2, 1))

    def kernel(x):
        return torch.full((*x.shape[:-1], 2, 1, 2), 0.5, dtype=x.dtype)

    for make in (
        lambda reward: TabularWorld(table, [1.0, 0.0], 0.9, true_reward=reward),
        lambda reward: ControlledWorld(kernel, [0.0], [1.0, 0.0], 0.9, true_reward=reward),
    ):
        both, one = [make(paid), make(paid)], [make(None), make(paid)]
        assert type(both[0]).stack(both).true_reward.shape == (2, 2, 1)
        assert type(both[0]).stack([one[0], one[0]]).true_reward is None
        for worlds in (one, one[::-1]):
            with pytest.raises(InvalidProblem, match="1 of 2 worlds have a true_reward"):
                type(worlds[0]).stack(worlds)


def test_stacked_worlds_keep_their_numbers():
    """A batch of sparse worlds must hold each world's own P: with one list of successors as it is, with different ones merged."""
    alike, other = (GridWorld(["S" + "." * 99], 0.9, start=None, goals="", slip=slip) for slip in (0.1, 0.4))
    far = TabularWorld(dense(alike.transition).roll(3, -1), alike.start, 0.9, true_reward=alike.true_reward)
    assert all(isinstance(world.transition, SparseTransition) for world in (alike, other, far))
    for worlds in ([alike, other], [alike, far]):
        stacked = TabularWorld.stack(worlds)
        assert isinstance(stacked.transition, SparseTransition)
        torch.testing.assert_close(dense(stacked.transition), torch.stack([dense(world.transition) for world in worlds]))
