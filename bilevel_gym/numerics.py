"""Soft backups, linear solves and views of flat parameters: the arithmetic under every station.

Every function broadcasts over leading axes: a batch of problems is the same code with one more axis. A transition [S, A, S] may be
shared by a batch of values [B, S], and it may be dense or a ``SparseTransition``: who calls these functions does not see the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, log, prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem, UnsupportedProblem
from bilevel_gym.linear import DenseLU, Factor
from bilevel_gym.transitions import SparseTransition, fold, unfold
from bilevel_gym.types import MDP

__all__ = [
    "ArrayLike",
    "KrylovSolution",
    "TableFunction",
    "Transitions",
    "adjoint",
    "as_table",
    "backup",
    "conjugate_gradient",
    "dense",
    "draw_categorical",
    "draw_horizons",
    "draw_seed",
    "expect_next",
    "expect_pairs",
    "factorize",
    "gradients",
    "matvec",
    "policy_transition",
    "policy_value",
    "push_forward",
    "solve_transposed",
    "split_flat",
    "stack_functions",
    "staying",
    "vjp",
]


ArrayLike = Any
"""Anything that NumPy reads as numbers (an array, nested lists), or a tensor."""

Transitions = Tensor | SparseTransition
"""P, dense or sparse: [B, S, A, S]."""


def as_table(values: ArrayLike, device: str | torch.device) -> Tensor:
    """A float64 tensor of a person's numbers: tabular work needs that precision, at τ = .001 and γ = .99 logits reach 1e5.

    Raises:
        InvalidProblem: they are no array of numbers.
    """
    try:
        raw = values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.array(values, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise InvalidProblem(f"{str(values)[:80]} cannot be read as an array of numbers ({error}): give rows of one length") from error
    return raw.to(device=device, dtype=torch.float64)


def draw_seed(generator: torch.Generator) -> int:
    """A seed for something that is not torch, such as a simulator, drawn from a torch generator."""
    return int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))


@dataclass(frozen=True, eq=False)
class TableFunction:
    """x ↦ function(x, *tables): a function of x with its numbers in the open, so that many such functions become one of a batch.

    Args:
        function: written in torch, broadcasting over leading axes: x [B, D] and tables [B, …] give [B, …].
        tables: what differs from instance to instance.
    """

    function: Callable[..., Tensor]
    tables: tuple[Tensor, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """function(x, *tables)."""
        return self.function(x, *self.tables)


def stack_functions(functions: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    """Functions of x as one that maps a batch: each member's x to its own function of it.

    Args:
        functions: B times the same object, or ``TableFunction`` with one ``function`` and tables of one shape.

    Returns:
        a function of x [B, D].

    Raises:
        UnsupportedProblem: they are different functions whose numbers cannot be told from their code.
    """
    first = functions[0]
    if all(function is first for function in functions):
        return first
    if not isinstance(first, TableFunction) or not all(
        isinstance(other, TableFunction) and other.function is first.function for other in functions
    ):
        raise UnsupportedProblem(
            "different functions of x make no batch: write them as numerics.TableFunction(function, tables) with one function, or use vectorization_mode='sync'"
        )
    return TableFunction(first.function, tuple(torch.stack(tables) for tables in zip(*(f.tables for f in functions), strict=True)))  # type: ignore[attr-defined]


def draw_horizons(count: int, discount: float, generator: torch.Generator) -> Tensor:
    """Numbers of steps T + 1 with P(T ≥ t) = γ^{t/2}: T ~ Geom(1 − √γ) from 0 (mathematics §7, HPGD).

    Σ_{t≤T} γ^{t/2} r_t then has the mean of the endless Σ_t γ^t r_t, and is bounded by max|r|/(1 − √γ) however late T is.

    Args:
        count: how many.
        discount: γ in [0, 1).
        generator: the source of the draws.

    Returns:
        [count] int64, 1 or more.
    """
    waiting = torch.empty(count, dtype=torch.float64, device=generator.device).exponential_(generator=generator)
    rate = inf if discount == 0.0 else -0.5 * log(discount)
    return (waiting / rate).long() + 1


def draw_categorical(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One draw from each row by inversion, with one random number of the generator: [n, A] → [n] int64."""
    unit = torch.rand(len(probabilities), 1, generator=generator, device=generator.device).to(probabilities.device)
    cumulated = probabilities.cumsum(-1)
    return (unit * cumulated[:, -1:] >= cumulated).sum(-1).clamp_max(probabilities.shape[-1] - 1)


