"""The words that the stations share: what flows between them, and what each may ask of another.

Axes: ``B`` problems in a batch (any number of leading axes, often none), ``S`` states, ``A`` actions, ``D`` the dimension of x,
``N`` trajectories, ``T`` time, ``M`` tuples of ``I`` fragments of ``H`` steps. Where a leader faces several followers there is an
axis ``C`` of contexts between B and S, in every table, value and policy, and in none of x; it is not written out below.

Nothing here computes. A station that needs another's *kind* of thing names the protocol here, never the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.linear import Factor
from bilevel_gym.transitions import SparseTransition

__all__ = [
    "MDP",
    "AdvantageObjective",
    "AllActions",
    "Branching",
    "Budget",
    "Buffered",
    "DiscountedObjective",
    "Domain",
    "Ensemble",
    "Estimator",
    "Evaluation",
    "Factor",
    "Fragments",
    "Hypergradient",
    "LowerFunction",
    "LowerSolver",
    "Memory",
    "Oracle",
    "OuterProblem",
    "Places",
    "Policy",
    "Problem",
    "Regularizer",
    "Response",
    "RewardModel",
    "SampledObjective",
    "Samples",
    "TabularObjective",
    "TabularReward",
    "TabularWorldLike",
    "Trajectory",
    "TupleObjective",
    "UpperObjective",
    "World",
]


# ---------------------------------------------------------------------------------------------- what flows


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


# ---------------------------------------------------------------------------------------------- what each may ask


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


@runtime_checkable
class Policy(Protocol):
    """A frozen stochastic policy on observations, of worlds that are not tabular."""

    def sample(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one action for each observation: [n, *observation] → [n, *action]."""
        ...

    def mean(self, observations: Tensor) -> Tensor:
        """The deterministic action that evaluation plays: [n, *observation] → [n, *action]."""
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


class LowerSolver(Protocol):
    """How the follower learns. A user's own solver is any object with these two methods."""

    def start(self, problem: Any) -> Response:
        """The follower before it has seen any x."""
        ...

    def solve(self, problem: Any, x: Tensor, *, warm: Response | None, budget: Budget | None, generator: torch.Generator) -> Response:
        """Answer x, starting from ``warm`` (``start(problem)`` where it is None)."""
        ...


class Oracle(Protocol):
    """What an estimator may ask of the environment; each use is counted and leaves the environment as it was."""

    @property
    def problem(self) -> Any:
        """The problem that is being solved."""
        ...

    @property
    def generator(self) -> torch.Generator:
        """The source of the estimator's random draws."""
        ...

    def solve(self, x: Tensor, warm: Response | None = None) -> Response:
        """The follower's response at another x."""
        ...

    def evaluate(self, x: Tensor, response: Response) -> Evaluation:
        """Another look at a response."""
        ...

    def rollout(self, policy: Any, *, trajectories: int, steps: int) -> Trajectory:
        """More trajectories of a policy."""
        ...

    def branch(self, policy: Any, places: Places, *, steps: Tensor, given: bool = False) -> Trajectory:
        """Continuations of a policy from steps of trajectories, on worlds that are ``Branching``."""
        ...


class Estimator(Protocol):
    """A hyper-gradient estimator; like an Optax transform, with all state in the open."""

    def supports(self, problem: Any) -> str | None:
        """None, or the reason why this estimator does not fit the problem."""
        ...

    def init(self, oracle: Oracle) -> Any:
        """The state before the first estimate."""
        ...

    def __call__(self, oracle: Oracle, x: Tensor, response: Response, evaluation: Evaluation, state: Any) -> tuple[Hypergradient, Any]:
        """One estimate of ∇φ(x), and the state afterwards."""
        ...
