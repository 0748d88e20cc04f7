"""Soft actor-critic for finitely many actions: the follower of CartPole and of Atari (arXiv 1910.07207)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.solvers.architectures import architecture_for
from bilevel_gym.solvers.categorical import CategoricalPolicy
from bilevel_gym.solvers.discrete_actor_critic import DiscreteLabelled, DiscreteLearner
from bilevel_gym.solvers.frame_replay import FrameReplay
from bilevel_gym.solvers.learner import ActorCritic, Setting
from bilevel_gym.solvers.off_policy import OffPolicySolver
from bilevel_gym.solvers.replay import Batch, Replay, score

__all__ = ["DiscreteSAC"]


@dataclass(frozen=True)
class DiscreteSAC(OffPolicySolver):
    """Soft actor-critic with two critics of all actions: means over π are sums, and the losses draw nothing.

    Flat observations are read by perceptrons. Stacks of pictures are read by the convolutions of Mnih et al. (Nature, 2015) with
    ``hidden`` on top, (512,) being theirs, and kept as single frames (see ``FrameReplay``). Actor and critics share nothing.

    Args:
        target_entropy: a fraction of log A, the entropy of the uniform policy, that τ is tuned towards, such as .89; None keeps τ fixed.

    The others, and what is raised, are those of ``OffPolicySolver``.
    """

    takes = ("action_count", "finitely many")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_entropy is not None and not 0.0 < self.target_entropy < 1.0:
            raise InvalidProblem(
                f"target_entropy is {self.target_entropy}: it is a fraction of log A, in (0, 1), or None for a fixed temperature"
            )

    def _setting(self, problem: Any) -> Setting:
        world = problem.world
        network = architecture_for(world.observation_shape, self.hidden, world.action_count)
        entropy = None if self.target_entropy is None else self.target_entropy * log(world.action_count)
        return Setting(world.discount, problem.regularizer.temperature, network, network, entropy)

    def _replay(self, problem: Any) -> Replay | FrameReplay:
        shape, device, terms = problem.world.observation_shape, problem.reward.device, len(getattr(problem.world, "terms", ()))
        if len(shape) == 1:
            return Replay(shape[0], None, self.capacity, device, terms=terms)
        return FrameReplay(shape[1:], shape[0], self.capacity, device, terms)

    def _learner(self, setting: Setting, networks: ActorCritic, updates: int) -> DiscreteLearner:
        return DiscreteLearner(networks, setting, self._rates(), batch_size=self.batch_size, updates=updates)

    def _policy(self, problem: Any, setting: Setting, networks: ActorCritic) -> CategoricalPolicy:
        return CategoricalPolicy(networks.actor, setting.actor)

    def _labeller(self, problem: Any, x: Tensor, generator: torch.Generator) -> Callable[[Batch], DiscreteLabelled]:
        @torch.no_grad()
        def label(batch: Batch) -> DiscreteLabelled:
            rewards = score(problem.reward, x, batch)
            return DiscreteLabelled(batch.states, batch.actions, batch.following, 1.0 - batch.terminated, rewards)

        return label
