"""Random problems with a known answer, which the table tests run over."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from bilevel_gym import BilevelEnv, BilevelProblem, ConvexProblem
from bilevel_gym.objectives import ExplicitObjective, PreferenceObjective, QuadraticObjective, ReturnObjective
from bilevel_gym.regularizers import KullbackLeibler, Shannon, Tsallis
from bilevel_gym.rewards import Box, LinearReward, QuadraticReward
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.types import Fragments, Samples, Trajectory
from bilevel_gym.worlds import SIDEWAYS, ControlledWorld, GridWorld, TabularWorld


class Oblique(ExplicitObjective):
    """An f whose gradients depend on both x and π, and mix them."""

    def value(self, problem, x, policy):
        """sin of the policy's entries weighted by position, times a function of x."""
        weights = torch.linspace(0.3, 1.7, policy.shape[-1] * policy.shape[-2], dtype=policy.dtype).view(policy.shape[-2:])
        return (torch.sin(3 * policy) * weights).sum((-2, -1)) * (1 + 0.1 * x.sum(-1)) + 0.05 * (x**3).sum(-1)


class ObliqueMean(Oblique):
    """The same, averaged over the followers."""

    def value(self, problem, x, policy):
        """The mean over contexts of an oblique function of each follower's policy and of x."""
        return problem.over_contexts(super().value(problem, x.unsqueeze(-2), policy))


def rows(rng, *shape):
    """Random distributions along the last axis."""
    return rng.dirichlet(np.ones(shape[-1]), shape[:-1])


def quadratic(seed, *, objective=None, discount=None, temperature=None):
    """A random MDP of random size (S ≤ 12, γ ≤ .95, τ ≥ .1) with a quadratic reward."""
    rng = np.random.default_rng(seed)
    states, actions, dimension = (int(n) for n in (rng.integers(2, 13), rng.integers(2, 5), rng.integers(1, 8)))
    discount = rng.uniform(0, 0.95) if discount is None else discount
    temperature = 0.1 + rng.exponential(0.5) if temperature is None else temperature
    world = TabularWorld(rows(rng, states, actions, states), rows(rng, states), discount)
    reward = QuadraticReward(rng.standard_normal((states, actions)), rng.standard_normal((dimension, dimension)) / dimension)
    return BilevelProblem(world, reward, Shannon(temperature), objective or QuadraticObjective())


def linear(seed, *, ends=True):
    """A random MDP that may end, with linear features and an oblique objective."""
    rng = np.random.default_rng(seed)
    states, actions, dimension = 7, 3, 5
    stop = rng.uniform(0, 0.4, (states, actions)) * ends
    world = TabularWorld(rows(rng, states, actions, states) * (1 - stop)[..., None], rows(rng, states), 0.9, stop)
    return BilevelProblem(world, LinearReward(rng.standard_normal((states, actions, dimension))), Shannon(0.4), Oblique())


def controlled(seed):
    """x moves both the reward and the transition probabilities, and may end the episode."""
    rng = np.random.default_rng(seed)
    states, actions, dimension = 5, 3, 4
    logits = torch.as_tensor(rng.standard_normal((states, actions, states + 1, dimension)))
    world = ControlledWorld(
        lambda x: torch.softmax((logits * x[..., None, None, None, :]).sum(-1), -1)[..., :-1], np.zeros(dimension), rows(rng, states), 0.9
    )
    return BilevelProblem(world, LinearReward(rng.standard_normal((states, actions, dimension))), Shannon(0.5), Oblique())


def wide_preference():
    """A preference problem of sixty cells on six features: few pairs do not say what l is in each cell."""
    rng = np.random.default_rng(2)
    states, actions = 12, 5
    transition = rng.dirichlet(np.full(states, 0.2), (states, actions))
    reward = LinearReward(rng.standard_normal((states, actions, 6)))
    true = 2.0 * rng.standard_normal((states, actions))
    world = TabularWorld(transition, np.full(states, 1.0 / states), 0.8, true_reward=true)
    return BilevelProblem(world, reward, Shannon(0.5), PreferenceObjective(length=2, pairs=64, steps=25))


def preference(seed, *, ends=False, length=2, pairs=64, states=3, actions=2, discount=0.6, temperature=0.5, tail=18):
    """A small preference problem over the whole reward table."""
    rng = np.random.default_rng(seed)
    stop = rng.uniform(0, 0.3, (states, actions)) * ends
    world = TabularWorld(
        rows(rng, states, actions, states) * (1 - stop)[..., None],
        rows(rng, states),
        discount,
        stop,
        true_reward=rng.standard_normal((states, actions)),
    )
    table = LinearReward(np.eye(states * actions).reshape(states, actions, -1))
    return BilevelProblem(world, table, Shannon(temperature), PreferenceObjective(length=length, pairs=pairs, steps=length + tail))


