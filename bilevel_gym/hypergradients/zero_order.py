"""Hyper-gradients from values of φ alone: for every problem, solver and objective, at the price of more solves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem, UnknownName
from bilevel_gym.hypergradients.fit import not_evaluated
from bilevel_gym.types import Evaluation, Hypergradient, Oracle, OuterProblem, Response

__all__ = ["Differences", "ZeroOrder"]

Differences = Literal["two_point", "finite_differences"]
"""Along random directions, or along every coordinate."""

DIRECTIONS = 10
"""Directions of two points, where their number is not given."""


@dataclass(frozen=True)
class ZeroOrder:
    """Central differences of φ: nothing is differentiated, the follower is asked again at points around x.

        two_point:           ∇̂φ = D/n Σ_i δ_i u_i,  u_1 … u_n uniform on the unit sphere
        finite_differences:  ∇̂φ = Σ_i δ_i e_i,      e_1 … e_D the coordinates
        δ_i = (φ(x + ru_i) − φ(x − ru_i)) / 2r

    Two points give, in the mean, exactly the gradient of φ averaged over the ball of radius r (Flaxman, Kalai, McMahan, SODA 2005, with
    the two-point feedback of Shamir, JMLR 18, 2017), which is ∇φ + O(r²); the variance is about D‖∇φ‖²/n. Finite differences have an error
    of O(r²) and no variance of their own.

    φ(x') is what the environment itself would see at x': a solve that starts at the current response, and an evaluation. What is
    random in the two is drawn alike at both ends of a difference (Duchi, Jordan, Wainwright, Wibisono, IEEE Trans. Inf. Theory 61, 2015);
    an error ε that they do not share, such as an unfinished solve's, still enters as ε/r. The points keep to the box: where x ± ru would
    leave it, both ends are shifted inwards together, so that at the boundary the slope is taken at most r away from x, with an
    error of O(r) there.

    The values do not tell what x does by itself from what it does through π: ``direct`` is all of the estimate, and ``implicit`` is zero.

    Args:
        kind: ``"two_point"`` or ``"finite_differences"``.
        radius: r > 0, in units of x; at most half of the box's narrowest side.
        directions: n, of two points, drawn for each member of a batch apart; None takes 10, and finite differences have their D.

    Raises:
        UnknownName: no such kind.
        InvalidProblem: a radius or number of directions that is not positive, or directions for finite differences.

    Cost: 2n (or 2D) solves and evaluations, of the whole batch at once; counted by the oracle.
    """

    kind: Differences = "two_point"
    _: KW_ONLY
    radius: float = 1e-2
    directions: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Differences):
            raise UnknownName("kind of differences", self.kind, list(get_args(Differences)))
        if not 0.0 < self.radius < float("inf"):
            raise InvalidProblem(f"radius is {self.radius}: it must be positive and finite, such as 1e-2")
        if self.directions is not None and self.directions < 1:
            raise InvalidProblem(f"directions is {self.directions}: take one at least")
        if self.kind == "finite_differences" and self.directions is not None:
            raise InvalidProblem(f"directions is {self.directions}, and finite differences go along every coordinate: leave it out")

    def supports(self, problem: OuterProblem) -> str | None:
        """None, or the reason why the problem does not fit: it has no f at all, or a box that the differences have no room in."""
        if reason := not_evaluated(problem):
            return reason
        low, high = problem.domain.bounds
        if float((high - low).min()) < 2.0 * self.radius:
            return f"the box of x is {float((high - low).min()):g} wide at its narrowest, and x ± {self.radius:g} has no room in it; lower the radius"
        return None

    def init(self, oracle: Oracle) -> None:
        """No state."""
        return

    @torch.no_grad()
    def __call__(self, oracle: Oracle, x: Tensor, response: Response, evaluation: Evaluation, state: None) -> tuple[Hypergradient, None]:
        """∇̂φ(x): x [B, D] → [B, D]."""
        generators = _generators(oracle)
        estimate = torch.zeros_like(x)
        for direction, weight in self._directions(x, generators):
            estimate += weight * self._slope(oracle, generators, x, direction, response).unsqueeze(-1) * direction
        return Hypergradient(estimate, estimate.clone(), torch.zeros_like(x)), None

    def _directions(self, x: Tensor, generators: list[torch.Generator]) -> Iterator[tuple[Tensor, float]]:
        """Unit vectors and their weights in the sum: [B, D] each where they are drawn, [D] where they are the coordinates."""
        if self.kind == "finite_differences":
            yield from ((coordinate, 1.0) for coordinate in torch.eye(x.shape[-1], dtype=x.dtype, device=x.device))
        else:
            count = DIRECTIONS if self.directions is None else self.directions
            for _ in range(count):
                share = x.numel() // len(generators)
                drawn = [torch.randn(share, generator=generator, dtype=x.dtype, device=x.device) for generator in generators]
                normal = torch.cat(drawn).view(x.shape)
                yield normal / normal.norm(dim=-1, keepdim=True), x.shape[-1] / count

    def _slope(self, oracle: Oracle, generators: list[torch.Generator], x: Tensor, direction: Tensor, response: Response) -> Tensor:
        """δ: [B, D], [B, D] → [B]."""
        low, high = (torch.as_tensor(side, dtype=x.dtype, device=x.device) for side in oracle.problem.domain.bounds)
        step = self.radius * direction
        middle = torch.minimum(torch.maximum(x, low + step.abs()), high - step.abs())
        draws = [generator.get_state() for generator in generators]
        ahead = self._phi(oracle, torch.clamp(middle + step, low, high), response)
        for generator, state in zip(generators, draws, strict=True):
            generator.set_state(state)
        behind = self._phi(oracle, torch.clamp(middle - step, low, high), response)
        return (ahead - behind) / (2.0 * self.radius)

    def _phi(self, oracle: Oracle, x: Tensor, response: Response) -> Tensor:
        return oracle.evaluate(x, oracle.solve(x, warm=response)).value


def _generators(oracle: Oracle) -> list[torch.Generator]:
    """The oracle's, or those of the members of a batch, so that each draws what it would draw alone."""
    members = getattr(oracle, "members", None)
    return [oracle.generator] if members is None else [member.oracle.generator for member in members]
