"""Whole nests of state as plain data, and back: what ``get_state`` returns and what a checkpoint holds.

``pack`` turns dataclasses, named tuples, tensors, arrays and generators into dictionaries, lists and tensors that ``torch.load``
reads with ``weights_only=True``: no code is ever unpickled. ``unpack`` rebuilds them, and only classes of this package.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from bilevel_gym.errors import CheckpointError
from bilevel_gym.rings import RingFile, RingFiles, read

__all__ = ["LARGE", "VERSION", "beside", "load", "pack", "replacing", "save", "unpack"]

VERSION = 2
"""The layout of the checkpoint; a file of another version is refused."""

LARGE = 2**25
"""Bytes from which a replay is kept in a file of its own beside the checkpoint."""

_TAG = "__class__"
_PLAIN = (bool, int, float, str, type(None))
_files: ContextVar[RingFiles | None] = ContextVar("_files", default=None)


def pack(value: Any) -> Any:
    """A copy of ``value`` made of plain data and tensors.

    Fields of dataclasses whose metadata say ``{"transient": True}`` (live simulators) become None, those with ``init=False`` are
    derived from the others and left out. Of those that say ``{"ring": (written, capacity)}``, names of two attributes, only rows that were
    written are kept; within ``beside`` large ones go into files of their own. Tensors on an accelerator are copied to main memory, and ``unpack`` takes them back to their
    device. Views that share one storage, such as the parts of a flat parameter vector, are copied apart.

    Raises:
        CheckpointError: a part is of a kind that cannot be saved; the message names it.
    """
    if isinstance(value, np.generic):  # before the plain kinds: np.float64 is a float, and torch.load refuses it
        return value.item()
    if type(value) in _PLAIN:
        return value
    if isinstance(value, bytes):  # pickled as a call of bytes(), which torch.load refuses
        return {_TAG: "bytes", "value": _pack_array(np.frombuffer(value, np.uint8))}
    if isinstance(value, torch.Tensor):
        return _pack_tensor(value)
    if isinstance(value, np.ndarray):
        return {_TAG: "ndarray", "value": _pack_array(value)}
    if isinstance(value, torch.Generator):
        return {_TAG: "torch.Generator", "device": str(value.device), "state": value.get_state()}
    if isinstance(value, np.random.Generator):
        return {_TAG: "numpy.Generator", "state": _strings(value.bit_generator.state)}
    if isinstance(value, torch.device | torch.dtype):
        return {_TAG: f"torch.{type(value).__name__}", "value": str(value)}
    if isinstance(value, dict):
        return {_key(key): pack(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        kept = {f.name: None if f.metadata.get("transient") else _pack_field(value, f) for f in fields(value) if f.init}
        return {_TAG: f"{type(value).__module__}:{type(value).__qualname__}", "fields": kept}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {
            _TAG: f"{type(value).__module__}:{type(value).__qualname__}",
            "fields": {name: pack(getattr(value, name)) for name in value._fields},
        }
    if isinstance(value, tuple):
        return {_TAG: "tuple", "items": [pack(item) for item in value]}
    if isinstance(value, list):
        return [pack(item) for item in value]
    raise CheckpointError(
        f"{type(value).__name__} cannot be saved; make it a dataclass of tensors and numbers, or mark the field as transient"
    )


def unpack(value: Any) -> Any:
    """The inverse of ``pack``: tensors are copied, so that the packed data stay as they are.

    Raises:
        CheckpointError: a class that is not of this package, or one whose fields have changed.
    """
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, list):
        return [unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    tag = value.get(_TAG)
    if tag is None:
        return {key: unpack(item) for key, item in value.items()}
    if tag == "ndarray":
        return value["value"].numpy().copy()
    if tag == "bytes":
        return value["value"].numpy().tobytes()
    if tag == "tensor":
        return _on_device(value["device"], value["value"])
    if tag == "tuple":
        return tuple(unpack(item) for item in value["items"])
    if tag == "torch.Generator":
        generator = _generator(value["device"])
        generator.set_state(value["state"])
        return generator
    if tag == "torch.device":
        return torch.device(value["value"])
    if tag == "torch.dtype":
        return getattr(torch, value["value"].removeprefix("torch."))
    if tag == "numpy.Generator":
        return _numpy_generator(value["state"])
    if tag == "ring":
        rows = torch.empty(0, *value["shape"], dtype=unpack(value["dtype"]))
        return _on_device(value["device"], read(_ring_file(value), rows, value["capacity"]))
    made = _rebuild(tag, {name: unpack(item) for name, item in value["fields"].items()})
    for name, item in value["fields"].items():
        if isinstance(item, dict) and item.get(_TAG) == "ring":
            made.files[Path(item["checkpoint"]), name] = _ring_file(item)
    return made


@contextmanager
def beside(path: Path, large: int = LARGE) -> Iterator[None]:
    """In this block ``pack`` puts large rings into files beside ``path``, where a checkpoint then has to be saved.

    Each block writes what is new since the one before. A ring that outgrows its file is written anew, into one with twice the room.

    Args:
        path: of the checkpoint.
        large: bytes from which a ring is large.

    Raises:
        OSError: the disk is full; the checkpoint that was there is still whole.
    """
    files = RingFiles(Path(path).absolute(), large)
    files.path.parent.mkdir(parents=True, exist_ok=True)
    token = _files.set(files)
    try:
        yield
    finally:
        _files.reset(token)
    files.commit()


def save(path: Path, state: dict[str, Any]) -> None:
    """Write packed data so that ``path`` always holds a whole checkpoint."""
    with replacing(path) as file:
        torch.save({"version": VERSION, "state": state}, file)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file beside ``path``, flushed and renamed over it at the end of the block; after an exception the old one is as it was."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _flush_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """Read what ``save`` wrote; nothing in the file is executed.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it is of another version.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint at {path}: give the folder of a run; a new one is begun without --resume")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version, state = content["version"], content["state"]
    except Exception as error:
        # torch explains itself over many lines, and advises to trust the file; that stays in the traceback.
        raise CheckpointError(f"{path} is not a checkpoint of this package, or it is damaged ({type(error).__name__})") from error
    if version != VERSION:
        raise CheckpointError(
            f"{path} has layout version {version}, this package reads {VERSION}; use the release that wrote it, or train again"
        )
    result: dict[str, Any] = _located(state, str(path.absolute()))
    return result


