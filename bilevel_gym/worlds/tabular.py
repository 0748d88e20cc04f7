"""Finite worlds whose transition probabilities are known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.numerics import ArrayLike, Transitions, as_table, dense
from bilevel_gym.transitions import SparseTransition
from bilevel_gym.types import Places, Trajectory
from bilevel_gym.worlds.checks import check_counts, check_discount, check_rows, check_start, check_true_reward, check_ways, check_weights
from bilevel_gym.worlds.playing import play, play_on

__all__ = ["TabularWorld", "stack_tables"]


class TabularWorld:
    """A finite world with P, ρ and γ (mathematics §1); P does not depend on x.

    An ended episode has value 0 and earns no entropy: a row of P sums to one less the probability that the episode ends there.

    Args:
        transition: [S, A, S] or [B, S, A, S], P(s' | s, a), or a ``SparseTransition``, with which the table is never written out.
        start: [S] or [B, S], ρ.
        discount: γ in [0, 1).
        termination: [S, A] or [B, S, A], the probability that the episode ends after (s, a); 0 everywhere by default.
        true_reward: [S, A] or [B, S, A], the world's own reward, which only teachers and metrics read.
        context_weights: [C] where one leader faces C followers: their weights, with sum one. All tables then have an axis C before S
            (of size 1 where the followers share them); ``start`` is repeated where it has none.
        sparse: how P is kept: as lists of successors, as a table, or (None) whichever its density speaks for.
        device: where the tables live.

    Raises:
        InvalidProblem: a shape does not fit, a probability is negative, a row with its termination does not sum to one, γ ≥ 1, or episodes
            can end, but in no state that is reached from where they start.
    """

    depends_on_x = False

    def __init__(
        self,
        transition: ArrayLike | SparseTransition,
        start: ArrayLike,
        discount: float,
        termination: ArrayLike | None = None,
        *,
        true_reward: ArrayLike | None = None,
        context_weights: ArrayLike | None = None,
        sparse: bool | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.transition = _stored(transition, sparse, device)
        weights = self.transition.probability if isinstance(self.transition, SparseTransition) else self.transition
        ends = torch.zeros_like(weights[..., 0]) if termination is None else as_table(termination, device)
        check_rows(weights, ends)
        self.termination = ends
        self.context_weights = None if context_weights is None else check_weights(as_table(context_weights, device))
        self.start = check_start(self._per_context(as_table(start, device)), weights.shape[:-3], self.states)
        if not self.depends_on_x:
            check_ways(self.transition, ends, self.start)
        self.discount = check_discount(discount)
        self.true_reward = None if true_reward is None else as_table(true_reward, device)
        if self.true_reward is not None:
            check_true_reward(self.true_reward, self.start, self.actions)

    @classmethod
    def stack(cls, worlds: Sequence[TabularWorld]) -> TabularWorld:
        """Worlds of one size as a batch: tables with a leading axis B.

        Raises:
            InvalidProblem: their sizes, discounts or contexts differ, only some have a true reward, or P depends on x.
        """
        first = worlds[0]
        for world in worlds:
            same = world.transition.shape == first.transition.shape and world.discount == first.discount and not world.depends_on_x
            if not same or world.followers != first.followers:
                raise InvalidProblem(
                    "worlds are stacked where they have one size, one discount and the same contexts, and P does not depend on x: make them alike, or use vectorization_mode='sync'"
                )

        return TabularWorld(
            _stacked([world.transition for world in worlds]),
            stack_tables(worlds, "start"),
            first.discount,
            stack_tables(worlds, "termination"),
            true_reward=stack_tables(worlds, "true_reward"),
            context_weights=first.context_weights,
            device=first.start.device,
        )

    @property
    def states(self) -> int:
        """S."""
        return self.transition.shape[-3]

    @property
    def actions(self) -> int:
        """A."""
        return self.transition.shape[-2]

    @property
    def followers(self) -> list[float] | None:
        """The weights of the contexts as numbers, None where there is one follower."""
        return None if self.context_weights is None else self.context_weights.tolist()

    def transition_at(self, x: Tensor) -> Transitions:
        """P, whatever x is: [B, S, A, S]."""
        return self.transition

    def _per_context(self, start: Tensor) -> Tensor:
        """ρ with an axis of contexts, where there are any: [S] or [C, S] → [C, S].

        Raises:
            InvalidProblem: a table was made for another number of contexts.
        """
        if self.context_weights is None:
            return start
        count = len(self.context_weights)
        tables = {"transition": self.transition.shape[:-3], "start": start.shape[:-1] or (1,)}
        for name, axes in tables.items():
            if not axes or axes[-1] not in (1, count):
                raise InvalidProblem(
                    f"there are {count} context weights, and {name} has the leading axes {tuple(axes)}: the last of them must be {count}, or 1 where all followers share it"
                )
        return start.expand(*start.shape[:-2], count, -1).contiguous()

    def transition_vjp(self, x: Tensor, cotangent: Tensor) -> Tensor:
        """Zero: P does not depend on x. [B, S, A, S] → [B, D]."""
        return torch.zeros_like(x)

    def rollout(self, policy: Tensor, *, trajectories: int, steps: int, generator: torch.Generator) -> Trajectory:
        """Play a policy [S, A] from ρ (see ``play``); with contexts, [C, S, A], each trajectory draws its follower by the weights."""
        check_counts(trajectories=trajectories)
        if self.context_weights is None:
            return play(self.transition, self.start, self.true_reward, policy, trajectories, steps, generator)
        contexts = torch.multinomial(self.context_weights, trajectories, replacement=True, generator=generator)
        states = torch.multinomial(self.start[contexts], 1, generator=generator).squeeze(-1)
        return play_on(self.transition, self.true_reward, policy, states, steps, generator, contexts=contexts)

    def branch(self, policy: Tensor, places: Places, *, steps: Tensor, generator: torch.Generator, given: bool = False) -> Trajectory:
        """Play a policy [S, A] on from steps of trajectories (see ``types.Branching``); with contexts it is [C, S, A]."""
        first = places.actions if given else None
        return play_on(self.transition, self.true_reward, policy, places.states, steps, generator, first, places.contexts)

    def quadrature(self, policy: Tensor, states: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """All actions with their probabilities, so that the mean over π is exact; ``count`` and ``generator`` are not used.

        Args:
            policy: [S, A].
            states: [n].

        Returns:
            actions [A, n] and weights [A, n].
        """
        return torch.arange(self.actions, device=states.device)[:, None].expand(-1, states.shape[0]), policy[states].mT

    def exploratory(self, generator: torch.Generator) -> Tensor:
        """Logits drawn from N(0, 2²) in every state: from nearly uniform to nearly greedy rows. [S, A]."""
        logits = torch.randn(self.states, self.actions, generator=generator, dtype=self.transition.dtype, device=self.transition.device)
        return torch.softmax(2.0 * logits, -1)


def stack_tables(worlds: Sequence[TabularWorld], name: str) -> Tensor | None:
    """An attribute of many worlds with a leading axis B; None where none has it.

    Raises:
        InvalidProblem: only some have it.
    """
    found = [table for world in worlds if (table := getattr(world, name)) is not None]
    if len(found) not in (0, len(worlds)):
        raise InvalidProblem(f"{len(found)} of {len(worlds)} worlds have a {name}: give one to each that is stacked, or to none")
    return torch.stack(found) if found else None


def _stacked(transitions: Sequence[Transitions]) -> Transitions:
    """P of many worlds with a leading axis B: as lists of successors where all of them have the same."""
    sparse = [found for found in transitions if isinstance(found, SparseTransition)]
    if len(sparse) == len(transitions) and all(torch.equal(found.successors, sparse[0].successors) for found in sparse):
        return SparseTransition(sparse[0].successors, torch.stack([found.probability for found in sparse]))
    return torch.stack([dense(found) for found in transitions])


def _stored(transition: ArrayLike | SparseTransition, sparse: bool | None, device: str | torch.device) -> Transitions:
    """P in the form that is asked for, or in the one that fits its density."""
    if isinstance(transition, SparseTransition):
        given = transition.to(device)
        return given if (given.narrow if sparse is None else sparse) else given.dense()
    table = as_table(transition, device)
    if table.ndim < 3 or table.shape[-1] != table.shape[-3]:
        raise InvalidProblem(f"transition has shape {tuple(table.shape)}: it must be [S, A, S] or [B, S, A, S]")
    if 0 in table.shape:
        raise InvalidProblem(f"transition has shape {tuple(table.shape)}: there must be one state and one action at least")
    if sparse is False:
        return table
    found = SparseTransition.from_dense(table)
    return found if sparse or found.narrow else table
