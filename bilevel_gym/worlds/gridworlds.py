"""Gridworlds written as text: tables, and where each state lies on the map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.numerics import ArrayLike
from bilevel_gym.transitions import SparseTransition
from bilevel_gym.worlds.checks import check_map
from bilevel_gym.worlds.tabular import TabularWorld

__all__ = ["DIRECTIONS", "FOUR_ROOMS", "SIDEWAYS", "Grid", "GridWorld", "chain", "four_rooms", "open_grid"]

Direction = tuple[int, int]

DIRECTIONS: tuple[Direction, ...] = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""What the actions 0 to 3 add to (row, column): up, right, down, left."""

SIDEWAYS: tuple[Direction, ...] = ((0, -1), (0, 1))
"""Left and right, the actions of a chain."""

FOUR_ROOMS = (
    "#############",
    "#     #  1  #",
    "#     #     #",
    "#           #",
    "#S    #     #",
    "#     #     #",
    "## ####     #",
    "#     ### ###",
    "#     #     #",
    "#     #     #",
    "#           #",
    "#     #    2#",
    "#############",
)
"""The four rooms of Sutton, Precup and Singh (1999) with the start and the two goals of HPGD (Thoma et al., 2024)."""


@dataclass(frozen=True)
class Grid:
    """A map of text rows: ``#`` is a wall, every other character is a cell, hence a state; they are numbered row by row.

    Args:
        rows: the map, rows of equal length.
        directions: what each action adds to (row, column).

    Raises:
        InvalidProblem: rows of different lengths, or no cell.
    """

    rows: tuple[str, ...]
    directions: tuple[Direction, ...] = DIRECTIONS
    cells: np.ndarray = field(init=False, repr=False, compare=False)
    """[S, 2] the row and column of each state."""
    moves: np.ndarray = field(init=False, repr=False, compare=False)
    """[S, A] the state that each direction leads to: s itself where a wall or the edge is in the way."""

    def __post_init__(self) -> None:
        if len({len(row) for row in self.rows}) != 1:
            raise InvalidProblem(f"the rows of the map have the lengths {[len(row) for row in self.rows]}: fill them up with '#'")
        free = np.array([[symbol != "#" for symbol in row] for row in self.rows])
        if not free.any():
            raise InvalidProblem("the map has no cell: every character of it is a wall, '#'")
        if not self.directions or any(len(direction) != 2 for direction in self.directions):
            raise InvalidProblem(
                f"the directions are {self.directions}: give one action at least, (rows, columns), such as (0, 1) for a step to the right"
            )
        cells = np.argwhere(free)
        number = np.full(free.shape, -1)
        number[free] = np.arange(len(cells))
        target = cells[:, None] + np.asarray(self.directions)
        inside = ((target >= 0) & (target < free.shape)).all(-1)
        reached = number[tuple(np.moveaxis(np.where(inside[..., None], target, 0), -1, 0))]
        stays = np.arange(len(cells))[:, None]
        object.__setattr__(self, "cells", cells)
        object.__setattr__(self, "moves", np.where(inside & (reached >= 0), reached, stays))

    def state(self, row: int, column: int) -> int:
        """The state in a cell.

        Raises:
            InvalidProblem: there is a wall, or nothing.
        """
        found = np.flatnonzero((self.cells == (row, column)).all(-1))
        if not len(found):
            raise InvalidProblem(
                f"({row}, {column}) is not a cell of this map of {len(self.rows)} × {len(self.rows[0])}: it is a wall, or outside"
            )
        return int(found[0])

    def marked(self, symbols: str) -> np.ndarray:
        """[S] bool: the cells that carry one of the characters.

        Raises:
            InvalidProblem: a character that no cell carries.
        """
        carried = np.array([self.rows[row][column] for row, column in self.cells])
        if missing := set(symbols) - set(carried):
            raise InvalidProblem(f"no cell of the map is marked {sorted(missing)}: it has the marks {sorted(set(carried))}")
        return np.isin(carried, list(symbols))

    def picture(self, values: ArrayLike) -> np.ndarray:
        """Numbers of states in their places: [B, S] → [B, rows, columns], NaN on walls."""
        table = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, dtype=np.float64)
        laid = np.full((*table.shape[:-1], len(self.rows), len(self.rows[0])), np.nan)
        laid[..., self.cells[:, 0], self.cells[:, 1]] = table
        return laid


