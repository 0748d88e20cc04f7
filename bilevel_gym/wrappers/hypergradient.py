"""∇̂φ for agents that have no estimator of their own."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.types import Estimator
from bilevel_gym.wrappers.inner import Outer, inner

__all__ = ["HypergradientInfo"]


class HypergradientInfo(Outer, gym.utils.RecordConstructorArgs):
    """``info["hypergradient"]`` is an estimate of ∇φ at the x that the environment has, [D], after each step and each reset.

    It is in units of x, whatever other wrappers make of actions. What the estimator asks of the environment is drawn from a generator of
    its own, so two runs with one seed are identical, and is counted; the counters in ``info`` include it. A cold reset starts the
    estimator anew, and one that keeps the follower keeps the estimator's state, too.

    Args:
        env: an outer environment.
        estimator: such as ``hypergradients.Exact()`` on tables, or ``hypergradients.ScoreFunction("critic", "frozen", batch=64)``.

    Raises:
        InvalidProblem: it is not a bilevel environment.
        UnsupportedProblem: the estimator does not fit its problem; the message names the reason.

    Cost: one estimate a step.
    """

    def __init__(self, env: gym.Env[Any, Any], estimator: Estimator) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, estimator=estimator)
        self._bilevel = inner(env, "HypergradientInfo")
        super().__init__(env)
        if isinstance(estimator, type) or not hasattr(estimator, "supports"):
            raise InvalidProblem(f"estimator is {estimator!r}: give an object, such as hypergradients.Exact()")
        if reason := estimator.supports(self._bilevel.problem):
            raise UnsupportedProblem(f"{type(estimator).__name__} does not fit this problem: {reason}")
        self.estimator = estimator
        self.state: Any = None
        """The estimator's."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the environment's, with the estimate at its x."""
        observation, info = self.env.reset(seed=seed, options=options)
        if not (options or {}).get("keep"):
            self.state = self.estimator.init(self._bilevel.oracle)
        return observation, self._told(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's, with the estimate at the new x."""
        *seen, info = self.env.step(action)
        return (*seen, self._told(info))

    def _told(self, info: dict[str, Any]) -> dict[str, Any]:
        bilevel = self._bilevel
        assert bilevel.x is not None
        estimate, self.state = self.estimator(bilevel.oracle, bilevel.x, bilevel.response, bilevel.evaluation, self.state)
        return {**info, **vars(bilevel.counters), "hypergradient": estimate.value.detach().cpu().numpy().copy()}
