"""Reward models whose flat parameter vector is x: networks, ensembles of them, and the statistics that they normalize by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from math import ceil, prod
from typing import Literal, Self, TypedDict

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.numerics import split_flat
from bilevel_gym.rewards.architecture import Network
from bilevel_gym.rewards.normalizer import Buffers, Moments
from bilevel_gym.types import Fragments

__all__ = ["NetworkOptions", "NetworkReward", "Normalized"]

Normalized = Literal["observations", "rewards"]
"""What may be normalized by its mean and deviation."""

MEASURED = 4096
"""Steps of a look, evenly spread, that what depends on x is measured over."""

FARTHEST = 10.0
"""Normalized observations are clipped there: what hardly moved so far does not dominate when it first does."""


class NetworkOptions(TypedDict, total=False):
    """What every reward network takes; see ``NetworkReward``."""

    members: int
    normalize: Sequence[Normalized]
    scale: float
    squash: Literal["tanh", "clip"]
    bound: float
    precision: torch.dtype | None
    device: str | torch.device


class NetworkReward(ABC):
    """r_x = scale · tanh(network_x(·)); x is the flat parameter vector of the network, whose parameters are views of it.

    The output is bounded by a tanh and not by a clip: beyond a clip the gradient in x is zero, and a reward that starts there never
    moves. x holds the network's parameters in turn, each row by row; an ensemble's x holds its members' side by side, r_x is their
    mean, and they differ by their first draws.

    Statistics that normalize (``buffers``) are no part of x: they are environment state, and constant in the derivative.

    Args:
        network: the architecture.
        members: K networks of an ensemble.
        normalize: ``"observations"``: these enter less their mean, divided by their deviation, over all that was seen; ``"rewards"``:
            each member's r leaves so, over the last look at the follower, times ``scale``. The latter fixes the unit that τ is measured
            in, and r_x is bounded no more; a loss of r_x knows of r then only up to its unit.
        scale: the bound of |r_x|.
        squash: ``"clip"`` cuts the output at the bound, in place of the tanh: what the SoBiRL authors' code does.
        bound: x lies in [−bound, bound]^D.
        precision: of the network's products, such as ``torch.bfloat16``; x, its gradient and r_x stay as they are. None takes x's.
        device: where x lives.

    Raises:
        InvalidProblem: a number is not positive and finite, or an option is unknown.
    """

    normalizable: tuple[Normalized, ...] = ("observations", "rewards")
    """What of this model may be normalized."""

    def __init__(
        self,
        network: Network,
        *,
        members: int = 1,
        normalize: Sequence[Normalized] = (),
        scale: float = 1.0,
        squash: Literal["tanh", "clip"] = "tanh",
        bound: float = 10.0,
        precision: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if not (0.0 < scale < float("inf") and 0.0 < bound < float("inf")) or members < 1:
            raise InvalidProblem(
                f"members is {members}, scale is {scale} and bound is {bound}: all must be positive and finite, such as 1, 1 and 10"
            )
        if isinstance(normalize, str) or (unknown := set(normalize) - set(self.normalizable)):
            what = normalize if isinstance(normalize, str) else sorted(unknown)
            raise InvalidProblem(f"normalize names {what}: give a tuple with some of {self.normalizable}")
        if squash not in ("tanh", "clip") or precision not in (None, torch.bfloat16, torch.float16):
            raise InvalidProblem(
                f"squash is {squash!r} and precision {precision}: choose 'tanh' or 'clip', and None, torch.bfloat16 or torch.float16"
            )
        self.network, self.members, self.normalize = network, members, tuple(normalize)
        self.scale, self.squash, self.bound, self.precision = float(scale), squash, float(bound), precision
        self.dtype = torch.float32
        self.device = torch.device(device)
        self.dimension = members * network.size
        self.buffers = self._unmeasured()

    # ------------------------------------------------------------------------------------------ x

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The box of x: two arrays [D] of float32."""
        return np.full(self.dimension, -self.bound, np.float32), np.full(self.dimension, self.bound, np.float32)

    def initial(self, generator: torch.Generator) -> Tensor:
        """Weights and biases uniform in ±1/√(fan-in), as ``torch.nn.Linear`` draws them, a batch norm's gains 1 and shifts 0: [D]."""
        unit = 2.0 * torch.rand(self.dimension, generator=generator, dtype=self.dtype, device=generator.device).to(self.device) - 1.0
        for part, (_, centre, spread) in zip(self.parameters(unit), self.network.parameters, strict=True):
            part.mul_(spread).add_(centre)
        return unit.clamp_(-self.bound, self.bound)

    def parameters(self, x: Tensor) -> list[Tensor]:
        """The network's parameters, views of x: [B, D] → list of [B, *shape], of an ensemble [B, K, *shape]; nothing is copied.

        Raises:
            InvalidProblem: x is neither [D] nor [B, D].
        """
        self._check(x)
        return split_flat(x if self.members == 1 else x.unflatten(-1, (self.members, -1)), self.network.shapes)

    # ------------------------------------------------------------------------------------------ r_x

    @property
    def limit(self) -> float | None:
        """The bound of |r_x|; None where rewards are normalized, which lifts it."""
        return None if "rewards" in self.normalize else self.scale

    @abstractmethod
    def along_each(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """Each member's r at state-action pairs, differentiable in x.

        Args:
            x: [D], or [B, D] for a population.
            states: [..., *observation], or [B, ..., *observation]; the axis B may be 1 where all of the population see the same pairs.
            actions: as the model reads them, likewise.

        Returns:
            [K, ...], or [B, K, ...].
        """

    def along(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """r_x at state-action pairs, the mean over the members, differentiable in x, by one batched forward pass.

        Args:
            x: [D], or [B, D] for a population.
            states: [..., *observation], or [B, ..., *observation]; the axis B may be 1 where all of the population see the same pairs.
            actions: [..., action] in the environment's units, or [...] numbers of actions, likewise.

        Returns:
            [...], or [B, ...]. Cost: O(pairs · D).

        Raises:
            InvalidProblem: a shape does not fit.
        """
        return self._mean(x, self.along_each(x, states, actions))

    def disagreement(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """The standard deviation over the members of r at state-action pairs: as ``along``.

        Raises:
            UnsupportedProblem: there is one member only.
        """
        if self.members == 1:
            raise UnsupportedProblem("one network cannot disagree with itself: give the reward members=3, or more")
        return self.along_each(x, states, actions).std(x.ndim - 1, correction=0)

    # ------------------------------------------------------------------------------------------ what was measured

    def training(self, generator: torch.Generator) -> Self:
        """The same model as ∇l sees it: with dropout drawn from the generator and normalized by the batch, where the network does that."""
        network = self.network.training(generator)
        return self if network is self.network else self._with(network=network)

    def with_buffers(self, buffers: Buffers | None) -> Self:
        """The same model with other statistics; None takes those before anything was seen."""
        if not self._measures:
            return self
        buffers = self._unmeasured() if buffers is None else buffers
        return self._with(buffers=buffers, network=self.network.with_statistics(buffers.channels))

    def absorb(self, x: Tensor, fragments: Fragments) -> Self:
        """The same model after another look at the follower: what was seen counts from now on, and what depends on x is measured at x.

        Args:
            x: [D].
            fragments: what was seen; only living steps count.
        """
        model, known = self, self.buffers.observations
        if known is not None:
            seen = fragments.states[fragments.alive].to(known.mean.dtype)
            model = self.with_buffers(replace(self.buffers, observations=known.joined(seen)))
        return model.settle(x, fragments)

    @torch.no_grad()
    def settle(self, x: Tensor, fragments: Fragments) -> Self:
        """The same model at another x: what depends on x is measured anew, over what was seen last.

        Args:
            x: [D].
            fragments: as for ``absorb``; nothing is added to what was seen.
        """
        steps = int(fragments.alive.sum())
        if not self._measures or not steps:
            return self
        kept = slice(None, None, ceil(steps / MEASURED))
        model, pairs = self, (fragments.states[fragments.alive][kept], fragments.actions[fragments.alive][kept])
        network = self.network.measured(self._flat(x), self._rows(x, self._inputs(x, *pairs))[0])
        if network is not self.network:
            model = self.with_buffers(replace(self.buffers, channels=network.statistics))
        unmeasured = self._unmeasured().rewards
        if unmeasured is not None:
            plain = model.with_buffers(replace(model.buffers, rewards=unmeasured))
            rewards = plain.along_each(x, *pairs) / self.scale
            model = plain.with_buffers(replace(plain.buffers, rewards=unmeasured.joined(rewards.mT)))
        return model

    # ------------------------------------------------------------------------------------------ parts

    def _check(self, x: Tensor) -> None:
        if x.ndim not in (1, 2) or x.shape[-1] != self.dimension:
            raise InvalidProblem(f"x has shape {tuple(x.shape)}: it must be [{self.dimension}], or [B, {self.dimension}] for a population")

    @abstractmethod
    def _inputs(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """What the network reads of state-action pairs: [..., *input]."""

    def _observed(self, x: Tensor, states: Tensor) -> Tensor:
        """The one place where states become a network's input."""
        observed = states.to(x.dtype)
        known = self.buffers.observations
        return observed if known is None else known.standardized(observed).clamp(-FARTHEST, FARTHEST).to(x.dtype)

    def _outputs(self, x: Tensor, inputs: Tensor, *tail: int) -> Tensor:
        """Each member's bounded outputs of shape ``tail``, by one forward pass: [..., *input] → [K, ..., *tail], with x [B, D] [B, K, ...]."""
        rows, rest = self._rows(x, inputs)
        with nullcontext() if self.precision is None else torch.autocast(self.device.type, self.precision):
            outputs = self.network(self._flat(x), rows)
        outputs = outputs.to(x.dtype).view(*x.shape[:-1], self.members, *rest, *tail)
        bounded = torch.tanh(outputs) if self.squash == "tanh" else outputs.clamp(-1.0, 1.0)
        known = self.buffers.rewards
        if known is not None:
            axes = (self.members, *(1 for _ in (*rest, *tail)))
            bounded = replace(known, mean=known.mean.view(axes), variance=known.variance.view(axes)).standardized(bounded)
        return bounded if self.scale == 1.0 else self.scale * bounded

    def _flat(self, x: Tensor) -> Tensor:
        """x as the network takes it, with at most one leading axis, of all members of all x's: [P], or [B·K, P]."""
        self._check(x)
        return x if self.members == 1 else x.reshape(-1, self.network.size)

    def _rows(self, x: Tensor, inputs: Tensor) -> tuple[Tensor, torch.Size]:
        """Inputs as the network takes them, [n, *input] or [B·K or 1, n, *input], and the axes that n is made of."""
        shape, batch = self.network.input_shape, x.shape[:-1]
        lead = inputs.shape[: max(inputs.ndim - len(shape), 0)]
        if inputs.shape[len(lead) :] != shape or len(lead) < len(batch) or (batch and lead[0] not in (1, *batch)):
            axes = f"[{batch[0]} or 1, ..., " if batch else "[..., "
            raise InvalidProblem(f"the network's inputs have shape {tuple(inputs.shape)}: they must be {axes}{', '.join(map(str, shape))}]")
        rest = lead[len(batch) :]
        rows = inputs.reshape(*lead[: len(batch)], prod(rest), *shape)
        if self.members > 1:
            rows = rows.unsqueeze(0) if not batch else rows if len(rows) == 1 else rows.repeat_interleave(self.members, 0)
        return rows, rest

    def _mean(self, x: Tensor, each: Tensor) -> Tensor:
        """Over the members, which lie along the axis after those of x."""
        axis = x.ndim - 1
        return each.squeeze(axis) if self.members == 1 else each.mean(axis)

    @property
    def _measures(self) -> bool:
        return bool(self.normalize) or self.network.measures

    def _unmeasured(self) -> Buffers:
        observations, rewards = (
            Moments.none(shape, self.dtype, self.device) if name in self.normalize else None
            for name, shape in (("observations", self._observation_shape()), ("rewards", (self.members,)))
        )
        return Buffers(observations, rewards)

    def _observation_shape(self) -> tuple[int, ...]:
        return self.network.input_shape

    def _with(self, **values: object) -> Self:
        other = copy(self)
        vars(other).update(values)
        return other