class GridWorld(TabularWorld):
    """A world on a map: an action is a direction, a wall or the edge keeps one where one is.

    With probability 1 − slip the chosen action is carried out, with slip/(A−1) each of the others: the same as redrawing it uniformly
    among all A with probability slip·A/(A−1). A reward is collected in the cell where one acts; the action taken in a goal ends the
    episode, so that reward and entropy of that one last decision still count.

    Args:
        rows: the map, rows of text or one text of lines: ``#`` is a wall, every other character a cell and a mark to refer to it by.
        discount: γ in [0, 1).
        slip: probability that another action than the chosen one is carried out, in [0, 1].
        scatter: probability that the next state is drawn uniformly from all states, whatever the action is, in [0, 1].
        start: the marks of the cells to start in, uniformly; None for all cells.
        goals: the marks of the cells in which an episode ends; ``""`` for none. A sequence of such strings makes a context of each.
        goal_reward: what an action in a goal earns.
        rewards: what an action in a cell with another mark earns.
        context_weights: [C] of the contexts, uniform by default; only where ``goals`` is a sequence.
        directions: what each action adds to (row, column).
        device: where the tables live.

    Raises:
        InvalidProblem: rows of different lengths, a mark that is not on the map, a probability outside [0, 1], a start that leads to no
            goal, or a goal that no start leads to.
    """

    def __init__(
        self,
        rows: Sequence[str],
        discount: float,
        *,
        slip: float = 0.0,
        scatter: float = 0.0,
        start: str | None = "S",
        goals: str | Sequence[str] = "G",
        goal_reward: float = 1.0,
        rewards: Mapping[str, float] | None = None,
        context_weights: ArrayLike | None = None,
        directions: Sequence[Direction] = DIRECTIONS,
        device: str | torch.device = "cpu",
    ) -> None:
        self.grid = Grid(tuple(rows.split() if isinstance(rows, str) else rows), tuple(directions))
        states, actions = self.grid.moves.shape
        if not (isinstance(goals, str) or goals):
            raise InvalidProblem("goals is an empty sequence, which makes no context: '' is for a world without goals")
        ends = np.stack([self.grid.marked(marks) for marks in ([goals] if isinstance(goals, str) else goals)]).astype(np.float64)
        table = np.zeros(states)
        for mark, reward in (rewards or {}).items():
            table[self.grid.marked(mark)] += reward
        begin = np.ones(states) if start is None else self.grid.marked(start).astype(np.float64)
        if not scatter:
            for goal in ends:
                check_map(self.grid.moves, self.grid.cells, begin > 0, goal > 0)
        termination, true_reward = np.stack([ends, table + goal_reward * ends])[..., None].repeat(actions, -1)
        weights: ArrayLike | None = np.full(len(ends), 1.0 / len(ends)) if context_weights is None else context_weights
        if isinstance(goals, str):
            ends, termination, true_reward, weights = ends[0], termination[0], true_reward[0], None
        successors, probability = _moves(self.grid, slip, scatter)
        transition = SparseTransition(torch.as_tensor(successors), torch.as_tensor((1.0 - ends)[..., None, None] * probability))
        super().__init__(
            transition, begin / begin.sum(), discount, termination, true_reward=true_reward, context_weights=weights, device=device
        )


def four_rooms(*, discount: float = 0.99, slip: float = 0.33, device: str | torch.device = "cpu") -> GridWorld:
    """Four rooms of 104 cells, 13 × 13 with the walls, and two followers: one context for each goal, (1, 9) and (11, 11).

    Start (4, 1), corridors (3, 6), (6, 2), (7, 9), (10, 6). The chosen direction is taken with probability .67, each other with .11;
    HPGD's released simulator does the same, its transition matrix does not (it has .56 and .147).

    Args:
        discount: γ.
        slip: probability that another direction than the chosen one is taken.
        device: where the tables live.

    Returns:
        a world with tables [C, S, A, S] = [2, 104, 4, 104]; P differs between the contexts in the rows of the goals only.
    """
    return GridWorld(FOUR_ROOMS, discount, slip=slip, goals=("1", "2"), device=device)


def chain(
    length: int,
    discount: float,
    *,
    slip: float = 0.0,
    scatter: float = 0.0,
    rewards: Mapping[str, float] | None = None,
    device: str | torch.device = "cpu",
) -> GridWorld:
    """States in a row with the actions left and right; it starts in the leftmost and never ends.

    ``scatter=0.1`` is the noise of the chain of Rakhsha et al. (2020, policy teaching via environment poisoning): 9 times in 10 the
    action succeeds, else the next state is a uniform draw.

    Args:
        length: S.
        discount: γ.
        slip: probability that the other action is carried out.
        scatter: probability that the next state is drawn uniformly.
        rewards: what an action earns in the first state, ``"S"``, the last one, ``"E"``, and those between, ``"."``.
        device: where the tables live.

    Raises:
        InvalidProblem: fewer than three states.
    """
    if length < 3:
        raise InvalidProblem(f"length is {length}: a chain has a first, a last and one more state at least, so 3")
    row = "S" + "." * (length - 2) + "E"
    return GridWorld([row], discount, slip=slip, scatter=scatter, goals="", rewards=rewards, directions=SIDEWAYS, device=device)


def open_grid(side: int, *, discount: float = 0.99, slip: float = 0.1, device: str | torch.device = "cpu") -> GridWorld:
    """side × side cells without a wall, the start in one corner and the goal in the opposite one: what solvers are timed on."""
    if side < 2:
        raise InvalidProblem(f"side is {side}: start and goal need a grid of 2 × 2 at least")
    rows = ["S" + "." * (side - 1), *["." * side] * (side - 2), "." * (side - 1) + "G"]
    return GridWorld(rows, discount, slip=slip, device=device)


def _moves(grid: Grid, slip: float, scatter: float) -> tuple[np.ndarray, np.ndarray]:
    """[S, U] where one can get to and [S, A, U] with what probability, before any episode ends."""
    for name, value in (("slip", slip), ("scatter", scatter)):
        if not 0.0 <= value <= 1.0:
            raise InvalidProblem(f"{name} is {value}: it is a probability, in [0, 1]")
    states, actions = grid.moves.shape
    if slip and actions == 1:
        raise InvalidProblem("slip carries out another action, and there is only one: leave slip at 0")
    carried = np.full((actions, actions), slip / max(actions - 1, 1))
    np.fill_diagonal(carried, 1.0 - slip)
    moves, law = grid.moves, np.broadcast_to((1.0 - scatter) * carried, (states, actions, actions))
    if scatter:
        moves = np.concatenate([moves, np.broadcast_to(np.arange(states), (states, states))], -1)
        law = np.concatenate([law, np.full((states, actions, states), scatter / states)], -1)
    return moves, law
