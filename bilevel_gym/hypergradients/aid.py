"""Approximate implicit differentiation: the hyper-gradient of a strongly convex lower level."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.hypergradients.fit import not_a_function, refusal
from bilevel_gym.numerics import conjugate_gradient
from bilevel_gym.types import Evaluation, Hypergradient, Oracle, OuterProblem, Response

__all__ = ["AID"]


@dataclass(frozen=True)
class AID:
    """∇φ = ∇_x f − ∇²_{xy}g v with ∇²_{yy}g v = ∇_y f, v by conjugate gradients from the last v (mathematics §7).

    Source: Ghadimi and Wang (arXiv 1802.02246) for the formula, AID-BiO (Ji, Yang, Liang, ICML 2021) for conjugate gradients and the
    warm start of v. No matrix is formed: ∇²_{yy}g p is one backward pass through ∇_y g, and the cross term one more.

    Exact at y*(x) and a converged v; else, with ε = ‖y − y*(x)‖ ≤ gap/μ and residual ρ of the linear system, the error is of the order
    of ε + ρ/μ. ``stats`` has ρ/‖∇_y f‖ as ``cg_residual``, the steps that it took as ``cg_iterations``, and as ``cg_curvature`` the
    smallest curvature met, which bounds μ from above: where it is not positive, g is not convex at y, and v was left where it stood.

    Args:
        iterations: conjugate-gradient steps at most in each estimate.
        tolerance: of the linear system, relative to ‖∇_y f‖.

    Raises:
        InvalidProblem: a number that is not positive.

    Cost: iterations + 3 backward passes of the order of ∇_y g, whatever D is.
    """

    iterations: int = 20
    tolerance: float = 1e-10

    def __post_init__(self) -> None:
        if self.iterations < 1 or not self.tolerance > 0:
            raise InvalidProblem(f"iterations is {self.iterations} and tolerance {self.tolerance}: both must be positive")

    def supports(self, problem: OuterProblem) -> str | None:
        """None, or the reason why the problem does not fit."""
        return refusal(not_a_function(problem), problem)

    def init(self, oracle: Oracle) -> None:
        """No v yet: the first solve starts at zero."""
        return

    def __call__(
        self, oracle: Oracle, x: Tensor, response: Response, evaluation: Evaluation, state: Tensor | None
    ) -> tuple[Hypergradient, Tensor]:
        """∇̂φ(x) at the response's y, and v: x [B, D] → [B, D]."""
        problem, y = oracle.problem, response.policy
        direct, h = problem.objective.gradient(problem, x, y)
        with torch.enable_grad():
            x_leaf, y_leaf = x.detach().requires_grad_(), y.detach().requires_grad_()
            total = problem.lower.value(x_leaf, y_leaf).sum()
            slope: Tensor = torch.autograd.grad(total, y_leaf, create_graph=True)[0]

        def curve(p: Tensor) -> Tensor:
            product: Tensor = torch.autograd.grad(slope, y_leaf, p, retain_graph=True)[0]
            return product

        solved = conjugate_gradient(curve, h, iterations=self.iterations, tolerance=self.tolerance, initial=state)
        implicit = -torch.autograd.grad(slope, x_leaf, solved.solution, materialize_grads=True)[0]
        stats = {
            "cg_residual": float((solved.residual / h.norm(dim=-1).clamp_min(1e-300)).max()),
            "cg_iterations": float(solved.iterations.max()),
            "cg_curvature": float(solved.curvature.min()),
        }
        return Hypergradient(direct + implicit, direct, implicit, stats), solved.solution
