"""Many outer environments at once, as one batch of tensors on one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor

from bilevel_gym import checkpoint
from bilevel_gym.envs.bilevel_env import BilevelEnv, check_evaluation, generator_at
from bilevel_gym.envs.boundary import Observation, observe, read_x
from bilevel_gym.envs.oracle import Counters, ProblemOracle
from bilevel_gym.envs.rendering import picture
from bilevel_gym.errors import CheckpointError, InvalidProblem, UnsupportedProblem
from bilevel_gym.problem import stack
from bilevel_gym.types import Evaluation, OuterProblem, Response, SampledObjective

__all__ = ["BilevelVectorEnv", "Member", "VectorOracle", "vectorized"]


class Member(NamedTuple):
    """One of the problems of a batch, with all that an estimator asks for."""

    oracle: ProblemOracle
    """With a generator of its own."""
    response: Response
    """[S, A], without the axis B."""
    evaluation: Evaluation
    """f [] of this member, with its samples."""


class VectorOracle(ProblemOracle):
    """Solves and evaluations of a whole batch on the side, and the way to each of its members.

    Args:
        env: where the batch stands.
        generator: the source of draws that concern all members at once.
    """

    def __init__(self, env: BilevelVectorEnv, generator: torch.Generator) -> None:
        super().__init__(env.problem, env.solver, generator)
        self._env = env

    @property
    def members(self) -> list[Member]:
        """The problems of the batch one by one, each with response, evaluation, generator and counters of its own."""
        return self._env.members()

    def solve(self, x: Tensor, warm: Response | None = None) -> Response:
        """The responses at other x's: [B, D]."""
        response = super().solve(x, warm)
        for counters in self._env.counters:
            counters.lower_step += response.steps
        return response

    def evaluate(self, x: Tensor, response: Response) -> Evaluation:
        """Another look at responses: f [B]."""
        if not self._env.sampled:
            return super().evaluate(x, response)
        seen = [member.oracle.evaluate(x[i], _member(response, i)) for i, member in enumerate(self.members)]
        return Evaluation(torch.stack([evaluation.value for evaluation in seen]))


