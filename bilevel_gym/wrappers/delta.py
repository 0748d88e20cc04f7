"""Actions that move x in place of naming it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch

from bilevel_gym.envs.boundary import read_x
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.wrappers.inner import inner

__all__ = ["DeltaX"]


class DeltaX(gym.ActionWrapper[Any, np.ndarray, np.ndarray], gym.utils.RecordConstructorArgs):
    """The action is a step Δ: x ← clip(x + Δ) to the box of x, from the x where the environment stands.

    A reset goes to where the environment itself starts, or to ``options["x"]``, which is x and no step; from there on steps count. For an
    agent that decides by what it observes x has to be seen: it is, on tables and wherever x is short.

    Args:
        env: an outer environment, whose action is x itself: ``RescaleAction(DeltaX(env), -1, 1)``, not the other way round.
        limit: the largest |Δ|, one number or [D], in units of x; None takes a tenth of each side of the box.

    Raises:
        InvalidProblem: no bilevel environment, or one whose actions are not x any more; a limit that is not positive and finite.
    """

    def __init__(self, env: gym.Env[Any, np.ndarray], limit: Any = None) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, limit=limit.tolist() if isinstance(limit, np.ndarray) else limit)
        self._bilevel = inner(env, "DeltaX")
        super().__init__(env)
        box = self._bilevel.action_space
        assert isinstance(box, gym.spaces.Box)
        if env.action_space != box:
            raise InvalidProblem(
                "the actions of this environment are not x itself, a wrapper changes them: put DeltaX inside of that wrapper"
            )
        self._box = box
        try:
            largest = np.asarray((box.high - box.low) / 10 if limit is None else limit, dtype=box.dtype)
        except (TypeError, ValueError):  # text, or a list of lists
            largest = np.array(np.nan)
        if isinstance(limit, bool) or largest.shape not in ((), box.shape) or not bool((np.isfinite(largest) & (largest > 0)).all()):
            raise InvalidProblem(
                f"limit is {limit!r}: it must be positive and finite, one number or one for each of {box.shape[0]} parameters"
            )
        largest = np.broadcast_to(largest, box.shape)
        self.action_space = gym.spaces.Box(-largest, largest, dtype=box.dtype)

    def action(self, action: np.ndarray) -> np.ndarray:
        """x + Δ in the box: [D] → [D].

        Raises:
            InvalidAction: Δ has a wrong shape, a NaN, or is larger than the limit; nothing has changed.
            gymnasium.error.ResetNeeded: before the first reset.
        """
        assert isinstance(self.action_space, gym.spaces.Box)
        step = read_x(action, self.action_space, torch.device("cpu"), name="Δ").numpy()
        if self._bilevel.x is None:
            raise gym.error.ResetNeeded("call env.reset() before env.step(Δ): there is no x to start from")
        x: np.ndarray = np.clip(self._bilevel.x.cpu().numpy() + step, self._box.low, self._box.high)
        return x
