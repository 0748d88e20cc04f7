"""Combinations that would give a wrong number without a word are refused, with the reason."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym import BilevelEnv, BilevelProblem
from bilevel_gym.agents.gradient_descent import GradientDescent
from bilevel_gym.envs import BilevelVectorEnv
from bilevel_gym.errors import CheckpointError, InvalidProblem, UnsupportedProblem
from bilevel_gym.hypergradients import AdvantageWeighted, Exact, ExactRiccati, Momentum, RandomizedTruncation, ScoreFunction
from bilevel_gym.objectives import DemonstrationLikelihood, PreferenceObjective, QuadraticObjective, ReturnObjective
from bilevel_gym.regularizers import Tsallis
from bilevel_gym.rewards import FunctionReward, LinearReward, QuadraticReward
from bilevel_gym.solvers import Riccati, SoftPolicyIteration, SoftValueIteration
from tests import problems


def test_momentum_needs_the_followers_own_fragments():
    """Importance weights on fragments of a reference policy would be ratios of probabilities that nobody drew with."""
    problem = problems.preference(0)
    reference = replace(problem.objective, reference=torch.full((3, 2), 0.5, dtype=torch.float64))
    others = BilevelProblem(problem.world, problem.reward, problem.regularizer, reference)
    assert "not the follower's own" in Momentum(ScoreFunction(None), correction="importance").supports(others)
    assert Momentum(ScoreFunction(None)).supports(others) is None
    assert "asked again" in Momentum(Exact()).supports(problems.quadratic(0))


def test_randomized_truncation_refuses_estimators_that_learn():
    """An inner critic would never be fitted, and the implicit part be zero."""
    problem = problems.preference(0)
    assert "from one call to the next" in RandomizedTruncation(ScoreFunction("critic"), 2).supports(problem)
    assert "from one call to the next" in RandomizedTruncation(Momentum(ScoreFunction("exact")), 2).supports(problem)
    assert RandomizedTruncation(ScoreFunction("exact"), 2).supports(problem) is None


def test_stacks_of_unlike_parts():
    """A batch never takes the first member's number for all of them."""
    occupancy = np.ones((2, 2))
    with pytest.raises(UnsupportedProblem, match="one ridge"):
        DemonstrationLikelihood.stack([DemonstrationLikelihood(occupancy), DemonstrationLikelihood(occupancy, ridge=5.0)])
    features = np.ones((2, 2, 3))
    with pytest.raises(UnsupportedProblem, match="an offset, or none"):
        LinearReward.stack([LinearReward(features, np.ones((2, 2))), LinearReward(features)])
    with pytest.raises(UnsupportedProblem, match="one box"):
        LinearReward.stack([LinearReward(features, bound=1.0), LinearReward(features)])
    with pytest.raises(UnsupportedProblem, match="one box"):
        QuadraticReward.stack([QuadraticReward(np.ones((2, 2)), np.eye(3), bound=bound) for bound in (1.0, 2.0)])


def test_riccati_is_the_shannon_entropys():
    """A Gaussian follower under another regularizer would be the answer to another problem, with a certificate."""
    problem = gym.make("bilevel/SoftLQR-v0").unwrapped.problem
    other = replace(problem, regularizer=Tsallis(0.5))
    assert "Shannon" in ExactRiccati().supports(other)
    with pytest.raises(UnsupportedProblem, match="Shannon"):
        Riccati().start(other)


def test_states_of_other_sizes():
    """A batch does not take the state of another table with the same number of parameters."""
    state = gym.make_vec("bilevel/RandomMDP-v0", num_envs=2).unwrapped
    state.reset(seed=0)
    other = gym.make_vec("bilevel/RandomMDP-v0", num_envs=2, states=6, actions=3).unwrapped
    with pytest.raises(CheckpointError, match="of sizes"):
        other.set_state(state.get_state())


