"""What the updates of all off-policy solvers share: networks as flat tensors, Adam, the targets, the actor, the temperature."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from math import log
from typing import Generic, TypeVar

import torch
from torch import Tensor

from bilevel_gym.solvers.architectures import Architecture
from bilevel_gym.solvers.products import quick_products

__all__ = ["ActorCritic", "ActorLearner", "Learner", "Rates", "Setting"]

Labelled = TypeVar("Labelled")
Drawn = TypeVar("Drawn")


@dataclass(frozen=True)
class Setting:
    """What an update must know of a problem."""

    discount: float
    """γ."""
    temperature: float
    """τ, or what it starts from where it is tuned."""
    actor: Architecture | None
    """The network of π; None where π is made of the critics."""
    critic: Architecture
    """The network of Q; there are two of them."""
    entropy: float | None = None
    """H̄, in nats, which τ is tuned towards; None keeps τ fixed."""


@dataclass(frozen=True)
class Rates:
    """How far an update moves."""

    learning_rate: float = 3e-4
    """Of Adam, for all that learns."""
    adam_epsilon: float = 1e-8
    """Adam's ε."""
    polyak: float = 0.005
    """How far the target critics move towards the critics."""
    target_every: int = 1
    """Updates from one such move to the next."""


@dataclass(frozen=True)
class ActorCritic:
    """The networks of a follower with Adam's memory: flat tensors, which an update changes in place."""

    actor: Tensor
    """[P], P = 0 where π is made of the critics."""
    critic: Tensor
    """[2Q] both critics, side by side in each layer."""
    target: Tensor
    """[2Q] the critics' slowly following copy."""
    actor_moments: Tensor
    """[2, P] Adam's running means of g and g²."""
    critic_moments: Tensor
    """[2, 2Q]."""
    log_temperature: Tensor
    """[1] log τ; of use only where τ is tuned."""
    temperature_moments: Tensor
    """[2, 1]."""
    clocks: Tensor
    """[3] Adam's steps, of actor, critics and temperature."""

    @classmethod
    def initial(cls, setting: Setting, generator: torch.Generator, device: torch.device) -> ActorCritic:
        """Fresh networks."""
        actor = torch.empty(0, device=device) if setting.actor is None else setting.actor.initial(1, generator, device)
        critic = setting.critic.initial(2, generator, device)
        moments = (actor.new_zeros(2, actor.numel()), critic.new_zeros(2, critic.numel()))
        temperature = actor.new_full((1,), log(setting.temperature))
        return cls(actor, critic, critic.clone(), *moments, temperature, actor.new_zeros(2, 1), actor.new_zeros(3))

    def clone(self) -> ActorCritic:
        """Another copy of every tensor."""
        return ActorCritic(*(getattr(self, field.name).clone() for field in fields(self)))

    def fits(self, setting: Setting) -> bool:
        """Whether the networks have the sizes of ``setting``."""
        actor = 0 if setting.actor is None else setting.actor.numel()
        return self.actor.numel() == actor and self.critic.numel() == setting.critic.numel(2)


