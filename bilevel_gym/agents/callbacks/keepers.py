"""States that are kept on disk: the last one, to go on from, and the best one."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

from bilevel_gym import checkpoint
from bilevel_gym.agents.loop import Agent
from bilevel_gym.arguments import checked
from bilevel_gym.errors import CheckpointError, InvalidProblem, UnknownName

__all__ = ["BestKeeper", "Checkpointer"]

LARGER_IS_BETTER = ("return", "value", "accuracy", "r2", "separation")
"""Words in the names of metrics of which more is better, where nobody says so; of all others, less is."""


class Checkpointer:
    """Saves environment, agent and step every so often, so that a run can go on as if it had never stopped.

    Args:
        path: the file; it is replaced as a whole, never written in part.
        every: upper steps between two checkpoints; None saves only when ``save`` is called.
        run: plain data to keep beside the state, such as the arguments of the run.
        large: bytes from which a replay is kept in files ``<stem>.<number>.ring`` beside the checkpoint, to which only what is new is
            written; 0 does so always.

    Raises:
        InvalidProblem: a number that is none, or not positive.
    """

    @checked
    def __init__(
        self, path: str | Path, *, every: int | None = None, run: Mapping[str, Any] | None = None, large: int = checkpoint.LARGE
    ) -> None:
        if (every is not None and every < 1) or large < 0:
            raise InvalidProblem(
                f"every is {every} and large {large}: save every 1 step at least, or give None to save by hand; large is 0 or more"
            )
        self.path, self.large = Path(path), large
        self.every = every
        self.run = dict(run or {})
        self._saved: int | None = None

    def __call__(self, agent: Agent, metrics: Mapping[str, float]) -> None:
        """Save where ``every`` divides the step."""
        if self.every is not None and int(metrics["upper_step"]) % self.every == 0:
            self.save(agent)

    def save(self, agent: Agent) -> None:
        """Save now, unless the file holds this step already."""
        step = agent.bilevel.upper_step
        if step != self._saved:
            with checkpoint.beside(self.path, self.large):
                state = {"env": agent.bilevel.get_state(), "agent": agent.get_state(), "step": step, "run": checkpoint.pack(self.run)}
                checkpoint.save(self.path, state)
            self._saved = step


class BestKeeper:
    """Saves a checkpoint whenever a metric is better than it ever was; the file holds a whole one at any time.

    An existing file is gone on with: its value is what has to be beaten. Steps that do not report the metric, such as those between two
    measurements of an ``Evaluator``, and NaN, are passed over.

    Args:
        path: the file.
        metric: what is compared, such as ``"objective"`` or ``"eval_true_return"``. On noisy metrics the best is the luckiest.
        larger_is_better: None takes it from the name: so for returns, values, accuracies and shares, not so for all else.
        run: plain data to keep beside the state.

    Raises:
        CheckpointError: the file is there, and is not one of this metric.
    """

    def __init__(
        self, path: str | Path, metric: str = "objective", *, larger_is_better: bool | None = None, run: Mapping[str, Any] | None = None
    ) -> None:
        self.metric = metric
        self.larger_is_better = _larger_is_better(metric) if larger_is_better is None else larger_is_better
        self.value: float | None = _value_of(Path(path), metric) if Path(path).exists() else None
        """The best so far, None before any."""
        self._reported = self.value is not None
        self._keeper = Checkpointer(path, run=run)

    def __call__(self, agent: Agent, metrics: Mapping[str, float]) -> None:
        """Save where the metric has improved.

        Raises:
            UnknownName: the first step that this sees does not report the metric, and nothing was kept before.
        """
        if self.metric not in metrics:
            if not self._reported:
                raise UnknownName("metric", self.metric, list(metrics))
            return
        self._reported = True
        value, sign = float(metrics[self.metric]), -1.0 if self.larger_is_better else 1.0
        if sign * value < (inf if self.value is None else sign * self.value):
            self._keeper.run["best"] = {"metric": self.metric, "value": value}
            self._keeper.save(agent)
            self.value = value


def _larger_is_better(metric: str) -> bool:
    return any(word in LARGER_IS_BETTER for word in metric.split("_"))


def _value_of(path: Path, metric: str) -> float:
    try:
        best = checkpoint.unpack(checkpoint.load(path)["run"])["best"]
        name, value = best["metric"], float(best["value"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} holds no best checkpoint ({error} is missing): name another file, or move it away") from error
    if name != metric:
        raise CheckpointError(f"{path} holds the best by {name}, and {metric} was asked for: name another file, or move it away")
    return value
