"""Where NumPy becomes tensors and back: x comes in here, and observations go out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_gym.errors import InvalidAction, InvalidProblem
from bilevel_gym.types import Evaluation, OuterProblem, Response

__all__ = ["LARGEST", "Observation", "action_space", "observation_space", "observe", "read_options", "read_x"]

Observation = dict[str, np.ndarray]

LARGEST = 1e9
"""Objective and gap are clipped to this magnitude in observations, whose bounds must be finite; ``info`` has them unclipped."""

ROUNDING = 8
"""Units in the last place, of both edges together, by which an entry may miss the box and is put on its edge."""

SHORT = 32
"""Entries up to which x is observed whatever the lower level is."""


def action_space(problem: OuterProblem) -> gym.spaces.Box:
    """The box of x, as the problem's domain gives it: [D], float64 on tables and float32 for networks."""
    low, high = problem.domain.bounds
    dtype: Any = np.float64 if problem.domain.dtype == torch.float64 else np.float32
    return gym.spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)


def observation_space(problem: OuterProblem, actions: gym.spaces.Box) -> gym.spaces.Dict:
    """``objective`` [1] and ``gap`` [1]; ``x`` [D] where the lower level is a table or a function, or x is short; ``policy`` on tables, [S·A], with contexts [C·S·A]."""
    dtype: Any = actions.dtype
    spaces: dict[str, gym.Space[Any]] = {
        "objective": gym.spaces.Box(-LARGEST, LARGEST, (1,), dtype),
        "gap": gym.spaces.Box(0.0, LARGEST, (1,), dtype),
    }
    if _written_down(problem):
        spaces["x"] = gym.spaces.Box(actions.low, actions.high, dtype=dtype)
    if problem.tabular:
        world = problem.world
        followers = 1 if world.context_weights is None else len(world.context_weights)
        spaces["policy"] = gym.spaces.Box(0.0, 1.0, (followers * world.states * world.actions,), dtype)
    return gym.spaces.Dict(spaces)


def observe(problem: OuterProblem, x: Tensor, response: Response, evaluation: Evaluation, dtype: Any) -> Observation:
    """What the spaces above promise, in NumPy arrays of its own; with a leading axis [B] where x has one."""
    seen = {
        "objective": _numbers(evaluation.value.clamp(-LARGEST, LARGEST), dtype),
        "gap": _numbers(response.gap.clamp(max=LARGEST), dtype),
    }
    if _written_down(problem):
        seen["x"] = x.cpu().numpy().copy()
    if problem.tabular:
        seen["policy"] = response.policy.flatten(x.ndim - 1).cpu().numpy().copy()
    return seen


def read_x(action: Any, space: gym.spaces.Box, device: torch.device, name: str = "x") -> Tensor:
    """The one place where an action becomes x: cast, checked, copied.

    What misses the box by rounding alone is put on its edge: Gymnasium's ``RescaleAction`` does so with many a box at ±1.

    Args:
        action: what the agent sent, [D] or for a batch [B, D].
        space: the box that it must lie in.
        device: where x goes.
        name: what messages call it.

    Raises:
        InvalidAction: x has a wrong shape, a NaN, or lies outside the box.
    """
    try:
        raw = np.asarray(action.detach().cpu().numpy() if isinstance(action, Tensor) else action)
        if raw.dtype.kind not in "fiu":
            raise TypeError(f"their type is {raw.dtype}")
        with np.errstate(over="ignore"):
            values = np.array(raw, dtype=space.dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidAction(f"{name} cannot be read as numbers ({error}); give an array of shape {space.shape}") from error
    if values.shape != space.shape:
        raise InvalidAction(f"{name} has shape {values.shape}; it must be {space.shape}, one number for each parameter")
    slack = ROUNDING * np.finfo(values.dtype.name).eps * (np.abs(space.low) + np.abs(space.high))
    inside = (values >= space.low - slack) & (values <= space.high + slack)
    if not inside.all():
        first = tuple(int(i) for i in np.unravel_index(np.argmin(inside), values.shape))
        what = "is not a number" if np.isnan(values[first]) else f"lies outside [{space.low[first]:g}, {space.high[first]:g}]"
        raise InvalidAction(
            f"{name}[{', '.join(map(str, first))}] = {float(values[first])!r} {what} ({int((~inside).sum())} of {values.size} entries are refused); clip {name} to env.action_space first"
        )
    return torch.as_tensor(np.clip(values, space.low, space.high), device=device)


def read_options(options: Mapping[str, Any] | None, *, seeded: bool, begun: bool) -> tuple[Any, bool]:
    """What ``reset`` is told: the x to start at or None, and whether to go on from where the environment stands.

    Args:
        options: ``{"x": …, "keep": …}``, both of which may be left out.
        seeded: whether there is a seed beside them.
        begun: whether there has been a reset.

    Raises:
        InvalidProblem: an unknown option, or ``keep`` with a seed or before the first reset.
    """
    options = options or {}
    if unknown := set(options) - {"x", "keep"}:
        raise InvalidProblem(f"unknown reset options {sorted(unknown)}: use 'x' and 'keep'")
    keep = options.get("keep", False)
    if not isinstance(keep, bool | np.bool_):
        raise InvalidProblem(f"keep is {keep!r}: it is True, to go on with the instance and x that there are, or False")
    keep = bool(keep)
    if keep and seeded:
        raise InvalidProblem("reset(seed=…) starts anew and 'keep' goes on: give one of them")
    if keep and not begun:
        raise InvalidProblem("reset(options={'keep': True}) goes on with what is there, and there is nothing yet: reset without it first")
    return options.get("x"), keep


def _written_down(problem: OuterProblem) -> bool:
    """Whether x is observed: where the lower level is a table or a function, and where x is short; a network's weights are too many."""
    return problem.tabular or problem.world is None or problem.dimension <= SHORT


def _numbers(values: Tensor, dtype: Any) -> np.ndarray:
    numbers: np.ndarray = values.detach().unsqueeze(-1).cpu().numpy().astype(dtype)
    return numbers
