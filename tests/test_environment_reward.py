"""The world's own reward as r_x: read from transitions, by the follower and by what measures it."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
import torch
from torch import Tensor

from bilevel_gym import BilevelEnv, BilevelProblem, agents
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.hypergradients import ScoreFunction
from bilevel_gym.objectives import PreferenceObjective
from bilevel_gym.preferences import BradleyTerry
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import EnvironmentReward, MLPReward
from bilevel_gym.solvers import SAC, DiscreteSAC
from bilevel_gym.types import RewardModel, Trajectory, TransitionReward
from bilevel_gym.worlds import VectorWorld

OBJECTIVE = PreferenceObjective(
    length=4, pairs=6, trajectories=6, steps=8, cut="anywhere", capacity=20, held_out_pairs=8, teacher=BradleyTerry(inf)
)
SMALL = {"steps": 60, "learning_starts": 20, "batch_size": 16, "hidden": (8, 8), "capacity": 200}


class Pendulum(MLPReward):
    """Pendulum's reward from its own formula, −(θ² + .1 θ̇² + .001 u²), of which a quarter is taken."""

    def along(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """From cos θ, sin θ, θ̇ and u."""
        angle = torch.atan2(states[..., 1], states[..., 0])
        return -0.25 * (angle**2 + 0.1 * states[..., 2] ** 2 + 0.001 * actions[..., 0] ** 2)


def problem(reward: RewardModel | None = None) -> BilevelProblem:
    """Pendulum, by default with its own reward, a quarter of it."""
    world = VectorWorld("Pendulum-v1", 0.9, horizon=8)
    return BilevelProblem(world, EnvironmentReward(start=0.25) if reward is None else reward, Shannon(0.1), OBJECTIVE)


def test_is_the_true_reward_times_x() -> None:
    """Without it the ceiling could be that of another reward, or its derivative in x be wrong."""
    reward = EnvironmentReward(start=0.5, bound=4.0)
    model: RewardModel = reward
    assert isinstance(model, TransitionReward)
    x = reward.initial(torch.Generator())
    low, high = reward.bounds
    assert (x.tolist(), low.tolist(), high.tolist()) == ([0.5], [0.0], [4.0])
    true = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    played = Trajectory(None, true, true > 0, true)
    torch.testing.assert_close(reward.of_transitions(x, played), 0.5 * true)
    leaf = x.clone().requires_grad_()
    assert float(torch.autograd.grad(reward.of_transitions(leaf, played).sum(), leaf)[0]) == pytest.approx(float(true.sum()), rel=1e-5)
    population = torch.tensor([[1.0], [2.0], [3.0]])
    torch.testing.assert_close(reward.of_transitions(population, played), population * true)


def test_sac_learns_from_the_true_rewards_of_its_replay() -> None:
    """Without it the follower of the ceiling would learn from something else than what the same formula gives for (s, a)."""
    x, found = torch.tensor([0.25]), []
    for reward in (None, Pendulum(3, 1)):
        solved = SAC(**SMALL).solve(problem(reward), x, generator=torch.Generator().manual_seed(1))
        assert solved.steps > 30
        found.append(solved.state.networks.critic)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_discrete_sac_takes_it_too() -> None:
    """CartPole pays 1 a step, so twice the reward of x = 1 is the reward of x = 2: both solvers must read the batch."""
    world = VectorWorld("CartPole-v1", 0.9, horizon=30)
    seen = []

    class Spy(EnvironmentReward):
        """Notes what it was asked about."""

        def of_transitions(self, x, played):  # type: ignore[no-untyped-def]
            """x · r."""
            seen.append(super().of_transitions(x, played))
            return seen[-1]

    task = BilevelProblem(world, Spy(), Shannon(0.1), OBJECTIVE)
    DiscreteSAC(**SMALL).solve(task, torch.tensor([2.0]), generator=torch.Generator().manual_seed(0))
    assert len(seen) > 30
    assert all(bool((rewards == 2.0).all()) for rewards in seen)


def test_the_outer_environment_measures_with_it() -> None:
    """At the true reward a rational teacher's pairs are all ranked right, and the learned return is x times the true one."""
    env = BilevelEnv(problem(), SAC(**SMALL), solve_on_reset=False)
    env.reset(seed=0)
    info = env.step(env.x.numpy())[-1]
    assert (info["accuracy_fresh"], info["accuracy_held_out"]) == (1.0, 1.0)
    assert info["learned_return"] == pytest.approx(0.25 * info["true_return"], rel=1e-5)
    fresh = env.evaluation.fresh
    cut = fresh.trajectories.rewards[fresh.origin[..., None], fresh.offset[..., None] + torch.arange(4)]
    torch.testing.assert_close(fresh.fragments.rewards, cut)
    queue = env.evaluation.memory
    assert queue.content.rewards.shape == (12, 2, 4)
    torch.testing.assert_close(queue.content.rewards[6:], cut)
    other = BilevelEnv(problem(), SAC(**SMALL), solve_on_reset=False)
    other.set_state(env.get_state())
    assert torch.equal(other.evaluation.memory.content.rewards, queue.content.rewards)


def test_its_loss_and_gradient_are_those_of_the_scale() -> None:
    """l(x) = −log σ(±x ΔR): reward learning about the one number that is left, the teacher's rationality."""
    task = replace(problem(), objective=replace(OBJECTIVE, teacher=BradleyTerry(0.5)))
    env = BilevelEnv(task, SAC(**SMALL), solve_on_reset=False)
    env.reset(seed=1)
    pairs, x = env.evaluation.memory.content, env.x.double()
    margin = (pairs.rewards.sum(-1)[:, 0] - pairs.rewards.sum(-1)[:, 1]).double()
    expected = -torch.nn.functional.logsigmoid(x * margin * (2 * pairs.outcome - 1))
    torch.testing.assert_close(task.objective.loss(task, x, pairs).double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.autograd.gradcheck(lambda leaf: task.objective.loss(task, leaf, pairs), x.requires_grad_(), atol=1e-3)
    agent = agents.drlhf(env, updates_per_step=2, warmup_updates=0, batch=None)
    assert bool(torch.as_tensor(agent.act()).isfinite().all())


def test_sensitivities_that_need_other_actions_are_refused() -> None:
    """E_π r of actions that nobody took is not known: a guess would be a wrong gradient without a word."""
    task = problem()
    assert "nobody took" in (ScoreFunction("one_step", "frozen").supports(task) or "")
    assert ScoreFunction("critic", "frozen").supports(task) is None
    env = BilevelEnv(task, SAC(**SMALL), solve_on_reset=False)
    env.reset(seed=0)
    estimator = ScoreFunction("critic", "frozen")
    estimate, _ = estimator(env.oracle, env.x, env.response, env.evaluation, estimator.init(env.oracle))
    assert bool(estimate.value.isfinite().all())
    with pytest.raises(UnsupportedProblem, match="read from steps"):
        task.reward.along(env.x, torch.zeros(3), torch.zeros(1))


def test_refuses_what_cannot_be() -> None:
    """A box that x starts outside of, and a world that says nothing about rewards."""
    for options in ({"bound": 0.0}, {"bound": inf}, {"start": -1.0}, {"start": 11.0}):
        with pytest.raises(InvalidProblem, match="bound"):
            EnvironmentReward(**options)
    with pytest.raises(UnsupportedProblem, match="no reward of its own"):
        EnvironmentReward().of_transitions(torch.ones(1), Trajectory(None, torch.zeros(2, 3), torch.ones(2, 3) > 0))
