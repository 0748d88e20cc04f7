"""``bilevel/ContractDesign-v0``: a principal pays an agent for outcomes, and cannot see what the agent does."""

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
from bilevel_gym.numerics import TableFunction, as_table
from bilevel_gym.objectives import ReturnObjective
from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import FunctionReward
from bilevel_gym.types import LowerSolver
from bilevel_gym.worlds import TabularWorld

__all__ = ["ContractTree", "contract_design", "contract_design_vector", "draw_contract_tree"]


@dataclass(frozen=True)
class ContractTree:
    """A binary decision tree of hidden actions; node s has the children 2s+1 (left) and 2s+2 (right), and below the last row it ends.

    Action 0 aims left and is free, action 1 aims right and costs effort. Nature goes where it was aimed with probability ``accuracy``.

    Args:
        worth: [S, 2] what the outcomes, left and right, are worth to the principal.
        effort: [S] what action 1 costs the agent.
        accuracy: P(right | aimed right) = P(left | aimed left), in (½, 1].
        discount: γ, of both.

    Raises:
        InvalidProblem: the sizes are not those of a complete tree, or aiming makes no difference.
    """

    worth: np.ndarray
    effort: np.ndarray
    accuracy: float
    discount: float

    def __post_init__(self) -> None:
        states = len(self.effort)
        if self.worth.shape != (states, 2) or self.effort.ndim != 1 or states < 1 or (states + 1).bit_count() != 1:
            raise InvalidProblem(
                f"worth has shape {self.worth.shape} and effort {self.effort.shape}: they must be [S, 2] and [S], S = 2^depth − 1"
            )
        if not 0.5 < self.accuracy <= 1.0:
            raise InvalidProblem(f"accuracy is {self.accuracy}: aiming must make a difference, so it lies in (0.5, 1]")

    @property
    def outcomes(self) -> np.ndarray:
        """[A, O] = [2, 2] P(outcome | action)."""
        return np.array([[self.accuracy, 1.0 - self.accuracy], [1.0 - self.accuracy, self.accuracy]])

    @property
    def costs(self) -> np.ndarray:
        """[S, A] what the actions cost the agent."""
        return np.stack([np.zeros_like(self.effort), self.effort], -1)

    @property
    def transition(self) -> np.ndarray:
        """[S, A, S]; rows of the last row of the tree are 0, there the episode ends."""
        states = len(self.effort)
        table = np.zeros((states, 2, states))
        for state in range(states // 2):
            table[state, :, 2 * state + 1 : 2 * state + 3] = self.outcomes
        return table

    def problem(self, *, temperature: float, max_payment: float, device: str | torch.device = "cpu") -> BilevelProblem:
        """The bilevel problem in which the principal sets payments in [0, ``max_payment``] and the agent answers softly.

        Args:
            temperature: τ.
            max_payment: of each outcome.
            device: where the tables live.
        """
        transition = self.transition
        outcomes, costs, worth = (as_table(table, device) for table in (self.outcomes, self.costs, self.worth))
        edge = np.full(self.worth.size, max_payment)
        return BilevelProblem(
            TabularWorld(transition, np.eye(len(transition))[0], self.discount, 1.0 - transition.sum(-1), device=device),
            FunctionReward(
                TableFunction(_expect, (outcomes, -costs)), np.zeros_like(edge), edge, start=(0.0, max_payment / 2), device=device
            ),
            Shannon(temperature),
            ReturnObjective(TableFunction(_expect, (outcomes, -worth @ outcomes.mT))),
        )

    def least_payments(self, margin: float = 0.0) -> tuple[np.ndarray, float]:
        """The dynamic programme from the leaves to the root: at each node the action that is worth most to the principal, least paid.

        With U_o what the agent expects after outcome o and Δ = 2·accuracy − 1, the agent prefers action 1 by at least ``margin`` iff
        x_right − x_left ≥ (effort + margin)/Δ − γ(U_right − U_left), and action 0 iff x_left − x_right ≥ (margin − effort)/Δ
        − γ(U_left − U_right). The cheapest payments ≥ 0 pay for the outcome that is aimed at, and nothing for the other.

        Args:
            margin: by how much the agent prefers the action to the other one; at 0 it is indifferent.

        Returns:
            the payments x [S·2], and the principal's value, discounted: −φ in the limit τ → 0 where the margin is positive.
        """
        states, gap = len(self.effort), 2.0 * self.accuracy - 1.0
        payments, agent, principal = np.zeros((states, 2)), np.zeros(2 * states + 1), np.zeros(2 * states + 1)
        for state in reversed(range(states)):
            after = slice(2 * state + 1, 2 * state + 3)
            best = -np.inf
            for action, sign in ((0, -1.0), (1, 1.0)):
                needed = (sign * self.effort[state] + margin) / gap - sign * self.discount * (agent[2 * state + 2] - agent[2 * state + 1])
                paid = np.zeros(2)
                paid[action] = max(needed, 0.0)
                profit = self.outcomes[action] @ (self.worth[state] - paid + self.discount * principal[after])
                if profit > best:
                    best, payments[state] = profit, paid
                    utility = self.outcomes[action] @ (paid + self.discount * agent[after]) - self.costs[state, action]
            principal[state], agent[state] = best, utility
        return payments.flatten(), float(principal[0])


@checked
def contract_design(
    *,
    depth: int = 3,
    accuracy: float = 0.8,
    max_payment: float = 1.0,
    discount: float = 0.95,
    temperature: float = 0.02,
    solver: str | LowerSolver = "policy_iteration",
    sweeps: int = 10,
    solve_on_reset: bool = True,
    device: str = "cpu",
    render_mode: str | None = None,
) -> BilevelEnv:
    """A principal sets payments for what happens in a binary decision tree; what the agent does there is hidden.

    Description:
        At each node the agent aims left, which is free, or right, which costs effort; nature goes where it aimed with probability .8.
        The principal sees the outcome alone, the child that was reached. She earns its worth and pays x_so ≥ 0 for it (limited
        liability). ``reset(seed)`` draws the tree: worths uniform on [0, 1], efforts on [.05, .2]. The setting is that of principal-
        agent reinforcement learning (Ivanov et al., 2024, arXiv 2407.18074), with a contract that is fixed before the agent learns.
    x:
        The payments, one for each node and outcome, R^(2S) in the box [0, 1]; they start uniform on [0, ½].
    Lower level:
        S = 2³ − 1 nodes, A = 2, γ = .95, τ = .02; r_sa(x) = Σ_o P(o | a) x_so − cost_sa; solved to 1e-10 by soft policy iteration.
    Upper objective:
        f(x, π) = −E Σ_t γ^t (worth of the outcome − payment), minus the principal's profit, from the root.
    Observation:
        ``objective`` [1], ``gap`` [1], ``x`` [2S], ``policy`` [S·A], float64.
    Reward:
        −f(x, π), the profit.
    Reference value:
        Seed 0: φ = −.6251 at the first x, −1.3297 after 200 steps of ``exact`` at a learning rate of .1. In the limit τ → 0 the
        dynamic programme of ``ContractTree.least_payments`` is worth 1.3609, and no contract more than 1.3616 (a linear programme for
        every plan); the programme's contract with a margin of .05 is worth 1.2989 in the limit, and 1.2984 at τ = .02.

    Args:
        depth: rows of the tree; S = 2^depth − 1.
        accuracy: P(the outcome that was aimed at).
        max_payment: the box of x is [0, max_payment].
        discount: γ, of both.
        temperature: τ.
        solver: ``"policy_iteration"`` (to 1e-10), ``"value_iteration"`` (``sweeps`` sweeps a step), or a solver object.
        sweeps: for value iteration.
        solve_on_reset: whether a reset solves at the first x.
        device: where the tables live.
        render_mode: ``"rgb_array"`` or ``"ansi"``.

    Version history:
        v0: the first.
    """
    draw = partial(draw_contract_tree, depth=depth, accuracy=accuracy, discount=discount)
    return BilevelEnv(
        lambda rng: draw(rng).problem(temperature=temperature, max_payment=max_payment, device=device),
        tabular_solver(solver, sweeps),
        solve_on_reset=solve_on_reset,
        render_mode=render_mode,
    )


contract_design_vector = vectorized(contract_design)
"""N of them as one batch: what ``gym.make_vec("bilevel/ContractDesign-v0", num_envs=N)`` makes."""


def draw_contract_tree(rng: np.random.Generator, *, depth: int = 3, accuracy: float = 0.8, discount: float = 0.95) -> ContractTree:
    """A random tree: worths uniform on [0, 1], efforts on [.05, .2].

    Args:
        rng: the source of the tree.
        depth: rows of nodes, 1 to 10.
        accuracy: P(the outcome that was aimed at).
        discount: γ.

    Raises:
        InvalidProblem: ``depth`` is out of range.
    """
    if not 1 <= depth <= 10:
        raise InvalidProblem(f"depth is {depth}: a tree has 1 row at least, and above 10 (1023 nodes) a dense table grows too large")
    states = 2**depth - 1
    return ContractTree(rng.random((states, 2)), rng.uniform(0.05, 0.2, states), accuracy, discount)


def _expect(payments: Tensor, outcomes: Tensor, offset: Tensor) -> Tensor:
    """Σ_o P(o | a) payment_so + offset_sa: [B, S·O], [B, A, O], [B, S, A] → [B, S, A]."""
    paid: Tensor = payments.unflatten(-1, (-1, outcomes.shape[-1])) @ outcomes.mT
    return paid + offset
