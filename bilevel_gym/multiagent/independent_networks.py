"""Independent learners with networks: to each agent the game is a simulated world in which the others play fixed policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_gym.arguments import check_numbers
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.multiagent.game_world import GameWorld
from bilevel_gym.multiagent.incentives import IncentiveProblem, Incentives
from bilevel_gym.numerics import draw_seed
from bilevel_gym.solvers.replay import Batch
from bilevel_gym.types import Budget, LowerSolver, Regularizer, Response
from bilevel_gym.worlds.simulated import SimulatedWorld

__all__ = ["IndependentNetworks", "IndependentState"]


class AgentView(gym.Env[np.ndarray, Any]):
    """The game as one agent lives in it.

    Args:
        world: the game.
        agent: who learns.
        seats: the policies of all agents, read at each step; the learner's own is not.
    """

    def __init__(self, world: GameWorld, agent: str, seats: Mapping[str, Any]) -> None:
        self.world, self.agent, self.seats = world, agent, seats
        self.game = world.open()
        self.observation_space, self.action_space = self.game.observation_space(agent), self.game.action_space(agent)
        self._generator = torch.Generator()
        self._seen: dict[str, Any] = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """A new joint episode."""
        super().reset(seed=seed)
        self._generator.manual_seed(int(self.np_random.integers(2**63 - 1)))
        self._seen, _ = self.game.reset(seed=int(self.np_random.integers(2**31 - 1)))
        return self._own(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """The agent's action, and those that the others' policies choose."""
        others = [agent for agent in self.game.agents if agent != self.agent]
        seen = {agent: self.world.as_observation(agent, self._seen[agent]) for agent in others}
        chosen = {**self.world.act(self.seats, seen, self._generator), self.agent: torch.as_tensor(action)}
        moves = {agent: self.world.as_action(agent, move) for agent, move in chosen.items()}
        self._seen, rewards, terminated, truncated, _ = self.game.step(moves)
        return self._own(), float(rewards[self.agent]), bool(terminated[self.agent]), bool(truncated[self.agent]), {}

    def _own(self) -> np.ndarray:
        return np.asarray(self._seen[self.agent])


class AgentWorld(SimulatedWorld):
    """What ``AgentView`` shows, as a world that a lower-level solver can open.

    Args:
        world: the game.
        agent: who learns.
        seats: see ``AgentView``.

    Raises:
        UnsupportedProblem: what the agent sees is no flat box.
    """

    horizon = 10**9  # the game has its own

    def __init__(self, world: GameWorld, agent: str, seats: Mapping[str, Any]) -> None:
        space = world.env.observation_space(agent)
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise UnsupportedProblem(f"{agent} observes {space}, and a network reads a flat Box: wrap the game, or use IndependentTables")
        self.world, self.agent, self.seats, self.discount, self.device = world, agent, seats, world.discount, torch.device("cpu")
        with self._make() as env:
            self._describe(env, agent)
        self.observation_size = space.shape[0]

    def _make(self, horizon: int | None = None, **options: Any) -> AgentView:
        return AgentView(self.world, self.agent, self.seats)


@dataclass(frozen=True)
class AgentReward:
    """r_i + paid_i(x), as a reward of transitions.

    Args:
        incentives: what x pays.
        agent: i.
    """

    incentives: Incentives
    agent: str

    @property
    def device(self) -> torch.device:
        """Where x lives."""
        return self.incentives.device

    def of_transitions(self, x: Tensor, batch: Batch) -> Tensor:
        """What the game paid, and what x pays for the same now: [n]."""
        return batch.rewards + self.incentives.paid(x.to(batch.rewards.dtype), self.agent, batch.states, batch.actions)


@dataclass(frozen=True)
class AgentProblem:
    """The lower level of one agent, as a ``LowerSolver`` takes it."""

    world: AgentWorld
    reward: AgentReward
    regularizer: Regularizer

    tabular = False


@dataclass(frozen=True)
class IndependentState:
    """The warm start of all learners."""

    responses: dict[str, Response]
    """Each agent's, with its solver's own warm start."""
    worlds: Any = field(default=None, metadata={"transient": True})
    """Each agent's world, and the seats that they share; made anew where they are missing."""

    def fork(self) -> IndependentState:
        """A state that shares nothing with this one. Cost: of the learners' forks."""
        forked = {
            agent: replace(response, state=response.state.fork()) if hasattr(response.state, "fork") else response
            for agent, response in self.responses.items()
        }
        return IndependentState(forked)


