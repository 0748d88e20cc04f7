"""Every error that the package raises on purpose.

    BilevelError
    ├── InvalidAction         (ValueError)   an x that the outer environment refuses
    ├── InvalidProblem        (ValueError)   numbers that do not make a decision problem
    ├── UnsupportedProblem    (TypeError)    an estimator or solver that this problem does not fit
    ├── UnknownName           (KeyError)     an id, agent, preset or method that does not exist
    ├── MissingExtra          (ImportError)  an optional dependency that is not installed
    ├── OutputExists          (FileExistsError)  a run folder that would have been overwritten
    ├── CannotRender          (RuntimeError) a picture that this machine cannot draw
    ├── SimulatorLost         (RuntimeError) a process of a simulator that has died
    └── CheckpointError       (RuntimeError) a checkpoint that cannot be read here

Each message says what was wrong and what to do about it; each class also derives from the built-in
exception that a reader would expect, so ordinary ``except ValueError`` code keeps working.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = [
    "BilevelError",
    "CannotRender",
    "CheckpointError",
    "InvalidAction",
    "InvalidProblem",
    "MissingExtra",
    "OutputExists",
    "SimulatorLost",
    "UnknownName",
    "UnsupportedProblem",
    "require",
]


class BilevelError(Exception):
    """The root of the tree: catch it to catch everything that this package raises on purpose."""


class InvalidAction(BilevelError, ValueError):
    """An action x of the wrong shape, with a NaN, or outside the action space; nothing has changed."""


class InvalidProblem(BilevelError, ValueError):
    """Numbers that do not make a decision problem, such as rows of P that do not sum to one."""


class UnsupportedProblem(BilevelError, TypeError):
    """A part that does not fit this problem; the message names the reason and a part that does."""


class UnknownName(BilevelError, KeyError):
    """A name that is not in its table; the message lists the names that are."""

    def __init__(self, kind: str, name: str, known: list[str]) -> None:
        super().__init__(kind, name, known)
        self.kind, self.name, self.known = kind, name, known

    def __str__(self) -> str:
        return f"unknown {self.kind} {self.name!r}; choose one of: {', '.join(sorted(self.known))}"


class MissingExtra(BilevelError, ImportError):
    """An optional dependency is missing; the message holds the command that installs it."""


class OutputExists(BilevelError, FileExistsError):
    """A folder that already holds a run; nothing was written to it."""


class CannotRender(BilevelError, RuntimeError):
    """A picture of a simulator that cannot be drawn here; the message holds the cure."""


class SimulatorLost(BilevelError, RuntimeError):
    """A process that steps copies of a simulator has died; what was saved before is whole."""


class CheckpointError(BilevelError, RuntimeError):
    """A checkpoint that is damaged, or of another version, shape or task."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional ``module``, or say which extra brings it.

    Args:
        module: name of the module, such as ``"mujoco"``.
        extra: the extra of this package that installs it.

    Raises:
        MissingExtra: when the module cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"{module!r} is needed here and cannot be imported ({error}); install it with: pip install bilevel-gym[{extra}]"
        ) from error
