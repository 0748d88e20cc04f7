"""A PettingZoo parallel environment as the world of several followers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from pettingzoo import AECEnv, ParallelEnv
from torch import Tensor

from bilevel_gym.arguments import check_call, checked
from bilevel_gym.envs.rendering import policy_picture
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.multiagent.tabular_game import TabularGame
from bilevel_gym.numerics import draw_categorical, draw_seed
from bilevel_gym.types import Policy
from bilevel_gym.worlds import UniformChoice, UniformPolicy

__all__ = ["GameWorld", "Steps", "TablePolicy"]

Policies = Mapping[str, Any]
"""A ``types.Policy`` for each agent."""


class Steps(NamedTuple):
    """n joint steps, of however many episodes; each field but ``time`` is a mapping from agents."""

    time: Tensor
    """[n] the step's number in its episode."""
    observations: Mapping[str, Tensor]
    """[n, *observation] what each saw before it acted; state numbers are int64."""
    actions: Mapping[str, Tensor]
    """[n, *action]."""
    rewards: Mapping[str, Tensor]
    """[n] what the game pays, incentives apart; 0 once an agent is out."""
    alive: Mapping[str, Tensor]
    """[n] bool: whether the agent was still in the game; what it saw and did stands still afterwards."""


class _Move(NamedTuple):
    """What one agent saw, did and earned; or, for many steps, columns of that."""

    seen: Any
    chosen: Any
    reward: Any
    alive: Any

    def after(self) -> _Move:
        """A step later, for an agent that is out."""
        return self._replace(reward=0.0, alive=False)


