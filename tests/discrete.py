"""One small decision problem twice: as tables, and as a Gymnasium environment that the code for simulators and networks runs on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from bilevel_gym import BilevelProblem
from bilevel_gym.numerics import draw_categorical
from bilevel_gym.objectives import PreferenceObjective
from bilevel_gym.preferences import Teacher
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import DiscreteMLPReward, FunctionReward
from bilevel_gym.solvers import SoftPolicyIteration
from bilevel_gym.types import Response
from bilevel_gym.worlds import TabularWorld, VectorWorld

STATES, ACTIONS, DEPTH, DISCOUNT, TEMPERATURE = 5, 2, 3, 0.9, 0.5
LAYERS = ((0,), (1, 2), (3, 4))
"""Every episode goes through one state of each, and ends."""
RNG = np.random.default_rng(7)
TRANSITION = np.zeros((STATES, ACTIONS, STATES))
for here, there in pairwise(LAYERS):
    for state in here:
        chance = RNG.uniform(0.1, 0.9, ACTIONS)
        TRANSITION[state, :, there[0]], TRANSITION[state, :, there[1]] = chance, 1.0 - chance
TRUE = RNG.standard_normal((STATES, ACTIONS))


class Layered(gym.Env[int, int]):
    """The simulator."""

    observation_space: gym.Space[Any] = gym.spaces.Discrete(STATES)
    action_space: gym.Space[Any] = gym.spaces.Discrete(ACTIONS)
    state = 0

    def reset(self, *, seed=None, options=None):
        """At state 0."""
        super().reset(seed=seed)
        self.state = 0
        return self.state, {}

    def step(self, action):
        """Down one layer, or out of the last one."""
        reward, ends = float(TRUE[self.state, action]), self.state in LAYERS[-1]
        if not ends:
            self.state = int(self.np_random.choice(STATES, p=TRANSITION[self.state, action]))
        return self.state, reward, ends, False, {}


if "tests/Layered-v0" not in gym.registry:
    gym.register("tests/Layered-v0", entry_point=Layered)

REWARD = DiscreteMLPReward(STATES, ACTIONS, hidden=(4,))
OBJECTIVE = PreferenceObjective(length=2, pairs=32, steps=DEPTH, teacher=Teacher(rationality=2.0))


@dataclass(frozen=True)
class TablePolicy:
    """π [S, A] on indicator vectors."""

    table: torch.Tensor

    def probabilities(self, observations):
        """[n, S] → [n, A]."""
        return self.table[observations.argmax(-1)]

    def sample(self, observations, generator):
        """[n, S] → [n]."""
        return draw_categorical(self.probabilities(observations), generator)

    def mean(self, observations):
        """[n, S] → [n]."""
        return self.probabilities(observations).argmax(-1)

    def log_prob(self, observations, actions):
        """[n, S], [n] → [n]."""
        return self.probabilities(observations).gather(-1, actions[:, None]).squeeze(-1).log()


class Planner:
    """A solver for the simulator that knows its tables: it asks r_x about every state and action, and plans."""

    def start(self, problem):
        """Uniform."""
        return Response(TablePolicy(torch.full((STATES, ACTIONS), 0.5, dtype=torch.float64)))

    def solve(self, problem, x, *, warm=None, budget=None, generator=None):
        """The soft-optimal policy."""
        seen = torch.eye(STATES)
        with torch.no_grad():
            columns = [problem.reward.along(x, seen, torch.full((STATES,), action)) for action in range(ACTIONS)]
        table = torch.stack(columns, -1).double()
        planned = SoftPolicyIteration(tolerance=1e-13).solve(over_tables(lambda _: table), torch.zeros(1, dtype=torch.float64))
        return Response(TablePolicy(planned.policy), gap=planned.gap, steps=1, env_steps=0)


def over_tables(function, objective=OBJECTIVE, dimension=1):
    """The problem on tables, with r_x = function(x) [S, A]."""
    ends = 1.0 - TRANSITION.sum(-1)
    world = TabularWorld(TRANSITION, np.eye(STATES)[0], DISCOUNT, ends, true_reward=TRUE)
    box = np.full(dimension, 50.0)
    return BilevelProblem(world, FunctionReward(function, -box, box), Shannon(TEMPERATURE), objective)


def table_of(x):
    """What the network says of all states and actions, differentiable in x: [D] → [S, A]."""
    return REWARD.all_actions(x, torch.eye(STATES, dtype=x.dtype))


def tabular(**changes):
    """The same as ``simulated`` on tables, for an x in double precision: what is exact about it."""
    return over_tables(table_of, replace(OBJECTIVE, **changes), REWARD.dimension)


def simulated(**changes):
    """A network's reward on the simulator, compared by a teacher."""
    world = VectorWorld("tests/Layered-v0", DISCOUNT, horizon=2 * DEPTH)
    return BilevelProblem(world, REWARD, Shannon(TEMPERATURE), replace(OBJECTIVE, **changes))


def point(seed=0):
    """An x [D], float32, of rewards that differ."""
    return 1.5 * REWARD.initial(torch.Generator().manual_seed(seed))
