"""Continuations in a simulator: from any step of a trajectory that it has played."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.frames import to_stacks
from bilevel_gym.types import Places
from bilevel_gym.worlds.simulation import as_observations
from bilevel_gym.worlds.snapshots import can_keep, restore, snapshot

__all__ = ["Copies", "moments"]


class _Past(NamedTuple):
    """A moment of an environment whose insides are not known: how it came about."""

    seed: int
    actions: np.ndarray
    """[t, ...]."""


class Copies:
    """n single environments in the middle of episodes, of which only those that play on are stepped.

    Args:
        envs: one for each continuation.
        places: [n] where they are.
        terms: K names of numbers in each step's ``info``.
    """

    def __init__(self, envs: Sequence[gym.Env[Any, Any]], places: Places, terms: Sequence[str] = ()) -> None:
        self.envs, self.terms = envs, terms
        for env, moment in zip(envs, moments(envs[0], places), strict=True):
            _go_to(env, moment)

    def step(self, rows: Tensor, actions: Tensor, observations: Tensor) -> tuple[Tensor, ...]:
        """Play one action in each of some copies.

        Args:
            rows: [m] which.
            actions: [n, *action], of which theirs are played.
            observations: [n, *observation], what is seen in the others.

        Returns:
            observations [n, *observation], whether an end was reached [n], rewards [n], 0 in the others, and terms [n, K] likewise where
            there are names. A time limit is no end: the follower's problem has no horizon.
        """
        following, rewards = observations.clone(), torch.zeros(len(actions), device=actions.device)
        ended = torch.zeros(len(actions), dtype=torch.bool, device=actions.device)
        terms = torch.zeros(len(actions), len(self.terms), device=actions.device)
        played = actions.cpu().numpy()
        results = [self.envs[row].step(played[row]) for row in rows.tolist()]
        if results:
            seen, earned, terminated, _, infos = zip(*results, strict=True)
            following[rows] = as_observations(np.stack(seen), actions.device)
            rewards[rows] = torch.tensor(earned, dtype=rewards.dtype, device=rewards.device)
            ended[rows] = torch.tensor(terminated, device=ended.device)
            terms[rows] = torch.tensor([[float(info[name]) for name in self.terms] for info in infos], device=terms.device)
        return (following, ended, rewards, terms) if self.terms else (following, ended, rewards)


def moments(env: gym.Env[Any, Any], places: Places) -> list[Any]:
    """The moments of an environment at steps of trajectories: each episode is played again from its seed, once, with its actions.

    Args:
        env: made as those were that played the trajectories.
        places: [n].

    Returns:
        n moments. Cost: the environment steps of each trajectory up to the last of its places.

    Raises:
        InvalidProblem: the trajectories do not say how they began.
        UnsupportedProblem: the environment did not do the same again.
    """
    played = places.trajectories
    if played.seeds is None:
        raise InvalidProblem("these trajectories do not say how their episodes began; branch from what world.rollout has returned")
    last = (played.alive.sum(-1) - 1)[places.row]
    wanted, found = torch.stack([places.row, torch.minimum(places.time, last)], -1), {}
    for row in places.row.unique().tolist():
        times = wanted[wanted[:, 0] == row, 1].unique()
        seen, actions = to_stacks(played.states[row, times]), played.actions[row].cpu().numpy()
        seed, expected = int(played.seeds[row]), dict(zip(times.tolist(), seen, strict=True))
        observation, _ = env.reset(seed=seed)
        for time in range(max(expected) + 1):
            if time in expected:
                _compare(observation, expected[time], env)
                found[row, time] = snapshot(env) if can_keep(env) else _Past(seed, actions[:time])
            if time < max(expected):
                observation, *_ = env.step(actions[time])
    return [found[row, time] for row, time in wanted.tolist()]


def _go_to(env: gym.Env[Any, Any], moment: Any) -> None:
    if isinstance(moment, _Past):
        env.reset(seed=moment.seed)
        for action in moment.actions:
            env.step(action)
    else:
        restore(env, moment)


def _compare(observation: np.ndarray, expected: Tensor, env: gym.Env[Any, Any]) -> None:
    again = as_observations(observation[None], expected.device)[0]
    if not bool(((again == expected) | again.isnan()).all()):
        raise UnsupportedProblem(
            f"{env} did not repeat an episode from its seed and actions, so no continuation can start there: use a simulator that is a function of both, or sensitivity='critic'"
        )