class Learner(ABC, Generic[Labelled, Drawn]):
    """The update of two critics by batches of one size, with its buffers.

        ½ Σ_i mean (Q_i(s,a) − y)²,  y = r + γ V̄(s'), V̄ of the target critics

    Args:
        networks: changed in place by ``update``.
        setting: of the problem.
        rates: of the update.
        batch_size: n.
        updates: how many updates the networks have had, which the moves of the targets are counted from.
    """

    def __init__(self, networks: ActorCritic, setting: Setting, rates: Rates, *, batch_size: int, updates: int = 0) -> None:
        self.networks, self.setting, self.rates, self.updates = networks, setting, rates, updates
        self.learning_rate = networks.critic.new_tensor(rates.learning_rate)
        """[] of the next update."""
        self._critic_net = setting.critic.passes(2, batch_size, networks.critic)
        self._by_critic = torch.empty_like(networks.critic)  # the gradient
        self._critic, self._critic_slots = self._critic_net.views(networks.critic), self._critic_net.views(self._by_critic)
        self._target_critic = self._critic_net.views(networks.target)

    @property
    def temperature(self) -> Tensor | float:
        """τ in force: [1] where it is tuned."""
        return self.setting.temperature if self.setting.entropy is None else self.networks.log_temperature.exp()

    @torch.inference_mode()
    def update(self, batch: Labelled) -> None:
        """One step of Adam on the critics, one on what else learns, and every so often one of the targets, in place.

        Args:
            batch: n transitions.
        """
        with quick_products(self.networks.critic):
            self._descend_all(batch)
        self.updates += 1
        if self.updates % self.rates.target_every == 0:
            self.networks.target.lerp_(self.networks.critic, self.rates.polyak)

    @torch.inference_mode()
    def update_on_device(self, batch: Labelled) -> None:
        """The same, but that Adam's clock says on the device when the targets are due: ``updates`` is left to the caller."""
        self._descend_all(batch)
        due = self.networks.clocks[1] % self.rates.target_every == 0
        self.networks.target.lerp_(self.networks.critic, self.rates.polyak * due.to(self.networks.target.dtype))

    def _descend_all(self, batch: Labelled) -> Drawn:
        drawn = self._draw(batch)
        self._critic_gradient(batch, drawn)
        self._descend(self.networks.critic, self._by_critic, self.networks.critic_moments, self.networks.clocks[1])
        return drawn

    @torch.inference_mode()
    def residual(self, batch: Labelled) -> Tensor:
        """The soft TD errors Q_i(s,a) − y of both critics: [2, n], a new tensor."""
        return self._errors(batch, self._draw(batch))

    @abstractmethod
    def _draw(self, batch: Labelled) -> Drawn:
        """What all parts of an update read: what the actor does at s and at s', by one pass through it."""

    @abstractmethod
    def _errors(self, batch: Labelled, drawn: Drawn) -> Tensor:
        """Q_i(s,a) − y: [2, n]; the last pass through the critics is the one at (s, a)."""

    @abstractmethod
    def _critic_gradient(self, batch: Labelled, drawn: Drawn) -> None:
        """Fill ``_critic_slots``."""

    def _descend(self, parameters: Tensor, gradient: Tensor, moments: Tensor, clock: Tensor) -> None:
        """A step of Adam, by the kernel below ``torch.optim.adam.adam(fused=True)``: what that does around it takes as long as its work."""
        clock.add_(1.0)
        torch._fused_adam_(
            [parameters], [gradient], [moments[0]], [moments[1]], [], [clock],
            lr=self.learning_rate, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=self.rates.adam_epsilon, amsgrad=False, maximize=False,
        )  # fmt: skip


class ActorLearner(Learner[Labelled, Drawn]):
    """A soft actor-critic's: critics, then the actor, then τ if it is tuned.

    critics: V̄(s') = E_π [min_i Q̄_i(s',·) − τ log π(·|s')]
    actor:   mean E_π [τ log π(·|s) − min_i Q_i(s,·)], with the critics that were just updated
    τ:       τ mean (H(π(·|s)) − H̄), as a function of log τ
    """

    def __init__(self, networks: ActorCritic, setting: Setting, rates: Rates, *, batch_size: int, updates: int = 0) -> None:
        super().__init__(networks, setting, rates, batch_size=batch_size, updates=updates)
        assert setting.actor is not None
        self._actor_net = setting.actor.passes(1, 2 * batch_size, networks.actor)
        self._by_actor = torch.empty_like(networks.actor)
        self._actor, self._actor_slots = self._actor_net.views(networks.actor), self._actor_net.views(self._by_actor)

    def _descend_all(self, batch: Labelled) -> Drawn:
        networks, drawn = self.networks, super()._descend_all(batch)
        self._actor_gradient(batch, drawn)
        self._descend(networks.actor, self._by_actor, networks.actor_moments, networks.clocks[0])
        if self.setting.entropy is not None:
            gradient = networks.log_temperature.exp() * (self._entropy(drawn) - self.setting.entropy)
            self._descend(networks.log_temperature, gradient, networks.temperature_moments, networks.clocks[2])
        return drawn

    @abstractmethod
    def _actor_gradient(self, batch: Labelled, drawn: Drawn) -> None:
        """Fill ``_actor_slots``."""

    @abstractmethod
    def _entropy(self, drawn: Drawn) -> Tensor:
        """The mean of H(π(·|s)), as it was drawn: []."""
