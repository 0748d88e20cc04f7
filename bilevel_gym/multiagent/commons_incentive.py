"""``bilevel/CommonsIncentive-v0``: pay the herders of a common pasture for sparing it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bilevel_gym.arguments import checked
from bilevel_gym.envs import BilevelEnv
from bilevel_gym.errors import UnknownName
from bilevel_gym.multiagent.game_solvers import IndependentTables, SoftGameIteration
from bilevel_gym.multiagent.incentives import DesignObjective, Incentives, SocialCost, incentive_design
from bilevel_gym.multiagent.tabular_game import commons
from bilevel_gym.types import LowerSolver

__all__ = ["commons_incentive"]


@checked
def commons_incentive(
    *,
    price: float = 0.1,
    temperature: float = 0.5,
    discount: float = 0.9,
    solver: str | LowerSolver = "iteration",
    solve_on_reset: bool = True,
    render_mode: str | None = None,
) -> BilevelEnv:
    """The tragedy of the commons, with two herders who learn independently and a designer who pays them for sparing a green pasture.

    Description:
        Who grazes a green pasture takes from what both will find later, so without a payment the pasture is bare more often than is good
        for them. The follower is not one agent but two, each of whom answers the other (``multiagent.commons``).
    x:
        What each herder gets for a step in which it spares a green pasture, in the box [0, 2]²; it starts uniform.
    Lower level:
        A Markov game of S = 2 states (green, bare) and two actions each (spare, graze), γ = .9, τ = .5; the herders' logit equilibrium, a
        fixed point of soft policy iteration in turn, to 1e-10.
    Upper objective:
        f(x, π) = E Σ_t γ^t ( −r_1 − r_2 + price · (what was paid) ), with the price .1; exact.
    Observation:
        ``objective`` [1], ``gap`` [1] and ``x`` [2], float64.
    Reward:
        −f(x, π). The metrics ``welfare`` and ``paid`` are E Σ γ^t (r_1 + r_2) and the payments.
    Reference value:
        φ* = −15.862553 at x* = (.9748, .9748), where the welfare is 17.31; without payments φ(0) = −12.782160.

    Args:
        price: of a unit paid, ≥ 0.
        temperature: τ.
        discount: γ.
        solver: ``"iteration"`` (``multiagent.SoftGameIteration``), ``"play"`` (``multiagent.IndependentTables``, 4000 steps of play a solve),
            or a solver object.
        solve_on_reset: whether a reset solves at the first x.
        render_mode: ``"rgb_array"`` or ``"ansi"``.

    Raises:
        UnknownName: there is no such solver.

    Version history:
        v0: the first.
    """
    if isinstance(solver, str):
        named: dict[str, LowerSolver] = {"iteration": SoftGameIteration(), "play": IndependentTables()}
        if solver not in named:
            raise UnknownName("solver", solver, list(named))
        solver = named[solver]
    return incentive_design(
        partial(commons, discount=discount),
        Incentives.linear({f"{herder} spares green": partial(_spares, herder) for herder in ("herder_0", "herder_1")}, high=2.0),
        solver,
        temperature=temperature,
        objective=DesignObjective(SocialCost(price)),
        solve_on_reset=solve_on_reset,
        render_mode=render_mode,
    )


def _spares(herder: str, agent: str, observations: Tensor, actions: Tensor) -> Tensor:
    """Whether this is the herder and it spares a green pasture."""
    spared = (observations == 0) & (actions == 0)
    return spared if agent == herder else torch.zeros_like(spared)
