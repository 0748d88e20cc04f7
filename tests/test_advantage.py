"""HPGD's estimator against the exact hyper-gradient, and randomized truncation of the lower level."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym import agents
from bilevel_gym.agents.gradient_descent import GradientDescent
from bilevel_gym.envs import ProblemOracle, tabular_preference
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.hypergradients import AdvantageWeighted, Exact, GivenCritic, RandomizedTruncation, ScoreFunction, ScoreState
from bilevel_gym.hypergradients.advantage import _less_the_others, _to_go
from bilevel_gym.numerics import adjoint
from bilevel_gym.registration import CATALOGUE
from bilevel_gym.solvers import SoftPolicyIteration, SoftValueIteration
from bilevel_gym.testing import check_hypergradient, enumerated_critic
from bilevel_gym.types import Trajectory
from tests import problems
from tests.test_returns import RETURNS

SOLVER = SoftPolicyIteration(tolerance=1e-13)
PLAYED = [
    (name, variant)
    for name, problem in RETURNS.items()
    for variant in ("sampled", "model_free")
    if problem.objective.horizon is not None and AdvantageWeighted(variant).supports(problem) is None
]


def estimate(estimator, problem, x, *, solver=SOLVER, seed=0):
    """One estimate of ∇φ at the response of ``solver``."""
    oracle = ProblemOracle(problem, solver, torch.Generator().manual_seed(seed))
    response = solver.solve(problem, x)
    return estimator(oracle, x, response, oracle.evaluate(x, response), estimator.init(oracle))[0]


@pytest.mark.parametrize("name", RETURNS)
def test_oracle_equals_exact(name):
    """HPGD's sum over advantages is §3 in another order: contexts, horizons, other worlds, P(x); any term that is lost shows."""
    problem = RETURNS[name]
    x = torch.stack([problems.point(problem, seed) for seed in (5, 6)])
    found, exact = (estimate(estimator, problem, x) for estimator in (AdvantageWeighted("oracle"), Exact()))
    for part in ("value", "direct", "implicit"):
        assert float((getattr(found, part) - getattr(exact, part)).norm() / exact.value.norm()) < 1e-10


@pytest.mark.parametrize("variant", ["oracle", "sampled"])
def test_under_a_divergence(variant):
    """KL has the scores of the entropy, so HPGD holds under it; the actions that its reference forbids stay out."""
    problem = problems.under_kl(RETURNS["contexts-horizon"])
    estimates = 15 if variant == "sampled" else 1
    check_hypergradient(problem, problems.point(problem, 1), AdvantageWeighted(variant, trajectories=1500), estimates=estimates)


@pytest.mark.parametrize(("name", "variant"), PLAYED)
def test_sampled_is_unbiased(name, variant):
    """The mean of sampled estimates is ∇φ: own-tail correlations, a discount too many or a follower's rows mixed up show."""
    problem = RETURNS[name]
    trajectories = 1500 if variant == "sampled" else 6000  # costs to go are noisier than what the leader has learnt
    check_hypergradient(problem, problems.point(problem, 7), AdvantageWeighted(variant, trajectories=trajectories, draws=2), estimates=15)


def test_sampled_without_a_horizon():
    """Trajectories are long enough for an endless upper level: their truncation is below the noise."""
    problem = RETURNS["contexts"]
    check_hypergradient(problem, problems.point(problem, 8), AdvantageWeighted(trajectories=500, draws=2), estimates=10)


def test_costs_to_go():
    """A_upper is what an action still brings, not what came before it."""
    torch.testing.assert_close(_to_go(torch.tensor([[1.0, 2.0, 4.0]])), torch.tensor([[7.0, 6.0, 4.0]]))


