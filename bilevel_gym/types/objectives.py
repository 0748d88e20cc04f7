"""What may be asked of the upper level."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from bilevel_gym.types.flow import MDP, Evaluation, Fragments, Response, Trajectory
from bilevel_gym.types.worlds import TabularWorldLike

if TYPE_CHECKING:
    from bilevel_gym.types.problems import Regularizer

__all__ = [
    "AdvantageObjective",
    "AsideObjective",
    "DiscountedObjective",
    "Memory",
    "SampledObjective",
    "TabularObjective",
    "TupleObjective",
    "UpperObjective",
]


class Memory(Protocol):
    """Samples kept from earlier steps."""

    def __len__(self) -> int:
        """How many tuples it holds."""
        ...

    def sample(self, count: int, generator: torch.Generator) -> Fragments:
        """Draw ``count`` tuples uniformly, with replacement."""
        ...


class UpperObjective(Protocol):
    """f(x, π)."""

    def start(self) -> Any:
        """The memory before the first evaluation: environment state, not the objective's."""
        ...

    def evaluate(self, problem: Any, x: Tensor, response: Response, memory: Any, generator: torch.Generator) -> tuple[Evaluation, Any]:
        """Look at a response; returns what was seen, and the memory afterwards. The memory given is not changed."""
        ...


@runtime_checkable
class AsideObjective(UpperObjective, Protocol):
    """An objective whose first look is dearer than the others, or whose looks are rationed."""

    def aside(self) -> UpperObjective:
        """The same f for single looks that nothing is kept of."""
        ...


@runtime_checkable
class TabularObjective(UpperObjective, Protocol):
    """A model-based f, differentiable in x and in π."""

    def value(self, problem: Any, x: Tensor, policy: Tensor) -> Tensor:
        """f(x, π): [B, D], [B, S, A] → [B]."""
        ...

    def gradient(self, problem: Any, x: Tensor, policy: Tensor) -> tuple[Tensor, Tensor]:
        """(∇_x f [B, D], ∇_π f [B, S, A])."""
        ...


@runtime_checkable
class AdvantageObjective(TabularObjective, Protocol):
    """A model-based f that says what each action adds to it."""

    def advantage(self, problem: Any, x: Tensor, policy: Tensor) -> tuple[Tensor, Tensor]:
        """A_upper [B, S, A], and the visits [B, S] that it is weighted with: ∂f/∂π_sa is d_s A_sa up to a constant in each state."""
        ...


@runtime_checkable
class DiscountedObjective(AdvantageObjective, Protocol):
    """A model-based f(x, π) = E Σ_{t<T} γ̄^t r̄_x(s_t, a_t), a cost."""

    @property
    def horizon(self) -> int | None:
        """T; None is an infinite one."""
        ...

    @property
    def world(self) -> TabularWorldLike | None:
        """The world in which the cost is counted; None is the follower's."""
        ...

    @property
    def regularizer(self) -> Regularizer | None:
        """τ̄Ω̄, part of the cost; None is none."""
        ...

    def at(self, problem: Any, x: Tensor) -> MDP:
        """The upper level's decision problem, with r̄ as its reward."""
        ...

    def cost_vjp(self, problem: Any, x: Tensor, cotangent: Tensor) -> Tensor:
        """(∂r̄/∂x)ᵀ cotangent: [B, S, A] → [B, D]."""
        ...


@runtime_checkable
class SampledObjective(UpperObjective, Protocol):
    """A model-free f(x, π) = E[l(d_1, …, d_I; x)] over fragments of π."""

    def loss(self, problem: Any, x: Tensor, fragments: Fragments) -> Tensor:
        """l of each tuple, differentiable in x, 0 where it was skipped: [M]."""
        ...


@runtime_checkable
class TupleObjective(SampledObjective, Protocol):
    """A sampled f whose tuples can be cut out of trajectories that somebody else has played, such as a follower in a game."""

    @property
    def per_tuple(self) -> int:
        """I, fragments of a tuple, each of a trajectory of its own."""
        ...

    @property
    def on_policy(self) -> bool:
        """Whether the fragments are those of π, so that f depends on it."""
        ...

    def episode_steps(self, problem: Any) -> int:
        """T, steps of a trajectory that a fragment is cut from."""
        ...

    def tuple_of(self, trajectories: Trajectory, generator: torch.Generator) -> Fragments:
        """One tuple out of I trajectories [I, T], with its outcome: fields [1, I, H]."""
        ...
