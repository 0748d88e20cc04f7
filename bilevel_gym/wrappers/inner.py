"""The outer environment inside of what surrounds it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from bilevel_gym.envs import BilevelEnv
from bilevel_gym.errors import InvalidProblem

__all__ = ["Outer", "inner"]

Outer = gym.Wrapper[Any, Any, Any, Any]
"""A wrapper that changes neither observations nor actions, or any."""


def inner(env: Any, wrapper: str) -> BilevelEnv:
    """The bilevel environment in there; called before Gymnasium looks at ``env``, whose own words do not say what to do.

    Raises:
        InvalidProblem: there is none, or there are several.
    """
    if isinstance(env, gym.vector.VectorEnv):
        raise InvalidProblem(
            f"{wrapper} goes around one environment, and this is a vector of {env.num_envs}: put one around each, as "
            f"gym.make_vec(id, num_envs={env.num_envs}, vectorization_mode='sync', wrappers=[…]) does"
        )
    if not isinstance(env, gym.Env):
        what = f"gym.make({env!r})" if isinstance(env, str) else "gym.make('bilevel/…') or wrap_env(…)"
        raise InvalidProblem(f"{wrapper} goes around an environment, and {env!r} is none: give {what}")
    found = env.unwrapped
    if not isinstance(found, BilevelEnv):
        raise InvalidProblem(
            f"{wrapper} goes around a bilevel environment, and {type(found).__name__} is none: make one with gym.make('bilevel/…') or wrap_env"
        )
    return found
