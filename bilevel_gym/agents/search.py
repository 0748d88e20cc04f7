"""Black-box baselines: agents that know nothing of an outer environment but its rewards, and the simplest of their searches."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import KW_ONLY, dataclass, replace
from math import exp, inf, isfinite, sqrt
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from bilevel_gym import checkpoint
from bilevel_gym.agents.identity import described, refuse_other
from bilevel_gym.agents.loop import Agent
from bilevel_gym.errors import InvalidProblem

__all__ = ["RandomSearch", "RandomSearchState", "Search", "SearchAgent", "refuse_unless_step_size"]


class Search(Protocol):
    """Minimises a function on the unit cube [0, 1]^D by its values at one point after another; all state in the open.

    ``ask`` and ``tell`` leave the state that they are given as it is. A state is a dataclass of arrays, numbers and generators, which a checkpoint can hold, with the present ``step_size``.
    """

    def init(self, start: np.ndarray, generator: np.random.Generator) -> Any:
        """The state before the first point: start [D]."""
        ...

    def ask(self, state: Any) -> tuple[np.ndarray, Any]:
        """The next point to try [D], and the state afterwards."""
        ...

    def tell(self, state: Any, point: np.ndarray, value: float) -> Any:
        """The state after the value at a point that was asked for."""
        ...


class SearchAgent(Agent):
    """Tries one x after another on an outer environment, and keeps the best.

    It uses Gymnasium's interface and nothing else, so any environment will do whose actions are a finite box, wrapped in whatever way:
    an action is x, and −reward is the value to be minimised. The box is the search's unit cube. It starts at the x where the
    environment stands; in the middle of the box where the environment has none, or a wrapper has changed the action space.

    On a noisy objective ``best_objective`` is the luckiest of the values seen, not the mean at ``best_x``: measure that anew before
    you compare it. Where the follower does not solve to the end, a value also depends on the x tried before it. The environment is
    left at the x tried last; ``env.reset(options={"x": agent.best_x, "keep": True})`` takes it to the best.

    Args:
        env: an environment whose action space is a ``Box`` with finite bounds.
        search: what proposes the points: ``RandomSearch``, ``CMAES``, or your own.
        generator: the source of its draws; None takes a stream of its own from ``env.np_random``, which stays as it is.

    Raises:
        InvalidProblem: the action space is not a finite box, or it is a vector of environments.
    """

    def __init__(self, env: gym.Env[Any, Any], search: Search, generator: np.random.Generator | None = None) -> None:
        super().__init__(env)
        space = env.action_space
        if isinstance(self.bilevel, gym.vector.VectorEnv):
            raise InvalidProblem("a search moves one x by one reward, and this is a vector of environments: give it a single one")
        if not (isinstance(space, gym.spaces.Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise InvalidProblem(f"the action space is {space}: a search needs a Box with finite bounds; wrap the environment in one")
        self.search = search
        self.best_x: np.ndarray | None = None
        """The x with the lowest value so far, None before the first step."""
        self.best_objective = inf
        """That value."""
        self._space = space
        self._low = space.low.astype(np.float64)
        self._side = np.where(space.high > space.low, space.high.astype(np.float64) - self._low, 1.0)
        self._generator = generator
        self._state: Any = None
        self._before: Any = None

    def act(self, observation: Any = None, info: Mapping[str, Any] | None = None) -> np.ndarray:
        """The next x to try.

        Args:
            observation: not read.
            info: not read.

        Returns:
            [D], inside the action space.
        """
        if self._state is None:
            self._state = self.search.init(self._to_cube(self._start()), self._stream())
        self._before = self._state
        point, self._state = self.search.ask(self._state)
        unclipped = self._low + self._side * point.reshape(self._space.shape)
        x: np.ndarray = np.clip(unclipped, self._space.low, self._space.high).astype(self._space.dtype)
        return x

    def take_back(self) -> None:
        """Undo the last ``act``: the search proposes the same x again."""
        self._state = self._before

    def tell(self, x: np.ndarray, reward: float | np.ndarray) -> None:
        """Hand −reward to the search.

        Raises:
            InvalidProblem: the reward is not finite.
        """
        value = -float(reward)
        if not isfinite(value):
            raise InvalidProblem(f"the environment answered x with the reward {reward}: a search compares rewards, and needs finite ones")
        self._state = self.search.tell(self._state, self._to_cube(x), value)
        if value < self.best_objective:
            self.best_x, self.best_objective = x.copy(), value

    def metrics(self) -> dict[str, float]:
        """The lowest objective so far, and the search's step size in sides of the box."""
        return {"best_objective": self.best_objective, "step_size": float(self._state.step_size)}

    def get_state(self) -> dict[str, Any]:
        """The search's state and the best x as plain data; the environment's state is its own."""
        return {
            "search": described(self.search),
            "dimension": self._low.size,
            "best_x": checkpoint.pack(self.best_x),
            "best_objective": self.best_objective,
            "search_state": checkpoint.pack(self._state),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go back to what ``get_state`` returned.

        Raises:
            CheckpointError: the state is of another search, of one with other fields, or of another dimension; nothing has changed.
        """
        refuse_other((state["search"], state["dimension"]), (described(self.search), self._low.size))
        best_x, search_state = checkpoint.unpack(state["best_x"]), checkpoint.unpack(state["search_state"])
        self.best_x, self.best_objective, self._state = best_x, float(state["best_objective"]), search_state

    def _start(self) -> np.ndarray:
        x = getattr(self.bilevel, "x", None)
        if x is None or self.bilevel.action_space != self._space:
            return self._low + self._side / 2
        return np.asarray(x.cpu() if hasattr(x, "cpu") else x, np.float64)

    def _stream(self) -> np.random.Generator:
        """The generator given, or one that is 2^127 draws ahead of the environment's."""
        return self._generator or np.random.Generator(self.bilevel.np_random.bit_generator.jumped())

    def _to_cube(self, x: np.ndarray) -> np.ndarray:
        return np.clip((np.asarray(x, np.float64) - self._low) / self._side, 0.0, 1.0).reshape(-1)


@dataclass(frozen=True, slots=True)
class RandomSearchState:
    """Where a ``RandomSearch`` stands."""

    point: np.ndarray
    """[D] the incumbent."""
    value: float
    """Its value, infinite before it was tried."""
    step_size: float
    """σ, in sides of the cube."""
    generator: np.random.Generator
    """The source of the steps."""


@dataclass(frozen=True)
class RandomSearch:
    """Random steps around the best point so far, with Rechenberg's one-fifth success rule: the (1+1) evolution strategy.

        z' = z + σ n,  n ~ N(0, I);   z ← z' where f(z') ≤ f(z);   σ ← σ exp((1[f(z') ≤ f(z)] − 1/5)/√(D + 1))

    Source: Rechenberg, Evolutionsstrategie, 1973, in the form of Hansen, Arnold, Auger, Evolution Strategies, 2015. Points outside of the
    cube are clipped to it. The incumbent's value is the one that it was accepted with and is never measured again: on a noisy
    objective a lucky one stays until a luckier comes.

    Args:
        step_size: the first σ, in sides of the box.

    Raises:
        InvalidProblem: a step size outside of (0, 1].

    Cost: O(D) a point.
    """

    _: KW_ONLY
    step_size: float = 0.05

    def __post_init__(self) -> None:
        refuse_unless_step_size(self.step_size)

    def init(self, start: np.ndarray, generator: np.random.Generator) -> RandomSearchState:
        """The start as the incumbent, not tried yet."""
        return RandomSearchState(start, inf, self.step_size, generator)

    def ask(self, state: RandomSearchState) -> tuple[np.ndarray, RandomSearchState]:
        """The incumbent where it has not been tried yet, then a step from it."""
        if state.value == inf:
            return state.point, state
        generator = deepcopy(state.generator)  # so that the same state proposes the same point again
        step = state.step_size * generator.standard_normal(state.point.shape)
        return np.clip(state.point + step, 0.0, 1.0), replace(state, generator=generator)

    def tell(self, state: RandomSearchState, point: np.ndarray, value: float) -> RandomSearchState:
        """The better one of the two, and the step size for the next."""
        if state.value == inf:
            return replace(state, point=point, value=value)
        success = value <= state.value
        step_size = min(state.step_size * exp((success - 0.2) / sqrt(point.size + 1)), 1.0)
        return replace(state, point=point, value=value, step_size=step_size) if success else replace(state, step_size=step_size)


def refuse_unless_step_size(step_size: float) -> None:
    """Raise ``InvalidProblem`` where this is no first step of a search."""
    if not 0.0 < step_size <= 1.0:
        raise InvalidProblem(f"step_size is {step_size}: it is in sides of the box, above 0 and at most 1, such as 0.05")
