"""The outer environment inside of what surrounds it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from bilevel_gym.envs import BilevelEnv
from bilevel_gym.errors import InvalidProblem

__all__ = ["Outer", "inner"]

Outer = gym.Wrapper[Any, Any, Any, Any]
"""A wrapper that changes neither observations nor actions, or any."""


def inner(env: gym.Env[Any, Any], wrapper: str) -> BilevelEnv:
    """The bilevel environment in there.

    Raises:
        InvalidProblem: there is none.
    """
    found = env.unwrapped
    if not isinstance(found, BilevelEnv):
        raise InvalidProblem(
            f"{wrapper} goes around a bilevel environment, and {type(found).__name__} is none: make one with gym.make('bilevel/…') or wrap_env"
        )
    return found
