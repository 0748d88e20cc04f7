"""Soft actor-critic: the follower of worlds with continuous actions (arXiv 1812.05905)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bilevel_gym.errors import UnsupportedProblem
from bilevel_gym.solvers.actor_critic import GaussianLearner, Labelled
from bilevel_gym.solvers.architectures import MLP
from bilevel_gym.solvers.learner import ActorCritic, Setting
from bilevel_gym.solvers.networks import GaussianPolicy
from bilevel_gym.solvers.off_policy import OffPolicySolver
from bilevel_gym.solvers.replay import Batch, Replay, score

__all__ = ["SAC"]


@dataclass(frozen=True)
class SAC(OffPolicySolver):
    """Soft actor-critic with two critics and a tanh-squashed Gaussian policy (``GaussianPolicy``).

    Log-densities are those of actions scaled to [−1, 1], so that τ means the same whatever the units of the box are; in the
    environment's units log π differs by a constant.

    Args:
        target_entropy: nats for each number of an action, of densities on [−1, 1], that τ is tuned towards; −1 is the choice of arXiv
            1812.05905. None keeps τ fixed.

    The others, and what is raised, are those of ``OffPolicySolver``.
    """

    takes = ("action_low", "continuous")

    def _check(self, problem: Any) -> None:
        super()._check(problem)
        if len(shape := problem.world.observation_shape) != 1:
            raise UnsupportedProblem(
                f"SAC reads flat observations, and these are pictures {shape}: use solvers.from_sb3(SAC, policy='CnnPolicy'), or flatten them"
            )

    def _setting(self, problem: Any) -> Setting:
        world, actions = problem.world, problem.world.action_size
        actor = MLP((world.observation_size, *self.hidden, 2 * actions))
        critic = MLP((world.observation_size + actions, *self.hidden, 1))
        entropy = None if self.target_entropy is None else self.target_entropy * actions
        return Setting(world.discount, problem.regularizer.temperature, actor, critic, entropy)

    def _replay(self, problem: Any) -> Replay:
        world, terms = problem.world, len(getattr(problem.world, "terms", ()))
        return Replay(world.observation_size, world.action_size, self.capacity, problem.reward.device, terms=terms)

    def _learner(self, setting: Setting, networks: ActorCritic, updates: int) -> GaussianLearner:
        return GaussianLearner(networks, setting, self._rates(), batch_size=self.batch_size, updates=updates)

    def _policy(self, problem: Any, setting: Setting, networks: ActorCritic) -> GaussianPolicy:
        low, high = (edge.to(networks.actor.device) for edge in (problem.world.action_low, problem.world.action_high))
        assert isinstance(setting.actor, MLP)
        return GaussianPolicy(networks.actor, setting.actor.sizes, low, high)

    def _labeller(self, problem: Any, x: Tensor, generator: torch.Generator) -> Callable[[Batch], Labelled]:
        low, high = (edge.to(x.device) for edge in (problem.world.action_low, problem.world.action_high))
        centre, half = (low + high) / 2.0, (high - low) / 2.0

        @torch.no_grad()
        def label(batch: Batch) -> Labelled:
            rewards = score(problem.reward, x, batch)
            noise = torch.randn(2, *batch.actions.shape, generator=generator, device=generator.device).to(batch.actions.device)
            return Labelled(batch.states, (batch.actions - centre) / half, batch.following, 1.0 - batch.terminated, rewards, noise)

        return label