def test_own_trajectories_are_no_baseline():
    """The baseline is the mean over the *others* that live, of the same follower: with itself in it a part of the gradient is lost."""
    states, alive = torch.tensor([[0, 1], [0, 1], [0, 1]]), torch.tensor([[True, True], [True, True], [True, False]])
    ahead = torch.tensor([[1.0, 4.0], [3.0, 5.0], [8.0, 7.0]], dtype=torch.float64)
    policy = torch.full((2, 1), 1.0, dtype=torch.float64)
    one = _less_the_others(ahead, Trajectory(states, 0 * states, alive), policy)
    expected = torch.tensor([[1 - (3 + 8) / 2, 4 - 5], [3 - (1 + 8) / 2, 5 - 4], [8 - (1 + 3) / 2, 7 - (4 + 5) / 2]], dtype=torch.float64)
    torch.testing.assert_close(one, expected)
    two = _less_the_others(ahead, Trajectory(states, 0 * states, alive, contexts=torch.tensor([0, 0, 1])), torch.stack([policy, policy]))
    torch.testing.assert_close(two[:, 0], torch.tensor([-2.0, 2.0, 8.0], dtype=torch.float64))


def test_samples_are_counted():
    """Trajectories and continuations are environment steps that the leader pays for."""
    problem = RETURNS["contexts-horizon"]
    oracle = ProblemOracle(problem, SOLVER, torch.Generator().manual_seed(0))
    x = problems.point(problem, 0)
    response = SOLVER.solve(problem, x)
    AdvantageWeighted(trajectories=10, draws=3)(oracle, x, response, oracle.evaluate(x, response), None)
    assert oracle.counters.env_steps >= 10 * problem.objective.horizon + 2 * 30


def test_truncation_telescopes():
    """Each draw is g_0 + (g_{k+1} − g_k)/p_k, and their mean over the levels is g_K: a wrong p_k or a level too many breaks this."""
    problem = problems.returns(1, contexts=False)
    x = problems.point(problem, 1)
    sweep, levels = SoftValueIteration(sweeps=2), 3
    oracle = ProblemOracle(problem, sweep, torch.Generator())
    answers = [sweep.solve(problem, x)]
    while len(answers) < 2**levels:
        answers.append(sweep.solve(problem, x, warm=answers[-1]))
    g = [Exact()(oracle, x, answers[2**k - 1], oracle.evaluate(x, answers[2**k - 1]), None)[0].value for k in range(levels + 1)]
    chances = np.array([4, 2, 1]) / 7
    possible = [g[0] + (g[k + 1] - g[k]) / chances[k] for k in range(levels)]
    torch.testing.assert_close(sum(p * one for p, one in zip(chances, possible, strict=True)), g[levels])
    seen = np.zeros(levels)
    for seed in range(100):
        found = estimate(RandomizedTruncation(Exact(), levels), problem, x, solver=sweep, seed=seed)
        distances = [float((found.value - one).norm()) for one in possible]
        assert min(distances) < 1e-12
        assert int(found.stats["level"]) == int(np.argmin(distances))
        seen[int(np.argmin(distances))] += 1
    assert np.abs(seen / 100 - chances).max() < 0.15


def test_truncation_gives_both_levels_the_same_numbers():
    """Where the levels agree, sampled estimates of them must, too: else 2^k multiplies their noise."""
    problem = RETURNS["contexts-horizon"]
    x = problems.point(problem, 1)
    inner = AdvantageWeighted(trajectories=5, draws=1)
    found = estimate(RandomizedTruncation(inner, 4), problem, x)
    scale = float(estimate(inner, problem, x).value.norm())
    oracle = ProblemOracle(problem, SOLVER, torch.Generator().manual_seed(0))
    torch.multinomial(torch.ones(4, dtype=torch.float64), 1, generator=oracle.generator)
    answer = SOLVER.solve(problem, x)
    alone = inner(oracle, x, answer, oracle.evaluate(x, answer), None)[0]
    assert float((found.value - alone.value).norm()) < 1e-9 * scale


