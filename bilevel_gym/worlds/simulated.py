"""What worlds on simulators have in common: live copies, rollouts that a seed decides, and pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_gym.errors import CannotRender, InvalidProblem
from bilevel_gym.frames import to_stacks
from bilevel_gym.numerics import draw_seed
from bilevel_gym.types import Places, Policy, Trajectory
from bilevel_gym.worlds.actions import BoxActions, Choices, action_kind
from bilevel_gym.worlds.branching import Copies
from bilevel_gym.worlds.checks import check_counts
from bilevel_gym.worlds.policies import LinearPolicy, SoftmaxPolicy, UniformChoice, UniformPolicy
from bilevel_gym.worlds.simulation import Simulation, VectorEnv, as_observations
from bilevel_gym.worlds.snapshots import Momentary

__all__ = ["SimulatedWorld", "check_times"]


class SimulatedWorld:
    """A world that is a simulator. A subclass says how a single copy is made, ``_make``, and maybe how many are, ``_vector``.

    It is a frozen dataclass with the fields below, calls ``_describe`` once, and keeps the copies of its rollouts in ``_pool``.
    """

    discount: float
    horizon: int
    device: str | torch.device
    observation_shape: tuple[int, ...]
    terms: tuple[str, ...] = ()
    _name: str
    _actions: BoxActions | Choices
    _pool: dict[int, VectorEnv]
    _singles: list[gym.Env[Any, Any]]

    def open(self, num_envs: int, seed: int, *, render_mode: str | None = None) -> Simulation:
        """Open live copies of one's own, each at the start of an episode.

        Args:
            num_envs: N.
            seed: of the resets; the same seed and actions give the same episodes.
            render_mode: how ``simulation.env.render()`` draws the copies, which then are stepped in turn; None does not draw.
        """
        check_counts(num_envs=num_envs)
        env = self._copies(num_envs, render_mode=render_mode) if render_mode else self._vector(num_envs, self.horizon)
        simulation = Simulation(env, torch.device(self.device), self.terms)
        simulation.reset(seed)
        return simulation

    def rollout(self, policy: Policy, *, trajectories: int, steps: int, generator: torch.Generator) -> Trajectory:
        """Play ``policy`` from the start law in N parallel copies.

        The result is a function of the policy and the generator's state alone: the copies are kept between calls, and each
        call resets them with seeds drawn from the generator.

        Args:
            policy: acts on observations [N, *observation].
            trajectories: N.
            steps: T; steps past the horizon are not ``alive``.
            generator: the source of the resets and of the actions.

        Returns:
            states [N, T, *observation] (pixels as ``FrameStacks``), actions [N, T, action] or [N, T], alive [N, T], true rewards [N, T]
            (0 where not alive; states and actions stand still there), seeds [N], terms [N, T, K] where there are names. Cost: N·T environment steps, and T calls of the policy.
        """
        check_counts(trajectories=trajectories, steps=steps)
        if trajectories not in self._pool or self._pool[trajectories].closed:
            self._pool[trajectories] = self._vector(trajectories, self.horizon + 1)  # so that nobody starts anew at the end
        simulation = Simulation(self._pool[trajectories], torch.device(self.device), self.terms)
        try:
            return self._play(simulation, policy, steps, generator)
        except BaseException:
            simulation.abandon()  # copies whose step was cut short wait for somebody to fetch what came of it
            raise

    def branch(self, policy: Policy, places: Places, *, steps: Tensor, generator: torch.Generator, given: bool = False) -> Trajectory:
        """Play ``policy`` on from steps of trajectories of this world (see ``types.Branching``).

        The trajectories are played again from their seeds up to there, which needs a simulator that is a function of seed and actions;
        then each continuation has a copy of its own. Only an end ends one, not the horizon.

        Raises:
            InvalidProblem: the trajectories do not say how their episodes began.
            UnsupportedProblem: the simulator did not do the same again.

        Cost: the environment steps of all continuations, and of each trajectory up to the last of its places.
        """
        while len(self._singles) < len(steps):
            self._singles.append(self._make())
        copies = Copies(self._singles[: len(steps)], places, self.terms)
        first = state = to_stacks(places.states)
        action, steps, seen = places.actions, steps.to(first.device), []
        ended = torch.zeros_like(steps, dtype=torch.bool)
        with torch.no_grad():
            for time in range(int(steps.max())):
                on = steps > time
                drawn = policy.sample(state[on], generator)
                if time > 0 or not given:
                    action = action.clone()
                    action[on] = drawn
                alive = on & ~ended
                following, ends, *said = copies.step(alive.nonzero().squeeze(-1), action, state)
                seen.append((self._kept(state), action, alive, *said))
                state, ended = following, ended | ends
        states, *columns = zip(*seen, strict=True)
        actions, living, rewards, *terms = (torch.stack(column, 1) for column in columns)
        return Trajectory(self._table(first, states, len(seen)), actions, living, rewards, terms=terms[0] if terms else None)

    def quadrature(self, policy: Any, states: Any, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Actions and weights whose weighted sum is a mean over π: all A actions, or ``count`` draws of equal weight from a box.

        Args:
            policy: acts on observations; with finitely many actions it has ``probabilities(observations) -> [n, A]``.
            states: [n, *observation].
            count: K, where actions are a box.
            generator: the source of the draws.

        Returns:
            actions [K, n, action] and weights [K, n], all 1/K; or actions [A, n] and weights [A, n]. Cost: one call of the policy for
            K·n observations, or in parts for n.
        """
        return self._actions.quadrature(policy, states, count, generator)

    def uniform(self) -> UniformPolicy | UniformChoice:
        """Actions drawn uniformly, whatever the observation is."""
        return self._actions.uniform()

    def exploratory(self, generator: torch.Generator) -> LinearPolicy | SoftmaxPolicy:
        """A random feedback of random gain, from nearly still or uniform to bang-bang or greedy."""
        return self._actions.exploratory(self.observation_shape, generator)

    def close(self) -> None:
        """Close the copies that rollouts and branches have kept; the next ones open new ones."""
        while self._pool:
            self._pool.popitem()[1].close()
        while self._singles:
            self._singles.pop().close()

    def picture(self, policy: Policy, *, steps: int = 50) -> np.ndarray:
        """What the follower looks like after some steps of an episode of its own, always the same one.

        Args:
            policy: who plays.
            steps: played before the picture is taken.

        Returns:
            [height, width, 3] uint8.

        Raises:
            CannotRender: this machine cannot; the message names the cure.
        """
        generator = torch.Generator().manual_seed(0)
        env = self._make(render_mode="rgb_array")
        try:
            state, _ = env.reset(seed=0)
            for _ in range(min(steps, self.horizon - 1)):
                action = policy.sample(as_observations(state[None], torch.device(self.device)), generator)
                state, *_ = env.step(action[0].cpu().numpy())
            return _render(env, self._name)
        finally:
            env.close()

    def _play(self, simulation: Simulation, policy: Policy, steps: int, generator: torch.Generator) -> Trajectory:
        """``rollout`` in given copies, which are reset first."""
        trajectories = simulation.env.num_envs
        first = state = simulation.reset(draw_seed(generator))
        alive, seen = torch.ones(trajectories, dtype=torch.bool, device=simulation.device), []
        with torch.no_grad():
            for _ in range(min(steps, self.horizon)):
                action = policy.sample(state, generator)
                moved = simulation.step(action)
                said = () if moved.terms is None else (moved.terms * alive[:, None],)
                seen.append((self._kept(state), action, alive, moved.rewards * alive, *said))
                alive = alive & ~(moved.terminated | moved.truncated)
                state = torch.where(alive.view(-1, *(1,) * (state.ndim - 1)), moved.following, state)
                if not bool(alive.any()):
                    break
        states, *columns = zip(*seen, strict=True)
        actions, living, rewards, *terms = (lengthen(column, steps) for column in columns)
        living[:, len(seen) :] = False
        for table in (rewards, *terms):
            table[:, len(seen) :] = 0.0
        seeds = torch.tensor(simulation.seeds, device=simulation.device)
        return Trajectory(self._table(first, states, steps), actions, living, rewards, seeds=seeds, terms=terms[0] if terms else None)

    def _vector(self, num_envs: int, horizon: int) -> VectorEnv:
        """N copies under SAME_STEP autoreset, truncated after ``horizon`` steps."""
        return self._copies(num_envs, horizon)

    def _copies(
        self,
        num_envs: int,
        horizon: int | None = None,
        *,
        kind: type[gym.vector.SyncVectorEnv | gym.vector.AsyncVectorEnv] = gym.vector.SyncVectorEnv,
        **options: Any,
    ) -> VectorEnv:
        make = partial(self._momentary, horizon, **options)
        return kind([make] * num_envs, copy=False, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)  # ``Simulation`` copies

    def _momentary(self, horizon: int | None, **options: Any) -> gym.Env[Any, Any]:
        return Momentary(self._make(horizon, **options))

    def _make(self, horizon: int | None = None, **options: Any) -> gym.Env[Any, Any]:
        """One copy, truncated after ``horizon`` steps or the world's own."""
        raise NotImplementedError

    def _kept(self, observations: Tensor) -> Tensor:
        """What a trajectory keeps of the observations of one step: [N, *observation] → [N, ...]."""
        return observations

    def _table(self, first: Tensor, columns: Sequence[Tensor], steps: int) -> Any:
        """The states of a trajectory from the first observations and what was kept of all: [N, ...], t of [N, ...] → [N, T], standing still from t on."""
        return lengthen(columns, steps)

    def _describe(self, env: gym.Env[Any, Any], name: str) -> None:
        """Take down what observations and actions are."""
        actions = action_kind(env.action_space, name, torch.device(self.device))
        self._set(_name=name, observation_shape=env.observation_space.shape, _actions=actions, _pool={}, _singles=[], **actions.sizes)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the live copies, which cannot be pickled."""
        return {**self.__dict__, "_pool": {}, "_singles": []}


def check_times(discount: float, horizon: int) -> None:
    """Refuse a discount or a horizon that is out of range.

    Raises:
        InvalidProblem: one of them is.
    """
    if not 0.0 <= discount < 1.0:
        raise InvalidProblem(f"discount is {discount}: it must be in [0, 1); use e.g. 0.99")
    if horizon < 1:
        raise InvalidProblem(f"horizon is {horizon}: an episode has at least one step")


_without_gl: dict[str | None, str] = {}
"""Why MuJoCo found no OpenGL in this process, by MUJOCO_GL: a second attempt can abort the interpreter, so none is made."""


def _render(env: gym.Env[Any, Any], name: str) -> np.ndarray:
    mujoco = hasattr(env.unwrapped, "mujoco_renderer")
    cure = "set MUJOCO_GL=egl where there is no display (Debian: apt-get install libegl1)" if mujoco else "install bilevel-gym[plot]"
    if mujoco and (reason := _without_gl.get(os.environ.get("MUJOCO_GL"))):
        raise CannotRender(f"{name} cannot be drawn here ({reason}); {cure}")
    if env.render_mode is None:
        raise CannotRender(f"{name} cannot be drawn: the function that makes it needs an argument render_mode, and to pass it on")
    try:
        return np.asarray(env.render())
    except Exception as error:  # whatever the many libraries below raise
        if mujoco:
            _without_gl[os.environ.get("MUJOCO_GL")] = str(error)
        raise CannotRender(f"{name} cannot be drawn here ({error}); {cure}") from error


def lengthen(columns: Sequence[Tensor], steps: int) -> Tensor:
    """Columns side by side, the last one repeated until there are ``steps``: t of [N, ...] → [N, T, ...]."""
    return torch.stack([*columns, *[columns[-1]] * (steps - len(columns))], 1)
