"""Combinations that would give a wrong number without a word are refused, with the reason."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_gym import BilevelEnv, BilevelProblem, agents
from bilevel_gym.agents import HypergradientAgent
from bilevel_gym.agents.gradient_descent import GradientDescent
from bilevel_gym.envs import BilevelVectorEnv
from bilevel_gym.errors import CheckpointError, InvalidAction, InvalidProblem, UnsupportedProblem
from bilevel_gym.hypergradients import (
    AdvantageWeighted,
    Exact,
    ExactRiccati,
    GivenCritic,
    Momentum,
    Penalty,
    RandomizedTruncation,
    RidgeCritic,
    SampledPenalty,
    ScoreFunction,
    SecondOrder,
    TableCritic,
)
from bilevel_gym.objectives import DemonstrationLikelihood, PreferenceObjective, QuadraticObjective, ReturnObjective
from bilevel_gym.regularizers import Shannon, Tsallis
from bilevel_gym.rewards import FunctionReward, LinearReward, QuadraticReward
from bilevel_gym.solvers import Riccati, SoftPolicyIteration, SoftValueIteration
from bilevel_gym.testing import check_hypergradient
from bilevel_gym.worlds import TabularWorld
from tests import problems


def test_a_negative_number_of_steps_is_refused():
    """A sign that got lost would otherwise end in a training of no steps, without a word."""
    agent = agents.exact(BilevelEnv(problems.quadratic(0), SoftPolicyIteration()))
    with pytest.raises(InvalidProblem, match="total_steps is -1"):
        agent.learn(-1)


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


def test_tables_of_a_world_fit_together():
    """Each mismatch of leading axes is refused with the shapes, instead of being broadcast into another problem."""
    rng = np.random.default_rng(0)
    transition, start = problems.rows(rng, 3, 4, 2, 4), problems.rows(rng, 3, 4)
    weights = [0.2, 0.3, 0.5]
    with pytest.raises(InvalidProblem, match=r"transition has the leading axes \(3,\) and start \(2,\)"):
        TabularWorld(transition, start[:2], 0.9)
    for shape, options in (((2, 4, 2), {}), ((4, 3), {}), ((3, 4), {}), ((5, 3, 4, 2), {}), ((2, 4, 2), {"context_weights": weights})):
        with pytest.raises(InvalidProblem, match=rf"true_reward has shape {re.escape(str(shape))}: it must be \[3, 4, 2\], or"):
            TabularWorld(transition, start, 0.9, true_reward=np.ones(shape), **options)
    with pytest.raises(InvalidProblem, match=r"true_reward has shape \(1, 4, 2\): it must be \[4, 2\]"):
        TabularWorld(transition[0], start[0], 0.9, true_reward=np.ones((1, 4, 2)))
    for shape in ((4, 2), (1, 4, 2), (3, 4, 2)):
        assert TabularWorld(transition, start[0], 0.9, true_reward=np.ones(shape)).start.shape == (3, 4)


def test_a_batch_of_rewards_fits_the_world():
    """Three worlds and two rewards are no batch; a single environment is no batch at all, wherever the batch hides."""
    rng = np.random.default_rng(0)
    transition, start = problems.rows(rng, 3, 4, 2, 4), problems.rows(rng, 3, 4)
    worlds, world = TabularWorld(transition, start, 0.9), TabularWorld(transition[0], start[0], 0.9)
    two, three = (LinearReward(rng.standard_normal((count, 4, 2, 5))) for count in (2, 3))

    def problem(world, reward, objective=None):
        return BilevelProblem(world, reward, Shannon(1.0), objective or QuadraticObjective())

    with pytest.raises(InvalidProblem, match=r"the reward has the leading axes \[2\], the world \[3\]"):
        problem(worlds, two)
    batch = problem(worlds, three)
    assert batch.batch == problem(world, three).batch == (3,)
    assert problem(world, LinearReward(rng.standard_normal((4, 2, 5)))).batch == ()
    assert problems.contexts(0).batch == ()
    for shape in ((5, 5), (4,), (2, 3, 4)):
        with pytest.raises(InvalidAction, match=re.escape(f"x has shape {shape}: it must be [3, 5]")):
            SoftPolicyIteration().solve(batch, torch.zeros(shape, dtype=torch.float64))
    assert SoftPolicyIteration().solve(batch, torch.zeros(2, 3, 5, dtype=torch.float64)).policy.shape == (2, 3, 4, 2)
    for many in (batch, problem(world, three)):
        with pytest.raises(InvalidProblem, match="a batch of problems"):
            BilevelEnv(many, SoftPolicyIteration())
    env = BilevelEnv(
        problem(world, LinearReward(rng.standard_normal((4, 2, 5))), ReturnObjective(np.ones((3, 4, 2)))), SoftPolicyIteration()
    )
    with pytest.raises(InvalidProblem, match=r"the objective has shape \(3,\) for x \(5,\)"):
        env.reset(seed=0)


def test_ends_that_are_never_reached():
    """A follower that starts where no end can be reached plays for ever: a mistake in the table, and on a map one of the marks."""
    transition = np.eye(3)[:, None].repeat(2, 1)
    transition[2] = 0.0
    ends = np.zeros((3, 2))
    ends[2] = 1.0
    with pytest.raises(InvalidProblem, match="in no state that is reached"):
        TabularWorld(transition, [0.5, 0.5, 0.0], 0.9, ends)
    assert TabularWorld(transition, [0.5, 0.0, 0.5], 0.9, ends).states == 3  # some episodes end
    with pytest.raises(InvalidProblem, match="in no state that is reached"):
        TabularWorld(transition[None], [[0.5, 0.0, 0.5], [1.0, 0.0, 0.0]], 0.9, ends[None], context_weights=[0.5, 0.5])
    transition[0, 1] = [0.0, 1.0, 0.0]
    transition[1, 0] = [0.0, 0.0, 1.0]
    assert TabularWorld(transition, [1.0, 0.0, 0.0], 0.9, ends).states == 3  # one action each leads on
    assert TabularWorld(np.eye(2)[:, None], [1.0, 0.0], 0.9).states == 2  # nothing ever ends


@pytest.mark.parametrize(
    "initial",
    [[7.0, 2.0], [[0.0] * 4] * 3, [[0.0], [0.0, 1.0]], "ones", [float("nan")] * 4, np.zeros((1, 1, 4)), {"w": 1}],
    ids=["short", "batch", "ragged", "text", "nan", "axes", "dictionary"],
)
def test_arrays_of_estimators(initial):
    """A w_0 or a ν of another shape, or none at all, is refused by name, and the environment stands where it stood."""
    env = gym.make("bilevel/RandomMDP-v0", states=4, actions=2, dimension=3)
    env.reset(seed=0)
    x = env.unwrapped.x.clone()
    with pytest.raises(InvalidProblem, match=r"initial has shape|cannot be read as an array of numbers"):
        agents.m_sobirl(env, initial=initial).learn(1)
    for estimator in (SecondOrder(distribution=initial), Penalty(distribution=initial)):
        with pytest.raises(InvalidProblem, match=r"distribution|cannot be read as an array of numbers"):
            HypergradientAgent(env, estimator, partial(GradientDescent, lr=0.1)).learn(1)
    assert torch.equal(env.unwrapped.x, x)


def test_a_w0_for_each_member():
    """[S] is shared by a batch, [N, S] is one for each member, and another N is refused."""
    envs = gym.make_vec("bilevel/RandomMDP-v0", num_envs=2, states=4, actions=2, dimension=3)
    for initial in (np.ones(4), np.ones((2, 4))):
        envs.reset(seed=0)
        assert agents.m_sobirl(envs, initial=initial).learn(1).x.shape == (2, 3)
    with pytest.raises(InvalidProblem, match=r"initial has shape \(3, 4\): w is \[2, 4\] here"):
        agents.m_sobirl(envs, initial=np.ones((3, 4))).learn(1)


def test_tables_of_critics_and_references():
    """A table of L or a reference policy for other states would be looked up in the wrong places, or out of it."""
    problem = problems.preference(0)
    estimator = ScoreFunction("critic", critic=GivenCritic(torch.zeros(2, 2)))
    with pytest.raises(InvalidProblem, match=r"table of L has shape \(2, 2\): it must be \[S, A\] = \[3, 2\]"):
        check_hypergradient(problem, problems.point(problem, 0), estimator)
    other = replace(problem, objective=replace(problem.objective, reference=[[0.5, 0.5]]))
    assert "reference has shape (1, 2): it must be [S, A] = [3, 2]" in Exact().supports(other)
    with pytest.raises(UnsupportedProblem, match="reference has shape"):
        BilevelEnv(other, SoftPolicyIteration()).reset(seed=0)
    elsewhere = replace(problems.returns(0, contexts=False), objective=ReturnObjective(np.ones((3, 2)), world=problem.world))
    assert "M̄ has [C, S, A] = [1, 3, 2]" in Exact().supports(elsewhere)
    for make in (lambda: TableCritic(0.0), lambda: RidgeCritic(0), lambda: RidgeCritic(penalties=())):
        with pytest.raises(InvalidProblem):
            make()


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"problem": gym.make("bilevel/RandomMDP-v0", states=3, dimension=2)}, InvalidProblem, "is no problem: give a BilevelProblem"),
        ({"estimator": Exact}, InvalidProblem, r"estimator is .*give an object, such as hypergradients\.Exact\(\)"),
        ({"estimates": 0}, InvalidProblem, "estimates is 0: ask for one at least"),
        ({"estimates": 1.5}, InvalidProblem, "estimates is 1.5: it must be a whole number"),
        ({"x": "a"}, InvalidAction, "x cannot be read as numbers"),
    ],
)
def test_a_check_of_nothing_says_so(words, error, message):
    """An environment for its problem, a class for an object, text for x: a check that people call first must answer in words."""
    problem = problems.quadratic(0)
    with pytest.raises(error, match=message):
        check_hypergradient(**{"problem": problem, "x": problems.point(problem, 0), "estimator": Exact(), **words})


def test_a_missing_argument_is_named_with_its_function():
    """What looks at the arguments of a function must not take its name out of Python's own message."""
    with pytest.raises(TypeError, match=r"check_hypergradient\(\) missing 1 required positional argument: 'estimator'"):
        check_hypergradient(problems.quadratic(0), np.zeros(2))


