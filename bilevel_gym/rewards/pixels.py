"""Rewards by convolutional networks on stacks of frames."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Literal, Protocol, Self, Unpack

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.frames import to_stacks
from bilevel_gym.rewards.all_actions import AllActionsReward
from bilevel_gym.rewards.convolutions import LAYERS, BatchNormalized, Convolution, Convolutions
from bilevel_gym.rewards.network import NetworkOptions, Normalized

__all__ = ["CNNReward", "Norm", "PixelWorld"]

Norm = Literal["batch"]
"""How the outputs of convolutions are normalized."""

PART = 4096
"""Stacks of frames that are turned into floats at a time, half a gigabyte at 84×84×4."""


class PixelWorld(Protocol):
    """What a network on pixels asks of a world: the shape of its stacks of frames, the number of actions, and where its tensors live."""

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """(stack, height, width)."""
        ...

    @property
    def action_count(self) -> int:
        """A."""
        ...

    @property
    def device(self) -> str | torch.device:
        """Where its tensors live."""
        ...


class CNNReward(AllActionsReward):
    """r_x(s, ·) of A actions by convolutions on a stack of uint8 frames, which are divided by 255 here and nowhere else.

    The default has no normalization, so that r_x is a function of x and the frame alone. ``norm="batch"``, ``dropout=0.5`` and
    ``squash="clip"`` make it the network of the SoBiRL authors' released code, with the batch norm's statistics measured at each x
    (see ``convolutions.BatchNormalized``) in place of their running averages. x holds, layer by layer, filters [channels, in, size,
    size], biases [channels] (and with batch norm gains and shifts), then the weights and biases of two dense layers.

    Args:
        action_count: A.
        observation_shape: (stack, height, width).
        layers: the convolutions; by default those of Christiano et al. (NeurIPS 2017), four of 16 channels.
        hidden: the width of the dense layer behind them.
        slope: of the leaky ReLUs where their input is negative.
        norm: ``"batch"``, or None.
        dropout: the probability with which ∇l leaves out an activation of a convolution; with ``norm="batch"`` only.
        **options: see ``NetworkReward``.

    Raises:
        InvalidProblem: a number is not positive and finite, an option is unknown, or the frames are too small for the filters.
    """

    normalizable: tuple[Normalized, ...] = ("rewards",)

    def __init__(
        self,
        action_count: int,
        *,
        observation_shape: tuple[int, ...] = (4, 84, 84),
        layers: tuple[Convolution, ...] = LAYERS,
        hidden: int = 64,
        slope: float = 0.01,
        norm: Norm | None = None,
        dropout: float = 0.0,
        **options: Unpack[NetworkOptions],
    ) -> None:
        if norm not in (None, "batch") or (norm is None and dropout):
            raise InvalidProblem(f"norm is {norm!r} and dropout {dropout}: norm is 'batch' or None, and dropout goes with 'batch' only")
        plain = Convolutions(tuple(observation_shape), action_count, tuple(layers), hidden, slope)
        super().__init__(plain if norm is None else BatchNormalized(plain, dropout), **options)
        self.action_count = action_count

    @classmethod
    def for_world(
        cls,
        world: PixelWorld,
        *,
        layers: tuple[Convolution, ...] = LAYERS,
        hidden: int = 64,
        norm: Norm | None = None,
        dropout: float = 0.0,
        **options: Unpack[NetworkOptions],
    ) -> Self:
        """A network that fits a world's frames and actions, on its device unless another is named."""
        options.setdefault("device", world.device)
        shape = world.observation_shape
        return cls(world.action_count, observation_shape=shape, layers=layers, hidden=hidden, norm=norm, dropout=dropout, **options)

    def _scores(self, x: Tensor, states: Tensor) -> Tensor:
        """In parts where there are many frames, each of which a backward pass computes anew: pixels in float32 are large."""
        lead = states.shape[:-3]
        if x.ndim > 1 or prod(lead) <= PART or not self.network.alone:
            return super()._scores(x, states)
        score: Callable[[Tensor, Tensor], Tensor] = super()._scores
        if torch.is_grad_enabled() and x.requires_grad:
            score = partial(checkpoint, score, use_reentrant=False, preserve_rng_state=False)
        parts = states.flatten(0, len(lead) - 1).split(PART)
        joined: Tensor = torch.cat([score(x, part) for part in parts], 1).unflatten(1, lead)
        return joined

    def _observed(self, x: Tensor, states: Tensor) -> Tensor:
        """The one place where frames become a network's input, channels last in memory: forward and backward take half of the time."""
        states = to_stacks(states)
        if states.dtype != torch.uint8:
            raise InvalidProblem(f"frames are {states.dtype}: give them as uint8, so that they are divided by 255 exactly once")
        if states.ndim > 3:
            states = states.flatten(0, -4).contiguous(memory_format=torch.channels_last).unflatten(0, states.shape[:-3])
        return states.to(x.dtype).div_(255.0)
