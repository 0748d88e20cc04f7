"""MuJoCo's locomotion tasks as worlds of fixed horizon."""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

import torch

from bilevel_gym.errors import require
from bilevel_gym.worlds.vector import VectorWorld

__all__ = ["mujoco_world"]


def mujoco_world(
    env_id: str,
    *,
    horizon: int = 1000,
    discount: float = 0.99,
    terms: tuple[str, ...] = (),
    endless: bool = False,
    device: str | torch.device = "cpu",
    **env_kwargs: Any,
) -> VectorWorld:
    """A MuJoCo task, such as ``mujoco_world("Hopper-v5")``, in which falling does not end the episode.

    Args:
        env_id: a registered id of Gymnasium's MuJoCo family.
        horizon: steps of an episode.
        discount: γ in [0, 1).
        terms: names of the parts of the reward that are kept apart, such as ``("reward_forward", "reward_ctrl")``.
        endless: whether ends of another kind than a fall are hidden, too (see ``Endless``).
        device: where the tensors go; the simulator itself is on the CPU.
        **env_kwargs: arguments of the environment, such as ``ctrl_cost_weight=0.0``.

    Raises:
        MissingExtra: MuJoCo is not installed.
        InvalidProblem: as for ``VectorWorld``.
    """
    _quiet(require("mujoco", "mujoco"))
    require("imageio", "mujoco")  # Gymnasium imports it with every MuJoCo task, even where nothing is rendered
    return VectorWorld(env_id, discount, horizon=horizon, endless=endless, terms=terms, env_kwargs=env_kwargs, device=device)


def _quiet(mujoco: ModuleType) -> None:
    """Send MuJoCo's warnings to ``logging``, but for one about Gymnasium's own model files, which comes with every copy that is made.

    Without this MuJoCo prints to the terminal, through a progress bar, and leaves a file MUJOCO_LOG.TXT behind. A handler that is
    there already stays.
    """
    if hasattr(mujoco, "get_mju_user_warning") and mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_log)


def _log(message: str) -> None:
    if "settotalmass" not in message:
        logging.getLogger(__name__).warning(message)
