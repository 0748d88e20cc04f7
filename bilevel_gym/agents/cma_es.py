"""CMA-ES, around a library that others keep."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import numpy as np

from bilevel_gym.agents.search import refuse_unless_step_size
from bilevel_gym.errors import InvalidProblem, require

__all__ = ["CMAES", "CMAESState"]

SEPARABLE_ABOVE = 500
"""Dimensions above which CMA-ES adapts a diagonal covariance: a full one takes D² numbers, and O(D³) for each point."""

RESAMPLES = 10
"""Draws outside of the cube that CMA-ES takes back before it clips one."""


@dataclass(frozen=True, slots=True)
class CMAESState:
    """Where a ``CMAES`` stands."""

    library: dict[str, Any]
    """The attributes of the library's optimizer: arrays and numbers."""
    random: dict[str, Any]
    """The state of its random generator."""
    tried: list[tuple[np.ndarray, float]]
    """The points of this generation, with their values."""
    converged: bool = False
    """Whether one of the library's criteria for the end was met."""

    @property
    def step_size(self) -> float:
        """σ, in sides of the cube."""
        return float(self.library["_sigma"])


@dataclass(frozen=True)
class CMAES:
    """The evolution strategy with covariance matrix adaptation, from the library ``cmaes``.

    Source: Hansen, The CMA Evolution Strategy: A Tutorial, arXiv:1604.00772, with all of its default parameters; the diagonal one of
    Ros and Hansen (PPSN 2008) where it is separable. Points outside of the cube are drawn again up to ten times, then clipped to it.
    Once the search has converged (by the library's criteria, such as steps below 1e-12 of the first) it proposes its mean
    from then on; it does not restart. There is no more than ranking against noise: a larger population averages it out.

    Args:
        step_size: the first σ, in sides of the box.
        population: points in a generation; None takes 4 + ⌊3 log D⌋.
        separable: whether to adapt a diagonal covariance matrix only; None does above 500 dimensions.

    Raises:
        InvalidProblem: a step size outside of (0, 1], or a population of fewer than 4 points.
        MissingExtra: ``cmaes`` is not installed.

    Cost: O(D³) a point, O(D) where it is separable.
    """

    _: KW_ONLY
    step_size: float = 0.05
    population: int | None = None
    separable: bool | None = None

    def __post_init__(self) -> None:
        refuse_unless_step_size(self.step_size)
        if self.population is not None and self.population < 4:
            raise InvalidProblem(f"population is {self.population}: a generation has four points at least, for two parents")
        require("cmaes", "search")

    def init(self, start: np.ndarray, generator: np.random.Generator) -> CMAESState:
        """A normal distribution around the start."""
        bounds = np.stack([np.zeros_like(start), np.ones_like(start)], -1)
        library = require("cmaes", "search")
        separable = start.size > SEPARABLE_ABOVE if self.separable is None else self.separable
        optimizer = (library.SepCMA if separable and start.size > 1 else library.CMA)(
            start.copy(),
            self.step_size,
            bounds,
            n_max_resampling=RESAMPLES,
            seed=int(generator.integers(2**32)),
            population_size=self.population,
        )
        optimizer._funhist_values[:] = 0.0  # the library leaves them uninitialised, and equal searches must have equal states
        return self._closed(optimizer, [])

    def ask(self, state: CMAESState) -> tuple[np.ndarray, CMAESState]:
        """A draw from the distribution."""
        if state.converged:
            return state.library["_mean"], state
        optimizer = self._opened(state)
        return optimizer.ask(), self._closed(optimizer, state.tried)

    def tell(self, state: CMAESState, point: np.ndarray, value: float) -> CMAESState:
        """One value more; the last one of a generation moves the distribution."""
        if state.converged:
            return state
        tried = [*state.tried, (point, value)]
        if len(tried) < state.library["_popsize"]:
            return replace(state, tried=tried)
        optimizer = self._opened(state)
        optimizer.tell(tried)
        return replace(self._closed(optimizer, []), converged=bool(optimizer.should_stop()))

    def _opened(self, state: CMAESState) -> Any:
        """The library's optimizer, made anew of its attributes (its own pickling loses the generator, and rounds the matrix).

        Arrays are copied, for it changes them in place; in C order, so that a search that was saved rounds like one that was not.
        """
        library = require("cmaes", "search")
        kind = library.SepCMA if state.library["_C"].ndim == 1 else library.CMA
        optimizer = kind.__new__(kind)
        vars(optimizer).update({name: value.copy() if isinstance(value, np.ndarray) else value for name, value in state.library.items()})
        optimizer._rng = np.random.RandomState()
        optimizer._rng.set_state(state.random)
        return optimizer

    def _closed(self, optimizer: Any, tried: list[tuple[np.ndarray, float]]) -> CMAESState:
        attributes = {name: value.item() if isinstance(value, np.generic) else value for name, value in vars(optimizer).items()}
        return CMAESState(attributes, attributes.pop("_rng").get_state(legacy=False), tried)
