"""What solvers share whose followers choose among finitely many actions: critics of all actions, and what their batches are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from bilevel_gym.solvers.architectures import Architecture, architecture_for
from bilevel_gym.solvers.frame_replay import FrameReplay
from bilevel_gym.solvers.learner import Learner
from bilevel_gym.solvers.off_policy import OffPolicySolver
from bilevel_gym.solvers.replay import Batch, Replay, score

__all__ = ["AllActionLearner", "DiscreteLabelled", "FiniteActionSolver"]

Drawn = TypeVar("Drawn")


class DiscreteLabelled(NamedTuple):
    """A batch with its rewards under the current x."""

    states: Tensor
    """[n, *observation] s."""
    actions: Tensor
    """[n] int64 a."""
    following: Tensor
    """[n, *observation] s'."""
    going: Tensor
    """[n] 0 where s' is an end, 1 elsewhere, also after a truncation."""
    rewards: Tensor
    """[n] r_x(s, a)."""


class AllActionLearner(Learner[DiscreteLabelled, Drawn]):
    """Critics that say Q_i(s, ·) of all actions at once: means over π are sums, and nothing is drawn."""

    def _inputs(self, batch: DiscreteLabelled) -> Tensor:
        """What the networks read, s and then s': [2n, *input]."""
        return self.setting.critic.inputs(torch.cat([batch.states, batch.following]), self.networks.critic)

    def _against(self, batch: DiscreteLabelled, inputs: Tensor, value: Tensor) -> Tensor:
        """Q_i(s,a) − y for V̄(s') = ``value`` [n]: [2, n]."""
        wanted = torch.addcmul(batch.rewards, batch.going, value, value=self.setting.discount)
        values = self._critic_net.forward(self._critic, inputs[: len(batch.states)])
        return values.gather(-1, batch.actions.expand(2, -1).unsqueeze(-1)).squeeze(-1) - wanted

    def _critic_gradient(self, batch: DiscreteLabelled, drawn: Drawn) -> None:
        count, choices = len(batch.states), self._critic[-1].shape[-1]
        error = self._errors(batch, drawn).div_(count).unsqueeze(-1)
        cotangent = error.new_zeros(2, count, choices).scatter_(-1, batch.actions.expand(2, -1).unsqueeze(-1), error)
        self._critic_net.backward(self._critic, cotangent, self._critic_slots)


@dataclass(frozen=True)
class FiniteActionSolver(OffPolicySolver):
    """An off-policy solver with two critics of all actions: perceptrons on flat observations, the Nature CNN on stacks of pictures."""

    takes = ("action_count", "finitely many")

    def _network(self, problem: Any) -> Architecture:
        """s → a number for each action."""
        return architecture_for(problem.world.observation_shape, self.hidden, problem.world.action_count)

    def _replay(self, problem: Any) -> Replay | FrameReplay:
        shape, device, terms = problem.world.observation_shape, problem.reward.device, len(getattr(problem.world, "terms", ()))
        if len(shape) == 1:
            return Replay(shape[0], None, self.capacity, device, terms=terms)
        return FrameReplay(shape[1:], shape[0], self.capacity, device, terms)

    def _labeller(self, problem: Any, x: Tensor, generator: torch.Generator) -> Callable[[Batch], DiscreteLabelled]:
        @torch.no_grad()
        def label(batch: Batch) -> DiscreteLabelled:
            rewards = score(problem.reward, x, batch)
            return DiscreteLabelled(batch.states, batch.actions, batch.following, 1.0 - batch.terminated, rewards)

        return label
