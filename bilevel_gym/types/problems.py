"""What may be asked of a whole problem, and of its regularizer."""

from __future__ import annotations

from typing import Any, Protocol, Self

import torch
from torch import Tensor

from bilevel_gym.types.flow import MDP
from bilevel_gym.types.rewards import Domain

__all__ = ["LowerFunction", "OuterProblem", "Problem", "Regularizer"]


class Regularizer(Protocol):
    """τΩ on the simplex, seen through its conjugate (mathematics §2)."""

    @property
    def temperature(self) -> float:
        """τ > 0."""
        ...

    @property
    def entropic(self) -> bool:
        """Whether ∇log π = (∇q − E_π∇q)/τ, that is ∇²Ω* = diag π − ππᵀ, as for a softmax: what scores and M-SoBiRL's recursion need."""
        ...

    def at(self, temperature: float) -> Self:
        """The same Ω under another τ."""
        ...

    def conjugate(self, q: Tensor) -> Tensor:
        """τΩ*(q/τ): [B, S, A] → [B, S]."""
        ...

    def policy(self, q: Tensor) -> Tensor:
        """π = ∇Ω*(q/τ): [B, S, A] → [B, S, A]."""
        ...

    def hessian_product(self, policy: Tensor, h: Tensor) -> Tensor:
        """∇²Ω*(q/τ) h at the q that ``policy`` answers: [B, S, A] → [B, S, A]."""
        ...

    def penalty(self, policy: Tensor) -> Tensor:
        """τΩ(π_s), differentiable by a backward pass that stays finite at π_sa = 0: [B, S, A] → [B, S]."""
        ...

    def lipschitz(self, actions: int) -> float:
        """L with ‖π(q) − π(q')‖_2 ≤ L ‖q − q'‖_∞ in each state of so many actions."""
        ...


class LowerFunction(Protocol):
    """g(x, y), twice differentiable and strongly convex in y: a lower level that is no decision problem."""

    @property
    def size(self) -> int:
        """n, the number of entries of y."""
        ...

    def value(self, x: Tensor, y: Tensor) -> Tensor:
        """g, differentiable in x and twice in y: [B, D], [B, n] → [B]."""
        ...

    def curvature(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(μ [B], L [B]) with 0 < μ and μI ≼ ∇²_yy g(x, ·) ≼ LI."""
        ...


class OuterProblem(Protocol):
    """What the outer environment asks of a problem, whatever its lower level is."""

    @property
    def domain(self) -> Domain:
        """Where x lives."""
        ...

    @property
    def world(self) -> Any:
        """A ``World``; None where the lower level is a function."""
        ...

    @property
    def objective(self) -> Any:
        """An ``UpperObjective``."""
        ...

    @property
    def tabular(self) -> bool:
        """Whether world and reward are finite tables."""
        ...

    @property
    def dimension(self) -> int:
        """D."""
        ...

    @property
    def sizes(self) -> list[int]:
        """D, and then the sizes of the lower level: what a saved state must agree with."""
        ...


class Problem(OuterProblem, Protocol):
    """The mathematics of one bilevel problem, and nothing about how it is solved; ``bilevel_gym.BilevelProblem`` is the class."""

    @property
    def reward(self) -> Any:
        """A ``RewardModel``."""
        ...

    @property
    def regularizer(self) -> Regularizer:
        """τΩ."""
        ...

    def at(self, x: Tensor) -> MDP:
        """M_τ(x) on a tabular world."""
        ...

    def lift(self, x: Tensor) -> Tensor:
        """x as the tables of all followers take it: [B, D] → [B, 1, D] where there are contexts."""
        ...

    def sum_contexts(self, gradient: Tensor) -> Tensor:
        """The sum over the followers: [B, C, D] → [B, D]; ``gradient`` itself where there is one."""
        ...

    def over_contexts(self, values: Tensor) -> Tensor:
        """The weighted mean over the followers: [B, C] → [B]; ``values`` themselves where there is one follower."""
        ...

    def under(self, regularizer: Regularizer) -> Self:
        """The same problem under another τΩ."""
        ...

    def training(self, generator: torch.Generator) -> Self:
        """The same problem as ∇l sees it: where the reward has dropout and batch norm, they are on, drawn from the generator."""
        ...

    def backup_vjp(self, x: Tensor, value: Tensor, cotangent: Tensor) -> Tensor:
        """(∂backup(x, V)/∂x)ᵀ cotangent, V held fixed: [B, S, A] → [B, D]."""
        ...
