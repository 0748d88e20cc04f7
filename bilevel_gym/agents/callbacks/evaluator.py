"""Measurements on the side, in the middle of a training."""

from __future__ import annotations

from collections.abc import Mapping

from bilevel_gym.agents.evaluation import evaluate_env
from bilevel_gym.agents.loop import Agent
from bilevel_gym.arguments import checked
from bilevel_gym.envs import BilevelEnv, BilevelVectorEnv
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem

__all__ = ["Evaluator"]


class Evaluator:
    """Measures the follower by the true and by the learned reward, at the first upper step and then every so often.

    What it finds are metrics named ``eval_…`` (see the glossary), which the callbacks after it get, too: put it before the loggers.
    Environment and counters stay as they are. The episodes have equal seeds each time, so that two measurements differ by the policy.

    Args:
        every: upper steps between two measurements.
        episodes: played for each return; tables need none.
        seed: of the episodes.

    Raises:
        InvalidProblem: a number that is not positive.

    Cost: that of ``evaluate_env`` each time, without the random policy.
    """

    @checked
    def __init__(self, every: int, *, episodes: int = 10, seed: int = 0) -> None:
        if every < 1 or episodes < 1:
            raise InvalidProblem(f"every is {every} and episodes {episodes}: measure every 1 step at least, over 1 episode at least")
        self.every, self.episodes, self.seed = every, episodes, seed

    def __call__(self, agent: Agent, metrics: Mapping[str, float]) -> dict[str, float] | None:
        """Measure, where it is due.

        Raises:
            UnsupportedProblem: the environment is not a bilevel one.
        """
        step = int(metrics["upper_step"])
        if step != 1 and step % self.every:
            return None
        if not isinstance(agent.bilevel, BilevelEnv | BilevelVectorEnv):
            raise UnsupportedProblem(f"an Evaluator measures a BilevelEnv, and this is a {type(agent.bilevel).__name__}: leave it out")
        lines = evaluate_env(agent.bilevel, episodes=self.episodes, seed=self.seed, baseline=False)
        return {f"eval_{line.metric}": line.value for line in lines if line.metric}
