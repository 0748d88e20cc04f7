"""One update of soft actor-critic with continuous actions as a function of a batch (arXiv 1812.05905), its gradients written out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bilevel_gym.solvers.learner import ActorLearner
from bilevel_gym.solvers.networks import Perceptrons, gaussian, log_density

__all__ = ["GaussianLearner", "Labelled"]


class Labelled(NamedTuple):
    """A batch with its rewards under the current x, actions in [−1, 1], and the noise that an update needs."""

    states: Tensor
    """[n, observation] s."""
    actions: Tensor
    """[n, action] a in [−1, 1]."""
    following: Tensor
    """[n, observation] s'."""
    going: Tensor
    """[n] 0 where s' is an end, 1 elsewhere, also after a truncation."""
    rewards: Tensor
    """[n] r_x(s, a)."""
    noise: Tensor
    """[2, n, action] standard normal ε: for the actions at s, and at s'."""


class _Drawn(NamedTuple):
    """The actor's actions in n states, and what its gradient needs of them."""

    output: Tensor
    """[n, 2·action] of the network."""
    log_std: Tensor
    """[n, action] log σ."""
    noise: Tensor
    """[n, action] ε."""
    spread: Tensor
    """[n, action] σε."""
    drive: Tensor
    """[n, action] u = μ + σε."""
    actions: Tensor
    """[n, action] tanh u."""

    def log_density(self) -> Tensor:
        """log π(a|s): [n]."""
        return log_density(self.drive, self.log_std, self.noise)


class GaussianLearner(ActorLearner[Labelled, tuple[_Drawn, _Drawn]]):
    """The update with a tanh-squashed Gaussian; means over π are taken with one action each.

    Cost: 16 passes through a network, a third of them of the actor.
    """

    _critic_net: Perceptrons
    _actor_net: Perceptrons

    def _draw(self, batch: Labelled) -> tuple[_Drawn, _Drawn]:
        output = self._actor_net.forward(self._actor, torch.cat([batch.states, batch.following]))[0]
        mean, log_std = gaussian(output)
        spread = log_std.exp().mul_(batch.noise.flatten(0, 1))
        drive = mean + spread
        columns = (output, log_std, batch.noise.flatten(0, 1), spread, drive, torch.tanh(drive))
        return tuple(map(_Drawn._make, zip(*(column.chunk(2) for column in columns), strict=True)))  # type: ignore[return-value]

    def _errors(self, batch: Labelled, drawn: tuple[_Drawn, _Drawn]) -> Tensor:
        there = drawn[1]
        value = self._values(self._target_critic, batch.following, there.actions).amin((0, 2)).sub_(self.temperature * there.log_density())
        wanted = torch.addcmul(batch.rewards, batch.going, value, value=self.setting.discount)
        return self._values(self._critic, batch.states, batch.actions).squeeze(-1) - wanted

    def _values(self, critic: list[Tensor], states: Tensor, actions: Tensor) -> Tensor:
        """Q_1 and Q_2: [2, n, 1], in a buffer."""
        return self._critic_net.forward(critic, torch.cat([states, actions], -1))

    def _critic_gradient(self, batch: Labelled, drawn: tuple[_Drawn, _Drawn]) -> None:
        error = self._errors(batch, drawn).div_(len(batch.states)).unsqueeze(-1)
        self._critic_net.backward(self._critic, error, self._critic_slots)

    def _actor_gradient(self, batch: Labelled, drawn: tuple[_Drawn, _Drawn]) -> None:
        """With u = μ + σε and a = tanh u, ∂log π/∂u = 2a; log σ enters through u and as −log σ."""
        here, count = drawn[0], len(batch.states)
        weight = self.temperature / count
        values = self._values(self._critic, batch.states, here.actions)
        lowest = (values == values.amin(0)).to(values.dtype)
        first = self._critic_net.backward(self._critic, lowest.div_(-count), None)
        by_action = torch.bmm(first, self._critic[0].mT).sum(0)[:, batch.states.shape[1] :]

        by_drive = by_action.addcmul_(by_action, here.actions.square(), value=-1.0).add_(here.actions * (2.0 * weight))
        raw = here.output[:, here.drive.shape[-1] :]
        by_log_std = (by_drive * here.spread).sub_(weight).mul_(raw == here.log_std)  # none where log σ was clamped
        self._actor_net.backward(self._actor, torch.cat([by_drive, by_log_std], -1).unsqueeze(0), self._actor_slots)

    def _entropy(self, drawn: tuple[_Drawn, _Drawn]) -> Tensor:
        return -drawn[0].log_density().mean()
