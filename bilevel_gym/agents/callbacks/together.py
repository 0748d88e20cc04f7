"""Several callbacks as one."""

from __future__ import annotations

from collections.abc import Mapping

from bilevel_gym.agents.loop import Agent, Answer, Callback

__all__ = ["together"]


def together(*callbacks: Callback) -> Callback:
    """One callback that calls all of these in turn, and ends the training once any of them returns False.

    A mapping that one of them returns is added to the metrics that those after it see: put an ``Evaluator`` before the loggers, and
    loggers before a ``Checkpointer``, so that a checkpoint at step k finds its row k written.

    Args:
        *callbacks: each is called on every step, also after an earlier one has returned False.
    """

    def call(agent: Agent, metrics: Mapping[str, float]) -> Answer:
        """All of them in turn."""
        seen, go_on = dict(metrics), True
        found: dict[str, float] = {}
        for callback in callbacks:
            answer = callback(agent, seen)
            go_on = go_on and answer is not False
            if isinstance(answer, Mapping):
                seen.update(answer)
                found.update(answer)
        return found if go_on and found else go_on

    return call
