"""An end before the last step: a signal came, or what was to be spent is spent."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any, Self

from bilevel_gym.agents.loop import Agent
from bilevel_gym.arguments import checked
from bilevel_gym.envs.oracle import check_asked
from bilevel_gym.errors import InvalidProblem, UnknownName

__all__ = ["StopOnBudget", "StopOnSignal"]


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

    def __call__(self, agent: Agent, metrics: Mapping[str, float]) -> bool:
        """Whether to go on."""
        return self.received is None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        if self._announce is not None:
            self._announce(number)


class StopOnBudget:
    """Ends the training after the upper step in which one of the budgets is used up, so as to compare agents at equal cost.

    Counters begin at the cold reset of the environment, so a resumed run goes on with what it had spent; seconds begin with this
    object. A step is never cut short: the last one may spend more than was left.

    Args:
        lower_step: sweeps, Newton steps or gradient updates of the lower level, those that estimators asked for included.
        env_steps: environment steps.
        comparisons: labels asked of the teacher.
        seconds: of wall time.

    Raises:
        InvalidProblem: no budget at all, or one that is not positive.
    """

    @checked
    def __init__(
        self,
        *,
        lower_step: float | None = None,
        env_steps: float | None = None,
        comparisons: float | None = None,
        seconds: float | None = None,
    ) -> None:
        given = {"lower_step": lower_step, "env_steps": env_steps, "comparisons": comparisons, "seconds": seconds}
        self.limits = {name: limit for name, limit in given.items() if limit is not None}
        if not self.limits or not all(limit > 0 for limit in self.limits.values()):
            raise InvalidProblem(f"the budgets are {self.limits}: give one at least of {', '.join(given)}, each above 0")
        self.spent: str | None = None
        """Which budget was used up, None as long as none is."""
        self._began = time.monotonic()

    def __call__(self, agent: Agent, metrics: Mapping[str, float]) -> bool:
        """Whether to go on.

        Raises:
            UnknownName: the environment does not count what is limited.
            InvalidProblem: comparisons are limited, and the task asks for none.
        """
        used = {**metrics, "seconds": time.monotonic() - self._began}
        for name in self.limits:
            if name not in used:
                raise UnknownName("counter", name, [counter for counter in ("lower_step", "env_steps", "comparisons") if counter in used])
        check_asked(self.limits, used.get("comparisons", 0))
        for name, limit in self.limits.items():
            if used[name] >= limit:
                self.spent = name
        return self.spent is None
