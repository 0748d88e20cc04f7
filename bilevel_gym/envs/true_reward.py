"""The ceiling of a task: its own twin in which r_x is the true reward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bilevel_gym.envs.bilevel_env import BilevelEnv
from bilevel_gym.errors import UnsupportedProblem
from bilevel_gym.objectives import PreferenceObjective
from bilevel_gym.regularizers import Shannon
from bilevel_gym.rewards import EnvironmentReward

__all__ = ["with_true_reward"]


def with_true_reward(env: Any, temperature: float | None = None) -> BilevelEnv:
    """The same environment for a follower who is told the truth: ``rewards.EnvironmentReward`` in place of r_x, and all else as it is.

    World, solver, sizes and objective are those of ``env``, so that ``info`` has the same numbers; but there is nobody to disagree, so
    that pairs of a query rule are drawn uniformly, as many of them, and the queue starts empty, as comparisons from a file hold no
    rewards. D = 1: x scales the true reward and starts at 1. True rewards have units of their own, r_x on a preference task lies in [−1, 1]: the same τ means something else.

    The simulators of trajectories are shared with ``env``: use one of the two at a time, and close them together.

    Args:
        env: an outer environment on a simulator, such as a preference task, or wrappers around one; it stays as it is.
        temperature: τ, in units of the true reward of a step; None takes that of ``env``, whatever its units are.

    Returns:
        a bilevel environment of its own, not reset yet.

    Raises:
        UnsupportedProblem: it is no single environment on a simulator.
        InvalidProblem: the temperature is not positive.
    """
    bilevel = env.unwrapped
    if not isinstance(bilevel, BilevelEnv) or not hasattr(bilevel.problem.world, "open"):
        raise UnsupportedProblem(
            "a follower learns from the true reward where it plays in a simulator, and this is no such environment; take a preference task, such as bilevel/PendulumPreference-v0"
        )
    given: Any = bilevel.problem
    regularizer = given.regularizer if temperature is None else Shannon(temperature)
    objective = given.objective
    if isinstance(objective, PreferenceObjective):
        query = None if objective.query is None else replace(objective.query, rule="uniform")
        objective = replace(objective, query=query, comparisons=None)
    problem = replace(given, objective=objective, reward=EnvironmentReward(device=given.reward.device), regularizer=regularizer)
    return BilevelEnv(problem, bilevel.solver, solve_on_reset=bilevel.solve_on_reset, render_mode=bilevel.render_mode)
