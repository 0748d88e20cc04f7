"""The outer environment: its action is x, its step runs a soft-RL solve, its reward is −f(x, π)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_gym import checkpoint
from bilevel_gym.envs.answers import check_response, check_solver, read_evaluation
from bilevel_gym.envs.boundary import Observation, action_space, observation_space, observe, read_options, read_x
from bilevel_gym.envs.oracle import Counters, ProblemOracle
from bilevel_gym.envs.rendering import picture
from bilevel_gym.envs.statistics import absorbed, buffers, saturated, settled, with_buffers
from bilevel_gym.envs.undo import all_or_nothing
from bilevel_gym.errors import CheckpointError, InvalidProblem
from bilevel_gym.types import Evaluation, LowerSolver, OuterProblem, Response

__all__ = ["BilevelEnv"]


class BilevelEnv(gym.Env[Observation, np.ndarray]):
    """min_x f(x, π*(x)) as a Gymnasium environment.

    The action is x [D] itself, nothing is scaled. ``step(x)`` lets the follower learn under r_x from where it stands (a warm start),
    looks at its policy, and returns −f. The episode is an outer horizon: it never terminates, and is truncated by a ``TimeLimit``.

    Observation: a dict of ``objective`` [1] and ``gap`` [1], of ``x`` [D] where it is short or the lower level is a table, and on tables
    of ``policy`` [S·A] (with contexts [C·S·A]).
    The lower level may also be a function of y (``ConvexProblem``): ``x`` is observed and y is not.

    Reset options: ``{"x": x}`` starts there; ``{"x": x, "keep": True}`` goes on with response, memory and generators as they are, and
    is what agents use when an episode is truncated. ``reset(seed)`` draws the instance anew, ``reset()`` keeps it; both are cold.
    Before the first ``reset(seed=…)`` the instance is that of seed 0.

    Args:
        problem: a problem, or a function that draws one from a NumPy generator.
        solver: how the follower learns.
        initial_x: [D] where every cold reset starts; None draws it from the problem's domain.
        solve_on_reset: whether a cold reset solves at the first x, or leaves the follower as it starts (uniform, V = 0).
        render_mode: ``"rgb_array"`` (a picture) or ``"ansi"``.

    Raises:
        InvalidProblem: problem or solver are none, or ``initial_x`` does not fit the domain of x.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "ansi"], "render_fps": 4}

    problem: OuterProblem
    """The problem that is being solved."""
    draw: Callable[[np.random.Generator], OuterProblem] | None
    """What draws the instance of each ``reset(seed=…)``; None where the instance is always the same."""
    solver: LowerSolver
    """How the follower learns."""

    def __init__(
        self,
        problem: OuterProblem | Callable[[np.random.Generator], OuterProblem],
        solver: LowerSolver,
        *,
        initial_x: Any = None,
        solve_on_reset: bool = True,
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise InvalidProblem(f"render_mode is {render_mode!r}: choose one of {self.metadata['render_modes']}, or None")
        self.draw = problem if callable(problem) else None
        self._drawn_from: Mapping[str, Any] = np.random.default_rng(0).bit_generator.state
        self.problem = problem(np.random.default_rng(0)) if callable(problem) else problem
        if isinstance(self.problem, type) or not hasattr(self.problem, "domain"):
            raise InvalidProblem(
                f"problem is {self.problem!r}: give a BilevelProblem, or a function that draws one from a NumPy generator and returns it"
            )
        if getattr(self.problem, "batch", ()):
            raise InvalidProblem(
                "the tables are a batch of problems, and this environment holds one: build it from tables without a leading axis"
            )
        check_solver(solver)
        self.solver = solver
        self.solve_on_reset = solve_on_reset
        self.render_mode = render_mode
        self.action_space = action_space(self.problem)
        self._initial_x = None if initial_x is None else self._as_x(initial_x)
        self.observation_space: gym.Space[Any] = observation_space(self.problem, self.action_space)
        self.counters = Counters()
        self._generator, self._aside = (torch.Generator(device=self.problem.domain.device) for _ in range(2))
        self._x: Tensor | None = None
        self._response: Response | None = None
        self._evaluation: Evaluation | None = None
        self._memory: Any = None
        self._warned = False

    # ------------------------------------------------------------------------------------------ what can be read

    @property
    def x(self) -> Tensor | None:
        """The x that was applied last: [D], None before the first reset."""
        return self._x

    @property
    def response(self) -> Response:
        """The follower's answer to x.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset.
        """
        if self._response is None:
            raise gym.error.ResetNeeded("call env.reset() before anything is read from the environment")
        return self._response

    @property
    def evaluation(self) -> Evaluation:
        """What the upper level saw of the response.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset.
        """
        if self._evaluation is None:
            raise gym.error.ResetNeeded("call env.reset() before anything is read from the environment")
        return self._evaluation

    @property
    def upper_step(self) -> int:
        """Upper steps since the last cold reset."""
        return self.counters.upper_step

    @property
    def oracle(self) -> ProblemOracle:
        """What estimators may ask; it has a generator of its own, its uses are counted in ``info`` and change nothing else."""
        return ProblemOracle(self.problem, self.solver, self._aside, self.counters)

    # ------------------------------------------------------------------------------------------ Gymnasium

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; see the class for the options.

        Raises:
            InvalidAction: ``options["x"]`` is not in the action space.
            InvalidProblem: an unknown option, or ``keep`` before the first reset.
        """
        x, keep = read_options(options, seeded=seed is not None, begun=self._x is not None)
        given = None if x is None else self._as_x(x)
        with self._all_or_nothing():
            if keep:
                self._go_on(given)
            else:
                self._start_cold(seed, given)
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Apply x, let the follower learn, and look at its policy.

        Args:
            action: x [D].

        Returns:
            observation, −f(x, π), terminated (always False), truncated (always False here, a ``TimeLimit`` sets it), info.

        Raises:
            InvalidAction: x has a wrong shape, a NaN, or lies outside the box; the environment is unchanged.
            gymnasium.error.ResetNeeded: before the first reset.
        """
        x = self._as_x(action)
        with self._all_or_nothing():
            self._solve_and_look(x)
        self.counters.upper_step += 1
        return self._observe(), -float(self.evaluation.value), False, False, self._info()

    def render(self) -> Any:
        """A picture [height, width, 3] of the policy (on maps with the reward below it; of x and y where the lower level is a function), or a line of text."""
        if self.render_mode == "ansi":
            return f"step {self.counters.upper_step}: objective {float(self.evaluation.value):.6g}, gap {float(self.response.gap):.3g}"
        if self.render_mode == "rgb_array":
            policy = self.response.policy
            assert self._x is not None
            return picture(self.problem, self._x, policy)
        return None

    # ------------------------------------------------------------------------------------------ state

    def get_state(self) -> dict[str, Any]:
        """The whole nest as plain data: x, response with the solver's warm start, memory, generators, counters and the instance."""
        return {
            "sizes": self.problem.sizes,
            "drawn_from": checkpoint.pack(generator_at(self._drawn_from)),
            **{
                name: checkpoint.pack(value)
                for name, value in (
                    ("np_random", self.np_random),
                    ("generator", self._generator),
                    ("aside", self._aside),
                    ("counters", self.counters),
                    ("x", self._x),
                    ("response", self._response),
                    ("evaluation", self._evaluation),
                    ("memory", self._memory),
                    ("buffers", buffers(self.problem)),
                )
            },
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go back to what ``get_state`` returned, on an environment that was built in the same way.

        Raises:
            CheckpointError: the state is of a problem of another dimension; nothing has changed.
        """
        names = ("drawn_from", "np_random", "generator", "aside", "counters", "x", "response", "evaluation", "memory", "buffers")
        if missing := {"sizes", *names} - set(state):
            raise CheckpointError(f"the state lacks {sorted(missing)}: it is not one of an outer environment, or of another release")
        if list(state["sizes"]) != self.problem.sizes:
            raise CheckpointError(
                f"the state is of sizes {state['sizes']} (the dimension of x, then those of the lower level), this environment has {self.problem.sizes}: build it with the same arguments"
            )
        restored = {name: checkpoint.unpack(state[name]) for name in names}
        drawn_from = restored["drawn_from"].bit_generator.state
        problem = with_buffers(self.problem if self.draw is None else self.draw(restored["drawn_from"]), restored["buffers"])
        if restored["response"] is not None and hasattr(self.solver, "lost") and (lost := self.solver.lost(problem, restored["response"])):
            logging.getLogger(__name__).warning("this is not bit for bit the run that was saved: %s", lost)
        if hasattr(self.solver, "revive"):  # a foreign solver, whose policies are not plain data
            restored["response"] = self.solver.revive(problem, restored["response"])
        self.problem, self._drawn_from = problem, drawn_from
        self.np_random = restored["np_random"]
        self._generator, self._aside, self.counters = (restored[name] for name in ("generator", "aside", "counters"))
        self._x, self._response, self._evaluation, self._memory = (restored[name] for name in ("x", "response", "evaluation", "memory"))

    def first_x(self, generator: torch.Generator) -> Tensor:
        """Where a cold reset starts: ``initial_x``, or a draw from the reward model. [D]."""
        return self.problem.domain.initial(generator) if self._initial_x is None else self._initial_x.clone()

    def close(self) -> None:
        """Close the simulators, if there are any."""
        owners: tuple[Any, ...] = (self.problem.world, getattr(self._response and self._response.state, "simulation", None))
        for owner in owners:
            if hasattr(owner, "close"):
                owner.close()

    def __str__(self) -> str:
        """Its id, where it has one, how many numbers x has, and what it is put together from."""
        parts = (getattr(self.problem, name, None) for name in ("world", "reward", "regularizer", "objective"))
        made_of = ", ".join(type(part).__name__ for part in (*parts, self.solver) if part is not None)
        name = "BilevelEnv" if self.spec is None else f"BilevelEnv<{self.spec.id}>"
        return f"<{name}: x [{self.problem.dimension}], {made_of}>"

    __repr__ = __str__

    # ------------------------------------------------------------------------------------------ parts

    def _as_x(self, action: Any) -> Tensor:
        assert isinstance(self.action_space, gym.spaces.Box)
        return read_x(action, self.action_space, self.problem.domain.device)

    def _all_or_nothing(self) -> AbstractContextManager[None]:
        streams = (self._generator, self._aside) if self._np_random is None else (self._generator, self._aside, self._np_random)
        return all_or_nothing([self], streams)

    def _start_cold(self, seed: int | None, given: Tensor | None) -> None:
        super().reset(seed=seed)
        if seed is not None and self.draw is not None:
            self._drawn_from = self.np_random.bit_generator.state
            self.problem = self.draw(self.np_random)
        for generator in (self._generator, self._aside):
            generator.manual_seed(int(self.np_random.integers(2**63 - 1)))
        self.counters, self._warned = Counters(), False
        x, problem = given if given is not None else self.first_x(self._generator), with_buffers(self.problem, None)
        response = check_response(self.solver.start(problem), self.solver, "start")
        self._memory = problem.objective.start()
        if self.solve_on_reset:
            response = self._solve(problem, x, response)
        self._look(problem, x, response)

    def _go_on(self, x: Tensor | None) -> None:
        assert self._x is not None
        if x is not None and not torch.equal(x, self._x):
            self._solve_and_look(x)

    def _solve_and_look(self, x: Tensor) -> None:
        """Let the follower learn on under another x, and look at it."""
        problem = settled(self.problem, x, self.evaluation)
        self._look(problem, x, self._solve(problem, x, self.response))

    def _solve(self, problem: OuterProblem, x: Tensor, warm: Response) -> Response:
        response = self.solver.solve(problem, x, warm=warm, budget=None, generator=self._generator)
        return check_response(response, self.solver, "solve")

    def _look(self, problem: OuterProblem, x: Tensor, response: Response) -> None:
        """Evaluate, and take all of it at once: x, response, memory, statistics and counters change together or not at all."""
        with torch.no_grad():
            seen = problem.objective.evaluate(problem, x, response, self._memory, self._generator)
        evaluation, memory = read_evaluation(seen, problem.objective, x)
        self._warned = self._warned or saturated(evaluation)
        self.problem = absorbed(problem, x, evaluation)
        self._x, self._response, self._evaluation, self._memory = x, response, evaluation, memory
        self.counters.lower_step += response.steps
        self.counters.env_steps += response.env_steps + evaluation.env_steps
        self.counters.comparisons += evaluation.comparisons

    def _observe(self) -> Observation:
        assert self._x is not None
        return observe(self.problem, self._x, self.response, self.evaluation, self.action_space.dtype)

    def _info(self) -> dict[str, Any]:
        return {
            "objective": float(self.evaluation.value),
            "gap": float(self.response.gap),
            **({} if self.response.temperature is None else {"temperature": self.response.temperature}),
            **vars(self.counters),
            **self.evaluation.metrics,
        }


def generator_at(state: Mapping[str, Any]) -> np.random.Generator:
    """A generator of its own that goes on from the state of another one's bit generator."""
    generator = np.random.default_rng(0)
    generator.bit_generator.state = state
    return generator
