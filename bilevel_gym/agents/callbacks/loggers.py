"""Where the numbers go: a file, TensorBoard, Weights & Biases."""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from bilevel_gym.agents.loop import Agent
from bilevel_gym.errors import CheckpointError, OutputExists, require

__all__ = ["CSVLogger", "TensorBoardLogger", "WandbLogger"]

Metrics = Mapping[str, float]


class _Logger(ABC):
    """A callback with something to close, by ``with`` or by ``close``."""

    @abstractmethod
    def __call__(self, agent: Agent, metrics: Metrics) -> None:
        """Log the metrics of a step."""

    @abstractmethod
    def close(self) -> None:
        """Write what is still buffered, and let go of files and services."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class CSVLogger(_Logger):
    """One row an upper step in a file, flushed at once, so that a killed run keeps what it had.

    ``upper_step`` is the first column. A metric that a step does not report is an empty field; one that appears later gets a column of
    its own, for which the file is written anew.

    Args:
        path: the file.
        resume_at: None for a new file; k goes on after step k in the file that is there, without its rows beyond k.

    Raises:
        OutputExists: the file exists and ``resume_at`` is None.
    """

    def __init__(self, path: str | Path, *, resume_at: int | None = None) -> None:
        self.path = Path(path)
        self._columns: list[str] = []
        self._file: IO[str] | None = None
        if resume_at is not None and self.path.exists():
            self._columns = _cut_after(self.path, resume_at)
        elif self.path.exists():
            raise OutputExists(f"{self.path} exists: choose another file, or give resume_at to go on in it")

    def __call__(self, agent: Agent, metrics: Metrics) -> None:
        """Write a row."""
        if fresh := [name for name in ("upper_step", *metrics) if name not in self._columns]:
            self._widen(list(dict.fromkeys(fresh)))
        self._write([_number(metrics[name]) if name in metrics else "" for name in self._columns])

    def close(self) -> None:
        """Close the file; a later row opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _widen(self, fresh: list[str]) -> None:
        self.close()
        rows = list(csv.reader(self.path.read_text().splitlines()))[1:] if self._columns else []
        self._columns += fresh
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _rewrite(self.path, self._columns, ([*row, *[""] * len(fresh)] for row in rows))

    def _write(self, cells: Iterable[str]) -> None:
        if self._file is None:
            self._file = self.path.open("a", newline="")
        # One write call for the whole line: a signal between two of them would leave half a row.
        self._file.write(_line(cells))
        self._file.flush()


class TensorBoardLogger(_Logger):
    """Every metric as a scalar over upper steps, for ``tensorboard --logdir``.

    Args:
        folder: where the event files go.
        resume_at: k hides what an interrupted run had logged after step k; None for a new run.

    Raises:
        MissingExtra: TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path, *, resume_at: int | None = None) -> None:
        require("tensorboard", "logging")
        from torch.utils.tensorboard import SummaryWriter  # imports tensorboard, which is optional

        self._writer = SummaryWriter(str(folder), purge_step=None if resume_at is None else resume_at + 1)

    def __call__(self, agent: Agent, metrics: Metrics) -> None:
        """Log each metric but the step itself."""
        step = int(metrics["upper_step"])
        for name, value in metrics.items():
            if name != "upper_step":
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is still buffered, and close the file."""
        self._writer.close()


class WandbLogger(_Logger):
    """Every metric to Weights & Biases, over upper steps. ``WANDB_MODE=offline`` needs no network: ``wandb sync`` sends it later.

    Args:
        project: the name of the project there.
        folder: where its files go; ``wandb_id`` in it holds the id of the run there.
        resume: whether to go on with that run, where there is one; its steps that are logged already stay as they are.
        name: of the run; None lets the service choose one.
        config: plain data about the run, such as ``dataclasses.asdict(run.spec)``.

    Raises:
        MissingExtra: wandb is not installed.
        ConnectionError: the service does not take the run, when it begins: at ``with``, or at the first step.
    """

    def __init__(
        self,
        project: str,
        *,
        folder: str | Path,
        resume: bool = False,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        require("wandb", "wandb")
        self.folder, self.resume = Path(folder), resume
        self._options = {"project": project, "dir": str(folder), "name": name, "config": dict(config or {})}
        self._run: Any = None

    def __call__(self, agent: Agent, metrics: Metrics) -> None:
        """Log each metric."""
        self._begin()
        self._run.log(dict(metrics), step=int(metrics["upper_step"]))

    def close(self) -> None:
        """Send or write what is still buffered, and end the run there."""
        if self._run is not None:
            self._run.finish()
            self._run, self.resume = None, True

    def __enter__(self) -> Self:
        self._begin()
        return self

    def _begin(self) -> None:
        if self._run is not None:
            return
        wandb: Any = require("wandb", "wandb")
        kept = self.folder / "wandb_id"
        again: dict[str, Any] = {"id": kept.read_text(), "resume": "allow"} if self.resume and kept.exists() else {}
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(**self._options, **again)
        except wandb.errors.Error as error:
            raise ConnectionError(
                f"Weights & Biases did not begin a run ({error}): log in with 'wandb login', or set WANDB_MODE=offline"
            ) from error
        kept.write_text(self._run.id)


def _line(cells: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _number(value: float) -> str:
    """The shortest text that reads back as the same float; whole numbers without a point."""
    number = float(value)
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)


def _cut_after(path: Path, step: int) -> list[str]:
    """Drop the rows beyond ``step``, and the line that a kill cut short; returns the columns, [] where there is no header."""
    try:
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        rows = list(csv.reader(lines))
        columns = rows[0] if rows else []
        place = columns.index("upper_step") if "upper_step" in columns else None
        kept = [row for row in rows[1:] if place is not None and len(row) == len(columns) and int(row[place]) <= step]
    except ValueError as error:
        raise CheckpointError(f"{path} is not a table of metrics ({error}): move it away, and the run goes on with a new one") from error
    if columns:
        _rewrite(path, columns, kept)
    else:
        path.unlink()
    return columns


def _rewrite(path: Path, columns: list[str], rows: Iterable[list[str]]) -> None:
    """Put a table in the place of the file, whole."""
    beside = path.with_name(path.name + ".part")
    beside.write_text("".join(_line(row) for row in (columns, *rows)))
    beside.replace(path)
