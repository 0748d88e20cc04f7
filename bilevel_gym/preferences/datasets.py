"""Minari datasets: their episodes as trajectories of a world, and trajectories as a dataset of one's own; nothing is fetched from anywhere."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from bilevel_gym.errors import CheckpointError, InvalidProblem, OutputExists, require
from bilevel_gym.frames import to_stacks
from bilevel_gym.preferences.fragments import as_samples, misfit
from bilevel_gym.types import Fragments, Trajectory

__all__ = ["from_minari", "to_minari"]

Columns = tuple[Tensor, Tensor, Tensor]
"""States, actions and rewards of one episode, [T, ...] each."""


def from_minari(dataset: Any, world: Any, *, steps: int | None = None, device: str | torch.device = "cpu") -> Trajectory:
    """The episodes of a Minari dataset, as trajectories of a world: what ``draw_fragments`` cuts, and what plays as an expert.

    Observations become what the world shows: numbers of states on tables, elsewhere flat as ``gymnasium.wrappers.FlattenObservation`` makes
    them, pictures as they are. The last observation of an episode, on which nobody acted, is left out.

    Args:
        dataset: the name of a local dataset, or a ``minari.MinariDataset``, such as a filtered one.
        world: whose observations and actions they must be.
        steps: T: each episode is cut into as many pieces of this length as it holds, so that all steps are alive, and the rest is left
            out. None takes each episode as it is and fills up the shorter ones with steps that are not alive.
        device: where the tensors go.

    Returns:
        [N, T], with the rewards of the dataset as true ones.

    Raises:
        MissingExtra: Minari is not installed.
        CheckpointError: there is no such dataset on this machine; ``minari.download_dataset`` fetches public ones.
        InvalidProblem: its spaces are not the world's, no episode is long enough, or ``steps`` is below 1.
    """
    if steps is not None and steps < 1:
        raise InvalidProblem(f"steps is {steps}: a piece of an episode has one step at least; None takes each episode as it is")
    found = _opened(dataset) if isinstance(dataset, str) else dataset
    observed, acted = _reader(found.observation_space, world), _actions(found.action_space, world)
    true = torch.float64 if hasattr(world, "transition_at") else torch.float32
    episodes: list[Columns] = []
    for episode in found.iterate_episodes():
        length = len(episode.rewards)
        rewards = torch.as_tensor(episode.rewards, dtype=true)
        episodes.append((observed(episode.observations)[:length], acted(np.asarray(episode.actions)), rewards))
    lengths = torch.tensor([len(rewards) for *_, rewards in episodes])
    if not bool((lengths >= (steps or 1)).any()):
        raise InvalidProblem(f"no episode of the dataset {found.id} has {steps or 1} steps: they have {lengths.unique().tolist()}")
    if steps is None:
        longest = int(lengths.max())
        alive = torch.arange(longest) < lengths[:, None]
        columns = [_filled(episode, longest) for episode in episodes]
    else:
        columns = [_pieces(episode, steps) for episode in episodes]
        alive = torch.ones(int((lengths // steps).sum()), steps, dtype=torch.bool)
    states, actions, rewards = (torch.cat(parts).to(device) for parts in zip(*columns, strict=True))
    alive = alive.to(device)
    played = Trajectory(states, actions, alive, rewards * alive)
    if reason := misfit(played, world):
        raise InvalidProblem(f"the dataset {found.id} is not of this world: {reason}")
    return played


def to_minari(dataset_id: str, played: Trajectory | Fragments, world: Any, *, description: str = "") -> None:
    """Write trajectories as a Minari dataset, each as an episode; ``minari.load_dataset(dataset_id)`` reads it.

    Observations and actions are those of the trajectories: flat boxes, pictures, or numbers. An episode that ends before the last step is
    terminated there, unless that is the world's horizon; any other is truncated. A trajectory does not hold what follows its last step,
    and an episode of Minari does: the last observation is there twice. Fragments become trajectories of their own; their labels are for
    ``save_comparisons``.

    Args:
        dataset_id: such as ``"pendulum/mine-v0"``; below ``$MINARI_DATASETS_PATH``, or ``~/.minari/datasets``.
        played: with true rewards.
        world: whose trajectories they are.
        description: what else should be known of them.

    Raises:
        MissingExtra: Minari is not installed.
        OutputExists: there is such a dataset; it is as it was.
        InvalidProblem: no name of a dataset, or trajectories without rewards or of another world.
    """
    require("h5py", "minari")
    minari, buffers = require("minari", "minari"), require("minari.data_collector", "minari")
    trajectories = as_samples(played).trajectories if isinstance(played, Fragments) else played
    if trajectories.rewards is None or (reason := misfit(trajectories, world)):
        raise InvalidProblem(f"these trajectories make no dataset: {'they carry no rewards' if trajectories.rewards is None else reason}")
    if _place(dataset_id).exists():
        raise OutputExists(f"there is a Minari dataset {dataset_id} already: choose another name or version")
    longest = min(trajectories.alive.shape[1], getattr(world, "horizon", inf))
    episodes = []
    for row, length in enumerate(trajectories.alive.sum(-1).tolist()):
        states = to_stacks(trajectories.states[row, :length]).cpu().numpy()
        last = np.arange(length) == length - 1
        episodes.append(
            buffers.EpisodeBuffer(
                seed=None if trajectories.seeds is None else int(trajectories.seeds[row]),
                observations=np.concatenate([states, states[-1:]]),
                actions=trajectories.actions[row, :length].cpu().numpy(),
                rewards=trajectories.rewards[row, :length].double().cpu().numpy(),
                terminations=last & (length < longest),
                truncations=last & (length == longest),
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Minari's advice about authors and links
        minari.create_dataset_from_buffers(
            dataset_id,
            [episode for episode in episodes if len(episode)],
            observation_space=_observation_space(trajectories.states, world),
            action_space=_action_space(world),
            description=description,
            jpeg_encoding=False,
        )


# ---------------------------------------------------------------------------------------------------------- datasets


def _place(dataset_id: str) -> Any:
    """The folder of a dataset.

    Raises:
        InvalidProblem: this is no name.
    """
    try:
        require("minari.dataset.minari_dataset", "minari").parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:
        raise InvalidProblem(f"{dataset_id!r} names no Minari dataset: write one as 'pendulum/expert-v0'") from error
    return require("minari.storage.datasets_root_dir", "minari").get_dataset_path(dataset_id)


def _opened(dataset_id: str) -> Any:
    place = _place(dataset_id)
    if not (place / "data").is_dir():
        raise CheckpointError(
            f"there is no Minari dataset {dataset_id} at {place}: minari.download_dataset({dataset_id!r}) fetches public ones"
        )
    require("h5py", "minari")
    return require("minari", "minari").load_dataset(dataset_id)


def _filled(episode: Columns, length: int) -> Columns:
    """One row [1, T, ...] each; past the end the last step stands still."""
    states, actions, rewards = (column[torch.arange(length).clamp_max(len(column) - 1)].unsqueeze(0) for column in episode)
    return states, actions, rewards


def _pieces(episode: Columns, length: int) -> Columns:
    """As many rows [k, T, ...] as there is room for."""
    count = len(episode[-1]) // length
    states, actions, rewards = (column[: count * length].unflatten(0, (count, length)) for column in episode)
    return states, actions, rewards


# ---------------------------------------------------------------------------------------------------------- spaces


def _reader(space: spaces.Space[Any], world: Any) -> Callable[[Any], Tensor]:
    """What makes tensors [T, ...] of a dataset's observations.

    Raises:
        InvalidProblem: the world shows nothing of this kind.
    """
    if hasattr(world, "transition_at"):
        if not (isinstance(space, spaces.Discrete) and space.n == world.states):
            raise InvalidProblem(f"the dataset observes {space}, and this world has {world.states} states: they must be numbers of these")
        return lambda values: torch.as_tensor(np.asarray(values) - space.start).long()
    if isinstance(space, spaces.Box) and space.shape == tuple(world.observation_shape):
        return lambda values: torch.as_tensor(values if len(space.shape) > 1 else np.asarray(values, np.float32))
    return lambda values: torch.as_tensor(_flat(space, values))


def _flat(space: spaces.Space[Any], values: Any) -> np.ndarray:
    """Observations of many steps at once, each as ``gymnasium.spaces.flatten`` makes it: [T, observation] float32."""
    if isinstance(space, spaces.Dict):
        return np.concatenate([_flat(part, values[name]) for name, part in space.items()], -1)
    if isinstance(space, spaces.Tuple):
        return np.concatenate([_flat(part, value) for part, value in zip(space, values, strict=True)], -1)
    values = np.asarray(values)
    if isinstance(space, spaces.Discrete):
        return np.asarray(np.eye(int(space.n))[values - space.start], np.float32)
    if isinstance(space, spaces.MultiDiscrete) and len(space.shape) == 1:
        columns = zip(space.nvec, (values - space.start).T, strict=True)
        return np.concatenate([np.eye(int(count), dtype=np.float32)[column] for count, column in columns], -1)
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        return np.asarray(values.reshape(len(values), -1), np.float32)
    raise InvalidProblem(f"the dataset observes {space}: numbers, boxes, and dictionaries and tuples of them can be read")


def _actions(space: spaces.Space[Any], world: Any) -> Callable[[np.ndarray], Tensor]:
    """What makes tensors [T, ...] of a dataset's actions.

    Raises:
        InvalidProblem: the world takes no such actions.
    """
    own = _action_space(world)
    if isinstance(space, spaces.Discrete) and isinstance(own, spaces.Discrete) and space.n == own.n:
        return lambda values: torch.as_tensor(values - space.start).long()
    if isinstance(space, spaces.Box) and isinstance(own, spaces.Box) and space.shape == own.shape:
        edges = ((space.low, own.low), (space.high, own.high))
        if all(np.allclose(one, other) for one, other in edges):
            return lambda values: torch.as_tensor(values.astype(np.float32))
    raise InvalidProblem(f"the dataset has actions {space}, and this world takes {own}: they must be the same")


def _action_space(world: Any) -> spaces.Space[Any]:
    count = getattr(world, "actions", None) or getattr(world, "action_count", None)
    if count is not None:
        return spaces.Discrete(count)
    return spaces.Box(world.action_low.cpu().numpy(), world.action_high.cpu().numpy(), dtype=np.float32)


def _observation_space(states: Any, world: Any) -> spaces.Space[Any]:
    if hasattr(world, "transition_at"):
        return spaces.Discrete(world.states)
    shape = tuple(world.observation_shape)
    if states.dtype == torch.uint8:
        return spaces.Box(0, 255, shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, shape, np.float32)
