"""Linear dynamics with Gaussian noise: continuous states and actions, and everything about them in closed form."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bilevel_gym.errors import InvalidProblem
from bilevel_gym.linear_quadratic import GaussianFeedback
from bilevel_gym.numerics import ArrayLike, as_table
from bilevel_gym.types import Policy, Trajectory
from bilevel_gym.worlds.checks import check_discount

__all__ = ["LinearGaussianWorld"]

_EARLY, _LATE = np.array([203.0, 60.0, 51.0]), np.array([33.0, 113.0, 181.0])
"""Colours of a path at its begin and end."""


class LinearGaussianWorld:
    """s' = As + Ba + w, w ~ N(0, W), s_0 ~ N(0, S₀), for ever.

    Args:
        state_matrix: [n, n] A, with √γA stable, so that doing nothing has a finite quadratic cost.
        action_matrix: [n, m] B.
        noise: [n, n] W, the covariance of w.
        start: [n, n] S₀, that of the first state.
        discount: γ in [0, 1).
        device: where the matrices live.

    Raises:
        InvalidProblem: a shape does not fit, a covariance is not one, or √γA is not stable.
    """

    def __init__(
        self,
        state_matrix: ArrayLike,
        action_matrix: ArrayLike,
        noise: ArrayLike,
        start: ArrayLike,
        discount: float,
        *,
        device: str | torch.device = "cpu",
    ) -> None:
        self.state_matrix, self.action_matrix = as_table(state_matrix, device), as_table(action_matrix, device)
        self.noise, self.start = as_table(noise, device), as_table(start, device)
        shapes = [list(matrix.shape) for matrix in (self.state_matrix, self.action_matrix, self.noise, self.start)]
        size, actions = (next(iter(reversed(shape)), 0) for shape in shapes[:2])
        if 0 in (size, actions) or shapes != [[size, size], [size, actions], [size, size], [size, size]]:
            raise InvalidProblem(
                f"A, B, W and S₀ have the shapes {shapes}: with n states and m actions they are [n, n], [n, m], [n, n], [n, n]"
            )
        for name, covariance in (("noise", self.noise), ("start", self.start)):
            if not bool(covariance.isfinite().all()) or not torch.equal(covariance, covariance.mT) or _least(covariance) < -1e-12:
                raise InvalidProblem(f"{name} is not a covariance: make it symmetric, with eigenvalues that are not negative")
        self.discount = check_discount(discount)
        radius = float(torch.linalg.eigvals(self.state_matrix).abs().max())
        if not discount**0.5 * radius < 1.0:
            raise InvalidProblem(
                f"A has an eigenvalue of modulus {radius:.4g}, and γ is {discount}: √γ times it must be below 1, or doing nothing costs without bound"
            )

    def rollout(self, policy: Policy, *, trajectories: int, steps: int, generator: torch.Generator) -> Trajectory:
        """Play a policy from the start law: states [N, T, n] and actions [N, T, m], all alive, no reward of the world's own."""
        state = self._draw(self.start, trajectories, generator)
        states, actions = [], []
        for _ in range(steps):
            action = policy.sample(state, generator)
            states.append(state)
            actions.append(action)
            state = state @ self.state_matrix.mT + action @ self.action_matrix.mT + self._draw(self.noise, trajectories, generator)
        alive = torch.ones(trajectories, steps, dtype=torch.bool, device=state.device)
        return Trajectory(torch.stack(states, 1), torch.stack(actions, 1), alive)

    def quadrature(self, policy: Policy, states: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``count`` draws of weight 1/count: states [N, n] → actions [K, N, m] and weights [K, N]."""
        drawn = torch.stack([policy.sample(states, generator) for _ in range(count)])
        return drawn, torch.full(drawn.shape[:2], 1.0 / count, dtype=drawn.dtype, device=drawn.device)

    def exploratory(self, generator: torch.Generator) -> GaussianFeedback:
        """A feedback with a small random gain and unit noise."""
        shape = self.action_matrix.mT.shape
        gain = 0.1 * torch.randn(shape, generator=generator, dtype=self.start.dtype, device=self.start.device)
        return GaussianFeedback(gain, torch.eye(shape[0], dtype=gain.dtype, device=gain.device))

    def picture(self, policy: Policy, *, side: int = 320, steps: int = 60) -> np.ndarray:
        """Where the mean of the closed loop goes: the first two coordinates from twelve points on a circle, drawn with NumPy alone.

        Args:
            policy: what ``rollout`` takes.
            side: pixels.
            steps: of each path.

        Returns:
            [side, side, 3] uint8, the origin in the middle; the paths turn from red to blue.
        """
        angles = torch.linspace(0.0, 2.0 * np.pi, 13, dtype=self.start.dtype, device=self.start.device)[:-1]
        state = torch.zeros(12, len(self.start), dtype=self.start.dtype, device=self.start.device)
        state[:, 0] = angles.cos()
        state[:, 1:2] = angles.sin().unsqueeze(-1)
        path = [state]
        for _ in range(steps):
            path.append(path[-1] @ self.state_matrix.mT + policy.mean(path[-1]) @ self.action_matrix.mT)
        points = torch.stack(path)[..., [0, min(1, len(self.start) - 1)]].cpu().numpy()
        scale = 0.45 * side / np.abs(points).max()
        parts = np.linspace(0.0, 1.0, side, endpoint=False)[:, None, None]
        board = np.full((side, side, 3), 255, dtype=np.uint8)
        board[side // 2], board[:, side // 2] = 225, 225
        for step in range(steps):
            line = side / 2 + scale * (points[step] + parts * (points[step + 1] - points[step]))
            column, row = np.rint(line).astype(int).reshape(-1, 2).T
            for right, down in ((0, 0), (1, 0), (0, 1)):
                board[side - 1 - row - down, column + right] = _LATE + 0.7**step * (_EARLY - _LATE)
        return board

    def _draw(self, covariance: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """[count, n] from N(0, covariance), which may be singular."""
        values, vectors = torch.linalg.eigh(covariance)
        unit = torch.randn(count, len(covariance), generator=generator, dtype=covariance.dtype, device=covariance.device)
        drawn: Tensor = (unit * values.clamp_min(0.0).sqrt()) @ vectors.mT
        return drawn


def _least(covariance: Tensor) -> float:
    return float(torch.linalg.eigvalsh(covariance).min())
