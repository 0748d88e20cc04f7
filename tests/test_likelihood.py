"""How likely an action was under a policy, and the importance weights on simulators that are made of it."""

from __future__ import annotations

from math import log

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.distributions import AffineTransform, Independent, Normal, TanhTransform, TransformedDistribution

from bilevel_gym import agents
from bilevel_gym.envs import ProblemOracle
from bilevel_gym.errors import UnsupportedProblem
from bilevel_gym.hypergradients import GivenCritic, Importance, Momentum, ScoreFunction, ScoreState
from bilevel_gym.numerics import EDGE, EDGE_DRIVE
from bilevel_gym.solvers.architectures import MLP
from bilevel_gym.solvers.categorical import CategoricalPolicy
from bilevel_gym.solvers.networks import GaussianPolicy, gaussian, numel, perceptron
from bilevel_gym.testing import central_differences, compare, enumerated_critic
from bilevel_gym.types import KnownPolicy
from bilevel_gym.worlds import VectorWorld
from tests.discrete import ACTIONS, STATES, Planner, TablePolicy, point, simulated, tabular

SIZES = (3, 5, 4)
LOW, HIGH = torch.tensor([-2.0, 0.5]), torch.tensor([2.0, 3.5])


def actor(seed, *, scale=1.0, dtype=torch.float64, sizes=SIZES, low=LOW, high=HIGH):
    """A random Gaussian policy of two actions."""
    parameters = torch.randn(numel(sizes), generator=torch.Generator().manual_seed(seed), dtype=dtype) * scale
    return GaussianPolicy(parameters, sizes, low.to(dtype), high.to(dtype))


