"""Soft value iteration: sweeps of the soft Bellman operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from bilevel_gym.numerics import backup
from bilevel_gym.solvers.base import TabularSolver
from bilevel_gym.types import MDP, Response

__all__ = ["SoftValueIteration"]


class _Sweep(NamedTuple):
    q: Tensor
    value: Tensor
    previous: Tensor


@dataclass(frozen=True)
class SoftValueIteration(TabularSolver[_Sweep]):
    """Q ← r(x) + γPV, V ← τΩ*(Q/τ): a γ-contraction (mathematics §2, and the N sweeps of M-SoBiRL in §4).

    Give ``sweeps`` for a fixed number of them (no residual is looked at, nothing is synchronised with a GPU), ``tolerance`` or
    ``policy_tolerance`` for an accuracy, or both. With none of them it sweeps to a tolerance of 1e-10.

    Cost: O(S²A) a sweep; about ln(1/ε)/ln(1/γ) sweeps from cold, 2,000 for 1e-9 at γ = .99: ``SoftPolicyIteration`` needs 5 to 8 steps.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sweeps is None and self.tolerance is None and self.policy_tolerance is None:
            object.__setattr__(self, "tolerance", 1e-10)

    def _init(self, mdp: MDP, warm: Response) -> _Sweep:
        assert warm.value is not None
        assert warm.q is not None
        return _Sweep(warm.q, warm.value, warm.value)

    def _step(self, mdp: MDP, state: _Sweep) -> _Sweep:
        q = backup(mdp, state.value)
        return _Sweep(q, mdp.regularizer.conjugate(q), state.value)

    def _gap(self, mdp: MDP, state: _Sweep) -> tuple[Tensor, Tensor]:
        # V = F(V_prev), so ‖F(V) − V‖ = ‖F(V) − F(V_prev)‖ ≤ γ‖V − V_prev‖: a certificate that costs no further sweep.
        return mdp.discount * (state.value - state.previous).abs().amax(-1), state.value.abs().amax(-1)

    def _response(self, mdp: MDP, state: _Sweep, steps: int, converged: bool) -> Response:
        gap, _ = self._gap(mdp, state)
        return Response(policy=mdp.regularizer.policy(state.q), value=state.value, q=state.q, gap=gap, steps=steps, converged=converged)
