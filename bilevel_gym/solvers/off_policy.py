"""The one loop that off-policy solvers run in: collect, update as is due, carry on from where the last solve ended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import Tensor

from bilevel_gym.arguments import check_numbers
from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.numerics import draw_seed
from bilevel_gym.regularizers import Shannon
from bilevel_gym.solvers.base import fitting_solver
from bilevel_gym.solvers.graphs import GraphedUpdates
from bilevel_gym.solvers.learner import ActorCritic, Learner, Rates, Setting
from bilevel_gym.solvers.replay import Batch
from bilevel_gym.types import Budget, Drawing, Response

__all__ = ["OffPolicySolver", "OffPolicyState"]


@dataclass(frozen=True)
class OffPolicyState:
    """The warm start of an off-policy solver: tensors and numbers, and one live part that a checkpoint leaves out.

    A solve leaves the networks in here as they are: it works on copies. Replay and simulation are shared and move on, which does
    no harm to a state that is used again, since transitions carry no r_x; ``fork`` gives a state that shares nothing.
    """

    networks: ActorCritic
    """Flat parameters with Adam's memory."""
    replay: Any
    """Transitions without r_x."""
    env_steps: int = 0
    """Environment steps ever taken."""
    updates: int = 0
    """Gradient updates ever made."""
    due: float = 0.0
    """Updates that the steps so far have earned and that are not made yet."""
    simulation: Any = field(default=None, metadata={"transient": True})
    """The live episodes; a state without them (read from a checkpoint, or forked) opens others."""
    moment: Any = None
    """Where they stood when the solve ended, which those others go on from; None starts new episodes."""

    def fork(self) -> OffPolicyState:
        """A state that shares nothing with this one and starts new episodes. Cost: a copy of the replay."""
        return replace(self, networks=self.networks.clone(), replay=self.replay.copy(), simulation=None, moment=None)


