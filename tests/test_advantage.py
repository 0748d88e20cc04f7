"""HPGD's estimator against the exact hyper-gradient, and randomized truncation of the lower level."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym import agents
from bilevel_gym.agents.gradient_descent import GradientDescent
from bilevel_gym.envs import ProblemOracle
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.hypergradients import AdvantageWeighted, Exact, RandomizedTruncation
from bilevel_gym.hypergradients.advantage import _less_the_others, _to_go
from bilevel_gym.registration import CATALOGUE
from bilevel_gym.solvers import SoftPolicyIteration, SoftValueIteration
from bilevel_gym.testing import check_hypergradient
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
    env = gym.make(name)
    env.reset(seed=0)
    agent = agents.hpgd(env, trajectories=5, draws=1).learn(1)
    assert bool(agent.hypergradient.value.isfinite().all())


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