@dataclass(frozen=True)
class IndependentNetworks:
    """A solver of its own for every agent, in turn: each learns on for a while in a world where the others play what they learnt last.

    Any solver of simulated worlds will do: ``solvers.SAC`` for boxes of actions, ``solvers.DiscreteSAC`` for finitely many. Transitions are
    kept without incentives, which are paid anew, as of the present x, whenever a batch is drawn; that older ones are of other agents'
    older policies remains, as it does for all independent learners that replay.

    What such learners converge to is not known in general: if they settle with every critic accurate, each plays a soft-optimal policy
    against the others, so a logit equilibrium (of the game as their networks can see it); they need not settle, and finitely many steps
    from a warm start are only on their way. Compare several seeds, and more ``rounds``, before a number is believed.

    Args:
        solver: of every agent, or one for each by name.
        rounds: turns of each agent in a solve.

    Raises:
        InvalidProblem: no rounds.

    Cost: of a solve, ``rounds`` times that of every agent's solver.
    """

    solver: LowerSolver | Mapping[str, LowerSolver]
    _: KW_ONLY
    rounds: int = 1

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.rounds < 1:
            raise InvalidProblem(f"rounds is {self.rounds}: every agent learns once at least")

    def start(self, problem: IncentiveProblem) -> Response:
        """Every agent at random.

        Raises:
            UnsupportedProblem: an agent's observations, its actions or the regularizer do not suit its solver.
            InvalidProblem: an agent has no solver.
        """
        seats: dict[str, Any] = {}
        worlds = {agent: AgentWorld(problem.world, agent, seats) for agent in problem.world.agents}
        responses = {agent: self._of(agent).start(_problem(problem, world)) for agent, world in worlds.items()}
        seats.update({agent: response.policy for agent, response in responses.items()})
        return Response(dict(seats), state=IndependentState(responses, (worlds, seats)))

    def solve(
        self,
        problem: IncentiveProblem,
        x: Tensor,
        *,
        warm: Response | None = None,
        budget: Budget | None = None,
        generator: torch.Generator,
    ) -> Response:
        """Let every agent learn on, ``rounds`` times in turn.

        Args:
            problem: a game of agents with flat observations.
            x: [D].
            warm: an earlier response.
            budget: of each agent's solve.
            generator: the source of every draw.

        Returns:
            ``gap`` is the largest of the agents' own; steps are added.

        Raises:
            UnsupportedProblem: as for ``start``.
        """
        warm = self.start(problem) if warm is None else warm
        responses = dict(warm.state.responses)
        worlds, seats = warm.state.worlds or self.start(problem).state.worlds
        seats.update({agent: response.policy for agent, response in responses.items()})  # after an error they may be others
        steps = env_steps = 0
        for _ in range(self.rounds):
            for agent, world in worlds.items():
                own = torch.Generator().manual_seed(draw_seed(generator))
                learnt = self._of(agent).solve(_problem(problem, world), x, warm=responses[agent], budget=budget, generator=own)
                responses[agent], seats[agent] = learnt, learnt.policy
                steps, env_steps = steps + learnt.steps, env_steps + learnt.env_steps
        gap = torch.stack([response.gap.to(x.dtype) for response in responses.values()]).amax()
        return Response(dict(seats), gap=gap, steps=steps, env_steps=env_steps, state=IndependentState(responses, (worlds, seats)))

    def _of(self, agent: str) -> LowerSolver:
        if not isinstance(self.solver, Mapping):
            return self.solver
        if agent not in self.solver:
            raise InvalidProblem(f"there is no solver for {agent}, only for {sorted(self.solver)}: give one for each agent")
        return self.solver[agent]


def _problem(problem: IncentiveProblem, world: AgentWorld) -> AgentProblem:
    return AgentProblem(world, AgentReward(problem.incentives, world.agent), problem.regularizer)