def preference_variant(seed, **changes):
    """The same with other options of its objective, such as ``cut="anywhere"``."""
    problem = preference(seed)
    return replace(problem, objective=replace(problem.objective, **changes))


def preference_in(world, *, length=2):
    """Preferences over the reward table of another world."""
    table = LinearReward(np.eye(world.states * world.actions).reshape(world.states, world.actions, -1))
    return BilevelProblem(world, table, Shannon(0.5), PreferenceObjective(length=length, pairs=16))


def preference_controlled(seed, *, states=3, actions=2):
    """Preferences of a teacher about fragments of a world whose P moves with x, as the reward does."""
    rng = np.random.default_rng(seed)
    logits = torch.as_tensor(rng.standard_normal((states, actions, states + 1, states * actions)))
    true = rng.standard_normal((states, actions))
    return preference_in(
        ControlledWorld(
            lambda x: torch.softmax((logits * x[..., None, None, None, :]).sum(-1), -1)[..., :-1],
            np.zeros(states * actions),
            rows(rng, states),
            0.6,
            true_reward=true,
        )
    )


def chain(*, length=3, pairs=64):
    """Fifteen states in a row, left or right: what is done here pays far away, so a one-step sensitivity points elsewhere."""
    states, actions = 15, 2
    transition = np.zeros((states, actions, states))
    for s in range(states):
        transition[s, 0, max(s - 1, 0)] += 0.9
        transition[s, 1, min(s + 1, states - 1)] += 0.9
        transition[s, :, s] += 0.1
    true = np.zeros((states, actions))
    true[-1] = 1.0
    true[0] = 0.3
    start = np.zeros(states)
    start[6:9] = 1 / 3
    world = TabularWorld(transition, start, 0.9, true_reward=true * 3)
    features = np.zeros((states, actions, states))
    features[np.arange(states), :, np.arange(states)] = 1.0
    return BilevelProblem(world, LinearReward(features), Shannon(0.5), PreferenceObjective(length=length, pairs=pairs, steps=length + 60))


def batched_env():
    """What cannot be: one environment around a batch of tables."""
    rng = np.random.default_rng(0)
    world = TabularWorld(rows(rng, 3, 4, 2, 4), rows(rng, 3, 4), 0.9)
    problem = BilevelProblem(world, LinearReward(rng.standard_normal((4, 2, 3))), Shannon(1.0), QuadraticObjective())
    return BilevelEnv(problem, SoftPolicyIteration())


def point(problem, seed, scale=0.7):
    """A random x."""
    return scale * torch.as_tensor(np.random.default_rng(1000 + seed).standard_normal(problem.dimension))


def contexts(seed, *, followers=3, shared=False, objective=None):
    """One leader and several followers, each with dynamics (unless ``shared``), a start and rewards of its own."""
    rng = np.random.default_rng(seed)
    states, actions, dimension = 5, 3, 4
    transition = rows(rng, *(() if shared else (followers,)), states, actions, states)
    world = TabularWorld(
        transition[None] if shared else transition, rows(rng, followers, states), 0.8, context_weights=rows(rng, followers)
    )
    features = rng.standard_normal((followers, states, actions, dimension))
    return BilevelProblem(world, LinearReward(features), Shannon(0.4), objective or ObliqueMean())


def controlled_contexts(seed, *, followers=2):
    """Several followers whose P moves with x."""
    rng = np.random.default_rng(seed)
    states, actions, dimension = 4, 2, 3
    logits = torch.as_tensor(rng.standard_normal((followers, states, actions, states + 1, dimension)))
    world = ControlledWorld(
        lambda x: torch.softmax((logits * x[..., None, None, None, :]).sum(-1), -1)[..., :-1],
        np.zeros(dimension),
        rows(rng, followers, states),
        0.9,
        context_weights=rows(rng, followers),
    )
    return BilevelProblem(world, LinearReward(rng.standard_normal((states, actions, dimension))), Shannon(0.5), ObliqueMean())


