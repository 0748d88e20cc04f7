"""A bilevel problem as a game of two agents, in both forms that PettingZoo knows."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Literal, overload

import gymnasium as gym
import numpy as np
from pettingzoo import AECEnv, ParallelEnv

from bilevel_gym.arguments import checked
from bilevel_gym.errors import InvalidAction, InvalidProblem
from bilevel_gym.multiagent.game import FOLLOWER, LEADER, Game

__all__ = ["LeaderFollowerAEC", "LeaderFollowerParallel", "leader_follower"]


class _View:
    """What both forms share: agents, spaces, seeds, the limit of cycles, pictures."""

    metadata: dict[str, Any] = {
        "name": "leader_follower_v0",
        "render_modes": ["human", "rgb_array", "ansi"],
        "render_fps": 10,
        "is_parallelizable": False,  # a generic conversion would let the follower act before it has seen x
    }

    @checked
    def __init__(self, problem: Any, *, horizon: int | None = None, max_cycles: int = 1000, render_mode: str | None = None) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise InvalidProblem(f"render_mode is {render_mode!r}: choose one of {self.metadata['render_modes']}, or None")
        if not hasattr(problem, "objective"):
            raise InvalidProblem(
                f"{problem!r} is no problem: give a BilevelProblem, such as gym.make('bilevel/TabularPreference-v0').unwrapped.problem"
            )
        if max_cycles < 1:
            raise InvalidProblem(f"max_cycles is {max_cycles}: an episode of the game has one cycle at least")
        self.game = Game(problem, horizon=horizon, render_mode=render_mode)
        self.problem, self.horizon = problem, horizon
        self.max_cycles, self.render_mode = max_cycles, render_mode
        self.possible_agents = [LEADER, FOLLOWER]
        self.agents: list[str] = []
        self._np_random: np.random.Generator | None = None
        self._cycles = 0

    def observation_space(self, agent: str) -> gym.Space[Any]:
        """The space of an agent's observations, always the same object."""
        return self.game.observation_spaces[agent]

    def action_space(self, agent: str) -> gym.Space[Any]:
        """The space of an agent's actions, always the same object."""
        return self.game.action_spaces[agent]

    def render(self) -> Any:
        """A picture [height, width, 3], a line of text, or (``"human"``) nothing: the line goes to the standard output.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset.
        """
        if self._np_random is None:
            raise gym.error.ResetNeeded("call env.reset() before env.render()")
        if self.render_mode == "rgb_array":
            return self.game.episodes.picture()
        if self.render_mode == "ansi":
            return self.game.describe()
        if self.render_mode == "human":
            sys.stdout.write(self.game.describe() + "\n")
        return None

    def close(self) -> None:
        """Close the simulator, if there is one."""
        self.game.episodes.close()

    def _restart(self, seed: int | None) -> None:
        if seed is not None or self._np_random is None:
            self._np_random, _ = gym.utils.seeding.np_random(seed)
        self.game.reset(self._np_random)
        self.agents, self._cycles = list(self.possible_agents), 0

    def _refuse_without_agents(self) -> None:
        if not self.agents:
            raise gym.error.ResetNeeded("there is no agent to act: call env.reset() first")

    def _turned(self) -> bool:
        """Count a cycle; whether it was the last."""
        self._cycles += 1
        return self._cycles >= self.max_cycles


class LeaderFollowerAEC(_View, AECEnv):  # type: ignore[misc]
    """The game with turns: ``leader_0`` and then ``follower_0`` act in each cycle, so that the follower sees x before it acts.

    See ``leader_follower`` for the rules.
    """

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Begin anew; without a seed the random streams go on. ``options`` are not read."""
        self._restart(seed)
        self.agent_selection = LEADER
        self.rewards, self._cumulative_rewards = (dict.fromkeys(self.agents, 0.0) for _ in range(2))
        self.terminations, self.truncations = (dict.fromkeys(self.agents, False) for _ in range(2))
        self.infos: dict[str, dict[str, Any]] = {agent: {} for agent in self.agents}

    def observe(self, agent: str) -> np.ndarray:
        """What an agent sees now.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset.
        """
        if self._np_random is None:
            raise gym.error.ResetNeeded("call env.reset() before env.observe(agent)")
        return self.game.observe(agent)

    def step(self, action: Any) -> None:
        """The action of ``agent_selection``; None for an agent that is truncated.

        Raises:
            InvalidAction: the action is not in the agent's space; nothing has changed.
            ValueError: an action other than None of an agent that is truncated.
            gymnasium.error.ResetNeeded: before the first reset, and after the last agent has left.
        """
        self._refuse_without_agents()
        agent = self.agent_selection
        if self.truncations[agent]:
            self._was_dead_step(action)
            return
        chosen = self.game.read(agent, action)
        self._cumulative_rewards[agent] = 0.0
        self._clear_rewards()
        if agent == LEADER:
            self.game.bind(chosen)
            self.agent_selection = FOLLOWER
            return
        self.rewards, self.infos = self.game.play(chosen)
        self._accumulate_rewards()
        self.agent_selection = LEADER
        if self._turned():
            self.truncations = dict.fromkeys(self.agents, True)


class LeaderFollowerParallel(_View, ParallelEnv):  # type: ignore[misc]
    """The game in which both act at once, with one cycle more in each round: the first is the leader's alone.

    See ``leader_follower`` for the rules.
    """

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
        """Begin anew; without a seed the random streams go on. ``options`` are not read."""
        self._restart(seed)
        return self._observations(), self._plays({agent: {} for agent in self.agents})

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """An action of each agent.

        Raises:
            InvalidAction: an action is missing, or not in the agent's space; nothing has changed.
            gymnasium.error.ResetNeeded: before the first reset, and after both are truncated.
        """
        self._refuse_without_agents()
        if _given(actions) != set(self.agents):
            raise InvalidAction(f"actions are given for {sorted(_given(actions))}: give a mapping with one for each of {self.agents}")
        x, action = (self.game.read(agent, actions[agent]) for agent in self.agents)
        if self.game.bound:
            rewards, infos = self.game.play(action)
        else:
            self.game.bind(x)
            rewards, infos = dict.fromkeys(self.agents, 0.0), {agent: {} for agent in self.agents}
        truncations = dict.fromkeys(self.agents, self._turned())
        result = self._observations(), rewards, dict.fromkeys(self.agents, False), truncations, self._plays(infos)
        if truncations[LEADER]:
            self.agents = []
        return result

    def _observations(self) -> dict[str, np.ndarray]:
        return {agent: self.game.observe(agent) for agent in self.agents}

    def _plays(self, infos: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        infos[FOLLOWER]["plays"] = self.game.bound
        return infos


def _given(actions: Any) -> set[Any]:
    """The agents that have an action; nobody where it is no mapping."""
    return set(actions) if isinstance(actions, Mapping) else set()


Form = Literal["aec", "parallel"]
"""PettingZoo's two interfaces: agents in turn, or all at once."""


