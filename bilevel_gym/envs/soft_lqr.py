"""``bilevel/SoftLQR-v0``: continuous actions in closed form, a maximum-entropy regulator whose cost weights are chosen."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from bilevel_gym.arguments import checked
from bilevel_gym.envs.bilevel_env import BilevelEnv
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.objectives import RegulationCost
from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import QuadraticCost
from bilevel_gym.solvers import Riccati
from bilevel_gym.types import LowerSolver
from bilevel_gym.worlds import LinearGaussianWorld

__all__ = ["draw_soft_lqr", "soft_lqr"]


@checked
def soft_lqr(
    *,
    states: int = 3,
    actions: int = 2,
    discount: float = 0.95,
    temperature: float = 0.5,
    entropy: bool = True,
    solver: LowerSolver | None = None,
    solve_on_reset: bool = True,
    device: str = "cpu",
    render_mode: str | None = None,
) -> BilevelEnv:
    """A designer sets the cost weights of a linear-quadratic regulator that also values the entropy of what it does.

    Description:
        s' = As + Ba + w with s in R³ and a in R². The follower minimises E Σ γ^t (sᵀQ_x s + aᵀR_x a − τ H(π_s)); its answer is
        π(a | s) = N(−Ks, (τ/2)(R_x + γBᵀPB)⁻¹), P the solution of the discounted Riccati equation. ``reset(seed)`` draws the instance:
        A = I + .3 normal, scaled to the spectral radius .95, B = .3 normal, w ~ N(0, .1·I), s_0 ~ N(0, I), the designer's log weights uniform on [−1, 1].
    x:
        The logarithms of the diagonals of Q_x and R_x, R^(n+m) in the box [−3, 3]; they start standard normal.
    Lower level:
        γ = .95, τ = .5; the Riccati equation solved to 1e-12 (``solvers.Riccati``).
    Upper objective:
        f(x, π) = E Σ γ^t (s_tᵀQ̄s_t + a_tᵀR̄a_t − τ H(π)) with the designer's weights, in closed form; ``entropy=False`` leaves the last
        term out.
    Observation:
        ``objective`` [1], ``gap`` [1] (the largest entry of the Riccati residual), ``x`` [n+m], float64.
    Reward:
        −f(x, π).
    Reference value:
        x* are the designer's own log weights (``draw_soft_lqr`` returns them), φ* her own soft-optimal cost. Seed 0: φ = 18.6308 at the
        first x and φ* = 14.54853, reached in 150 steps of ``exact`` at a learning rate of .2. With ``entropy=False`` ‖∇φ‖ at her
        weights is 5.34 there, not 0.

    Args:
        states: n.
        actions: m.
        discount: γ.
        temperature: τ.
        entropy: whether the designer values entropy as the follower does; without, her own weights are not her optimum.
        solver: another follower, in place of ``solvers.Riccati()``.
        solve_on_reset: whether a reset solves at the first x.
        device: where the matrices live.
        render_mode: ``"rgb_array"`` (paths of the closed loop) or ``"ansi"``.

    Raises:
        InvalidProblem: a size that is not positive.

    Version history:
        v0: the first.
    """
    draw = partial(
        draw_soft_lqr,
        states=states,
        actions=actions,
        discount=discount,
        temperature=temperature,
        entropy=entropy,
        device=device,
    )
    return BilevelEnv(
        lambda rng: draw(rng)[0], Riccati() if solver is None else solver, solve_on_reset=solve_on_reset, render_mode=render_mode
    )


def draw_soft_lqr(
    rng: np.random.Generator,
    *,
    states: int = 3,
    actions: int = 2,
    discount: float = 0.95,
    temperature: float = 0.5,
    entropy: bool = True,
    device: str | torch.device = "cpu",
) -> tuple[BilevelProblem, torch.Tensor]:
    """One instance, and the designer's log weights [n + m], which the solution recovers.

    Args:
        rng: the source of the instance.
        states: n.
        actions: m.
        discount: γ.
        temperature: τ.
        entropy: whether the designer's cost has the follower's entropy.
        device: where the matrices live.

    Raises:
        InvalidProblem: a size that is not positive.
    """
    if min(states, actions) < 1:
        raise InvalidProblem(f"states is {states} and actions {actions}: each is 1 at least")
    state_matrix = np.eye(states) + 0.3 * rng.standard_normal((states, states))
    state_matrix *= 0.95 / np.abs(np.linalg.eigvals(state_matrix)).max()
    world = LinearGaussianWorld(
        state_matrix, 0.3 * rng.standard_normal((states, actions)), 0.1 * np.eye(states), np.eye(states), discount, device=device
    )
    cost = QuadraticCost(states, actions, device=device)
    truth = torch.as_tensor(rng.uniform(-1.0, 1.0, states + actions), device=device)
    objective = RegulationCost(*cost.weights(truth), temperature if entropy else 0.0)
    return BilevelProblem(world, cost, Shannon(temperature), objective), truth