@dataclass(frozen=True)
class TablePolicy:
    """A policy on numbered observations.

    Args:
        table: [S, A] probabilities.
    """

    table: Tensor

    def sample(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """[n] → [n]."""
        return draw_categorical(self.table[observations], generator)

    def mean(self, observations: Tensor) -> Tensor:
        """The likeliest action: [n] → [n]."""
        return self.table[observations].argmax(-1)


class GameWorld:
    """The game that followers play among themselves: agents, spaces, and joint episodes.

    Args:
        make: makes the parallel environment; with ``render_mode="rgb_array"`` where a picture is wanted. Every call gives a game of its own.
        discount: γ in [0, 1), of the followers; None takes that of a ``TabularGame``.

    Raises:
        InvalidProblem: ``make`` makes no parallel environment; there is no γ, or it is out of range; or an agent's space is neither numbered nor a box.
    """

    @checked
    def __init__(self, make: Callable[..., Any], *, discount: float | None = None) -> None:
        if not callable(make):
            raise InvalidProblem(f"make is {make!r}: give a function that makes a PettingZoo parallel environment, a new one at each call")
        check_call("the function that makes the game", make)
        self.make = make
        self._opened: list[Any] = []
        self.env = self.open()
        self.table: TabularGame | None = self.env.unwrapped if isinstance(self.env.unwrapped, TabularGame) else None
        found = self.table.discount if discount is None and self.table is not None else discount
        if found is None or not 0.0 <= found < 1.0:
            raise InvalidProblem(f"discount is {discount}: give the followers one in [0, 1), such as 0.95")
        if self.table is not None and found != self.table.discount:
            raise InvalidProblem(f"discount is {found}, and the game's tables have {self.table.discount}: leave it out")
        self.discount = found
        self.agents: list[str] = list(self.env.possible_agents)
        for agent in self.agents:
            for space in (self.env.observation_space(agent), self.env.action_space(agent)):
                if not isinstance(space, gym.spaces.Discrete | gym.spaces.Box):
                    raise InvalidProblem(f"{agent} has the space {space}: followers learn on Discrete spaces and boxes; wrap the game")

    def open(self) -> Any:
        """Another copy of the game, which ``close`` closes with the rest."""
        made = self.make()
        if not isinstance(made, ParallelEnv):
            cure = "pettingzoo.utils.aec_to_parallel makes one of it" if isinstance(made, AECEnv) else "give a function that makes one"
            raise InvalidProblem(
                f"the function that makes the game made a {type(made).__name__}, and no PettingZoo parallel environment: {cure}"
            )
        self._opened.append(made)
        return made

    @property
    def numbered(self) -> bool:
        """Whether every agent sees one of finitely many states and has finitely many actions."""
        spaces = [space for agent in self.agents for space in (self.env.observation_space(agent), self.env.action_space(agent))]
        return all(isinstance(space, gym.spaces.Discrete) for space in spaces)

    def uniform(self, agent: str) -> Policy:
        """An agent that has not learnt anything: all actions alike."""
        seen, actions = self.env.observation_space(agent), self.env.action_space(agent)
        if isinstance(actions, gym.spaces.Discrete):
            if isinstance(seen, gym.spaces.Discrete):
                return TablePolicy(torch.full((int(seen.n), int(actions.n)), 1.0 / int(actions.n), dtype=torch.float64))
            return UniformChoice(int(actions.n))
        return UniformPolicy(*(torch.as_tensor(edge, dtype=torch.float32) for edge in (actions.low, actions.high)))

    def as_observation(self, agent: str, seen: Any) -> Tensor:
        """What an agent sees as its policy takes it: a number [], or float32 [*observation]."""
        space = self.env.observation_space(agent)
        if isinstance(space, gym.spaces.Discrete):
            return torch.tensor(int(seen) - int(space.start))
        return torch.as_tensor(np.asarray(seen), dtype=torch.float32)

    def as_action(self, agent: str, action: Any) -> Any:
        """What a policy chose as the game takes it."""
        space = self.env.action_space(agent)
        if isinstance(space, gym.spaces.Discrete):
            return int(action) + int(space.start)
        return np.clip(action.cpu().numpy().astype(space.dtype), space.low, space.high)

    def act(self, policies: Policies, seen: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """An action of each agent that sees something."""
        with torch.no_grad():
            return {agent: policies[agent].sample(observation[None], generator)[0] for agent, observation in seen.items()}

    def play(self, policies: Policies, *, episodes: int, steps: int, generator: torch.Generator) -> Steps:
        """Joint episodes from the reset, each until no agent is left or ``steps`` are over.

        Args:
            policies: who plays.
            episodes: how many.
            steps: of each at most.
            generator: the source of the resets and of all draws of the policies.

        Returns:
            n = all steps of all episodes. Cost: n environment steps.

        Raises:
            UnsupportedProblem: an agent that comes later than the reset.
        """
        times: list[int] = []
        moves: dict[str, list[_Move]] = {agent: [] for agent in self.agents}
        for _ in range(episodes):
            observations, _ = self.env.reset(seed=draw_seed(generator))
            if set(self.env.agents) != set(self.agents):
                raise UnsupportedProblem(f"the game begins with {self.env.agents} of {self.agents}: all agents must be there at the reset")
            for time in range(steps):
                seen = {agent: self.as_observation(agent, observations[agent]) for agent in self.env.agents}
                chosen = self.act(policies, seen, generator)
                observations, rewards, *_ = self.env.step({agent: self.as_action(agent, action) for agent, action in chosen.items()})
                times.append(time)
                for agent, done in moves.items():
                    acted = agent in chosen
                    done.append(_Move(seen[agent], chosen[agent], float(rewards[agent]), True) if acted else done[-1].after())
                if not self.env.agents:
                    break
        columns = {agent: _Move(*zip(*done, strict=True)) for agent, done in moves.items()}
        return Steps(
            torch.tensor(times),
            {agent: torch.stack(column.seen) for agent, column in columns.items()},
            {agent: torch.stack(column.chosen) for agent, column in columns.items()},
            {agent: torch.tensor(column.reward, dtype=torch.float64) for agent, column in columns.items()},
            {agent: torch.tensor(column.alive) for agent, column in columns.items()},
        )

    def picture(self, policies: Policies) -> np.ndarray:
        """Bars of the agents' policies below each other where all are tables, else the game after some steps: [height, width, 3] uint8."""
        tables = [policies[agent] for agent in self.agents]
        if all(isinstance(policy, TablePolicy) for policy in tables):
            return np.concatenate([policy_picture(policy.table, height=120) for policy in tables])
        env = self.make(render_mode="rgb_array")
        try:
            generator = torch.Generator().manual_seed(0)
            observations, _ = env.reset(seed=0)
            for _ in range(10):
                chosen = self.act(policies, {agent: self.as_observation(agent, observations[agent]) for agent in env.agents}, generator)
                observations, *_ = env.step({agent: self.as_action(agent, action) for agent, action in chosen.items()})
            return np.asarray(env.render())
        finally:
            env.close()

    def close(self) -> None:
        """Close all copies of the game."""
        while self._opened:
            self._opened.pop().close()
