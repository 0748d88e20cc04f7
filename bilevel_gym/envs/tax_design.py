"""``bilevel/TaxDesign-v0``: value-added and income taxes on households that work, consume and save."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.arguments import checked
from bilevel_gym.envs.bilevel_env import BilevelEnv
from bilevel_gym.envs.solver_names import tabular_solver
from bilevel_gym.envs.vector_env import vectorized
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.objectives import ReturnObjective
from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import FunctionReward
from bilevel_gym.types import LowerSolver
from bilevel_gym.worlds import ControlledWorld

__all__ = ["Households", "tax_design", "tax_design_vector"]

GOODS = 3
MAX_HOURS, MAX_CONSUMPTION, ASSETS, NOISE, START = 8.0, 5.0, 100.0, 5.0, sqrt(2.0)
"""Hours a day, units of each good, assets lie in [−100, 100], the deviations of their noise and of the first ones."""
WORK, WELFARE_CONSUMPTION, WELFARE_TAXES = 0.1, 15.0, 5.0
"""The households' weight on hours², the government's on consumption and on log taxes."""


@dataclass(frozen=True)
class Households:
    """Tables of the households, one context for each taste, on a grid of assets, hours and consumption.

    x holds the value-added rates v of the three goods and the income tax u; wage and prices are 1.

    Args:
        assets: grid points of the assets, S.
        hours: choices of hours, evenly from 0 to 8.
        consumption: choices of each good, evenly from 0 to 5; A = hours · consumption³.
        tastes: [C, 3] Cobb–Douglas exponents.
        device: where the tables live.

    Raises:
        InvalidProblem: fewer than two points of a grid, or tastes that are not [C, 3] positive numbers.
    """

    assets: int
    hours: int
    consumption: int
    tastes: tuple[tuple[float, float, float], ...]
    device: str | torch.device = "cpu"

    def __post_init__(self) -> None:
        if min(self.assets, self.hours, self.consumption) < 2:
            raise InvalidProblem(
                f"assets, hours and consumption are {self.assets}, {self.hours}, {self.consumption}: each grid has 2 points at least"
            )
        if not self.tastes or any(len(taste) != GOODS or not all(0.0 < one < float("inf") for one in taste) for taste in self.tastes):
            raise InvalidProblem(f"tastes are {self.tastes}: give each household three positive exponents, such as [0.6, 0.3, 0.1]")

    def _grid(self, low: float, high: float, count: int) -> Tensor:
        return torch.linspace(low, high, count, dtype=torch.float64, device=self.device)

    @cached_property
    def points(self) -> Tensor:
        """[S] the assets."""
        return self._grid(-ASSETS, ASSETS, self.assets)

    @cached_property
    def choices(self) -> tuple[Tensor, Tensor]:
        """Hours [A] and consumption [A, 3] of each action."""
        goods = [self._grid(0.0, MAX_CONSUMPTION, self.consumption)] * GOODS
        table = torch.cartesian_prod(self._grid(0.0, MAX_HOURS, self.hours), *goods)
        return table[:, 0], table[:, 1:]

    @cached_property
    def budgets(self) -> tuple[Tensor, Tensor]:
        """The different pairs of hours and money spent, and which of them each action [A] is."""
        hours, goods = self.choices
        pairs, kind = torch.stack([hours, goods.sum(-1)], -1).unique(dim=0, return_inverse=True)
        return pairs, kind

    def reward(self, x: Tensor) -> Tensor:
        """U(s) − .1 h² + Π_i ( c_i/(1 + v_i) )^{α_i}, with U(s) = log(1 + s/20) above 0 and s below: [B, 1, 4] → [B, C, S, A]."""
        hours, goods = self.choices
        tastes = torch.tensor(self.tastes, dtype=torch.float64, device=self.device)
        bundle = (goods.unsqueeze(0) ** tastes.unsqueeze(1)).prod(-1)
        shrunk = (-torch.log1p(x[..., :GOODS]) * tastes).sum(-1, keepdim=True).exp()
        points = self.points
        wealth = torch.where(points > 0, torch.log1p(points.clamp_min(0.0) / 20.0), points)
        by_action: Tensor = shrunk * bundle - WORK * hours**2
        table: Tensor = wealth.unsqueeze(-1) + by_action.unsqueeze(-2)
        return table

    def transition(self, x: Tensor) -> Tensor:
        """P of s' = s + (1 − u) h − Σ_i c_i + noise, the noise normal and cut off at ±100: [B, 1, 4] → [B, 1, S, A, S]."""
        budgets, kind = self.budgets  # whoever works and spends as much saves as much: fewer rows to compute
        saved = (1.0 - x[..., GOODS:]) * budgets[:, 0] - budgets[:, 1]
        rows = self.spread(self.points.unsqueeze(-1) + saved.unsqueeze(-2), NOISE)
        return rows.index_select(-2, kind)

    def spread(self, mean: Tensor, deviation: float) -> Tensor:
        """Probabilities of the grid's cells under a normal law that is cut off at the ends: [...] → [..., S]."""
        points = self.points
        edges = torch.cat([points[:1], (points[1:] + points[:-1]) / 2.0, points[-1:]])
        below: Tensor = torch.special.ndtr((edges - mean.unsqueeze(-1)) / deviation)
        return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])

    def cost(self, x: Tensor) -> Tensor:
        """Minus the welfare 15 · mean_i c_i/(1 + v_i) / 5 + 5 log(1 + Σ_i v_i c_i/(1 + v_i) + u h): [B, 1, 4] → [B, 1, S, A]."""
        hours, goods = self.choices
        rates, income = x[..., None, :GOODS], x[..., GOODS:]
        bought = goods / (1.0 + rates)
        taxes = (rates * bought).sum(-1) + income * hours
        welfare: Tensor = WELFARE_CONSUMPTION * bought.mean(-1) / MAX_CONSUMPTION + WELFARE_TAXES * torch.log1p(taxes)
        return -welfare.unsqueeze(-2).expand(*welfare.shape[:-1], self.assets, -1)


