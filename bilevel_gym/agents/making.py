"""Environments and agents out of names and JSON, with errors that name what is wrong: what runs and the command line are made of."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from bilevel_gym.agents import recipes
from bilevel_gym.agents.loop import Agent, OuterEnv
from bilevel_gym.arguments import check_names, spec_of
from bilevel_gym.envs import BilevelEnv, BilevelVectorEnv
from bilevel_gym.errors import BilevelError, InvalidProblem, MissingExtra, UnknownName, UnsupportedProblem

__all__ = ["RECIPES", "make_agent", "make_env", "make_envs"]

RECIPES: dict[str, Callable[..., Agent]] = {name: getattr(recipes, name) for name in recipes.__all__}
"""The named agents."""


def make_env(env_id: str, kwargs: Mapping[str, Any] | None = None) -> gym.Env[Any, Any]:
    """``gymnasium.make`` with errors that name what is wrong.

    Args:
        env_id: a registered id; ``"module:id"`` imports the module first.
        kwargs: arguments of the environment.

    Raises:
        UnknownName: no such id, or no such argument.
        InvalidProblem: the arguments do not make an environment, or its module cannot be imported.
        MissingExtra: a simulator is not installed.
    """
    env: gym.Env[Any, Any] = _make(gym.make, env_id, dict(kwargs or {}))
    return env


def make_envs(env_id: str, num_envs: int, kwargs: Mapping[str, Any] | None = None) -> gym.vector.VectorEnv[Any, Any, Any]:
    """``gymnasium.make_vec`` with errors that name what is wrong: N of them as one batch.

    Args:
        env_id: a registered id; ``"module:id"`` imports the module first.
        num_envs: N.
        kwargs: arguments of the environment.

    Raises:
        UnsupportedProblem: the id is not solved as a batch.
        Exception: what ``make_env`` raises.
    """

    def make(env_id: str, **kwargs: Any) -> gym.vector.VectorEnv[Any, Any, Any]:
        """As ``gymnasium.make_vec``, where there is a batch to be made."""
        if spec_of(env_id).vector_entry_point is None:
            raise UnsupportedProblem(f"{env_id} is not solved as a batch: run one seed after the other, each into a folder of its own")
        return gym.make_vec(env_id, num_envs=num_envs, **kwargs)

    envs: gym.vector.VectorEnv[Any, Any, Any] = _make(make, env_id, dict(kwargs or {}))
    return envs


def _make(make: Callable[..., Any], env_id: str, kwargs: dict[str, Any]) -> Any:
    known = [name for name in gym.registry if name.startswith("bilevel/")]
    try:
        entry = spec_of(env_id).entry_point
    except gym.error.Error as error:
        raise UnknownName("id", env_id, known) from error
    except ImportError as error:
        raise InvalidProblem(f"the module of {env_id} cannot be imported ({error}): is it in this folder, or on PYTHONPATH?") from error
    creator = load_env_creator(entry) if isinstance(entry, str) else entry
    assert creator is not None
    _check_options(f"argument of {env_id}", creator, kwargs, skip=0)
    try:
        env = make(env_id, **kwargs)
    except BilevelError:
        raise
    except gym.error.DependencyNotInstalled as error:
        raise MissingExtra(f"{env_id} needs a package that is not installed: {error}") from error
    except (TypeError, ValueError, MemoryError) as error:
        if not kwargs:
            raise
        raise InvalidProblem(f"{env_id} cannot be made with {kwargs}: {error}") from error
    if not isinstance(env.unwrapped, BilevelEnv | BilevelVectorEnv):
        raise UnknownName("bilevel id", env_id, known)
    return env


def make_agent(name: str, env: OuterEnv, kwargs: Mapping[str, Any] | None = None) -> Agent:
    """A named agent on an environment.

    Args:
        name: in ``RECIPES``.
        env: the environment.
        kwargs: arguments of the recipe.

    Raises:
        UnknownName: no such agent, or no such argument.
        InvalidProblem: the arguments do not make an agent.
    """
    if name not in RECIPES:
        raise UnknownName("agent", name, list(RECIPES))
    kwargs = dict(kwargs or {})
    _check_options(f"argument of the agent {name}", RECIPES[name], kwargs, skip=1)
    try:
        return RECIPES[name](env, **kwargs)
    except BilevelError:
        raise
    except (TypeError, ValueError) as error:
        if not kwargs:
            raise
        raise InvalidProblem(f"the agent {name} cannot be made with {kwargs}: {error}") from error


def _check_options(kind: str, function: Callable[..., Any], kwargs: Mapping[str, Any], *, skip: int) -> None:
    """Refuse a name that ``function`` has no parameter for, before it fails somewhere inside; ``skip`` leading ones are not options."""
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return
    check_names(kind, kwargs, [parameter.name for parameter in parameters])