def seen(count, seed=0, dtype=torch.float64):
    """Observations."""
    return torch.randn(count, SIZES[0], generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_gaussian_against_torch() -> None:
    """A Jacobian that is lost, upside down or without the side of the box gives wrong weights between policies of two kinds."""
    policy, observations = actor(0), seen(200)
    actions = policy.sample(observations, torch.Generator().manual_seed(1))
    mean, log_std = gaussian(perceptron(policy._layers, observations))
    transforms = [TanhTransform(), AffineTransform((policy.low + policy.high) / 2, (policy.high - policy.low) / 2)]
    textbook = Independent(TransformedDistribution(Normal(mean, log_std.exp()), transforms), 1)
    inside = ((2 * actions - policy.low - policy.high) / (policy.high - policy.low)).abs().amax(-1) < 0.999
    assert int(inside.sum()) > 50
    torch.testing.assert_close(policy.log_prob(observations, actions)[inside], textbook.log_prob(actions)[inside], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [0.3, 1.5])
def test_densities_and_edges_add_up_to_one(scale) -> None:
    """What lies beyond the edge must be counted once: all of it, and nothing else; by a fine sum over one action."""
    sizes = (3, 5, 2)
    policy = actor(2, scale=scale, sizes=sizes, low=LOW[:1], high=HIGH[:1])
    half = 0.5 * float(HIGH[0] - LOW[0])
    drives = torch.linspace(-EDGE_DRIVE, EDGE_DRIVE, 200_001, dtype=torch.float64)
    inner = torch.tanh(drives).clamp(-1 + 1.0001 * EDGE, 1 - 1.0001 * EDGE)
    for observation in seen(4, seed=3):
        many = policy.log_prob(observation.expand(len(inner), -1), half * inner[:, None]).exp()
        edges = policy.log_prob(observation.expand(2, -1), torch.tensor([[-half], [half]], dtype=torch.float64)).exp()
        assert float(torch.trapezoid(many * half * (1 - inner.square()), drives) + edges.sum()) == pytest.approx(1.0, abs=1e-5)


def test_it_stays_finite_where_single_precision_does_not_see_the_drive() -> None:
    """Bang-bang control is what SAC learns: a drive of ±40 is an action of ±1, whose atanh is infinite."""
    policy, observations = actor(1, scale=8.0, dtype=torch.float32), seen(500, dtype=torch.float32)
    actions = policy.sample(observations, torch.Generator().manual_seed(0))
    at_edge = (actions == policy.low) | (actions == policy.high)
    assert float(at_edge.double().mean()) > 0.2
    other = GaussianPolicy(policy.parameters * 0.9, SIZES, policy.low, policy.high)
    for judged in (policy, other):
        assert bool(judged.log_prob(observations, actions).isfinite().all())
    far = policy.log_prob(observations, torch.where(actions > 1.0, policy.low, policy.high))
    assert bool((far < 0.0).all())
    assert not bool(far.isnan().any())


def test_policies_that_know_nothing_say_so() -> None:
    """The first follower is uniform, and the second estimate of the first momentum is at it."""
    world = VectorWorld("Pendulum-v1", 0.9, horizon=5)
    uniform, actions = world.uniform(), torch.tensor([[0.3], [2.0]])
    torch.testing.assert_close(uniform.log_prob(torch.zeros(2, 3), actions), torch.tensor([-log(4.0), log(EDGE / 2)]))
    choice = VectorWorld("CartPole-v1", 0.9, horizon=5).uniform()
    torch.testing.assert_close(choice.log_prob(torch.zeros(3, 4), torch.tensor([0, 1, 1])), torch.full((3,), -log(2.0)))
    for policy in (uniform, choice, actor(0), TablePolicy(torch.ones(1, 1))):
        assert isinstance(policy, KnownPolicy)


def near(policy, scale=0.05, seed=5):
    """A policy close by."""
    noise = torch.randn(policy.parameters.shape, generator=torch.Generator().manual_seed(seed), dtype=policy.parameters.dtype)
    return type(policy)(policy.parameters + scale * noise, *list(vars(policy).values())[1:4][: 3 if hasattr(policy, "low") else 1])


def followers():
    """Two policies of each kind with a world, the continuous one with many actions at the edge of the box."""
    pendulum = VectorWorld("Pendulum-v1", 0.9, horizon=4)
    drive = GaussianPolicy(
        0.8 * torch.randn(numel((3, 4, 2)), generator=torch.Generator().manual_seed(2)),
        (3, 4, 2),
        pendulum.action_low,
        pendulum.action_high,
    )
    drive.parameters[-1] = 1.2  # a wide law, so that both edges and the middle are met
    other = near(drive)
    other.parameters[-2] += 1.0
    network = MLP((STATES, 4, ACTIONS))
    choice = CategoricalPolicy(network.initial(1, torch.Generator().manual_seed(3), torch.device("cpu")) * 3.0, network)
    return {"box": (pendulum, drive, other), "choices": (simulated().world, choice, near(choice, 0.5))}


@pytest.mark.parametrize("kind", ["box", "choices"])
def test_weights_average_to_one_and_carry_means_over(kind) -> None:
    """Samples of π' with weights must have the means of π: of the number 1, and of what was done, over steps and over fragments."""
    world, played, wanted = followers()[kind]
    steps, count = (4, 3000) if kind == "box" else (3, 3000)
    rolled = [
        world.rollout(policy, trajectories=count, steps=steps, generator=torch.Generator().manual_seed(seed))
        for seed, policy in ((0, played), (1, wanted))
    ]
    mine = rolled[0]
    importance = Importance(wanted, played, float("inf"))
    weights = importance.of_steps(mine).double()
    origin = torch.arange(count).view(-1, 2)
    first = torch.zeros_like(origin)
    pairs = importance.of_tuples(mine, origin, first, first + 2).double()
    torch.testing.assert_close(pairs, weights[:, 1][origin].prod(-1), rtol=1e-4, atol=1e-6)
    acted = [run.actions.double().view(count, steps, -1)[..., 0] for run in rolled]
    assert float(weights.std()) > 0.05
    if kind == "box":
        assert float((mine.actions.abs() == 2.0).double().mean()) > 0.1
    for t in range(steps):
        assert within(weights[:, t], 1.0)
        assert within((weights[:, t] * acted[0][:, t]) - acted[1][:, t].mean(), 0.0, acted[1][:, t])
    assert within(pairs, 1.0)
    unweighted = acted[0].mean(0) - acted[1].mean(0)
    noise = (acted[0].var(0) / count + acted[1].var(0) / count).sqrt()
    assert float((unweighted / noise).abs().max()) > 4.5  # the two policies do differ


def within(values, truth, *others):
    """Whether a mean is within four standard errors."""
    variance = sum(column.var() / len(column) for column in (values, *others))
    return abs(float(values.mean()) - truth) < 4.0 * float(variance**0.5)


def test_weights_remove_the_misalignment_through_networks() -> None:
    """As on tables: at (x, π) the samples of another policy have the gradient for a mean with weights, and not without."""
    problem, exact = simulated(pairs=16), tabular()
    x, there = point(3), 3.0 * point(5)
    oracle = ProblemOracle(problem, Planner(), torch.Generator().manual_seed(0))
    response, elsewhere = oracle.solve(x), oracle.solve(there)
    known = IndicatorCritic(enumerated_critic(exact, x.double(), response.policy.table).float())
    inner = ScoreFunction("critic", critic=known)
    weigh = Importance(response.policy, elsewhere.policy, float("inf"))
    weighted, none = [], []
    for _ in range(80):
        _, state = inner(oracle, there, elsewhere, oracle.evaluate(there, elsewhere), ScoreState())
        none.append(inner.again(oracle, x, response, state).value.double().numpy())
        weighted.append(inner.again(oracle, x, response, state, weigh).value.double().numpy())
    truth = central_differences(exact, x.double())
    assert compare(truth, np.stack(weighted)).p_value > 1e-3
    assert compare(truth, np.stack(none)).p_value < 1e-2


class IndicatorCritic(GivenCritic):
    """A table that is read by indicator vectors."""

    def fit(self, problem, fragments, loss, generator):
        """The table."""
        return self.table

    def evaluate(self, fitted, states, actions):
        """[n]."""
        return fitted[states.argmax(-1), actions]


@pytest.mark.parametrize("name", ["Pendulum", "CartPole"])
def test_stoc_sobirl_on_simulators(name) -> None:
    """The recipe as the command line calls it, from the uniform follower on, with its weights between soft actor-critics' policies."""
    env = gym.make(f"bilevel/{name}Preference-v0", preset="tiny")
    env.reset(seed=0)
    agent = agents.stoc_sobirl(env, correction="importance", sensitivity="critic", window="frozen")
    agent.learn(3)
    assert agent.hypergradient.stats["momentum"] < 1.0
    assert bool(agent.hypergradient.value.isfinite().all())
    assert (agent.optimizer.lr, agent.optimizer.max_norm, agent.estimator.inner.clip) == (0.1, 1.0, 0.1)


def test_policies_without_a_likelihood_are_refused_by_name() -> None:
    """A foreign policy that only plays has no weights: silence would be a wrong gradient."""
    with pytest.raises(UnsupportedProblem, match=r"object has no log_prob.*correction='none'"):
        Importance(actor(0), object(), 10.0)
    deep = gym.make("bilevel/PendulumPreference-v0", preset="tiny").unwrapped.problem
    assert Momentum(ScoreFunction("critic", "frozen"), "importance").supports(deep) is None
