"""Moments of a single environment, kept and restored with every counter and random number of it and of its wrappers.

A copy of the whole object would drag renderers and compiled models along, and miss what lives in C. So what is kept is named here, one
kind of environment after the other.
"""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym
import numpy as np

from bilevel_gym.errors import UnsupportedProblem
from bilevel_gym.worlds.atari_game import AtariGame

__all__ = ["Momentary", "can_keep", "keeps", "restore", "snapshot"]

_COUNTERS: dict[type, tuple[str, ...]] = {
    gym.wrappers.TimeLimit: ("_elapsed_steps",),
    gym.wrappers.OrderEnforcing: ("_has_reset",),
    gym.wrappers.FlattenObservation: (),
    gym.wrappers.TransformAction: (),
}
"""What wrappers count; ``keeps`` adds more."""

_CLASSIC = ("state", "steps_beyond_terminated", "last_u")
"""The fields of classic control, where they are there."""

_DERIVED = (
    "xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat", "subtree_com",
    "cinert", "cvel", "cfrc_ext", "cfrc_int", "cacc", "qfrc_actuator", "qfrc_constraint", "ten_length", "ten_velocity", "sensordata",
)  # fmt: skip
"""What MuJoCo derives from a state. Rewards read it before the next step (Ant the place of its torso, Humanoid its centre of mass), and it
is that of the last step's beginning, not of its end: computing it anew would give other numbers."""


def keeps(wrapper: type, *fields: str) -> None:
    """Say which fields of a wrapper change as it is used, none where it has no memory."""
    _COUNTERS[wrapper] = fields


def can_keep(env: gym.Env[Any, Any]) -> bool:
    """Whether moments of this environment can be kept: MuJoCo, ``AtariGame`` without sticky actions and classic control, in wrappers without a memory that is unknown."""
    while isinstance(env, gym.Wrapper):
        if type(env) not in _COUNTERS:
            return False
        env = env.env
    if isinstance(env, AtariGame):
        return env.sticky == 0.0  # ALE does not say which action it may repeat next
    return _is_mujoco(env) or type(env).__module__.startswith("gymnasium.envs.classic_control.")


def snapshot(env: gym.Env[Any, Any]) -> tuple[Any, ...]:
    """This moment: from the outermost wrapper to the simulator. Cost: some hundred numbers; of Atari a stack of frames.

    Raises:
        UnsupportedProblem: what this environment consists of is not known.
    """
    if not can_keep(env):
        raise UnsupportedProblem(
            f"moments of {env} cannot be kept: it is neither MuJoCo, AtariGame without sticky actions nor classic control; replay its actions"
        )
    layers: list[Any] = []
    while isinstance(env, gym.Wrapper):
        layers.append([getattr(env, name) for name in _COUNTERS[type(env)]])
        env = env.env
    return (*layers, env.np_random.bit_generator.state, _state(env))


def restore(env: gym.Env[Any, Any], moment: tuple[Any, ...]) -> None:
    """Go back to a moment, which may have been that of another environment made in the same way."""
    *layers, noise, state = moment
    for values in layers:
        assert isinstance(env, gym.Wrapper)
        for name, value in zip(_COUNTERS[type(env)], values, strict=True):
            setattr(env, name, value)
        env = env.env
    env.np_random.bit_generator.state = noise
    _set_state(env, state)


class Momentary(gym.Wrapper[Any, Any, Any, Any]):
    """Shows the moment of an environment as an attribute, which a vector environment reads and sets in its copies, in other processes too."""

    @property
    def moment(self) -> tuple[Any, ...] | None:
        """This moment; None where it cannot be kept."""
        return snapshot(self.env) if can_keep(self.env) else None

    @moment.setter
    def moment(self, moment: tuple[Any, ...]) -> None:
        restore(self.env, moment)


def _is_mujoco(env: gym.Env[Any, Any]) -> bool:
    module = sys.modules.get("gymnasium.envs.mujoco.mujoco_env")  # not imported by us: it needs MuJoCo
    return module is not None and isinstance(env, module.MujocoEnv)


def _state(env: gym.Env[Any, Any]) -> Any:
    if isinstance(env, AtariGame):
        return env.state()
    if not _is_mujoco(env):
        return {name: np.copy(getattr(env, name)) if name == "state" else getattr(env, name) for name in _CLASSIC if hasattr(env, name)}
    mujoco, model, data = sys.modules["mujoco"], env.model, env.data  # type: ignore[attr-defined]
    numbers = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(model, data, numbers, mujoco.mjtState.mjSTATE_INTEGRATION)
    return numbers, [getattr(data, name).copy() for name in _DERIVED]


def _set_state(env: gym.Env[Any, Any], state: Any) -> None:
    if isinstance(env, AtariGame):
        env.set_state(state)
    elif not _is_mujoco(env):
        for name, value in state.items():
            setattr(env, name, np.copy(value) if name == "state" else value)
    else:
        mujoco, (numbers, derived) = sys.modules["mujoco"], state
        mujoco.mj_setState(env.model, env.data, numbers, mujoco.mjtState.mjSTATE_INTEGRATION)  # type: ignore[attr-defined]
        for name, value in zip(_DERIVED, derived, strict=True):
            getattr(env.data, name)[:] = value  # type: ignore[attr-defined]
