"""When the statistics of a reward model move; without any a problem stays what it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from bilevel_gym.types import Buffered, Evaluation

__all__ = ["absorbed", "buffers", "settled", "with_buffers"]


def buffers(problem: Any) -> Any:
    """The statistics, None where there are none."""
    return problem.reward.buffers if isinstance(problem.reward, Buffered) else None


def with_buffers(problem: Any, values: Any) -> Any:
    """The problem with other statistics; None takes those before anything was seen."""
    return _with(problem, problem.reward.with_buffers(values)) if isinstance(problem.reward, Buffered) else problem


def absorbed(problem: Any, x: Tensor, evaluation: Evaluation) -> Any:
    """The problem after a look at the follower, which counts from now on."""
    if not isinstance(problem.reward, Buffered) or evaluation.fresh is None:
        return problem
    return _with(problem, problem.reward.absorb(x, evaluation.fresh.fragments))


def settled(problem: Any, x: Tensor, evaluation: Evaluation) -> Any:
    """The problem at another x, before the follower learns under it."""
    if not isinstance(problem.reward, Buffered) or evaluation.fresh is None:
        return problem
    return _with(problem, problem.reward.settle(x, evaluation.fresh.fragments))


def _with(problem: Any, reward: Any) -> Any:
    return problem if reward is problem.reward else replace(problem, reward=reward)
