"""The systems I − γP_π: values, and the adjoint solve."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.linear import DenseLU, Factor
from bilevel_gym.numerics.backups import policy_transition, push_forward
from bilevel_gym.transitions import SparseTransition
from bilevel_gym.types import MDP

__all__ = ["adjoint", "factorize", "policy_value", "solve_transposed"]


def factorize(mdp: MDP, policy: Tensor) -> Factor:
    """A factor of I − γP_π, which serves Newton's step and the adjoint alike.

    Args:
        policy: [B, S, A].

    Returns:
        factors of [B, S, S].

    Raises:
        InvalidProblem: the matrix is singular, or so nearly that nothing of a solution would be right.

    Cost: O(S²A + S³); O(Sm²) where P is sparse with a narrow band m.
    """
    transition = mdp.transition
    if isinstance(transition, SparseTransition):
        factor: Factor = transition.factorize(policy, mdp.discount)
    else:
        matrix = policy_transition(transition, policy).mul_(-mdp.discount)
        matrix.diagonal(dim1=-2, dim2=-1).add_(1.0)
        factor = DenseLU.of(matrix)
    if 1.0 - mdp.discount < 1e-10:
        _refuse_endless(factor, policy)
    return factor


def _refuse_endless(factor: Factor, policy: Tensor) -> None:
    """An M-matrix has ‖A⁻¹‖_∞ = max A⁻¹1, the discounted length of an episode: at 1/ε no digit of a solution is right."""
    lengths = factor.solve(torch.ones_like(policy[..., 0]), transposed=False)
    if not bool((lengths.abs() < 1e-3 / torch.finfo(lengths.dtype).eps).all()):
        raise InvalidProblem(
            f"I − γP_π is singular to working precision: 1 − γ is {float(lengths.abs().amax().reciprocal()):.2g} for episodes that hardly end; take a smaller discount, such as 0.99"
        )


def solve_transposed(factor: Factor, right: Tensor, *, transposed: bool = True) -> Tensor:
    """(I − γP_π)^{-T} b, or (I − γP_π)^{-1} b with ``transposed=False``: [B, S] → [B, S]. Cost: O(S²), O(Sm) in a band."""
    return factor.solve(right, transposed=transposed)


def policy_value(mdp: MDP, policy: Tensor, factor: Factor | None = None) -> Tensor:
    """V^π = (I − γP_π)⁻¹ (Σ_a π⊙r − τΩ(π)), the soft value of a policy that need not be optimal.

    Args:
        policy: [B, S, A].
        factor: the LU of I − γP_π, where there is one.

    Returns:
        [B, S]. Cost: O(SA + S²), and O(S²A + S³) where there is no factor.
    """
    factor = factorize(mdp, policy) if factor is None else factor
    gained = (policy * mdp.reward).sum(-1) - mdp.regularizer.penalty(policy)
    return solve_transposed(factor, gained, transposed=False)


def adjoint(mdp: MDP, policy: Tensor, cotangent: Tensor, factor: Factor | None = None) -> Tensor:
    """Carry a cotangent on Q back to one on backup(x, V) (mathematics §3).

    V depends on x through Q too; with u = (I − γP_π)^{-T} Pᵀc the whole sensitivity is z = c + γ π⊙u, and for any function g of Q*
    the gradient is (∂backup(x, V*)/∂x)ᵀ z: one adjoint solve, whatever D is.

    Args:
        mdp: M_τ(x).
        policy: [B, S, A] π at the solution.
        cotangent: [B, S, A] c = ∂g/∂Q.
        factor: that of I − γP_π, where the solver has kept it.

    Returns:
        [B, S, A] z. Cost: O(S²A), and O(S³) where there is no factor.
    """
    factor = factorize(mdp, policy) if factor is None else factor
    u = solve_transposed(factor, push_forward(mdp.transition, cotangent))
    return cotangent + mdp.discount * policy * u.unsqueeze(-1)
