"""Stoc-SoBiRL: a recursive momentum that carries what earlier samples have told about the hyper-gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from bilevel_gym.arguments import check_numbers
from bilevel_gym.errors import InvalidProblem
from bilevel_gym.hypergradients.importance import Importance
from bilevel_gym.types import Estimator, Evaluation, Hypergradient, Oracle, Problem, Response

__all__ = ["Correction", "Momentum", "MomentumState", "Repeatable"]

Correction = Literal["none", "importance"]
"""What is done about samples that follow π_k where those of π_{k−1} are wanted."""


class Repeatable(Estimator, Protocol):
    """An estimator that can be had again at another (x, π) on the same draws."""

    def again(self, oracle: Oracle, x: Tensor, response: Response, state: Any, importance: Importance | None) -> Hypergradient:
        """The estimate at another (x, π), on the samples of the call that returned ``state``."""
        ...


@dataclass(frozen=True)
class MomentumState:
    """What the estimator keeps between calls."""

    inner: Any
    """The state of the inner estimator."""
    x: Tensor | None = None
    """[D] x_{k−1}."""
    response: Response | None = None
    """π_{k−1}: a snapshot, without the follower's warm start."""
    estimate: Hypergradient | None = None
    """h_{k−1}."""
    updates: int = 0
    """k."""


@dataclass(frozen=True)
class Momentum:
    """h_k = ĝ(D_k; x_k, π_k) + (1 − μ_k) ( h_{k−1} − ĝ(D_k; x_{k−1}, π_{k−1}) ),  μ_k = min(1, scale·(k+1)^−power) (mathematics §6).

    Both ĝ are of the same samples D_k (for rollouts, the same ξ_k and ζ_k), so that their difference is small where x moves slowly, and
    the noise of h_k falls with μ_k where that of ĝ stays.

    The samples follow π_k, and the second ĝ wants π_{k−1}: a misalignment, which ``correction="none"`` accepts (the paper names it and
    gives no remedy) and ``"importance"`` removes up to the clip. The bias is of the order of the step in x, the weights' noise too.

    Source: Stoc-SoBiRL (Yang, Gao, Yuan, AISTATS 2025) for the recursion; the schedule of μ, and that of the learning rate in
    ``agents.stoc_sobirl``, are what its rate Õ(K^{−2/3}) suggests. The correction is ours.

    Args:
        inner: ĝ, such as ``ScoreFunction("rollout")``, on fresh samples only (``batch=None``).
        correction: ``"none"`` or ``"importance"``.
        clip: the largest importance weight, 1 or more.
        scale: of μ; with ``power=0`` it is μ itself, and μ = 1 is ``inner``.
        power: how fast μ falls.

    Raises:
        InvalidProblem: an option that is out of range.

    Cost: two estimates on one set of samples.
    """

    batched: ClassVar[bool] = False
    """It looks at the samples of one problem; see ``PerProblem``."""

    inner: Repeatable
    correction: Correction = "none"
    clip: float = 10.0
    scale: float = 1.0
    power: float = 2.0 / 3.0

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.correction not in ("none", "importance"):
            raise InvalidProblem(f"correction is {self.correction!r}: choose 'none' or 'importance'")
        if not (self.clip >= 1.0 and self.scale > 0.0 and self.power >= 0.0):
            raise InvalidProblem(
                f"clip is {self.clip}, scale {self.scale}, power {self.power}: at least 1, positive, and not negative; clip=float('inf') does not clip"
            )

    def supports(self, problem: Problem) -> str | None:
        """None, or the reason why the problem does not fit."""
        if not hasattr(self.inner, "again"):
            return f"{type(self.inner).__name__} cannot be asked again about the same samples; use ScoreFunction inside"
        if self.correction == "importance" and not getattr(problem.objective, "on_policy", True):
            return "the fragments are not the follower's own, so their weights would mean nothing; use correction='none'"
        if getattr(self.inner, "batch", None) is not None:
            return "both estimates are of the fresh samples, and the inner one takes a batch of the queue: give it batch=None"
        return self.inner.supports(problem)

    def init(self, oracle: Oracle) -> MomentumState:
        """Nothing before."""
        return MomentumState(self.inner.init(oracle))

    def __call__(
        self, oracle: Oracle, x: Tensor, response: Response, evaluation: Evaluation, state: MomentumState
    ) -> tuple[Hypergradient, MomentumState]:
        """h_k: x [D] → [D]; its direct and implicit parts follow the recursion each.

        Raises:
            UnsupportedProblem: importance weights are asked for, and a policy does not say how likely an action is.
        """
        estimate, inner = self.inner(oracle, x, response, evaluation, state.inner)
        momentum = min(1.0, self.scale * (state.updates + 1) ** -self.power)
        if state.estimate is not None:
            assert state.x is not None
            assert state.response is not None
            importance = None if self.correction == "none" else Importance(state.response.policy, response.policy, self.clip)
            before = self.inner.again(oracle, state.x, state.response, inner, importance)
            direct, implicit = (
                getattr(estimate, part) + (1.0 - momentum) * (getattr(state.estimate, part) - getattr(before, part))
                for part in ("direct", "implicit")
            )
            estimate = Hypergradient(direct + implicit, direct, implicit, {**estimate.stats, "momentum": momentum})
        # The agent changes its x in place, and a follower's warm start may hold a replay.
        return estimate, MomentumState(inner, x.clone(), replace(response, state=None), estimate, state.updates + 1)
