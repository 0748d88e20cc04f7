"""Rings of rows in files beside a checkpoint, of which a checkpoint writes what is new.

Row number m of a ring lies at place m mod ``capacity`` of a tensor in memory, and at m mod ``places`` of its file, which has room for
more: what a checkpoint holds is never overwritten before the next one is whole. The checkpoint names the file and says up to which number
it reads, its cursor. So a process may die at any moment; rows beyond the cursor are then as if they had never been.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.errors import CheckpointError

__all__ = ["RingFile", "RingFiles", "read"]

MAGIC, HEADER = 0x676E69725F6C6269, 64
"""What a file begins with, and bytes of its head: magic, bytes of a row, places, and the number that writing has reached."""


@dataclass(frozen=True)
class RingFile:
    """A file and the rows in it that a checkpoint holds.

    Args:
        path: of the file.
        places: rows that it has room for.
        first: the number of the oldest row.
        written: one more than the number of the newest one.
    """

    path: Path
    places: int
    first: int
    written: int


class RingFiles:
    """The files of one checkpoint while it is written: ``put`` for each ring, then the checkpoint itself, then ``commit``.

    Args:
        path: of the checkpoint; the files are ``<stem>.<number>.ring`` beside it.
        large: bytes from which a ring is put into a file.
    """

    def __init__(self, path: Path, large: int) -> None:
        self.path, self.large = Path(path), large
        self._pending: list[tuple[Any, str, RingFile]] = []

    def put(self, owner: Any, name: str, rows: Tensor, written: int, capacity: int) -> RingFile | None:
        """Write those rows of a ring that its file lacks; None where the ring is small, and belongs into the checkpoint itself.

        Args:
            owner: whose ring it is; ``owner.files`` says which files its rings are in.
            name: of the ring.
            rows: [allocated, ...], number m at m mod ``capacity``.
            written: rows ever added.
            capacity: rows that are kept.

        Raises:
            OSError: the disk is full, or a limit on files is reached; what was committed is as it was.
        """
        first = max(0, written - capacity)
        if (written - first) * _row_bytes(rows) < max(self.large, 1):
            return None
        known: RingFile | None = owner.files.get((self.path, name))
        if known is None or any(file.path == known.path for *_, file in self._pending) or not _has_room(known, written):
            lately = 0 if known is None else written - known.written
            path, begin = self._unused(), first
            places = min(capacity, 2 * (written - first)) + max(2 * lately, capacity // 16, 1)
            _create(path, places, _row_bytes(rows))
        else:
            path, places, begin = known.path, known.places, max(known.written, first)
        _write(path, places, rows, range(begin, written), capacity)
        self._pending.append((owner, name, RingFile(path, places, first, written)))
        return self._pending[-1][2]

    def commit(self) -> None:
        """The checkpoint is on disk: its files are what the next one goes on with, and those that it does not name are deleted."""
        for owner, name, file in self._pending:
            owner.files[self.path, name] = file
        used = {file.path for *_, file in self._pending}
        mine = re.compile(re.escape(self.path.stem) + r"\.\d+\.ring")  # "best.pt" owns no file of "best.last.pt"
        for path in self.path.parent.iterdir():
            if mine.fullmatch(path.name) and path not in used:
                path.unlink()

    def _unused(self) -> Path:
        number = 0
        while (path := self.path.with_name(f"{self.path.stem}.{number}.ring")).exists():
            number += 1
        return path


def read(file: RingFile, rows: Tensor, capacity: int) -> Tensor:
    """The rows that a checkpoint holds, as they lie in memory.

    Args:
        file: which.
        rows: [0, ...] a tensor of their kind.
        capacity: rows that are kept.

    Returns:
        [min(written, capacity), ...].

    Raises:
        CheckpointError: the file is not there, is another one, or a later checkpoint has overwritten some of the rows.
    """
    head, place = _head(file.path), rows.new_empty(min(file.written, capacity), *rows.shape[1:])
    if head[:3].tolist() != [MAGIC, _row_bytes(rows), file.places]:
        raise CheckpointError(f"{file.path} is not the file that its checkpoint was written with: it is damaged, or of another checkpoint")
    if int(head[3]) - file.places > file.first:
        raise CheckpointError(
            f"{file.path} has been written on since this checkpoint: take the newest one, or a copy of both from the same moment"
        )
    stored = np.memmap(file.path, np.uint8, "r", HEADER, (file.places, _row_bytes(rows)))
    for here, there in _stretches(range(file.first, file.written), capacity, file.places):
        _bytes(place[here])[:] = stored[there]
    return place


def _has_room(file: RingFile, written: int) -> bool:
    """Whether rows up to ``written`` fit beside those that are committed, which are there as they were."""
    if not file.written <= written <= file.first + file.places:
        return False
    try:
        return int(_head(file.path)[3]) - file.places <= file.first
    except CheckpointError:
        return False


def _create(path: Path, places: int, row_bytes: int) -> None:
    """A file with all of its room taken from the disk, so that no later write can fail for want of it."""
    size = HEADER + places * row_bytes
    try:
        with path.open("xb") as file:
            file.write(np.array([MAGIC, row_bytes, places, 0], np.int64).tobytes())
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                while file.tell() < size:
                    file.write(bytes(min(size - file.tell(), 2**20)))
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _write(path: Path, places: int, rows: Tensor, numbers: range, capacity: int) -> None:
    """Write rows through a map of the file, its head first: it says how far old rows may be lost before any is."""
    head = np.memmap(path, np.int64, "r+", 0, (4,))
    head[3] = max(int(head[3]), numbers.stop)
    head.flush()
    stored = np.memmap(path, np.uint8, "r+", HEADER, (places, _row_bytes(rows)))
    for here, there in _stretches(numbers, capacity, places):
        stored[there] = _bytes(rows[here].cpu())
    stored.flush()


def _stretches(numbers: range, *rings: int) -> list[tuple[slice, ...]]:
    """Where rows lie in rings of several sizes, in stretches that are without a break in all of them."""
    found, number = [], numbers.start
    while number < numbers.stop:
        places = [number % size for size in rings]
        count = min(numbers.stop - number, *(size - place for size, place in zip(rings, places, strict=True)))
        found.append(tuple(slice(place, place + count) for place in places))
        number += count
    return found


def _head(path: Path) -> np.ndarray:
    try:
        return np.fromfile(path, np.int64, 4)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}): it belongs to the checkpoint beside it, copy them together"
        ) from error


def _row_bytes(rows: Tensor) -> int:
    return int(torch.Size(rows.shape[1:]).numel()) * rows.element_size()


def _bytes(rows: Tensor) -> np.ndarray:
    """Rows as their bytes, in place: [n, bytes] uint8."""
    found: np.ndarray = rows.view(len(rows), -1).numpy().view(np.uint8)
    return found
