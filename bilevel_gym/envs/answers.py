"""What a problem's parts answer, looked at before it counts: anybody's own solver or objective comes in here."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bilevel_gym.arguments import check_call
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.types import Evaluation, Response

__all__ = ["check_evaluation", "check_response", "check_solver", "read_evaluation"]


def check_solver(solver: Any) -> None:
    """Refuse what cannot be called as a ``types.LowerSolver`` is.

    Raises:
        InvalidProblem: it has not the two methods, or they take other arguments.
    """
    if isinstance(solver, type) or not (callable(getattr(solver, "start", None)) and callable(getattr(solver, "solve", None))):
        raise InvalidProblem(
            f"solver is {solver!r}: give an object with start and solve, such as those of bilevel_gym.solvers; no name stands for one here"
        )
    name = type(solver).__name__
    check_call(f"{name}.start", solver.start, ["problem"])
    check_call(f"{name}.solve", solver.solve, ["problem", "x"], ["warm", "budget", "generator"])


def check_response(response: Any, solver: Any, call: str) -> Response:
    """A solver's answer, if it is one.

    Args:
        response: what it has returned.
        solver: whose it is.
        call: the method, ``"start"`` or ``"solve"``.

    Raises:
        InvalidProblem: it is no ``types.Response``.
    """
    if not isinstance(response, Response):
        raise InvalidProblem(
            f"{type(solver).__name__}.{call} returned {_kind(response)}: it must return a bilevel_gym.types.Response(policy, …), policy at least"
        )
    return response


def read_evaluation(answer: Any, objective: Any, x: Tensor) -> tuple[Evaluation, Any]:
    """An objective's answer: what it saw, and its memory.

    Raises:
        InvalidProblem: it is no pair of a ``types.Evaluation`` and a memory, or what ``check_evaluation`` refuses.
    """
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], Evaluation)):
        raise InvalidProblem(
            f"{type(objective).__name__}.evaluate returned {_kind(answer)}: it must return (bilevel_gym.types.Evaluation(value, …), memory)"
        )
    check_evaluation(answer[0], x)
    return answer


def check_evaluation(evaluation: Evaluation, x: Tensor) -> None:
    """An objective that is NaN or infinite, or not one number for each x, ends here, before anything has changed.

    Raises:
        InvalidProblem: it is.
    """
    value: Any = evaluation.value
    if not isinstance(value, Tensor):
        raise InvalidProblem(
            f"the objective's value is {_kind(value)}: it must be a tensor, one number for each x, such as torch.tensor(1.0)"
        )
    if value.shape != x.shape[:-1]:
        raise InvalidProblem(
            f"the objective has shape {tuple(value.shape)} for x {tuple(x.shape)}: it must be {tuple(x.shape[:-1])}, one number for each x; are its tables those of a batch?"
        )
    if not bool(value.isfinite().all()):
        raise InvalidProblem(
            "the objective is not finite: reward or transition at this x are not, or overflow, then narrow the box of x; or the world's own reward or your objective gives NaN"
        )


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
