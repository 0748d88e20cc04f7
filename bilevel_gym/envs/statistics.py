"""When the statistics of a reward model move, without any a problem stays what it is; and when a reward has come to its bound."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from torch import Tensor

from bilevel_gym.types import Buffered, Evaluation

__all__ = ["absorbed", "buffers", "saturated", "settled", "with_buffers"]

MUCH = 0.5
"""A share of the follower's steps at which r_x is at its bound that is worth a warning."""


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


def saturated(evaluation: Evaluation) -> bool:
    """Whether r_x is at its bound at most of the follower's steps (the metric ``reward_saturated``); says so in the log."""
    share = evaluation.metrics.get("reward_saturated", 0.0)
    if share > MUCH:
        logging.getLogger(__name__).warning(
            "r_x is above .95 of its bound at %.0f %% of the follower's steps, where it hardly tells one from another and has hardly a "
            "gradient: take x nearer to zero, or lower the agent's learning_rate, or the clip of its implicit part",
            100.0 * share,
        )
    return share > MUCH


def _with(problem: Any, reward: Any) -> Any:
    return problem if reward is problem.reward else replace(problem, reward=reward)
