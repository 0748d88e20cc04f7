"""The names by which ``gym.make`` accepts a solver, so that a spec stays JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from bilevel_gym.arguments import check_names
from bilevel_gym.errors import UnknownName
from bilevel_gym.solvers import SAC, DiscreteSAC, SoftPolicyIteration, SoftQ, SoftValueIteration
from bilevel_gym.types import LowerSolver

__all__ = ["SIMULATED", "simulated_solver", "tabular_solver"]

SIMULATED: dict[str, Callable[..., LowerSolver]] = {"sac": SAC, "discrete_sac": DiscreteSAC, "soft_q": SoftQ}
"""Followers in simulators, by name."""


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


def simulated_solver(name: str, sized: SAC | DiscreteSAC) -> LowerSolver:
    """The solver that a name stands for, in the sizes of another.

    Args:
        name: a key of ``SIMULATED``.
        sized: what a preset has for the world's actions.

    Raises:
        UnknownName: a name that is not in the table.
        InvalidProblem: the solver cannot do what the preset asks for, such as tuning τ.
    """
    check_names("solver", [name], SIMULATED)
    return SIMULATED[name](**{field.name: getattr(sized, field.name) for field in fields(sized)})