def test_hpgd_learns_on_four_rooms():
    """The recipe moves the followers with its sampled gradient, and on a batch each problem has samples of its own."""
    env = gym.make("bilevel/FourRoomsIncentive-v0", temperature=0.005)
    _, before = env.reset(seed=0)
    agents.hpgd(env, learning_rate=5.0, variant="oracle", max_norm=None).learn(20)
    assert float(env.unwrapped.evaluation.value) < before["objective"] - 0.1
    envs = gym.make_vec("bilevel/FourRoomsIncentive-v0", num_envs=2, temperature=0.005)
    envs.reset(seed=0)
    agent = agents.hpgd(envs, trajectories=5, draws=1).learn(1)
    assert agent.hypergradient.value.shape == (2, 105)
    assert not torch.equal(agent.hypergradient.value[0], agent.hypergradient.value[1])


@pytest.mark.parametrize("name", [name for name, entry in CATALOGUE.items() if "hpgd" in entry.agents])
def test_hpgd_runs_where_the_catalogue_says_so(name):
    """An id that lists hpgd takes a step of it."""
    env = gym.make(name, **({} if CATALOGUE[name].batched else {"preset": "tiny"}))
    env.reset(seed=0)
    agent = agents.hpgd(env, trajectories=5, draws=1, warmup_updates=0).learn(1)
    assert bool(agent.hypergradient.value.isfinite().all())


LEARNT = {
    "exact": ScoreFunction("exact", weighting="advantage"),
    "rollout": ScoreFunction("rollout", weighting="advantage"),
    "rollout, every step": ScoreFunction("rollout", weighting="advantage", branches=None),
}
"""HPGD on comparisons: A_upper = L − E_πL, with both ways to A_lower that are unbiased."""


def knowing(estimator, problem, x):
    """The estimator with the true L."""
    return replace(estimator, critic=GivenCritic(enumerated_critic(problem, x, SOLVER.solve(problem, x).policy)))


@pytest.mark.parametrize(
    ("kind", "name"),
    [("ending", "exact"), ("tabular_preference", "exact"), ("table", "rollout"), ("longer", "rollout"), ("ending", "rollout, every step")],
)
def test_on_comparisons_it_is_unbiased(kind, name):
    """With the true L the mean of HPGD's estimates is ∇φ: a step too many in the fragment, a wrong τ or share shows."""
    problem = {
        "table": lambda: problems.preference(0),
        "ending": lambda: problems.preference(2, ends=True),
        "longer": lambda: problems.preference(1, length=3),
        "tabular_preference": lambda: tabular_preference().problem,
    }[kind]()
    problem = replace(problem, objective=replace(problem.objective, held_out_pairs=0, exact=False, pairs=64))
    x = problems.point(problem, 0)
    check_hypergradient(problem, x, knowing(LEARNT[name], problem, x), estimates=60)


def test_advantages_are_less_noisy_than_losses():
    """What the weighting is for: l is one noisy number for all steps of a pair, L − E_πL is its mean at each; here at the same samples."""
    problem = problems.preference(0)
    x = problems.point(problem, 0)
    spread = {}
    for weighting in ("loss", "advantage"):
        estimator = knowing(ScoreFunction("exact", weighting=weighting), problem, x)
        found = [estimate(estimator, problem, x, seed=seed).implicit.numpy() for seed in range(50)]
        spread[weighting] = np.stack(found).std(0).mean()
    assert spread["advantage"] < 0.5 * spread["loss"]


