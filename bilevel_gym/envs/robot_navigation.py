"""``bilevel/RobotNavigation-v0``: a cost map for a robot's planner, judged by what the drive really costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from bilevel_gym.arguments import checked
from bilevel_gym.envs.bilevel_env import BilevelEnv
from bilevel_gym.envs.solver_names import tabular_solver
from bilevel_gym.envs.vector_env import vectorized
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.numerics import as_table
from bilevel_gym.objectives import ReturnObjective
from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import FunctionReward
from bilevel_gym.types import LowerSolver
from bilevel_gym.worlds import Grid, GridWorld

__all__ = ["TERRAIN", "drive_cost", "robot_navigation", "robot_navigation_vector"]

TERRAIN = (
    "S..~~~..",
    ".#.~~~#.",
    ".#..#...",
    "...##.#.",
    ".#......",
    "...~~#.G",
)
"""Obstacles ``#``, rough ground ``~``, a start and a goal: the shortest ways lead over the rough, and between the obstacles."""


@checked
def robot_navigation(
    *,
    terrain: Sequence[str] = TERRAIN,
    slip: float = 0.1,
    energy: float = 1.0,
    collision: float = 5.0,
    max_cost: float = 5.0,
    discount: float = 0.95,
    designer_discount: float = 0.99,
    temperature: float = 0.2,
    solver: str | LowerSolver = "policy_iteration",
    sweeps: int = 10,
    solve_on_reset: bool = True,
    device: str = "cpu",
    render_mode: str | None = None,
) -> BilevelEnv:
    """A designer draws a cost map, a robot plans softly on it, and the designer pays for the way that it then takes.

    Description:
        The robot moves on a map with obstacles; the chosen direction is taken with probability .9, and an obstacle or the edge keeps it
        where it is. Its planner knows that a step costs 1 and what the cost map says, nothing of rough ground or collisions. The
        designer, who knows of both, can tell it only cell by cell: what depends on the direction, such as a wall beside the way, a
        cost map cannot say.
    x:
        The cost of acting in each cell but the goal, R^(S−1) in the box [0, 5]; it starts uniform on [0, ½].
    Lower level:
        S = 39 cells, A = 4 (up, right, down, left), γ = .95, τ = .2, r_sa(x) = −1 − x_s, and 0 in the goal, where the episode ends;
        solved to 1e-10 by soft policy iteration.
    Upper objective:
        f(x, π) = E Σ_t γ̄^t ( 1 + energy·1[s_t rough] + 5·P(collision | s_t, a_t) ) until the goal is reached, γ̄ = .99: path length,
        energy and collisions.
    Observation:
        ``objective`` [1], ``gap`` [1], ``x`` [S−1], ``policy`` [S·A], float64.
    Reward:
        −f(x, π).
    Reference value:
        φ = 22.868 at x = 0, where the robot's planner knows nothing; for seed 0, 18.963 at the first x and 16.042 after 100 steps of
        ``exact`` at a learning rate of .4. No policy costs the designer less than 15.956 (her own optimal control).

    Args:
        terrain: rows of the map: ``#`` an obstacle, ``~`` rough ground, ``S`` starts, ``G`` goals, anything else smooth ground.
        slip: probability that another direction than the chosen one is taken.
        energy: what a step on rough ground costs the designer beyond 1.
        collision: what bumping into an obstacle or the edge costs her.
        max_cost: the box of x is [0, max_cost].
        discount: γ of the robot.
        designer_discount: γ̄ of the designer.
        temperature: τ.
        solver: ``"policy_iteration"`` (to 1e-10), ``"value_iteration"`` (``sweeps`` sweeps a step), or a solver object.
        sweeps: for value iteration.
        solve_on_reset: whether a reset solves at the first x.
        device: where the tables live.
        render_mode: ``"rgb_array"`` or ``"ansi"``.

    Raises:
        InvalidProblem: a map without start or goal, or with rows of different lengths; a negative cost.

    Version history:
        v0: the first.
    """
    if min(energy, collision) < 0.0:
        raise InvalidProblem(f"energy is {energy} and collision {collision}: neither is negative, the designer minimises costs")
    world = GridWorld(terrain, discount, slip=slip, goal_reward=0.0, device=device)
    driving = ~world.grid.marked("G")
    cells = as_table(np.eye(len(driving))[driving], device)
    step = as_table(driving.astype(np.float64), device)

    def reward(x: Tensor) -> Tensor:
        by_state = -step - x @ cells
        return by_state.unsqueeze(-1).expand(*by_state.shape, world.actions)

    edge = np.zeros(int(driving.sum()))
    cost = drive_cost(world.grid, slip=slip, energy=energy, collision=collision) * driving[:, None]
    problem = BilevelProblem(
        world,
        FunctionReward(reward, edge, edge + max_cost, start=(0.0, min(0.5, max_cost)), device=device),
        Shannon(temperature),
        ReturnObjective(cost, discount=designer_discount, device=device),
    )
    return BilevelEnv(problem, tabular_solver(solver, sweeps), solve_on_reset=solve_on_reset, render_mode=render_mode)


robot_navigation_vector = vectorized(robot_navigation)
"""N of them as one batch: what ``gym.make_vec("bilevel/RobotNavigation-v0", num_envs=N)`` makes."""


def drive_cost(grid: Grid, *, slip: float, energy: float, collision: float) -> np.ndarray:
    """1 + energy·1[s rough] + collision·P(the direction that is taken from s leads nowhere | s, a): [S, A].

    Args:
        grid: the map, with rough ground marked ``~``.
        slip: probability that another direction than the chosen one is taken.
        energy: of a step on rough ground.
        collision: of bumping into an obstacle or the edge.
    """
    states, actions = grid.moves.shape
    blocked = (grid.moves == np.arange(states)[:, None]).astype(np.float64)
    others = (blocked.sum(-1, keepdims=True) - blocked) / (actions - 1)
    rough = np.array([grid.rows[row][column] == "~" for row, column in grid.cells])
    cost: np.ndarray = 1.0 + energy * rough[:, None] + collision * ((1.0 - slip) * blocked + slip * others)
    return cost