def returns(seed, *, contexts=True, horizon=7, discount=None, elsewhere=False, entropy=None, controlled=False):
    """A discounted cost that depends on x, over episodes that may end; ``elsewhere`` it is counted in another world."""
    rng = np.random.default_rng(seed)
    (states, actions, dimension), followers = (4, 2, 3) if controlled else (5, 3, 4), 2
    axes, weights = ((followers,), rows(rng, followers)) if contexts else ((), None)

    def world(gamma):
        stop = rng.uniform(0, 0.3, (*axes, states, actions))
        transition = rows(rng, *axes, states, actions, states) * (1 - stop)[..., None]
        return TabularWorld(transition, rows(rng, *axes, states), gamma, stop, context_weights=weights)

    coefficients = torch.as_tensor(rng.standard_normal((*axes, states, actions, dimension)))
    objective = ReturnObjective(
        lambda x: torch.sin(coefficients @ x[..., None, :, None]).squeeze(-1),
        discount=discount,
        horizon=horizon,
        world=world(0.9) if elsewhere else None,
        regularizer=None if entropy is None else Shannon(entropy),
    )
    own = controlled_contexts(seed, followers=followers).world if controlled else world(0.8)
    return BilevelProblem(own, LinearReward(rng.standard_normal((*axes, states, actions, dimension))), Shannon(0.4), objective)


class Curved:
    """g(x, y) = logsumexp(Ky + Wx) + ½ Σ (1 + e^{−(Vx)_j}) y_j²: strongly convex in y, and no quadratic."""

    def __init__(self, rng, size, dimension):
        self.size = size
        self.k, self.w, self.v = (torch.as_tensor(rng.standard_normal(shape)) for shape in ((6, size), (6, dimension), (size, dimension)))

    def value(self, x, y):
        """One number for each x and y."""
        penalty = 1 + torch.exp(-0.5 * x @ self.v.mT)
        return torch.logsumexp(y @ self.k.mT + x @ self.w.mT, -1) + 0.5 * (penalty * y**2).sum(-1)

    def curvature(self, x):
        """The Hessian of logsumexp is below ½I."""
        penalty = 1 + torch.exp(-0.5 * x @ self.v.mT)
        return penalty.amin(-1), penalty.amax(-1) + 0.5 * torch.linalg.matrix_norm(self.k, 2) ** 2


class Tilted(ExplicitObjective):
    """An f(x, y) with mixed derivatives of every kind."""

    def value(self, problem, x, policy):
        """sin of y, weighted, times a function of x."""
        weights = torch.linspace(0.3, 1.7, policy.shape[-1], dtype=policy.dtype)
        return (torch.sin(2 * policy) * weights).sum(-1) * (1 + 0.2 * x.sum(-1)) + 0.1 * (x**3).sum(-1)


def convex(seed, *, size=5, dimension=3):
    """A strongly convex lower level without a closed form, and an upper objective that depends on x directly too."""
    return ConvexProblem(Curved(np.random.default_rng(seed), size, dimension), Tilted(), Box(dimension, 5.0))


def under_kl(problem, seed=0, *, forbidden=True):
    """The same problem under KL to a random reference policy, which never plays the last action in every second state."""
    reference = rows(np.random.default_rng(seed), *problem.world.start.shape, problem.world.actions)
    if forbidden:
        reference[..., ::2, -1] = 0.0
    return problem.under(KullbackLeibler(problem.regularizer.temperature, reference / reference.sum(-1, keepdims=True)))


def under_tsallis(problem, seed=0, *, hotter=1.0):
    """The same problem under the Tsallis entropy, whose policies are sparse; ``hotter`` ones mix more actions."""
    return problem.under(Tsallis(hotter * problem.regularizer.temperature))


UNDER = {"shannon": lambda problem, seed=0: problem, "kl": under_kl, "tsallis": under_tsallis}
"""Every regularizer, as a function that puts a problem under it."""


def single_steps(states, actions):
    """Tuples of one fragment of one step each."""
    alive, first = torch.ones(len(states), 1, dtype=torch.bool), torch.zeros(len(states), 1, dtype=torch.long)
    pieces = Fragments(states[:, None, None], actions[:, None, None], alive[:, None], first[:, 0].double())
    return Samples(Trajectory(states[:, None], actions[:, None], alive), torch.arange(len(states))[:, None], first, pieces)


def corridor():
    """Two followers who run to opposite ends of a corridor: what an action is worth lies several steps ahead, and x pays for cells."""
    world = GridWorld(["1..S..2"], 0.8, slip=0.2, goals=("1", "2"), context_weights=[0.3, 0.7], directions=SIDEWAYS)
    states = world.states
    pay = np.broadcast_to(np.eye(states)[:, None], (states, 2, states))
    place = torch.linspace(0.0, 1.0, states, dtype=torch.float64).unsqueeze(-1)
    objective = ReturnObjective(lambda x: (place * (1.0 + x.unsqueeze(-1) ** 2)).expand(*x.shape, 2), discount=0.9, horizon=8)
    return BilevelProblem(world, LinearReward(pay, world.true_reward), Shannon(0.3), objective)
