"""What may be asked of x and of r_x."""

from __future__ import annotations

from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.types.flow import Fragments

__all__ = ["AllActions", "Buffered", "Domain", "Drawing", "Ensemble", "Played", "RewardModel", "TabularReward", "TransitionReward"]


class Domain(Protocol):
    """Where x lives."""

    @property
    def dimension(self) -> int:
        """D."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of x: float64 on tabular worlds, float32 for networks."""
        ...

    @property
    def device(self) -> torch.device:
        """Where x lives."""
        ...

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The box of x: two arrays [D], finite."""
        ...

    def initial(self, generator: torch.Generator) -> Tensor:
        """A random x to start from: [D]."""
        ...


class RewardModel(Domain, Protocol):
    """r_x: what x chooses."""

    def along(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """r_x at state-action pairs, differentiable in x: [...], [...] → [...]."""
        ...


class Played(Protocol):
    """Steps that were made, with what the world said about them: trajectories, fragments of them, or a batch from a replay."""

    @property
    def states(self) -> Any:
        """[...] or [..., *observation]."""
        ...

    @property
    def actions(self) -> Tensor:
        """[...] or [..., *action]."""
        ...

    @property
    def rewards(self) -> Tensor | None:
        """[...] the true reward, which only teachers, metrics and such a reward model may read."""
        ...

    @property
    def terms(self) -> Tensor | None:
        """[..., K] the named parts of it that the world reports."""
        ...


@runtime_checkable
class TransitionReward(Protocol):
    """A reward that (s, a) does not decide, such as what a simulator pays, and what x adds to it: a function of what was played.

    ``numerics.rewards_of`` asks for it in place of ``along``.
    """

    def of_transitions(self, x: Tensor, played: Any) -> Tensor:
        """r_x of steps that were made (``Played``), differentiable in x: [...]. A replay's also have ``following`` and ``terminated``."""
        ...


@runtime_checkable
class Drawing(Protocol):
    """A reward with random numbers in it, such as a mean over a few drawn actions: a captured CUDA graph must be told where they come from."""

    @property
    def generator(self) -> torch.Generator | None:
        """Their source, on the device of x; None where nothing is drawn now."""
        ...


@runtime_checkable
class AllActions(Protocol):
    """What a reward model has beyond ``RewardModel`` where one look at a state gives the rewards of all actions."""

    def all_actions(self, x: Tensor, states: Tensor) -> Tensor:
        """r_x(s, ·), differentiable in x, of which ``along`` is one entry: [..., *observation] → [..., A]."""
        ...


@runtime_checkable
class Ensemble(Protocol):
    """What a reward model has beyond ``RewardModel`` where r_x is the mean of several."""

    @property
    def members(self) -> int:
        """K; 1 is no ensemble."""
        ...

    def along_each(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """Each member's r at state-action pairs, differentiable in x: [...], [...] → [K, ...]."""
        ...

    def disagreement(self, x: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """The standard deviation over the members of r at state-action pairs: [...], [...] → [...]."""
        ...


@runtime_checkable
class Buffered(Protocol):
    """What a reward model has beyond ``RewardModel`` where statistics of what the follower does enter it.

    They are environment state, constant in ∇x. The environment moves them and nothing else does: it absorbs each look at the follower
    once, and settles at each new x before the follower learns under it, so that solver and objective see the same statistics.
    """

    @property
    def buffers(self) -> Any:
        """The statistics, as plain data that a checkpoint can hold."""
        ...

    def with_buffers(self, buffers: Any) -> Self:
        """The same model with other statistics; None takes those before anything was seen."""
        ...

    def absorb(self, x: Tensor, fragments: Fragments) -> Self:
        """The same model after another look at the follower, whose fragments count from now on."""
        ...

    def settle(self, x: Tensor, fragments: Fragments) -> Self:
        """The same model with what depends on x measured anew at x, over the last look."""
        ...

    def training(self, generator: torch.Generator) -> Self:
        """The same model as ∇l sees it: with dropout and statistics of the batch, where it has them."""
        ...


class TabularReward(RewardModel, Protocol):
    """A reward on finitely many states and actions."""

    def at(self, x: Tensor) -> Tensor:
        """r_x: [B, D] → [B, S, A]."""
        ...

    def vjp(self, x: Tensor, cotangent: Tensor) -> Tensor:
        """(∂r_x/∂x)ᵀ cotangent: [B, S, A] → [B, D]."""
        ...
