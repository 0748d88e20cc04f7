"""The rounds of a leader and a follower over a bilevel problem; the two forms of PettingZoo are views of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_gym.envs.boundary import LARGEST, action_space, read_x
from bilevel_gym.errors import InvalidAction
from bilevel_gym.multiagent.episodes import Moved, episodes_of
from bilevel_gym.multiagent.rounds import rounds_of
from bilevel_gym.types import Trajectory

__all__ = ["FOLLOWER", "LEADER", "Game", "Outcome"]

LEADER, FOLLOWER = "leader_0", "follower_0"
"""The agents."""


class Outcome(NamedTuple):
    """What one action of the follower brought to both."""

    rewards: dict[str, float]
    """The follower's r_x(s, a), and the leader's −l where the round has ended, else 0."""
    infos: dict[str, dict[str, Any]]
    """For each agent."""


class Game:
    """Rounds in which the leader binds an x and the follower plays I episodes under r_x; then the leader pays l(d_1, …, d_I; x).

    The follower's observation is the state (on tables one-hot, after a one-hot context where there are several followers), on tables
    followed by x. The leader's is the number of the round (from 1), the actions that the follower has taken in it, the last round's loss
    (0 before any), and on tables the binding x (the middle of the box before any). A network's x has too many entries to be observed.

    Args:
        problem: a ``BilevelProblem`` whose objective is a loss of trajectories.
        horizon: see ``rounds_of``.
        render_mode: ``"rgb_array"`` where a simulator is to draw itself.

    Raises:
        UnsupportedProblem: the objective is no mean of a loss of trajectories, or the world cannot be played step by step.
        InvalidProblem: a horizon is needed and not given, or given and not needed.
    """

    def __init__(self, problem: Any, *, horizon: int | None = None, render_mode: str | None = None) -> None:
        self.problem = problem
        self.rounds = rounds_of(problem, horizon)
        self.episodes = episodes_of(problem, "rgb_array" if render_mode == "rgb_array" else None)
        box = action_space(problem)
        self.action_spaces: dict[str, gym.Space[Any]] = {LEADER: box, FOLLOWER: self.episodes.action_space}
        longest = float(self.rounds.episodes * self.rounds.steps)
        counts = _box(np.array([1.0, 0.0, -LARGEST]), np.array([LARGEST, longest, LARGEST]), box.dtype)
        own = self.episodes.observation_space
        self.observation_spaces: dict[str, gym.Space[Any]] = {
            LEADER: _joined(counts, box) if problem.tabular else counts,
            FOLLOWER: _joined(own, box) if problem.tabular else own,
        }
        self.generator = torch.Generator(device=problem.domain.device)
        self._middle = torch.as_tensor((box.low + box.high) / 2.0, device=problem.domain.device)

    def reset(self, np_random: np.random.Generator) -> None:
        """Begin the first round; everything that is drawn comes from the given generator."""
        self.generator.manual_seed(int(np_random.integers(2**63 - 1)))
        self.round, self.last_loss = 1, 0.0
        self._begin_round(self._middle)
        self.episodes.bind(self.x)
        self.episodes.begin(self.generator)

    def _begin_round(self, x: Tensor) -> None:
        self.x, self.bound = x, False
        self._played: list[list[Moved]] = [[]]

    # ------------------------------------------------------------------------------------------ moves

    def read(self, agent: str, action: Any) -> Any:
        """An action as ``bind`` and ``play`` take it.

        Raises:
            InvalidAction: it is not in the agent's space; nothing has changed.
        """
        space = self.action_spaces[agent]
        if agent == LEADER:
            assert isinstance(space, gym.spaces.Box)
            return read_x(action, space, self.problem.domain.device)
        try:
            cast = np.asarray(action, space.dtype) if isinstance(space, gym.spaces.Box) else action
            inside = space.contains(cast)
        except (TypeError, ValueError, OverflowError):
            inside = False
        if not inside:
            raise InvalidAction(f"the action {action!r} of {agent} is not in {space}; take one from env.action_space({agent!r})")
        return cast

    def bind(self, x: Tensor) -> None:
        """The leader's first action of a round; later ones count for nothing: x [D], from ``read``."""
        if not self.bound:
            self.episodes.bind(x)
            self.x, self.bound = x, True

    def play(self, action: Any) -> Outcome:
        """One action of the follower, from ``read``, under the x that is bound."""
        assert self.bound, "the leader moves first in a round"
        episode, round_before = self._played[-1], self.round
        info: dict[str, Any] = {"episode": len(self._played) - 1, "step": len(episode)}
        moved = self.episodes.play(action, self.generator)
        episode.append(moved)
        truncated = not moved.terminated and (moved.truncated or len(episode) == self.rounds.steps)
        info |= {"episode_terminated": moved.terminated, "episode_truncated": truncated}
        if truncated:
            info["final_obs"] = self.observe(FOLLOWER)
        reward = 0.0
        if moved.terminated or truncated:
            reward = self._end_episode()
            self.episodes.begin(self.generator)
        leader = {"round": round_before, "round_over": self.round > round_before}
        return Outcome({LEADER: reward, FOLLOWER: moved.reward}, {LEADER: leader, FOLLOWER: info})

    def _end_episode(self) -> float:
        """The leader's reward: −l where this was the round's last episode."""
        if len(self._played) < self.rounds.episodes:
            self._played.append([])
            return 0.0
        self.last_loss = self.rounds.loss(self.problem, self.x, self._trajectories(), self.generator)
        self.round += 1
        self._begin_round(self.x)
        return -self.last_loss

    def observe(self, agent: str) -> np.ndarray:
        """What an agent sees now, in ``observation_spaces[agent]``."""
        seen = self.episodes.observe() if agent == FOLLOWER else self._counts()
        joined: np.ndarray = np.concatenate([seen, self.x.cpu().numpy()]) if self.problem.tabular else seen
        return joined.astype(self.observation_spaces[agent].dtype)

    def _counts(self) -> np.ndarray:
        return np.array([self.round, sum(map(len, self._played)), max(-LARGEST, min(self.last_loss, LARGEST))])

    def describe(self) -> str:
        """A line of text."""
        bound = "bound" if self.bound else "to be bound"
        return (
            f"round {self.round}, x {bound}, episode {len(self._played)} of {self.rounds.episodes}, step {len(self._played[-1])}, "
            f"{self.episodes.describe()}; last loss {self.last_loss:.6g}"
        )

    def _trajectories(self) -> Trajectory:
        """The round's episodes, lengthened to T: steps past an end stand still and are not alive."""
        steps, device = self.rounds.steps, self.x.device
        alive = torch.tensor([[time < len(episode) for time in range(steps)] for episode in self._played], device=device)
        filled = [episode + [episode[-1]] * (steps - len(episode)) for episode in self._played]

        def table(name: str) -> Tensor:
            """A field of all moves: [I, T, …]."""
            return torch.stack([torch.stack([getattr(moved, name) for moved in episode]) for episode in filled]).to(device)

        first, rewards = filled[0][0], None
        if first.true_reward is not None:
            truth = [[moved.true_reward for moved in episode] for episode in filled]
            rewards = torch.tensor(truth, dtype=self.x.dtype, device=device) * alive
        contexts = None if first.context is None else torch.tensor([episode[0].context for episode in filled], device=device)
        return Trajectory(table("state"), table("action"), alive, rewards, contexts)


def _box(low: np.ndarray, high: np.ndarray, dtype: Any) -> gym.spaces.Box:
    return gym.spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)


def _joined(first: gym.spaces.Box, second: gym.spaces.Box) -> gym.spaces.Box:
    """The product of two flat boxes, in the precision of the first."""
    return _box(np.concatenate([first.low, second.low]), np.concatenate([first.high, second.high]), first.dtype)