def test_weights_of_the_fragments_alone():
    """Cut anywhere and frozen, a step counts once for each fragment that it is in, and the tails of trajectories not at all."""
    problem = problems.preference(1, length=2)
    late = replace(problem, objective=replace(problem.objective, cut="anywhere", trajectories=4, steps=6, pairs=16))
    x = problems.point(late, 0)
    oracle, response = ProblemOracle(late, SOLVER, torch.Generator().manual_seed(0)), SOLVER.solve(late, x)
    seen = oracle.evaluate(x, response)
    table = torch.as_tensor(np.random.default_rng(0).standard_normal((3, 2)))
    found, _ = ScoreFunction("exact", "frozen", critic=GivenCritic(table), weighting="advantage")(oracle, x, response, seen, ScoreState())
    fresh, pi = seen.fresh.fragments, response.policy
    visits = torch.zeros_like(pi)
    for states, actions in zip(fresh.states.flatten(0, 1), fresh.actions.flatten(0, 1), strict=True):
        for s, a in zip(states.tolist(), actions.tolist(), strict=True):
            visits[s, a] += table[s, a] - pi[s] @ table[s]
    visits = visits / (16 * late.regularizer.temperature)
    cotangent = adjoint(late.at(x), pi, visits - pi * visits.sum(-1, keepdim=True))
    torch.testing.assert_close(found.implicit, late.backup_vjp(x, response.value, cotangent))
    assert "frozen" in ScoreFunction("exact", weighting="advantage").supports(late)


def test_what_is_learnt_is_learnt_before():
    """L is fitted on earlier fragments: the first estimate has none, later ones do, and randomized truncation refuses it."""
    problem = problems.preference(0)
    x = problems.point(problem, 0)
    oracle, response = ProblemOracle(problem, SOLVER, torch.Generator().manual_seed(0)), SOLVER.solve(problem, x)
    estimator, state, sizes = ScoreFunction("rollout", weighting="advantage"), ScoreState(), []
    for _ in range(3):
        found, state = estimator(oracle, x, response, oracle.evaluate(x, response), state)
        sizes.append(float(found.implicit.norm()))
    assert sizes[0] == 0.0
    assert min(sizes[1:]) > 0.0
    assert "from one call to the next" in RandomizedTruncation(estimator, 2).supports(problem)
    with pytest.raises(InvalidProblem, match="weighting"):
        ScoreFunction("exact", weighting="return")


class Eager(ScoreFunction):
    """Plays continuations whether they count or not."""

    def _counts(self, state):
        """Always."""
        return True


def test_nothing_is_played_for_weights_of_zero():
    """HPGD's first look knows nothing of l: its continuations would be a third of a short run, spent on an implicit part of exactly zero."""
    problem = problems.preference(0)
    x = problems.point(problem, 0)
    oracle, response = ProblemOracle(problem, SOLVER, torch.Generator().manual_seed(0)), SOLVER.solve(problem, x)
    options, truth = {"sensitivity": "rollout", "weighting": "advantage"}, knowing(LEARNT["rollout"], problem, x).critic
    seen = oracle.evaluate(x, response)
    _, learnt = ScoreFunction(**options)(oracle, x, response, seen, ScoreState())
    other = oracle.evaluate(x, response)
    unasked = replace(other, fresh=replace(other.fresh, asked=False))
    for state, given, look, plays in (
        (ScoreState(), None, seen, False),
        (ScoreState(), truth, seen, True),
        (learnt, None, other, True),
        (learnt, None, unasked, True),  # L says something about pairs that nobody was asked about
        (ScoreState(), None, unasked, False),
    ):
        results = []
        for kind in (ScoreFunction, Eager):
            aside = ProblemOracle(problem, SOLVER, torch.Generator().manual_seed(1))
            found, after = kind(**options, critic=given)(aside, x, response, look, state)
            results.append((found, after.history, aside.counters.env_steps))
        (found, history, steps), (wanted, kept, dear) = results
        assert all(torch.equal(getattr(found, part), getattr(wanted, part)) for part in ("value", "direct", "implicit"))
        assert bool(found.implicit.any()) == plays
        assert steps == (dear if plays else 0)
        assert dear > 0
        assert (history is None) == (kept is None)
    aside = ProblemOracle(problem, SOLVER, torch.Generator())
    for kind in (options, {"sensitivity": "rollout"}):
        estimator, state = ScoreFunction(**kind, delay=2, critic=truth), ScoreState()
        for call in range(3):
            found, state = estimator(aside, x, response, oracle.evaluate(x, response), state)
            assert bool(found.implicit.any()) == (aside.counters.env_steps > 0) == (call == 2)
        aside = ProblemOracle(problem, SOLVER, torch.Generator())


