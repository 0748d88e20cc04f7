"""Soft actor-critic: the follower of worlds with continuous actions (arXiv 1812.05905)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.numerics import draw_seed
from bilevel_gym.regularizers import Shannon
from bilevel_gym.solvers.actor_critic import ActorCritic, Labelled, Learner, Setting
from bilevel_gym.solvers.base import fitting_solver
from bilevel_gym.solvers.networks import GaussianPolicy
from bilevel_gym.solvers.replay import Replay
from bilevel_gym.types import Budget, Response

__all__ = ["SAC", "SACState"]


@dataclass(frozen=True)
class SACState:
    """The warm start of SAC: tensors and numbers, and one live part that a checkpoint leaves out.

    A solve leaves the networks in here as they are: it works on copies. Replay and simulation are shared and move on, which does
    no harm to a state that is used again, since transitions carry no r_x; ``fork`` gives a state that shares nothing.
    """

    networks: ActorCritic
    """Flat parameters with Adam's memory."""
    replay: Replay
    """Transitions without r_x."""
    env_steps: int = 0
    """Environment steps ever taken."""
    updates: int = 0
    """Gradient updates ever made."""
    simulation: Any = field(default=None, metadata={"transient": True})
    """The live episodes; a state without them (read from a checkpoint, or forked) starts new ones."""

    def fork(self) -> SACState:
        """A state that shares nothing with this one and starts new episodes. Cost: a copy of the replay."""
        return replace(self, networks=self.networks.clone(), replay=self.replay.copy(), simulation=None)


