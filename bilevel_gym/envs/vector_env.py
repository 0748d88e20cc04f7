"""Many outer environments at once, as one batch of tensors on one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor

from bilevel_gym import checkpoint
from bilevel_gym.arguments import checked
from bilevel_gym.envs.answers import check_response, read_evaluation
from bilevel_gym.envs.bilevel_env import BilevelEnv
from bilevel_gym.envs.boundary import Observation, observe, read_options, read_x
from bilevel_gym.envs.members import Member, VectorOracle, member_of, spread
from bilevel_gym.envs.oracle import Counters, ProblemOracle
from bilevel_gym.envs.rendering import picture
from bilevel_gym.envs.streams import Streams
from bilevel_gym.envs.undo import all_or_nothing
from bilevel_gym.errors import CheckpointError, InvalidProblem, UnsupportedProblem
from bilevel_gym.problem import stack
from bilevel_gym.types import Evaluation, OuterProblem, Response, SampledObjective

__all__ = ["BilevelVectorEnv", "vectorized"]


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
        InvalidProblem: N or the length of an episode is not positive.
        UnsupportedProblem: the world is not a table.

    Cost: one batched solve a step; memory grows as N times the tables that differ between members.
    """

    metadata: dict[str, Any] = {**BilevelEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    @checked
    def __init__(self, env: BilevelEnv, num_envs: int = 1, *, max_episode_steps: int | None = None) -> None:
        if num_envs < 1:
            raise InvalidProblem(f"num_envs is {num_envs}: there must be one at least")
        if max_episode_steps is not None and max_episode_steps < 1:
            raise InvalidProblem(f"max_episode_steps is {max_episode_steps}: an episode has one step at least; None never ends it")
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
        self.streams = Streams.fresh(num_envs, env.problem.domain.device)
        self.counters = [Counters() for _ in range(num_envs)]
        self.elapsed = 0
        """Upper steps of the episodes so far."""
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
    def upper_step(self) -> int:
        """Upper steps since the last cold reset, the same for all members."""
        return self.counters[0].upper_step

    @property
    def oracle(self) -> VectorOracle:
        """What estimators may ask, of all members and of each; its uses change nothing but the counters."""
        return VectorOracle(self, self.streams.asides[0])

    def members(self) -> list[Member]:
        """The members one by one, with the responses and evaluations of now. Cost: O(N) small tensors."""
        values = self.evaluation.value
        return [
            Member(
                ProblemOracle(self._problems[i], self.solver, self.streams.asides[i], self.counters[i]),
                member_of(self.response, i),
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
        x, keep = read_options(options, seeded=seed is not None, begun=self._x is not None)
        given = None if x is None else self._as_x(x)
        with self._all_or_nothing():
            if keep:
                self._go_on(given)
            else:
                self._draw(self.streams.seed(seed))
                self._start_cold(given)
        return self._observe(), self._info()

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
            with self._all_or_nothing():
                self._start_cold(None)
            return self._observe(), np.zeros(self.num_envs), never, never.copy(), self._info()
        x = self._as_x(actions)
        drawn_from = self.streams.generators[: self.num_envs if self.sampled else 1]
        with all_or_nothing([self], drawn_from):
            self._look(x, self._solve(x, self.response))
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
        with all_or_nothing([self], ()):
            for name in _STATE:
                setattr(self, name, checkpoint.unpack(state[name]))
            if self.streams.seeded:
                self._draw(checkpoint.unpack(state["streams"]).drawn_from)

    # ------------------------------------------------------------------------------------------ parts

    def _draw(self, sources: Sequence[np.random.Generator]) -> None:
        """The members' instances, where there is something to draw them from, and the environment draws them."""
        if sources and self._env.draw is not None:
            self._problems = [self._env.draw(source) for source in sources]
            self.problem = stack(self._problems)

    def _all_or_nothing(self) -> AbstractContextManager[None]:
        return all_or_nothing([self, self.streams], self.streams.all())

    def _start_cold(self, given: Tensor | None) -> None:
        self.streams.restart()
        self.counters = [Counters() for _ in range(self.num_envs)]
        self.elapsed = 0
        x = given if given is not None else torch.stack([self._env.first_x(generator) for generator in self.streams.generators])
        self._memories = [self.problem.objective.start() for _ in range(self.num_envs)]
        response = spread(check_response(self.solver.start(self.problem), self.solver, "start"), self.num_envs)
        if self._env.solve_on_reset:
            response = self._solve(x, response)
        self._look(x, response)

    def _go_on(self, x: Tensor | None) -> None:
        self.elapsed = 0
        assert self._x is not None
        if x is not None and not torch.equal(x, self._x):
            self._look(x, self._solve(x, self.response))

    def _solve(self, x: Tensor, warm: Response) -> Response:
        response = self.solver.solve(self.problem, x, warm=warm, budget=None, generator=self.streams.generators[0])
        return check_response(response, self.solver, "solve")

    def _look(self, x: Tensor, response: Response) -> None:
        """Evaluate, and take all of it at once: x, response, memories and counters change together or not at all."""
        objective, parts, memories = self.problem.objective, [], self._memories
        with torch.no_grad():
            if self.sampled:
                seen = [self._look_at(i, x[i], member_of(response, i)) for i in range(self.num_envs)]
                parts, memories = [part for part, _ in seen], [memory for _, memory in seen]
                evaluation = Evaluation(torch.stack([part.value for part in parts]))
            else:
                evaluation, _ = read_evaluation(
                    objective.evaluate(self.problem, x, response, None, self.streams.generators[0]), objective, x
                )
        self._x, self._response, self._evaluation, self._parts, self._memories = x, response, evaluation, parts, memories
        for i, counters in enumerate(self.counters):
            counters.lower_step += response.steps
            counters.env_steps += response.env_steps + (parts[i].env_steps if parts else 0)
            counters.comparisons += parts[i].comparisons if parts else 0

    def _look_at(self, i: int, x: Tensor, response: Response) -> tuple[Evaluation, Any]:
        objective = self.problem.objective
        return read_evaluation(
            objective.evaluate(self._problems[i], x, response, self._memories[i], self.streams.generators[i]), objective, x
        )

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
    "elapsed", "counters", "streams", "_x", "_response", "_evaluation", "_parts", "_memories",
)  # fmt: skip
"""What ``get_state`` holds."""


def vectorized(make: Callable[..., BilevelEnv]) -> Callable[..., BilevelVectorEnv]:
    """The vector entry point of an id, from the function that makes one environment.

    Args:
        make: such as ``random_mdp``.
    """

    def make_vector(num_envs: int = 1, max_episode_steps: int | None = None, **arguments: Any) -> BilevelVectorEnv:
        """The id's arguments, and how many there are of it."""
        return BilevelVectorEnv(make(**arguments), num_envs, max_episode_steps=max_episode_steps)

    return make_vector