def test_momentum_around_advantages():
    """Asked again on its own draws the estimate is the same number at the same point; at another one L is fitted to the losses there."""
    problem = problems.preference(0)
    x, other = problems.point(problem, 0), problems.point(problem, 1)
    oracle, response = ProblemOracle(problem, SOLVER, torch.Generator().manual_seed(0)), SOLVER.solve(problem, x)
    for sensitivity in ("exact", "rollout"):
        estimator, state = ScoreFunction(sensitivity, weighting="advantage"), ScoreState()
        for _ in range(2):
            seen = oracle.evaluate(x, response)
            found, state = estimator(oracle, x, response, seen, state)
        assert float(found.implicit.norm()) > 0.0
        torch.testing.assert_close(estimator.again(oracle, x, response, state).value, found.value)
        elsewhere = SOLVER.solve(problem, other)
        again = estimator.again(oracle, other, elsewhere, state)
        if sensitivity == "exact":  # which draws nothing, so that it can be had anew
            anew, _ = estimator(oracle, other, elsewhere, seen, ScoreState(history=state.earlier))
            torch.testing.assert_close(again.value, anew.value)


def test_hpgd_descends_on_comparisons():
    """The recipe on a preference table: φ, which the environment knows exactly, falls below where it was, sampled and by the oracle."""
    for options in ({"learning_rate": 0.05, "updates_per_step": 4, "warmup_updates": 0}, {"variant": "oracle", "learning_rate": 1.0}):
        env = gym.make("bilevel/TabularPreference-v0")
        _, info = env.reset(seed=1)
        agents.hpgd(env, **options).learn(20)
        assert float(env.unwrapped.evaluation.value) < info["objective"] - 0.1


def test_clipped_descent():
    """A long gradient is scaled to max_norm, a short one left alone, each row of a batch for itself."""
    x = torch.zeros(2, 2)
    x.grad = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    GradientDescent([x], lr=0.5, max_norm=1.0).step()
    torch.testing.assert_close(x, torch.tensor([[-0.3, -0.4], [-0.15, -0.2]]))
    with pytest.raises(InvalidProblem, match="max_norm is 0"):
        GradientDescent([x], lr=0.5, max_norm=0.0)


@pytest.mark.parametrize(
    ("estimator", "problem", "words"),
    [
        (AdvantageWeighted("oracle"), problems.under_tsallis(RETURNS["horizon"]), "not under Tsallis"),
        (AdvantageWeighted(), problems.quadratic(0), "discounted upper cost"),
        (AdvantageWeighted(), RETURNS["controlled-horizon"], "P depends on x"),
        (AdvantageWeighted(), RETURNS["elsewhere"], "another world"),
        (AdvantageWeighted("model_free"), RETURNS["entropic"], "entropy of its own"),
        (RandomizedTruncation(AdvantageWeighted()), problems.preference(0), "discounted upper cost"),
    ],
    ids=["tsallis", "explicit", "controlled", "elsewhere", "entropic", "preference"],
)
def test_refusals_name_the_reason(estimator, problem, words):
    """What cannot be seen on the follower's trajectories is refused, with what to use instead."""
    assert words in estimator.supports(problem)
    with pytest.raises(UnsupportedProblem, match=words):
        check_hypergradient(problem, problems.point(problem, 0), estimator)


@pytest.mark.parametrize(
    "make",
    [
        lambda: AdvantageWeighted("exact"),
        lambda: AdvantageWeighted(trajectories=1),
        lambda: AdvantageWeighted(draws=0),
        lambda: RandomizedTruncation(Exact(), 0),
    ],
)
def test_bad_options(make):
    """A misspelt variant or a number that leaves nothing to average is refused."""
    with pytest.raises(InvalidProblem):
        make()
