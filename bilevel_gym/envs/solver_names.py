"""The names by which ``gym.make`` accepts a tabular solver, so that a spec stays JSON."""

from __future__ import annotations

from bilevel_gym.errors import UnknownName
from bilevel_gym.solvers import SoftPolicyIteration, SoftValueIteration
from bilevel_gym.types import LowerSolver

__all__ = ["tabular_solver"]


def tabular_solver(solver: str | LowerSolver, sweeps: int) -> LowerSolver:
    """The solver that a name stands for; an object is returned as it is.

    Args:
        solver: ``"value_iteration"``, ``"policy_iteration"``, or any object with ``start`` and ``solve``.
        sweeps: sweeps of each solve, for value iteration.

    Raises:
        UnknownName: a name that is not in the table.
    """
    if not isinstance(solver, str):
        return solver
    if solver == "value_iteration":
        return SoftValueIteration(sweeps=sweeps)
    if solver == "policy_iteration":
        return SoftPolicyIteration()
    raise UnknownName("solver", solver, ["value_iteration", "policy_iteration"])