@dataclass(frozen=True)
class SAC:
    """Soft actor-critic with two critics and a fixed temperature, that of ``problem.regularizer``.

    The follower maximises E Σ γ^t (r_x(s,a) − τ log π(a|s)). Log-densities are those of actions scaled to [−1, 1], so that τ means
    the same whatever the units of the box are; in the environment's units log π differs by a constant. τ is not tuned: that would
    change the lower-level problem under the upper level's feet.

    Rewards are computed from r_x when a batch is sampled, so no label is stale when x changes. Only a terminated step cuts the
    bootstrap; a truncated one does not.

    Args:
        steps: environment steps of one solve.
        num_envs: N parallel copies of the environment.
        update_every: steps of all N copies between rounds of updates.
        updates_per_step: gradient updates for each environment step.
        learning_starts: transitions collected by uniform actions before the first update.
        batch_size: transitions in an update.
        hidden: widths of the hidden layers of actor and critics.
        learning_rate: of Adam, for actor and critics.
        polyak: how far the target critics move towards the critics in an update.
        capacity: of the replay.

    Raises:
        InvalidProblem: a number is out of range.
    """

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

    def __post_init__(self) -> None:
        for name in ("steps", "num_envs", "update_every", "batch_size", "capacity"):
            if getattr(self, name) < 1:
                raise InvalidProblem(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.steps < self.num_envs:
            raise InvalidProblem(f"a solve of {self.steps} steps is less than one step of {self.num_envs} environments")
        if not self.hidden or min(self.hidden) < 1:
            raise InvalidProblem(f"hidden is {self.hidden}: there must be at least one layer, of positive width")
        if self.steps // self.num_envs < self.update_every or self.learning_starts > self.capacity:
            raise InvalidProblem(
                "it would never learn: a solve must be longer than update_every, and the replay must hold learning_starts transitions"
            )
        if not min(self.learning_starts, self.updates_per_step) >= 0 or not self.learning_rate >= 0 or not 0.0 < self.polyak <= 1.0:
            raise InvalidProblem("learning_starts, updates_per_step and learning_rate must not be negative, and polyak must be in (0, 1]")

    def start(self, problem: Any) -> Response:
        """The follower before it has seen any x: uniform actions.

        Raises:
            UnsupportedProblem: as for ``solve``.
        """
        _check(problem)
        return Response(policy=problem.world.uniform(), gap=torch.tensor(float("inf"), device=problem.reward.device))

    def solve(
        self, problem: Any, x: Tensor, *, warm: Response | None = None, budget: Budget | None = None, generator: torch.Generator
    ) -> Response:
        """Learn on for ``steps`` environment steps under r_x.

        An exception in here, a ``KeyboardInterrupt`` too, leaves ``warm`` as good as it was.

        Args:
            problem: continuous actions, with a ``VectorWorld`` or one like it, under Shannon's regularizer.
            x: [D].
            warm: what an earlier solve returned; its replay and episodes are continued.
            budget: ``steps`` limits the environment steps, and the updates too.
            generator: the source of every draw.

        Returns:
            a frozen ``GaussianPolicy``; ``gap`` is the mean |soft TD error| of both critics on a sampled batch, ``steps`` counts
            gradient updates. Cost: see ``actor_critic.Learner.update``.

        Raises:
            UnsupportedProblem: the problem is a table, the regularizer is not Shannon's, or ``warm`` is of another problem.
        """
        _check(problem)
        setting = self._setting(problem)
        run = _Run(self, problem, x.detach(), setting, self._begin(problem, setting, warm, generator), generator)
        limit = None if budget is None else budget.steps
        rounds = (self.steps if limit is None else min(self.steps, limit)) // self.num_envs
        due, updates = 0.0, 0
        for turn in range(1, rounds + 1):
            run.collect()
            if len(run.state.replay) < self.learning_starts:
                continue
            due += self.num_envs * self.updates_per_step
            if turn % self.update_every == 0:
                count = int(due) if limit is None else min(int(due), limit - updates)
                for _ in range(count):
                    run.learner.update(run.draw())
                due, updates = due - int(due), updates + count
        env_steps = rounds * self.num_envs
        state = replace(run.state, env_steps=run.state.env_steps + env_steps, updates=run.state.updates + updates)
        return Response(run.policy.clone(), gap=run.gap(), steps=updates, env_steps=env_steps, state=state)

    def _setting(self, problem: Any) -> Setting:
        observations, actions = problem.world.observation_size, problem.world.action_size
        actor, critic = (observations, *self.hidden, 2 * actions), (observations + actions, *self.hidden, 1)
        return Setting(problem.world.discount, problem.regularizer.temperature, actor, critic)

    def _begin(self, problem: Any, setting: Setting, warm: Response | None, generator: torch.Generator) -> SACState:
        """The state to work on: networks of its own, and a simulation that is ready for an action."""
        world, device = problem.world, problem.reward.device
        state = None if warm is None else warm.state
        if state is None:
            replay = Replay(world.observation_size, world.action_size, self.capacity, device)
            state = SACState(ActorCritic.initial(setting, generator, device), replay)
        elif isinstance(state, SACState) and state.networks.fits(setting):
            state = replace(state, networks=state.networks.clone())
        else:
            raise UnsupportedProblem(
                "the warm start is not SAC's for this problem and these hidden layers; begin with solver.start(problem)"
            )
        simulation = state.simulation
        if simulation is None or not simulation.ready or len(simulation.observations) != self.num_envs:
            state = replace(state, simulation=world.open(self.num_envs, draw_seed(generator)))
        return state


class _Run:
    """What stays the same during one solve, at hand."""

    def __init__(self, solver: SAC, problem: Any, x: Tensor, setting: Setting, state: SACState, generator: torch.Generator) -> None:
        device = state.networks.actor.device
        self.solver, self.problem, self.x, self.state, self.generator = solver, problem, x, state, generator
        rates = {"learning_rate": solver.learning_rate, "polyak": solver.polyak}
        self.learner = Learner(state.networks, setting, batch_size=solver.batch_size, **rates)
        low, high = problem.world.action_low.to(device), problem.world.action_high.to(device)
        self.centre, self.half = (low + high) / 2.0, (high - low) / 2.0
        self.policy = GaussianPolicy(state.networks.actor, setting.actor_sizes, low, high)

    def collect(self) -> None:
        """One step in each of the N copies, kept in the replay."""
        learnt = len(self.state.replay) >= self.solver.learning_starts
        observations = self.state.simulation.observations
        policy = self.policy if learnt else self.problem.world.uniform()
        actions = policy.sample(observations, self.generator)
        moved = self.state.simulation.step(actions)
        self.state.replay.add(observations, actions, moved.following, moved.terminated, moved.rewards)

    def draw(self) -> Labelled:
        """A batch with r_x of now."""
        batch = self.state.replay.sample(self.solver.batch_size, self.generator)
        with torch.no_grad():
            rewards = self.problem.reward.along(self.x, batch.states, batch.actions).to(batch.states.dtype)
        noise = torch.randn(2, *batch.actions.shape, generator=self.generator, device=self.generator.device).to(batch.actions.device)
        return Labelled(batch.states, (batch.actions - self.centre) / self.half, batch.following, 1.0 - batch.terminated, rewards, noise)

    def gap(self) -> Tensor:
        """The mean |soft TD error| on a sampled batch: []; infinite where nothing was ever collected."""
        if not len(self.state.replay):
            return torch.tensor(float("inf"), device=self.centre.device)
        return self.learner.residual(self.draw()).abs().mean()


def _check(problem: Any) -> None:
    if problem.tabular or not (hasattr(problem.world, "open") and hasattr(problem.world, "action_low")):
        raise UnsupportedProblem(
            f"SAC needs a simulated world with continuous actions, such as worlds.VectorWorld; for this problem use {fitting_solver(problem)}"
        )
    if not isinstance(problem.regularizer, Shannon):
        name = type(problem.regularizer).__name__
        raise UnsupportedProblem(f"SAC solves problems under Shannon entropy, not {name}; use regularizers.Shannon(temperature)")
