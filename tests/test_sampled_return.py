"""What trajectories are worth, as an upper objective: against the exact return on a table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bilevel_gym import agents
from bilevel_gym.envs import BilevelEnv, ProblemOracle
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.hypergradients import Exact, GivenCritic, ScoreFunction
from bilevel_gym.objectives import ReturnObjective, SampledReturn
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.types import SampledObjective
from tests import problems

SOLVER = SoftPolicyIteration(tolerance=1e-13)


def pair(seed: int = 2, *, length: int = 3, discount: float = 0.8, **options):
    """A problem by samples, and the same by its table."""
    base = problems.preference(seed, ends=True)
    sampled = SampledReturn(length=length, discount=discount, **{"trajectories": 200, **options})
    exact = ReturnObjective(-base.world.true_reward, discount=discount, horizon=length)
    return replace(base, objective=sampled), replace(base, objective=exact)


def setting(problem, seed: int = 0):
    """x, the solved response, and an oracle."""
    x = problems.point(problem, 0)
    return x, SOLVER.solve(problem, x), ProblemOracle(problem, SOLVER, torch.Generator().manual_seed(seed))


def test_its_mean_is_the_exact_return() -> None:
    """Without it a lost discount, sign or step past an episode's end would be a number like any other."""
    sampled, exact = pair()
    x, response, oracle = setting(sampled)
    assert isinstance(sampled.objective, SampledObjective)
    values = torch.stack([oracle.evaluate(x, response).value for _ in range(60)])
    truth = float(exact.objective.value(exact, x, response.policy))
    assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / 60**0.5
    assert float(values.std()) / 60**0.5 < 0.05 * abs(truth)


@pytest.mark.parametrize("sensitivity", ["exact", "rollout", "critic"])
def test_its_hypergradient_is_the_exact_one(sensitivity: str) -> None:
    """All of ∇φ is the implicit term: a clip at the direct part, which is zero, or a wrong l would leave nothing of it.

    ``"critic"`` is given the L of a single counted step, whose return from (s, a) is r(s, a).
    """
    sampled, exact = pair(length=1 if sensitivity == "critic" else 3, steps=25)
    x, response, oracle = setting(sampled)
    truth = Exact()(oracle=ProblemOracle(exact, SOLVER, torch.Generator()), x=x, response=response, evaluation=None, state=None)[0].value
    critic = GivenCritic(-exact.world.true_reward) if sensitivity == "critic" else None
    estimator, found = ScoreFunction(sensitivity, critic=critic, clip=1.0), []
    for _ in range(80):
        estimate, _ = estimator(oracle, x, response, oracle.evaluate(x, response), estimator.init(oracle))
        assert not bool(estimate.direct.any())
        found.append(estimate.value)
    errors = (torch.stack(found).mean(0) - truth).abs() / (torch.stack(found).std(0) / 80**0.5)
    assert float(errors.max()) < 4.0
    assert float((torch.stack(found).mean(0) - truth).norm()) < 0.25 * float(truth.norm())


def test_a_function_of_trajectories_is_raised() -> None:
    """The function must see the counted steps and no more, and −f be the mean of what it says."""
    base, _ = pair()
    seen = []

    def turns(played):
        """How often action 0 is taken."""
        seen.append(played)
        return ((played.actions == 0) & played.alive).sum(-1)

    problem = replace(base, objective=SampledReturn(turns, length=4, trajectories=100, steps=9))
    env = BilevelEnv(problem, SOLVER)
    env.reset(seed=0)
    before = float(env.evaluation.value)
    assert seen[-1].alive.shape == (100, 4)
    assert before == -float(turns(seen[-1]).double().mean())
    fresh = env.evaluation.fresh
    assert fresh.trajectories.alive.shape == (100, 9)
    worth = ((fresh.fragments.actions == 0) & fresh.fragments.alive).sum((-2, -1))
    assert torch.equal(fresh.fragments.outcome, worth.double())  # of its own fragment, and not of another's
    assert env.counters.env_steps == 900
    agents.sobirl(env, learning_rate=0.05, sensitivity="exact", updates_per_step=5, warmup_updates=0).learn(20)
    assert float(env.evaluation.value) < before - 0.5


def test_worlds_that_move_with_x_are_played_at_x() -> None:
    """P(x) of another x would give the return of another world."""
    base = problems.preference_controlled(3)
    problem = replace(base, objective=SampledReturn(length=3, trajectories=4000))
    for seed in (0, 1):
        x = 3.0 * problems.point(problem, seed)
        response, oracle = SOLVER.solve(problem, x), ProblemOracle(problem, SOLVER, torch.Generator().manual_seed(0))
        found = oracle.evaluate(x, response)
        world = problem.world.at(x)
        law, expected = world.start, 0.0
        for _ in range(3):
            expected += float((law[:, None] * response.policy * world.true_reward).sum())
            law = torch.einsum("s,sa,sat->t", law, response.policy, world.transition)
        error = float(found.fresh.fragments.outcome.std()) / 4000**0.5
        assert abs(float(-found.value) - expected) < 4 * error


def test_refuses_what_cannot_be() -> None:
    """Numbers out of range, a world without horizon, one number for all, and a world without rewards."""
    for options, words in (
        ({"trajectories": 0}, "one at least"),
        ({"length": 0}, "one at least"),
        ({"length": 5, "steps": 4}, "first 5"),
        ({"discount": 1.1}, "discount"),
        ({"trajectories": "8"}, "trajectories is '8'"),
    ):
        with pytest.raises(InvalidProblem, match=words):
            SampledReturn(**options)
    base, _ = pair()
    for objective, words in (
        (SampledReturn(), "no horizon"),
        (SampledReturn(lambda played: played.alive.sum(), length=2), r"must be \[8\]"),
        (SampledReturn(lambda played: np.full(8, np.inf), length=2), "not finite"),
    ):
        env = BilevelEnv(replace(base, objective=objective), SOLVER)
        with pytest.raises(InvalidProblem, match=words):
            env.reset(seed=0)
    with pytest.raises(UnsupportedProblem, match=r"E\[∇l\] alone is zero; use hypergradients.ScoreFunction"):
        agents.drlhf(BilevelEnv(base, SOLVER))
    untrue = replace(problems.linear(0), objective=SampledReturn(length=2))
    with pytest.raises(UnsupportedProblem, match="no reward of its own"):
        BilevelEnv(untrue, SOLVER).reset(seed=0)