class BilevelVectorEnv(gym.vector.VectorEnv[Observation, np.ndarray, np.ndarray]):
    """N outer environments whose lower levels are solved as one batch: the same code with one more leading axis.

    Member i with seed s does what ``env`` does after ``env.reset(seed=s)``, to rounding. ``reset(seed=s)`` gives the members the seeds
    s, s + 1, …; a list gives each its own. Options are those of ``BilevelEnv``, with x [N, D].

    All episodes have the same length and end together. Autoreset is NEXT_STEP: the step after the end ignores its action, starts
    cold on the same instances, solves what a reset solves and nothing more, and has reward 0.

    Explicit objectives are evaluated as one batch, sampled ones member by member, each with its own generator.

    Args:
        env: what each member is; it is not stepped.
        num_envs: N.
        max_episode_steps: upper steps of an episode; None never truncates.

    Raises:
        InvalidProblem: N is not positive.
        UnsupportedProblem: the world is not a table.

    Cost: one batched solve a step; memory grows as N times the tables that differ between members.
    """

    metadata: dict[str, Any] = {**BilevelEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, env: BilevelEnv, num_envs: int = 1, *, max_episode_steps: int | None = None) -> None:
        if num_envs < 1:
            raise InvalidProblem(f"num_envs is {num_envs}: there must be one at least")
        if not env.problem.tabular:
            raise UnsupportedProblem("only tables are solved as a batch; use gym.make_vec(id, vectorization_mode='sync') for this id")
        self.num_envs, self.max_episode_steps = num_envs, max_episode_steps
        self.render_mode = env.render_mode
        self._env = env
        self.solver = env.solver
        self.problem: OuterProblem = env.problem
        """All members; tables that differ between them have an axis B."""
        self._problems: list[Any] = [env.problem] * num_envs
        self.single_action_space, self.single_observation_space = env.action_space, env.observation_space
        self.action_space, self.observation_space = (batch_space(space, num_envs) for space in (env.action_space, env.observation_space))
        device = env.problem.domain.device
        self._np_randoms = [np.random.default_rng(0) for _ in range(num_envs)]
        self._drawn_from = [np.random.default_rng(0) for _ in range(num_envs)]
        self._generators, self._asides = ([torch.Generator(device=device) for _ in range(num_envs)] for _ in range(2))
        self.counters = [Counters() for _ in range(num_envs)]
        self.elapsed = 0
        """Upper steps of the episodes so far."""
        self._seeded = False
        self._x: Tensor | None = None
        self._response: Response | None = None
        self._evaluation: Evaluation | None = None
        self._parts: list[Evaluation] = []
        self._memories: list[Any] = []

    # ------------------------------------------------------------------------------------------ what can be read

    @property
    def sampled(self) -> bool:
        """Whether f is a mean over samples, so that members are evaluated one by one."""
        return isinstance(self.problem.objective, SampledObjective)

    @property
    def x(self) -> Tensor | None:
        """The x's that were applied last: [N, D], None before the first reset."""
        return self._x

    @property
    def response(self) -> Response:
        """The followers' answers: policy [N, S, A].

        Raises:
            gymnasium.error.ResetNeeded: before the first reset.
        """
        if self._response is None:
            raise gym.error.ResetNeeded("call envs.reset() before anything is read from the environments")
        return self._response

    @property
    def evaluation(self) -> Evaluation:
        """f of all members [N]; where it is sampled, the samples are with ``oracle.members``.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset.
        """
        if self._evaluation is None:
            raise gym.error.ResetNeeded("call envs.reset() before anything is read from the environments")
        return self._evaluation

    @property
    def oracle(self) -> VectorOracle:
        """What estimators may ask, of all members and of each; its uses change nothing but the counters."""
        return VectorOracle(self, self._asides[0])

    def members(self) -> list[Member]:
        """The members one by one, with the responses and evaluations of now. Cost: O(N) small tensors."""
        values = self.evaluation.value
        return [
            Member(
                ProblemOracle(self._problems[i], self.solver, self._asides[i], self.counters[i]),
                _member(self.response, i),
                self._parts[i] if self._parts else Evaluation(values[i]),
            )
            for i in range(self.num_envs)
        ]

    # ------------------------------------------------------------------------------------------ Gymnasium

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start N episodes; see the class.

        Raises:
            InvalidAction: ``options["x"]`` is not in the action space.
            InvalidProblem: an unknown option, ``keep`` before the first reset, or a wrong number of seeds.
        """
        options = options or {}
        if unknown := set(options) - {"x", "keep"}:
            raise InvalidProblem(f"unknown reset options {sorted(unknown)}: use 'x' and 'keep'")
        given = self._as_x(options["x"]) if options.get("x") is not None else None
        if options.get("keep"):
            if seed is not None:
                raise InvalidProblem("reset(seed=…) starts anew and 'keep' goes on: give one of them")
            return self._go_on(given)
        self._seed(
            [None if seed is None else int(seed) + i for i in range(self.num_envs)]
            if seed is None or isinstance(seed, int | np.integer)
            else list(seed)
        )
        return self._start_cold(given)

    def step(self, actions: np.ndarray) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Apply N x's, let the followers learn, and look at their policies.

        Args:
            actions: x [N, D]; ignored in the step after an episode's end.

        Returns:
            observations, −f [N], terminated [N] (always False), truncated [N], info of arrays [N].

        Raises:
            InvalidAction: some x has a wrong shape, a NaN, or lies outside the box; nothing has changed.
            gymnasium.error.ResetNeeded: before the first reset.
        """
        never = np.zeros(self.num_envs, bool)
        if self.max_episode_steps is not None and self.elapsed >= self.max_episode_steps:
            observations, info = self._start_cold(None)
            return observations, np.zeros(self.num_envs), never, never.copy(), info
        x, before = self._as_x(actions), [generator.get_state() for generator in self._generators] if self.sampled else []
        try:
            self._look(x, self._solve(x, self.response))
        except BaseException:
            for generator, state in zip(self._generators, before, strict=False):
                generator.set_state(state)
            raise
        for counters in self.counters:
            counters.upper_step += 1
        self.elapsed += 1
        ended = np.full(self.num_envs, self.max_episode_steps is not None and self.elapsed >= self.max_episode_steps)
        return self._observe(), -self.evaluation.value.cpu().numpy().astype(np.float64), never, ended, self._info()

    def render(self) -> tuple[Any, ...] | None:
        """One picture, or line of text, for each member."""
        if self.render_mode == "ansi":
            lines = zip(self.evaluation.value.tolist(), self.response.gap.tolist(), strict=True)
            return tuple(f"step {self.counters[0].upper_step}: objective {f:.6g}, gap {gap:.3g}" for f, gap in lines)
        if self.render_mode != "rgb_array":
            return None
        policies = self.response.policy
        assert self._x is not None
        members = zip(self._problems, self._x, policies, strict=True)
        return tuple(picture(problem, x, policy) for problem, x, policy in members)

    # ------------------------------------------------------------------------------------------ state

    def get_state(self) -> dict[str, Any]:
        """The whole nest of all members as plain data, as ``BilevelEnv.get_state``."""
        return {
            "num_envs": self.num_envs,
            "sizes": self.problem.sizes,
            **{name: checkpoint.pack(getattr(self, name)) for name in _STATE},
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go back to what ``get_state`` returned, on environments that were built in the same way.

        Raises:
            CheckpointError: the state is of another number of members or of other sizes; nothing has changed.
        """
        if missing := {"num_envs", "sizes", *_STATE} - set(state):
            raise CheckpointError(
                f"the state lacks {sorted(missing)}: it is not one of vectorized outer environments, or of another release"
            )
        if (state["num_envs"], list(state["sizes"])) != (self.num_envs, self.problem.sizes):
            raise CheckpointError(
                f"the state is of {state['num_envs']} members of sizes {state['sizes']}, here are {self.num_envs} of sizes {self.problem.sizes}: build them with the same arguments"
            )
        for name, value in {name: checkpoint.unpack(state[name]) for name in _STATE}.items():
            setattr(self, name, value)
        if self._seeded:
            self._draw(checkpoint.unpack(state["_drawn_from"]))

    # ------------------------------------------------------------------------------------------ parts

    def _seed(self, seeds: list[int | None]) -> None:
        if len(seeds) != self.num_envs:
            raise InvalidProblem(f"{len(seeds)} seeds for {self.num_envs} members: give one each, or a single number")
        for i, seed in enumerate(seeds):
            if seed is not None or not self._seeded:
                self._np_randoms[i] = seeding.np_random(seed)[0]
            if seed is not None:
                self._drawn_from[i].bit_generator.state = self._np_randoms[i].bit_generator.state
        if any(seed is not None for seed in seeds):
            self._draw(
                [
                    self._np_randoms[i] if seed is not None else generator_at(self._drawn_from[i].bit_generator.state)
                    for i, seed in enumerate(seeds)
                ]
            )
        self._seeded = True

    def _draw(self, sources: Sequence[np.random.Generator]) -> None:
        """The members' instances, where the environment draws them."""
        if self._env.draw is not None:
            self._problems = [self._env.draw(source) for source in sources]
            self.problem = stack(self._problems)

    def _start_cold(self, given: Tensor | None) -> tuple[Observation, dict[str, Any]]:
        for generators in zip(self._generators, self._asides, self._np_randoms, strict=True):
            *torch_generators, source = generators
            for generator in torch_generators:
                generator.manual_seed(int(source.integers(2**63 - 1)))
        self.counters = [Counters() for _ in range(self.num_envs)]
        self.elapsed = 0
        x = given if given is not None else torch.stack([self._env.first_x(generator) for generator in self._generators])
        self._memories = [self.problem.objective.start() for _ in range(self.num_envs)]
        response = _spread(self.solver.start(self.problem), self.num_envs)
        if self._env.solve_on_reset:
            response = self._solve(x, response)
        self._look(x, response)
        return self._observe(), self._info()

    def _go_on(self, x: Tensor | None) -> tuple[Observation, dict[str, Any]]:
        if self._x is None:
            raise InvalidProblem(
                "reset(options={'keep': True}) goes on with what is there, and there is nothing yet: reset without it first"
            )
        self.elapsed = 0
        if x is not None and not torch.equal(x, self._x):
            self._look(x, self._solve(x, self.response))
        return self._observe(), self._info()

    def _solve(self, x: Tensor, warm: Response) -> Response:
        return self.solver.solve(self.problem, x, warm=warm, budget=None, generator=self._generators[0])

    def _look(self, x: Tensor, response: Response) -> None:
        """Evaluate, and take all of it at once: x, response, memories and counters change together or not at all."""
        objective, parts, memories = self.problem.objective, [], self._memories
        with torch.no_grad():
            if self.sampled:
                seen = [
                    objective.evaluate(problem, x[i], _member(response, i), self._memories[i], self._generators[i])
                    for i, problem in enumerate(self._problems)
                ]
                parts, memories = [part for part, _ in seen], [memory for _, memory in seen]
                evaluation = Evaluation(torch.stack([part.value for part in parts]))
            else:
                evaluation, _ = objective.evaluate(self.problem, x, response, None, self._generators[0])
        check_evaluation(evaluation, x)
        self._x, self._response, self._evaluation, self._parts, self._memories = x, response, evaluation, parts, memories
        for i, counters in enumerate(self.counters):
            counters.lower_step += response.steps
            counters.env_steps += response.env_steps + (parts[i].env_steps if parts else 0)
            counters.comparisons += parts[i].comparisons if parts else 0

    def _as_x(self, actions: Any) -> Tensor:
        assert isinstance(self.action_space, gym.spaces.Box)
        return read_x(actions, self.action_space, self.problem.domain.device)

    def _observe(self) -> Observation:
        assert self._x is not None
        return observe(self.problem, self._x, self.response, self.evaluation, self.action_space.dtype)

    def _info(self) -> dict[str, Any]:
        columns = {"objective": self.evaluation.value.cpu().numpy(), "gap": self.response.gap.cpu().numpy()}
        columns |= {name: np.array([getattr(counters, name) for counters in self.counters]) for name in vars(self.counters[0])}
        if self._parts:
            columns |= {name: np.array([part.metrics[name] for part in self._parts]) for name in self._parts[0].metrics}
        everyone = np.ones(self.num_envs, bool)
        return {**columns, **{f"_{name}": everyone for name in columns}}


_STATE = (
    "elapsed", "counters", "_seeded", "_np_randoms", "_drawn_from", "_generators", "_asides",
    "_x", "_response", "_evaluation", "_parts", "_memories",
)  # fmt: skip
"""What ``get_state`` holds."""


def vectorized(make: Callable[..., BilevelEnv]) -> Callable[..., BilevelVectorEnv]:
    """The vector entry point of an id, from the function that makes one environment.

    Args:
        make: such as ``random_mdp``.
    """

    def make_vector(num_envs: int = 1, max_episode_steps: int | None = None, **arguments: Any) -> BilevelVectorEnv:
        return BilevelVectorEnv(make(**arguments), num_envs, max_episode_steps=max_episode_steps)

    return make_vector


def _member(response: Response, i: int) -> Response:
    """One of a batch of responses."""
    assert response.value is not None
    assert response.q is not None
    return replace(response, policy=response.policy[i], value=response.value[i], q=response.q[i], gap=response.gap[i], factor=None)


def _spread(response: Response, count: int) -> Response:
    """A first response with an axis B, where the members share their tables."""
    assert response.value is not None
    assert response.q is not None
    if response.gap.ndim:
        return response
    policy, value, q, gap = (part.expand(count, *part.shape) for part in (response.policy, response.value, response.q, response.gap))
    return replace(response, policy=policy, value=value, q=q, gap=gap)
