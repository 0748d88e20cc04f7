"""``bilevel/FourRoomsIncentive-v0``: HPGD's experiment, charges on cells that steer two followers."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel_gym.arguments import checked
from bilevel_gym.envs.bilevel_env import BilevelEnv
from bilevel_gym.envs.solver_names import tabular_solver
from bilevel_gym.envs.vector_env import vectorized
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.objectives import ReturnObjective
from bilevel_gym.problem import BilevelProblem
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import IncentiveReward
from bilevel_gym.types import LowerSolver
from bilevel_gym.worlds import four_rooms

__all__ = ["TARGET", "four_rooms_incentive", "four_rooms_incentive_vector"]

TARGET = (8, 4)
"""The cell through which the leader wants the followers to pass."""


@checked
def four_rooms_incentive(
    *,
    penalty: float = 1.0,
    temperature: float = 0.005,
    discount: float = 0.99,
    slip: float = 0.33,
    horizon: int = 200,
    amount: float = -0.2,
    solver: str | LowerSolver = "policy_iteration",
    sweeps: int = 10,
    solve_on_reset: bool = True,
    device: str = "cpu",
    render_mode: str | None = None,
) -> BilevelEnv:
    """A leader charges for cells so that two followers take the way through a marked one.

    Description:
        The four rooms of HPGD (Thoma, Pasztor, Krause, Ramponi, Hu, NeurIPS 2024): 104 cells, start (4, 1), and two followers with the
        goals (1, 9) and (11, 11), each with weight ½. The chosen direction is taken with probability .67, each other with .11: that is
        the released simulator. The released transition matrix, in which the paper's followers are solved and its numbers are counted,
        has .56 and .147; ``slip=0.44`` is that. An action in the goal earns 1 and ends the episode.
    x:
        R^105, logits in [−20, 20]: a cell pays −.2 softmax(x)_s to who acts in it, the goal nothing, the last share goes nowhere. They
        start normal with deviation .01.
    Lower level:
        S = 104, A = 4 (up, right, down, left), γ = .99, τ = .005 (.001 and .003 in the paper too), solved to 1e-13.
    Upper objective:
        f(x, π) = −E Σ_{t<200} γ^t ( 1[s_t = (8, 4)] − λ‖incentives‖₁ 1[s_t = goal] ), λ from 1 to 5. The norm is that of all 104
        incentives, .2 (1 − softmax(x)_last), and is paid on reaching the goal.
    Observation:
        ``objective`` [1], ``gap`` [1], ``x`` [105], ``policy`` [2·104·4], float64.
    Reward:
        −f(x, π), which is what the paper reports.
    Reference value:
        After 10,000 steps of HPGD, on average over 10 seeds, with λ = 1, 3, 5: .91, .51, .46 (τ = .001); .95, .73, .29 (.003);
        1.17, 1.01, .87 (.005), counted with ``slip=0.44`` and without the horizon. There 750 steps along the exact hyper-gradient from
        three seeds reach 1.16 to 1.31 for τ = .005, λ = 1 and .39 at best for τ = .003, λ = 3, where the paper's model-based AMD has
        1.28 and .39: the definition is the same, and there are local optima.

    Args:
        penalty: λ ≥ 0.
        temperature: τ.
        discount: γ, of both levels.
        slip: probability that another direction than the chosen one is taken.
        horizon: steps that the leader looks at.
        amount: what the shares add up to; negative is a charge.
        solver: ``"policy_iteration"`` (to 1e-13), ``"value_iteration"`` (``sweeps`` sweeps a step), or a solver object.
        sweeps: N, for value iteration.
        solve_on_reset: whether a reset solves at the first x.
        device: where the tables live.
        render_mode: ``"rgb_array"`` or ``"ansi"``.

    Version history:
        v0: the first.
    """
    if not 0.0 <= penalty < float("inf"):
        raise InvalidProblem(f"penalty is {penalty}: λ weighs what the leader hands out, and must not be negative or infinite")
    world = four_rooms(discount=discount, slip=slip, device=device)
    assert world.true_reward is not None
    goal = world.termination[..., 0]
    reward = IncentiveReward(world.true_reward, 1.0 - goal, amount=amount, bound=20.0, device=device)
    passed = torch.zeros_like(goal)
    passed[..., world.grid.state(*TARGET)] = 1.0

    def cost(x: Tensor) -> Tensor:
        handed_out = reward.incentives(x).abs().sum(-1, keepdim=True)
        by_state = penalty * handed_out * goal - passed
        return by_state.unsqueeze(-1).expand(*by_state.shape, world.actions)

    problem = BilevelProblem(world, reward, Shannon(temperature), ReturnObjective(cost, horizon=horizon))
    return BilevelEnv(problem, tabular_solver(solver, sweeps, tolerance=1e-13), solve_on_reset=solve_on_reset, render_mode=render_mode)


four_rooms_incentive_vector = vectorized(four_rooms_incentive)
"""N of them as one batch: what ``gym.make_vec("bilevel/FourRoomsIncentive-v0", num_envs=N)`` makes."""