class PolicyAlone:
    """A solver that answers with a policy and nothing else."""

    def start(self, problem):  # type: ignore[no-untyped-def]
        """Where a solve begins."""
        return SoftPolicyIteration().start(problem)

    def solve(self, problem, x, warm=None, budget=None, generator=None):  # type: ignore[no-untyped-def]
        """The answer of another solver, without its values."""
        return replace(SoftPolicyIteration().solve(problem, x), value=None, q=None, factor=None)


@pytest.mark.parametrize("recipe", [agents.exact, agents.m_sobirl, agents.pbrl, agents.parl, partial(agents.pbrl, kind="bellman")])
def test_an_estimator_that_needs_values_says_so(recipe):
    """An own solver may give a policy alone; what reads V or Q must say so, and not fail at an attribute of None."""
    env = gym.make("bilevel/RandomMDP-v0", states=4, actions=2, solver=PolicyAlone())
    env.reset(seed=0)
    before = env.unwrapped.x.clone()
    with pytest.raises(UnsupportedProblem, match=r"fill Response\.(value|q), or choose agents\.zero_order"):
        recipe(env).act()
    assert torch.equal(env.unwrapped.x, before)
    agents.zero_order(env).learn(2)


@pytest.mark.parametrize(
    ("make", "name", "wrong"),
    [
        (ScoreFunction, "clip", "tight"),
        (ScoreFunction, "batch", 0.5),
        (ScoreFunction, "stale", 1),
        (SampledPenalty, "penalty", "1"),
        (SampledPenalty, "batch", 6.4),
        (partial(Momentum, ScoreFunction()), "clip", None),
        (Penalty, "policy_steps", 1.5),
    ],
)
def test_numbers_of_estimators(make, name, wrong):
    """Without it text on the command line would end in an error of Python's comparison, and half a batch in one of torch's, after a solve."""
    with pytest.raises(InvalidProblem, match=f"{name} is {wrong!r}: it must be"):
        make(**{name: wrong})
    with pytest.raises(InvalidProblem, match="clip be above 0"):
        ScoreFunction(clip=0)
