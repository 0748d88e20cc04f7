"""PBRL on simulators: an actor of its own against the exact penalty on tables, through the code for networks."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym import agents, checkpoint
from bilevel_gym.envs import ProblemOracle
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.hypergradients import OwnActorState, Penalty, PenaltyState, SampledPenalty
from bilevel_gym.hypergradients.own_actor import _earned
from bilevel_gym.numerics import factorize, gradients, solve_transposed
from bilevel_gym.testing import enumerated_critic
from bilevel_gym.testing.hypergradient import compare
from bilevel_gym.types import Response, Trajectory
from tests import problems
from tests.discrete import DISCOUNT, OBJECTIVE, Planner, TablePolicy, point, simulated, table_of, tabular
from tests.test_penalty import SOLVER, stationary

PLANNER = Planner()
STEPS = 2 * OBJECTIVE.length
"""Of a tuple: two fragments, none of which ends early."""


class Known:
    """L·(n/d)/w of a policy, from tables, where a fitted critic has L: the state's weight, of which ``SampledPenalty`` has a mean."""

    def __init__(self, x):
        self.problem, self.x, self.policy = tabular(), x.double(), None

    def fit(self, problem, fragments, loss, generator):
        """[S, A] of the policy of now."""
        lost = enumerated_critic(self.problem, self.x, self.policy)
        _, visits = self.problem.objective.advantage(self.problem, self.x, self.policy)
        mdp = self.problem.at(self.x)
        occupancy = solve_transposed(factorize(mdp, self.policy), mdp.start)
        return lost * (visits / occupancy / ((1.0 - DISCOUNT) * STEPS))[:, None]

    def evaluate(self, fitted, states, actions):
        """[n]."""
        return fitted[states.argmax(-1), actions].float()


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_actor_comes_to_rest_where_the_penalised_objective_does(weight):
    """A wrong sign, w or λ, an L that is paid as a reward without its mean, or one of r_x's own, and π minimises something else."""
    x, problem = point(3), simulated(pairs=2)
    critic, oracle = Known(x), ProblemOracle(problem, PLANNER, torch.Generator().manual_seed(0))
    estimator, response, state = SampledPenalty(penalty=weight, critic=critic), oracle.solve(x), OwnActorState()
    for _ in range(25):
        _, state = estimator(oracle, x, response, oracle.evaluate(x, response), state)
        critic.policy = state.own.policy.table
    truth = torch.softmax(stationary(tabular(), "value", weight, x.double()), -1)
    assert float((truth - response.policy.table).abs().max()) > 1e-3  # f does move it
    torch.testing.assert_close(state.own.policy.table, truth, rtol=0, atol=2e-6)


def test_gradient_in_x_is_that_of_the_exact_penalty():
    """Far from any optimum, at a π of its own: E[∇l] under π, and λ times the discounted difference, each with its own trajectories."""
    x, problem, weight = point(1), simulated(pairs=12), 2.0
    theta = torch.as_tensor(np.random.default_rng(0).standard_normal((5, 2)))
    oracle = ProblemOracle(problem, PLANNER, torch.Generator().manual_seed(1))
    response, own = oracle.solve(x), Response(TablePolicy(torch.softmax(theta, -1)))
    estimator, values = SampledPenalty(penalty=weight, batch=12), []
    for _ in range(120):
        seen, look = oracle.evaluate(x, response), oracle.evaluate(x, own)
        state = OwnActorState(own, look.fresh.fragments, float(look.value), look.fresh.trajectories, seen.fresh, 1)
        found, _ = estimator(oracle, x, response, seen, state)
        values.append(np.stack([part.double().numpy() for part in (found.value, found.direct, found.implicit)]))
    exact = tabular()
    aside = ProblemOracle(exact, Planner(), torch.Generator())
    solved = SOLVER.solve(exact, x.double())
    truth, _ = Penalty(penalty=weight, policy_learning_rate=1e-12)(
        aside, x.double(), solved, aside.evaluate(x.double(), solved), PenaltyState(theta)
    )
    for i, part in enumerate((truth.value, truth.direct, truth.implicit)):
        assert compare(part.numpy(), np.stack(values)[:, i]).p_value > 1e-3, i


def test_what_is_earned_ends_where_the_episode_does():
    """Past an end states stand still and r_x goes on: it must not be counted, nor what γ^t makes small."""
    alive = torch.tensor([[True, True, True, True], [True, True, False, False]])
    played = Trajectory(torch.zeros(2, 4, 1), torch.zeros(2, 4, 1), alive)
    reward = SimpleNamespace(along=lambda x, states, actions: x * torch.ones(alive.shape)[:, : states.shape[1]])
    for discount, each in ((0.5, (1.875, 1.5)), (0.15, (1.1725, 1.15)), (0.0, (1.0, 1.0))):  # 0.15³ is below .01
        problem = SimpleNamespace(reward=reward, world=SimpleNamespace(discount=discount))
        torch.testing.assert_close(_earned(problem, torch.tensor(2.0), played), torch.tensor(sum(each)))