def dense(transition: Transitions) -> Tensor:
    """P as a table: [B, S, A, S]. Cost: its memory, O(S²A)."""
    return transition.dense() if isinstance(transition, SparseTransition) else transition


def expect_next(transition: Transitions, value: Tensor) -> Tensor:
    """(Pv)_sa = Σ_s' P_sas' v_s'.

    Args:
        transition: [B, S, A, S].
        value: [B, S].

    Returns:
        [B, S, A]. Cost: O(S²A); O(SAU) where a state reaches U others.
    """
    if isinstance(transition, SparseTransition):
        return transition.expect_next(value)
    if transition.ndim == 3 and value.ndim == 1:
        return transition @ value  # one small problem is bound by calls, not by arithmetic
    *_, states, actions, _ = transition.shape
    rows = transition.flatten(-3, -2)
    if transition.ndim == 3:
        flat = value @ rows.mT
    else:
        extra = max(value.ndim + 2 - transition.ndim, 0)
        flat = unfold(rows @ fold(value, extra, -1), value.shape[:extra], -1)
    found: Tensor = flat.unflatten(-1, (states, actions))
    return found


def expect_pairs(transition: Transitions, pairs: Tensor) -> Tensor:
    """Σ_s' P_sas' m_ss', the mean of what depends on both ends of a step: [B, S, A, S], [B, S, S] → [B, S, A]. Cost: O(S²A)."""
    if isinstance(transition, SparseTransition):
        return transition.expect_pairs(pairs)
    return torch.einsum("...sat,...st->...sa", transition, pairs)


def push_forward(transition: Transitions, mass: Tensor) -> Tensor:
    """(Pᵀc)_s' = Σ_sa P_sas' c_sa, the transpose of ``expect_next``.

    Args:
        transition: [B, S, A, S].
        mass: [B, S, A].

    Returns:
        [B, S]. Cost: O(S²A); O(SAU) where a state reaches U others.
    """
    if isinstance(transition, SparseTransition):
        return transition.push_forward(mass)
    rows, flat = transition.flatten(-3, -2), mass.flatten(-2)
    if transition.ndim == 3:
        return flat @ rows
    extra = max(mass.ndim + 1 - transition.ndim, 0)
    return unfold(fold(flat, extra, -2) @ rows, flat.shape[:extra], -2)


def matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    """Mv with leading axes that broadcast: [B, n, m], [B, m] → [B, n]."""
    if matrix.ndim == 2 and vector.ndim == 1:
        return torch.mv(matrix, vector)
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def policy_transition(transition: Transitions, policy: Tensor) -> Tensor:
    """(P_π)_ss' = Σ_a π_sa P_sas', a dense matrix: [B, S, A, S], [B, S, A] → [B, S, S]. Cost: O(S²A)."""
    if isinstance(transition, SparseTransition):
        return transition.policy_transition(policy)
    extra = max(policy.ndim + 1 - transition.ndim, 0)
    return unfold(fold(policy, extra, -2) @ transition, policy.shape[:extra], -2)


def staying(transition: Transitions) -> Tensor:
    """P(s | s, a), the probability of staying: [B, S, A, S] → [B, S, A]."""
    if isinstance(transition, SparseTransition):
        own = torch.arange(len(transition.successors), device=transition.device).unsqueeze(-1)
        return (transition.probability * (transition.successors == own).unsqueeze(-2)).sum(-1)
    return transition.diagonal(dim1=-3, dim2=-1).mT


def backup(mdp: MDP, value: Tensor) -> Tensor:
    """backup(x, v) = r(x) + γ P(x) v, the only place where x enters the lower level (mathematics §2).

    Args:
        mdp: M_τ(x).
        value: [B, S].

    Returns:
        [B, S, A]. Cost: O(S²A).
    """
    return torch.add(mdp.reward, expect_next(mdp.transition, value), alpha=mdp.discount)


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


