"""Any Gymnasium environment with flat observations, played for a fixed number of steps."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.worlds.simulated import SimulatedWorld, check_times
from bilevel_gym.worlds.simulation import VectorEnv
from bilevel_gym.worlds.snapshots import keeps

__all__ = ["Endless", "VectorWorld"]


@dataclass(frozen=True)
class VectorWorld(SimulatedWorld):
    """A registered Gymnasium environment as a world: a description, from which live copies are opened.

    Every episode has ``horizon`` steps: the time limit is replaced, and where the environment has a switch
    ``terminate_when_unhealthy`` (MuJoCo) it is turned off. Otherwise the length of an episode would tell the follower about
    the true reward, whatever r_x says. What still ends an episode early is hidden by ``endless=True``.

    Observations that are numbers, dictionaries or tuples are flattened (Gymnasium's ``FlattenObservation``: a discrete part becomes
    an indicator vector).

    Args:
        env_id: a registered id, such as ``"Pendulum-v1"``; ``"module:id"`` imports the module first.
        discount: γ in [0, 1).
        horizon: steps of an episode.
        endless: whether an end before the horizon is hidden (see ``Endless``).
        terms: names of numbers that each step's ``info`` has, such as ``"reward_forward"``: trajectories and replay keep them for
            ``rewards.RewardTerms``.
        env_kwargs: more arguments of ``gymnasium.make``; these win over ``terminate_when_unhealthy=False``.
        vectorization: ``"sync"`` steps the copies in turn, ``"async"`` each in a process of its own, for slow simulators.
        device: where the tensors go.

    Raises:
        InvalidProblem: observations cannot be made a flat box, actions are neither a bounded flat box nor finitely many, or a number is
            out of range.
    """

    env_id: str
    discount: float
    _: KW_ONLY
    horizon: int
    endless: bool = False
    terms: tuple[str, ...] = ()
    env_kwargs: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    vectorization: Literal["sync", "async"] = "sync"
    device: str | torch.device = "cpu"
    observation_shape: tuple[int, ...] = field(init=False, compare=False)
    """[observation]."""
    observation_size: int = field(init=False, compare=False)
    """Numbers in an observation."""
    action_size: int = field(init=False, compare=False, repr=False)
    """Numbers in an action, where actions are a box."""
    action_low: Tensor = field(init=False, compare=False, repr=False)
    """[action] the lower corner of the box of actions, where there is one."""
    action_high: Tensor = field(init=False, compare=False, repr=False)
    """[action] the upper corner."""
    action_count: int = field(init=False, compare=False, repr=False)
    """A, where actions are finitely many; the three above do not exist then."""

    def __post_init__(self) -> None:
        check_times(self.discount, self.horizon)
        arguments = {**_fixed_length(gym.spec(self.env_id)), **dict(self.env_kwargs)}
        self._set(env_kwargs=tuple(sorted(arguments.items())), device=torch.device(self.device))
        with self._make() as env:
            self._describe(env, self.env_id)
        self._set(observation_size=self.observation_shape[0])

    def _vector(self, num_envs: int, horizon: int) -> VectorEnv:
        kind = gym.vector.AsyncVectorEnv if self.vectorization == "async" else gym.vector.SyncVectorEnv
        return kind(
            [partial(self._make, horizon)] * num_envs, copy=False, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP
        )  # ``Simulation`` copies

    def _make(self, horizon: int | None = None, **options: Any) -> gym.Env[Any, Any]:
        env = gym.make(self.env_id, max_episode_steps=-1, disable_env_checker=True, **options, **dict(self.env_kwargs))
        if isinstance(env.action_space, spaces.Discrete) and env.action_space.start:
            first, count = env.action_space.start, env.action_space.n
            env = gym.wrappers.TransformAction(env, lambda action: action + first, spaces.Discrete(count))
        env = _flat(env, self.env_id)
        return gym.wrappers.TimeLimit(Endless(env) if self.endless else env, horizon or self.horizon)


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
            info = {**info, **begun}
        return observation, reward, False, False, info


keeps(Endless)


def _flat(env: gym.Env[Any, Any], name: str) -> gym.Env[Any, Any]:
    """The environment with observations in a flat box."""
    if not _flattens(env.observation_space):
        raise InvalidProblem(
            f"{name} has observations {env.observation_space}: a flat Box is needed, or numbers, dictionaries and tuples of them; "
            "register it wrapped in gymnasium.wrappers.FlattenObservation"
        )
    return env if isinstance(env.observation_space, spaces.Box) else gym.wrappers.FlattenObservation(env)


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
