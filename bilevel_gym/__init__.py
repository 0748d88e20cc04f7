"""Gymnasium environments, wrappers and agents for bilevel reinforcement learning.

Importing the package registers the ``bilevel/…`` ids and loads neither torch nor any simulator; everything else is loaded when it
is first touched.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bilevel_gym.registration import register_ids

if TYPE_CHECKING:
    from bilevel_gym import (
        agents,
        checkpoint,
        envs,
        errors,
        hypergradients,
        multiagent,
        numerics,
        objectives,
        preferences,
        regularizers,
        rewards,
        solvers,
        testing,
        types,
        worlds,
        wrappers,
    )
    from bilevel_gym.envs.bilevel_env import BilevelEnv
    from bilevel_gym.envs.wrap import wrap_env
    from bilevel_gym.problem import BilevelProblem, ConvexProblem

__version__ = "0.1.0"

_MODULES = (
    "agents",
    "checkpoint",
    "envs",
    "errors",
    "hypergradients",
    "multiagent",
    "numerics",
    "objectives",
    "preferences",
    "regularizers",
    "rewards",
    "solvers",
    "testing",
    "types",
    "worlds",
    "wrappers",
)
_NAMES = {
    "BilevelEnv": "bilevel_gym.envs.bilevel_env",
    "BilevelProblem": "bilevel_gym.problem",
    "ConvexProblem": "bilevel_gym.problem",
    "wrap_env": "bilevel_gym.envs.wrap",
}

__all__ = [
    "BilevelEnv",
    "BilevelProblem",
    "ConvexProblem",
    "__version__",
    "agents",
    "checkpoint",
    "envs",
    "errors",
    "hypergradients",
    "multiagent",
    "numerics",
    "objectives",
    "preferences",
    "regularizers",
    "rewards",
    "solvers",
    "testing",
    "types",
    "worlds",
    "wrap_env",
    "wrappers",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"bilevel_gym.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'bilevel_gym' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


register_ids()
