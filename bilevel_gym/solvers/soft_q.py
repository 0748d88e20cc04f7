"""Soft Q-learning for finitely many actions (arXiv 1702.08165): critics alone, whose soft maximum is V, and whose softmax is π."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.solvers.categorical import CategoricalPolicy
from bilevel_gym.solvers.finite_actions import AllActionLearner, DiscreteLabelled, FiniteActionSolver
from bilevel_gym.solvers.learner import ActorCritic, Setting

__all__ = ["SoftQ", "SoftQLearner", "SoftQPolicy"]


class SoftQLearner(AllActionLearner[Tensor]):
    """The update of a soft deep Q-network: V̄(s') = τ log Σ_a exp(min_i Q̄_i(s',a)/τ).

    Cost: 4 passes forward through a network and 2 back.
    """

    def _draw(self, batch: DiscreteLabelled) -> Tensor:
        return self._inputs(batch)

    def _errors(self, batch: DiscreteLabelled, drawn: Tensor) -> Tensor:
        tau = self.setting.temperature
        lowest = self._critic_net.forward(self._target_critic, drawn[len(batch.states) :]).amin(0)
        return self._against(batch, drawn, torch.logsumexp(lowest.div_(tau), -1).mul_(tau))


@dataclass(frozen=True)
class SoftQPolicy(CategoricalPolicy):
    """A frozen policy π(·|s) = softmax(Q(s,·)/τ), Q the smaller of two critics: [2Q] flat parameters of both.

    Args:
        temperature: τ.
    """

    temperature: float

    def action_values(self, observations: Tensor) -> Tensor:
        """Q(s, ·) = min_i Q_i(s, ·): [n, *observation] → [n, A]."""
        with torch.no_grad():
            return self.architecture.outputs(self.parameters, observations, 2).amin(0)

    def state_value(self, observations: Tensor) -> Tensor:
        """V(s) = τ log Σ_a exp(Q(s,a)/τ): [n, *observation] → [n]."""
        return self.temperature * torch.logsumexp(self.scores(observations), -1)

    def scores(self, observations: Tensor) -> Tensor:
        """Q(s, ·)/τ: [n, *observation] → [n, A]."""
        return self.action_values(observations) / self.temperature


@dataclass(frozen=True)
class SoftQ(FiniteActionSolver):
    """Soft Q-learning with two critics of all actions and no actor (Haarnoja et al., ICML 2017, arXiv 1702.08165; as a soft DQN).

        V(s) = τ log Σ_a exp(Q(s,a)/τ),   π(a|s) = exp((Q(s,a) − V(s))/τ),   Q = min_i Q_i

    V̄(s') is that of ``DiscreteSAC`` for the best of all actors, softmax(min_i Q̄_i/τ), so both have the same fixed point; here no actor
    lags behind the critics, and an update is cheaper. The soft maximum of an uncertain Q is too large (log Σ exp is convex); the minimum
    of two critics counters that, in V and in π alike, so that V = E_π[Q − τ log π] holds exactly.

    Args:
        target_entropy: must be None: τ stays that of ``problem.regularizer``.

    The others are those of ``OffPolicySolver``. Observations are read as by ``DiscreteSAC``. ``response.policy`` knows Q and V
    (``action_values``, ``state_value``).

    Raises:
        InvalidProblem: a number is out of range, or τ is to be tuned.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_entropy is not None:
            raise InvalidProblem(
                f"target_entropy is {self.target_entropy}, and SoftQ keeps τ fixed, which its π is made with: leave it out, or take DiscreteSAC"
            )

    def _setting(self, problem: Any) -> Setting:
        return Setting(problem.world.discount, problem.regularizer.temperature, None, self._network(problem))

    def _learner(self, setting: Setting, networks: ActorCritic, updates: int) -> SoftQLearner:
        return SoftQLearner(networks, setting, self._rates(), batch_size=self.batch_size, updates=updates)

    def _policy(self, problem: Any, setting: Setting, networks: ActorCritic) -> SoftQPolicy:
        return SoftQPolicy(networks.critic, setting.critic, setting.temperature)
