"""Soft actor-critic: the follower of worlds with continuous actions (arXiv 1812.05905)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam

from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.numerics import split_flat
from bilevel_gym.regularizers import Shannon
from bilevel_gym.solvers.networks import GaussianPolicy, gaussian, initial_parameters, layer_shapes, perceptron, squash, twin_perceptron
from bilevel_gym.solvers.replay import Batch, Replay
from bilevel_gym.types import Budget, Response

__all__ = ["SAC", "Labelled", "SACState", "Setting"]


class Labelled(NamedTuple):
    """A batch with its rewards under the current x, actions in [−1, 1], and the noise that an update needs."""

    states: Tensor
    """[n, observation] s."""
    actions: Tensor
    """[n, action] a in [−1, 1]."""
    following: Tensor
    """[n, observation] s'."""
    going: Tensor
    """[n] 0 where s' is an end, 1 elsewhere, also after a truncation."""
    rewards: Tensor
    """[n] r_x(s, a)."""
    noise: Tensor
    """[2, n, action] standard normal: for the actions at s, and at s'."""


@dataclass(frozen=True)
class Setting:
    """What an update must know of a problem."""

    discount: float
    temperature: float
    actor_sizes: tuple[int, ...]
    """(observation, *hidden, 2·action)."""
    critic_sizes: tuple[int, ...]
    """(observation + action, *hidden, 1)."""
    low: Tensor
    """[action]."""
    high: Tensor
    """[action]."""


@dataclass(frozen=True)
class SACState:
    """The warm start of SAC: plain tensors and numbers, and one live part that a checkpoint leaves out.

    A solve changes none of the networks in here: it works on copies. Replay and simulation are shared and move on, which does no
    harm to a state that is used again, since transitions carry no r_x; ``fork`` gives a state that shares nothing.
    """

    actor: Tensor
    """[P] flat parameters."""
    critic: Tensor
    """[2Q] flat parameters of both critics, side by side in each layer."""
    target: Tensor
    """[2Q] the slowly following copy."""
    actor_moments: Tensor
    """[2, P] Adam's means of g and g²."""
    critic_moments: Tensor
    """[2, 2Q]."""
    clocks: Tensor
    """[2] Adam's steps of actor and critic."""
    replay: Replay
    """Transitions without r_x."""
    env_steps: int = 0
    """Environment steps ever taken."""
    updates: int = 0
    """Gradient updates ever made."""
    simulation: Any = None
    """The live episodes; a state without them (read from a checkpoint) starts new ones."""

    def fork(self) -> SACState:
        """A state that shares nothing with this one and starts new episodes. Cost: a copy of the replay."""
        return replace(self.working_copy(), replay=self.replay.copy(), simulation=None)

    def working_copy(self) -> SACState:
        """A state with networks of its own, and the same replay and simulation."""
        names = ("actor", "critic", "target", "actor_moments", "critic_moments", "clocks")
        return replace(self, **{name: getattr(self, name).clone() for name in names})


