"""Finite worlds that x moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.numerics import ArrayLike, as_table, stack_functions, vjp
from bilevel_gym.types import Places, Trajectory
from bilevel_gym.worlds.tabular import TabularWorld, stack_tables

__all__ = ["ControlledWorld"]


class ControlledWorld(TabularWorld):
    """A finite world whose P is a differentiable function of x, such as a leader's mixed action (mathematics §1).

    Args:
        kernel: x [B, D] → P(x) [B, S, A, S], written in torch; rows may sum to less than one, the rest ends the episode. With
            contexts x is [B, 1, D] and P(x) [B, C, S, A, S].
        example: an x [D] at which P is checked.
        start: [S], ρ.
        discount: γ in [0, 1).

    Raises:
        InvalidProblem: as for ``TabularWorld``, at ``example``.
    """

    depends_on_x = True

    def __init__(
        self,
        kernel: Callable[[Tensor], Tensor],
        example: ArrayLike,
        start: ArrayLike,
        discount: float,
        *,
        true_reward: ArrayLike | None = None,
        context_weights: ArrayLike | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.kernel = kernel
        self.example = seen = as_table(example, device)
        transition = kernel(seen if context_weights is None else seen.unsqueeze(-2)).detach()
        super().__init__(
            transition,
            start,
            discount,
            1.0 - transition.sum(-1),
            true_reward=true_reward,
            context_weights=context_weights,
            sparse=False,
            device=device,
        )

    @classmethod
    def stack(cls, worlds: Sequence[ControlledWorld]) -> ControlledWorld:  # type: ignore[override]
        """Worlds of one size as a batch: one kernel for all.

        Raises:
            InvalidProblem: their discounts or contexts differ, or only some have a true reward.
            UnsupportedProblem: their kernels cannot be stacked.
        """
        first = worlds[0]
        if any(world.discount != first.discount or world.followers != first.followers for world in worlds):
            raise InvalidProblem("worlds are stacked where they have one discount and the same contexts: make them alike")
        return cls(
            stack_functions([world.kernel for world in worlds]),
            first.example,
            torch.stack([world.start for world in worlds]),
            first.discount,
            true_reward=stack_tables(worlds, "true_reward"),
            context_weights=first.context_weights,
            device=first.start.device,
        )

    def transition_at(self, x: Tensor) -> Tensor:
        """P(x): [B, D] → [B, S, A, S].

        Raises:
            InvalidProblem: at this x some probability is negative or not finite, or a row exceeds one.
        """
        transition = self.kernel(x)
        if not bool((transition >= 0).all() & (transition.sum(-1) <= 1.0 + 1e-8).all()):
            raise InvalidProblem(
                "the kernel gives no probabilities at this x: bound x, or write the kernel so that rows stay distributions, e.g. with softmax"
            )
        return transition

    def transition_vjp(self, x: Tensor, cotangent: Tensor) -> Tensor:
        """(∂P(x)/∂x)ᵀ cotangent, by one backward pass: [B, S, A, S] → [B, D]."""
        return vjp(self.kernel, x, cotangent)

    def at(self, x: Tensor) -> TabularWorld:
        """The world that x makes, which can be played: x [D]."""
        transition = self.transition_at(x if self.context_weights is None else x.unsqueeze(-2)).detach()
        return TabularWorld(
            transition,
            self.start,
            self.discount,
            1.0 - transition.sum(-1),
            true_reward=self.true_reward,
            context_weights=self.context_weights,
            device=self.start.device,
        )

    def rollout(self, policy: Tensor, *, trajectories: int, steps: int, generator: torch.Generator) -> Trajectory:
        """Refused: a rollout needs an x.

        Raises:
            InvalidProblem: always.
        """
        raise InvalidProblem("P depends on x here, so a rollout is not defined by the policy alone: play world.at(x)")

    def branch(self, policy: Tensor, places: Places, *, steps: Tensor, generator: torch.Generator, given: bool = False) -> Trajectory:
        """Refused, as ``rollout`` is.

        Raises:
            InvalidProblem: always.
        """
        return self.rollout(policy, trajectories=len(places.row), steps=0, generator=generator)
