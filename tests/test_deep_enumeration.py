"""The sampled estimators through the code for simulators and networks, summed over everything that can happen: they must be exact."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from bilevel_gym.envs import ProblemOracle
from bilevel_gym.hypergradients import Exact, OwnActorState, Penalty, PenaltyState, SampledPenalty, ScoreFunction
from bilevel_gym.preferences import gather
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.testing import compare, enumerated_critic
from bilevel_gym.types import Evaluation, Fragments, Response, Samples, Trajectory
from tests.discrete import ACTIONS, LAYERS, OBJECTIVE, STATES, TRANSITION, TRUE, Planner, TablePolicy, point, simulated, tabular
from tests.test_likelihood import IndicatorCritic
from tests.test_penalty import stationary

ACTS = range(ACTIONS)


def everything(policy):
    """All 32 episodes with their probabilities: states [32, 3], actions [32, 3], [32]."""
    paths, chances = [], []
    for *states, first, second, third in product(*LAYERS, ACTS, ACTS, ACTS):
        actions = (first, second, third)
        paths.append((states, actions))
        moves = [TRANSITION[here, action, there] for here, action, there in zip(states[:-1], actions[:-1], states[1:], strict=True)]
        chances.append(np.prod(moves) * np.prod([float(policy[s, a]) for s, a in zip(states, actions, strict=True)]))
    states, actions = (torch.tensor(column) for column in zip(*paths, strict=True))
    return states, actions, np.array(chances)


def pair_of(states, actions, first, second, label):
    """What the upper level sees where these two episodes are compared, as a look at the simulator would show it."""
    chosen = [first, second]
    seen = torch.eye(STATES, dtype=torch.float64)[states[chosen]]
    played = Trajectory(
        seen, actions[chosen], torch.ones(2, states.shape[1], dtype=torch.bool), torch.tensor(TRUE)[states, actions][chosen]
    )
    origin, offset = torch.tensor([[0, 1]]), torch.zeros(1, 2, dtype=torch.long)
    cut = [gather(table, origin, offset, OBJECTIVE.length) for table in (played.states, played.actions, played.alive)]
    return Samples(played, origin, offset, Fragments(*cut, torch.tensor([label], dtype=torch.float64)))


def test_the_surrogate_summed_over_all_pairs_is_the_exact_gradient():
    """E[∇l] + τ⁻¹E[Σ c_t ∇r] with the true L, through the network, its replayed trajectories and the policy object: not a mean, all of it."""
    x, exact, problem = point(3).double(), tabular(), simulated()
    oracle = ProblemOracle(problem, Planner(), torch.Generator())
    response = oracle.solve(x.float())
    solver = SoftPolicyIteration(tolerance=1e-13)
    solved = solver.solve(exact, x)
    torch.testing.assert_close(response.policy.table, solved.policy, rtol=0, atol=1e-6)
    policy = type(response.policy)(solved.policy)  # in double precision
    response = type(response)(policy)
    estimator = ScoreFunction("critic", critic=IndicatorCritic(enumerated_critic(exact, x, solved.policy)))
    states, actions, chances = everything(solved.policy)
    assert abs(chances.sum() - 1.0) < 1e-12
    returns = TRUE[states, actions][:, : OBJECTIVE.length].sum(1)
    total = {part: torch.zeros_like(x) for part in ("direct", "implicit")}
    # A pair and its mirror image with the other answer are one event: half of them are enough.
    for first in range(len(chances)):
        for second in range(first, len(chances)):
            prefers = 1.0 / (1.0 + np.exp(-OBJECTIVE.teacher.rationality * (returns[first] - returns[second])))
            fresh = pair_of(states, actions, first, second, prefers)  # l is linear in the answer: the mean one has the mean loss
            found, _ = estimator(oracle, x, response, Evaluation(torch.tensor(0.0), fresh), estimator.init(oracle))
            weight = (1 if first == second else 2) * chances[first] * chances[second]
            for part, column in total.items():
                column += weight * getattr(found, part)
    aside = ProblemOracle(exact, solver, torch.Generator())
    truth, _ = Exact()(aside, x, solved, aside.evaluate(x, solved), None)
    assert float(truth.implicit.norm()) > 0.01 * float(truth.direct.norm())
    for part, column in total.items():
        torch.testing.assert_close(column, getattr(truth, part), rtol=1e-8, atol=1e-10)


def test_rollouts_of_the_simulator_have_it_for_a_mean():
    """The same with fresh continuations that the simulator plays from the middle of its episodes, in single precision."""
    x, exact = point(3), tabular()
    oracle = ProblemOracle(simulated(pairs=8), Planner(), torch.Generator().manual_seed(0))
    response, estimator, values = oracle.solve(x), ScoreFunction("rollout"), []
    for _ in range(30):
        found, _ = estimator(oracle, x, response, oracle.evaluate(x, response), estimator.init(oracle))
        values.append(found.value.double().numpy())
    solved = SoftPolicyIteration(tolerance=1e-13).solve(exact, x.double())
    aside = ProblemOracle(exact, SoftPolicyIteration(), torch.Generator())
    truth, _ = Exact()(aside, x.double(), solved, aside.evaluate(x.double(), solved), None)
    assert compare(truth.value.numpy(), np.stack(values)).p_value > 1e-3


@pytest.mark.parametrize("weight", [2.0, 50.0])
def test_both_parts_of_pbrl_summed_over_all_pairs_have_the_exact_length(weight):
    """E_π[∇l] and λ∇_xp, where F_λ(x, ·) has its minimum: a factor in either shows, and with the right ones λ cancels.

    π is 1/λ away from π̂ there, so that λ∇_xp is as long as the implicit part of ∇φ, whatever λ is; and so it is in the sampled parts.
    """
    x, exact, problem = point(3).double(), tabular(), simulated()
    solver = SoftPolicyIteration(tolerance=1e-13)
    solved, theta = solver.solve(exact, x), stationary(exact, "value", weight, x)
    best, own = solved.policy, torch.softmax(theta, -1)
    (states, actions, hat), (*_, mine) = everything(best), everything(own)
    returns = TRUE[states, actions][:, : OBJECTIVE.length].sum(1)
    oracle, response = ProblemOracle(problem, Planner(), torch.Generator()), Response(TablePolicy(best))
    estimator = SampledPenalty(penalty=weight, batch=1)
    aside, total = pair_of(states, actions, 0, 0, 0.5).trajectories, {part: torch.zeros_like(x) for part in ("direct", "implicit")}
    for first in range(len(hat)):
        for second in range(first, len(hat)):
            prefers = 1.0 / (1.0 + np.exp(-OBJECTIVE.teacher.rationality * (returns[first] - returns[second])))
            fresh = pair_of(states, actions, first, second, prefers)
            state = OwnActorState(response, fresh.fragments, 0.0, aside, fresh, 1)
            found, _ = estimator(oracle, x, response, Evaluation(torch.tensor(0.0), fresh), state)
            both = 1 if first == second else 2
            total["direct"] += both * mine[first] * mine[second] * found.direct
            # ``aside``, in the place of π's own, is the same in all of them, so that it goes away
            total["implicit"] += both * (hat[first] * hat[second] - mine[first] * mine[second]) * found.implicit
    beside = ProblemOracle(exact, solver, torch.Generator())
    seen = beside.evaluate(x, solved)
    truth, _ = Penalty(penalty=weight, policy_learning_rate=1e-12)(beside, x, solved, seen, PenaltyState(theta))
    for part, column in total.items():
        torch.testing.assert_close(column, getattr(truth, part), rtol=1e-6, atol=1e-8)
    wanted = Exact()(beside, x, solved, seen, None)[0].implicit.norm()
    assert 0.5 < float(total["implicit"].norm() / wanted) < 2.0
