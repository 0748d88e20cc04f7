"""An end where what the lower level may cost is spent."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from bilevel_gym.arguments import checked
from bilevel_gym.envs.oracle import check_asked
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.wrappers.inner import Outer, inner

__all__ = ["LowerBudget"]


class LowerBudget(Outer, gym.utils.RecordConstructorArgs):
    """Truncates the episode after the upper step in which one of the budgets is spent; a further step is refused.

    What is counted is what ``info`` counts, since the last cold reset, with what estimators have asked for; so the step that spends a
    budget may exceed it. A cold reset starts a new budget, a reset with ``"keep"`` does not. For our own agents, which go on through
    truncations with ``"keep"``, there is the callback ``agents.StopOnBudget``, which ends the training.

    Args:
        env: an outer environment.
        lower_step: sweeps, Newton steps or gradient updates of the lower level.
        env_steps: environment steps.
        comparisons: labels asked of the teacher; of no use on a task that has asked for none by the end of its reset, where the first
            step is refused.

    Raises:
        InvalidProblem: it is not a bilevel environment, no budget is given, or one is not positive.
    """

    @checked
    def __init__(
        self, env: gym.Env[Any, Any], *, lower_step: int | None = None, env_steps: int | None = None, comparisons: int | None = None
    ) -> None:
        given = {"lower_step": lower_step, "env_steps": env_steps, "comparisons": comparisons}
        gym.utils.RecordConstructorArgs.__init__(self, lower_step=lower_step, env_steps=env_steps, comparisons=comparisons)
        self._bilevel = inner(env, "LowerBudget")
        super().__init__(env)
        self.limits = {name: limit for name, limit in given.items() if limit is not None}
        if not self.limits or min(self.limits.values()) < 1:
            raise InvalidProblem(f"the budgets are {self.limits}: give at least one of {', '.join(given)}, a positive number")

    @property
    def left(self) -> dict[str, int]:
        """What is left of each budget, negative where it was exceeded."""
        return {name: limit - getattr(self._bilevel.counters, name) for name, limit in self.limits.items()}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """A step, the last one where a budget is spent by it.

        Raises:
            gymnasium.error.ResetNeeded: a budget was spent before; the environment is unchanged.
            InvalidProblem: comparisons are limited, and the task asks for none; the environment is unchanged.
        """
        begun = self._bilevel.x is not None
        if begun:
            check_asked(self.limits, self._bilevel.counters.comparisons)
        if begun and (spent := self._spent()):
            cure = "a reset alone costs more" if self._bilevel.upper_step == 0 else "a cold reset, without 'keep', starts a new one"
            raise gym.error.ResetNeeded(f"the budget of {spent} is spent: {cure}; or raise the limit")
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated or bool(self._spent()), info

    def _spent(self) -> str:
        return ", ".join(f"{self.limits[name]} {name}" for name, left in self.left.items() if left <= 0)
