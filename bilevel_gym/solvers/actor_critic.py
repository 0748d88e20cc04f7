"""One update of soft actor-critic as a function of a batch (arXiv 1812.05905), with its gradients written out."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam

from bilevel_gym.solvers.networks import Perceptrons, gaussian, initial_parameters, log_density, numel

__all__ = ["ActorCritic", "Labelled", "Learner", "Setting"]


@dataclass(frozen=True)
class Setting:
    """What an update must know of a problem."""

    discount: float
    """γ."""
    temperature: float
    """τ."""
    actor_sizes: tuple[int, ...]
    """(observation, *hidden, 2·action)."""
    critic_sizes: tuple[int, ...]
    """(observation + action, *hidden, 1)."""


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


@dataclass(frozen=True)
class ActorCritic:
    """The networks of SAC with Adam's memory: flat tensors, which an update changes in place."""

    actor: Tensor
    """[P]."""
    critic: Tensor
    """[2Q] both critics, side by side in each layer."""
    target: Tensor
    """[2Q] the critics' slowly following copy."""
    actor_moments: Tensor
    """[2, P] Adam's running means of g and g²."""
    critic_moments: Tensor
    """[2, 2Q]."""
    clocks: Tensor
    """[2] Adam's steps, of actor and critic."""

    @classmethod
    def initial(cls, setting: Setting, generator: torch.Generator, device: torch.device) -> ActorCritic:
        """Fresh networks."""
        actor = initial_parameters(setting.actor_sizes, 1, generator, device)
        critic = initial_parameters(setting.critic_sizes, 2, generator, device)
        actor_moments, critic_moments = actor.new_zeros(2, actor.numel()), critic.new_zeros(2, critic.numel())
        return cls(actor, critic, critic.clone(), actor_moments, critic_moments, actor.new_zeros(2))

    def clone(self) -> ActorCritic:
        """Another copy of every tensor."""
        return ActorCritic(*(getattr(self, field.name).clone() for field in fields(self)))

    def fits(self, setting: Setting) -> bool:
        """Whether the networks have the sizes of ``setting``."""
        return self.actor.numel() == numel(setting.actor_sizes) and self.critic.numel() == numel(setting.critic_sizes, 2)


class Learner:
    """The update of some networks by batches of one size, with its buffers.

    Args:
        networks: changed in place by ``update``.
        setting: of the problem.
        batch_size: n.
        learning_rate: of Adam.
        polyak: how far the target critics move towards the critics in an update.
    """

    def __init__(self, networks: ActorCritic, setting: Setting, *, batch_size: int, learning_rate: float, polyak: float) -> None:
        self.networks, self.setting, self.learning_rate, self.polyak = networks, setting, learning_rate, polyak
        self._actor_net = Perceptrons(setting.actor_sizes, 1, 2 * batch_size, networks.actor)
        self._critic_net = Perceptrons(setting.critic_sizes, 2, batch_size, networks.critic)
        self._actor_gradient, self._critic_gradient = torch.empty_like(networks.actor), torch.empty_like(networks.critic)
        self._actor, self._actor_slots = self._actor_net.views(networks.actor), self._actor_net.views(self._actor_gradient)
        self._critic, self._critic_slots = self._critic_net.views(networks.critic), self._critic_net.views(self._critic_gradient)
        self._target_critic = self._critic_net.views(networks.target)
        self._first_weight = self._critic[0][:, setting.actor_sizes[0] :].mT
        """[2, hidden, action] the transposed weights of the critics' first layer that multiply the action."""

    @torch.inference_mode()
    def update(self, batch: Labelled) -> None:
        """One step of Adam on the critics, one on the actor, and one of the target critics, in place.

        critics: ½ Σ_i mean (Q_i(s,a) − y)²,  y = r + γ (min_i Q̄_i(s',a') − τ log π(a'|s'))
        actor:   mean τ log π(a|s) − min_i Q_i(s,a), with the critics that were just updated

        Args:
            batch: n transitions.

        Cost: 16 passes through a network, a third of them of the actor.
        """
        here, there = self._draw(batch)
        self._improve_critics(batch, there)
        self._improve_actor(batch, here)
        self.networks.target.lerp_(self.networks.critic, self.polyak)

    @torch.inference_mode()
    def residual(self, batch: Labelled) -> Tensor:
        """The soft TD errors Q_i(s,a) − y of both critics: [2, n, 1], a new tensor."""
        return self._errors(batch, self._draw(batch)[1])

    def _draw(self, batch: Labelled) -> tuple[_Drawn, _Drawn]:
        """The actor's actions at s and at s', by one pass through it."""
        output = self._actor_net.forward(self._actor, torch.cat([batch.states, batch.following]))[0]
        mean, log_std = gaussian(output)
        spread = log_std.exp().mul_(batch.noise.flatten(0, 1))
        drive = mean + spread
        columns = (output, log_std, batch.noise.flatten(0, 1), spread, drive, torch.tanh(drive))
        return tuple(map(_Drawn._make, zip(*(column.chunk(2) for column in columns), strict=True)))  # type: ignore[return-value]

    def _errors(self, batch: Labelled, there: _Drawn) -> Tensor:
        """Q_i(s,a) − y: [2, n, 1]."""
        value = self._values(self._target_critic, batch.following, there.actions).amin((0, 2))
        value.sub_(log_density(there.drive, there.log_std, there.noise), alpha=self.setting.temperature)
        wanted = torch.addcmul(batch.rewards, batch.going, value, value=self.setting.discount).unsqueeze(-1)
        return self._values(self._critic, batch.states, batch.actions) - wanted

    def _values(self, critic: list[Tensor], states: Tensor, actions: Tensor) -> Tensor:
        """Q_1 and Q_2: [2, n, 1], in a buffer."""
        return self._critic_net.forward(critic, torch.cat([states, actions], -1))

    def _improve_critics(self, batch: Labelled, there: _Drawn) -> None:
        error = self._errors(batch, there).div_(len(batch.states))
        self._critic_net.backward(self._critic, error, self._critic_slots)
        self._descend(self.networks.critic, self._critic_gradient, self.networks.critic_moments, self.networks.clocks[1])

    def _improve_actor(self, batch: Labelled, here: _Drawn) -> None:
        """With u = μ + σε and a = tanh u, ∂log π/∂u = 2a; log σ enters through u and as −log σ."""
        count, weight = len(batch.states), self.setting.temperature / len(batch.states)
        values = self._values(self._critic, batch.states, here.actions)
        lowest = (values == values.amin(0)).to(values.dtype)
        first = self._critic_net.backward(self._critic, lowest.div_(-count), None)
        by_action = torch.bmm(first, self._first_weight).sum(0)

        by_drive = by_action.addcmul_(by_action, here.actions.square(), value=-1.0).add_(here.actions, alpha=2.0 * weight)
        raw = here.output[:, here.drive.shape[-1] :]
        by_log_std = (by_drive * here.spread).sub_(weight).mul_(raw == here.log_std)  # none where log σ was clamped
        self._actor_net.backward(self._actor, torch.cat([by_drive, by_log_std], -1).unsqueeze(0), self._actor_slots)
        self._descend(self.networks.actor, self._actor_gradient, self.networks.actor_moments, self.networks.clocks[0])

    def _descend(self, parameters: Tensor, gradient: Tensor, moments: Tensor, clock: Tensor) -> None:
        adam(
            [parameters], [gradient], [moments[0]], [moments[1]], [], [clock],
            fused=True, amsgrad=False, beta1=0.9, beta2=0.999, lr=self.learning_rate, weight_decay=0.0, eps=1e-8, maximize=False,
        )  # fmt: skip