@checked
def tax_design(
    *,
    assets: int = 21,
    hours: int = 5,
    consumption: int = 3,
    tastes: tuple[tuple[float, float, float], ...] = ((0.6, 0.3, 0.1), (0.1, 0.7, 0.2)),
    discount: float = 0.9,
    temperature: float = 0.1,
    continuous: bool = False,
    solver: str | LowerSolver = "policy_iteration",
    sweeps: int = 10,
    solve_on_reset: bool = True,
    device: str = "cpu",
    render_mode: str | None = None,
) -> BilevelEnv:
    """A government sets taxes, and households of two tastes decide how much to work, consume and save.

    Description:
        The tax design of HPGD (Thoma, Pasztor, Krause, Ramponi, Hu, NeurIPS 2024, arXiv 2406.01575), with the numbers of its released
        code and on coarser grids, a re-implementation. A household with assets s works h ∈ {0, 2, …, 8} hours, spends
        c_i ∈ {0, 2.5, 5} on each of three goods, and goes on with s' = s + (1 − u) h − Σ_i c_i + w, w normal with deviation 5, cut off
        where assets would leave [−100, 100]. (The original has 10 and 5 levels, continuous assets and Q-learning with a network; it
        clips s' before the noise, which the cut-off makes needless.) Assets start normal with variance 2.
    x:
        Three value-added rates v and the income tax u, R^4 in the box [0, 2]; they start uniform on [0, 1]. x moves P and r.
    Lower level:
        S = 21 assets from −100 to 100, A = 135, γ = .9, τ = .1 (.2 and .3 in the paper too), two households with tastes
        α = (.6, .3, .1) and (.1, .7, .2), each with weight ½; r_sa(x) = U(s) − .1 h² + Π_i (c_i/(1 + v_i))^{α_i}, where U(s) is
        log(1 + s/20) for s > 0 and s in debt; solved to 1e-10 by soft policy iteration.
    Upper objective:
        f(x, π) = −(1 − γ) E Σ_t γ^t ( 15 · mean_i c_i/(1 + v_i) / 5 + 5 log(1 + Σ_i v_i c_i/(1 + v_i) + u h) ), minus the social
        welfare of a step (the paper's sum is 1/(1 − γ) times it): what is consumed, and the logarithm of what is raised.
    Observation:
        ``objective`` [1], ``gap`` [1], ``x`` [4], ``policy`` [2·S·A], float64.
    Reward:
        −f(x, π), the social welfare.
    Reference value:
        Seed 0: φ = −4.9351 at the first x, −5.5036 after 60 steps of ``exact``, with u = .80. φ is steep in u: at u = 1 work stops to
        pay and the welfare falls to nearly nothing, where longer steps stay. It is flat in v. At v = (.6, .2, .3), u = .75 φ is −5.351
        on this grid, −5.186 with ``assets=41``, −5.132 with ``assets=161``.

    Args:
        assets: S, grid points of the assets.
        hours: levels of work.
        consumption: levels of each good.
        tastes: [C, 3] Cobb–Douglas exponents, one household each.
        discount: γ, of both levels.
        temperature: τ.
        continuous: assets without a grid; refused.
        solver: ``"policy_iteration"`` (to 1e-10), ``"value_iteration"`` (``sweeps`` sweeps a step), or a solver object.
        sweeps: for value iteration.
        solve_on_reset: whether a reset solves at the first x.
        device: where the tables live.
        render_mode: ``"rgb_array"`` or ``"ansi"``.

    Raises:
        UnsupportedProblem: ``continuous=True``.
        InvalidProblem: a grid with fewer than two points, or tastes that are not [C, 3] positive numbers.

    Version history:
        v0: the first.
    """
    if continuous:
        raise UnsupportedProblem(
            "continuous=True needs a deep lower level over assets without a grid, with x in the dynamics, and there is none yet; take a finer grid, such as assets=81"
        )
    households = Households(assets, hours, consumption, tuple(tuple(taste) for taste in tastes), device)  # type: ignore[misc]
    edge = np.zeros(GOODS + 1)
    count = len(households.tastes)
    world = ControlledWorld(
        households.transition,
        edge,
        households.spread(torch.zeros((), dtype=torch.float64, device=device), START),
        discount,
        context_weights=np.full(count, 1.0 / count),
        device=device,
    )
    problem = BilevelProblem(
        world,
        FunctionReward(households.reward, edge, edge + 2.0, start=(0.0, 1.0), device=device),
        Shannon(temperature),
        ReturnObjective(lambda x: (1.0 - discount) * households.cost(x)),
    )
    return BilevelEnv(problem, tabular_solver(solver, sweeps), solve_on_reset=solve_on_reset, render_mode=render_mode)


tax_design_vector = vectorized(tax_design)
"""N of them as one batch: what ``gym.make_vec("bilevel/TaxDesign-v0", num_envs=N)`` makes."""
