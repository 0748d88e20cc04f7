"""The progress bar of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

__all__ = ["Progress"]


class Progress:
    """A bar with the live objective; costs nothing where it is not shown.

    Args:
        total: upper steps to come.
        shown: whether to draw it.
    """

    def __init__(self, total: int, *, shown: bool) -> None:
        self._bar = None
        if shown:
            self._bar = Bar(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._task = self._bar.add_task("objective …", total=total)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, info: Mapping[str, Any]) -> None:
        """One upper step further."""
        if self._bar is not None:
            words = f"objective {info['objective']:.5g}"
            if "true_return" in info:
                words += f"  true return {info['true_return']:.4g}"
            self._bar.update(self._task, advance=1, description=words)
