"""Any algorithm of Stable-Baselines3 as the follower."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from bilevel_gym.arguments import checked
from bilevel_gym.errors import CheckpointError, InvalidProblem, UnknownName, UnsupportedProblem, require
from bilevel_gym.numerics import draw_seed
from bilevel_gym.regularizers import Shannon
from bilevel_gym.solvers.base import fitting_solver
from bilevel_gym.solvers.sb3_policy import SB3Policy, private_randomness
from bilevel_gym.types import Budget, Response

__all__ = ["SB3Solver", "SB3State", "from_sb3"]

DECIDED = {
    "env": "it is the problem's world",
    "gamma": "it is the problem's discount",
    "device": "it is the problem's",
    "seed": "randomness comes from the environment's generator",
    "replay_buffer_class": "rewards are computed when a batch is sampled, which needs a buffer of our own",
    "optimize_memory_usage": "rewards are computed when a batch is sampled, which needs a buffer of our own",
    "tensorboard_log": "updates are not logged; give the agent a callback",
}
"""Arguments of algorithms that are not the caller's to choose, and why."""


@dataclass(frozen=True)
class SB3State:
    """The warm start: a model that no solve changes, for each works on a copy; the copies share the replay.

    A checkpoint keeps the parameters of networks and optimizers, and neither replay nor episodes nor counters: a run that is resumed
    collects ``learning_starts`` steps again before it learns on, and is not the run that never stopped.
    """

    parameters: Mapping[str, Any]
    """State dicts, by name."""
    model: Any = field(default=None, metadata={"transient": True})
    """The algorithm with its networks, optimizers and replay."""
    simulation: Any = field(default=None, metadata={"transient": True})
    """The live episodes."""

    def fork(self) -> SB3State:
        """A state that shares nothing with this one and starts new episodes. Cost: a copy of the model and of its replay."""
        if self.model is None:
            return self
        with private_randomness(0, self.model.device):
            model = _copy(self.model, self.model.env)
        if buffer := getattr(self.model, "replay_buffer", None):
            model.replay_buffer = buffer.copy()
        return replace(self, model=model, simulation=None)


