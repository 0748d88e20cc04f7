"""Comparisons in an open format: NumPy's npz, with a header of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bilevel_gym.errors import CheckpointError, InvalidProblem
from bilevel_gym.frames import to_stacks
from bilevel_gym.types import Fragments

__all__ = ["FORMAT", "VERSION", "load_comparisons", "save_comparisons"]

FORMAT, VERSION = "bilevel_gym.comparisons", 1
"""What the header says; a file of another kind or version is refused."""

_ARRAYS = ("states", "actions", "alive", "outcome")


def save_comparisons(path: str | Path, fragments: Fragments, *, description: Mapping[str, Any] | None = None) -> None:
    """Write labelled tuples of fragments, such as a queue's ``content``, to a compressed npz file.

    It holds ``states`` [M, I, H, *], ``actions`` [M, I, H, *], ``alive`` [M, I, H] bool, ``outcome`` [M] (1 where the first is preferred,
    ½ for a tie, NaN where it was skipped), and ``header``, a text of JSON with format, version, the shapes and the description.
    ``numpy.load(path)`` reads it without this package. Stacks of pictures are written as pixels.

    Args:
        path: the file; it is replaced as a whole.
        fragments: of equal length.
        description: what else should be known of them, JSON: the task, the teacher.

    Raises:
        InvalidProblem: the fragments do not fit together, or the description is not JSON.
    """
    arrays = {
        "states": to_stacks(fragments.states).cpu().numpy(),
        **{name: getattr(fragments, name).cpu().numpy() for name in _ARRAYS[1:]},
    }
    if reason := _misfit(arrays):
        raise InvalidProblem(f"these are no comparisons: {reason}")
    header = {"format": FORMAT, "version": VERSION, "shapes": {name: list(array.shape) for name, array in arrays.items()}}
    try:
        text = json.dumps({**header, "description": dict(description or {})}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidProblem(f"the description must be JSON ({error}): use text, numbers, lists and dictionaries") from error
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    try:
        with beside.open("wb") as file:
            np.savez_compressed(file, header=np.array(text), **arrays)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def load_comparisons(path: str | Path, *, device: str | torch.device = "cpu") -> tuple[Fragments, dict[str, Any]]:
    """Read what ``save_comparisons`` wrote; nothing in the file is executed.

    Args:
        path: the file.
        device: where the tensors go.

    Returns:
        the fragments and the description.

    Raises:
        InvalidProblem: this is no path.
        CheckpointError: there is no such file, it is damaged, of another kind or version, or its arrays do not fit together.
    """
    if not isinstance(path, str | Path):
        raise InvalidProblem(f"{path!r} is no path of a file of comparisons: give one as text")
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}: write one with preferences.save_comparisons")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        header = json.loads(str(arrays.pop("header", "null")))
    except Exception as error:  # whatever NumPy, zipfile, zlib and json raise
        raise CheckpointError(f"{path} is no npz file of comparisons, or it is damaged ({type(error).__name__})") from error
    if missing := set(_ARRAYS) - set(arrays):
        raise CheckpointError(f"{path} lacks {sorted(missing)}: it holds no comparisons")
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"{path} does not say that it holds {FORMAT}: write it with preferences.save_comparisons")
    if header.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has layout version {header.get('version')}, this package reads {VERSION}: use the release that wrote it"
        )
    if reason := _misfit(arrays):
        raise CheckpointError(f"{path} holds no comparisons: {reason}")
    tensors = {name: torch.from_numpy(arrays[name].astype(arrays[name].dtype.newbyteorder("="), copy=False)).to(device) for name in _ARRAYS}
    description: dict[str, Any] = header.get("description", {})
    return Fragments(**tensors), description


def _misfit(arrays: Mapping[str, np.ndarray]) -> str | None:
    """None, or why the arrays are no comparisons."""
    states, actions, alive, outcome = (arrays[name] for name in _ARRAYS)
    if outcome.ndim != 1 or alive.ndim != 3 or alive.dtype != bool:
        return f"outcome has shape {outcome.shape} and alive {alive.shape} of {alive.dtype}: they must be [M] and [M, I, H] of bool"
    if any(array.dtype.kind not in "biuf" for array in (states, actions)):
        return f"states are of {states.dtype} and actions of {actions.dtype}: they must be numbers"
    if not (states.shape[:3] == actions.shape[:3] == alive.shape and len(outcome) == len(alive)):
        return f"states {states.shape}, actions {actions.shape}, alive {alive.shape} and outcome {outcome.shape} must begin with the same [M, I, H]"
    known = outcome[~np.isnan(outcome)] if np.issubdtype(outcome.dtype, np.floating) else None
    if known is None or not ((known >= 0) & (known <= 1)).all():
        return "outcomes must be numbers from 0 to 1, or NaN where a query was skipped"
    return None