@dataclass(frozen=True)
class OffPolicySolver(ABC):
    """A soft actor-critic, or critics alone: the follower maximises E Σ γ^t (r_x(s,a) − τ log π(a|s)) by updates on batches from a replay.

    τ is that of ``problem.regularizer``, and stays so unless ``target_entropy`` is given. It is then tuned, and starts from there. That
    is a choice to make with care: it changes the lower-level problem under the upper level's feet. ``Response.temperature`` says which
    τ the answer belongs to.

    Rewards are computed from r_x when a batch is sampled, so no label is stale when x changes. Only a terminated step cuts the
    bootstrap; a truncated one does not.

    Args:
        steps: environment steps of one solve.
        num_envs: N parallel copies of the environment.
        update_every: steps of all N copies between rounds of updates.
        updates_per_step: gradient updates for each environment step; what one solve leaves due the next one makes.
        learning_starts: transitions collected by uniform actions before the first update.
        batch_size: transitions in an update.
        hidden: widths of the hidden layers of each network.
        learning_rate: of Adam, for all that learns.
        polyak: how far the target critics move towards the critics; 1 copies them.
        capacity: of the replay.
        target_every: gradient updates from one such move to the next.
        adam_epsilon: Adam's ε.
        anneal_steps: environment steps, over all solves, in which the learning rate falls linearly to ``final_learning_rate``, where it
            stays; None keeps it as it is.
        final_learning_rate: see there.
        target_entropy: what τ is tuned towards; None keeps τ fixed.
        graph_updates: K updates that are one captured CUDA graph (see ``graphs.GraphedUpdates``); 0 launches their kernels one by one,
            and is all that a CPU can do. A round of updates, ``update_every · num_envs · updates_per_step`` of them, should be K or more.

    Raises:
        InvalidProblem: a number is out of range.
    """

    takes: ClassVar[tuple[str, str]]
    """The attribute of a world whose actions this solver takes, and the word for them."""

    steps: int = 1000
    num_envs: int = 1
    update_every: int = 1
    updates_per_step: float = 1.0
    learning_starts: int = 1000
    batch_size: int = 256
    hidden: tuple[int, ...] = (256, 256)
    learning_rate: float = 3e-4
    polyak: float = 0.005
    capacity: int = 1_000_000
    target_every: int = 1
    adam_epsilon: float = 1e-8
    anneal_steps: int | None = None
    final_learning_rate: float = 0.0
    target_entropy: float | None = None
    graph_updates: int = 0

    def __post_init__(self) -> None:
        check_numbers(self)
        for name in ("steps", "num_envs", "update_every", "batch_size", "capacity", "target_every"):
            if getattr(self, name) < 1:
                raise InvalidProblem(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.steps < self.num_envs:
            raise InvalidProblem(f"a solve of {self.steps} steps is less than one step of {self.num_envs} environments")
        hidden: Any = self.hidden
        if (
            not isinstance(hidden, tuple | list)
            or not hidden
            or not all(isinstance(width, Integral) and int(width) > 0 for width in hidden)
        ):
            raise InvalidProblem(f"hidden is {self.hidden!r}: there must be at least one layer, of positive width, such as (256, 256)")
        if self.steps // self.num_envs < self.update_every or self.learning_starts > self.capacity:
            raise InvalidProblem(
                "it would never learn: a solve must be longer than update_every, and the replay must hold learning_starts transitions"
            )
        for name in ("learning_starts", "updates_per_step", "learning_rate", "final_learning_rate", "graph_updates"):
            if not 0 <= getattr(self, name) < inf:
                raise InvalidProblem(f"{name} is {getattr(self, name)}: it must be finite and not negative")
        if not 0.0 < self.polyak <= 1.0 or not 0.0 < self.adam_epsilon < inf:
            raise InvalidProblem(
                f"polyak is {self.polyak} and adam_epsilon {self.adam_epsilon}: take 0 < polyak ≤ 1 and a positive, finite ε"
            )
        if self.anneal_steps is not None and self.anneal_steps < 1:
            raise InvalidProblem(f"anneal_steps is {self.anneal_steps}: it must be at least 1, or None for a constant learning rate")

    def start(self, problem: Any) -> Response:
        """The follower before it has seen any x: uniform actions.

        Raises:
            UnsupportedProblem: as for ``solve``.
        """
        self._check(problem)
        return Response(policy=problem.world.uniform(), gap=torch.tensor(float("inf"), device=problem.reward.device))

    def solve(
        self, problem: Any, x: Tensor, *, warm: Response | None = None, budget: Budget | None = None, generator: torch.Generator
    ) -> Response:
        """Learn on for ``steps`` environment steps under r_x.

        An exception in here, a ``KeyboardInterrupt`` too, leaves ``warm`` as good as it was.

        Args:
            problem: a simulated world under Shannon's regularizer.
            x: [D].
            warm: what an earlier solve returned; its replay and episodes are continued.
            budget: ``steps`` limits the environment steps, and the updates too.
            generator: the source of every draw.

        Returns:
            a frozen policy; ``gap`` is the mean |soft TD error| of both critics on a sampled batch, ``steps`` counts gradient updates.

        Raises:
            UnsupportedProblem: the problem is of another kind, or ``warm`` is of another problem.
            InvalidProblem: the soft TD error is not finite any more.
        """
        self._check(problem)
        setting = self._setting(problem)
        state = self._begin(problem, setting, warm, generator)
        learner = self._learner(setting, state.networks, state.updates)
        policy, label = self._policy(problem, setting, state.networks), self._labeller(problem, x.detach(), generator)

        def draw() -> Any:
            return label(state.replay.sample(self.batch_size, generator))

        def update(count: int) -> None:
            for _ in range(count):
                learner.update(draw())

        if self.graph_updates:
            update = self._graphed(problem, x.detach(), learner, state.replay, generator)
        limit = None if budget is None else budget.steps
        rounds = (self.steps if limit is None else min(self.steps, limit)) // self.num_envs
        due, updates = state.due, 0
        for turn in range(1, rounds + 1):
            learnt = state.replay.written >= self.learning_starts
            _collect(state, policy if learnt else problem.world.uniform(), generator)
            if state.replay.written < self.learning_starts:
                continue
            due += self.num_envs * self.updates_per_step
            if turn % self.update_every == 0:
                count = int(due) if limit is None else min(int(due), limit - updates)
                learner.learning_rate.fill_(self._rate(state.env_steps + turn * self.num_envs))
                update(count)
                due, updates = due - int(due), updates + count
        env_steps = rounds * self.num_envs
        return Response(
            policy.clone(),
            gap=_gap(learner, draw()) if len(state.replay) else torch.tensor(float("inf"), device=x.device),
            steps=updates,
            env_steps=env_steps,
            state=replace(
                state,
                env_steps=state.env_steps + env_steps,
                updates=state.updates + updates,
                due=due,
                moment=getattr(state.simulation, "moment", None),
            ),
            temperature=None if self.target_entropy is None else float(learner.temperature),
        )

    def _graphed(self, problem: Any, x: Tensor, learner: Learner[Any, Any], replay: Any, generator: torch.Generator) -> GraphedUpdates:
        device = learner.networks.critic.device
        if device.type != "cuda":
            raise UnsupportedProblem(f"graph_updates needs a reward on a CUDA device, and this one is on {device}; take graph_updates=0")
        return self._blocks(problem, x, learner, replay, torch.Generator(device=device).manual_seed(draw_seed(generator)))

    def _blocks(self, problem: Any, x: Tensor, learner: Learner[Any, Any], replay: Any, generator: torch.Generator) -> GraphedUpdates:
        """Updates that draw from a generator on the networks' device, and from that of r_x where it has one."""
        label, reward = self._labeller(problem, x, generator), problem.reward
        others = [reward.generator] if isinstance(reward, Drawing) and reward.generator is not None else []
        return GraphedUpdates(learner, replay, label, batch_size=self.batch_size, block=self.graph_updates, generators=(generator, *others))

    def _rate(self, env_steps: int) -> float:
        if self.anneal_steps is None:
            return self.learning_rate
        return self.learning_rate + min(1.0, env_steps / self.anneal_steps) * (self.final_learning_rate - self.learning_rate)

    def _begin(self, problem: Any, setting: Setting, warm: Response | None, generator: torch.Generator) -> OffPolicyState:
        """The state to work on: networks of its own, and a simulation that is ready for an action."""
        world, device = problem.world, problem.reward.device
        state = None if warm is None else warm.state
        if state is None:
            state = OffPolicyState(ActorCritic.initial(setting, generator, device), self._replay(problem))
        elif isinstance(state, OffPolicyState) and state.networks.fits(setting):
            state = replace(state, networks=state.networks.clone())
        else:
            raise UnsupportedProblem(
                f"the warm start is not {type(self).__name__}'s for this problem and these hidden layers; begin with solver.start(problem)"
            )
        simulation = state.simulation
        if simulation is None or not simulation.ready or len(simulation.observations) != self.num_envs:
            state = replace(state, simulation=self._episodes(world, state.moment, generator))
        return state

    def _episodes(self, world: Any, moment: Any, generator: torch.Generator) -> Any:
        """Live episodes that go on from a moment, or new ones."""
        if moment is None or len(moment.observations) != self.num_envs:
            return world.open(self.num_envs, draw_seed(generator))
        simulation = world.open(self.num_envs, 0)
        simulation.go_to(moment)
        return simulation

    def lost(self, problem: Any, response: Response) -> str | None:
        """What a response that comes from a checkpoint lacks, in words; None where a run goes on bit for bit from it."""
        state = response.state
        if not isinstance(state, OffPolicyState) or state.simulation is not None or state.moment is not None:
            return None
        return f"moments of this {type(problem.world).__name__} cannot be kept, and the follower starts new episodes"

    def _rates(self) -> Rates:
        return Rates(self.learning_rate, self.adam_epsilon, self.polyak, self.target_every)

    def _check(self, problem: Any) -> None:
        attribute, words = self.takes
        if problem.tabular or not (hasattr(problem.world, "open") and hasattr(problem.world, attribute)):
            raise UnsupportedProblem(
                f"{type(self).__name__} needs a simulated world with {words} actions, such as worlds.VectorWorld; for this problem use {fitting_solver(problem)}"
            )
        if not isinstance(problem.regularizer, Shannon):
            raise UnsupportedProblem(
                f"{type(self).__name__} solves problems under Shannon entropy, not {type(problem.regularizer).__name__}; use regularizers.Shannon(temperature)"
            )

    @abstractmethod
    def _setting(self, problem: Any) -> Setting:
        """What the updates must know."""

    @abstractmethod
    def _replay(self, problem: Any) -> Any:
        """An empty replay."""

    @abstractmethod
    def _learner(self, setting: Setting, networks: ActorCritic, updates: int) -> Learner[Any, Any]:
        """The updates of some networks, which have had so many."""

    @abstractmethod
    def _policy(self, problem: Any, setting: Setting, networks: ActorCritic) -> Any:
        """The policy that the networks make, as they go on learning."""

    @abstractmethod
    def _labeller(self, problem: Any, x: Tensor, generator: torch.Generator) -> Callable[[Batch], Any]:
        """What makes a batch of transitions one that an update takes, with r_x of now."""


def _collect(state: OffPolicyState, policy: Any, generator: torch.Generator) -> None:
    """One step in each of the N copies, kept in the replay.

    Raises:
        InvalidProblem: the policy's actions are not finite, and neither simulator nor replay has seen them.
    """
    observations = state.simulation.observations
    actions = policy.sample(observations, generator)
    if not bool(actions.isfinite().all()):
        raise InvalidProblem(
            "the follower's actions are not finite, so its losses are not: r_x at this x is not finite, or the learning rate is too high"
        )
    moved = state.simulation.step(actions)
    terms = () if moved.terms is None else (moved.terms,)
    state.replay.add(observations, actions, moved.following, moved.terminated, moved.rewards, *terms)


def _gap(learner: Learner[Any, Any], batch: Any) -> Tensor:
    """The mean |soft TD error| of both critics on a batch: [].

    Raises:
        InvalidProblem: it is not finite.
    """
    gap = learner.residual(batch).abs().mean()
    if not bool(gap.isfinite()):
        raise InvalidProblem(
            f"the soft TD error is {float(gap)} after {learner.updates} updates: r_x at this x is not finite, or the learning rate is too high"
        )
    return gap
