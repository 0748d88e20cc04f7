"""Tables out of Gymnasium's environments that carry them: FrozenLake, CliffWalking, Taxi, and others with a ``P``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.numerics import ArrayLike
from bilevel_gym.transitions import SparseTransition
from bilevel_gym.worlds.tabular import TabularWorld

__all__ = ["from_gymnasium"]


def from_gymnasium(
    env: str | gym.Env[Any, Any], *, discount: float, start: ArrayLike | None = None, device: str | torch.device = "cpu"
) -> TabularWorld:
    """The world of an environment that carries its probabilities: ``env.unwrapped.P[s][a] = [(probability, s', reward, terminated), …]``.

    What terminates is kept out of P: an ended episode has value 0, it does not go round and round in its last state. ``true_reward`` is
    the mean reward of each (s, a). A time limit around the environment is not part of its P, and is left out.

    Args:
        env: an environment, wrapped or not, or an id such as ``"FrozenLake-v1"``, ``"CliffWalking-v1"``, ``"Taxi-v4"``.
        discount: γ in [0, 1).
        start: [S] ρ; by default the environment's own ``initial_state_distrib`` or ``isd``.
        device: where the tables live.

    Raises:
        UnsupportedProblem: the environment has no ``P``, or no start law and none is given.
        InvalidProblem: its numbers are not probabilities.
    """
    made = gym.make(env) if isinstance(env, str) else env
    try:
        inner = made.unwrapped
        outcomes = getattr(inner, "P", None)
        if not isinstance(outcomes, Mapping):
            raise UnsupportedProblem(
                f"{type(inner).__name__} carries no table of probabilities P: give them to TabularWorld, or use worlds.VectorWorld to sample it"
            )
        law = start if start is not None else getattr(inner, "initial_state_distrib", getattr(inner, "isd", None))
        if law is None:
            raise UnsupportedProblem(
                f"{type(inner).__name__} has neither initial_state_distrib nor isd: give start=[…], one probability a state"
            )
        transition, termination, reward = _tables(outcomes)
        return TabularWorld(transition, law, discount, termination, true_reward=reward, device=device)
    finally:
        if isinstance(env, str):
            made.close()


def _tables(outcomes: Mapping[int, Mapping[int, Any]]) -> tuple[SparseTransition, np.ndarray, np.ndarray]:
    """[S, A, S] the probabilities of going on, [S, A] of ending, and [S, A] the mean reward."""
    states, actions = len(outcomes), len(next(iter(outcomes.values()), {}))
    if sorted(outcomes) != list(range(states)) or any(sorted(row) != list(range(actions)) for row in outcomes.values()):
        raise InvalidProblem("P must number its states 0 to S − 1, and in each of them the same actions 0 to A − 1")
    branches = max((len(found) for row in outcomes.values() for found in row.values()), default=0)
    table = np.zeros((4, states, actions, branches))
    for state, row in outcomes.items():
        for action, found in row.items():
            table[:, state, action, : len(found)] = np.asarray(found, dtype=np.float64).reshape(-1, 4).T
    chance, following, earned, ends = table
    transition = SparseTransition.from_pairs(torch.as_tensor(following.astype(np.int64)), torch.as_tensor(chance * (1.0 - ends)))
    return transition, (chance * ends).sum(-1), (chance * earned).sum(-1)
