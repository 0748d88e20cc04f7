"""Small Markov games in tables: what several followers play, and what each of them faces while the others stand still."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from pettingzoo import ParallelEnv
from torch import Tensor

from bilevel_gym.arguments import checked
from bilevel_gym.envs.rendering import policy_picture
from bilevel_gym.errors import InvalidAction, InvalidProblem
from bilevel_gym.numerics import ArrayLike, as_table
from bilevel_gym.types import MDP, Regularizer

__all__ = ["TabularGame", "commons", "prisoners_dilemma"]


class TabularGame(ParallelEnv):  # type: ignore[misc]
    """A Markov game of N agents in tables, as a parallel environment: all see the state, all act at once.

    Args:
        rewards: [N, S, A_1, …, A_N], what each agent earns.
        transition: [S, A_1, …, A_N, S]; a row that sums to less than one ends the episode for all with what is missing.
        start: [S] the law of the first state.
        discount: γ in [0, 1), of the agents.
        agents: N names; ``player_0``, … by default.
        max_cycles: steps after which all are truncated.
        render_mode: ``"rgb_array"``, ``"ansi"``, or ``"human"``, which prints the latter.

    Raises:
        InvalidProblem: shapes that do not fit, or numbers that are no probabilities.
    """

    metadata: dict[str, Any] = {"name": "tabular_game_v0", "render_modes": ["human", "rgb_array", "ansi"], "render_fps": 4}

    @checked
    def __init__(
        self,
        rewards: ArrayLike,
        transition: ArrayLike,
        start: ArrayLike,
        discount: float,
        *,
        agents: Sequence[str] | None = None,
        max_cycles: int = 100,
        render_mode: str | None = None,
    ) -> None:
        self.rewards, self.transition, self.start = (as_table(table, "cpu") for table in (rewards, transition, start))
        count, states, choices = self.rewards.shape[0] if self.rewards.ndim else 0, self.start.numel(), tuple(self.rewards.shape[2:])
        if self.rewards.shape[:2] != (count, states) or len(choices) != count or self.transition.shape != (states, *choices, states):
            raise InvalidProblem(
                f"rewards {tuple(self.rewards.shape)}, transition {tuple(self.transition.shape)} and start {tuple(self.start.shape)} must be [N, S, A_1, …, A_N], [S, A_1, …, A_N, S] and [S]"
            )
        rows = self.transition.sum(-1)
        if not bool((self.transition >= 0).all() & (rows <= 1.0 + 1e-8).all() & self.rewards.isfinite().all()):
            raise InvalidProblem("rewards must be finite, and the rows of transition probabilities with a sum of one at most")
        if not bool((self.start >= 0).all()) or abs(float(self.start.sum()) - 1.0) > 1e-8 or not 0.0 <= discount < 1.0:
            raise InvalidProblem("start must be a distribution, with sum one, and the discount in [0, 1)")
        names = [f"player_{index}" for index in range(count)] if agents is None else list(agents)
        if len(set(names)) != count or max_cycles < 1 or render_mode not in (None, *self.metadata["render_modes"]):
            raise InvalidProblem(f"there must be {count} different names, one cycle or more, and a render mode out of the metadata")
        self.discount, self.max_cycles, self.render_mode = discount, max_cycles, render_mode
        self.possible_agents, self.agents = names, list[str]()
        self._spaces = {name: (gym.spaces.Discrete(states), gym.spaces.Discrete(a)) for name, a in zip(names, choices, strict=True)}
        self._np_random: np.random.Generator | None = None
        self._moves = self.transition.numpy().cumsum(-1)
        self._earned = self.rewards.numpy()

    # ------------------------------------------------------------------------------------------ PettingZoo

    def observation_space(self, agent: str) -> gym.spaces.Discrete:
        """The states."""
        return self._spaces[agent][0]

    def action_space(self, agent: str) -> gym.spaces.Discrete:
        """The agent's actions."""
        return self._spaces[agent][1]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.int64], dict[str, dict[str, Any]]]:
        """Draw a first state; ``options`` are not read."""
        if seed is not None or self._np_random is None:
            self._np_random, _ = gym.utils.seeding.np_random(seed)
        self.agents, self._cycles = list(self.possible_agents), 0
        self.state_index = int(self._np_random.choice(len(self.start), p=self.start.numpy() / float(self.start.sum())))
        return self._seen(), {agent: {} for agent in self.agents}

    def step(
        self, actions: Mapping[str, Any]
    ) -> tuple[dict[str, np.int64], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """One joint action.

        Raises:
            InvalidAction: an action is missing or does not exist; nothing has changed.
            gymnasium.error.ResetNeeded: there is no agent to act.
        """
        if not self.agents:
            raise gym.error.ResetNeeded("there is no agent to act: call env.reset() first")
        given: Any = actions
        if (
            not isinstance(given, Mapping)
            or set(given) != set(self.agents)
            or not all(self.action_space(agent).contains(actions[agent]) for agent in self.agents)
        ):
            raise InvalidAction(f"actions {actions} must be one for each of {self.agents}, out of env.action_space(agent)")
        assert self._np_random is not None
        joint = (self.state_index, *(int(actions[agent]) for agent in self.agents))
        drawn = int(np.searchsorted(self._moves[joint], self._np_random.random(), side="right"))
        ended = drawn == len(self.start)
        self.state_index = self.state_index if ended else drawn
        self._cycles += 1
        cut = not ended and self._cycles >= self.max_cycles
        rewards = {agent: float(self._earned[index][joint]) for index, agent in enumerate(self.agents)}
        terminations, truncations = (dict.fromkeys(self.agents, over) for over in (ended, cut))
        infos: dict[str, dict[str, Any]] = {agent: {} for agent in self.agents}
        result = self._seen(), rewards, terminations, truncations, infos
        if ended or cut:
            self.agents = []
        return result

    def render(self) -> Any:
        """The state as a line of text, or as a bar among bars.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset.
        """
        if self._np_random is None:
            raise gym.error.ResetNeeded("call env.reset() before env.render()")
        line = f"state {self.state_index} after {self._cycles} cycles"
        if self.render_mode == "human":
            sys.stdout.write(line + "\n")
        if self.render_mode == "rgb_array":
            shown = torch.full((len(self.start), 2), 0.5)
            shown[self.state_index] = torch.tensor([1.0, 0.0])
            return policy_picture(shown)
        return line if self.render_mode == "ansi" else None

    def close(self) -> None:
        """Nothing is open."""

    def _seen(self) -> dict[str, np.int64]:
        return dict.fromkeys(self.agents, np.int64(self.state_index))

    # ------------------------------------------------------------------------------------------ mathematics

    def against(self, index: int, policies: Sequence[Tensor], paid: Tensor, regularizer: Regularizer) -> MDP:
        """The decision problem of one agent while the others play their policies.

        r_i(s, a_i) = E_{a_−i} r_i(s, a) + paid(s, a_i), and P_i(s' | s, a_i) = E_{a_−i} P(s' | s, a).

        Args:
            index: i.
            policies: [S, A_j] of every agent; that of i is not read.
            paid: [S, A_i] what the designer adds.
            regularizer: τΩ of the agent.
        """
        others = [None if other == index else policy for other, policy in enumerate(policies)]
        reward, transition = _mean(self.rewards[index].unsqueeze(-1), others).squeeze(-1), _mean(self.transition, others)
        return MDP(reward + paid, transition, self.start, self.discount, regularizer)

    def expected(self, table: Tensor, policies: Sequence[Tensor]) -> Tensor:
        """The mean over all agents' actions of a table [S, A_1, …, A_N, K]: [S, K]."""
        return _mean(table, policies)

    def joint(self) -> tuple[Tensor, list[Tensor]]:
        """Every state with every joint action, in the order of the tables: states [n] and for each agent actions [n]."""
        axes = [torch.arange(size) for size in self.transition.shape[:-1]]
        state, *actions = (grid.flatten() for grid in torch.meshgrid(*axes, indexing="ij"))
        return state, actions


def _mean(table: Tensor, policies: Sequence[Tensor | None]) -> Tensor:
    """Sum the actions of all that have a policy out of a table [S, A_1, …, A_N, K], the last agent first."""
    states = table.shape[0]
    for index in range(len(policies) - 1, -1, -1):
        policy = policies[index]
        if policy is not None:
            shape = (states, *(policy.shape[-1] if axis == index + 1 else 1 for axis in range(1, table.ndim)))
            table = (table * policy.reshape(shape)).sum(index + 1)
    return table


def prisoners_dilemma(*, discount: float = 0.9, max_cycles: int = 20, render_mode: str | None = None) -> TabularGame:
    """Two players, one state, again and again: action 0 cooperates, 1 defects; 3 each if both cooperate, 1 if both defect, 5 and 0 else."""
    payoff = np.array([[3.0, 0.0], [5.0, 1.0]])
    transition = np.ones((1, 2, 2, 1))
    return TabularGame([payoff[None], payoff.T[None]], transition, [1.0], discount, max_cycles=max_cycles, render_mode=render_mode)


def commons(*, discount: float = 0.9, max_cycles: int = 50, render_mode: str | None = None) -> TabularGame:
    """The tragedy of the commons: two herders, a pasture that is green (state 0) or bare (1), action 0 spares it, 1 grazes.

    On a green pasture grazing earns 2 and sparing 1, on a bare one .2 and 0. The more herders graze, the sooner the pasture is bare and
    the later it is green again, which is a loss to both: the pasture is green next with probability .95, .6 or .1 if it is green now and
    0, 1 or 2 graze, and .4, .1 or .02 if it is bare.
    """
    earned = np.array([[1.0, 2.0], [0.0, 0.2]])  # [S, A]
    rewards = [np.repeat(earned[:, :, None], 2, 2), np.repeat(earned[:, None, :], 2, 1)]
    green = np.array([[0.95, 0.6, 0.1], [0.4, 0.1, 0.02]])[:, np.array([[0, 1], [1, 2]])]  # [S, A, A]
    return TabularGame(
        rewards, np.stack([green, 1.0 - green], -1), [1.0, 0.0], discount,
        agents=["herder_0", "herder_1"], max_cycles=max_cycles, render_mode=render_mode,
    )  # fmt: skip