def test_first_call_starts_at_the_response():
    """π begins where the penalty is zero, with the environment's pairs; a look of its own would be paid for nothing."""
    x, oracle = point(0), ProblemOracle(simulated(), PLANNER, torch.Generator().manual_seed(0))
    response = oracle.solve(x)
    evaluation = oracle.evaluate(x, response)
    before = replace(oracle.counters)
    found, state = SampledPenalty()(oracle, x, response, evaluation, OwnActorState())
    assert state.own is response
    assert not bool(found.implicit.any())
    assert found.stats["objective_own"] == found.stats["objective_response"]
    assert oracle.counters == before


def test_one_look_and_one_solve_for_each_response():
    """Fifty updates at one response must not train fifty actors; the labels of π are counted, and none is asked for when none is to be had."""
    x, oracle = point(0), ProblemOracle(simulated(pairs=4), PLANNER, torch.Generator().manual_seed(0))
    estimator, response = SampledPenalty(growth=0.5), oracle.solve(x)
    _, state = estimator(oracle, x, response, oracle.evaluate(x, response), OwnActorState())
    evaluation = oracle.evaluate(x, response)
    before = replace(oracle.counters)
    for _ in range(3):
        found, state = estimator(oracle, x, response, evaluation, state)
    assert (oracle.counters.comparisons - before.comparisons, oracle.counters.lower_step - before.lower_step) == (4, 1)
    assert oracle.counters.env_steps > before.env_steps
    assert found.stats["penalty_weight"] == 15.0
    assert len(state.history.outcome) == 8
    silent = oracle.evaluate(x, response)
    silent = replace(silent, fresh=replace(silent.fresh, asked=False))
    before = replace(oracle.counters)
    _, after = estimator(oracle, x, response, silent, state)
    assert oracle.counters.comparisons == before.comparisons
    assert after.own is not state.own
    assert after.trajectories is not state.trajectories
    assert torch.equal(after.history.outcome, state.history.outcome)


def test_clip_and_history():
    """The guards do what they say: a ratio of norms at most, and the newest pairs only."""
    x, oracle = point(2), ProblemOracle(simulated(pairs=6), PLANNER, torch.Generator().manual_seed(0))
    estimator, state = SampledPenalty(penalty=1e3, clip=0.5, history=8), OwnActorState()
    response = oracle.solve(x)
    for _ in range(3):
        found, state = estimator(oracle, x, response, oracle.evaluate(x, response), state)
    assert float(found.implicit.norm()) == pytest.approx(0.5 * float(found.direct.norm()), rel=1e-5)
    assert found.stats["norm_implicit_unclipped"] > float(found.implicit.norm())
    assert len(state.history.outcome) == 8


def test_the_charge_enters_what_the_solver_is_paid():
    """r' must be r_x less the weighted advantage, for both ways in which solvers ask for rewards, and the same box of x."""
    x, problem = point(3), simulated()
    seen = []

    class Spy(Planner):
        """Notes the reward that it is given."""

        def solve(self, problem, x, **options):
            """As a planner."""
            seen.append(problem.reward)
            return super().solve(problem, x, **options)

    critic = Known(x)
    oracle = ProblemOracle(problem, Spy(), torch.Generator().manual_seed(0))
    response = oracle.solve(x)
    critic.policy = response.policy.table
    estimator = SampledPenalty(penalty=4.0, critic=critic)
    _, state = estimator(oracle, x, response, oracle.evaluate(x, response), OwnActorState())
    estimator(oracle, x, response, oracle.evaluate(x, response), state)
    charged, given = seen[-1], problem.reward
    states, actions = torch.eye(5)[torch.arange(5).repeat(2)], torch.arange(2).repeat_interleave(5)
    lost = critic.fit(None, None, None, None)
    advantage = lost - (critic.policy * lost).sum(-1, keepdim=True)
    share = (1.0 - DISCOUNT) * STEPS / 4.0
    expected = table_of(x).mT.flatten() - share * advantage.mT.flatten().float()
    torch.testing.assert_close(charged.along(x, states, actions), expected)
    played = type("Batch", (), {"states": states, "actions": actions, "rewards": None, "terms": None})()
    torch.testing.assert_close(charged.of_transitions(x, played), expected)
    assert (charged.dimension, charged.dtype, charged.device) == (given.dimension, given.dtype, given.device)
    assert all(np.array_equal(*pair) for pair in zip(charged.bounds, given.bounds, strict=True))
    drawn = (model.initial(torch.Generator().manual_seed(1)) for model in (charged, given))
    assert torch.equal(*drawn)
    assert gradients(lambda leaf: charged.along(leaf, states, actions).sum(), x)[0].any()


