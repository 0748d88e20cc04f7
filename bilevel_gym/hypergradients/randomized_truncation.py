"""RT-Q: the hyper-gradient at a well-solved lower level, for the price of badly solved ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.types import Estimator, Evaluation, Hypergradient, Oracle, Problem, Response

__all__ = ["RandomizedTruncation"]


@dataclass(frozen=True)
class RandomizedTruncation:
    """g_0 + (g_{k+1} − g_k)/p_k with k drawn with p_k ∝ 2^{−k}, g_k the inner estimate after 2^k solves from cold (mathematics §7).

    Its mean is that of g_K, while it costs about K solves in place of 2^K. Source: the RT-Q of HPGD (Thoma et al., NeurIPS 2024),
    where g is their sampled estimate and the lower level learns by soft Q-learning. Here g is any estimator, and a solve is one of the
    environment's: with ``SoftValueIteration(sweeps=N)`` level k has 2^k N sweeps. Both estimates of a difference get the same random
    numbers, so that it shrinks as the levels agree. A re-implementation: the paper's importance weights are not needed for that.

    The environment's own response is not used; let it solve cheaply, too.

    Args:
        estimator: g; it must keep no state.
        levels: K ≥ 1.

    Raises:
        InvalidProblem: no level.

    Cost: 2^{k+1} solves and three estimates; on average about K solves.
    """

    estimator: Estimator
    levels: int = 5
    batched = False

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise InvalidProblem(f"levels is {self.levels}: there must be one at least, between one solve and two")

    def supports(self, problem: Problem) -> str | None:
        """None, or the reason why the inner estimator does not fit."""
        if getattr(self.estimator, "learns", False) or hasattr(self.estimator, "inner"):
            return f"{type(self.estimator).__name__} learns from one call to the next, and the levels of one call would be mixed up in it; use one without a state"
        return self.estimator.supports(problem)

    def init(self, oracle: Oracle) -> Any:
        """The inner estimator's state."""
        return self.estimator.init(oracle)

    def __call__(self, oracle: Oracle, x: Tensor, response: Response, evaluation: Evaluation, state: Any) -> tuple[Hypergradient, Any]:
        """One estimate of ∇φ(x): [D]."""
        chances = 2.0 ** -torch.arange(self.levels, dtype=torch.float64)
        chances /= chances.sum()
        level = int(torch.multinomial(chances.to(oracle.generator.device), 1, generator=oracle.generator))
        solved = [oracle.solve(x)]
        while len(solved) < 2 ** (level + 1):
            solved.append(oracle.solve(x, solved[-1]))
        numbers = oracle.generator.get_state()
        parts = []
        for answer in (solved[0], solved[2**level - 1], solved[-1]):
            oracle.generator.set_state(numbers)
            parts.append(self.estimator(oracle, x, answer, oracle.evaluate(x, answer), state)[0])
        first, low, high = parts
        weight = 1.0 / float(chances[level])
        direct, implicit = (getattr(first, name) + weight * (getattr(high, name) - getattr(low, name)) for name in ("direct", "implicit"))
        return Hypergradient(direct + implicit, direct, implicit, {"level": float(level)}), state