@pytest.mark.parametrize("batch", [False, True], ids=["single", "batch"])
def test_a_reward_that_is_not_finite(batch):
    """A fixed number of sweeps looks at no residual: NaN is refused where it would be seen, and nothing has changed."""
    base = problems.linear(0)
    reward = FunctionReward(lambda x: torch.log(x[..., :1, None]) * torch.ones(7, 3, dtype=x.dtype), [-1.0], [2.0], start=(1.0, 1.5))
    problem = BilevelProblem(base.world, reward, base.regularizer, QuadraticObjective())
    env = BilevelEnv(problem, SoftValueIteration(sweeps=3))
    env = BilevelVectorEnv(env, 2) if batch else env
    env.reset(seed=0)
    x, response = env.x, env.response
    with pytest.raises(InvalidProblem, match="not finite"):
        env.step(np.full(env.action_space.shape, -0.5))
    assert env.x is x
    assert env.response is response


def test_tables_of_other_shapes():
    """A table of one cell would be broadcast over all states and actions."""
    problem = problems.quadratic(0)
    x, policy = problems.point(problem, 0), torch.full((problem.world.states, problem.world.actions), 0.5, dtype=torch.float64)
    for objective in (ReturnObjective(np.ones((1, 1))), DemonstrationLikelihood(np.ones((1, 1)))):
        with pytest.raises(InvalidProblem, match="must end with"):
            objective.value(problem, x, policy)
    with pytest.raises(InvalidProblem, match="each with sum one"):
        PreferenceObjective(length=1, pairs=2, reference=torch.full((3, 2), 2.0))
    with pytest.raises(InvalidProblem, match="cut='start'"):
        PreferenceObjective(length=1, pairs=2, exact=True, cut="anywhere")


def test_seeds_of_numpy():
    """A seed out of a NumPy array is a seed."""
    envs = gym.make_vec("bilevel/RandomMDP-v0", num_envs=2)
    first, _ = envs.reset(seed=np.int64(3))
    again, _ = envs.reset(seed=3)
    np.testing.assert_array_equal(first["x"], again["x"])


def test_what_is_not_there_yet():
    """A picture before the first reset, a name that stands for no solver, a NaN under sparsemax: each says what to do."""
    env = gym.make("bilevel/RandomMDP-v0", render_mode="rgb_array").unwrapped
    envs = gym.make_vec("bilevel/RandomMDP-v0", num_envs=2, render_mode="rgb_array").unwrapped
    for early in (env, envs):
        with pytest.raises(gym.error.ResetNeeded):
            early.render()
    with pytest.raises(InvalidProblem, match="no name stands for one here"):
        gym.make("bilevel/SoftLQR-v0", solver="riccati")
    base = problems.under_tsallis(problems.linear(0))
    nothing = LinearReward(torch.zeros(7, 3, 1))
    problem = BilevelProblem(base.world, nothing, base.regularizer, QuadraticObjective())
    with pytest.raises(InvalidProblem):
        SoftPolicyIteration().solve(problem, torch.full((1,), float("nan"), dtype=torch.float64))
    with pytest.raises(InvalidProblem, match="it is a seed"):
        gym.make("bilevel/TabularPreference-v0", instance=-1)


def test_a_rate_comes_back_whole():
    """A restored optimizer has the schedule that was saved, not half of it and half of its own."""
    x = torch.zeros(2, dtype=torch.float64)
    first, second = GradientDescent([x], lr=1.0, decay=0.5, max_norm=2.0), GradientDescent([x], lr=0.1)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()


def test_hpgd_needs_a_table():
    """Sampled advantages ask for tables like exact ones, and say so where there are none."""
    problem = gym.make("bilevel/PendulumPreference-v0", preset="tiny").unwrapped.problem
    other = replace(problem, objective=ReturnObjective(np.ones((2, 2))))
    for variant in ("oracle", "sampled", "model_free"):
        assert "transition probabilities" in AdvantageWeighted(variant).supports(other)