class KrylovSolution(NamedTuple):
    """What ``conjugate_gradient`` found, and how good it is."""

    solution: Tensor
    """[B, n] v."""
    residual: Tensor
    """[B] ‖b − (A + δI)v‖, as the recursion carries it: true until it falls to the rounding error of b."""
    iterations: Tensor
    """[B] steps taken, int64."""
    curvature: Tensor
    """[B] the smallest pᵀAp/pᵀp of the directions tried, δ not added; infinite where none was."""


def conjugate_gradient(
    product: Callable[[Tensor], Tensor],
    right: Tensor,
    *,
    iterations: int,
    tolerance: float,
    initial: Tensor | None = None,
    damping: float = 0.0,
) -> KrylovSolution:
    """Solve (A + δI)v = b for a symmetric A that is known by its products Ap (Hestenes and Stiefel, 1952).

    Each member of a batch stops by itself: at its tolerance, or before a step along a direction with pᵀ(A + δI)p ≤ 0 (or NaN), where
    the system is not positive definite and its solution so far is kept.

    Args:
        product: p ↦ Ap, [B, n] → [B, n]; it is asked for stopped members too, and their answers are not used.
        right: [B, n] b.
        iterations: steps at most; n suffice without rounding.
        tolerance: stop at ‖b − (A + δI)v‖ ≤ tolerance ‖b‖.
        initial: [B, n] the v to start from, zero by default.
        damping: δ ≥ 0.

    Returns:
        the solution with its certificate. Cost: a product for each step, and one for ``initial``.
    """
    solution = torch.zeros_like(right) if initial is None else initial
    residual = right if initial is None else right - product(initial) - damping * initial
    direction, squared = residual, _dot(residual, residual)
    target = (tolerance * right.norm(dim=-1, keepdim=True)) ** 2
    active = squared > target
    taken, curvature = active.long() * 0, torch.full_like(squared, torch.inf)
    for _ in range(iterations):
        if not active.any():
            break
        image = product(direction)
        length, bend = _dot(direction, direction), _dot(direction, image)
        curvature = torch.where(active, torch.minimum(curvature, bend / length), curvature)
        active = active & (bend + damping * length > 0.0)
        step = torch.where(active, squared / (bend + damping * length), 0.0)
        solution = solution + step * direction
        residual = torch.where(active, residual - step * (image + damping * direction), residual)
        before, squared = squared, _dot(residual, residual)
        direction = torch.where(active, residual + squared / before * direction, direction)
        taken = taken + active
        active = active & (squared > target)
    return KrylovSolution(solution, squared.squeeze(-1).sqrt(), taken.squeeze(-1), curvature.squeeze(-1))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ with the last axis kept: [B, n], [B, n] → [B, 1]."""
    return (a * b).sum(-1, keepdim=True)


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """The gradients of Σ function(*inputs) in each input, by one backward pass; zero where an input is not used."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        total = function(*leaves).sum()
        if not total.requires_grad:
            return tuple(torch.zeros_like(leaf) for leaf in leaves)
        found: tuple[Tensor | None, ...] = torch.autograd.grad(total, leaves, allow_unused=True)
    return tuple(torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=True))


def vjp(function: Callable[[Tensor], Tensor], x: Tensor, cotangent: Tensor) -> Tensor:
    """(∂function(x)/∂x)ᵀ cotangent, by one backward pass: the shape of x."""
    return gradients(lambda leaf: function(leaf) * cotangent, x)[0]


def split_flat(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Views of a flat parameter vector, in the order of ``shapes``; nothing is copied, and the backward pass is one concatenation.

    Args:
        flat: [P] or [B, P], P the sum of the products of ``shapes``.
        shapes: the shape of each view.

    Returns:
        tensors [B, *shape].
    """
    return [
        part.view(*flat.shape[:-1], *shape)
        for part, shape in zip(flat.split([prod(shape) for shape in shapes], dim=-1), shapes, strict=True)
    ]
