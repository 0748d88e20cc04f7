"""What a checkpoint must agree with before an agent goes on from it: the component that the agent was built around, field by field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from bilevel_gym import checkpoint
from bilevel_gym.errors import CheckpointError

__all__ = ["described", "refuse_other"]


def described(part: Any) -> Any:
    """Class and fields of a component as plain data; only the name of its class where it is no dataclass of plain fields."""
    try:
        return checkpoint.pack(part)
    except CheckpointError:
        return type(part).__name__


def refuse_other(saved: tuple[Any, int], mine: tuple[Any, int]) -> None:
    """Compare what was saved with what is there.

    Args:
        saved: the described component, and the dimension of x.
        mine: the same of this agent.

    Raises:
        CheckpointError: they are of other classes, of other dimensions, or some fields differ; the message names them.
    """
    theirs, own = dict(_leaves(saved[0])), dict(_leaves(mine[0]))
    names = [str(found.get("", found.get("__class__"))).rpartition(":")[2] for found in (theirs, own)]
    if (names[0], saved[1]) != (names[1], mine[1]):
        raise CheckpointError(
            f"the state is of {names[0]} in dimension {saved[1]}, this agent is {names[1]} in dimension {mine[1]}: use the same agent and task"
        )
    other = [name for name in {**theirs, **own} if not _equal(theirs.get(name), own.get(name))]
    if other:
        listed = ", ".join(f"{name.removesuffix('.__class__')} ({_shown(theirs, name)} there, {_shown(own, name)} here)" for name in other)
        raise CheckpointError(f"the state is of another {names[0]} than this agent's: {listed}; build the agent with the same arguments")


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every number, text and tensor of packed data, with the names of the fields that lead to it."""
    if isinstance(value, dict) and "value" in value and ":" not in value.get("__class__", ":"):
        yield ".".join(path), value["value"]  # an array
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, path if key in ("fields", "items") else (*path, str(key)))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _leaves(item, (*path, str(place)))
    else:
        yield ".".join(path), value


def _equal(saved: Any, mine: Any) -> bool:
    if isinstance(saved, torch.Tensor) and isinstance(mine, torch.Tensor):
        return torch.equal(saved, mine)
    return type(saved) is type(mine) and bool(saved == mine)


def _shown(leaves: dict[str, Any], name: str) -> str:
    value = leaves.get(name)
    if isinstance(value, torch.Tensor):
        return f"a table {list(value.shape)}"
    return str(value).rpartition(":")[2] if name in leaves else "nothing"
