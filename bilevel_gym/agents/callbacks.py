"""What happens after each upper step: logs, checkpoints, and a polite end on Ctrl-C.

Each class here is a ``Callback``: hand one to ``agent.learn``, or several of them joined by ``together``.
"""

from __future__ import annotations

import csv
import io
import signal
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self

from bilevel_gym import checkpoint
from bilevel_gym.agents.loop import Agent, Callback
from bilevel_gym.errors import CheckpointError, OutputExists, require

__all__ = ["CSVLogger", "Checkpointer", "StopOnSignal", "TensorBoardLogger", "together"]

Metrics = Mapping[str, float]


def together(*callbacks: Callback) -> Callback:
    """One callback that calls all of these in turn, and ends the training once any of them returns False.

    Put loggers before a ``Checkpointer``: a checkpoint at step k then always finds its row k written.

    Args:
        *callbacks: each is called on every step, also after an earlier one has returned False.
    """

    def call(agent: Agent, metrics: Metrics) -> bool:
        answers = [callback(agent, metrics) for callback in callbacks]
        return all(answer is not False for answer in answers)

    return call


class CSVLogger:
    """One row an upper step in a file, flushed at once, so that a killed run keeps what it had.

    The first row fixes the columns, ``upper_step`` first; a metric that appears later is left out, a missing one is an empty field.

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
        if not self._columns:
            self._columns = ["upper_step", *(name for name in metrics if name != "upper_step")]
            self._write(self._columns)
        self._write([_number(metrics[name]) if name in metrics else "" for name in self._columns])

    def close(self) -> None:
        """Close the file; a later row opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, cells: Iterable[str]) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", newline="")
        # One write call for the whole line: a signal between two of them would leave half a row.
        self._file.write(_line(cells))
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class TensorBoardLogger:
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Checkpointer:
    """Saves environment, agent and step every so often, so that a run can go on as if it had never stopped.

    Args:
        path: the file; it is replaced as a whole, never written in part.
        every: upper steps between two checkpoints; None saves only when ``save`` is called.
        run: plain data to keep beside the state, such as the arguments of the run.
    """

    def __init__(self, path: str | Path, *, every: int | None = None, run: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.every = every
        self.run = dict(run or {})
        self._saved: int | None = None

    def __call__(self, agent: Agent, metrics: Metrics) -> None:
        """Save where ``every`` divides the step."""
        if self.every is not None and int(metrics["upper_step"]) % self.every == 0:
            self.save(agent)

    def save(self, agent: Agent) -> None:
        """Save now, unless the file holds this step already."""
        step = agent.bilevel.counters.upper_step
        if step != self._saved:
            state = {"env": agent.bilevel.get_state(), "agent": agent.get_state(), "step": step, "run": checkpoint.pack(self.run)}
            checkpoint.save(self.path, state)
            self._saved = step


class StopOnSignal:
    """Ends the training after the current upper step at the first signal; the second one aborts at once.

    A context manager, whose callback goes last; the handlers that were there come back at the end of the block. Outside of the main
    thread, where Python lets nobody handle signals, it does nothing.

    Args:
        signals: SIGINT (Ctrl-C) and SIGTERM (what schedulers send) by default.
        announce: called with the signal's number at the first one, from inside the handler: it must not touch buffered files.
    """

    def __init__(self, *signals: signal.Signals, announce: Callable[[int], None] | None = None) -> None:
        self.signals = signals or (signal.SIGINT, signal.SIGTERM)
        self.received: int | None = None
        """The number of the signal that came, None before any."""
        self._announce = announce
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in self.signals}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __call__(self, agent: Agent, metrics: Metrics) -> bool:
        """Whether to go on."""
        return self.received is None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        if self._announce is not None:
            self._announce(number)


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
    beside = path.with_name(path.name + ".part")
    beside.write_text("".join(_line(row) for row in ([columns, *kept] if columns else [])))
    beside.replace(path)
    return columns