def _flush_folder(folder: Path) -> None:
    """Put new names on the disk, too, where the system knows how."""
    if hasattr(os, "O_DIRECTORY"):
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _rebuild(tag: str, kept: dict[str, Any]) -> Any:
    module, _, name = tag.partition(":")
    if not module.startswith("bilevel_gym."):
        raise CheckpointError(f"the checkpoint names the class {tag}, which is not of this package: it is refused")
    try:
        made = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"the checkpoint holds a {tag} that this release does not have ({error})") from error
    # Anything else that the module holds, a function or what it imports, would be called with what the file says.
    if not (isinstance(made, type) and made.__module__ == module and (is_dataclass(made) or hasattr(made, "_fields"))):
        raise CheckpointError(f"the checkpoint names {tag}, which is not a class of plain fields: it is refused")
    try:
        return made(**kept)
    except TypeError as error:
        raise CheckpointError(f"the checkpoint holds a {tag} whose fields this release does not know ({error})") from error


def _key(key: Any) -> Any:
    if key == _TAG:
        raise CheckpointError(f"a dictionary with the key {_TAG!r} cannot be saved: it marks what is not a dictionary")
    if type(key) not in _PLAIN:
        raise CheckpointError(f"a dictionary with a {type(key).__name__} as a key cannot be saved; use text or numbers")
    return key


def _pack_field(owner: Any, field: Field[Any]) -> Any:
    value = getattr(owner, field.name)
    if "ring" not in field.metadata:
        return pack(value)
    written, capacity = (getattr(owner, name) for name in field.metadata["ring"])
    files = _files.get()
    file = None if files is None else files.put(owner, field.name, value, written, capacity)
    if file is None:
        return _pack_tensor(value[: min(written, capacity)])
    return {
        _TAG: "ring",
        "file": file.path.name,
        "places": file.places,
        "first": file.first,
        "written": file.written,
        "capacity": capacity,
        "shape": list(value.shape[1:]),
        "dtype": pack(value.dtype),
        "device": str(value.device),
    }


def _ring_file(value: dict[str, Any]) -> RingFile:
    if "checkpoint" not in value:
        raise CheckpointError("the state names a file beside its checkpoint: read it with checkpoint.load")
    return RingFile(Path(value["checkpoint"]).with_name(value["file"]), value["places"], value["first"], value["written"])


def _located(value: Any, path: str) -> Any:
    """Packed data in which rings know which checkpoint they are read from."""
    if isinstance(value, list):
        return [_located(item, path) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: _located(item, path) for key, item in value.items()}
    return {**found, "checkpoint": path} if found.get(_TAG) == "ring" else found


def _pack_tensor(value: torch.Tensor) -> Any:
    copy = value.detach().clone()
    return copy if copy.device.type == "cpu" else {_TAG: "tensor", "device": str(copy.device), "value": copy.cpu()}


def _pack_array(value: np.ndarray) -> torch.Tensor:
    try:
        return torch.from_numpy(value.copy())
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"an array of {value.dtype} cannot be saved; make it one of numbers") from error


def _on_device(device: str, value: torch.Tensor) -> torch.Tensor:
    try:
        return value.to(device)
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(f"the checkpoint holds tensors of {device}, which this machine does not have") from error


def _generator(device: str) -> torch.Generator:
    try:
        return torch.Generator(device=device)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint holds a generator of {device}, which this machine does not have") from error


def _numpy_generator(state: dict[str, Any]) -> np.random.Generator:
    kind = getattr(np.random, state["bit_generator"], None)
    if not (isinstance(kind, type) and issubclass(kind, np.random.BitGenerator)):
        raise CheckpointError(f"the checkpoint names an unknown bit generator {state['bit_generator']!r}")
    bits = kind()
    bits.state = _numbers(state)
    return np.random.Generator(bits)


def _strings(state: Any) -> Any:
    """A bit generator's state with its 128-bit integers as text, which every loader reads."""
    if isinstance(state, dict):
        return {key: _strings(item) for key, item in state.items()}
    return state if isinstance(state, str) else pack(state) if isinstance(state, np.ndarray) else {_TAG: "int", "value": str(state)}


def _numbers(state: Any) -> Any:
    if not isinstance(state, dict):
        return state
    tag = state.get(_TAG)
    if tag is None:
        return {key: _numbers(item) for key, item in state.items()}
    return int(state["value"]) if tag == "int" else unpack(state)
