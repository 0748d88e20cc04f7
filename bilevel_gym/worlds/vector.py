"""Any Gymnasium environment with flat observations and box actions, played for a fixed number of steps."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec, load_env_creator
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.numerics import draw_seed
from bilevel_gym.types import Policy, Trajectory
from bilevel_gym.worlds.policies import LinearPolicy, UniformPolicy
from bilevel_gym.worlds.simulation import Simulation, VectorEnv

__all__ = ["VectorWorld"]


@dataclass(frozen=True)
class VectorWorld:
    """A registered Gymnasium environment as a world: a description, from which live copies are opened.

    Every episode has ``horizon`` steps: the time limit is replaced, and where the environment has a switch
    ``terminate_when_unhealthy`` (MuJoCo) it is turned off. Otherwise the length of an episode would tell the follower about
    the true reward, whatever r_x says.

    Args:
        env_id: a registered id, such as ``"Pendulum-v1"``; ``"module:id"`` imports the module first.
        discount: γ in [0, 1).
        horizon: steps of an episode.
        env_kwargs: more arguments of ``gymnasium.make``; these win over ``terminate_when_unhealthy=False``.
        vectorization: ``"sync"`` steps the copies in turn, ``"async"`` each in a process of its own, for slow simulators.
        device: where the tensors go.

    Raises:
        InvalidProblem: observations are not a flat box, actions are not a bounded flat box, or a number is out of range.
    """

    env_id: str
    discount: float
    _: KW_ONLY
    horizon: int
    env_kwargs: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    vectorization: Literal["sync", "async"] = "sync"
    device: str | torch.device = "cpu"
    observation_size: int = field(init=False, compare=False)
    """Numbers in an observation."""
    action_size: int = field(init=False, compare=False)
    """Numbers in an action."""
    action_low: Tensor = field(init=False, compare=False, repr=False)
    """[action] the lower corner of the box of actions."""
    action_high: Tensor = field(init=False, compare=False, repr=False)
    """[action] the upper corner."""
    _pool: dict[int, VectorEnv] = field(init=False, compare=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not 0.0 <= self.discount < 1.0:
            raise InvalidProblem(f"discount is {self.discount}: it must be in [0, 1); use e.g. 0.99")
        if self.horizon < 1:
            raise InvalidProblem(f"horizon is {self.horizon}: an episode has at least one step")
        arguments = {**_fixed_length(gym.spec(self.env_id)), **dict(self.env_kwargs)}
        self._set(env_kwargs=tuple(sorted(arguments.items())), device=torch.device(self.device))
        env = self._make()
        observations, actions = env.observation_space, env.action_space
        if not isinstance(observations, gym.spaces.Box) or len(observations.shape) != 1:
            raise InvalidProblem(
                f"{self.env_id} has observations {observations}: a flat Box is needed; "
                "register it wrapped in gymnasium.wrappers.FlattenObservation"
            )
        if not isinstance(actions, gym.spaces.Box) or len(actions.shape) != 1 or not actions.is_bounded():
            raise InvalidProblem(f"{self.env_id} has actions {actions}: a flat Box with finite bounds is needed")
        low, high = (torch.from_numpy(edge.astype(np.float32)).to(self.device) for edge in (actions.low, actions.high))
        self._set(observation_size=observations.shape[0], action_size=actions.shape[0], action_low=low, action_high=high)
        env.close()

    def open(self, num_envs: int, seed: int) -> Simulation:
        """Open live copies of one's own, each at the start of an episode.

        Args:
            num_envs: N.
            seed: of the resets; the same seed and actions give the same episodes.
        """
        simulation = Simulation(self._vector(num_envs), torch.device(self.device))
        simulation.reset(seed)
        return simulation

    def rollout(self, policy: Policy, *, trajectories: int, steps: int, generator: torch.Generator) -> Trajectory:
        """Play ``policy`` from the start law in N parallel copies.

        The result is a function of the policy and the generator's state alone: the copies are kept between calls, and each
        call resets them with seeds drawn from the generator.

        Args:
            policy: acts on observations [N, observation].
            trajectories: N.
            steps: T; steps past the horizon are not ``alive``.
            generator: the source of the resets and of the actions.

        Returns:
            states [N, T, observation] float32, actions [N, T, action], alive [N, T], true rewards [N, T] (0 where not alive;
            states and actions stand still there). Cost: N·T environment steps, and T calls of the policy.
        """
        if trajectories not in self._pool:
            self._pool[trajectories] = self._vector(trajectories)
        simulation = Simulation(self._pool[trajectories], torch.device(self.device))
        simulation.reset(draw_seed(generator))
        alive = torch.ones(trajectories, dtype=torch.bool, device=simulation.device)
        state, seen = simulation.observations, []
        with torch.no_grad():
            for _ in range(steps):
                action = policy.sample(state, generator)
                moved = simulation.step(action)
                seen.append((state, action, alive, moved.rewards * alive))
                alive = alive & ~(moved.terminated | moved.truncated)
                state = torch.where(alive[:, None], moved.following, state)
                if not bool(alive.any()):
                    break
        columns = [torch.stack(column, 1) for column in zip(*seen, strict=True)]
        states, actions, living, rewards = (_lengthen(column, steps) for column in columns)
        living[:, len(seen) :] = False
        rewards[:, len(seen) :] = 0.0
        return Trajectory(states, actions, living, rewards)

    def quadrature(self, policy: Policy, states: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``count`` draws of equal weight in each state, from one call of the policy.

        Args:
            policy: acts on observations [K·n, observation].
            states: [n, observation].
            count: K.
            generator: the source of the draws.

        Returns:
            actions [K, n, action] and weights [K, n], all 1/K. Cost: one batch of K·n draws.
        """
        repeated = states.expand(count, *states.shape).flatten(0, 1)
        with torch.no_grad():
            actions = policy.sample(repeated, generator)
        weights = torch.full((count, states.shape[0]), 1.0 / count, dtype=states.dtype, device=states.device)
        return actions.view(count, states.shape[0], -1), weights

    def uniform(self) -> UniformPolicy:
        """Actions drawn uniformly from the box, whatever the observation is."""
        return UniformPolicy(self.action_low, self.action_high)

    def exploratory(self, generator: torch.Generator) -> LinearPolicy:
        """A random linear feedback of random gain and noise, from nearly still to bang-bang (see ``LinearPolicy.random``)."""
        return LinearPolicy.random(self.observation_size, self.action_low, self.action_high, generator)

    def close(self) -> None:
        """Close the copies that rollouts have kept; the next rollout opens new ones."""
        while self._pool:
            self._pool.popitem()[1].close()

    def picture(self, policy: Policy, *, steps: int = 50) -> np.ndarray:
        """What the follower looks like after some steps of an episode of its own, always the same one.

        Args:
            policy: who plays.
            steps: played before the picture is taken.

        Returns:
            [height, width, 3] uint8.

        Raises:
            RuntimeError: this machine cannot render; the message names the cure.
        """
        generator = torch.Generator().manual_seed(0)
        env = self._make(render_mode="rgb_array")
        try:
            state, _ = env.reset(seed=0)
            for _ in range(min(steps, self.horizon - 1)):
                action = policy.sample(torch.as_tensor(state[None], dtype=torch.float32, device=self.device), generator)
                state, *_ = env.step(action[0].cpu().numpy())
            return np.asarray(env.render())
        except Exception as error:
            cure = "install pygame for classic control; for MuJoCo without a display set MUJOCO_GL=egl (Debian: apt-get install libegl1)"
            raise RuntimeError(f"{self.env_id} cannot be rendered here ({error}); {cure}") from error
        finally:
            env.close()

    def _vector(self, num_envs: int) -> VectorEnv:
        kind = gym.vector.AsyncVectorEnv if self.vectorization == "async" else gym.vector.SyncVectorEnv
        return kind([self._make] * num_envs, copy=False, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)  # ``Simulation`` copies

    def _make(self, **options: Any) -> gym.Env[Any, Any]:
        return gym.make(self.env_id, max_episode_steps=self.horizon, disable_env_checker=True, **options, **dict(self.env_kwargs))

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the live copies, which cannot be pickled."""
        return {**self.__dict__, "_pool": {}}


def _fixed_length(spec: EnvSpec) -> dict[str, Any]:
    """The argument that keeps a fall from ending the episode, where the environment has it."""
    entry = spec.entry_point
    creator = load_env_creator(entry) if isinstance(entry, str) else entry
    if creator is None or "terminate_when_unhealthy" not in inspect.signature(creator).parameters:
        return {}
    return {"terminate_when_unhealthy": False}


def _lengthen(column: Tensor, steps: int) -> Tensor:
    """Repeat the last step until there are ``steps``: [N, t, ...] → [N, T, ...]."""
    missing = steps - column.shape[1]
    return column if missing == 0 else torch.cat([column, column[:, -1:].expand(-1, missing, *column.shape[2:])], 1)
