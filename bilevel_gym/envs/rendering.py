"""Pictures of policies, rewards and vectors, drawn with NumPy alone."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
from torch import Tensor

from bilevel_gym.worlds import Grid

__all__ = ["grid_picture", "picture", "policy_picture", "vector_picture"]


def picture(problem: Any, x: Tensor, policy: Any) -> np.ndarray:
    """What suits the lower level: a map, bars, the follower at work, or vectors.

    A table has ``grid_picture`` where its world has a ``grid``, else ``policy_picture``; a simulator draws itself; a function has x
    above y (``vector_picture``).

    Args:
        problem: any.
        x: [D].
        policy: [S, A], or [C, S, A] for several followers; elsewhere what the response has.
    """
    if problem.world is None:
        return vector_picture(x, policy)
    if not problem.tabular:
        drawn: np.ndarray = problem.world.picture(policy)
        return drawn
    grid: Grid | None = getattr(problem.world, "grid", None)
    return policy_picture(policy) if grid is None else grid_picture(grid, policy, problem.at(x).reward)


def policy_picture(policy: Tensor, *, width: int = 480, height: int = 240) -> np.ndarray:
    """Stacked bars: one bar a state, one colour an action, its height the probability; contexts below each other.

    Args:
        policy: [S, A], or [C, S, A] for several followers.
        width: pixels, at least.
        height: pixels, of each context.

    Returns:
        [height, width, 3] uint8, or [C·height, width, 3].
    """
    if policy.ndim > 2:
        return np.concatenate([policy_picture(one, width=width, height=height) for one in policy])
    table = np.asarray(policy.detach().cpu())
    states, actions = table.shape
    bar = max(width // states, 1)
    colours = np.array([[round(255 * c) for c in colorsys.hsv_to_rgb(a / actions, 0.55, 0.9)] for a in range(actions)], dtype=np.uint8)
    # The action at relative height (i + ½)/height of a bar is the first whose cumulated probability exceeds it.
    heights = (np.arange(height) + 0.5) / height
    chosen = (heights[:, None, None] >= table.cumsum(-1)[None]).sum(-1).clip(max=actions - 1)
    picture = np.repeat(colours[chosen][::-1], bar, axis=1)
    picture[:, bar - 1 :: bar] //= 2
    return picture


_WALL, _LINE, _INK = np.array([52, 55, 64]), np.array([205, 205, 205]), np.array([30, 30, 30])
_GAIN, _LOSS = np.array([33, 113, 181]), np.array([203, 60, 51])


def grid_picture(grid: Grid, policy: Tensor, reward: Tensor, *, cell: int = 29) -> np.ndarray:
    """The policy as arrows over the reward as a heat map, on a map; contexts side by side.

    An arrow's length is the probability of its direction. Blue is a gain, red a loss, white nothing; the depth of the colour is the
    cube root of |mean over actions of r_s|, relative to the largest, so that charges of a hundredth show beside a goal of 1. Cells with
    a mark of their own (start, goals) have a frame.

    Args:
        grid: where each state lies, and what each action adds to (row, column); the ``grid`` of a ``worlds.GridWorld``.
        policy: [S, A], or [C, S, A] for several followers.
        reward: [S, A] or [C, S, A], r_x at the x of now.
        cell: pixels of a cell's side.

    Returns:
        [rows · cell, columns · cell, 3] uint8; C of them in a row, a strip between two.
    """
    if policy.ndim > 2:
        tables = reward.expand(*policy.shape)
        pictures = [grid_picture(grid, one, table, cell=cell) for one, table in zip(policy, tables, strict=True)]
        strip = np.full((pictures[0].shape[0], cell // 2, 3), 255, dtype=np.uint8)
        return np.concatenate([part for picture in pictures for part in (picture, strip)][:-1], axis=1)
    probabilities, gains = np.asarray(policy.detach().cpu()), np.asarray(reward.detach().cpu()).mean(-1)
    depth = np.cbrt(np.abs(gains) / max(np.abs(gains).max(), 1e-300))[:, None]
    ground = 255 + depth * (np.where(gains[:, None] >= 0, _GAIN, _LOSS) - 255)
    tiles = np.broadcast_to(ground[:, None, None], (len(ground), cell, cell, 3)).copy()
    tiles[_arrows(grid, probabilities, cell)] = _INK
    marked = np.array([grid.rows[row][column] not in " .#" for row, column in grid.cells])
    for width, colour, which in ((1, _LINE, ~marked), (3, _INK, marked)):
        edge = np.ones((cell, cell), dtype=bool)
        edge[width:-width, width:-width] = False
        tiles[which[:, None, None] & edge] = colour
    board = np.broadcast_to(_WALL, (len(grid.rows), len(grid.rows[0]), cell, cell, 3)).copy()
    board[grid.cells[:, 0], grid.cells[:, 1]] = tiles.round()
    return board.swapaxes(1, 2).reshape(len(grid.rows) * cell, -1, 3).astype(np.uint8)


def _arrows(grid: Grid, policy: np.ndarray, cell: int) -> np.ndarray:
    """[S, cell, cell] bool: for each action a spike from the centre, as long as its probability."""
    place = np.linspace(-1.0, 1.0, cell)
    row, column = place[:, None], place[None, :]
    covered = np.zeros((len(policy), cell, cell), dtype=bool)
    for (down, right), chance in zip(grid.directions, policy.T, strict=True):
        length = 0.9 * chance[:, None, None]
        along, across = row * down + column * right, np.abs(row * right - column * down)
        covered |= (along >= 0) & (along <= length) & (across <= 0.22 * (1.0 - along / np.maximum(length, 1e-12)))
    return covered


def vector_picture(*vectors: Tensor, width: int = 480, height: int = 120) -> np.ndarray:
    """Bars from a middle line, one for each entry: blue up, red down; vectors below each other, each to its own scale.

    Args:
        *vectors: [n] each, of any lengths; where there are more entries than pixels, some are left out.
        width: pixels.
        height: pixels of each vector.

    Returns:
        [len(vectors)·height, width, 3] uint8.
    """
    levels = np.linspace(1.0, -1.0, height)[:, None]
    strips = []
    for vector in vectors:
        values = np.asarray(vector.detach().cpu(), dtype=np.float64)
        bars = values[np.arange(width) * len(values) // width] / max(float(np.abs(values).max()), 1e-300)
        strip = np.full((height, width, 3), 255, dtype=np.uint8)
        strip[(levels > 0) & (levels <= bars)] = (70, 110, 190)
        strip[(levels < 0) & (levels >= bars)] = (200, 80, 70)
        strip[height // 2] = strip[-1] = 160
        strips.append(strip)
    return np.concatenate(strips)