@overload
def leader_follower(
    problem: Any, form: Literal["parallel"] = ..., *, horizon: int | None = ..., max_cycles: int = ..., render_mode: str | None = ...
) -> LeaderFollowerParallel: ...


@overload
def leader_follower(
    problem: Any, form: Literal["aec"], *, horizon: int | None = ..., max_cycles: int = ..., render_mode: str | None = ...
) -> LeaderFollowerAEC: ...


def leader_follower(
    problem: Any, form: Form = "parallel", *, horizon: int | None = None, max_cycles: int = 1000, render_mode: str | None = None
) -> LeaderFollowerParallel | LeaderFollowerAEC:
    """A bilevel problem as a game of ``leader_0``, who chooses x, and ``follower_0``, who plays the decision problem under r_x.

    Rules:
        In a round the leader's first action binds, and its others count for nothing. Then the follower plays I episodes of T steps (or
        fewer, where they end), with r_x(s, a) as its reward. At the end of the round the leader gets −l(d_1, …, d_I; x), and 0 before.
        The mean of that over rounds, if the follower plays π, is −f(x, π). I and T are what the objective says: two fragments for a
        comparison, one episode for a discounted cost. The game is truncated after ``max_cycles``; an unfinished round pays nothing.
    The follower's problem:
        Soft, with discount γ and regularizer τΩ, which are not part of the reward: they belong to the learner, which is to maximise
        E Σ_t γ^t (r_x − τΩ(π)), as ``env.problem.world.discount`` and ``env.problem.regularizer`` say. Its horizon is endless: an
        episode that is cut off at T is truncated, not terminated. The environment goes on with the next episode in the same cycle;
        ``infos["leader_0"]["round_over"]`` says when a round has ended, ``infos["follower_0"]`` has ``episode_terminated`` and ``episode_truncated``, and ``final_obs`` where it was truncated, from
        which a learner must bootstrap, as under Gymnasium's SAME_STEP autoreset.
    Observations:
        Of the follower: its state, on tables one-hot, after a one-hot context where there are several followers; on tables x follows.
        Of the leader: the number of the round, the follower's actions in it, the last loss; on tables the binding x follows. A network's
        x is not observed.
    Forms:
        ``"aec"``: leader and follower in turn, I·T cycles a round at most. ``"parallel"``: both at once, and since the follower could
        not see x in time, the first cycle of a round is the leader's alone: the follower's action in it counts for nothing, which
        ``infos["follower_0"]["plays"]`` says beforehand. The same seed and the same moves give the same game in both.

    Args:
        problem: a ``BilevelProblem`` on a table (P may depend on x) or in a simulator, with an objective E[l] over the follower's
            trajectories: ``PreferenceObjective``, a ``ReturnObjective`` in the follower's world, or your own ``types.TupleObjective``.
        form: ``"parallel"`` or ``"aec"``.
        horizon: T where f is an endless discounted cost; what it would count later is cut off.
        max_cycles: after which both agents are truncated.
        render_mode: ``"rgb_array"``, ``"ansi"``, or ``"human"``, which prints the latter.

    Raises:
        UnsupportedProblem: f is no mean of a loss of trajectories, or the world cannot be played step by step; the message says why.
        InvalidProblem: no problem, or a bad ``form``, ``horizon``, ``max_cycles`` or ``render_mode``.
    """
    if form not in ("aec", "parallel"):
        raise InvalidProblem(f"form is {form!r}: choose 'aec' or 'parallel'")
    made = LeaderFollowerAEC if form == "aec" else LeaderFollowerParallel
    return made(problem, horizon=horizon, max_cycles=max_cycles, render_mode=render_mode)
