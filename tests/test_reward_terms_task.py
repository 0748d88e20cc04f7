"""``bilevel/RewardTerms-v0``: what x weighs, what the designer sees, and which sensitivities apply."""

from __future__ import annotations

import gymnasium as gym
import pytest
import torch

from bilevel_gym import agents
from bilevel_gym.envs import RunningLightly, reward_terms
from bilevel_gym.errors import InvalidProblem, UnknownName
from bilevel_gym.hypergradients import ScoreFunction
from bilevel_gym.rewards import RewardTerms
from bilevel_gym.types import Trajectory

pytest.importorskip("mujoco")
PARTS = {
    "HalfCheetah-v5": ("reward_forward", "reward_ctrl"),
    "Hopper-v5": ("reward_forward", "reward_ctrl", "reward_survive"),
    "Ant-v5": ("reward_forward", "reward_ctrl", "reward_contact", "reward_survive"),
}


def tiny(**options):
    """The id at its smallest."""
    env = gym.make("bilevel/RewardTerms-v0", preset="tiny", **options)
    env.reset(seed=0)
    return env


@pytest.mark.parametrize("env_id", PARTS)
def test_x_has_a_logit_for_each_part(env_id) -> None:
    """A part that is missed would be out of x's reach; the velocity is the designer's, and no part of any mixture."""
    env = reward_terms(env_id=env_id, preset="tiny")
    reward = env.problem.reward
    assert isinstance(reward, RewardTerms)
    assert sorted(reward.names) == sorted(PARTS[env_id])
    assert env.action_space.shape == (len(PARTS[env_id]),)
    assert env.problem.world.terms == (*reward.names, "x_velocity")
    assert reward.scale == len(reward.names)


def test_arguments_reach_the_parts() -> None:
    """Any of them could be read and not used, and the task still run: another episode, another τ, another price of control."""
    options = {"horizon": 33, "discount": 0.8, "temperature": 0.7, "effort": 0.2, "scale": 5.0}
    env = reward_terms(env_id="Hopper-v5", preset="tiny", env_kwargs={"ctrl_cost_weight": 0.5}, **options)
    problem = env.problem
    assert (problem.world.horizon, problem.world.discount) == (33, 0.8)
    assert problem.regularizer.temperature == 0.7
    assert problem.reward.scale == 5.0
    assert problem.objective.function == RunningLightly(3, 0.8, 0.2)
    played = problem.world.rollout(problem.world.uniform(), trajectories=1, steps=2, generator=torch.Generator().manual_seed(0))
    cost = played.terms[..., problem.world.terms.index("reward_ctrl")]
    torch.testing.assert_close(cost, -0.5 * played.actions.square().sum(-1))


def test_the_designer_counts_speed_and_effort() -> None:
    """γ, the price, a sign, or steps past an end in the sum: any of them is another objective."""
    terms = torch.tensor([[[9.0, 2.0], [9.0, 3.0], [9.0, 100.0]], [[9.0, -1.0], [9.0, 0.0], [9.0, 4.0]]])
    actions = torch.tensor([[[1.0, 2.0], [0.0, 1.0], [5.0, 5.0]], [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]])
    alive = torch.tensor([[True, True, False], [True, True, True]])
    found = RunningLightly(1, 0.5, 0.1)(Trajectory(None, actions, alive, terms=terms))
    torch.testing.assert_close(found, torch.tensor([2.0 - 0.5 + 0.5 * (3.0 - 0.1), -1.0 + 0.5 * -0.1 + 0.25 * (4.0 - 0.4)]))


def test_the_objective_is_what_is_played() -> None:
    """f must be minus that measure of this step's trajectories, in the units of the simulator."""
    env = tiny(effort=0.3, discount=0.9).unwrapped
    played = env.evaluation.fresh.trajectories
    body, reported = played.states[:, 1:, 8], played.terms[:, :-1, -1]  # where the next step begins, and over the whole of this one
    assert float(torch.corrcoef(torch.stack([body.flatten(), reported.flatten()]))[0, 1]) > 0.5
    time = 0.9 ** torch.arange(50)
    expected = (time * (played.terms[..., -1] - 0.3 * played.actions.square().sum(-1))).sum(-1).mean()
    assert float(env.evaluation.value) == pytest.approx(-float(expected), rel=1e-5)


def test_equal_weights_are_the_tasks_own_reward() -> None:
    """x = 0 is the plain sum, so that a leader starts from what the task itself asks for."""
    env = tiny()
    info = env.unwrapped.reset(seed=0, options={"x": [0.0, 0.0]})[1]
    assert info["learned_return"] == pytest.approx(info["true_return"], rel=1e-3, abs=1e-3)


def test_only_critic_and_rollout_apply() -> None:
    """r(s, a, s') of an action that nobody took is not known: one_step and exact must say so, the others give a gradient."""
    env = tiny().unwrapped
    assert "nobody took" in (ScoreFunction("one_step").supports(env.problem) or "")
    assert "transition probabilities" in (ScoreFunction("exact").supports(env.problem) or "")
    for sensitivity in ("critic", "rollout"):
        estimator = ScoreFunction(sensitivity)
        assert estimator.supports(env.problem) is None
        state = estimator.init(env.oracle)
        for _ in range(2):
            look = env.oracle.evaluate(env.x, env.response)
            found, state = estimator(env.oracle, env.x, env.response, look, state)
        assert not bool(found.direct.any())
        assert float(found.implicit.norm()) > 0.0
        # softmax does not see a shift of all logits
        assert abs(float(found.value.sum())) < 1e-3 * float(found.value.abs().sum())


@pytest.mark.parametrize("agent", ["sobirl", "pbrl"])
def test_agents_move_x(agent) -> None:
    """The named agents must run on it as they are called from the command line, with the environment's own metrics."""
    env = tiny()
    getattr(agents, agent)(env, updates_per_step=2, warmup_updates=0, batch=4).learn(3)
    assert bool((env.unwrapped.x != 0).all())


def test_refusals() -> None:
    """A task without a forward velocity, a price below zero, a preset that is not there, and parts that nobody reports."""
    for name in ("Reacher-v5", "CartPole-v1"):
        with pytest.raises(InvalidProblem, match="x_velocity"):
            reward_terms(env_id=name, preset="tiny")
    with pytest.raises(InvalidProblem, match="effort is -1"):
        reward_terms(effort=-1.0)
    with pytest.raises(UnknownName, match="preset"):
        reward_terms(preset="large")
    with pytest.raises(InvalidProblem, match="not among what the world reports"):
        RewardTerms(["a", "b"], reported=["b", "c"])


def test_some_of_what_is_reported_in_any_order() -> None:
    """The columns must be found by name: a shifted one would be another reward, of the right shape."""
    reward, terms = RewardTerms(["c", "a"], reported=["a", "b", "c"]), torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))
    played = Trajectory(None, terms, terms[..., 0] > 0, terms=terms)
    x = torch.tensor([0.3, -0.4])
    shares = 2.0 * torch.softmax(x, -1)
    torch.testing.assert_close(reward.of_transitions(x, played), shares[0] * terms[..., 2] + shares[1] * terms[..., 0])
