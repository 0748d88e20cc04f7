"""Any Gymnasium environment with flat observations, or stacks of pictures, played for a fixed number of steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator
from torch import Tensor

from bilevel_gym.arguments import check_call, check_names, check_numbers, spec_of
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.worlds.simulated import SimulatedWorld, check_times
from bilevel_gym.worlds.simulation import VectorEnv
from bilevel_gym.worlds.snapshots import keeps

__all__ = ["Endless", "VectorWorld", "Vectorization"]

Vectorization = Literal["sync", "async"]
"""How copies are stepped: in turn, or each in a process of its own."""


@dataclass(frozen=True)
class VectorWorld(SimulatedWorld):
    """A Gymnasium environment as a world: a description, from which live copies are opened.

    Every episode has ``horizon`` steps: the time limit is replaced, and where a registered environment has a switch
    ``terminate_when_unhealthy`` (MuJoCo) it is turned off. Otherwise the length of an episode would tell the follower about
    the true reward, whatever r_x says. What still ends an episode early is hidden by ``endless=True``.

    Observations that are numbers, dictionaries or tuples are flattened (Gymnasium's ``FlattenObservation``: a discrete part becomes
    an indicator vector). Stacks of pictures, [stack, height, width] uint8, stay as they are.

    Args:
        env: a registered id, such as ``"Pendulum-v1"``, where ``"module:id"`` imports the module first; or a function that makes an
            environment, a new one at each call. If it has an argument ``render_mode`` it is asked for pictures by it.
        discount: γ in [0, 1).
        horizon: steps of an episode.
        endless: whether an end before the horizon is hidden (see ``Endless``).
        terms: names of numbers that each step's ``info`` has, such as ``"reward_forward"``: trajectories and replay keep them for
            ``rewards.RewardTerms``.
        env_kwargs: more arguments of ``gymnasium.make``, which win over ``terminate_when_unhealthy=False``; or of the function.
        vectorization: ``"sync"`` steps the copies in turn, ``"async"`` each in a process of its own, for slow simulators.
        device: where the tensors go.

    Raises:
        InvalidProblem: observations are neither pictures nor can be made a flat box, actions are neither a bounded flat box nor finitely
            many, a number is out of range, the function makes something else, or it takes other arguments than it is given.
    """

    env: str | Callable[..., gym.Env[Any, Any]]
    discount: float
    _: KW_ONLY
    horizon: int
    endless: bool = False
    terms: tuple[str, ...] = ()
    env_kwargs: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    vectorization: Vectorization = "sync"
    device: str | torch.device = "cpu"
    observation_shape: tuple[int, ...] = field(init=False, compare=False)
    """[observation], or [stack, height, width]."""
    observation_size: int = field(init=False, compare=False, repr=False)
    """Numbers in a flat observation."""
    time_limit: int | None = field(init=False, compare=False, repr=False)
    """Steps after which the environment by itself would cut an episode off; None where it would not."""
    action_size: int = field(init=False, compare=False, repr=False)
    """Numbers in an action, where actions are a box."""
    action_low: Tensor = field(init=False, compare=False, repr=False)
    """[action] the lower corner of the box of actions, where there is one."""
    action_high: Tensor = field(init=False, compare=False, repr=False)
    """[action] the upper corner."""
    action_count: int = field(init=False, compare=False, repr=False)
    """A, where actions are finitely many; the three above do not exist then."""

    def __post_init__(self) -> None:
        check_numbers(self)
        check_times(self.discount, self.horizon)
        check_names("vectorization", [self.vectorization], get_args(Vectorization))
        given = _fixed_length(spec_of(self.env)) if isinstance(self.env, str) else {}
        arguments = {**given, **dict(self.env_kwargs)}
        self._set(env_kwargs=tuple(sorted(arguments.items())), device=torch.device(self.device))
        self._set(time_limit=self._limit())
        with self._make() as env:
            self._describe(env, _called(self.env))
        if len(self.observation_shape) == 1:
            self._set(observation_size=self.observation_shape[0])

    def _vector(self, num_envs: int, horizon: int) -> VectorEnv:
        kind = gym.vector.AsyncVectorEnv if self.vectorization == "async" else gym.vector.SyncVectorEnv
        return self._copies(num_envs, horizon, kind=kind)

    def _make(self, horizon: int | None = None, **options: Any) -> gym.Env[Any, Any]:
        env = _without_limits(self._new(**options))
        if isinstance(env.action_space, spaces.Discrete) and env.action_space.start:
            first, count = env.action_space.start, env.action_space.n
            env = gym.wrappers.TransformAction(env, lambda action: action + first, spaces.Discrete(count))
        env = _readable(env, _called(self.env))
        return gym.wrappers.TimeLimit(Endless(env) if self.endless else env, horizon or self.horizon)

    def _new(self, **options: Any) -> gym.Env[Any, Any]:
        """One copy as it comes."""
        given = dict(self.env_kwargs)
        if isinstance(self.env, str):
            try:
                return gym.make(self.env, max_episode_steps=-1, disable_env_checker=True, **options, **given)
            except TypeError as error:
                raise InvalidProblem(f"{self.env} cannot be made with {given}: {error}") from error
        takes = inspect.signature(self.env).parameters.values()
        known = {name for name in options if any(name == one.name or one.kind is one.VAR_KEYWORD for one in takes)}
        check_call(
            f"the function {_called(self.env)}, which makes the environment (env_kwargs gives it more),", self.env, (), {*known, *given}
        )
        env = self.env(**{name: options[name] for name in known}, **given)
        if not isinstance(env, gym.Env):
            raise InvalidProblem(
                f"{_called(self.env)} made a {type(env).__name__}: give a function that makes a gymnasium.Env at each call"
            )
        return env

    def _limit(self) -> int | None:
        if isinstance(self.env, str):
            return spec_of(self.env).max_episode_steps
        env = self._new()
        env.close()
        return None if env.spec is None else env.spec.max_episode_steps


class Endless(gym.Wrapper[Any, Any, Any, Any]):
    """Hides the ends of episodes: where one ends, the environment starts anew in the same step, and the follower goes on there.

    This is a decision problem of its own, in which an end is a transition to the start law like any other: s' is the first observation
    of the new start, which is where the follower acts next, so a learner is right to bootstrap from it; nothing is ever terminated, and
    the only cost of an end is what the reward says of it. The last observation before an end is not shown. An environment whose
    reward is its length (CartPole's is 1 a step, at a fall too) has no reward left then: ``sutton_barto_reward=True`` gives −1 a fall.

    Starts are drawn from the environment's own generator, so that a seed of ``reset`` and the actions decide everything.
    """

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Play on, through an end if there is one."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            observation, begun = self.env.reset()
            info = {**begun, **info}
        return observation, reward, False, False, info


keeps(Endless)


def _called(env: str | Callable[..., Any]) -> str:
    return env if isinstance(env, str) else getattr(env, "__name__", type(env).__name__)


def _without_limits(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """The environment without the time limits around it and in it: the world's own horizon takes their place."""
    while isinstance(env, gym.wrappers.TimeLimit):
        env = env.env
    layer = env
    while isinstance(layer, gym.Wrapper):
        while isinstance(layer.env, gym.wrappers.TimeLimit):
            layer.env = layer.env.env
        layer = layer.env
    return env


def _readable(env: gym.Env[Any, Any], name: str) -> gym.Env[Any, Any]:
    """The environment with observations that a network reads: a flat box, or stacks of pictures."""
    space = env.observation_space
    if _flattens(space):
        return env if isinstance(space, spaces.Box) else gym.wrappers.FlattenObservation(env)
    if isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[0] < min(space.shape[1:]):
        return env
    raise InvalidProblem(
        f"{name} has observations {space}: a flat Box is needed, numbers, dictionaries and tuples of them, or stacks of grey pictures "
        "(stack, height, width) uint8; give a function that makes it in a wrapper, such as gymnasium.wrappers.FlattenObservation, or "
        "GrayscaleObservation, ResizeObservation and FrameStackObservation"
    )


def _flattens(space: gym.Space[Any]) -> bool:
    """Whether every part is a flat list of numbers: a picture has no business in a perceptron."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return all(map(_flattens, space.values() if isinstance(space, spaces.Dict) else space))
    if isinstance(space, spaces.Discrete):
        return True
    return isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box) and len(space.shape) == 1


def _fixed_length(spec: EnvSpec) -> dict[str, Any]:
    """The argument that keeps a fall from ending the episode, where the environment has it."""
    entry = spec.entry_point
    creator = load_env_creator(entry) if isinstance(entry, str) else entry
    if creator is None or "terminate_when_unhealthy" not in inspect.signature(creator).parameters:
        return {}
    return {"terminate_when_unhealthy": False}
