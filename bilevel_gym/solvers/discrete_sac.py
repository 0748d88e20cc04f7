"""Soft actor-critic for finitely many actions: the follower of CartPole and of Atari (arXiv 1910.07207)."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.solvers.categorical import CategoricalPolicy
from bilevel_gym.solvers.discrete_actor_critic import DiscreteLearner
from bilevel_gym.solvers.finite_actions import FiniteActionSolver
from bilevel_gym.solvers.learner import ActorCritic, Setting

__all__ = ["DiscreteSAC"]


@dataclass(frozen=True)
class DiscreteSAC(FiniteActionSolver):
    """Soft actor-critic with two critics of all actions: means over π are sums, and the losses draw nothing.

    Flat observations are read by perceptrons. Stacks of pictures are read by the convolutions of Mnih et al. (Nature, 2015) with
    ``hidden`` on top, (512,) being theirs, and kept as single frames (see ``FrameReplay``). Actor and critics share nothing.

    Args:
        target_entropy: a fraction of log A, the entropy of the uniform policy, that τ is tuned towards, such as .89; None keeps τ fixed.

    The others, and what is raised, are those of ``OffPolicySolver``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_entropy is not None and not 0.0 < self.target_entropy < 1.0:
            raise InvalidProblem(
                f"target_entropy is {self.target_entropy}: it is a fraction of log A, in (0, 1), or None for a fixed temperature"
            )

    def _setting(self, problem: Any) -> Setting:
        network = self._network(problem)
        entropy = None if self.target_entropy is None else self.target_entropy * log(problem.world.action_count)
        return Setting(problem.world.discount, problem.regularizer.temperature, network, network, entropy)

    def _learner(self, setting: Setting, networks: ActorCritic, updates: int) -> DiscreteLearner:
        return DiscreteLearner(networks, setting, self._rates(), batch_size=self.batch_size, updates=updates)

    def _policy(self, problem: Any, setting: Setting, networks: ActorCritic) -> CategoricalPolicy:
        assert setting.actor is not None
        return CategoricalPolicy(networks.actor, setting.actor)