def tiny(name="bilevel/PendulumPreference-v0"):
    """A preference task, reset."""
    env = gym.make(name, preset="tiny")
    env.reset(seed=0)
    return env


FEW = {"updates_per_step": 2, "warmup_updates": 1, "batch": 4}


@pytest.mark.parametrize("name", ["bilevel/PendulumPreference-v0", "bilevel/CartPolePreference-v0"])
def test_recipe_on_simulators(name):
    """Both kinds of actions, with a second actor of the environment's solver, which leaves the environment's own follower alone."""
    runs = []
    for recipe in ("pbrl", "drlhf"):
        env = tiny(name)
        rows: list[dict[str, float]] = []
        getattr(agents, recipe)(env, **FEW).learn(2, lambda _, metrics, rows=rows: rows.append(dict(metrics)))
        runs.append(rows)
    mine, theirs = runs
    assert mine[-1]["x_updates"] == 5
    assert mine[-1]["objective_own"] > 0.0
    assert mine[-1]["comparisons"] == theirs[-1]["comparisons"] + 4  # one look for each but the first
    assert mine[0]["env_steps"] == theirs[0]["env_steps"]
    # The first step's x differs by nothing that the own actor did: it had none yet.
    assert mine[0]["true_return"] == theirs[0]["true_return"]


def test_recipe_chooses_by_the_problem():
    """A table keeps its logits, gradient descent and one update a step; what only tables have is refused elsewhere."""
    assert isinstance(agents.pbrl(tiny()).estimator, SampledPenalty)
    for name in ("bilevel/RandomMDP-v0", "bilevel/TabularPreference-v0"):
        agent = agents.pbrl(gym.make(name))
        assert isinstance(agent.estimator, Penalty)
        assert (agent.updates_per_step, agent.warmup_updates, agent.optimizer.lr) == (1, 0, 8e-3)
        assert agent.estimator.penalty == 10.0
    with pytest.raises(UnsupportedProblem, match="'value'"):
        agents.pbrl(tiny(), kind="bellman")
    agent = agents.pbrl(tiny())
    assert (agent.updates_per_step, agent.warmup_updates) == (50, 200)
    assert (agent.estimator.penalty, agent.estimator.clip) == (1.0, 0.1)  # noise grows with λ, what it is about does not
    assert agents.pbrl(tiny(), penalty=3.0).estimator.penalty == agents.pbrl(gym.make(name), penalty=3.0).estimator.penalty == 3.0


def test_state_goes_through_a_checkpoint(tmp_path):
    """π's networks, replay and pairs are part of the agent's state: a run that is resumed trains on from them."""
    env = tiny()
    agent = agents.pbrl(env, **FEW)
    agent.learn(3)
    checkpoint.save(tmp_path / "state.pt", {"env": env.unwrapped.get_state(), "agent": agent.get_state()})
    other = tiny()
    resumed = agents.pbrl(other, **FEW)
    saved = checkpoint.load(tmp_path / "state.pt")
    other.unwrapped.set_state(saved["env"])
    resumed.set_state(saved["agent"])
    mine, theirs = (one._estimator_state[0] for one in (agent, resumed))
    assert torch.equal(mine.own.policy.parameters, theirs.own.policy.parameters)
    assert torch.equal(mine.history.outcome, theirs.history.outcome)
    assert mine.own.state.env_steps == theirs.own.state.env_steps > 0
    agent.learn(1)
    resumed.learn(1)
    # The follower's live episodes start anew on resume, π's do so with every solve.
    assert theirs.own.state.env_steps == 100
    assert resumed.x_updates == agent.x_updates


@pytest.mark.parametrize(
    "options",
    [{"penalty": 0.0}, {"penalty": float("inf")}, {"growth": -1.0}, {"batch": 0}, {"action_samples": 0}, {"history": 0}, {"clip": 0.0}],
)
def test_refusals(options):
    """Numbers that make no penalty are refused before the first step."""
    with pytest.raises(InvalidProblem, match=next(iter(options))):
        SampledPenalty(**options)


def test_unsupported_problems():
    """What has no actor, no fragments or a fixed reference is told so, with what fits instead."""
    estimator = SampledPenalty()
    assert "use Penalty" in estimator.supports(problems.preference(0))
    assert "needs an objective" in estimator.supports(problems.quadratic(0))
    assert "sensitivity=None" in estimator.supports(replace(simulated(), objective=replace(OBJECTIVE, reference=object())))
    assert estimator.supports(simulated()) is None
    for limit in ({"budget": 20}, {"half_rate": 2.0}):  # its own labels would come on top of them
        assert "StopOnBudget" in estimator.supports(replace(simulated(), objective=replace(OBJECTIVE, capacity=100, **limit)))
