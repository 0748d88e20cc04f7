"""The mathematics of one bilevel problem, and nothing about how it is solved: over a decision problem, or over a convex function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidAction, InvalidProblem, UnsupportedProblem
from bilevel_gym.types import MDP, Buffered, Domain, LowerFunction, Regularizer, RewardModel, UpperObjective, World

__all__ = ["BilevelProblem", "ConvexProblem", "stack"]


@dataclass(frozen=True)
class BilevelProblem:
    """min_x φ(x) = f(x, π*(x)) with π*(x) the soft-optimal policy of M_τ(x) (mathematics §1).

    Args:
        world: the dynamics: what x cannot choose.
        reward: r_x: what x chooses.
        regularizer: τΩ, which makes π*(x) unique and differentiable.
        objective: f.

    Raises:
        InvalidProblem: the tables of world, reward and regularizer do not fit together.
    """

    world: World
    reward: RewardModel
    regularizer: Regularizer
    objective: UpperObjective
    batch: tuple[int, ...] = field(init=False, repr=False, compare=False, default=())
    """B, the leading axes of the tables of world and reward; () for one problem, and where x alone has them."""

    def __post_init__(self) -> None:
        if not self.tabular:
            return
        example = torch.zeros(self.dimension, dtype=self.reward.dtype, device=self.reward.device)
        table = self.reward.at(self.lift(example))  # type: ignore[attr-defined]
        weights = self.world.context_weights  # type: ignore[attr-defined]
        if weights is not None and table.ndim > 2 and table.shape[-3] not in (1, len(weights)):
            raise InvalidProblem(
                f"the reward is a table for {table.shape[-3]} contexts, the world has {len(weights)}: build both for the same contexts"
            )
        expected = (self.world.states, self.world.actions)  # type: ignore[attr-defined]
        if tuple(table.shape[-2:]) != expected:
            raise InvalidProblem(
                f"the reward is a table [S, A] = {list(table.shape[-2:])}, the world has {list(expected)}: build both for the same states and actions"
            )
        axes = table.shape[:-2], self.world.start.shape[:-1]  # type: ignore[attr-defined]
        try:
            common = torch.broadcast_shapes(*axes)
        except RuntimeError as error:
            raise InvalidProblem(
                f"the reward has the leading axes {list(axes[0])}, the world {list(axes[1])}: build both for the same problems of a batch"
            ) from error
        object.__setattr__(self, "batch", tuple(common if weights is None else common[:-1]))
        self.regularizer.policy(torch.zeros(*self.world.start.shape, expected[1], dtype=table.dtype, device=table.device))  # type: ignore[attr-defined]

    @property
    def domain(self) -> Domain:
        """Where x lives, which the reward model says."""
        return self.reward

    @property
    def dimension(self) -> int:
        """D."""
        return self.reward.dimension

    @property
    def sizes(self) -> list[int]:
        """[D, S, A], with zeros where the world is no table."""
        return [self.dimension, getattr(self.world, "states", 0), getattr(self.world, "actions", 0)]

    @property
    def tabular(self) -> bool:
        """Whether world and reward are finite tables, so that exact solvers and estimators apply."""
        return hasattr(self.world, "transition_at") and hasattr(self.reward, "at")

    def at(self, x: Tensor) -> MDP:
        """M_τ(x), the follower's decision problem: x [B, D].

        Raises:
            UnsupportedProblem: the problem is not tabular.
            InvalidAction: x is of another dimension, or of another batch than the tables.
        """
        if not self.tabular:
            raise UnsupportedProblem(
                "the world is not a table, so M_τ(x) cannot be written down: give BilevelProblem a worlds.TabularWorld and a reward table"
            )
        axes = x.shape[:-1]
        if x.shape[-1:] != (self.dimension,) or (axes and self.batch and axes[-len(self.batch) :] != self.batch):
            raise InvalidAction(f"x has shape {tuple(x.shape)}: it must be {[*self.batch, self.dimension]}, D numbers for each problem")
        world, reward, lifted = self.world, self.reward, self.lift(x)
        return MDP(reward.at(lifted), world.transition_at(lifted), world.start, world.discount, self.regularizer)  # type: ignore[attr-defined]

    def under(self, regularizer: Regularizer) -> Self:
        """The same problem under another τΩ, such as ``problem.under(problem.regularizer.at(0.01))``."""
        return replace(self, regularizer=regularizer)

    def training(self, generator: torch.Generator) -> Self:
        """The same problem as ∇l sees it: where the reward has dropout and batch norm, they are on, drawn from the generator."""
        reward = self.reward.training(generator) if isinstance(self.reward, Buffered) else self.reward
        return self if reward is self.reward else replace(self, reward=reward)

    def backup_vjp(self, x: Tensor, value: Tensor, cotangent: Tensor) -> Tensor:
        """(∂backup(x, V)/∂x)ᵀ z with V held fixed, backup = r(x) + γP(x)V (mathematics §3).

        Args:
            x: [B, D].
            value: [B, S] V.
            cotangent: [B, S, A] z; those of several followers are added.

        Returns:
            [B, D]. Cost: one vector-Jacobian product of the reward, and one of P where P depends on x.
        """
        lifted = self.lift(x)
        result = self.sum_contexts(self.reward.vjp(lifted, cotangent))  # type: ignore[attr-defined]
        if self.world.depends_on_x:  # type: ignore[attr-defined]
            outer = self.world.discount * cotangent.unsqueeze(-1) * value[..., None, None, :]
            result = result + self.sum_contexts(self.world.transition_vjp(lifted, outer))  # type: ignore[attr-defined]
        return result

    def over_contexts(self, values: Tensor) -> Tensor:
        """The weighted mean over the followers: [B, C] → [B]; ``values`` themselves where there is one follower."""
        weights = self.world.context_weights  # type: ignore[attr-defined]
        return values if weights is None else values @ weights

    def lift(self, x: Tensor) -> Tensor:
        """x as all followers see it, [B, D] → [B, 1, D]: to rewards and transitions, contexts are one more batch."""
        return x if self.world.context_weights is None else x.unsqueeze(-2)  # type: ignore[attr-defined]

    def sum_contexts(self, gradient: Tensor) -> Tensor:
        """The sum over the followers, [B, C, D] → [B, D]."""
        return gradient if self.world.context_weights is None else gradient.sum(-2)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class ConvexProblem:
    """min_x φ(x) = f(x, y*(x)) with y*(x) = argmin_y g(x, y), g strongly convex in y: the setting of AID (mathematics §7).

    The follower is not an agent in a world but a minimiser, and a ``Response``'s ``policy`` holds y. f may be any objective with
    ``value(problem, x, y)`` and ``gradient(problem, x, y)``, such as a subclass of ``objectives.ExplicitObjective``.

    Args:
        lower: g.
        objective: f.
        domain: the box of x, such as ``rewards.Box``.

    Raises:
        InvalidProblem: g does not give one number for each x and y.
    """

    lower: LowerFunction
    objective: UpperObjective
    domain: Domain

    world = reward = regularizer = None
    """There is no decision problem."""
    tabular = False

    def __post_init__(self) -> None:
        low, high = self.domain.bounds
        x = torch.as_tensor((low + high) / 2.0, dtype=self.domain.dtype, device=self.domain.device)
        shape = tuple(self.lower.value(x, torch.zeros(self.lower.size, dtype=x.dtype, device=x.device)).shape)
        if shape:
            raise InvalidProblem(f"g(x, y) has shape {shape} for x [{self.dimension}] and y [{self.lower.size}]: it must be one number")

    @property
    def dimension(self) -> int:
        """D."""
        return self.domain.dimension

    @property
    def sizes(self) -> list[int]:
        """[D, n]."""
        return [self.dimension, self.lower.size]


def stack(problems: Sequence[BilevelProblem]) -> BilevelProblem:
    """Problems of one kind as a batch: each table gets a leading axis B, parts that all of them share stay as they are.

    Args:
        problems: B ≥ 1 tabular problems.

    Raises:
        UnsupportedProblem: a part differs between the problems and cannot be stacked.
    """
    first = problems[0]
    if all(problem is first for problem in problems):
        return first
    return BilevelProblem(
        *(_stack([getattr(problem, name) for problem in problems], name) for name in ("world", "reward", "regularizer", "objective"))
    )


def _stack(parts: Sequence[Any], name: str) -> Any:
    first = parts[0]
    if all(part is first for part in parts):
        return first
    if hasattr(first, "stack"):
        return type(first).stack(parts)
    if all(part == first for part in parts):
        return first
    raise UnsupportedProblem(
        f"the problems have different {name}s, and {type(first).__name__} has no stack(parts): write one, or use vectorization_mode='sync'"
    )