@dataclass(frozen=True)
class SAC:
    """Soft actor-critic with two critics and a fixed temperature, that of ``problem.regularizer``.

    The follower maximises E Σ γ^t (r_x(s,a) − τ log π(a|s)). Log-probabilities are those of actions scaled to [−1, 1], so that τ
    means the same whatever the units of the box are; in the environment's units log π differs by a constant. τ is not tuned: that
    would change the lower-level problem under the upper level's feet.

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
        counts = {name: getattr(self, name) for name in ("steps", "num_envs", "update_every", "batch_size", "capacity")}
        for name, count in counts.items():
            if count < 1:
                raise InvalidProblem(f"{name} is {count}: it must be at least 1")
        if self.steps < self.num_envs:
            raise InvalidProblem(f"a solve of {self.steps} steps is less than one step of {self.num_envs} environments")
        if min(self.learning_starts, self.updates_per_step, self.learning_rate) < 0 or not 0.0 < self.polyak <= 1.0:
            raise InvalidProblem("learning_starts, updates_per_step and learning_rate must not be negative, and polyak must be in (0, 1]")

    # ------------------------------------------------------------------------------------------ the contract

    def start(self, problem: Any) -> Response:
        """The follower before it has seen any x: uniform actions.

        Raises:
            UnsupportedProblem: see ``solve``.
        """
        self._check(problem)
        return Response(policy=problem.world.uniform(), gap=torch.tensor(float("inf"), device=problem.reward.device))

    def solve(self, problem: Any, x: Tensor, *, warm: Response | None = None, budget: Budget | None = None, generator: torch.Generator) -> Response:
        """Learn on for ``steps`` environment steps under r_x.

        An exception in here, a ``KeyboardInterrupt`` too, leaves ``warm`` as good as it was.

        Args:
            problem: continuous actions, with a ``VectorWorld`` or one like it, under Shannon's regularizer.
            x: [D].
            warm: what an earlier solve returned; its replay and episodes are continued.
            budget: ``steps`` limits environment steps and updates, each.
            generator: the source of every draw.

        Returns:
            a frozen ``GaussianPolicy``; ``gap`` is the mean |soft TD error| of both critics on a sampled batch.

        Raises:
            UnsupportedProblem: the problem is a table, the regularizer is not Shannon's, or ``warm`` is of another problem.
        """
        self._check(problem)
        setting = self._setting(problem)
        state = self._begin(problem, setting, warm, generator)
        limit = self.steps if budget is None or budget.steps is None else min(self.steps, budget.steps)
        x = x.detach()
        due, updates, rounds = 0.0, 0, limit // self.num_envs
        most = updates_limit = None if budget is None or budget.steps is None else budget.steps
        for turn in range(1, rounds + 1):
            self._collect(problem, setting, state, generator)
            if len(state.replay) < self.learning_starts:
                continue
            due += self.num_envs * self.updates_per_step
            if turn % self.update_every == 0:
                count = int(due) if updates_limit is None else min(int(due), updates_limit - updates)
                for _ in range(count):
                    self.update(setting, state, self._draw(problem, setting, state, x, generator))
                due, updates = due - int(due), updates + count
        del most
        gap = torch.tensor(float("inf"), device=state.actor.device)
        if len(state.replay):
            gap = self.residual(setting, state, self._draw(problem, setting, state, x, generator)).abs().mean()
        env_steps = rounds * self.num_envs
        state = replace(state, env_steps=state.env_steps + env_steps, updates=state.updates + updates)
        return Response(self._policy(setting, state.actor.clone()), gap=gap, steps=updates, env_steps=env_steps, state=state)

    # ------------------------------------------------------------------------------------------ one update

    def update(self, setting: Setting, state: SACState, batch: Labelled) -> None:
        """One step of Adam on the critics, one on the actor, and one of the target critics, in place.

        critics: ½ Σ_i mean (Q_i(s,a) − y)²,  y = r + γ (min_i Q̄_i(s',a') − τ log π(a'|s'))
        actor:   mean τ log π(a|s) − min_i Q_i(s,a), with the critics that were just updated
        """
        critic = state.critic.detach().requires_grad_()
        loss = 0.5 * self._errors(setting, state, critic, batch).square().sum() / len(batch.states)
        self._descend(state.critic, torch.autograd.grad(loss, critic)[0], state.critic_moments, state.clocks[1])

        actor = state.actor.detach().requires_grad_()
        actions, log_density = self._act(setting, actor, batch.states, batch.noise[0])
        values = self._values(setting, state.critic, batch.states, actions).amin(0)
        loss = (setting.temperature * log_density - values).mean()
        self._descend(state.actor, torch.autograd.grad(loss, actor)[0], state.actor_moments, state.clocks[0])

        state.target.lerp_(state.critic, self.polyak)

    def residual(self, setting: Setting, state: SACState, batch: Labelled) -> Tensor:
        """The soft TD errors Q_i(s,a) − y of both critics: [2, n]."""
        with torch.no_grad():
            return self._errors(setting, state, state.critic, batch)

    def _errors(self, setting: Setting, state: SACState, critic: Tensor, batch: Labelled) -> Tensor:
        with torch.no_grad():
            actions, log_density = self._act(setting, state.actor, batch.following, batch.noise[1])
            ahead = self._values(setting, state.target, batch.following, actions).amin(0) - setting.temperature * log_density
            wanted = torch.addcmul(batch.rewards, batch.going, ahead, value=setting.discount)
        return self._values(setting, critic, batch.states, batch.actions) - wanted

    def _act(self, setting: Setting, actor: Tensor, states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return squash(*gaussian(perceptron(split_flat(actor, layer_shapes(setting.actor_sizes)), states)), noise)

    def _values(self, setting: Setting, critic: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        return twin_perceptron(split_flat(critic, layer_shapes(setting.critic_sizes, 2)), torch.cat([states, actions], -1))

    def _descend(self, parameters: Tensor, gradient: Tensor, moments: Tensor, clock: Tensor) -> None:
        adam(
            [parameters], [gradient], [moments[0]], [moments[1]], [], [clock],
            fused=True, amsgrad=False, beta1=0.9, beta2=0.999, lr=self.learning_rate, weight_decay=0.0, eps=1e-8, maximize=False,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------ around it

    def _collect(self, problem: Any, setting: Setting, state: SACState, generator: torch.Generator) -> None:
        """One step in each of the N copies, kept in the replay."""
        learnt = len(state.replay) >= self.learning_starts
        policy = self._policy(setting, state.actor) if learnt else problem.world.uniform()
        observations = state.simulation.observations
        actions = policy.sample(observations, generator)
        moved = state.simulation.step(actions)
        state.replay.add(observations, actions, moved.following, moved.terminated, moved.rewards)

    def _draw(self, problem: Any, setting: Setting, state: SACState, x: Tensor, generator: torch.Generator) -> Labelled:
        """A batch with r_x of now."""
        batch: Batch = state.replay.sample(self.batch_size, generator)
        with torch.no_grad():
            rewards = problem.reward.along(x, batch.states, batch.actions).to(batch.states.dtype)
        unit = (batch.actions - (setting.low + setting.high) / 2.0) / ((setting.high - setting.low) / 2.0)
        noise = torch.randn(2, *unit.shape, generator=generator, device=generator.device).to(unit.device)
        return Labelled(batch.states, unit, batch.following, 1.0 - batch.terminated, rewards, noise)

    def _begin(self, problem: Any, setting: Setting, warm: Response | None, generator: torch.Generator) -> SACState:
        """The state to work on: networks of its own, and a simulation that is ready for an action."""
        state = None if warm is None else warm.state
        if state is None:
            state = self._fresh(setting, generator, setting.low.device)
        elif not isinstance(state, SACState) or state.actor.numel() != _numel(setting.actor_sizes) or state.critic.numel() != 2 * _numel(setting.critic_sizes):
            raise UnsupportedProblem("the warm start is not one of SAC for this problem and these hidden layers; start from solver.start(problem)")
        else:
            state = state.working_copy()
        simulation = state.simulation
        if simulation is None or not simulation.ready or len(simulation.observations) != self.num_envs:
            seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
            state = replace(state, simulation=problem.world.open(self.num_envs, seed))
        return state

    def _fresh(self, setting: Setting, generator: torch.Generator, device: torch.device) -> SACState:
        actor = initial_parameters(setting.actor_sizes, None, generator, device)
        critic = initial_parameters(setting.critic_sizes, 2, generator, device)
        moments = [flat.new_zeros(2, flat.numel()) for flat in (actor, critic)]
        replay = Replay(setting.actor_sizes[0], setting.actor_sizes[-1] // 2, self.capacity, device)
        return SACState(actor, critic, critic.clone(), moments[0], moments[1], torch.zeros(2, device=device), replay)

    def _policy(self, setting: Setting, actor: Tensor) -> GaussianPolicy:
        return GaussianPolicy(actor, setting.actor_sizes, setting.low, setting.high)

    def _setting(self, problem: Any) -> Setting:
        world, device = problem.world, problem.reward.device
        observations, actions = world.observation_size, world.action_size
        actor, critic = (observations, *self.hidden, 2 * actions), (observations + actions, *self.hidden, 1)
        return Setting(world.discount, problem.regularizer.temperature, actor, critic, world.action_low.to(device), world.action_high.to(device))

    def _check(self, problem: Any) -> None:
        if problem.tabular or not hasattr(problem.world, "open"):
            raise UnsupportedProblem("SAC needs a world with continuous actions, such as worlds.VectorWorld; for tables use solvers.SoftPolicyIteration, which is exact")
        if not isinstance(problem.regularizer, Shannon):
            raise UnsupportedProblem(f"SAC solves problems under Shannon entropy, not {type(problem.regularizer).__name__}; use regularizers.Shannon(temperature)")


def _numel(sizes: Sequence[int]) -> int:
    return sum((inputs + 1) * outputs for inputs, outputs in zip(sizes, sizes[1:], strict=False))