@dataclass(frozen=True)
class SB3Solver:
    """Make one with ``from_sb3``."""

    algorithm: Any
    """A class such as ``stable_baselines3.SAC``."""
    arguments: Mapping[str, Any]
    """Of its constructor."""
    _: KW_ONLY
    steps: int
    """Environment steps of a solve."""
    num_envs: int
    """N."""
    policy: str | None
    """Its first argument; None is that of the world's observations."""
    soft: bool
    """Whether it solves the entropy-regularized problem."""

    def start(self, problem: Any) -> Response:
        """The follower before it has seen any x: uniform actions.

        Raises:
            UnsupportedProblem: as for ``solve``.
        """
        self._check(problem)
        return Response(policy=problem.world.uniform(), gap=_unknown(problem), soft=self.soft)

    def solve(
        self, problem: Any, x: Tensor, *, warm: Response | None = None, budget: Budget | None = None, generator: torch.Generator
    ) -> Response:
        """Learn on for ``steps`` environment steps under r_x (on-policy algorithms: up to the end of a rollout).

        Global random generators, those of torch, NumPy and Python, are lent to the algorithm with a seed from ``generator``, and put back.
        An exception in here leaves ``warm`` as good as it was.

        Args:
            problem: a simulated world.
            x: [D].
            warm: what an earlier solve returned; its networks, optimizers, replay and episodes are continued.
            budget: ``steps`` limits the environment steps.
            generator: the source of every draw.

        Returns:
            a frozen ``SB3Policy``; ``gap`` is the mean |soft TD error| of both critics on a sampled batch for SAC, infinite for others,
            which certify nothing; ``steps`` are the updates as the algorithm counts them.

        Raises:
            UnsupportedProblem: the problem is of another kind, or the algorithm does not take it.
            InvalidProblem: the soft TD error is not finite any more.
        """
        self._check(problem)
        state = None if warm is None else self._fitting(warm.state)
        simulation = None if state is None else state.simulation
        if simulation is None or not simulation.ready or len(simulation.observations) != self.num_envs:
            simulation = problem.world.open(self.num_envs, draw_seed(generator))
        steps = self.steps if budget is None or budget.steps is None else min(self.steps, budget.steps)
        with private_randomness(draw_seed(generator), problem.reward.device), torch.enable_grad():
            model = self._model(problem, x.detach(), state, simulation)
            played, updates = model.num_timesteps, model._n_updates
            model.learn(steps, reset_num_timesteps=False, log_interval=None)
            return Response(
                _frozen(model),
                gap=_gap(model, problem) if self.soft else _unknown(problem),
                soft=self.soft,
                steps=model._n_updates - updates,
                env_steps=model.num_timesteps - played,
                state=SB3State(model.get_parameters(), model, simulation),
            )

    def revive(self, problem: Any, response: Response) -> Response:
        """The response with a network to its policy again, where it comes from a checkpoint.

        Raises:
            CheckpointError: the networks in it are of another algorithm or of other sizes.
        """
        state = response.state
        if not isinstance(state, SB3State) or state.model is not None:
            return response
        with private_randomness(0, problem.reward.device):
            model = self._model(problem, None, state, None)
            return replace(response, policy=_frozen(model), state=replace(state, model=model))

    def lost(self, problem: Any, response: Response) -> str | None:
        """What a response that comes from a checkpoint lacks, in words."""
        state = response.state
        if not isinstance(state, SB3State) or state.simulation is not None:
            return None
        return f"of {self.algorithm.__name__} only networks and optimizers are kept: it starts new episodes with an empty replay"

    def _fitting(self, state: Any) -> SB3State | None:
        """The state, if it is one of this solver's.

        Raises:
            UnsupportedProblem: it is not.
        """
        if state is None:
            return None
        model: Any = state.model if isinstance(state, SB3State) else self
        if model is not None and (type(model) is not self.algorithm or model.n_envs != self.num_envs):
            raise UnsupportedProblem(
                f"the warm start is not one of {self.algorithm.__name__} on {self.num_envs} copies; begin with solver.start(problem)"
            )
        found: SB3State = state
        return found

    def _model(self, problem: Any, x: Tensor | None, state: SB3State | None, simulation: Any) -> Any:
        """A model of one's own, whose rewards are r_x from now on."""
        from stable_baselines3.common.logger import Logger

        from bilevel_gym.solvers.sb3_parts import FollowerEnv, Relabelled

        def label(states: Tensor, actions: Tensor) -> Tensor:
            """r_x, without a graph: [n]."""
            with torch.no_grad():
                rewards: Tensor = problem.reward.along(x, states, actions)
            return rewards.float()

        env = FollowerEnv(problem.world, self.num_envs, simulation, label)
        if state is not None and state.model is not None:
            model = _copy(state.model, env)
            model.replay_buffer = getattr(state.model, "replay_buffer", None)
        else:
            model = self._new(problem, env, Relabelled)
            if state is not None:
                _restore(model, state.parameters)
        if isinstance(getattr(model, "replay_buffer", None), Relabelled):
            model.replay_buffer.label = label
        model.action_space.seed(int(torch.randint(2**31 - 1, ())))
        model.set_logger(Logger(None, []))
        return model

    def _new(self, problem: Any, env: Any, buffer: Any) -> Any:
        own = copy.deepcopy(dict(self.arguments))  # the constructors write into the dictionaries that they are given
        arguments = {"gamma": problem.world.discount, "device": problem.reward.device, **own}
        if self.soft:
            arguments["ent_coef"] = problem.regularizer.temperature
        if "replay_buffer_class" in inspect.signature(self.algorithm).parameters:
            arguments["replay_buffer_class"] = buffer
            _refuse_a_large_replay(self.algorithm, arguments, env)
        policy = self.policy or ("CnnPolicy" if len(env.observation_space.shape) == 3 else "MlpPolicy")
        try:
            return self.algorithm(policy, env, **arguments)
        except (AssertionError, ValueError, TypeError) as error:  # how it refuses actions, observations and numbers
            raise UnsupportedProblem(
                f"{self.algorithm.__name__} does not take this problem with these arguments: {' '.join(str(error).split())}"
            ) from error

    def _check(self, problem: Any) -> None:
        if problem.tabular or not hasattr(problem.world, "observation_shape"):
            raise UnsupportedProblem(
                f"agents of Stable-Baselines3 need a simulated world, such as worlds.VectorWorld; for this problem use {fitting_solver(problem)}"
            )
        if self.soft and not isinstance(problem.regularizer, Shannon):
            raise UnsupportedProblem(
                f"{self.algorithm.__name__} values Shannon's entropy, not {type(problem.regularizer).__name__}; use regularizers.Shannon(temperature)"
            )


