"""What flows between the stations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bilevel_gym.linear import Factor
from bilevel_gym.transitions import SparseTransition

if TYPE_CHECKING:
    from bilevel_gym.types.objectives import Memory
    from bilevel_gym.types.problems import Regularizer

__all__ = ["MDP", "Budget", "Evaluation", "Fragments", "Hypergradient", "Places", "Response", "Samples", "Trajectory"]


@dataclass(frozen=True, slots=True)
class MDP:
    """The follower's decision problem M_τ(x) = (S, A, P(x), r(x), γ, τ, ρ) at one x (mathematics §1)."""

    reward: Tensor
    """[B, S, A] r(x)."""
    transition: Tensor | SparseTransition
    """[B, S, A, S] P(x), dense or sparse, which the functions of ``numerics`` do not tell apart; a row sums to one less the probability that the episode ends there."""
    start: Tensor
    """[B, S] ρ."""
    discount: float
    """γ in [0, 1)."""
    regularizer: Regularizer
    """τΩ."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """N trajectories of T steps, as ``World.rollout`` returns them."""

    states: Any
    """[N, T] state numbers (tabular) or [N, T, *observation]; pixels are ``frames.FrameStacks``."""
    actions: Tensor
    """[N, T] action numbers or [N, T, *action]."""
    alive: Tensor
    """[N, T] bool: False from the step after an episode's end on; such steps count for nothing."""
    rewards: Tensor | None = None
    """[N, T] the world's own (true) reward, which only teachers and metrics may read."""
    contexts: Tensor | None = None
    """[N] which follower played, on worlds with contexts."""
    seeds: Tensor | None = None
    """[N] int64 what each episode was reset with, on simulators: with the actions it says all that happened."""
    terms: Tensor | None = None
    """[N, T, K] the named parts of the true reward that the world reports, 0 past the episode's end."""


@dataclass(frozen=True, slots=True)
class Places:
    """Steps of trajectories, from which play can go on."""

    trajectories: Trajectory
    """[N, T]."""
    row: Tensor
    """[n] which trajectory."""
    time: Tensor
    """[n] which of its steps."""

    @property
    def states(self) -> Any:
        """[n] or [n, *observation]."""
        return self.trajectories.states[self.row, self.time]

    @property
    def actions(self) -> Tensor:
        """[n] or [n, *action] what was done there."""
        return self.trajectories.actions[self.row, self.time]

    @property
    def contexts(self) -> Tensor | None:
        """[n] whose play it was, on worlds with contexts."""
        return None if self.trajectories.contexts is None else self.trajectories.contexts[self.row]


@dataclass(frozen=True, slots=True)
class Fragments:
    """M tuples of I trajectory pieces of H steps, with what the upper level observed of each tuple."""

    states: Any
    """[M, I, H] or [M, I, H, *observation]; pixels are ``frames.FrameStacks``."""
    actions: Tensor
    """[M, I, H] or [M, I, H, *action]."""
    alive: Tensor
    """[M, I, H] bool: False from the step after the episode's end on; such steps count for nothing."""
    outcome: Tensor
    """[M] the observation, such as the label y of a comparison: 1 where the first is preferred, ½ for a tie; NaN where it was skipped."""
    rewards: Tensor | None = None
    """[M, I, H] the true reward, which only teachers and metrics may read; 0 past the episode's end."""
    terms: Tensor | None = None
    """[M, I, H, K] the named parts of it that the world reports."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Fragments as places in the trajectories that they were cut from, so that what precedes and follows them is at hand.

    ``origin`` and ``offset`` are uniform draws under the current policy: no query rule has chosen them.
    """

    trajectories: Trajectory
    """[N, T]."""
    origin: Tensor
    """[M, I] which trajectory."""
    offset: Tensor
    """[M, I] the step at which the fragment starts."""
    fragments: Fragments
    """[M, I, H] the same fragments, gathered."""
    asked: bool = True
    """Whether the upper level observed them; where not, every outcome is NaN and says nothing about l."""


@dataclass(frozen=True, slots=True)
class Response:
    """What the follower does about an x, with a certificate of how well."""

    policy: Any
    """π: [B, S, A] probabilities on tabular worlds, a frozen ``Policy`` elsewhere; never a live network. y [B, n] where the lower level is a function g(x, y)."""
    value: Tensor | None = None
    """[B, S] V, where it exists."""
    q: Tensor | None = None
    """[B, S, A] Q, where it exists."""
    gap: Tensor = field(default_factory=lambda: torch.tensor(float("inf")))
    """[B] an upper bound of the soft Bellman residual (over all contexts) ‖F(x,V) − V‖_∞, or the mean absolute soft TD error on a sampled batch, or ‖∇_y g‖; infinite before any solve."""
    soft: bool = True
    """False where a foreign solver does not solve the regularized problem: the hyper-gradient formulas do not hold then."""
    steps: int = 0
    """Lower-level steps that this solve took (sweeps, Newton steps or gradient updates)."""
    env_steps: int = 0
    """Environment steps that this solve took."""
    converged: bool = False
    """Whether the solver met its own tolerance (False for a fixed number of sweeps)."""
    factor: Factor | None = None
    """A factor of I − γP_π at *this* π, where the solver has one."""
    state: Any = None
    """The warm start: whatever the solver wants back."""
    temperature: float | None = None
    """τ in force, where the solver has tuned it; None is that of ``problem.regularizer``."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the upper level saw of a response."""

    value: Tensor
    """[B] f(x, π), or the mean loss of this step's fresh samples."""
    fresh: Samples | None = None
    """This step's on-policy samples; the only ones that a score function may weight."""
    memory: Memory | None = None
    """A view of the samples kept so far, for ∇l only."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Named numbers, kept apart from ``value``; see the glossary in the documentation."""
    env_steps: int = 0
    """Environment steps spent on it."""
    comparisons: int = 0
    """Labels asked of the teacher."""


@dataclass(frozen=True, slots=True)
class Hypergradient:
    """∇φ(x) = direct + implicit, or an estimate of it."""

    value: Tensor
    """[B, D]."""
    direct: Tensor
    """[B, D] ∇_x f, or E[∇l]."""
    implicit: Tensor
    """[B, D] what x does to f through π*(x)."""
    stats: Mapping[str, float] = field(default_factory=dict)
    """Named diagnostics of the estimator."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on one solve, on top of the solver's own stopping rule."""

    steps: int | None = None
    """Lower-level steps at most."""
