"""The follower's episodes, one action at a time: in a table, or in a simulator."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_gym.envs import grid_picture
from bilevel_gym.envs.rendering import policy_picture
from bilevel_gym.errors import UnsupportedProblem
from bilevel_gym.numerics import draw_categorical, draw_seed, rewards_of
from bilevel_gym.transitions import SparseTransition
from bilevel_gym.types import MDP, Trajectory

__all__ = ["Episodes", "Moved", "SimulatedEpisodes", "TableEpisodes", "episodes_of"]

CELL = 29
"""Pixels of a cell's side in pictures of maps."""


class Moved(NamedTuple):
    """What one action of the follower brought."""

    state: Tensor
    """[] or [observation] s, where it acted."""
    action: Tensor
    """[] or [action] a."""
    reward: float
    """r_x(s, a)."""
    true_reward: float | None
    """The world's own reward, which only teachers read; None where there is none."""
    terminated: bool
    """The episode has ended, and what follows is worth 0."""
    truncated: bool
    """A time limit of the world's own was reached."""
    context: int | None
    """Which follower played; None where there is one."""


class Episodes(Protocol):
    """One episode after another under a given x."""

    observation_space: gym.spaces.Box
    """Of a state."""
    action_space: gym.Space[Any]
    """Of the follower's actions."""

    def bind(self, x: Tensor) -> None:
        """From now on the reward is r_x, and P is P(x): x [D]."""
        ...

    def begin(self, generator: torch.Generator) -> None:
        """Draw the first state of an episode."""
        ...

    def observe(self) -> np.ndarray:
        """The state, in ``observation_space``."""
        ...

    def play(self, action: Any, generator: torch.Generator) -> Moved:
        """Take an action of ``action_space``."""
        ...

    def describe(self) -> str:
        """The state in words."""
        ...

    def picture(self) -> np.ndarray:
        """[height, width, 3] uint8."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class TableEpisodes:
    """Episodes drawn from the tables of M_τ(x), whether P depends on x or not.

    A state is seen as a one-hot vector, after a one-hot vector of the context where there are several followers.

    Args:
        problem: a tabular problem.
    """

    def __init__(self, problem: Any) -> None:
        self.problem, world = problem, problem.world
        self.contexts = 0 if world.context_weights is None else len(world.context_weights)
        self.observation_space = gym.spaces.Box(0.0, 1.0, (self.contexts + world.states,), np.float64)
        self.action_space = gym.spaces.Discrete(world.actions)
        self.context: int | None = None
        self.state = 0
        self._mdp: MDP | None = None

    def bind(self, x: Tensor) -> None:
        """Write M_τ(x) down. Cost: of ``problem.at``."""
        self._mdp = self.problem.at(x)

    def begin(self, generator: torch.Generator) -> None:
        """Draw the follower by its weight, and s_0 ~ ρ."""
        world, start = self.problem.world, self.problem.world.start
        if self.contexts:
            self.context = _draw(world.context_weights, generator)
            start = start[self.context]
        self.state = _draw(start, generator)

    def observe(self) -> np.ndarray:
        """[C + S], ones at the context and at the state."""
        seen = np.zeros(self.observation_space.shape)
        seen[self.contexts + self.state] = 1.0
        if self.context is not None:
            seen[self.context] = 1.0
        return seen

    def play(self, action: Any, generator: torch.Generator) -> Moved:
        """Draw s' ~ P(x), or the end of the episode. Cost: O(S), O(U) where a state reaches U others."""
        assert self._mdp is not None
        state, action, found = self.state, int(action), self._mdp.transition
        table, successors = (found.probability, found.successors) if isinstance(found, SparseTransition) else (found, None)
        row = self._own(table)[state, action]
        drawn = _draw(torch.cat([row, (1.0 - row.sum(-1, keepdim=True)).clamp_min(0.0)]), generator)
        if drawn < len(row):
            self.state = drawn if successors is None else int(successors[state, drawn])
        truth = self.problem.world.true_reward
        return Moved(
            state=torch.tensor(state),
            action=torch.tensor(action),
            reward=float(self._own(self._mdp.reward)[state, action]),
            true_reward=None if truth is None else float(self._own(truth)[state, action]),
            terminated=drawn == len(row),
            truncated=False,
            context=self.context,
        )

    def describe(self) -> str:
        """The number of the state, and of the context where there are several."""
        return f"state {self.state}" if self.context is None else f"state {self.state} of follower {self.context}"

    def picture(self) -> np.ndarray:
        """r_x as a map with the follower's cell filled, where the world has a ``grid``; else bars of softmax(r_x), its state's dimmed."""
        assert self._mdp is not None
        reward = self._own(self._mdp.reward)
        grid = getattr(self.problem.world, "grid", None)
        if grid is None:
            return _dimmed(policy_picture(torch.softmax(reward, -1)), self.state, len(reward))
        board = grid_picture(grid, torch.zeros_like(reward), reward, cell=CELL)
        row, column = (int(place) * CELL for place in grid.cells[self.state])
        board[row + CELL // 4 : row + CELL - CELL // 4, column + CELL // 4 : column + CELL - CELL // 4] = 30
        return board

    def close(self) -> None:
        """Nothing is open."""

    def _own(self, table: Tensor) -> Tensor:
        """The part of a table that is this follower's."""
        if self.context is None or table.ndim == 2:
            return table
        return table[self.context if len(table) > 1 else 0]


class SimulatedEpisodes:
    """Episodes in a live copy of a simulated world.

    Args:
        problem: one whose world can be opened, such as ``worlds.VectorWorld``.
        render_mode: ``"rgb_array"`` where pictures are wanted.
    """

    def __init__(self, problem: Any, render_mode: str | None = None) -> None:
        self.problem = problem
        options = {} if render_mode is None else {"render_mode": render_mode}
        self.simulation = problem.world.open(1, 0, **options)
        seen = self.simulation.env.single_observation_space
        dtype: Any = np.uint8 if len(seen.shape) == 3 else np.float32
        self.observation_space = gym.spaces.Box(seen.low.astype(dtype), seen.high.astype(dtype), dtype=dtype)
        self.action_space = self.simulation.env.single_action_space
        self._x: Tensor | None = None

    def bind(self, x: Tensor) -> None:
        """The reward is r_x from now on."""
        self._x = x

    def begin(self, generator: torch.Generator) -> None:
        """Reset the simulator with a seed from the generator."""
        self._state = self.simulation.reset(draw_seed(generator))[0]

    def observe(self) -> np.ndarray:
        """[*observation] float32, pixels uint8."""
        seen: np.ndarray = self._state.cpu().numpy().copy()
        return seen

    @torch.no_grad()
    def play(self, action: Any, generator: torch.Generator) -> Moved:
        """One step of the simulator; the generator is not used."""
        state = self._state
        taken = torch.as_tensor(np.asarray(action), device=state.device)
        moved = self.simulation.step(taken[None])
        self._state = moved.following[0]
        return Moved(
            state=state,
            action=taken,
            reward=float(
                rewards_of(
                    self.problem.reward, self._x, Trajectory(state[None], taken[None], ~moved.terminated, moved.rewards, terms=moved.terms)
                )
            ),
            true_reward=float(moved.rewards),
            terminated=bool(moved.terminated),
            truncated=bool(moved.truncated),
            context=None,
        )

    def describe(self) -> str:
        """The observation, in three digits."""
        return f"state {np.array2string(self.observe(), precision=3, threshold=6)}"

    def picture(self) -> np.ndarray:
        """The simulator's own."""
        return np.asarray(self.simulation.env.render()[0])

    def close(self) -> None:
        """Close the simulator."""
        self.simulation.close()


def episodes_of(problem: Any, render_mode: str | None = None) -> TableEpisodes | SimulatedEpisodes:
    """The follower's episodes in a problem's world.

    Raises:
        UnsupportedProblem: the world cannot be played one action at a time.
    """
    if problem.tabular:
        return TableEpisodes(problem)
    if hasattr(problem.world, "open"):
        return SimulatedEpisodes(problem, render_mode)
    raise UnsupportedProblem(
        f"{type(problem.world).__name__} cannot be played one action at a time: the world must be a table, or open(num_envs, seed) live copies as worlds.VectorWorld does"
    )


def _draw(chances: Tensor, generator: torch.Generator) -> int:
    """An index with its probability: [K] → 0 … K − 1."""
    return int(draw_categorical(chances[None], generator))


def _dimmed(picture: np.ndarray, state: int, states: int) -> np.ndarray:
    """All bars but one at half their brightness."""
    bar = picture.shape[1] // states
    shown = picture // 2
    shown[:, state * bar : (state + 1) * bar] = picture[:, state * bar : (state + 1) * bar]
    return shown