@checked
def from_sb3(
    algorithm: Any, *, steps: int = 1000, num_envs: int = 1, policy: str | None = None, soft: bool | None = None, **arguments: Any
) -> SB3Solver:
    """An algorithm of Stable-Baselines3 as a follower: ``from_sb3(stable_baselines3.SAC, steps=1000, learning_starts=500)``.

    SAC solves the entropy-regularized problem, at ``ent_coef`` = the problem's temperature; its log-densities are those of actions
    scaled to [−1, 1], as ours are. Off-policy algorithms compute the rewards of a batch under the x of the moment, so no label is stale.
    PPO, DQN and all others are not ``soft``: f of what they play is as good as any, and ``zero_order`` and ``cma_es`` descend it, but the
    formulas of ∇φ do not hold, and the estimators refuse them.

    Args:
        algorithm: a class of Stable-Baselines3, or of a package that builds on it.
        steps: environment steps of one solve.
        num_envs: N parallel copies of the environment.
        policy: its kind of networks; None takes ``"CnnPolicy"`` for stacks of pictures, ``"MlpPolicy"`` for flat observations.
        soft: whether its fixed point is the soft-optimal policy at ``ent_coef``; None says so of SAC alone.
        **arguments: of the algorithm's constructor, such as ``learning_rate`` or ``policy_kwargs``. Its replay keeps s and s' of every
            transition whole, so for pictures ``buffer_size`` has to be given: 10,000 of Atari are 564 MB (ours keeps each frame once).

    Returns:
        a ``LowerSolver``. A checkpoint keeps its networks and optimizers, and not its replay (see ``SB3State``).

    Raises:
        MissingExtra: Stable-Baselines3 is not installed.
        UnknownName: the algorithm has no such argument.
        InvalidProblem: no class of an algorithm, an argument that the problem decides, or a number that is not positive.
    """
    require("stable_baselines3", "sb3")
    from stable_baselines3 import SAC
    from stable_baselines3.common.base_class import BaseAlgorithm

    if not (isinstance(algorithm, type) and issubclass(algorithm, BaseAlgorithm)):
        raise InvalidProblem(f"algorithm is {algorithm!r}: give a class, such as stable_baselines3.SAC")
    known = list(inspect.signature(algorithm).parameters)
    decided = DECIDED if soft is False else {**DECIDED, "ent_coef": "it is the problem's temperature"}
    is_soft = issubclass(algorithm, SAC) if soft is None else soft
    for name in arguments:
        if name not in known:
            raise UnknownName(f"argument of {algorithm.__name__}", name, [one for one in known if one not in DECIDED])
        if name in decided and (name != "ent_coef" or is_soft):
            raise InvalidProblem(f"{name} is not for from_sb3 to set: {decided[name]}")
    if "replay_buffer_class" in known and arguments.get("n_steps", 1) != 1:
        raise InvalidProblem("returns of several steps hold rewards of an older x: leave n_steps at 1")
    if steps < num_envs or num_envs < 1:
        raise InvalidProblem(f"steps is {steps} and num_envs {num_envs}: one step at least in each of the copies, of which there is one")
    return SB3Solver(algorithm, dict(arguments), steps=steps, num_envs=num_envs, policy=policy, soft=is_soft)


def _refuse_a_large_replay(algorithm: Any, arguments: Mapping[str, Any], env: Any) -> None:
    if len(env.observation_space.shape) == 3 and "buffer_size" not in arguments:
        size = inspect.signature(algorithm).parameters["buffer_size"].default
        needed = 2 * size * prod(env.observation_space.shape) / 1e9
        raise InvalidProblem(
            f"a replay of {size} transitions of pictures, which {algorithm.__name__} keeps twice, takes {needed:.0f} GB: say how large it may be, such as buffer_size=10_000"
        )


def _copy(model: Any, env: Any) -> Any:
    """Another model in the same place, without a replay of its own yet. It never leaves the memory, so its pickle is to be trusted."""
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return type(model).load(file, env=env, device=model.device)


def _restore(model: Any, parameters: Mapping[str, Any]) -> None:
    try:
        model.set_parameters(dict(parameters), device=model.device)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"the state holds networks that are not those of {type(model).__name__} with these arguments: build the solver as it was built then"
        ) from error


def _frozen(model: Any) -> SB3Policy:
    """The policy of a model that learns no more: later solves go on with copies of it."""
    model.policy.set_training_mode(False)
    return SB3Policy(model.policy)


@torch.no_grad()
def _gap(model: Any, problem: Any) -> Tensor:
    """The mean |soft TD error| of the critics of SAC on a sampled batch: []; infinite for another algorithm, or without a transition."""
    from stable_baselines3 import SAC

    buffer = model.replay_buffer
    if not buffer.size() or not isinstance(model, SAC):
        return _unknown(problem)
    batch = buffer.sample(model.batch_size)
    actions, density = model.actor.action_log_prob(batch.next_observations)
    following = torch.cat(model.critic_target(batch.next_observations, actions), 1).amin(1, keepdim=True)
    target = batch.rewards + (1.0 - batch.dones) * model.gamma * (following - model.ent_coef_tensor * density.reshape(-1, 1))
    gap: Tensor = (torch.cat(model.critic(batch.observations, batch.actions), 1) - target).abs().mean()
    if not bool(gap.isfinite()):
        raise InvalidProblem(f"the soft TD error is {float(gap)}: r_x at this x is not finite, or the learning rate is too high")
    return gap


def _unknown(problem: Any) -> Tensor:
    return torch.tensor(float("inf"), device=problem.reward.device)
