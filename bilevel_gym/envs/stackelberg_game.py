"""``bilevel/StackelbergGame-v0``: a leader commits to a mixed policy, and with it moves the follower's rewards and transitions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.arguments import checked
from bilevel_gym.envs.bilevel_env import BilevelEnv
from bilevel_gym.envs.solver_names import tabular_solver
from bilevel_gym.envs.vector_env import vectorized
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.numerics import ArrayLike, TableFunction, as_table
from bilevel_gym.objectives import ReturnObjective
from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import FunctionReward
from bilevel_gym.types import LowerSolver
from bilevel_gym.worlds import ControlledWorld

__all__ = ["MarkovGame", "draw_markov_game", "stackelberg_game", "stackelberg_game_vector"]

BOUND = 10.0
"""Logits lie in [−10, 10]: an action that the leader avoids keeps a probability of about 2e-9."""


@dataclass(frozen=True)
class MarkovGame:
    """Two players on finitely many states; the leader's actions are L in number, the follower's A.

    Args:
        leader: [S, L, A] the leader's payoffs.
        follower: [S, L, A] the follower's payoffs.
        transition: [S, L, A, S] P(s' | s, b, a).

    Raises:
        InvalidProblem: a shape does not fit, or a payoff is not finite.
    """

    leader: Tensor
    follower: Tensor
    transition: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.leader.shape)
        if len(shape) != 3 or tuple(self.follower.shape) != shape or tuple(self.transition.shape) != (*shape, shape[0]):
            raise InvalidProblem(
                f"payoffs have the shapes {shape} and {tuple(self.follower.shape)}, transition {tuple(self.transition.shape)}: they must be [S, L, A] twice and [S, L, A, S]"
            )
        if not bool(self.leader.isfinite().all() & self.follower.isfinite().all()):
            raise InvalidProblem("payoffs must be finite: there is a NaN or an infinity among them")

    @classmethod
    def matrix(cls, payoffs: ArrayLike, device: str | torch.device = "cpu") -> MarkovGame:
        """A bimatrix game that is played over and over: one state.

        Args:
            payoffs: [2, L, A] the leader's and the follower's; the leader chooses the row.
            device: where the tables live.

        Raises:
            InvalidProblem: it is not two matrices of one shape.
        """
        try:
            table = as_table(payoffs, device)
        except ValueError as error:
            raise InvalidProblem(f"payoffs must be two matrices of one shape, [2, L, A]: {error}") from error
        if table.ndim != 3 or len(table) != 2:
            raise InvalidProblem(f"payoffs have shape {tuple(table.shape)}: they must be [2, L, A], the leader's matrix and the follower's")
        leader, follower = table.unsqueeze(1)
        return cls(leader, follower, torch.ones_like(leader).unsqueeze(-1))

    def problem(self, *, discount: float, leader_discount: float | None, temperature: float) -> BilevelProblem:
        """The bilevel problem in which the leader commits and the follower answers softly; both start in a uniform state.

        Args:
            discount: γ of the follower.
            leader_discount: γ̄ of the leader; None takes γ.
            temperature: τ.
        """
        states, rows, _ = self.leader.shape
        edge = np.full(states * rows, BOUND)
        device = self.leader.device
        return BilevelProblem(
            ControlledWorld(
                TableFunction(_mix_rows, (self.transition,)), np.zeros_like(edge), np.full(states, 1.0 / states), discount, device=device
            ),
            FunctionReward(TableFunction(_mix, (self.follower,)), -edge, edge, start=(-1.0, 1.0), device=device),
            Shannon(temperature),
            ReturnObjective(TableFunction(_mix, (-self.leader,)), discount=leader_discount),
        )


def _mix(x: Tensor, table: Tensor) -> Tensor:
    """Σ_b softmax(x_s)_b table_sba: [B, S·L], [B, S, L, A] → [B, S, A]."""
    mixture = torch.softmax(x.unflatten(-1, table.shape[-3:-1]), -1)
    mixed: Tensor = mixture.unsqueeze(-2) @ table
    return mixed.squeeze(-2)


def _mix_rows(x: Tensor, table: Tensor) -> Tensor:
    """The same of a transition: [B, S·L], [B, S, L, A, S] → [B, S, A, S]."""
    rows: Tensor = _mix(x, table.flatten(-2)).unflatten(-1, table.shape[-2:])
    return rows


@checked
def stackelberg_game(
    *,
    payoffs: ArrayLike | None = None,
    states: int = 5,
    leader_actions: int = 3,
    follower_actions: int = 3,
    discount: float = 0.9,
    leader_discount: float | None = None,
    temperature: float = 0.1,
    solver: str | LowerSolver = "policy_iteration",
    sweeps: int = 10,
    solve_on_reset: bool = True,
    device: str = "cpu",
    render_mode: str | None = None,
) -> BilevelEnv:
    """A Markov game in which the leader commits to a mixed policy, the follower sees it and best-responds softly.

    Description:
        In state s the leader plays b with probability σ(x_s)_b = softmax(x_s)_b, the follower a; both are paid, and s' is drawn from
        P(s' | s, b, a). The follower's decision problem has r_sa(x) = Σ_b σ(x_s)_b R_sba and P_sas'(x) = Σ_b σ(x_s)_b P_sbas': x moves
        both. ``reset(seed)`` draws the game: payoffs uniform on [0, 1], rows of P uniform on the simplex. ``payoffs`` gives a bimatrix
        game instead, one state that is played over and over.
    x:
        The leader's logits, state by state, R^(S·L) in the box [−10, 10]; they start uniform on [−1, 1].
    Lower level:
        S = 5, L = 3, A = 3, γ = .9, τ = .1; solved to 1e-10 by soft policy iteration.
    Upper objective:
        f(x, π) = −E Σ_t γ̄^t R̄(s_t, b_t, a_t), R̄ the leader's payoff, from a uniform state.
    Observation:
        ``objective`` [1], ``gap`` [1], ``x`` [S·L], ``policy`` [S·A], float64.
    Reward:
        −f(x, π), the leader's value.
    Reference value:
        Seed 0: φ = −5.285 at the first x, −8.062 after 300 steps of ``exact`` at a learning rate of 1, and nearly all of it there: a
        mixture tends to pure rows, at the edge of the box. ``payoffs=[[[3,3],[6,4]],[[4,6],[2,2]]]``: inf φ = −50, the second row
        alone, where the follower is indifferent (a 1-d grid over the mixture).

    Args:
        payoffs: [2, L, A] the leader's and the follower's matrix, the leader chooses the row; None draws a Markov game.
        states: S of the Markov game.
        leader_actions: L of the Markov game.
        follower_actions: A of the Markov game.
        discount: γ of the follower.
        leader_discount: γ̄ of the leader; None takes γ.
        temperature: τ.
        solver: ``"policy_iteration"`` (to 1e-10), ``"value_iteration"`` (``sweeps`` sweeps a step), or a solver object.
        sweeps: for value iteration.
        solve_on_reset: whether a reset solves at the first x.
        device: where the tables live.
        render_mode: ``"rgb_array"`` or ``"ansi"``.

    Raises:
        InvalidProblem: ``payoffs`` are not two matrices of one shape, or a size is not positive.

    Version history:
        v0: the first.
    """
    pose = partial(MarkovGame.problem, discount=discount, leader_discount=leader_discount, temperature=temperature)
    draw = partial(draw_markov_game, states=states, leader_actions=leader_actions, follower_actions=follower_actions, device=device)
    return BilevelEnv(
        pose(MarkovGame.matrix(payoffs, device)) if payoffs is not None else lambda rng: pose(draw(rng)),
        tabular_solver(solver, sweeps),
        solve_on_reset=solve_on_reset,
        render_mode=render_mode,
    )


stackelberg_game_vector = vectorized(stackelberg_game)
"""N of them as one batch: what ``gym.make_vec("bilevel/StackelbergGame-v0", num_envs=N)`` makes."""


def draw_markov_game(
    rng: np.random.Generator, *, states: int = 5, leader_actions: int = 3, follower_actions: int = 3, device: str | torch.device = "cpu"
) -> MarkovGame:
    """A random game: payoffs uniform on [0, 1], rows of P uniform on the simplex.

    Args:
        rng: the source of the game.
        states: S.
        leader_actions: L.
        follower_actions: A.
        device: where the tables live.

    Raises:
        InvalidProblem: a size is not positive.
    """
    shape = (states, leader_actions, follower_actions)
    if min(shape) < 1:
        raise InvalidProblem(f"states, leader_actions and follower_actions are {shape}: each is 1 at least")
    payoffs = as_table(rng.random((2, *shape)), device)
    return MarkovGame(payoffs[0], payoffs[1], as_table(rng.dirichlet(np.ones(states), shape), device))
