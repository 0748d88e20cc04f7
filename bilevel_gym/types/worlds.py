"""What may be asked of the dynamics, and of who plays in them."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from bilevel_gym.transitions import SparseTransition
from bilevel_gym.types.flow import Places, Trajectory

__all__ = ["Branching", "KnownPolicy", "Policy", "TabularWorldLike", "World"]


@runtime_checkable
class Policy(Protocol):
    """A frozen stochastic policy on observations, of worlds that are not tabular."""

    def sample(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one action for each observation: [n, *observation] → [n, *action]."""
        ...

    def mean(self, observations: Tensor) -> Tensor:
        """The deterministic action that evaluation plays: [n, *observation] → [n, *action]."""
        ...


@runtime_checkable
class KnownPolicy(Policy, Protocol):
    """A policy that says how likely an action was, as importance weights ask."""

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """log π(a|s), of a density where actions are continuous: [n, *observation], [n, *action] → [n]."""
        ...


class World(Protocol):
    """The dynamics: what x cannot choose."""

    @property
    def discount(self) -> float:
        """γ in [0, 1)."""
        ...

    def rollout(self, policy: Any, *, trajectories: int, steps: int, generator: torch.Generator) -> Trajectory:
        """Play ``policy`` from the start law, ``trajectories`` times for ``steps`` steps."""
        ...

    def quadrature(self, policy: Any, states: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Actions and weights with Σ_k w_k g(s, a_k) ≈ E_{a~π(·|s)} g(s, a).

        All actions with their probabilities where they are finitely many; ``count`` draws of weight 1/count elsewhere.

        Args:
            states: [n] or [n, *observation].

        Returns:
            actions [K, n, *action] and weights [K, n].
        """
        ...

    def exploratory(self, generator: torch.Generator) -> Any:
        """A policy of random quality, the same kind as ``rollout`` takes: what fixed held-out fragments are drawn with."""
        ...


@runtime_checkable
class Branching(Protocol):
    """What a world has beyond ``World`` where play can go on from any state that was visited."""

    def branch(self, policy: Any, places: Places, *, steps: Tensor, generator: torch.Generator, given: bool = False) -> Trajectory:
        """Play ``policy`` from steps of trajectories, many continuations in one batch.

        Args:
            policy: the same kind as ``rollout`` takes.
            places: [n] where each continuation begins.
            steps: [n] int64, how many steps each takes, 1 or more.
            generator: the source of the draws, of as many with given first actions as without; continuations are independent of each
                other.
            given: whether the first action is the one that was done there, or the policy's, too.

        Returns:
            [n, T], T the largest of ``steps``; not ``alive`` past the episode's end or one's own number of steps.
        """
        ...


class TabularWorldLike(World, Protocol):
    """A world whose transition probabilities are known."""

    @property
    def start(self) -> Tensor:
        """[B, S] ρ."""
        ...

    @property
    def depends_on_x(self) -> bool:
        """Whether P is a function of x."""
        ...

    @property
    def states(self) -> int:
        """S."""
        ...

    @property
    def actions(self) -> int:
        """A."""
        ...

    @property
    def context_weights(self) -> Tensor | None:
        """[C] the weights of the followers; None where there is one follower and no axis C."""
        ...

    @property
    def true_reward(self) -> Tensor | None:
        """[B, S, A] the world's own reward, which only teachers and metrics may read."""
        ...

    def transition_at(self, x: Tensor) -> Tensor | SparseTransition:
        """P(x): [B, S, A, S]."""
        ...

    def transition_vjp(self, x: Tensor, cotangent: Tensor) -> Tensor:
        """(∂P(x)/∂x)ᵀ cotangent: [B, S, A, S] → [B, D]."""
        ...
