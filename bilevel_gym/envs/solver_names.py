"""The names by which ``gym.make`` accepts a tabular solver, so that a spec stays JSON."""

from __future__ import annotations

from bilevel_gym.errors import UnknownName
from bilevel_gym.solvers import SoftPolicyIteration, SoftValueIteration
from bilevel_gym.types import LowerSolver

__all__ = ["tabular_solver"]


def tabular_solver(solver: str | LowerSolver, sweeps: int, *, tolerance: float = 1e-10) -> LowerSolver:
    """The solver that a name stands for; an object is returned as it is.

    Args:
        solver: ``"value_iteration"``, ``"policy_iteration"``, or any object with ``start`` and ``solve``.
        sweeps: sweeps of each solve, for value iteration.
        tolerance: the residual that policy iteration stops at; small where γ is near 1 and τ small, π errs by up to tolerance/((1−γ)τ).

    Raises:
        UnknownName: a name that is not in the table.
    """
    if not isinstance(solver, str):
        return solver
    if solver == "value_iteration":
        return SoftValueIteration(sweeps=sweeps)
    if solver == "policy_iteration":
        return SoftPolicyIteration(tolerance=tolerance)
    raise UnknownName("solver", solver, ["value_iteration", "policy_iteration"])
